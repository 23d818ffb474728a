"""What the engine can do and what it cannot, with the reason."""

import dataclasses
import math

import numpy as np
import pytest
from onnx import TensorProto

import fpgasim as fs
from fpgasim.compiler import Unsupported, choose_packing, lower_node
from fpgasim.kernels import Window
from fpgasim.npu import Layer, Stage

from .models import load_one, one_op, weights

DEVICE = fs.npu.get_device("bw_a10")
IMAGE = (2, 6, 8, 9)
ROWS = (2, 6)
ONES = np.ones(6, np.float32)
W = weights(4, 6, 3, 3)


def lowered(*args, device=DEVICE, **options) -> Layer:
    graph = load_one(*args, **options)
    return lower_node(graph, graph.node("node"), device)


def test_a_convolution_is_a_head_with_its_bias_behind_it():
    layer = lowered("Conv", {"x": IMAGE, "w": W, "b": ONES[:4]}, pads=[1, 0, 2, 0], strides=[2, 1], dilations=[1, 2])
    assert layer == Layer(
        name="node",
        head="conv",
        nodes=("node",),
        inputs=("x",),
        head_output="y",
        in_shape=(2, 8, 9, 6),
        out_shape=(2, 5, 5, 4),
        stages=(Stage("bias", "y", "node#bias"),),
        window=Window((3, 3), (2, 1), (1, 0, 2, 0), (1, 2)),
        weight="node#weight",
        packing="window",
    )


@pytest.mark.parametrize(
    ("filters", "group", "head"),
    [
        ((4, 6, 1, 1), 1, "conv"),
        ((4, 3, 1, 1), 2, "conv"),
        ((6, 1, 3, 3), 6, "depthwise"),
        ((12, 1, 3, 3), 6, "depthwise"),
    ],
)
def test_a_group_for_every_channel_is_depthwise(filters, group, head):
    layer = lowered("Conv", {"x": IMAGE, "w": weights(*filters)}, group=group)
    assert (layer.head, layer.groups, layer.packing) == (head, group, "channel")
    assert layer.macs == math.prod(layer.out_shape) * filters[1] * math.prod(filters[2:])


@pytest.mark.parametrize(
    ("channels", "kernel", "groups", "packing"),
    [
        (3, (7, 7), 1, "window"), (15, (3, 1), 1, "window"), (16, (3, 3), 1, "channel"), (3, (1, 1), 1, "channel"),
        (8, (3, 3), 2, "channel"), (64, (3, 3), 1, "channel"),
    ],
)  # fmt: skip
def test_windows_are_unrolled_where_channels_would_fill_few_lanes(channels, kernel, groups, packing):
    assert choose_packing(channels, kernel, groups) == packing


def stages(layer: Layer) -> list[tuple]:
    return [(s.kind, s.operand, s.swapped) for s in layer.stages]


@pytest.mark.parametrize(
    ("op", "operands", "expected"),
    [
        ("Add", {"a": IMAGE, "b": IMAGE}, [("add", "b", False)]),
        ("Sub", {"a": IMAGE, "b": IMAGE}, [("sub", "b", False)]),
        ("Sub", {"a": IMAGE, "c": weights(6, 1, 1)}, [("sub", "node#sub", False)]),
        ("Sub", {"c": weights(1, 6, 1, 1), "a": IMAGE}, [("sub", "node#sub", True)]),
        ("Mul", {"a": IMAGE, "c": weights(1, 1)}, [("mul", "node#mul", False)]),
        ("Mul", {"a": IMAGE, "c": np.float32(2).reshape(())}, [("mul", "node#mul", False)]),
        ("Max", {"a": IMAGE, "b": IMAGE}, [("max", "b", False)]),
        ("Sum", {"a": IMAGE, "b": IMAGE}, [("add", "b", False)]),
        ("Relu", {"a": IMAGE}, [("relu", None, False)]),
        ("Sigmoid", {"a": IMAGE}, [("sigmoid", None, False)]),
        ("Tanh", {"a": IMAGE}, [("tanh", None, False)]),
        (
            "BatchNormalization",
            {"a": IMAGE, "s": ONES, "b": ONES, "m": ONES, "v": ONES},
            [("mul", "node#mul", False), ("add", "node#add", False)],
        ),
    ],
)
def test_pointwise_operators_are_stages(op, operands, expected):
    layer = lowered(op, operands)
    assert layer.head == "pointwise"
    assert layer.inputs == ("a",)
    assert stages(layer) == expected
    assert layer.tensors == ("y",)
    assert layer.in_shape == layer.out_shape == (2, 8, 9, 6)


