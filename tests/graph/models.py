"""Small ONNX models for tests, and ONNX Runtime as the judge of what they compute."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import fpgasim as fs

OPSETS = (7, 9, 11, 13, 17, 21, 26)
#: What `convnet` can put one after the other.
BLOCKS = (
    "conv_bn_relu", "conv_bias", "conv_scale_shift", "depthwise", "dilated", "conv_transpose_bn", "preactivation",
    "residual", "dense", "pad_conv", "max_pool", "average_pool", "noop", "sub_div",
)  # fmt: skip


class Builder:
    """Collects nodes and seeded weights; `model()` makes the ModelProto."""

    def __init__(self, opset: int = 17, seed: int = 0) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._count = 0

    def name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def op(self, op_type: str, *inputs: str, outputs: Sequence[str] | None = None, **attributes: Any) -> str:
        """Adds a node; its first output's name."""
        outputs = outputs or [self.name(op_type.lower())]
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=self.name(op_type), **attributes))
        return outputs[0]

    def constant(self, array: Any, stem: str = "constant") -> str:
        """Adds an initializer; its name."""
        name = self.name(stem)
        self.initializers.append(numpy_helper.from_array(np.array(array), name))
        return name

    def weights(self, *shape: int) -> str:
        """He-initialised weights."""
        scale = np.sqrt(2 / max(1, np.prod(shape[1:])))
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32), "weight")

    def vector(self, size: int, low: float = -1.0, high: float = 1.0) -> str:
        return self.constant(self.rng.uniform(low, high, size).astype(np.float32), "vector")

    def per_channel(self, channels: int) -> str:
        return self.constant(self.rng.uniform(0.5, 1.5, (1, channels, 1, 1)).astype(np.float32), "scale")

    def conv(self, x: str, cin: int, cout: int, kernel: int = 3, bias: bool = False, **attributes: Any) -> str:
        groups = attributes.get("group", 1)
        dilation = attributes.get("dilations", [1])[0]
        attributes.setdefault("pads", [dilation * (kernel // 2)] * 4)
        inputs = [x, self.weights(cout, cin // groups, kernel, kernel), *([self.vector(cout)] if bias else [])]
        return self.op("Conv", *inputs, kernel_shape=[kernel, kernel], **attributes)

    def batch_norm(self, x: str, channels: int) -> str:
        parameters = [self.vector(channels, 0.5, 2.0), self.vector(channels), self.vector(channels)]
        return self.op("BatchNormalization", x, *parameters, self.vector(channels, 0.2, 3.0), epsilon=1e-5)

    def pad(self, x: str, pads: Sequence[int]) -> str:
        if self.opset < 11:
            return self.op("Pad", x, pads=pads)
        return self.op("Pad", x, self.constant(np.array(pads, np.int64)))

    def unsqueeze(self, x: str, axes: Sequence[int]) -> str:
        if self.opset < 13:
            return self.op("Unsqueeze", x, axes=axes)
        return self.op("Unsqueeze", x, self.constant(np.array(axes, np.int64)))

    def dropout(self, x: str) -> str:
        return self.op("Dropout", x, ratio=0.3) if self.opset < 12 else self.op("Dropout", x)

    def model(
        self,
        inputs: Mapping[str, Sequence[int | str | None]],
        outputs: Mapping[str, Sequence[int | str | None] | None],
        *,
        ir_version: int | None = None,
        dtypes: Mapping[str, int] | None = None,
    ) -> onnx.ModelProto:
        """The model; up to IR version 3 its initializers are inputs too, as that version demands."""

        def info(name: str, shape: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, (dtypes or {}).get(name, TensorProto.FLOAT), shape)

        ir_version = ir_version or (3 if self.opset < 9 else 8 if self.opset < 21 else 10 if self.opset < 26 else 13)
        infos = [info(name, shape) for name, shape in inputs.items()]
        if ir_version < 4:
            infos += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.initializers]
        graph = helper.make_graph(
            self.nodes, "net", infos, [info(name, shape) for name, shape in outputs.items()], self.initializers
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir_version, producer_name="tests"
        )


def convnet(
    blocks: Sequence[str] = ("conv_bn_relu", "residual", "max_pool", "dense"),
    *,
    opset: int = 17,
    seed: int = 0,
    channels: int = 8,
    size: int = 12,
    batch: int | str | None = "N",
    classes: int = 5,
) -> onnx.ModelProto:
    """An image classifier `image` (batch, 3, size, size) -> `scores` (batch, classes) made of `BLOCKS`."""
    b = Builder(opset, seed)
    x, width = b.conv("image", 3, channels, bias=True), channels
    for block in blocks:
        x, width = _block(b, block, x, width)
    x = b.op("GlobalAveragePool", x)
    x = b.op("Flatten", b.dropout(x), axis=1)
    x = b.op("Gemm", x, b.weights(classes, width), b.vector(classes), transB=1, alpha=0.5, beta=2.0)
    b.op("Softmax", x, outputs=["scores"], axis=1)
    return b.model({"image": (batch, 3, size, size)}, {"scores": (batch, classes)})


def _block(b: Builder, block: str, x: str, c: int) -> tuple[str, int]:
    match block:
        case "conv_bn_relu":
            return b.op("Relu", b.batch_norm(b.conv(x, c, c), c)), c
        case "conv_bias":
            return b.op("Sigmoid", b.conv(x, c, c + 4, kernel=1, bias=True)), c + 4
        case "conv_scale_shift":  # Caffe's way to write a batch norm
            x = b.batch_norm(b.conv(x, c, c), c)
            x = b.op("Mul", x, b.unsqueeze(b.vector(c, 0.5, 2.0), [1, 2]))
            return b.op("Relu", b.op("Add", b.unsqueeze(b.vector(c), [1, 2]), x)), c
        case "depthwise":
            return b.op("Relu", b.batch_norm(b.conv(x, c, c, group=c), c)), c
        case "dilated":
            return b.batch_norm(b.conv(x, c, c, group=2, dilations=[2, 2]), c), c
        case "conv_transpose_bn":
            x = b.op("ConvTranspose", x, b.weights(c, c // 2, 3, 3), kernel_shape=[3, 3], group=2, pads=[1, 1, 1, 1])
            return b.batch_norm(x, c), c
        case "preactivation":  # this batch norm cannot fold, its input has two readers
            y = b.op("Relu", b.batch_norm(x, c))
            return b.op("Add", x, b.conv(y, c, c)), c
        case "residual":
            y = b.op("Relu", b.batch_norm(b.conv(x, c, c), c))
            return b.op("Relu", b.op("Add", b.batch_norm(b.conv(y, c, c), c), x)), c
        case "dense":
            return b.op("Concat", x, b.conv(b.op("Relu", b.batch_norm(x, c)), c, 4), axis=1), c + 4
        case "pad_conv":
            return b.conv(b.pad(x, [0, 0, 1, 2, 0, 0, 0, 1]), c, c, pads=[1, 0, 0, 1]), c
        case "max_pool":
            return b.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]), c
        case "average_pool":
            return b.op("AveragePool", x, kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1]), c
        case "noop":
            x = b.op("Transpose", b.pad(b.op("Identity", x), [0] * 8), perm=[0, 1, 2, 3])
            return b.op("Concat", b.dropout(b.op("Cast", x, to=TensorProto.FLOAT)), axis=1), c
        case "sub_div":
            return b.op("Div", b.op("Sub", b.conv(x, c, c), b.per_channel(c)), b.constant(np.float32(2.5))), c
    raise AssertionError(block)


def light_model(name: str, seed: int = 0) -> onnx.ModelProto:
    """The topology `light_<name>` that the onnx package ships, its constant weights replaced by seeded ones."""
    import onnx.backend.test

    root = Path(onnx.backend.test.__file__).parent / "data" / "light"
    return fs.zoo.seed_weights(onnx.load(root / f"light_{name}.onnx"), seed)


def feeds_for(model: onnx.ModelProto, seed: int = 0, **dims: int) -> dict[str, np.ndarray]:
    """Seeded standard normal values for the inputs that have no initializer; symbols come from `dims`, else are 2."""
    rng = np.random.default_rng(seed)
    fixed = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for info in model.graph.input:
        if info.name not in fixed:
            shape = [
                d.dim_value if d.HasField("dim_value") else dims.get(d.dim_param, 2)
                for d in info.type.tensor_type.shape.dim
            ]
            dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            feeds[info.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def run(model: onnx.ModelProto | str | os.PathLike[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes for every output of `model`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else os.fspath(model)
    session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_same_outputs(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], within: float = 1e-5) -> None:
    """Every output is within `within` of its max-norm."""
    assert list(got) == list(want)
    for name, expected in want.items():
        assert got[name].shape == expected.shape
        assert got[name].dtype == expected.dtype
        error = np.abs(got[name].astype(np.float64) - expected.astype(np.float64)).max(initial=0)
        assert error <= within * np.abs(expected).max(initial=0), f"{name}: {error}"
