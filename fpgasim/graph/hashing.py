"""The fingerprint of a graph."""

import hashlib
from typing import Any

import numpy as np
import onnx_ir as ir

from fpgasim.graph.structure import shape_of


def fingerprint(model: ir.Model) -> str:
    """SHA-256, in hex, over structure and weights; documentation strings and metadata do not count."""
    digest = hashlib.sha256()
    _add(digest, sorted(model.opset_imports.items()))
    _add_graph(digest, model.graph)
    return digest.hexdigest()


def _add(digest: Any, fact: object) -> None:
    digest.update(repr(fact).encode())
    digest.update(b"\n")


def _add_graph(digest: Any, graph: ir.Graph) -> None:
    for values in (graph.inputs, graph.outputs):
        _add(digest, [(value.name, str(value.type), shape_of(value)) for value in values])
    for name in sorted(graph.initializers):
        _add(digest, name)
        _add_tensor(digest, graph.initializers[name].const_value)
    for node in graph:
        inputs = [None if value is None else value.name for value in node.inputs]
        _add(digest, (node.name, node.domain, node.op_type, inputs, [value.name for value in node.outputs]))
        for name in sorted(node.attributes):
            _add_attribute(digest, node.attributes[name])


def _add_attribute(digest: Any, attribute: ir.Attr) -> None:
    _add(digest, (attribute.name, str(attribute.type)))
    kind = ir.AttributeType
    if attribute.type == kind.TENSOR:
        _add_tensor(digest, attribute.as_tensor())
    elif attribute.type == kind.TENSORS:
        for tensor in attribute.as_tensors():
            _add_tensor(digest, tensor)
    elif attribute.type == kind.GRAPH:
        _add_graph(digest, attribute.as_graph())
    elif attribute.type == kind.GRAPHS:
        for graph in attribute.as_graphs():
            _add_graph(digest, graph)
    else:
        _add(digest, attribute.value)


def _add_tensor(digest: Any, tensor: ir.TensorProtocol | None) -> None:
    if tensor is None:
        return
    _add(digest, (str(tensor.dtype), tensor.shape.numpy()))
    if isinstance(tensor, ir.StringTensor):
        _add(digest, list(tensor.string_data()))
    else:
        digest.update(np.ascontiguousarray(tensor.numpy()).view(np.uint8).reshape(-1).data)
