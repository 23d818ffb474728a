"""Pictures as pixels: what Pillow reads of KINDS, or JPEG, PNG and GIF bit for bit as TensorFlow's decoders give them.

EXIF is ignored, orientation included, as the networks' own evaluations do. Greyscale, palette and CMYK pictures are
converted to RGB; an alpha channel is dropped. Of an animation the first frame is taken.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fpgasim.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "str | os.PathLike[str] | bytes | Image | np.ndarray[Any, Any]"
Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

#: More pixels than this, decoded or after resizing, are refused (Pillow's own limit for a suspected bomb).
MAX_PIXELS = 89_478_485
#: Encoded pictures with a longer side are refused, JPEG's own limit: each row has its price in decoders and resizers.
MAX_SIDE = 65_535
#: What Pillow may decode: no format that a program from outside reads, as Ghostscript does PostScript, and none rare.
KINDS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")

_JPEG, _PNG, _GIF = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8"
#: The chunk that ends a PNG; Pillow does without, libpng does not.
_IEND = b"IEND\xaeB`\x82"
#: How what TensorFlow's decode_png refuses begins, to name it.
_OTHERS = {b"BM": "BMP", b"RIFF": "WEBP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}


def to_pillow(image: Picture) -> "Image":
    """The picture in RGB, as Pillow decodes it.

    Raises ImageError, naming the file, for a picture that cannot be decoded whole, is too large or has more than 8 bits
    a channel.
    """
    import PIL.Image

    name = name_of(image)
    if isinstance(image, np.ndarray):
        return PIL.Image.fromarray(_checked(image, name))
    with _reading(name):
        if isinstance(image, PIL.Image.Image):
            return _to_rgb(image, name)
        with PIL.Image.open(io.BytesIO(_read(image, name)), formats=KINDS) as picture:
            return _to_rgb(picture, name)


def decode(image: Picture) -> Pixels:
    """The picture as uint8 (height, width, 3), RGB: for an encoded one the very pixels of TensorFlow's `decode_png`.

    That operator reads JPEG (libjpeg's IFAST transform), PNG of 8 and 16 bits a channel (of 16 the upper 8 are kept)
    and GIF (transparent pixels are black). It reads one frame; here an animation gives its first. A PIL image and a
    uint8 array are taken as they are. Raises ImageError, naming the file, for any other kind, for a picture that cannot
    be decoded whole and for one of more than MAX_PIXELS.
    """
    import PIL.Image

    name = name_of(image)
    if isinstance(image, np.ndarray):
        return _checked(image, name)
    with _reading(name):
        if isinstance(image, PIL.Image.Image):
            return np.asarray(_to_rgb(image, name))
        data = _read(image, name)
        if data.startswith(_JPEG):
            return _decode_jpeg(data, name)
        if data.startswith((_PNG, _GIF)):
            return _decode_png_or_gif(data, name)
        kind = next((f"a {kind}" for start, kind in _OTHERS.items() if data.startswith(start)), "no picture")
        raise ImageError(f"image {name} seems to be {kind}; a JPEG, PNG or GIF would do")


def check_pixels(size: tuple[int, int], name: str) -> None:
    """Raises ImageError for more than MAX_PIXELS; `size` is (width, height)."""
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"image {name} makes {size[0]}x{size[1]} pixels; at most {MAX_PIXELS} are taken")


def _check_size(size: tuple[int, int], name: str) -> None:
    """Raises ImageError for what is not to be decoded; `size` is (width, height)."""
    if max(size) > MAX_SIDE:
        raise ImageError(f"image {name} has {size[0]}x{size[1]} pixels; at most {MAX_SIDE} a side are taken")
    check_pixels(size, name)


def name_of(image: object) -> str:
    """What an error calls the picture: its path, or what it is."""
    match image:
        case str() | os.PathLike():
            return repr(os.fspath(image))
        case bytes():
            return f"of {len(image)} bytes"
        case np.ndarray():
            return f"array of {image.dtype} {image.shape}"
        case _:
            return f"of type {type(image).__name__}"


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turns what a decoder raises into ImageError."""
    import PIL.Image

    try:
        yield
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ImageError(f"image {name} is none of {', '.join(KINDS)}; give a JPEG or PNG") from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ImageError(f"image {name} has too many pixels; at most {MAX_PIXELS} are taken") from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"image {name} cannot be read: {reason}; give a picture such as a JPEG or PNG") from error


