"""Models without what onnx-ir cannot hold: sparse constants become dense, types of maps are left to ONNX Runtime."""

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from fpgasim.errors import ModelError

#: A sparse tensor of a few bytes must not ask for all memory there is.
_DENSE_LIMIT = 1 << 28


def without_sparse_and_maps(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """`proto` itself if it has neither, else a copy. ModelError for an input that is a map, and broken sparse data."""
    if not any(map(_has_either, _graphs(proto))) and not any(map(_sparse_value, _nodes(proto))):
        return proto
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    for graph in _graphs(plain):
        for info in graph.input:
            if is_map(info.type):
                raise ModelError(f"{where}: input {info.name!r} is a map, which is not taken; an array would do")
        for info in (*graph.output, *graph.value_info):
            if is_map(info.type):
                info.ClearField("type")
        graph.initializer.extend(_dense(sparse, sparse.values.name, where) for sparse in graph.sparse_initializer)
        graph.ClearField("sparse_initializer")
    for node in _nodes(plain):
        if (attribute := _sparse_value(node)) is not None:
            dense = _dense(attribute.sparse_tensor, node.output[0], where)
            attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
    return plain


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield proto.graph
    for node in _nodes(proto):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
            yield from attribute.graphs


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of functions and subgraphs too."""
    pending = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                pending.extend(graph.node)


def _has_either(graph: onnx.GraphProto) -> bool:
    infos = (*graph.input, *graph.output, *graph.value_info)
    return bool(graph.sparse_initializer) or any(is_map(info.type) for info in infos)


def is_map(kind: onnx.TypeProto) -> bool:
    """Whether the type is a map, or a sequence or an optional of maps."""
    match kind.WhichOneof("value"):
        case "sequence_type":
            return is_map(kind.sequence_type.elem_type)
        case "optional_type":
            return is_map(kind.optional_type.elem_type)
        case value:
            return str(value) == "map_type"


def _sparse_value(node: onnx.NodeProto) -> onnx.AttributeProto | None:
    if node.op_type != "Constant":
        return None
    return next((a for a in node.attribute if a.type == onnx.AttributeProto.SPARSE_TENSOR), None)


def _dense(sparse: onnx.SparseTensorProto, name: str, where: str) -> onnx.TensorProto:
    """The tensor with all its zeros. Indices are (n,) into the flattened tensor or (n, rank)."""
    dims = tuple(sparse.dims)
    for part in (sparse.values, sparse.indices):
        if part.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(f"{where}: sparse tensor {name!r} lies in another file; one in the model would do")
    if math.prod(dims) > _DENSE_LIMIT:
        raise ModelError(f"{where}: sparse tensor {name!r} of shape {dims} has more than {_DENSE_LIMIT} elements")
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(dims, values.dtype)
        at = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dims)
        if values.shape != at.shape or (at.size and not 0 <= at.min() <= at.max() < math.prod(dims)):
            raise ValueError(f"{values.shape} values at {indices.shape} indices do not fit {dims}")
        dense.reshape(-1)[at] = values
    except (ValueError, TypeError) as error:
        raise ModelError(f"{where}: sparse tensor {name!r} is broken: {' '.join(str(error).split())}") from error
    return numpy_helper.from_array(dense, name)
