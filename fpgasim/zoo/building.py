"""Draws a network as an ONNX graph, layer by layer, with its parameters listed beside it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import onnx

OPSET = 17
IR_VERSION = 8
BATCH = "N"

Role = Literal["weight", "bias", "scale", "shift", "mean", "variance"]
Padding = int | Literal["same"]


#: The variance after a BatchNormalization with the random scales, shifts and statistics of `weights.random_weights`.
NORMALIZED_VARIANCE = 1.06


class Moments(NamedTuple):
    """Mean and variance that a tensor's elements should have when the weights are random, taken as Gaussian."""

    mean: float
    variance: float

    @property
    def power(self) -> float:
        return self.mean**2 + self.variance

    def rectified(self) -> "Moments":
        deviation = math.sqrt(self.variance)
        positive = 0.5 * (1 + math.erf(self.mean / deviation / math.sqrt(2)))
        density = deviation * math.exp(-((self.mean / deviation) ** 2) / 2) / math.sqrt(2 * math.pi)
        mean = self.mean * positive + density
        return Moments(mean, self.power * positive + self.mean * density - mean**2)


@dataclass(frozen=True)
class Parameter:
    """One named array that a network needs.

    `power` is what random values are fitted to: the variance expected of what a statistic describes, the mean square of
    what a weight multiplies where no normalisation follows, the middle of a scale. `window` is the (channels, height,
    width) that the inputs of a fully connected weight were flattened from.
    """

    shape: tuple[int, ...]
    role: Role
    power: float = 1.0
    window: tuple[int, ...] = ()

    @property
    def trainable(self) -> bool:
        return self.role not in ("mean", "variance")