def _read(image: object, name: str) -> bytes:
    if isinstance(image, str | os.PathLike):
        image = Path(image).read_bytes()
    if not isinstance(image, bytes):
        raise ImageError(f"image {name}; give a path, bytes, a PIL image or a uint8 array")
    if not image:
        raise ImageError(f"image {name} is empty (0 bytes)")
    return image


def _checked(pixels: np.ndarray[Any, Any], name: str) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ImageError(f"{name}; an array must be uint8 of shape (height, width, 3)")
    return pixels


def _to_rgb(picture: "Image", name: str) -> "Image":
    _check_size(picture.size, name)
    if picture.mode[0] in "IF":
        raise ImageError(f"image {name} has mode {picture.mode!r}, more than 8 bits a channel; save it with 8")
    # A palette goes by way of RGBA, since it may hold transparency as bytes.
    return (picture.convert("RGBA") if picture.mode == "P" else picture).convert("RGB")


def _decode_jpeg(data: bytes, name: str) -> Pixels:
    import simplejpeg

    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):  # no end of image after the last start of scan
        raise ImageError(f"image {name} cannot be read: it is cut short; give a picture such as a JPEG or PNG")
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    _check_size((width, height), name)
    inks = colours in ("CMYK", "YCCK")
    wanted = "CMYK" if inks else "RGB"
    header, rest = _segments(data)
    try:
        pixels = simplejpeg.decode_jpeg(data, wanted, fastdct=True)
    except ValueError as error:
        if not str(error).startswith("Corrupt JPEG data"):
            raise
        # libjpeg only warns of such damage and TensorFlow decodes on. Before the first scan simplejpeg will not.
        pixels = simplejpeg.decode_jpeg(b"\xff\xd8" + b"".join(header) + rest, wanted, fastdct=True, strict=False)
    if not inks:
        return np.asarray(pixels)
    # Adobe writes inks inverted, so 255 is no ink.
    adobe = any(segment.startswith(b"\xff\xee") and segment[4:9] == b"Adobe" for segment in header)
    light: np.ndarray[Any, Any] = pixels.astype(np.uint16) if adobe else np.uint16(255) - pixels
    return np.asarray(light[..., :3] * light[..., 3:] // 255, np.uint8)


def _segments(jpeg: bytes) -> tuple[list[bytes], bytes]:
    """The segments before the first scan without stray bytes between them, and what follows from the scan on."""
    found, at = [], 2
    while at + 4 <= len(jpeg):
        if jpeg[at] != 0xFF or jpeg[at + 1] in (0x00, 0xFF):
            at += 1
            continue
        if jpeg[at + 1] == 0xDA:
            break
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        found.append(jpeg[at:end])
        at = end
    return found, jpeg[at:]


def _decode_png_or_gif(data: bytes, name: str) -> Pixels:
    import PIL.Image

    if data.startswith(_PNG) and _IEND not in data:
        raise ImageError(f"image {name} cannot be read: it is cut short; give a picture such as a JPEG or PNG")
    with PIL.Image.open(io.BytesIO(data), formats=("PNG", "GIF")) as picture:
        _check_size(picture.size, name)
        if picture.mode[0] == "I":  # grey of 16 bits; Pillow itself cuts colours of 16
            return np.repeat((np.asarray(picture)[:, :, None] >> 8).astype(np.uint8), 3, axis=2)
        if picture.format == "GIF" and "transparency" in picture.info:
            pixels = np.asarray(picture.convert("RGBA"))
            return np.where(pixels[:, :, 3:] == 0, np.uint8(0), pixels[:, :, :3])
        return np.asarray(_to_rgb(picture, name))
