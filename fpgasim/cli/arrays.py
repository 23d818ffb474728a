"""Arrays from .npy files, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fpgasim.errors import InputError


def read_array(path: str) -> npt.NDArray[Any]:
    """The array in the .npy file at `path`. Raises InputError naming the file; pickled objects are refused."""
    try:
        with open(path, "rb") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except OSError as error:
        raise InputError(f"array {path!r}: {error.strerror}; give a .npy file") from error
    except (ValueError, EOFError, MemoryError) as error:
        raise InputError(f"array {path!r} is no whole .npy file of numbers: {error}") from error
