"""Constant folding.

Rules:
- Shape and Size of a tensor whose shape is known are constants, and so is ConstantOfShape of a constant (stored as one
  number however big it is);
- any other operator of the standard domain becomes a constant if all its inputs are, it is deterministic, has no
  subgraph, and its outputs are tensors of known shape that are small enough, or weights;
- what a graph output names is computed as before, so the operator that makes it stays.

ONNX Runtime evaluates, so a folded number is the one its CPU would have computed. The constant keeps the tensor's name.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fpgasim.graph.counting import WEIGHT_INPUTS
from fpgasim.graph.passes.rewriting import rewrite
from fpgasim.graph.passes.runtime import evaluate
from fpgasim.graph.saving import INLINE_LIMIT_BYTES
from fpgasim.graph.structure import Graph, bodies, constant_array, is_of_numpy, shape_of

#: A tensor computed from constants may grow to this without being a weight. Above, the file is better off computing it.
_SIZE_LIMIT_BYTES = 64 << 20
#: An operator that makes no more than this times the bytes it reads may fold at any size: a Cast of float16 weights.
_GROWTH_LIMIT = 4
#: Different numbers on every run.
_RANDOM = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
#: Their output's shape depends on values; it is at most as big as rank times the input.
_BOUNDED_BY_INPUT = {"Compress", "NonZero", "Unique"}


def fold_constants(graph: Graph) -> tuple[Graph, bool]:
    """`graph` with everything computed that does not depend on its inputs."""
    return rewrite(graph, _rules)


def _rules(model: ir.Model) -> bool:
    changed = _fold_shapes(model.graph)
    chosen = _choose(model.graph)
    if not chosen:
        return changed
    arrays = _evaluate(model, chosen)
    for node in chosen:
        if all(output.name in arrays for output in node.outputs if output.uses()):
            _replace(model.graph, node, arrays)
            changed = True
    return changed


def _fold_shapes(graph: ir.Graph) -> bool:
    changed = False
    for node in graph:
        if node.domain != "" or any(output.is_graph_output() for output in node.outputs):
            continue
        array = _shape_constant(node)
        if array is not None:
            _replace(graph, node, {node.outputs[0].name or "": array})
            changed = True
    return changed


def _shape_constant(node: ir.Node) -> np.ndarray | None:
    if node.op_type == "ConstantOfShape":
        shape = constant_array(node.inputs[0])
        value = node.attributes.get_tensor("value")
        fill = np.zeros(1, np.float32) if value is None else value.numpy()
        if shape is None or fill.size != 1 or (shape < 0).any():
            return None
        return np.broadcast_to(fill.reshape(()), tuple(int(n) for n in shape))
    if node.op_type not in ("Shape", "Size") or node.inputs[0] is None:
        return None
    dims = shape_of(node.inputs[0])
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        return None
    numbers = np.array(dims, np.int64)
    if node.op_type == "Size":
        return np.array(numbers.prod(), np.int64)
    return numbers[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)]


def _choose(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that fold, in topological order."""
    made: set[ir.Value] = set()
    chosen = []
    for node in graph:
        if all(v is None or v in made or v.is_initializer() for v in node.inputs) and _foldable(node):
            chosen.append(node)
            made.update(node.outputs)
    return chosen


def _foldable(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type in _RANDOM or any(bodies(node)):
        return False
    if not node.inputs and node.op_type not in ("Constant", "EyeLike"):
        return False
    if any(output.is_graph_output() for output in node.outputs):
        return False
    if not all(output.dtype is None or _is_plain(output) for output in node.outputs):
        return False
    if node.op_type in _BOUNDED_BY_INPUT:
        return _bytes(node.inputs) <= _SIZE_LIMIT_BYTES
    used = [output for output in node.outputs if output.uses()]
    if not used or any(_size(output) is None for output in used):
        return False
    made = _bytes(used)
    return made <= max(_SIZE_LIMIT_BYTES, _GROWTH_LIMIT * _bytes(node.inputs)) or all(map(_is_weight, used))


def _is_plain(value: ir.Value) -> bool:
    """Whether the value is a tensor of a type NumPy has itself: not a sequence, nor strings, nor 4- or 8-bit floats."""
    if not isinstance(value.type, ir.TensorType):
        return False
    dtype = np.dtype(value.type.dtype.numpy())
    return dtype.kind in "biufc" and is_of_numpy(dtype)


def _size(value: ir.Value) -> int | None:
    dims = shape_of(value)
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        return None
    return math.prod(dim for dim in dims if isinstance(dim, int))


def _bytes(values: Sequence[ir.Value | None]) -> int:
    typed = [(_size(value) or 0, value.dtype) for value in values if value is not None]
    return sum(math.ceil(size * (1 if dtype is None else dtype.itemsize)) for size, dtype in typed)


def _is_weight(value: ir.Value) -> bool:
    return any(use.node.domain == "" and use.idx in WEIGHT_INPUTS.get(use.node.op_type, ()) for use in value.uses())


def _evaluate(model: ir.Model, chosen: Sequence[ir.Node]) -> dict[str, np.ndarray]:
    """The arrays of the outputs that other nodes read; left out is what ONNX Runtime cannot evaluate."""
    inside = set(chosen)
    needed = [v for n in chosen for v in n.outputs if any(use.node not in inside for use in v.uses())]
    arrays = _run(model, chosen, needed)
    if arrays is not None:
        return arrays
    arrays = {}  # one operator that cannot be evaluated must not keep the others from folding
    for node in chosen:
        if all(value is None or value.is_initializer() for value in node.inputs):
            arrays |= _run(model, [node], [value for value in node.outputs if value.uses()]) or {}
    return arrays


def _run(model: ir.Model, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> dict[str, np.ndarray] | None:
    """What `nodes` compute for `outputs`; None if ONNX Runtime cannot, or they read too much for one model."""
    inside = set(nodes)
    read = dict.fromkeys(v for n in nodes for v in n.inputs if v is not None and v.producer() not in inside)
    if _bytes(list(read)) > INLINE_LIMIT_BYTES:
        return None
    view = ir.GraphView(
        [], outputs, nodes=nodes, initializers=list(read), opset_imports=dict(model.opset_imports), name="constants"
    )
    return evaluate(ir.Model(view.clone(), ir_version=model.ir_version))


def _replace(graph: ir.Graph, node: ir.Node, arrays: dict[str, np.ndarray]) -> None:
    """Makes initializers of the outputs that somebody reads, and removes `node`."""
    for output in node.outputs:
        if not output.uses():
            continue
        array = arrays[output.name or ""]
        array.setflags(write=False)
        tensor = ir.tensor(array, name=output.name)
        constant = ir.val(output.name, const_value=tensor)
        output.replace_all_uses_with(constant)
        graph.register_initializer(constant)
    graph.remove(node, safe=True)
