"""Folding of per-channel scale and shift into the operator before.

Rules (p computes y, f alone reads y; s, t are per channel, computed in double precision):
- p is Conv, ConvTranspose, Gemm with constant weights, or BatchNormalization in inference with constant parameters;
- f(y) = s·y + t is BatchNormalization in inference, or Mul, Div, Add, Sub with a constant that is one number or one per
  channel (Caffe writes a batch norm as BatchNormalization, Mul, Add);
- then s goes into the weights of p, t and s into its bias, and p takes over the name of f's output.

Nothing is folded if a folded number would not be finite. A BatchNormalization without such a p before it stays.
"""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from fpgasim.graph.passes.rewriting import add_constant, is_op, only_reader, rewrite, take_over, taken_names
from fpgasim.graph.structure import Graph, constant_array

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_SUFFIX = "_folded"


class _Affine(NamedTuple):
    scale: np.ndarray  # (channels,) float64
    shift: np.ndarray  # (channels,) float64


def fold_batch_norms(graph: Graph) -> tuple[Graph, bool]:
    """`graph` with batch norms and per-channel constants folded into the operators before them."""
    return rewrite(graph, _rules)


def _rules(model: ir.Model) -> bool:
    graph = model.graph
    taken = taken_names(graph)
    changed = False
    for node in graph:
        # What follows a fold is the next candidate: BatchNormalization, Mul, Add collapse one after the other.
        while (
            is_op(node, "Conv", "ConvTranspose", "Gemm", "BatchNormalization")
            and (reader := only_reader(node.outputs[0])) is not None
            and _fold(graph, node, reader, taken)
        ):
            changed = True
    return changed


def _fold(graph: ir.Graph, node: ir.Node, reader: ir.Node, taken: set[str]) -> bool:
    parameters = _parameters(node)
    if parameters is None:
        return False
    weights, bias, axis, channels = parameters
    rank = weights.ndim if node.op_type != "BatchNormalization" else len(node.outputs[0].shape or ())
    affine = _affine(reader, node.outputs[0], rank, channels)
    if affine is None:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        new_weights = (weights * _along(affine.scale, weights, axis, node)).astype(weights.dtype)
        new_bias = (bias * affine.scale + affine.shift).astype(weights.dtype)
    if not (np.isfinite(new_weights).all() and np.isfinite(new_bias).all()):
        return False
    _set_input(graph, node, 1, new_weights, taken)
    if len(node.inputs) > 2 or new_bias.any():
        _set_input(graph, node, 2, new_bias, taken)
    if node.op_type == "Gemm":
        node.attributes.add(ir.AttrFloat32("beta", 1.0))
    take_over(graph, node.outputs[0], reader)
    return True


def _parameters(node: ir.Node) -> tuple[np.ndarray, np.ndarray, int, int] | None:
    """Weights, bias in float64 (channels,), the axis of the weights that is the output channel, and channels."""
    weights = constant_array(node.inputs[1])
    if weights is None or ir.DataType.from_numpy(weights.dtype) not in _FLOATS:
        return None
    axis, channels = 0, weights.shape[0]
    if node.op_type == "BatchNormalization":
        if not _infers(node):
            return None
    elif node.op_type == "ConvTranspose":
        axis, channels = 1, weights.shape[1] * node.attributes.get_int("group", 1)
    elif node.op_type == "Gemm":
        axis = 0 if node.attributes.get_int("transB", 0) else 1
        channels = weights.shape[axis]
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return weights, np.zeros(channels), axis, channels
    given = constant_array(node.inputs[2])
    bias = None if given is None else _per_channel(given, 2 if node.op_type == "Gemm" else 1, channels)
    if bias is None:
        return None
    return weights, bias * node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else bias, axis, channels


def _affine(reader: ir.Node, y: ir.Value, rank: int, channels: int) -> _Affine | None:
    """The scale and shift that `reader` applies to `y`; None if it does something else."""
    if is_op(reader, "BatchNormalization"):
        if reader.inputs[0] is not y or not _infers(reader):
            return None
        arrays = [constant_array(value) for value in reader.inputs[1:5]]
        scale, shift, mean, variance = (None if a is None else a.astype(np.float64) for a in arrays)
        if scale is None or shift is None or mean is None or variance is None or scale.shape != (channels,):
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            factor = scale / np.sqrt(variance + reader.attributes.get_float("epsilon", 1e-5))
            return _Affine(factor, shift - mean * factor)
    if not is_op(reader, "Mul", "Div", "Add", "Sub"):
        return None
    first = reader.inputs[0] is y
    if not first and is_op(reader, "Div", "Sub"):
        return None
    operand = constant_array(reader.inputs[1 if first else 0])
    constant = None if operand is None else _per_channel(operand, rank, channels)
    if constant is None:
        return None
    zero, one = np.zeros(channels), np.ones(channels)
    with np.errstate(divide="ignore"):
        match reader.op_type:
            case "Mul":
                return _Affine(constant, zero)
            case "Div":
                return _Affine(1 / constant, zero)
            case "Add":
                return _Affine(one, constant)
    return _Affine(one, -constant)


def _infers(batch_norm: ir.Node) -> bool:
    """Whether a BatchNormalization uses its stored statistics, one per channel."""
    attributes = batch_norm.attributes
    trains = attributes.get_int("training_mode", 0) or any(output.name for output in batch_norm.outputs[1:])
    constants = (constant_array(value) for value in batch_norm.inputs[1:5])
    return not trains and attributes.get_int("spatial", 1) == 1 and all(array is not None for array in constants)


def _per_channel(array: np.ndarray, rank: int, channels: int) -> np.ndarray | None:
    """`array` as one float64 per channel, if broadcasting it to `rank` dimensions varies along axis 1 alone.

    Rank 1 stands for a bias vector, whose only axis is the channel.
    """
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    axis = min(1, rank - 1)
    if shape[axis] not in (1, channels) or any(n != 1 for i, n in enumerate(shape) if i != axis):
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (channels,))


def _along(scale: np.ndarray, weights: np.ndarray, axis: int, node: ir.Node) -> np.ndarray:
    """`scale` shaped to multiply the weights of `node`."""
    if node.op_type != "ConvTranspose":
        return scale.reshape([-1 if i == axis else 1 for i in range(weights.ndim)])
    # Weights are (Cin, Cout/groups, *kernel); input channels i of group g make output channels g·Cout/groups + j.
    groups = node.attributes.get_int("group", 1)
    per_input = np.repeat(scale.reshape(groups, -1), weights.shape[0] // groups, axis=0)
    return per_input.reshape(per_input.shape + (1,) * (weights.ndim - 2))


def _set_input(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray, taken: set[str]) -> None:
    old = node.inputs[index] if index < len(node.inputs) else None
    base = old.name if old is not None and old.name else f"{node.name}_bias"
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    if old is not None and base.endswith(_SUFFIX) and len(old.uses()) == 1:
        old.const_value = ir.tensor(array, name=base)
        return
    node.replace_input_with(index, add_constant(graph, base.removesuffix(_SUFFIX) + _SUFFIX, array, taken))