def test_a_row_is_one_pixel():
    assert lowered("Add", {"a": ROWS, "c": ONES}, rank=2).in_shape == (2, 1, 1, 6)
    layer = lowered("Gemm", {"a": ROWS, "w": weights(6, 5), "c": weights(1, 5)}, rank=2)
    assert (layer.head, layer.in_shape, layer.out_shape) == ("matmul", (2, 1, 1, 6), (2, 1, 1, 5))
    assert stages(layer) == [("bias", "node#bias", False)]
    assert lowered("MatMul", {"a": ROWS, "w": weights(6, 5)}, rank=2).stages == ()
    assert lowered("Gemm", {"a": ROWS, "w": weights(6, 5), "c": weights(5)}, rank=2, beta=0.0).stages == ()


@pytest.mark.parametrize(
    ("operands", "attributes", "opset", "bounds"),
    [
        ({"a": IMAGE, "lo": np.float32(0), "hi": np.float32(6)}, {}, 11, (0, 6)),
        ({"a": IMAGE, "_": (1,), "hi": np.full(1, 6, np.float32)}, {}, 11, (-math.inf, 6)),
        ({"a": IMAGE}, {"min": -1.0}, 7, (-1, np.inf)),
    ],
)
def test_clip_takes_its_bounds_as_inputs_or_attributes(operands, attributes, opset, bounds):
    (stage,) = lowered("Clip", operands, opset=opset, **attributes).stages
    assert (stage.kind, stage.low, stage.high) == ("clip", *bounds)


@pytest.mark.parametrize(
    ("op", "operands", "options", "window"),
    [
        ("GlobalAveragePool", {}, {}, Window((8, 9))),
        ("GlobalMaxPool", {}, {}, Window((8, 9))),
        ("ReduceMean", {}, {"axes": [2, 3]}, Window((8, 9))),
        ("ReduceMean", {}, {"axes": [-1, 2], "keepdims": 0, "rank": 2}, Window((8, 9))),
        ("ReduceMean", {"axes": np.array([3, -2])}, {"opset": 18}, Window((8, 9))),
        ("MaxPool", {}, {"kernel_shape": [2, 3], "strides": [2, 2]}, Window((2, 3), (2, 2))),
        ("AveragePool", {}, {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1]}, Window((2, 2), (1, 1), (1, 0, 0, 1))),
    ],
)
def test_pools_and_means_over_the_image_are_windows(op, operands, options, window):
    layer = lowered(op, {"x": IMAGE, **operands}, **options)
    assert layer.head == ("max_pool" if "Max" in op else "average_pool")
    assert layer.window == window
    assert layer.out_shape[1:3] == window.output_size(8, 9)


@pytest.mark.parametrize(
    ("op", "operands", "options", "shape"),
    [
        ("Flatten", {"x": IMAGE}, {"rank": 2}, (2, 1, 1, 432)),
        ("Reshape", {"x": IMAGE, "s": np.array([0, -1])}, {"rank": 2}, (2, 1, 1, 432)),
        ("Reshape", {"x": ROWS, "s": np.array([2, 6, 1, 1])}, {}, (2, 1, 1, 6)),
        ("Squeeze", {"x": (2, 6, 1, 1), "s": np.array([2, 3])}, {"rank": 2}, (2, 1, 1, 6)),
        ("Unsqueeze", {"x": ROWS, "s": np.array([2, 3])}, {}, (2, 1, 1, 6)),
    ],
)
def test_reshapes_to_one_row_an_image_are_layers(op, operands, options, shape):
    layer = lowered(op, operands, **options)
    assert (layer.head, layer.out_shape) == ("reshape", shape)


def test_a_concatenation_knows_the_channels_of_its_inputs():
    layer = lowered("Concat", {"a": IMAGE, "b": (2, 3, 8, 9), "c": IMAGE}, axis=-3)
    assert (layer.head, layer.inputs, layer.input_channels) == ("concat", ("a", "b", "c"), (6, 3, 6))


