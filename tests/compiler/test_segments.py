"""Fusing layers, and segments as Programs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fpgasim as fs
from fpgasim.compiler import Unsupported, fuse, lower, lower_node, segment_layers
from fpgasim.errors import ModelError
from fpgasim.graph import Graph
from fpgasim.kernels import Operand
from fpgasim.npu import Layer, Numbers, resolve_numbers
from fpgasim.ops import quantize

from .models import weights

DEVICE = fs.npu.get_device("bw_a10")
NUMBERS = resolve_numbers(DEVICE, "msfp16")


def graph_of(text: str, constants: dict[str, np.ndarray]) -> Graph:
    """A graph in onnx's text form with these initializers, loaded as it is; nodes are named n0, n1, …"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    for i, node in enumerate(model.graph.node):
        node.name = f"n{i}"
    return fs.load(model, optimize=False)


def layers_of(graph: Graph) -> list[Layer]:
    return [lower_node(graph, node, DEVICE) for node in graph.nodes]


BLOCK = """net (float[1,16,4,4] x) => (float[1,16,4,4] y) {
    a = Conv (x, w1)
    b = Relu (a)
    c = Conv (b, w2, bias)
    d = Conv (x, w2)
    e = Add (c, d)
    y = Relu (e)
}"""
WEIGHTS = {"w1": weights(16, 16, 1, 1), "w2": weights(16, 16, 1, 1), "bias": weights(16)}


def test_a_residual_is_added_behind_the_convolution_made_last():
    layers = fuse(layers_of(graph_of(BLOCK, WEIGHTS)), ["y"])
    assert [(layer.name, layer.nodes) for layer in layers] == [
        ("n0", ("n0", "n1")),
        ("n2", ("n2",)),
        ("n3", ("n3", "n4", "n5")),
    ]
    assert [(s.kind, s.operand, s.output) for s in layers[2].stages] == [("add", "c", "e"), ("relu", None, "y")]
    assert layers[2].tensors == ("d", "e", "y")


def test_a_tensor_that_is_kept_ends_its_layer():
    layers = fuse(layers_of(graph_of(BLOCK, WEIGHTS)), ["y", "a", "e"])
    assert [layer.nodes for layer in layers] == [("n0",), ("n1",), ("n2",), ("n3", "n4"), ("n5",)]


def test_a_chain_that_enters_as_the_subtrahend_is_swapped():
    text = """net (float[1,16,4,4] x) => (float[1,16,4,4] y) {
        a = Conv (x, w1)
        b = Sub (x, a)
        c = Sub (b, const)
        d = Sub (const, c)
        y = Sub (d, x)
    }"""
    (layer,) = fuse(layers_of(graph_of(text, {"w1": WEIGHTS["w1"], "const": weights(16, 1, 1)})), ["y"])
    assert [(s.operand, s.swapped) for s in layer.stages] == [
        ("x", True),
        ("n2#sub", False),
        ("n3#sub", True),
        ("x", False),
    ]


def test_what_is_read_twice_is_not_continued():
    text = """net (float[1,16,4,4] x) => (float[1,16,4,4] y) {
        a = Relu (x)
        b = Mul (a, a)
        c = Tanh (b)
        y = Max (c, a)
    }"""
    layers = fuse(layers_of(graph_of(text, {})), ["y"])
    assert [layer.nodes for layer in layers] == [("n0",), ("n1", "n2", "n3")]


def test_a_program_holds_what_its_segment_reads_and_makes():
    graph = graph_of(BLOCK, WEIGHTS)
    program = lower(graph, ["n1", "n2", "n4"], DEVICE, NUMBERS)
    assert (program.inputs, program.outputs) == (("a", "d"), ("e",))
    assert [layer.nodes for layer in program.layers] == [("n1",), ("n2", "n4")]
    assert program.shapes == dict.fromkeys(("a", "d", "b", "c", "e"), (1, 16, 4, 4))
    assert sorted(program.constants) == ["n2#bias", "n2#weight"]
    assert program.layers == segment_layers(graph, ["n1", "n2", "n4"], DEVICE, NUMBERS)


def test_weights_are_packed_as_codes_and_biases_rounded():
    graph = graph_of(BLOCK, WEIGHTS)
    program = lower(graph, ["n2"], DEVICE, NUMBERS)
    packed = program.operand("n2#weight")
    expected = quantize(WEIGHTS["w2"], "msfp16", axis=1)
    assert packed.mantissas.dtype == np.int8
    assert np.array_equal(packed.mantissas.reshape(16, 16), expected.codes.reshape(16, 16))
    assert np.array_equal(packed.exponents.reshape(16, 1), expected.exponents.reshape(16, 1))
    bias = program.vector("n2#bias")
    assert bias.dtype == np.float32
    assert np.array_equal(bias, WEIGHTS["bias"].astype(np.float16))


