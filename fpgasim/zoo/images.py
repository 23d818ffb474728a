"""From a picture to what a network takes in: decode, resize, normalise.

EXIF is ignored, orientation included, as the networks' own evaluations do. Greyscale, palette and CMYK pictures are
converted to RGB; an alpha channel is dropped. Of an animation the first frame is taken.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from fpgasim.errors import ImageError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "str | os.PathLike[str] | bytes | Image | np.ndarray[Any, Any]"

#: More pixels than this, decoded or after resizing, are refused (Pillow's own limit for a suspected bomb).
MAX_PIXELS = 89_478_485

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become input: resized, then (pixel - mean) / std per channel, pixels 0…255.

    `stretch` resizes the whole picture to `size` x `size`, whatever its shape; `center_crop` resizes the shorter side
    to `shorter_side` and cuts `size` x `size` from the middle. `mean` and `std` are in the order of `channels`.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["stretch", "center_crop"] = "stretch"
    shorter_side: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    channels: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        if (self.resize == "center_crop") != (self.shorter_side is not None):
            raise InputError(f"shorter_side={self.shorter_side}; center_crop needs it and {self.resize!r} is asked")
        if self.size < 1 or (self.shorter_side is not None and self.shorter_side < self.size):
            raise InputError(f"size={self.size}; must be at least 1 and at most shorter_side={self.shorter_side}")
        if not all(std > 0 for std in self.std):
            raise InputError(f"std={self.std}; each must be above 0")


def preprocess(preprocessing: "Preprocessing | str", image: Picture) -> np.ndarray[Any, Any]:
    """The picture as float32 of shape (1, 3, size, size), as `preprocessing` or the network of that name takes it in.

    `image` is a path, the bytes of an encoded picture, a PIL image or a uint8 array of shape (height, width, 3), RGB.
    Raises ImageError, naming the file, for a picture that cannot be decoded whole, is too large or has more than 8 bits
    a channel; UnknownNameError for an unknown network.
    """
    from PIL.Image import Resampling

    if isinstance(preprocessing, str):
        from fpgasim.zoo.networks import network

        preprocessing = network(preprocessing).preprocessing
    picture = _decode(image)
    width, height = picture.size
    size, side = preprocessing.size, preprocessing.shorter_side
    if side is not None:
        short = min(width, height)
        scaled = (width * side // short, height * side // short)
    else:
        scaled = (size, size)
    _check_pixels(scaled, _name(image))
    picture = picture.resize(scaled, Resampling[preprocessing.interpolation.upper()])
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), np.float32)
    if preprocessing.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    normal = (pixels - np.array(preprocessing.mean, np.float32)) / np.array(preprocessing.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None])


def _decode(image: Picture) -> "Image":
    """The picture in RGB."""
    import PIL.Image

    name = _name(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ImageError(f"{name}; an array must be uint8 of shape (height, width, 3)")
        return PIL.Image.fromarray(image)
    try:
        if isinstance(image, PIL.Image.Image):
            return _to_rgb(image, name)
        if isinstance(image, str | os.PathLike):
            image = Path(image).read_bytes()
        if not isinstance(image, bytes):
            raise ImageError(f"image {name}; give a path, bytes, a PIL image or a uint8 array")
        if not image:
            raise ImageError(f"image {name} is empty (0 bytes)")
        with PIL.Image.open(io.BytesIO(image)) as picture:
            return _to_rgb(picture, name)
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ImageError(f"image {name} is none that Pillow can read; give a JPEG or PNG") from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ImageError(f"image {name} has too many pixels; at most {MAX_PIXELS} are taken") from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"image {name} cannot be read: {reason}; give a picture such as a JPEG or PNG") from error


def _to_rgb(picture: "Image", name: str) -> "Image":
    _check_pixels(picture.size, name)
    if picture.mode[0] in "IF":
        raise ImageError(f"image {name} has mode {picture.mode!r}, more than 8 bits a channel; save it with 8")
    # A palette goes by way of RGBA, since it may hold transparency as bytes.
    return (picture.convert("RGBA") if picture.mode == "P" else picture).convert("RGB")


def _check_pixels(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"image {name} makes {size[0]}x{size[1]} pixels; at most {MAX_PIXELS} are taken")


def _name(image: Picture) -> str:
    match image:
        case str() | os.PathLike():
            return repr(os.fspath(image))
        case bytes():
            return f"of {len(image)} bytes"
        case np.ndarray():
            return f"array of {image.dtype} {image.shape}"
        case _:
            return f"of type {type(image).__name__}"