CONV = {"x": IMAGE, "w": W}
UNSUPPORTED = [
    ("Softmax", {"x": ROWS}, {"rank": 2}, "unsupported-op", "Softmax is not an operator of the engine"),
    ("Conv", {"x": IMAGE, "w": (4, 6, 3, 3)}, {}, "unsupported-attr", "weight 'w' is computed in the run"),
    ("Conv", {**CONV, "b": (4,)}, {}, "unsupported-attr", "bias 'b' is computed in the run"),
    (
        "Conv",
        {"x": (2, 6, 8), "w": weights(4, 6, 3)},
        {"rank": 3},
        "unsupported-attr",
        "shape (2, 6, 8); the engine takes",
    ),
    ("Gemm", {"a": (6, 2), "w": weights(6, 5)}, {"rank": 2, "transA": 1}, "unsupported-attr", "transA=1"),
    (
        "Gemm",
        {"a": ROWS, "w": weights(6, 5), "c": weights(2, 5)},
        {"rank": 2},
        "unsupported-attr",
        "bias has shape (2, 5)",
    ),
    ("Gemm", {"w": weights(3, 6), "a": (6, 4)}, {"rank": 2}, "unsupported-attr", "weight 'a' is computed in the run"),
    ("MatMul", {"a": ROWS, "b": (6, 5)}, {"rank": 2}, "unsupported-attr", "weight 'b' is computed in the run"),
    (
        "MatMul",
        {"a": IMAGE, "w": weights(9, 5)},
        {},
        "unsupported-attr",
        "input 0, 'a', has shape (2, 6, 8, 9); it needs 2",
    ),
    ("Add", {"a": IMAGE, "b": (2, 6, 1, 1)}, {}, "unsupported-attr", "the engine takes equal shapes"),
    (
        "Add",
        {"a": IMAGE, "c": weights(9)},
        {},
        "unsupported-attr",
        "operand has shape (9,); over (2, 6, 8, 9) one value",
    ),
    ("Add", {"a": (2, 1, 8, 9), "c": weights(6, 1, 1)}, {}, "unsupported-attr", "operand has shape (6, 1, 1)"),
    ("Add", {"a": ROWS, "c": weights(1, 1, 2, 6)}, {}, "unsupported-attr", "operand has shape (1, 1, 2, 6)"),
    (
        "Add",
        {"c": weights(6), "d": weights(6)},
        {"rank": 1},
        "unsupported-attr",
        "is a constant; the engine takes a tensor",
    ),
    ("Sum", {"a": IMAGE, "b": IMAGE, "c": IMAGE}, {}, "unsupported-attr", "3 operands; the engine takes two"),
    ("Relu", {"a": IMAGE}, {"dtype": TensorProto.DOUBLE, "opset": 14}, "unsupported-dtype", "'a' is float64"),
    ("Add", {"a": (2, 6), "b": (2, 6)}, {"dtype": TensorProto.INT64, "rank": 2}, "unsupported-dtype", "'a' is int64"),
    ("Clip", {"a": IMAGE, "lo": (), "hi": np.asarray(np.float32(6))}, {}, "unsupported-attr", "min 'lo' is computed"),
    ("MaxPool", {"x": IMAGE}, {"kernel_shape": [2, 2], "outputs": 2}, "unsupported-attr", "one output"),
    ("MaxPool", {"x": IMAGE}, {"kernel_shape": [2, 2], "storage_order": 1}, "unsupported-attr", "storage_order=1"),
    (
        "AveragePool",
        {"x": IMAGE},
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1},
        "unsupported-attr",
        "ceil_mode=1 adds",
    ),
    ("ReduceMean", {"x": IMAGE}, {"axes": [1]}, "unsupported-attr", "axes=[1]; the engine reduces height and width"),
    ("ReduceMean", {"x": IMAGE}, {}, "unsupported-attr", "axes=[]"),
    ("Concat", {"a": IMAGE, "b": IMAGE}, {"axis": 2}, "unsupported-attr", "axis=2"),
    ("Concat", {"a": IMAGE, "c": weights(2, 1, 8, 9)}, {"axis": 1}, "unsupported-attr", "input 1, 'c', is a constant"),
    ("Reshape", {"x": IMAGE, "s": np.array([2, 54, 8])}, {"rank": 3}, "unsupported-attr", "(2, 54, 8)"),
    ("Reshape", {"x": IMAGE, "s": np.array([2, 8, 6, 9])}, {}, "unsupported-attr", "(2, 6, 8, 9) to (2, 8, 6, 9)"),
    (
        "BatchNormalization",
        {"a": IMAGE, "s": ONES, "b": ONES, "m": ONES, "v": ONES},
        {"training_mode": 1, "outputs": 3},
        "unsupported-attr",
        "training_mode=1",
    ),
    ("Gelu", {"x": IMAGE}, {"domain": "com.microsoft"}, "unsupported-op", "com.microsoft.Gelu is not an operator"),
]


