"""Draws a network as an ONNX graph, layer by layer, with its parameters listed beside it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
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
    """One named array that a network needs; `power` is the variance expected of what a statistic describes."""

    shape: tuple[int, ...]
    role: Role
    power: float = 1.0

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
    constants: dict[str, float] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shapes[self.input] = self.input_shape
        self.moments[self.input] = Moments(0.0, self.input_variance)

    def conv(
        self, x: str, name: str, filters: int, kernel: int, *, stride: int = 1, padding: Padding = 0, groups: int = 1
    ) -> str:
        """Convolution without a bias; its weight `<name>.weight` is (filters, channels / groups, kernel, kernel)."""
        weight = self._parameter(f"{name}.weight", (filters, self.shapes[x][0] // groups, kernel, kernel), "weight")
        pads, (height, width) = self._window(x, kernel, stride, padding)
        attributes: dict[str, Any] = {
            "kernel_shape": [kernel] * 2,
            "strides": [stride] * 2,
            "pads": pads,
            "group": groups,
        }
        return self._node("Conv", [x, weight], name, (filters, height, width), self._weighted(x), **attributes)

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

    def global_average_pool(self, x: str, name: str) -> str:
        return self._node("GlobalAveragePool", [x], name, (self.shapes[x][0], 1, 1), self.moments[x])

    def flatten(self, x: str, name: str) -> str:
        return self._node("Flatten", [x], name, (math.prod(self.shapes[x]),), self.moments[x], axis=1)

    def linear(self, x: str, name: str, features: int, *, output: str = "") -> str:
        """Fully connected layer with a bias; its weight `<name>.weight` is (features, inputs)."""
        weight = self._parameter(f"{name}.weight", (features, *self.shapes[x]), "weight")
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

    def _parameter(self, name: str, shape: tuple[int, ...], role: Role, power: float = 1.0) -> str:
        self.parameters[name] = Parameter(shape, role, power)
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


def to_model(
    drawing: Drawing, name: str, weights: "dict[str, np.ndarray[Any, Any]]", outputs: Iterable[str]
) -> "onnx.ModelProto":
    """The drawing with its weights as a checked ONNX model whose batch is the symbolic dimension `N`."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def value(tensor: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [BATCH, *drawing.shapes[tensor]])

    arrays = weights | {key: np.array(constant, np.float32) for key, constant in drawing.constants.items()}
    graph = helper.make_graph(
        drawing.nodes,
        name,
        [value(drawing.input)],
        [value(output) for output in outputs],
        [numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="fpgasim")
    onnx.checker.check_model(model)
    return model
