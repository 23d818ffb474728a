"""LSTM and GRU: taken apart into steps, which the engine computes with the bits of the fused path."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import fpgasim as fs
from fpgasim.graph.passes.recurrence_unrolling import unroll_recurrences

from .emitted import assert_same_bits, chains_of, segment_of, small
from .models import weights

STEPS, INPUTS, HIDDEN = 4, 10, 20


def cell(
    op_type: str,
    batch: int = 2,
    direction: str = "forward",
    states: bool = True,
    bias: bool = True,
    opset: int = 14,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one LSTM or GRU that makes all its outputs."""
    count, gates = 1 + (direction == "bidirectional"), {"LSTM": 4, "GRU": 3}[op_type]
    arrays = {
        "w": weights(count, gates * HIDDEN, INPUTS) * np.float32(0.3),
        "r": weights(count, gates * HIDDEN, HIDDEN, seed=1) * np.float32(0.3),
    }
    if bias:
        arrays["b"] = weights(count, 2 * gates * HIDDEN, seed=2) * np.float32(0.3)
    fed = {"x": (STEPS, batch, INPUTS)}
    names = ["x", "w", "r", "b" if bias else "", ""]
    for name in (("h0", "c0") if op_type == "LSTM" else ("h0",)) if states else ():
        fed[name] = (count, batch, HIDDEN)
        names.append(name)
    made = ["y", "y_h"] + (["y_c"] if op_type == "LSTM" else [])
    node = helper.make_node(op_type, names, made, name="cell", hidden_size=HIDDEN, direction=direction, **attributes)
    graph = helper.make_graph(
        [node],
        "cell",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in fed.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


CELLS: dict[str, dict[str, Any]] = {
    "lstm": {"op_type": "LSTM"},
    "lstm from zero": {"op_type": "LSTM", "states": False},
    "lstm backwards without bias": {"op_type": "LSTM", "direction": "reverse", "bias": False},
    "lstm both ways": {"op_type": "LSTM", "direction": "bidirectional", "batch": 1},
    "gru": {"op_type": "GRU"},
    "gru from zero": {"op_type": "GRU", "states": False},
    "gru, reset behind the product": {"op_type": "GRU", "linear_before_reset": 1},
    "gru from zero, reset behind the product": {"op_type": "GRU", "linear_before_reset": 1, "states": False},
    "gru both ways": {"op_type": "GRU", "direction": "bidirectional", "opset": 7, "linear_before_reset": 1, "batch": 1},
    "gru of opset 22": {"op_type": "GRU", "direction": "reverse", "opset": 22},
}


@pytest.mark.parametrize("name", CELLS)
def test_an_unrolled_recurrence_is_the_operator_of_onnx_runtime(name):
    model = cell(**CELLS[name])
    graph = fs.load(model)
    assert not {node.op_type for node in graph.nodes} & {"LSTM", "GRU"}
    rng = np.random.default_rng(3)
    feeds = {tensor.name: rng.standard_normal(tensor.shape).astype(np.float32) for tensor in graph.inputs}
    outputs = [tensor.name for tensor in graph.outputs]
    expected, found = (
        ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(outputs, feeds)
        for proto in (model, graph.to_proto())
    )
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("numbers", ["exact", "tree"])
@pytest.mark.parametrize("name", CELLS)
def test_a_program_of_a_recurrence_has_the_bits_of_the_fused_path(name, numbers):
    assert_same_bits(segment_of(cell(**CELLS[name]), small(), numbers))


def test_steps_share_their_tiles_and_states_stay_on_the_chip():
    program = assert_same_bits(segment_of(cell("LSTM"), small()), weights="pin")
    tiles = {mem.name: len(operand.mantissas) for mem, operand in program.tiles.items()}
    assert tiles == {"MATRIX_RF": 4 * 2 * 1 + 4 * 2 * 2}, "of four gates, those of the input and those of the state"
    products = [chain for chain in chains_of(program) if chain.tiles]
    assert len(products) == 8 * STEPS


def test_weights_of_a_recurrence_that_do_not_fit_stream_for_every_step():
    assert_same_bits(segment_of(cell("GRU"), small(mrf_tiles=8)), weights="stream")


@pytest.mark.parametrize(
    "change",
    [
        {"activations": ["Tanh", "Tanh"]},
        {"clip": 1.0},
        {"layout": 1},
    ],
)
def test_what_the_rule_does_not_cover_is_left_alone(change):
    graph = fs.load(cell("GRU", states=False, **change), optimize=False)
    assert unroll_recurrences(graph) == (graph, False)
