"""Pictures that a command writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fpgasim.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def check_picture(path: str) -> None:
    """Raises InputError where the end of the name is no format that Pillow writes, or the folder is not there."""
    import PIL.Image

    known = PIL.Image.registered_extensions()
    if known.get(Path(path).suffix.lower()) not in PIL.Image.SAVE:
        raise InputError(f"--picture {path}: no format to write is called {Path(path).suffix!r}; .png or .jpg would do")
    if not Path(path).parent.is_dir():
        raise InputError(f"--picture {path}: there is no folder {str(Path(path).parent)!r}")


def write_picture(picture: Image, path: str) -> None:
    """Writes the picture; raises InputError where it cannot be written."""
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--picture {path}: cannot be written: {reason}; another place would do") from error
