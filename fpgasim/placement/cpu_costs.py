"""The time of a node on the CPU, from a table: the same on every machine.

The table stands for one thread of a server core with AVX-512 at about 3 GHz. A node takes

    OVERHEAD_S + max(operations / rate of its class, bytes read and written / BYTES_PER_S)

so a convolution is bound by its arithmetic, a Relu or a fully connected layer at batch 1 by memory. The rates are
chosen so that whole networks come out where ONNX Runtime's fp32 kernels are on such a core (ResNet-50: 42 ms).
"""

from __future__ import annotations

import math

from fpgasim.graph import Graph, Node

#: What dispatching one operator costs.
OVERHEAD_S = 4e-6
#: Reading and writing tensors: between the last-level cache and memory.
BYTES_PER_S = 20e9
#: Multiply-accumulates of convolutions and matrix products: 96 G/s is the peak of two 16-lane FMA units at 3 GHz, and
#: Winograd convolutions go beyond it.
DENSE_MACS_PER_S = 120e9
#: A convolution whose groups have fewer input channels leaves lanes empty in proportion.
FULL_GROUP = 16
#: Taps of a pool, elements of a reduction or a normalization.
POOL_TAPS_PER_S = 6e9
#: Elements of exp, erf, sigmoid, tanh and what is made of them.
TRANSCENDENTAL_PER_S = 0.8e9

_TRANSCENDENTAL = {
    *("Celu", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSwish", "Log", "LogSoftmax", "Mish", "Pow", "Selu", "Sigmoid"),
    *("Sin", "Softmax", "Softplus", "Sqrt", "Tanh"),
}
_POOLS = {"AveragePool", "LpPool", "MaxPool"}
_REDUCTIONS = {
    *("GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "LRN", "LayerNormalization", "LpNormalization"),
}
#: They only rename a buffer.
_VIEWS = {"Constant", "Dropout", "Flatten", "Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze"}


def cpu_seconds(graph: Graph, node: Node) -> float:
    """The time of `node` on the CPU in seconds; a tensor whose shape is not known counts as empty."""
    if node.domain == "" and node.op_type in _VIEWS:
        return OVERHEAD_S
    names = {name for name in (*node.inputs, *node.outputs) if name}
    moved_bytes = sum(tensor_elements(graph, name) * graph.tensor(name).dtype.itemsize for name in names)
    return OVERHEAD_S + max(_arithmetic_seconds(graph, node), moved_bytes / BYTES_PER_S)


def _arithmetic_seconds(graph: Graph, node: Node) -> float:
    macs = graph.macs(node)
    if macs:
        return macs / (DENSE_MACS_PER_S * _lanes_filled(graph, node))
    if node.domain != "" or not any(node.outputs[:1]):
        return 0.0
    elements = tensor_elements(graph, node.outputs[0])
    if node.op_type in _TRANSCENDENTAL:
        return elements / TRANSCENDENTAL_PER_S
    if node.op_type in _POOLS:
        taps: int = math.prod(node.attributes["kernel_shape"])
        return elements * taps / POOL_TAPS_PER_S
    if node.op_type in _REDUCTIONS or node.op_type.startswith(("Reduce", "Arg")):
        return tensor_elements(graph, node.inputs[0]) / POOL_TAPS_PER_S
    return 0.0


def _lanes_filled(graph: Graph, node: Node) -> float:
    """The share of the lanes that the input channels of one group fill; only a Conv with macs has groups."""
    groups = int(node.attributes.get("group", 1))
    shape = graph.tensor(node.inputs[0]).shape
    channels = shape[1] if groups > 1 and shape is not None else None
    return min(1.0, channels / groups / FULL_GROUP) if isinstance(channels, int) else 1.0


def tensor_elements(graph: Graph, name: str) -> int:
    """The elements of tensor `name`; 0 where its shape is not known before the run."""
    shape = graph.tensor(name).shape
    if shape is None:
        return 0
    dims = [dim for dim in shape if isinstance(dim, int)]
    return math.prod(dims) if len(dims) == len(shape) else 0
