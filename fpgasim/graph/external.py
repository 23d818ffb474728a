"""Tensor data that lies in other files of the model's folder."""

import math
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from fpgasim.errors import ModelError


def read_external(tensor: ir.ExternalTensor, folder: Path) -> np.ndarray:
    """The array of `tensor`, read into memory.

    ModelError if its file is not inside `folder` once `..` and links are resolved, is missing, or is too short.
    """
    location = os.fspath(tensor.location)
    where = f"external data {location!r} of tensor {tensor.name!r}"
    if not location or os.path.isabs(location) or "\\" in location or "\0" in location:
        raise ModelError(f"{where} is refused; a path relative to the model's folder would do")
    home = folder.resolve()
    path = (home / location).resolve()
    if not path.is_relative_to(home):
        raise ModelError(f"{where} is refused; it leads outside the model's folder {str(home)!r}")
    if not path.is_file():
        raise ModelError(f"{where} is missing; expected at {str(path)!r}")
    shape = tensor.shape.numpy()
    size_bytes = math.ceil(math.prod(shape) * tensor.dtype.itemsize)
    offset, length = tensor.offset or 0, tensor.length
    if offset < 0 or min(shape, default=0) < 0 or (length is not None and length != size_bytes):
        raise ModelError(
            f"{where} has offset {offset} and length {length}; {tensor.dtype} of shape {shape} needs {size_bytes} bytes"
        )
    try:
        with path.open("rb") as file:
            there = max(os.fstat(file.fileno()).st_size - offset, 0)
            if there < size_bytes:
                raise ModelError(f"{where} is too short: {there} bytes from offset {offset} on; it needs {size_bytes}")
            file.seek(offset)
            data = file.read(size_bytes)
    except OSError as error:
        raise ModelError(f"{where} cannot be read: {error.strerror or error}") from error
    return ir.serde.TensorProtoTensor(_inline(tensor, data)).numpy()


def _inline(tensor: ir.ExternalTensor, data: bytes) -> onnx.TensorProto:
    return onnx.TensorProto(name=tensor.name, data_type=tensor.dtype.value, dims=tensor.shape.numpy(), raw_data=data)
