"""One ONNX node as a layer of the engine: the only place that knows what the engine can do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fpgasim.compiler.capability import Array, Request, Unsupported, check_size
from fpgasim.compiler.resizing import repeats
from fpgasim.compiler.windows import conv_window, pool_window
from fpgasim.graph import Graph, Node
from fpgasim.kernels.contract import Window
from fpgasim.npu import Device, Layer, Stage
from fpgasim.npu.layers import Head, Packing, Shape, StageKind
from fpgasim.npu.segment import nhwc_shape
from fpgasim.ops import expand_groups

#: A convolution of fewer channels than this has its windows unrolled: the stem's three would fill 3 lanes of a vector.
WINDOW_PACKING_BELOW = 16


@dataclass(frozen=True, eq=False)
class Constant:
    """What an ONNX constant becomes: `values()`, for the matrix unit with the block axis last, or for a stage."""

    values: Callable[[], Array]
    blocked: bool = False


class Lowered(NamedTuple):
    """A layer and its constants by the names that the layer gives them."""

    layer: Layer
    constants: Mapping[str, Constant]


def lower_node(graph: Graph, node: Node, device: Device) -> Layer:
    """The layer that computes `node` on `device`, not fused with others.

    The bounds of a clip stand as in the model; `lower` rounds them. Raises Unsupported, whose code is one of
    unsupported-op, unsupported-attr, unsupported-dtype, dynamic-shape and too-large.
    """
    return lower_with_constants(graph, node, device).layer


def lower_with_constants(graph: Graph, node: Node, device: Device) -> Lowered:
    """`lower_node`, with the node's constants."""
    if device.engine == "overlay":
        raise Unsupported("unsupported-op", f"{device.name} runs dense and recurrent workloads by name, no graphs")
    lowering = LOWERINGS.get(node.op_type) if node.domain == "" else None
    if lowering is None:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise Unsupported("unsupported-op", f"{name} is not an operator of the engine")
    lowered = lowering(Request(graph, node, device))
    if any(node.outputs[1:]):
        raise Unsupported("unsupported-attr", f"{node.op_type}: the engine makes one output, the model reads more")
    check_size(lowered.layer, device)
    return lowered


def choose_packing(channels: int, kernel: tuple[int, int], groups: int) -> Packing:
    """How a convolution's activations are blocked: along the channels, or along each unrolled (kh, kw, c) window."""
    return "window" if channels < WINDOW_PACKING_BELOW and groups == 1 and kernel != (1, 1) else "channel"


def _conv(request: Request) -> Lowered:
    x, w = request.activation(0, rank=4), request.weights(1, "weight")
    in_shape, groups = nhwc_shape(request.shape(x)), int(request.attribute("group", 1))
    channels = in_shape[3]
    kernel = (w.shape[2], w.shape[3])  # the graph's verifier has seen that it is the kernel_shape, and the groups fit
    window = conv_window(request, kernel, in_shape[1], in_shape[2])
    depthwise = groups == channels > 1
    packing = choose_packing(channels, kernel, groups)
    if depthwise:
        weight = Constant(lambda: w[:, 0].transpose(1, 2, 0))
    elif packing == "window":
        weight = Constant(lambda: w.transpose(0, 2, 3, 1).reshape(len(w), 1, 1, -1), blocked=True)
    else:
        weight = Constant(lambda: expand_groups(w, groups, channels), blocked=True)
    constants = {_constant_name(request, "weight"): weight}
    if request.has_input(2):
        bias = request.weights(2, "bias")
        stages = _bias(request, constants, lambda: bias)
    else:
        stages = ()
    head: Head = "depthwise" if depthwise else "conv"
    size = window.output_size(in_shape[1], in_shape[2])
    name = _constant_name(request, "weight")
    settings = {"window": window, "groups": groups, "packing": packing, "weight": name}
    return _layer(request, head, (x,), in_shape, stages, constants, size, **settings)


def _gemm(request: Request) -> Lowered:
    if request.attribute("transA", 0):
        raise request.refuse("transA=1 would transpose the activations; the engine takes rows (N, C)")
    w = request.weights(1, "weight")
    lowered = _dense(request, w if request.attribute("transB", 0) else w.T, request.attribute("alpha", 1.0))
    beta = np.float32(request.attribute("beta", 1.0))
    if not request.has_input(2) or not beta:
        return lowered
    bias = request.channels(2, "bias", request.shape(request.node.outputs[0]))
    constants = dict(lowered.constants)
    stages = _bias(request, constants, lambda: bias * beta)
    return Lowered(dataclasses.replace(lowered.layer, stages=stages), constants)


