"""Unrolling of LSTM and GRU into one set of matrix products and elementwise operators a step.

Rule: an LSTM or GRU with constant W, R and B, default activations, no clip, peepholes, sequence_lens or input_forget,
layout 0, of a known number of steps, at most `LONGEST`, becomes the equations of its ONNX page, in any direction:

    z = Gemm(x_t, W_zᵀ, b) + MatMul(h, R_zᵀ), then the activation

b is Wb + Rb; the two stay apart where a gate lies between both.

Steps share their weights. Step t reads x_t = Gather(X, t), and its results are gathered into Y, Y_h and Y_c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from fpgasim.graph.passes.rewriting import add_constant, is_op, rewrite, taken_names
from fpgasim.graph.structure import Graph, constant_array, shape_of

#: More steps than these are left alone: a graph grows by some fifteen nodes a step.
LONGEST = 64
_GATES = {"LSTM": "iofc", "GRU": "zrh"}
_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}


def unroll_recurrences(graph: Graph) -> tuple[Graph, bool]:
    """`graph` with the LSTM and GRU nodes that the rule covers taken apart."""
    return rewrite(graph, _rules)


def _rules(model: ir.Model) -> bool:
    graph = model.graph
    taken = taken_names(graph) | {node.name for node in graph.all_nodes() if node.name}
    changed = False
    for node in list(graph):
        if is_op(node, "LSTM", "GRU") and _is_covered(node):
            _unroll(graph, node, taken)
            changed = True
    return changed


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _known_shape(value: ir.Value) -> tuple[int, ...] | None:
    shape = shape_of(value)
    known = tuple(dim for dim in shape or () if isinstance(dim, int))
    return known if shape is not None and len(known) == len(shape) else None


def _directions(node: ir.Node) -> int:
    return 2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1


def _is_covered(node: ir.Node) -> bool:
    x = node.inputs[0]
    shape = None if x is None else _known_shape(x)
    if shape is None or len(shape) != 3 or not 0 < shape[0] <= LONGEST:
        return False
    attributes = node.attributes
    wanted = _ACTIVATIONS[node.op_type] * _directions(node)
    plain = (
        [name.lower() for name in attributes.get_strings("activations") or wanted] == [name.lower() for name in wanted]
        and not attributes.get_floats("activation_alpha")
        and not attributes.get_floats("activation_beta")
        and "clip" not in attributes
        and not attributes.get_int("layout", 0)
        and not attributes.get_int("input_forget", 0)
        and _input(node, 4) is None
        and _input(node, 7) is None
    )
    weights = [constant_array(node.inputs[1]), constant_array(node.inputs[2])]
    bias = _input(node, 3)
    return plain and all(w is not None for w in weights) and (bias is None or constant_array(bias) is not None)


@dataclass
class _Builder:
    """Puts nodes before `node` and names them after it."""

    graph: ir.Graph
    node: ir.Node
    taken: set[str]
    constants: dict[str, ir.Value] = field(default_factory=dict)

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        name, n = f"{self.node.name}/{op_type}", 0
        while f"{name}_{n}" in self.taken:
            n += 1
        name = f"{name}_{n}"
        self.taken.add(name)
        made = ir.node(op_type, inputs=inputs, attributes=attributes, name=name)
        made.outputs[0].name = name
        self.graph.insert_before(self.node, made)
        return made.outputs[0]

    def constant(self, role: str, array: np.ndarray) -> ir.Value:
        if role not in self.constants:
            name = f"{self.node.name}/{role}"
            self.constants[role] = add_constant(self.graph, name, array.copy(), self.taken)
        return self.constants[role]

    def rows(self, value: ir.Value, index: int) -> ir.Value:
        """value[index] of the first axis."""
        return self.op("Gather", value, self.constant(f"at{index}", np.array(index, np.int64)), axis=0)


def _unroll(graph: ir.Graph, node: ir.Node, taken: set[str]) -> None:
    build = _Builder(graph, node, taken)
    x = node.inputs[0]
    assert x is not None
    steps, batch, _ = _known_shape(x) or ()
    direction = node.attributes.get_string("direction", "forward")
    states: list[tuple[ir.Value, ir.Value | None]] = []
    sequences: list[list[ir.Value]] = []
    slices = [build.rows(x, t) for t in range(steps)]
    for d in range(_directions(node)):
        backward = direction == "reverse" or d == 1
        h, c = (None if (value := _input(node, i)) is None else build.rows(value, d) for i in (5, 6))
        made = []
        for t in reversed(range(steps)) if backward else range(steps):
            cell = _lstm if node.op_type == "LSTM" else _gru
            h, c = cell(build, d, slices[t], h, c)
            made.append(h)
        assert h is not None
        states.append((h, c))
        sequences.append(made[::-1] if backward else made)
    weights = constant_array(node.inputs[2])
    assert weights is not None
    size = weights.shape[2]

    def stacked(rows: list[list[ir.Value]], shape: list[int], axis: int) -> ir.Value:
        target = build.constant(f"shape{len(shape)}", np.array(shape, np.int64))
        parts = [build.op("Reshape", build.op("Concat", *part, axis=0), target) for part in rows]
        return build.op("Concat", *parts, axis=axis)

    results: list[Callable[[], ir.Value]] = [
        lambda: stacked(sequences, [steps, 1, batch, size], 1),
        lambda: stacked([[h] for h, _ in states], [1, batch, size], 0),
        lambda: stacked([[c] for _, c in states if c is not None], [1, batch, size], 0),
    ]
    for output, make in zip(node.outputs, results, strict=False):
        if output.uses() or output.is_graph_output():
            value = make()
            value.shape, value.type = output.shape, output.type
            output.replace_all_uses_with(value, replace_graph_outputs=True)
            value.name, output.name = output.name, None
    graph.remove(node, safe=True)


def _gate(build: _Builder, d: int, gate: str, x: ir.Value, h: ir.Value | None) -> ir.Value:
    """x·Wᵀ + h·Rᵀ + Wb + Rb of one gate."""
    inputs = _product(build, d, gate, x, "W", "WR")
    return inputs if h is None else build.op("Add", _product(build, d, gate, h, "R", ""), inputs)


def _product(build: _Builder, d: int, gate: str, rows: ir.Value, matrix: str, biases: str) -> ir.Value:
    """`rows` times the transposed part of W or R of a gate, plus the sum of some of its biases."""
    node = build.node
    number, count = _GATES[node.op_type].index(gate), len(_GATES[node.op_type])
    weights = constant_array(node.inputs[1 if matrix == "W" else 2])
    assert weights is not None
    size = weights.shape[1] // count
    part = slice(number * size, (number + 1) * size)
    operand = build.constant(f"{matrix}{gate}{d}", weights[d, part].T)
    given = constant_array(_input(node, 3))
    if given is None or not biases:
        return build.op("MatMul", rows, operand)
    halves = {"W": given[d, part], "R": given[d, count * size :][part]}
    bias: np.ndarray = np.sum([halves[name] for name in biases], axis=0)
    return build.op("Gemm", rows, operand, build.constant(f"{biases}b{gate}{d}", bias))


def _lstm(
    build: _Builder, d: int, x: ir.Value, h: ir.Value | None, c: ir.Value | None
) -> tuple[ir.Value, ir.Value | None]:
    """H_t and C_t."""
    i, o, f = (
        build.op("Sigmoid", _gate(build, d, gate, x, h)) if gate != "f" or c is not None else None for gate in "iof"
    )
    candidate = build.op("Tanh", _gate(build, d, "c", x, h))
    assert i is not None
    assert o is not None
    state = build.op("Mul", candidate, i)
    if c is not None and f is not None:
        state = build.op("Add", state, build.op("Mul", f, c))
    return build.op("Mul", build.op("Tanh", state), o), state


def _gru(
    build: _Builder, d: int, x: ir.Value, h: ir.Value | None, _: ir.Value | None
) -> tuple[ir.Value, ir.Value | None]:
    """H_t, and no other state."""
    z = build.op("Sigmoid", _gate(build, d, "z", x, h))
    if build.node.attributes.get_int("linear_before_reset", 0):
        r = build.op("Sigmoid", _gate(build, d, "r", x, h))
        candidate = _product(build, d, "h", x, "W", "W")
        given = constant_array(_input(build.node, 3))
        if h is not None:
            candidate = build.op("Add", build.op("Mul", _product(build, d, "h", h, "R", "R"), r), candidate)
        elif given is not None:
            size = given.shape[1] // 6
            candidate = build.op("Add", build.op("Mul", r, build.constant(f"Rbh{d}", given[d, 5 * size :])), candidate)
    elif h is None:
        candidate = _gate(build, d, "h", x, None)
    else:
        r = build.op("Sigmoid", _gate(build, d, "r", x, h))
        candidate = _gate(build, d, "h", x, build.op("Mul", r, h))
    candidate = build.op("Tanh", candidate)
    one = build.constant("one", np.ones(1, np.float32))
    state = build.op("Mul", build.op("Sub", one, z), candidate)
    if h is not None:
        state = build.op("Add", state, build.op("Mul", z, h))
    return state, None
