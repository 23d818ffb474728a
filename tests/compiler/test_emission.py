"""Emitted programs have the bits of the fused path, for every kind of layer."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fpgasim as fs
from fpgasim.npu.isa import Mem, VPack, VUnroll
from fpgasim.npu.programs import Port

from .emitted import NUMBERS, assert_same_bits, segment_of, small, touches, vector_chains
from .models import one_op, weights

IMAGE = (2, 20, 7, 6)
W = weights(24, 20, 3, 3)


class Net:
    """Nodes from `x` on; every method returns the name of a tensor."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def op(self, op_type: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"n{len(self.nodes)}", **attributes))
        return output

    def conv(self, x: str, cin: int, cout: int, kernel: int = 1, relu: bool = True, **attributes: object) -> str:
        groups = attributes.get("group", 1)
        scale = (2 / (cin // groups * kernel**2)) ** 0.5
        w = self.rng.standard_normal((cout, cin // groups, kernel, kernel)).astype(np.float32) * np.float32(scale)
        b = self.rng.standard_normal(cout).astype(np.float32) * np.float32(0.1)
        pads = [kernel // 2] * 4
        y = self.op("Conv", x, self.constant(w), self.constant(b), **{"pads": pads, **attributes})
        return self.op("Relu", y) if relu else y

    def model(
        self, shape: tuple[int | str, ...], *outputs: str, ranks: dict[str, int] | None = None
    ) -> onnx.ModelProto:
        made = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * (ranks or {}).get(name, 4))
            for name in outputs
        ]
        fed = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, "net", fed, made, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


ONE = np.ones(20, np.float32)
#: One operator each: what is asked of it, and the feeds and constants it reads.
OPERATORS = {
    "conv": one_op("Conv", {"x": IMAGE, "w": W, "b": weights(24)}, pads=[1, 1, 1, 1]),
    "a strided conv with uneven padding": one_op(
        "Conv", {"x": IMAGE, "w": W}, pads=[0, 2, 1, 0], strides=[2, 1], dilations=[1, 2]
    ),
    "a dilated conv": one_op("Conv", {"x": IMAGE, "w": W}, pads=[2, 2, 2, 2], dilations=[2, 2]),
    "a conv of one tap": one_op("Conv", {"x": IMAGE, "w": weights(40, 20, 1, 1)}, strides=[2, 2]),
    "a window-packed conv": one_op("Conv", {"x": (2, 3, 8, 9), "w": weights(20, 3, 3, 3)}, pads=[1, 1, 1, 1]),
    "a conv of few channels": one_op("Conv", {"x": (1, 16, 5, 6), "w": weights(9, 16, 3, 3)}, pads=[1, 1, 1, 1]),
    "a grouped conv": one_op("Conv", {"x": IMAGE, "w": weights(24, 5, 3, 3)}, group=4, pads=[1, 1, 1, 1]),
    "a depthwise conv": one_op("Conv", {"x": IMAGE, "w": weights(20, 1, 3, 3)}, group=20, pads=[1, 1, 1, 1]),
    "a depthwise conv with a multiplier": one_op(
        "Conv", {"x": IMAGE, "w": weights(40, 1, 3, 3), "b": weights(40)}, group=20, pads=[1, 0, 0, 1], strides=[2, 1]
    ),
    "gemm": one_op("Gemm", {"x": (3, 40), "w": weights(40, 24), "b": weights(24)}, rank=2),
    "matmul": one_op("MatMul", {"x": (2, 33), "w": weights(33, 17)}, rank=2),
    "max pool": one_op("MaxPool", {"x": IMAGE}, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "a max pool of one position": one_op("MaxPool", {"x": IMAGE}, kernel_shape=[1, 1], strides=[2, 2]),
    "a max pool that rounds up": one_op("MaxPool", {"x": IMAGE}, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "average pool": one_op("AveragePool", {"x": IMAGE}, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "an average pool that counts padding": one_op(
        "AveragePool", {"x": IMAGE}, kernel_shape=[3, 2], pads=[1, 0, 1, 1], count_include_pad=1
    ),
    "global average": one_op("GlobalAveragePool", {"x": IMAGE}),
    "global maximum": one_op("GlobalMaxPool", {"x": IMAGE}),
    "reshape": one_op("Flatten", {"x": (2, 5, 3, 4)}, rank=2),
    "upsample": one_op("Resize", {"x": IMAGE, "_": ONE, "s": np.array([1, 1, 2, 3], np.float32)}, mode="nearest",
                       coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "batch norm": one_op(
        "BatchNormalization", {"x": IMAGE, "s": weights(20), "b": ONE, "m": weights(20, seed=1), "v": ONE}
    ),
    "sigmoid": one_op("Sigmoid", {"x": IMAGE}),
    "tanh": one_op("Tanh", {"x": IMAGE}),
    "relu": one_op("Relu", {"x": IMAGE}),
    "clip": one_op("Clip", {"x": IMAGE, "low": np.float32(0.25), "high": np.float32(0.75)}),
    "add": one_op("Add", {"x": IMAGE, "z": IMAGE}),
    "mul": one_op("Mul", {"x": IMAGE, "z": IMAGE}),
    "max": one_op("Max", {"x": IMAGE, "z": IMAGE}),
    "sub": one_op("Sub", {"x": IMAGE, "z": IMAGE}),
    "a constant less a tensor": one_op("Sub", {"c": weights(20, 1, 1), "x": IMAGE}),
    "concat": one_op("Concat", {"x": IMAGE, "v": (2, 9, 7, 6), "z": (2, 16, 7, 6)}, axis=1),
    "concat of whole vectors": one_op("Concat", {"x": (1, 16, 4, 4), "z": (1, 32, 4, 4)}, axis=1),
}  # fmt: skip


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_one_layer_has_the_bits_of_the_fused_path(operator, numbers):
    assert_same_bits(segment_of(fs.load(OPERATORS[operator], optimize=False), small(), numbers))


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize(
    ("size", "kernel", "pads", "strides"),
    [
        ((3, 2), (2, 1), [1, 0, 1, 1], [1, 1]),
        ((1, 4), (3, 1), [2, 1, 1, 2], [3, 1]),
        ((2, 2), (2, 2), [1, 1, 1, 2], [1, 1]),
    ],
)
def test_zeros_of_a_padded_depthwise_conv_have_the_signs_of_the_fused_path(size, kernel, pads, strides, numbers):
    """Some positions have no tap inside the image, others not the last or first one; those sums begin with other
    zeros than their neighbours."""
    w = -np.abs(weights(16, 1, *kernel))
    model = one_op("Conv", {"x": (1, 16, *size), "w": w}, group=16, pads=pads, strides=strides)
    segment = segment_of(model, small(), numbers)
    for x in (np.zeros((1, 16, *size), np.float32), weights(1, 16, *size)):
        assert_same_bits(segment, feeds={"x": x})


@pytest.mark.parametrize("operator", ["conv", "a window-packed conv", "a grouped conv", "average pool", "gemm"])
def test_the_reference_kernels_give_the_same_bits(operator):
    assert_same_bits(segment_of(OPERATORS[operator], small(), "exact"), kernels="reference")


@pytest.mark.parametrize("mfus", [1, 2, 3])
@pytest.mark.parametrize("operator", ["a depthwise conv with a multiplier", "average pool", "concat", "conv"])
def test_stages_that_the_mfus_do_not_hold_are_chains_of_their_own(operator, mfus):
    """Seven stages behind each head, five of them with operands of which two are tensors."""
    model = onnx.ModelProto()
    model.CopyFrom(OPERATORS[operator])
    graph = model.graph
    shape = fs.load(model, optimize=False).bind().tensor("y").shape
    channels = shape[1]
    rng = np.random.default_rng(3)
    constants = {name: rng.standard_normal((channels, 1, 1)).astype(np.float32) for name in ("ka", "kb", "kc")}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.initializer.extend(numpy_helper.from_array(np.float32(value), f"k{value}") for value in (-1, -2, 3, 4))
    graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, shape))
    stages = [
        ("Add", "ka"),
        ("Mul", "kb"),
        ("Clip", "k-1", "k3"),
        ("Add", "other"),
        ("Clip", "k-2", "k4"),
        ("Mul", "other"),
        ("Tanh",),
        ("Sub", "kc"),
    ]
    last = "y"
    for i, (op_type, *operands) in enumerate(stages):
        graph.node.append(helper.make_node(op_type, [last, *operands], [f"s{i}"], name=f"stage{i}"))
        last = f"s{i}"
    graph.output[0].name = last
    segment = segment_of(fs.load(model, optimize=False), small(mfus=mfus), "exact")
    assert len(segment.layers) == 1
    assert len(segment.layers[0].stages) >= 8
    program = assert_same_bits(segment)
    assert max(op.mfu for chain in vector_chains(program) for op in chain.ops) >= min(mfus - 1, 1)


def bottleneck() -> onnx.ModelProto:
    net = Net(1)
    x = net.conv("x", 3, 24, 7, strides=[2, 2])
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = net.conv(net.conv(x, 24, 16), 16, 16, 3)
    x = net.op("Relu", net.op("Add", net.conv(y, 16, 40, relu=False), net.conv(x, 24, 40, relu=False)))
    y = net.conv(net.conv(net.conv(x, 40, 16), 16, 16, 3), 16, 40, relu=False)
    x = net.op("Relu", net.op("Add", y, x))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.op("Gemm", x, net.constant(weights(40, 10)), output="logits")
    return net.model(("N", 3, 23, 21), "logits", ranks={"logits": 2})


def inverted() -> onnx.ModelProto:
    """Blocks of EfficientNet-Lite: wide, depthwise, narrow, with a residual; relu6."""
    net = Net(2)

    def relu6(x: str) -> str:
        return net.op("Clip", x, net.constant(np.float32(0)), net.constant(np.float32(6)))

    x = relu6(net.conv("x", 3, 16, 3, relu=False, strides=[2, 2], pads=[0, 0, 1, 1]))
    for _ in range(2):
        y = relu6(net.conv(x, 16, 48, relu=False))
        y = relu6(net.conv(y, 48, 48, 5, relu=False, group=48))
        x = net.op("Add", net.conv(y, 48, 16, relu=False), x)
    net.conv(x, 16, 20, output=None)
    net.nodes[-1].output[0] = "result"
    return net.model(("N", 3, 14, 14), "result")


def densely() -> onnx.ModelProto:
    net = Net(3)
    x = net.conv("x", 3, 20, 3)
    for channels in (20, 32, 44):
        scale, shift = (net.constant(net.rng.standard_normal((channels, 1, 1)).astype(np.float32)) for _ in range(2))
        y = net.op("Relu", net.op("Add", net.op("Mul", x, scale), shift))
        x = net.op("Concat", x, net.conv(net.conv(y, channels, 24), 24, 12, 3, relu=False), axis=1)
    net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], output="result")
    return net.model(("N", 3, 10, 9), "result")


def gated() -> onnx.ModelProto:
    """Sigmoids whose tails are not zero, read by a convolution; a tensor with three readers; two outputs."""
    net = Net(4)
    x = net.conv("x", 12, 20, 3, relu=False)
    gate = net.op("Sigmoid", x)
    y = net.op("Mul", x, gate)
    z = net.conv(gate, 20, 20, 3, relu=False)
    net.op("Sub", z, y, output="first")
    net.op("Max", net.conv("first", 20, 20, relu=False), x, output="second")
    return net.model(("N", 12, 6, 7), "first", "second")


NETWORKS = {"bottleneck": bottleneck, "inverted": inverted, "densely": densely, "gated": gated}


@pytest.mark.parametrize(("numbers", "batch"), [("exact", 1), ("fp32", 3), ("chwk", 1), ("tree", 3)])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_has_the_bits_of_the_fused_path(network, numbers, batch):
    device = small(native_dim=32, tiles=3) if batch == 1 else small()
    assert_same_bits(segment_of(NETWORKS[network](), device, numbers, batch), weights="pin" if batch == 1 else "stream")


def test_the_image_of_a_stem_comes_packed_with_its_frame_of_zeros():
    program = assert_same_bits(segment_of(bottleneck(), small()))
    assert program.inputs == (Port("x", (1, 3, 23, 21), True, (3, 3, 3, 3)),)
    assert program.inputs[0].vectors(16) == math.ceil(29 * 27 * 3 / 16)
    assert any(isinstance(chain.read, VUnroll) and chain.tiles for chain in vector_chains(program))


def test_an_image_that_others_read_too_comes_in_whole_vectors():
    net = Net(5)
    net.op("Concat", net.conv("x", 3, 20, 3), "x", axis=1, output="result")
    program = assert_same_bits(segment_of(net.model(("N", 3, 6, 5), "result"), small()))
    assert program.inputs == (Port("x", (1, 3, 6, 5)),)


def test_a_pinned_program_touches_no_dram_and_sends_its_output_from_the_last_chain():
    program = assert_same_bits(segment_of(bottleneck(), small()), weights="pin")
    assert not touches(program, Mem.DRAM)
    assert Mem.DRAM not in program.vectors
    assert vector_chains(program)[-1].tiles is not None
    assert sum(bool(chain.given) for chain in vector_chains(program)) == 1


def test_useful_work_adds_up_to_that_of_the_layers():
    segment = segment_of(bottleneck(), small(initial_vrf=400), batch=2)
    program = assert_same_bits(segment)
    assert sum(block.macs or 0 for block in program.blocks) == sum(layer.macs for layer in segment.layers)


def test_residuals_are_written_to_where_they_are_added_when_they_are_made():
    program = assert_same_bits(segment_of(bottleneck(), small()))
    adding = [span.mem for chain in vector_chains(program) if len(chain.writes) > 1 for span in chain.written]
    assert Mem.ADDSUB_VRF_1 in adding


def test_channels_that_are_no_whole_vectors_are_packed():
    program = assert_same_bits(segment_of(densely(), small()))
    packed = [chain for chain in vector_chains(program) if isinstance(chain.writes[0], VPack)]
    assert packed
    assert {chain.width for chain in packed} == {12}


def test_steps_longer_than_their_fields_are_chains_of_their_own():
    net = Net(6)
    net.op("Flatten", net.conv(net.conv("x", 16, 8), 8, 20, 3), output="rows")
    device = small(native_dim=128, lanes=8, initial_vrf=40_000)
    program = assert_same_bits(segment_of(net.model(("N", 16, 3, 520), "rows", ranks={"rows": 2}), device, "fp32"))
    windows = [chain for chain in vector_chains(program) if isinstance(chain.read, VUnroll) and chain.tiles]
    assert [chain.iterations for chain in windows] == [(520, 1)] * 3
