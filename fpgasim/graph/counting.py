"""How much arithmetic and how many weights a matrix operator has."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fpgasim.graph.structure import Graph, Node

#: The operators that multiply matrices, and the inputs that may be their weights.
WEIGHT_INPUTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}


def macs(graph: "Graph", node: "Node") -> int:
    """Multiply-accumulates of `node`: see `Graph.macs`."""
    if node.domain != "" or node.op_type not in WEIGHT_INPUTS:
        return 0
    a, b = (_static_shape(graph, name) for name in node.inputs[:2])
    out = _static_shape(graph, node.outputs[0])
    if a is None or b is None or out is None:
        return 0
    if node.op_type == "Conv":  # b is (Cout, Cin/groups, *kernel): each output is a dot product over the rest
        return math.prod(out) * math.prod(b[1:])
    if node.op_type == "ConvTranspose":  # b is (Cin, Cout/groups, *kernel): each input is spread over the rest
        return math.prod(a) * math.prod(b[1:])
    if node.op_type == "Gemm":
        return math.prod(out) * a[0 if node.attributes.get("transA", 0) else 1]
    return math.prod(out) * a[-1]  # MatMul, batched or not


def weight_elements(graph: "Graph", node: "Node") -> int:
    """Elements of the constant operands of `node`: see `Graph.weight_elements`."""
    if node.domain != "":
        return 0
    arrays = (graph.constant(node.inputs[i]) for i in WEIGHT_INPUTS.get(node.op_type, ()))
    return sum(array.size for array in arrays if array is not None)


def _static_shape(graph: "Graph", name: str) -> tuple[int, ...] | None:
    shape = graph.tensor(name).shape
    if shape is None:
        return None
    numbers = tuple(dim for dim in shape if isinstance(dim, int))
    return numbers if len(numbers) == len(shape) else None
