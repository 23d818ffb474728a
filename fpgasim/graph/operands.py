"""Operands that contradict each other where ONNX's shape inference looks away and ONNX Runtime fails during the run."""

from collections.abc import Iterator

import onnx_ir as ir

from fpgasim.errors import ModelError
from fpgasim.graph.structure import Dim, shape_of


def check_operands(graph: ir.Graph) -> None:
    """Nothing, or a ModelError that names a Conv, ConvTranspose or Gemm and what contradicts what.

    A dimension that is not known contradicts nothing.
    """
    for node in graph:
        if node.domain == "" and node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            check = _gemm if node.op_type == "Gemm" else _conv
            for contradiction in check(node):
                raise ModelError(f"node {node.name!r} ({node.op_type}): {contradiction}")


def _conv(node: ir.Node) -> Iterator[str]:
    """x is (N, C, *size), w (M, C/group, *kernel), bias (M,); of a ConvTranspose, w is (C, M/group, *kernel)."""
    group = node.attributes.get_int("group", 1)
    if group < 1:
        yield f"group={group}; a whole number from 1 up would do"
    x, w, bias = (_operand(node, i) for i in range(3))
    if w is None or len(w) < 3:
        return
    weights = f"weights {_name(node, 1)} of shape {w}"
    kernel = tuple(node.attributes.get_ints("kernel_shape") or w[2:])
    if len(kernel) != len(w) - 2 or any(map(differ, kernel, w[2:])):
        yield f"kernel_shape={list(kernel)}, but the {weights} make it {list(w[2:])}"
    if isinstance(w[0], int) and w[0] % group:
        yield f"the {w[0]} rows of the {weights} do not divide into group={group}"
    grouped = w[1] * group if isinstance(w[1], int) else None
    channels, outputs = (w[0], grouped) if node.op_type == "ConvTranspose" else (grouped, w[0])
    if x is not None and len(x) > 1 and differ(x[1], channels):
        yield f"input {_name(node, 0)} has {x[1]} channels, but the {weights} with group={group} take {channels}"
    if bias is not None and (len(bias) != 1 or differ(bias[0], outputs)):
        yield f"bias {_name(node, 2)} has shape {bias}, but the {weights} make {outputs} channels"


def _gemm(node: ir.Node) -> Iterator[str]:
    """a is (M, K), b (K, N), each perhaps transposed; c broadcasts to (M, N)."""
    a, b, c = (_operand(node, i) for i in range(3))
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return
    m, k = a[::-1] if node.attributes.get_int("transA", 0) else a
    k2, n = b[::-1] if node.attributes.get_int("transB", 0) else b
    matrices = f"{_name(node, 0)} of shape {a} and {_name(node, 1)} of shape {b}"
    if differ(k, k2):
        yield f"{matrices} have inner dimensions {k} and {k2}; they must agree"
    product = (m, n)[2 - len(c or ()) :]
    if c is not None and len(c) <= 2 and any(dim != 1 and differ(dim, of) for dim, of in zip(c, product, strict=True)):
        yield f"{_name(node, 2)} of shape {c} does not broadcast to ({m}, {n}), the product of {matrices}"


def differ(one: object, other: object) -> bool:
    """Whether two dimensions are known not to be the same."""
    return isinstance(one, int) and isinstance(other, int) and one != other


def _operand(node: ir.Node, index: int) -> tuple[Dim, ...] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else shape_of(value)


def _name(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return repr(None if value is None else value.name)