def _matmul(request: Request) -> Lowered:
    return _dense(request, request.weights(1, "weight").T)


def _dense(request: Request, rows: Array, factor: float = 1.0) -> Lowered:
    """(N, K) times the transpose of `rows` (outputs, K), which take in `factor` before they are quantized."""
    x = request.activation(0, rank=2)
    in_shape = nhwc_shape(request.shape(x))
    if rows.ndim != 2 or rows.shape[1] != in_shape[3]:
        raise request.refuse(f"weights of shape {rows.T.shape} do not fit activations {request.shape(x)}")
    name = _constant_name(request, "weight")
    matrix = Constant(lambda: (rows if factor == 1 else rows * np.float32(factor))[:, None, None], blocked=True)
    constants = {name: matrix}
    return _layer(request, "matmul", (x,), in_shape, (), constants, weight=name)


def _bias(request: Request, constants: dict[str, Constant], values: Callable[[], Array]) -> tuple[Stage, ...]:
    name = _constant_name(request, "bias")
    constants[name] = Constant(values)
    return (Stage("bias", request.node.outputs[0], name),)


def _pool(request: Request, head: Head) -> Lowered:
    if request.attribute("storage_order", 0):
        raise request.refuse("storage_order=1 is the order of indices that the engine does not make")
    x = request.activation(0, rank=4)
    in_shape = nhwc_shape(request.shape(x))
    window, larger = pool_window(request, in_shape[1], in_shape[2])
    count_padding = bool(request.attribute("count_include_pad", 0))
    if larger and count_padding:
        raise request.refuse("count_include_pad=1 does not count what ceil_mode=1 adds; the engine counts both or none")
    size = window.output_size(*in_shape[1:3])
    return _layer(request, head, (x,), in_shape, (), {}, size, window=window, count_padding=count_padding)


def _global_pool(request: Request, head: Head) -> Lowered:
    x = request.activation(0, rank=4)
    in_shape = nhwc_shape(request.shape(x))
    return _layer(request, head, (x,), in_shape, (), {}, (1, 1), window=Window(in_shape[1:3]))


def _reduce_mean(request: Request) -> Lowered:
    if request.has_input(1):
        axes = request.constant(1, "axes").reshape(-1).tolist()
    else:
        axes = request.attribute("axes", None) or []
    if {axis % 4 for axis in axes} != {2, 3}:
        raise request.refuse(f"axes={axes}; the engine reduces height and width, axes 2 and 3")
    return _global_pool(request, "average_pool")


def _concat(request: Request) -> Lowered:
    names = tuple(request.activation(i) for i in range(len(request.node.inputs)))
    shape = request.shape(request.node.outputs[0])
    axis = int(request.attribute("axis", 1))
    if axis % len(shape) != 1:
        raise request.refuse(f"axis={axis}; the engine concatenates channels, axis 1")
    channels = tuple(request.shape(name)[1] for name in names)
    return _layer(request, "concat", names, nhwc_shape(shape), (), {}, input_channels=channels)


def _reshape(request: Request) -> Lowered:
    """Flatten, Reshape, Squeeze and Unsqueeze that leave one row of C·H·W channels for each image."""
    x = request.activation(0)
    if request.has_input(1):
        request.constant(1, "shape or axes")
    in_shape, shape = nhwc_shape(request.shape(x)), request.shape(request.node.outputs[0])
    if nhwc_shape(shape) != (in_shape[0], 1, 1, math.prod(in_shape[1:])):
        raise request.refuse(f"{request.shape(x)} to {shape}; the engine makes (N, C·H·W) of (N, C, H, W)")
    return _layer(request, "reshape", (x,), in_shape, (), {})


def _upsample(request: Request) -> Lowered:
    x = request.activation(0, rank=4)
    in_shape, repeat = nhwc_shape(request.shape(x)), repeats(request)
    size = (in_shape[1] * repeat[0], in_shape[2] * repeat[1])
    return _layer(request, "upsample", (x,), in_shape, (), {}, size, repeat=repeat)


