"""Small networks that between them have everything the engine computes, with seeded weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import fpgasim as fs
from fpgasim.npu import Device


class Net:
    """Collects nodes and weights; every method returns the name of a tensor."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, values: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def random(self, *shape: int, scale: float = 1.0) -> str:
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def op(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"n{len(self.nodes)}", **attributes))
        return output

    def conv(self, x: str, cin: int, cout: int, kernel: int = 1, bias: bool = True, **attributes: Any) -> str:
        groups = attributes.get("group", 1)
        w = self.random(cout, cin // groups, kernel, kernel, scale=(2 / (cin // groups * kernel**2)) ** 0.5)
        return self.op("Conv", x, w, *([self.random(cout, scale=0.1)] if bias else []), **attributes)

    def dense(self, x: str, cin: int, cout: int, output: str | None = None) -> str:
        w = self.random(cin, cout, scale=(1 / cin) ** 0.5)
        return self.op("Gemm", x, w, self.random(cout, scale=0.1), output=output)

    def norm(self, x: str, channels: int) -> str:
        positive = self.rng.uniform(0.5, 2.0, (2, channels)).astype(np.float32)
        b, mean = self.random(channels, scale=0.2), self.random(channels, scale=0.2)
        return self.op("BatchNormalization", x, self.constant(positive[0]), b, mean, self.constant(positive[1]))

    def relu6(self, x: str) -> str:
        return self.op("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def model(self, shape: tuple[int | str, ...], *outputs: str, opset: int = 17) -> onnx.ModelProto:
        """The model from `x`; an output called `result` is an image, others are rows."""
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * (4 if name == "result" else 2))
                for name in outputs
            ],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def residual() -> onnx.ModelProto:
    """A stem of 3 channels, a batch norm that folds, a bottleneck with a projection, a classifier."""
    net = Net(1)
    x = net.conv("x", 3, 24, 5, bias=False, strides=[2, 2], pads=[2, 2, 2, 2])
    x = net.op("Relu", net.norm(x, 24))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = net.op("Relu", net.conv(x, 24, 16))
    y = net.op("Relu", net.conv(y, 16, 16, 3, pads=[1, 1, 1, 1], bias=False))
    y = net.conv(y, 16, 40)
    x = net.op("Relu", net.op("Add", y, net.conv(x, 24, 40)))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.dense(x, 40, 10, "logits")
    return net.model(("N", 3, 13, 13), "logits")


def depthwise() -> onnx.ModelProto:
    """SAME_UPPER padding, relu6, depthwise convolutions with and without a multiplier, a mean over the image."""
    net = Net(2)
    x = net.relu6(net.conv("x", 3, 24, 3, strides=[2, 2], auto_pad="SAME_UPPER"))
    x = net.relu6(net.conv(x, 24, 24, 3, group=24, strides=[2, 2], auto_pad="SAME_UPPER"))
    x = net.relu6(net.conv(x, 24, 20))
    x = net.relu6(net.conv(x, 20, 40, 3, group=20, bias=False, auto_pad="SAME_LOWER"))
    x = net.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    x = net.op("MatMul", x, net.random(40, 6, scale=0.2))
    net.op("Add", net.random(6), x, output="logits")
    return net.model(("N", 3, 10, 11), "logits")


def dense() -> onnx.ModelProto:
    """Batch norms before the activation, which no convolution takes in, and concatenations."""
    net = Net(3)
    x = net.conv("x", 3, 20, 3, pads=[1, 1, 1, 1])
    for channels in (20, 32):
        y = net.op("Relu", net.norm(x, channels))
        x = net.op("Concat", x, net.conv(y, channels, 12, 3, pads=[1, 1, 1, 1]), axis=1)
    x = net.op("GlobalMaxPool", net.op("Relu", net.norm(x, 44)))
    x = net.op("Squeeze", x, net.constant(np.array([2, 3])))
    net.op("Softmax", net.dense(x, 44, 5, "logits"), output="probabilities", axis=1)
    return net.model(("N", 3, 6, 6), "probabilities", "logits")


