"""No tensor of a run shares memory with another one, with what was fed, or with what was returned."""

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

import fpgasim as fs


def run(nodes, shape, outputs, format="fp32"):
    """(feed, outputs by name) of a model of `nodes` (operator, input, output) on x of `shape`, all on the FPGA."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    drawn = [helper.make_node(op, [read], [made]) for op, read, made in nodes]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    model = helper.make_model(
        helper.make_graph(drawn, "net", [value], made), opset_imports=[helper.make_opsetid("", 17)], ir_version=10
    )
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    session = fs.compile(fs.partition(fs.load(model), "bw_a10", format, objective="coverage"))
    return x, session.run({"x": x}, outputs)


@pytest.mark.parametrize("format", ["fp32", "msfp16"])
def test_a_tensor_survives_the_flattening_of_it_by_another_reader(format):
    nodes = [("GlobalAveragePool", "x", "p"), ("Flatten", "p", "f"), ("Relu", "f", "y"), ("Tanh", "p", "z")]
    x, got = run(nodes, (1, 8, 4, 4), ["p", "f", "y", "z"], format)
    mean = x.mean((2, 3), keepdims=True)
    tolerance = 1e-6 if format == "fp32" else 1e-3
    np.testing.assert_allclose(got["z"], np.tanh(mean), atol=tolerance)
    np.testing.assert_allclose(got["p"], mean, atol=tolerance)
    np.testing.assert_allclose(got["f"], mean[:, :, 0, 0], atol=tolerance)
    np.testing.assert_allclose(got["y"], np.maximum(mean[:, :, 0, 0], 0), atol=tolerance)


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (1, 1, 6, 6), (2, 3, 4, 5)])
@pytest.mark.parametrize("stage", ["Relu", "Tanh", "Sigmoid"])
def test_what_was_fed_is_not_written_to(shape, stage):
    expected = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x, _ = run([("Flatten", "x", "f"), (stage, "f", "y")], shape, ["y"])
    assert np.array_equal(x, expected)


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (1, 1, 6, 6), (2, 3, 4, 5)])
def test_what_is_returned_shares_no_memory(shape):
    nodes = [("Flatten", "x", "f"), ("Relu", "x", "r"), ("Flatten", "r", "g"), ("Flatten", "r", "h")]
    x, got = run(nodes, shape, ["f", "r", "g", "h"])
    arrays = [x, *got.values()]
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(arrays, 2))
