"""`preprocess_array`: pictures made into tensors as Azure's SDK does it, now or when a pipeline runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fpgasim.service import symbolic

if TYPE_CHECKING:
    from fpgasim.zoo.azure_images import Order
    from fpgasim.zoo.decoding import Picture

#: What the tensor that it makes is called.
NAME = "preprocess_array/images:0"


@overload
def preprocess_array(
    in_images: symbolic.Tensor,
    order: Order = ...,
    scaling_factor: float = ...,
    output_height: int = ...,
    output_width: int = ...,
    preserve_aspect_ratio: bool = ...,
) -> symbolic.Tensor: ...
@overload
def preprocess_array(
    in_images: Sequence[Picture] | np.ndarray[Any, Any],
    order: Order = ...,
    scaling_factor: float = ...,
    output_height: int = ...,
    output_width: int = ...,
    preserve_aspect_ratio: bool = ...,
) -> np.ndarray[Any, np.dtype[np.float32]]: ...
def preprocess_array(
    in_images: symbolic.Tensor | Sequence[Picture] | np.ndarray[Any, Any],
    order: Order = "RGB",
    scaling_factor: float = 1.0,
    output_height: int = 224,
    output_width: int = 224,
    preserve_aspect_ratio: bool = True,
) -> symbolic.Tensor | np.ndarray[Any, np.dtype[np.float32]]:
    """n encoded pictures as float32 (n, height, width, 3), bit for bit as `azureml.accel.models.utils` makes them.

    Of a placeholder it gives the tensor of that shape, to be computed in the service; of pictures (paths, bytes, …) the
    array itself. Two faults of the SDK are kept, as `fpgasim.zoo.preprocess_azure` tells with quirks=True. Raises
    InputError for arguments that cannot be, ImageError for a picture that cannot be read.
    """
    from fpgasim.zoo import AzurePreprocessing, preprocess_azure

    spec = AzurePreprocessing(order, scaling_factor, output_height, output_width, preserve_aspect_ratio, quirks=True)
    if isinstance(in_images, symbolic.Tensor):
        return symbolic.preprocessed(in_images, spec, NAME)
    return preprocess_azure(
        in_images, order, scaling_factor, output_height, output_width, preserve_aspect_ratio, quirks=True
    )