@pytest.mark.parametrize(
    ("op", "operands", "options", "code", "message"), UNSUPPORTED, ids=[f"{u[0]}-{u[4][:30]}" for u in UNSUPPORTED]
)
def test_what_the_engine_cannot_do_has_a_code_and_a_reason(op, operands, options, code, message):
    with pytest.raises(Unsupported) as refused:
        lowered(op, operands, **options)
    assert refused.value.code == code
    assert message in refused.value.message


@pytest.mark.parametrize("shape", [("N", 6, 8, 9), (2, 6, "H", 9)])
def test_a_size_that_only_the_run_knows_is_dynamic(shape):
    graph = fs.load(one_op("Relu", {"x": shape}), optimize=False)
    with pytest.raises(Unsupported, match=r"tensor 'x' has shape .* not known before the run") as refused:
        lower_node(graph, graph.node("node"), DEVICE)
    assert refused.value.code == "dynamic-shape"
    assert lower_node(graph.bind(default=2), graph.node("node"), DEVICE).head == "pointwise"


@pytest.mark.parametrize(
    ("field", "largest", "message"),
    [
        ("initial_vrf", 27, "3 input rows of 9 pixels and 130 channels take 54 vectors, the initial VRF holds 27"),
        ("initial_vrf", 53, "3 input rows of 9 pixels and 130 channels take 54 vectors, the initial VRF holds 53"),
        ("mrf_tiles", 17, "one row of outputs takes 18 tiles, the MRF holds 17"),
    ],
)
def test_what_stripes_of_rows_do_not_make_fit_is_too_large(field, largest, message):
    operands = {"x": (1, 130, 30, 9), "w": weights(4, 130, 3, 3)}
    with pytest.raises(Unsupported) as refused:
        lowered("Conv", operands, device=dataclasses.replace(DEVICE, **{field: largest}))
    assert (refused.value.code, refused.value.message) == ("too-large", message)
    fits = {"initial_vrf": 54, "mrf_tiles": 18}[field]
    assert lowered("Conv", operands, device=dataclasses.replace(DEVICE, **{field: fits})).head == "conv"


MATVEC = [device for device in fs.npu.DEVICES.values() if device.engine == "matvec" and device.mrf_tiles > 300]


@pytest.mark.parametrize("device", MATVEC, ids=lambda d: d.name)
def test_the_largest_layers_of_vgg16_fit(device):
    image = {"x": (1, 64, 224, 224), "w": weights(64, 64, 3, 3)}
    assert lowered("Conv", image, device=device, pads=[1, 1, 1, 1]).macs == 1849688064
    rows = {"x": (1, 25088), "w": weights(25088, 16)}
    assert lowered("Gemm", rows, device=device, rank=2).macs == 25088 * 16


def test_ceil_mode_that_adds_nothing_may_count_padding():
    layer = lowered(
        "AveragePool", {"x": (2, 6, 8, 8)}, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=1
    )
    assert (layer.window, layer.count_padding) == (Window((2, 2), (2, 2)), True)


def test_an_overlay_takes_no_node_of_a_graph():
    with pytest.raises(Unsupported, match="intel_npu_7t40d40l runs dense and recurrent workloads by name, no graphs"):
        lowered("Relu", {"x": IMAGE}, device=fs.npu.get_device("intel_npu_7t40d40l"))


def test_an_array_streams_what_a_register_file_would_not_hold():
    operands = {"x": (1, 130, 30, 9), "w": weights(4, 130, 3, 3)}
    assert lowered("Conv", operands, device=fs.npu.get_device("systolic_16x16_ws")).head == "conv"