def vgg() -> onnx.ModelProto:
    """Max pools, a Flatten that keeps ONNX's order of elements, dense layers with alpha, beta and transB."""
    net = Net(4)
    x = "x"
    for cin, cout in ((3, 16), (16, 20)):
        x = net.op("Relu", net.conv(x, cin, cout, 3, pads=[1, 1, 1, 1]))
        x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Flatten", x)
    x = net.op("Relu", net.op("Gemm", x, net.random(24, 80, scale=0.1), net.random(24), transB=1))
    net.op("Gemm", x, net.random(24, 7, scale=0.2), net.random(1, 7), alpha=0.75, beta=0.3, output="logits")
    return net.model(("N", 3, 8, 8), "logits")


def pools() -> onnx.ModelProto:
    """Average pools that count padding or not, ceil_mode, a dilated max pool."""
    net = Net(5)
    x = net.conv("x", 3, 20, 3)
    a = net.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    b = net.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0], ceil_mode=1)
    c = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    d = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], dilations=[2, 2], pads=[1, 1, 1, 1])
    x = net.op("Concat", a, b, c, d, axis=1)
    net.op("AveragePool", x, kernel_shape=[2, 3], auto_pad="VALID", output="result")
    return net.model(("N", 3, 11, 11), "result")


def grouped() -> onnx.ModelProto:
    """Groups that begin inside a block, dilation, padding that differs from side to side."""
    net = Net(6)
    x = net.op("Relu", net.conv("x", 3, 40, 1))
    x = net.op("Relu", net.conv(x, 40, 24, 3, group=4, pads=[1, 1, 1, 1]))
    x = net.op("Relu", net.conv(x, 24, 36, 3, group=2, dilations=[2, 1], pads=[2, 0, 1, 1], strides=[1, 2]))
    net.conv(x, 36, 8, 2, bias=False)
    net.nodes[-1].output[0] = "result"
    return net.model(("N", 3, 7, 9), "result")


def gates() -> onnx.ModelProto:
    """Every pointwise operator, with tensors and constants on either side."""
    net = Net(7)
    x = net.conv("x", 4, 20, 3, pads=[1, 1, 1, 1])
    a = net.op("Mul", net.op("Sigmoid", net.conv(x, 20, 20)), net.op("Tanh", net.conv(x, 20, 20)))
    b = net.op("Sub", net.random(1), net.op("Max", a, x))
    c = net.op("Sub", b, net.op("Mul", net.random(1, 20, 1, 1), net.op("Sum", x, a)))
    d = net.op("Add", c, c)
    e = net.op("Clip", d, "", net.constant(np.float32(1.7)))
    f = net.op("Mul", e, e)
    g = net.op("Max", net.conv(f, 20, 20), net.random(20, 1, 1))
    net.op("Sub", net.op("Relu", net.op("Add", net.op("Sub", f, net.random(1, 1, 1)), g)), g, output="result")
    return net.model(("N", 4, 5, 6), "result")


def upsampling() -> onnx.ModelProto:
    """A coarse image repeated in rows and columns and added to a fine one, twice."""
    net = Net(14)
    fine = net.op("Relu", net.conv("x", 3, 24, 3, pads=[1, 1, 1, 1]))
    coarse = net.conv(fine, 24, 24, 2, strides=[2, 3])
    scales = net.constant(np.array([1, 1, 2, 3], np.float32))
    x = net.op("Add", net.op("Resize", coarse, "", scales, mode="nearest"), fine)
    scales = net.constant(np.array([1, 1, 3, 1], np.float32))
    rule = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    x = net.op("Relu", net.op("Resize", net.conv(x, 24, 20), "", scales, mode="nearest", **rule))
    net.conv(x, 20, 8, 3, strides=[2, 1])
    net.nodes[-1].output[0] = "result"
    return net.model(("N", 3, 4, 6), "result")


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f for f in (residual, depthwise, dense, vgg, pools, grouped, gates, upsampling)
}


def tiny_device(**changes: Any) -> Device:
    """bw_a10 with a native dimension of 32, so that small networks have several blocks."""
    import dataclasses

    return dataclasses.replace(fs.npu.get_device("bw_a10"), **{"name": "tiny", "native_dim": 32, "lanes": 8, **changes})


def feed(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