@pytest.mark.parametrize(("pointwise", "high"), [("fp16", 1.7001953125), ("bf16", 1.703125), ("fp32", np.float32(1.7))])
def test_the_bounds_of_a_clip_are_values_of_the_pointwise_type(pointwise, high):
    text = 'net (float[1,16,4,4] x) => (float[1,16,4,4] y) { y = Clip (x, "", hi) }'.replace('""', "")
    graph = graph_of(text, {"hi": np.asarray(np.float32(1.7))})
    numbers = resolve_numbers(DEVICE, "msfp16", pointwise=pointwise)
    (layer,) = segment_layers(graph, ["n0"], DEVICE, numbers)
    assert (layer.stages[0].low, layer.stages[0].high) == (-np.inf, high)


def test_grouped_weights_are_zero_outside_their_group():
    text = "net (float[1,32,4,4] x) => (float[1,4,4,4] y) { y = Conv <group = 2> (x, w) }"
    program = lower(graph_of(text, {"w": weights(4, 16, 1, 1)}), ["n0"], DEVICE, NUMBERS)
    codes = program.operand("n0#weight").mantissas.reshape(4, 2, 16)
    assert not codes[:2, 1].any()
    assert not codes[2:, 0].any()
    assert codes[:2, 0].any()


def test_a_batch_norm_is_one_factor_and_one_shift_made_in_float64():
    values = {name: np.abs(weights(8, seed=i)) + 0.1 for i, name in enumerate(("s", "b", "m", "v"))}
    text = "net (float[1,8,4,4] x) => (float[1,8,4,4] y) { y = BatchNormalization <epsilon = 0.001> (x, s, b, m, v) }"
    program = lower(graph_of(text, values), ["n0"], DEVICE, NUMBERS)
    s, b, m, v = (values[name].astype(np.float64) for name in "sbmv")
    scale = s / np.sqrt(v + float(np.float32(0.001)))
    assert np.array_equal(program.vector("n0#mul"), scale.astype(np.float16))
    assert np.array_equal(program.vector("n0#add"), (b - m * scale).astype(np.float16))


def test_alpha_and_beta_go_into_weights_and_bias_before_they_are_rounded():
    text = "net (float[1,16] x) => (float[1,8] y) { y = Gemm <alpha = 0.3, beta = 0.7> (x, w, b) }"
    w, b = weights(16, 8), weights(8)
    program = lower(graph_of(text, {"w": w, "b": b}), ["n0"], DEVICE, NUMBERS)
    expected = quantize(w.T * np.float32(0.3), "msfp16")
    assert np.array_equal(program.operand("n0#weight").mantissas[:, 0, 0], expected.codes)
    assert np.array_equal(program.vector("n0#bias"), (b * np.float32(0.7)).astype(np.float16))


def test_constants_packed_before_are_taken_as_they_are():
    graph = graph_of(BLOCK, WEIGHTS)
    first = lower(graph, ["n0", "n1"], DEVICE, NUMBERS)
    second = lower(graph, ["n0", "n1"], DEVICE, NUMBERS, packed=first.constants)
    assert second.constants["n0#weight"] is first.constants["n0#weight"]
    assert isinstance(first.constants["n0#weight"], Operand)


def test_weights_that_are_not_finite_are_refused():
    text = "net (float[1,8,4,4] x) => (float[1,8,4,4] y) { y = Mul (x, c) }"
    graph = graph_of(text, {"c": np.full((8, 1, 1), np.inf, np.float32)})
    with pytest.raises(ModelError, match=r"constant 'n0#mul' holds inf; finite numbers would do"):
        lower(graph, ["n0"], DEVICE, NUMBERS)


def test_a_tensor_called_like_a_constant_is_refused():
    nodes = [
        helper.make_node("Relu", ["x"], ["n1#weight"], name="n0"),
        helper.make_node("Conv", ["n1#weight", "w"], ["y"], name="n1"),
    ]
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 4, 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 4, 4])
    proto = helper.make_graph(nodes, "net", [shape], [result], [numpy_helper.from_array(WEIGHTS["w1"], "w")])
    graph = fs.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    with pytest.raises(ModelError, match=r"tensor 'n1#weight' bears the name of a packed constant"):
        lower(graph, ["n0", "n1"], DEVICE, NUMBERS)


def test_a_node_the_engine_cannot_compute_has_no_program():
    graph = graph_of("net (float[1,8] x) => (float[1,8] y) { y = Softmax (x) }", {})
    with pytest.raises(Unsupported):
        lower(graph, ["n0"], DEVICE, NUMBERS)


def test_numbers_of_a_program_are_those_asked_for():
    numbers = Numbers(NUMBERS.format, "fp32", "chwk", "bf16")
    assert lower(graph_of(BLOCK, WEIGHTS), ["n0"], DEVICE, numbers).numbers == numbers