def _batch_normalization(request: Request) -> Lowered:
    if request.attribute("training_mode", 0) or not request.attribute("spatial", 1):
        raise request.refuse("training_mode=1 and spatial=0 are not of inference per channel")
    x = request.activation(0)
    gamma, beta, mean, variance = (
        request.weights(i, what).astype(np.float64) for i, what in enumerate(("scale", "B", "mean", "var"), start=1)
    )
    epsilon = request.attribute("epsilon", 1e-5)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = gamma / np.sqrt(variance + epsilon)
        shift = beta - mean * scale
    return _pointwise(request, x, [("mul", Constant(lambda: scale)), ("add", Constant(lambda: shift))])


def _binary(request: Request, kind: StageKind) -> Lowered:
    if len(request.node.inputs) != 2:
        raise request.refuse(f"{len(request.node.inputs)} operands; the engine takes two")
    constant = [request.graph.constant(name) is not None for name in request.node.inputs]
    x = request.activation(int(constant[0]))
    shape = request.shape(x)
    if any(constant):
        value = request.channels(int(constant[1]), "operand", shape)
        return _pointwise(request, x, [(kind, Constant(lambda: value))], swapped=constant[0])
    other = request.activation(1)
    if request.shape(other) != shape:
        raise request.refuse(f"operands of shape {shape} and {request.shape(other)}; the engine takes equal shapes")
    return _pointwise(request, x, [(kind, other)])


def _activation(request: Request, kind: StageKind) -> Lowered:
    return _pointwise(request, request.activation(0), [(kind, None)])


def _clip(request: Request) -> Lowered:
    bounds = [float(request.attribute("min", -math.inf)), float(request.attribute("max", math.inf))]
    for i in range(2):
        if request.has_input(1 + i):
            value = request.constant(1 + i, ("min", "max")[i])
            if value.size != 1:
                raise request.refuse(f"{('min', 'max')[i]} has shape {value.shape}; one number would do")
            bounds[i] = float(value.reshape(()))
    if any(map(math.isnan, bounds)):
        raise request.refuse(f"bounds {bounds} are not numbers")
    return _pointwise(request, request.activation(0), [("clip", None)], low=bounds[0], high=bounds[1])


def _pointwise(
    request: Request, x: str, steps: list[tuple[StageKind, Constant | str | None]], **settings: Any
) -> Lowered:
    """Stages on tensor `x`; the operand of each is a constant, another tensor, or none."""
    constants: dict[str, Constant] = {}
    stages = []
    for kind, operand in steps:
        if isinstance(operand, Constant):
            name = _constant_name(request, kind)
            constants[name], operand = operand, name
        stages.append(Stage(kind, request.node.outputs[0], operand, **settings))
    shape = nhwc_shape(request.shape(x))
    return _layer(request, "pointwise", (x,), shape, tuple(stages), constants, shape[1:3])


def _layer(
    request: Request,
    head: Head,
    inputs: tuple[str, ...],
    in_shape: Shape,
    stages: tuple[Stage, ...],
    constants: Mapping[str, Constant],
    size: tuple[int, int] | None = None,
    **settings: Any,
) -> Lowered:
    """The node's layer, after a check that the image `size` it makes is the one the model's shapes say."""
    output = request.node.outputs[0]
    out_shape = nhwc_shape(request.shape(output))
    if size is not None and out_shape[1:3] != size:
        raise request.refuse(f"its output is {out_shape[1:3]} by the model and {size} by its attributes")
    name = request.node.name
    head_output = inputs[0] if head == "pointwise" else output
    return Lowered(Layer(name, head, (name,), inputs, head_output, in_shape, out_shape, stages, **settings), constants)


def _constant_name(request: Request, role: str) -> str:
    return f"{request.node.name}#{role}"


#: Every ONNX operator of the engine.
LOWERINGS: Mapping[str, Callable[[Request], Lowered]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MaxPool": partial(_pool, head="max_pool"),
    "AveragePool": partial(_pool, head="average_pool"),
    "GlobalMaxPool": partial(_global_pool, head="max_pool"),
    "GlobalAveragePool": partial(_global_pool, head="average_pool"),
    "ReduceMean": _reduce_mean,
    "Concat": _concat,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Resize": _upsample,
    "Upsample": _upsample,
    "BatchNormalization": _batch_normalization,
    "Add": partial(_binary, kind="add"),
    "Sum": partial(_binary, kind="add"),
    "Sub": partial(_binary, kind="sub"),
    "Mul": partial(_binary, kind="mul"),
    "Max": partial(_binary, kind="max"),
    "Relu": partial(_activation, kind="relu"),
    "Sigmoid": partial(_activation, kind="sigmoid"),
    "Tanh": partial(_activation, kind="tanh"),
    "Clip": _clip,
}
