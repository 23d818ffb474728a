"""From a picture to what a network takes in: decode, resize, normalise; and how others did it for their weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from fpgasim.errors import InputError
from fpgasim.zoo.azure_images import MEANS, AzurePreprocessing
from fpgasim.zoo.decoding import Picture, check_pixels, decode, name_of, to_pillow

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become input: resized by Pillow, then (pixel - mean) / std per channel, pixels 0…255.

    `stretch` resizes the whole picture to `size` x `size`, whatever its shape; `center_crop` resizes the shorter side
    to `shorter_side` and cuts `size` x `size` from the middle. `mean` and `std` are in the order of `channels`.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["stretch", "center_crop"] = "stretch"
    shorter_side: int | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    channels: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        if (self.resize == "center_crop") != (self.shorter_side is not None):
            raise InputError(f"shorter_side={self.shorter_side}; center_crop needs it and {self.resize!r} is asked")
        if self.size < 1 or (self.shorter_side is not None and self.shorter_side < self.size):
            raise InputError(f"size={self.size}; must be at least 1 and at most shorter_side={self.shorter_side}")
        if not all(std > 0 for std in self.std):
            raise InputError(f"std={self.std}; each must be above 0")


TORCHVISION = Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD, "center_crop", shorter_side=256)
#: The mean taken off, nothing scaled, as for the weights of Caffe's time; resized as torchvision does.
MEAN_ONLY = Preprocessing(224, MEANS, (1.0, 1.0, 1.0), "center_crop", shorter_side=256)
LITE = Preprocessing(224, (127.0,) * 3, (128.0,) * 3, interpolation="bicubic")

#: What goes with weights from elsewhere, by name; docs/pictures.md says which are whose.
PREPROCESSINGS: dict[str, Preprocessing | AzurePreprocessing] = {
    "torchvision": TORCHVISION,
    "torchvision_v2": replace(TORCHVISION, shorter_side=232),
    "timm_bicubic": replace(TORCHVISION, interpolation="bicubic"),
    "timm_a1": replace(TORCHVISION, interpolation="bicubic", shorter_side=235),
    # load_img stretches by the nearest pixel, unless told otherwise
    "keras": Preprocessing(224, MEANS[::-1], (1.0, 1.0, 1.0), interpolation="nearest", channels="BGR"),
    "keras_densenet": Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD, interpolation="nearest"),
    "azure": AzurePreprocessing(),
    "azure_densenet121": AzurePreprocessing(scaling_factor=0.017),
    "azure_ssd_vgg": AzurePreprocessing(output_height=300, output_width=300, preserve_aspect_ratio=False),
}


def preprocess(
    preprocessing: Preprocessing | AzurePreprocessing | str, image: "Picture | Sequence[Picture]"
) -> np.ndarray[Any, Any]:
    """The picture as float32 of shape (1, 3, size, size), as `preprocessing` or the network of that name takes it in.

    `image` is a path, the bytes of an encoded picture, a PIL image, a uint8 array of shape (height, width, 3), RGB, or
    a list of n such, for (n, 3, size, size). A name is one of NETWORKS or PREPROCESSINGS. Pillow decodes and resizes
    for a Preprocessing; `azure_images` tells of the other. Raises ImageError, naming the file, for a picture that
    cannot be decoded whole, is too large or has more than 8 bits a channel; UnknownNameError for an unknown name.
    """
    if isinstance(preprocessing, str):
        preprocessing = named(preprocessing)
    images: Sequence[Any] = image if isinstance(image, list | tuple) else [image]
    if not images:
        raise InputError("an empty list of pictures; give at least one")
    return np.ascontiguousarray(np.stack([_apply(preprocessing, one) for one in images]).transpose(0, 3, 1, 2))


def named(name: str) -> Preprocessing | AzurePreprocessing:
    """The entry of PREPROCESSINGS of that name, or the network's; raises UnknownNameError."""
    from fpgasim.zoo.networks import network

    return PREPROCESSINGS[name] if name in PREPROCESSINGS else network(name).preprocessing


def _apply(spec: Preprocessing | AzurePreprocessing, image: Picture) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One picture as (size, size, 3)."""
    from PIL.Image import Resampling

    if isinstance(spec, AzurePreprocessing):
        return spec.apply(decode(image), name_of(image))
    picture = to_pillow(image)
    width, height = picture.size
    size, side = spec.size, spec.shorter_side
    if side is not None:
        short = min(width, height)
        scaled = (width * side // short, height * side // short)
    else:
        scaled = (size, size)
    check_pixels(scaled, name_of(image))
    picture = picture.resize(scaled, Resampling[spec.interpolation.upper()])
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), np.float32)
    if spec.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    normal: np.ndarray[Any, Any] = (pixels - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return normal
