"""Seeded weights for a model whose own say nothing: the topology files that ship with ONNX, all weights 0.02."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

#: Where an operator takes parameters: (operator, input) -> the parameter's role.
_ROLES = {
    ("Conv", 1): "weight",
    ("Gemm", 1): "weight",
    ("MatMul", 1): "weight",
    ("Conv", 2): "shift",
    ("Gemm", 2): "shift",
    ("Add", 1): "shift",
    ("Mul", 1): "scale",
    ("BatchNormalization", 1): "scale",
    ("BatchNormalization", 2): "shift",
    ("BatchNormalization", 3): "shift",
    ("BatchNormalization", 4): "variance",
}
#: Operators through which a parameter may pass before it is used.
_RESHAPING = ("Unsqueeze", "Reshape", "Identity")


def seed_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """A copy of `model` with every floating-point parameter of its convolutions, products and norms drawn afresh.

    Parameters are initializers and ConstantOfShape of a constant shape; the copy holds them all as initializers.
    Matrices are He-normal (variance 2 / fan-in; He et al., ICCV 2015), biases and shifts normal with deviation 0.1,
    scales and variances uniform in [0.8, 1.2]; but the scale of a norm that a residual sum reads is uniform in
    [0.4, 0.6], or the sums would grow past fp16 (Goyal et al., arXiv 1706.02677, 5.1, start it at 0). The same `seed`
    gives the same bytes.
    """
    from onnx import numpy_helper

    copy = type(model)()
    copy.CopyFrom(model)
    graph = copy.graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    fills = (node for node in graph.node if node.op_type == "ConstantOfShape" and node.input[0] in stored)
    filled = {node.output[0]: node for node in fills}
    shapes: dict[str, tuple[int, ...]] = {name: tuple(map(int, stored[n.input[0]])) for name, n in filled.items()}
    shapes |= {name: array.shape for name, array in stored.items() if array.dtype == np.float32}
    origin = {n.output[0]: n.input[0] for n in graph.node if n.op_type in _RESHAPING}

    made = {output: node for node in graph.node for output in node.output}
    summed = {
        name
        for node in graph.node
        if node.op_type in ("Sum", "Add") and all(name in made and name not in origin for name in node.input)
        for name in node.input
        if made[name].op_type == "BatchNormalization"
    }

    generator = np.random.default_rng(seed)
    drawn: dict[str, npt.NDArray[np.float32]] = {}
    for node in graph.node:
        for i, name in enumerate(node.input):
            role, name = _ROLES.get((node.op_type, i)), origin.get(name, name)
            if role is not None and name in shapes and name not in drawn:
                residual = role == "scale" and node.output[0] in summed
                drawn[name] = _draw(generator, "residual" if residual else role, shapes[name], node)
    kept = [node for node in graph.node if node.op_type != "ConstantOfShape" or node.output[0] not in drawn]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in (stored | drawn).items())
    copy.ir_version = max(copy.ir_version, 4)  # before IR 4 every initializer had to be an input too
    return copy


def _draw(generator: np.random.Generator, role: str, shape: tuple[int, ...], node: Any) -> npt.NDArray[np.float32]:
    if role == "weight":
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        fan_in = int(np.prod(shape[1:])) if node.op_type == "Conv" or transposed else shape[0]
        return np.asarray(generator.standard_normal(shape) * np.sqrt(2.0 / fan_in), np.float32)
    if role == "shift":
        return np.asarray(0.1 * generator.standard_normal(shape), np.float32)
    low, high = (0.4, 0.6) if role == "residual" else (0.8, 1.2)
    return generator.uniform(low, high, shape).astype(np.float32)
