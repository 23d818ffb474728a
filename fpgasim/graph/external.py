"""Tensor data that lies in other files of the model's folder."""

import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from fpgasim.errors import ModelError
from fpgasim.graph.structure import is_of_numpy


def check_entries(proto: onnx.ModelProto) -> None:
    """Nothing, or a ModelError that names a tensor whose data lies in a file, but at no whole number of bytes."""
    nodes = (node for part in (proto.graph, *proto.functions) for node in part.node)
    for tensor in _tensors(proto.graph.initializer, nodes):
        for entry in tensor.external_data if tensor.data_location == onnx.TensorProto.EXTERNAL else ():
            if entry.key in ("offset", "length") and not re.fullmatch("[0-9]{1,19}", entry.value):
                raise ModelError(
                    f"external data of tensor {tensor.name!r} has {entry.key} {entry.value!r}; "
                    "a whole number of bytes from 0 up would do"
                )


def _tensors(initializers: Iterable[onnx.TensorProto], nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """The tensors of a graph, its nodes' attributes and their subgraphs."""
    yield from initializers
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph.initializer, graph.node)


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
    if min(shape, default=0) < 0 or (length is not None and length != size_bytes):
        raise ModelError(
            f"{where} has offset {offset} and length {length}; {tensor.dtype} of shape {shape} needs {size_bytes} bytes"
        )
    try:
        with path.open("rb") as file:
            there = os.fstat(file.fileno()).st_size - offset
            if there < size_bytes:
                raise ModelError(
                    f"{where} is too short: {max(there, 0)} bytes from offset {offset} on; it needs {size_bytes}"
                )
            file.seek(offset)
            data = file.read(size_bytes)
    except OSError as error:
        raise ModelError(f"{where} cannot be read: {error.strerror or error}") from error
    dtype = tensor.dtype.numpy()
    if dtype.kind in "biufc" and is_of_numpy(dtype):  # the bytes are the array: weights of gigabytes once in memory
        return np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape)
    return ir.serde.TensorProtoTensor(_inline(tensor, data)).numpy()


def _inline(tensor: ir.ExternalTensor, data: bytes) -> onnx.TensorProto:
    return onnx.TensorProto(name=tensor.name, data_type=tensor.dtype.value, dims=tensor.shape.numpy(), raw_data=data)
