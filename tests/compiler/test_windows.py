"""Windows from ONNX's attributes, held to ONNX Runtime's shapes and values."""

import itertools

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import fpgasim as fs
from fpgasim.compiler import Unsupported, lower_node
from fpgasim.graph import Graph
from fpgasim.kernels import Window

from .models import load_one, one_op, weights

DEVICE = fs.npu.get_device("bw_a10")
KERNELS = [(1, 1), (2, 3), (3, 3), (5, 4)]
STRIDES = [(1, 1), (2, 2), (3, 2)]
SIZES = [(7, 8), (9, 6)]


def run_both(op: str, size: tuple[int, int], operands: dict, **attributes) -> tuple[np.ndarray, np.ndarray]:
    model = one_op(op, {"x": (1, 4, *size), **operands}, **attributes)
    x = weights(1, 4, *size, seed=1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    plan = fs.partition(fs.load(model), DEVICE, "fp32", objective="coverage")
    assert set(plan.assignment.values()) == {"fpga"}
    return fs.compile(plan).run({"x": x})["y"], session.run(None, {"x": x})[0]


@pytest.mark.parametrize("auto_pad", ["VALID", "SAME_UPPER", "SAME_LOWER", "pads"])
@pytest.mark.parametrize("size", SIZES)
def test_convolutions_see_what_onnx_runtime_sees(auto_pad, size):
    dilations = [(1, 1)] if auto_pad.startswith("SAME") else [(1, 1), (2, 1)]  # ONNX Runtime cannot do both
    for kernel, stride, dilation in itertools.product(KERNELS, STRIDES, dilations):
        padding = {"pads": [2, 1, 1, 3]} if auto_pad == "pads" else {"auto_pad": auto_pad}
        if auto_pad == "VALID" and (kernel[0] - 1) * dilation[0] >= size[0]:
            continue
        operands = {"w": weights(3, 4, *kernel)}
        got, expected = run_both("Conv", size, operands, strides=stride, dilations=dilation, **padding)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize(("size", "opset"), list(zip(SIZES, (17, 22), strict=True)))
def test_pools_see_what_onnx_runtime_sees_or_say_why_not(op, ceil_mode, size, opset):
    refused = ran = 0
    pads = [(0, 0, 0, 0), (0, 1, 1, 0), (1, 1, 1, 1)]
    for kernel, stride, pad, count in itertools.product([(2, 3), (3, 2), (4, 4)], STRIDES, pads, (0, 1)):
        attributes = {"kernel_shape": kernel, "strides": stride, "pads": pad, "ceil_mode": ceil_mode, "opset": opset}
        if op == "AveragePool":
            attributes["count_include_pad"] = count
        graph = load_one(op, {"x": (1, 4, *size)}, **attributes)
        try:
            lower_node(graph, graph.node("node"), DEVICE)
        except Unsupported:
            refused += 1
            with pytest.raises(Unsupported, match="ceil_mode=1 adds"):
                lower_node(graph, graph.node("node"), DEVICE)
            continue
        got, expected = run_both(op, size, {}, **attributes)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
        ran += 1
    assert ran >= 27
    assert (refused > 0) == (op == "AveragePool" and ceil_mode == 1)


@pytest.mark.parametrize("rule", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_pools_take_auto_pad(rule):
    for op, kernel in itertools.product(("MaxPool", "AveragePool"), [(2, 3), (3, 2)]):
        got, expected = run_both(op, (7, 8), {}, kernel_shape=kernel, strides=[2, 2], auto_pad=rule)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_a_dilated_window_that_sees_only_padding_is_refused():
    graph = load_one("MaxPool", {"x": (1, 4, 2, 2)}, kernel_shape=[2, 2], dilations=[4, 4], pads=[2, 2, 2, 2])
    with pytest.raises(Unsupported, match="lies in the padding alone"):
        lower_node(graph, graph.node("node"), DEVICE)


def test_a_size_that_onnx_and_onnx_runtime_disagree_about_is_onnx_runtimes():
    window = {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [1] * 4}  # 6 × 4 to ONNX before opset 22
    got, expected = run_both("MaxPool", (9, 6), {}, ceil_mode=1, **window)
    assert got.shape == (1, 4, 5, 4)
    np.testing.assert_array_equal(got, expected)


def test_a_size_that_contradicts_the_attributes_is_refused():
    model = load_one("MaxPool", {"x": (1, 4, 9, 6)}, kernel_shape=[2, 3], strides=[2, 2], pads=[1] * 4).model.clone()
    next(iter(model.graph)).outputs[0].shape = ir.Shape([1, 4, 6, 4])
    graph = Graph(model)
    with pytest.raises(Unsupported, match=r"its output is \(6, 4\) by the model and \(5, 3\) by its attributes"):
        lower_node(graph, graph.node("node"), DEVICE)


def test_same_padding_of_a_dilated_kernel_counts_its_reach():
    operands = {"x": (1, 4, 7, 8), "w": weights(3, 4, 3, 2)}
    graph = load_one("Conv", operands, auto_pad="SAME_LOWER", dilations=[2, 1], strides=[2, 1])
    window = lower_node(graph, graph.node("node"), DEVICE).window
    assert window == Window((3, 2), (2, 1), (2, 1, 2, 0), (2, 1))