def same_upper(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """The padding (before, after) that makes ceil(size / stride) outputs, the odd element after: ONNX's SAME_UPPER."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


@dataclass
class Drawing:
    """A network while it is drawn.

    A layer's method adds one node and returns the name of its output, which is the node's own name. Shapes are without
    the batch. `moments` is what random weights are fitted to.
    """

    input: str
    input_shape: tuple[int, int, int]
    input_variance: float = 1.0
    nodes: list["onnx.NodeProto"] = field(default_factory=list)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    constants: dict[str, float | tuple[int, ...]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    windows: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shapes[self.input] = self.input_shape
        self.moments[self.input] = Moments(0.0, self.input_variance)

    def conv(
        self,
        x: str,
        name: str,
        filters: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: Padding = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> str:
        """Convolution; its weight `<name>.weight` is (filters, channels / groups, kernel, kernel).

        Where it has a bias no normalisation follows, so its random weights take out the power of `x`.
        """
        power = self.moments[x].power if bias else 1.0
        shape = (filters, self.shapes[x][0] // groups, kernel, kernel)
        inputs = [x, self._parameter(f"{name}.weight", shape, "weight", power)]
        if bias:
            inputs.append(self._parameter(f"{name}.bias", (filters,), "bias"))
        pads, (height, width) = self._window(x, dilation * (kernel - 1) + 1, stride, padding)
        attributes: dict[str, Any] = {
            "kernel_shape": [kernel] * 2,
            "strides": [stride] * 2,
            "pads": pads,
            "group": groups,
        }
        if dilation > 1:
            attributes["dilations"] = [dilation] * 2
        moments = Moments(0.0, self._weighted(x).variance / power)
        return self._node("Conv", inputs, name, (filters, height, width), moments, **attributes)

    def batch_norm(self, x: str, name: str, *, epsilon: float = 1e-5) -> str:
        shape, power = self.shapes[x], self.moments[x].power
        inputs = [
            self._parameter(f"{name}.weight", shape[:1], "scale"),
            self._parameter(f"{name}.bias", shape[:1], "shift"),
            self._parameter(f"{name}.running_mean", shape[:1], "mean", power),
            self._parameter(f"{name}.running_var", shape[:1], "variance", power),
        ]
        return self._node(
            "BatchNormalization", [x, *inputs], name, shape, Moments(0.0, NORMALIZED_VARIANCE), epsilon=epsilon
        )

    def relu(self, x: str, name: str) -> str:
        return self._node("Relu", [x], name, self.shapes[x], self.moments[x].rectified())

    def relu6(self, x: str, name: str) -> str:
        self.constants |= {"relu6.min": 0.0, "relu6.max": 6.0}
        return self._node("Clip", [x, "relu6.min", "relu6.max"], name, self.shapes[x], self.moments[x].rectified())

    def add(self, x: str, y: str, name: str) -> str:
        mean, variance = (a + b for a, b in zip(self.moments[x], self.moments[y], strict=True))
        return self._node("Add", [x, y], name, self.shapes[x], Moments(mean, variance))

    def max_pool(self, x: str, name: str, kernel: int, *, stride: int, padding: Padding = 0) -> str:
        pads, size = self._window(x, kernel, stride, padding)
        attributes: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
        return self._node("MaxPool", [x], name, (self.shapes[x][0], *size), self.moments[x], **attributes)

    def average_pool(self, x: str, name: str, kernel: int, *, stride: int) -> str:
        pads, size = self._window(x, kernel, stride, 0)
        attributes: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
        return self._node("AveragePool", [x], name, (self.shapes[x][0], *size), self.moments[x], **attributes)

    def concat(self, tensors: list[str], name: str) -> str:
        """All channels of `tensors`, in their order."""
        channels = [self.shapes[x][0] for x in tensors]
        shares = [(n / sum(channels), self.moments[x]) for n, x in zip(channels, tensors, strict=True)]
        mean = sum(share * moments.mean for share, moments in shares)
        power = sum(share * moments.power for share, moments in shares)
        shape = (sum(channels), *self.shapes[tensors[0]][1:])
        return self._node("Concat", tensors, name, shape, Moments(mean, power - mean**2), axis=1)

    def l2_normalize(self, x: str, name: str) -> str:
        """Each place's channels divided by their Euclidean norm."""
        channels, (mean, variance) = self.shapes[x][0], self.moments[x]
        energy = channels * self.moments[x].power
        moments = Moments(mean / math.sqrt(energy), variance / energy)
        return self._node("LpNormalization", [x], name, self.shapes[x], moments, axis=1, p=2)

    def scale(self, x: str, name: str, center: float) -> str:
        """Each channel times a factor of its own, around `center` if random; `<name>.weight` is (channels, 1, 1)."""
        weight = self._parameter(f"{name}.weight", (self.shapes[x][0], 1, 1), "scale", center)
        mean, variance = self.moments[x]
        return self._node("Mul", [x, weight], name, self.shapes[x], Moments(center * mean, center**2 * variance))

    def channels_last(self, x: str, name: str) -> str:
        channels, height, width = self.shapes[x]
        return self._node("Transpose", [x], name, (height, width, channels), self.moments[x], perm=[0, 2, 3, 1])

    def reshape(self, x: str, name: str, shape: tuple[int, ...], *, output: str = "") -> str:
        self.constants[f"{name}.shape"] = (0, *shape)  # a 0 keeps the batch
        return self._node("Reshape", [x, f"{name}.shape"], name, shape, self.moments[x], output=output)

    def softmax(self, x: str, name: str) -> str:
        mean = 1 / self.shapes[x][0]
        return self._node("Softmax", [x], name, self.shapes[x], Moments(mean, mean**2), axis=1)

    def global_average_pool(self, x: str, name: str) -> str:
        return self._node("GlobalAveragePool", [x], name, (self.shapes[x][0], 1, 1), self.moments[x])

    def flatten(self, x: str, name: str) -> str:
        self.windows[name] = self.shapes[x]
        return self._node("Flatten", [x], name, (math.prod(self.shapes[x]),), self.moments[x], axis=1)

    def linear(self, x: str, name: str, features: int, *, output: str = "") -> str:
        """Fully connected layer with a bias; its weight `<name>.weight` is (features, inputs)."""
        window = self.windows.get(x, (*self.shapes[x], 1, 1))
        weight = self._parameter(f"{name}.weight", (features, *self.shapes[x]), "weight", window=window)
        bias = self._parameter(f"{name}.bias", (features,), "bias")
        return self._node("Gemm", [x, weight, bias], name, (features,), self._weighted(x), output=output, transB=1)

    def _weighted(self, x: str) -> Moments:
        """After He-normal weights: a variance of 2 / inputs each, and as many inputs."""
        return Moments(0.0, 2 * self.moments[x].power)

    def _window(self, x: str, kernel: int, stride: int, padding: Padding) -> tuple[list[int], list[int]]:
        sizes = self.shapes[x][1:]
        sides = [same_upper(n, kernel, stride) if padding == "same" else (padding, padding) for n in sizes]
        outputs = [(n + before + after - kernel) // stride + 1 for n, (before, after) in zip(sizes, sides, strict=True)]
        return [before for before, _ in sides] + [after for _, after in sides], outputs

    def _parameter(
        self, name: str, shape: tuple[int, ...], role: Role, power: float = 1.0, window: tuple[int, ...] = ()
    ) -> str:
        self.parameters[name] = Parameter(shape, role, power, window)
        return name

    def _node(
        self,
        op: str,
        inputs: list[str],
        name: str,
        shape: tuple[int, ...],
        moments: Moments,
        *,
        output: str = "",
        **attributes: Any,
    ) -> str:
        from onnx import helper

        output = output or name
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        self.shapes[output], self.moments[output] = shape, moments
        return output


def cut(drawing: Drawing, inputs: Sequence[str], outputs: Sequence[str]) -> Drawing:
    """The part of the drawing that makes `outputs` from `inputs`, with the parameters and constants it reads."""
    needed, nodes = set(outputs), []
    for node in reversed(drawing.nodes):
        if node.output[0] in needed and node.output[0] not in inputs:
            nodes.append(node)
            needed.update(node.input)
    parameters = {name: parameter for name, parameter in drawing.parameters.items() if name in needed}
    constants = {name: value for name, value in drawing.constants.items() if name in needed}
    return replace(drawing, nodes=nodes[::-1], parameters=parameters, constants=constants)


def to_model(
    drawing: Drawing,
    name: str,
    weights: "dict[str, np.ndarray[Any, Any]]",
    inputs: Iterable[str],
    outputs: Iterable[str],
) -> "onnx.ModelProto":
    """The drawing with its weights as a checked ONNX model whose batch is the symbolic dimension `N`."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def value(tensor: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [BATCH, *drawing.shapes[tensor]])

    constants = {
        key: np.array(constant, np.int64 if isinstance(constant, tuple) else np.float32)
        for key, constant in drawing.constants.items()
    }
    graph = helper.make_graph(
        drawing.nodes,
        name,
        [value(tensor) for tensor in inputs],
        [value(tensor) for tensor in outputs],
        [numpy_helper.from_array(array, key) for key, array in (weights | constants).items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="fpgasim")
    onnx.checker.check_model(model)
    return model
