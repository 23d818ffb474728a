"""Small networks, compiled for a core: between them every kind of layer and every lowering."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

import fpgasim as fs
from fpgasim.compiler import emit, lower
from fpgasim.npu import Device, Numbers
from fpgasim.npu.programs import Program

Array = np.ndarray


class Net:
    """An ONNX graph in its text form, and its weights."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.weights: dict[str, Array] = {}
        self.lines: list[str] = []

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = (self.random.standard_normal(shape) * scale).astype(np.float32)
        return name

    def op(self, operation: str, *inputs: str, attributes: str = "") -> str:
        made = f"t{len(self.lines)}"
        self.lines.append(f"{made} = {operation}{f' <{attributes}>' if attributes else ''} ({', '.join(inputs)})")
        return made

    def conv(self, x: str, channels: int, outputs: int, kernel: int = 1, pad: int = 0, stride: int = 1) -> str:
        attributes = f"pads = [{pad}, {pad}, {pad}, {pad}], strides = [{stride}, {stride}]"
        w = self.weight(outputs, channels, kernel, kernel, scale=(2 / channels) ** 0.5 / kernel)
        return self.op("Conv", x, w, self.weight(outputs, scale=0.1), attributes=attributes)

    def dense(self, x: str, columns: int, rows: int) -> str:
        return self.op("Gemm", x, self.weight(columns, rows, scale=columns**-0.5), self.weight(rows, scale=0.1))

    def program(self, device: Device, numbers: Numbers, inputs: Mapping[str, tuple[int, ...]], outputs: int) -> Program:
        """The program; the last `outputs` nodes' results leave."""
        results = [line.split(" = ")[0] for line in self.lines[-outputs:]]
        fed = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in inputs.items())
        text = f"net ({fed}) => ({', '.join(f'float {name}' for name in results)}) {{ {chr(10).join(self.lines)} }}"
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
        for result in model.graph.output:
            result.type.tensor_type.ClearField("shape")
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in self.weights.items())
        for i, node in enumerate(model.graph.node):
            node.name = f"n{i}"
        graph = fs.load(model, optimize=False).bind()
        segment = lower(graph, [node.name for node in graph.nodes], device, numbers)
        return emit(segment, weights="pin", name=device.name)


def dense(device: Device, numbers: Numbers) -> Program:
    """Three layers, sizes no multiples of N, two images."""
    n, net = device.native_dim, Net(1)
    hidden = net.op("Relu", net.dense("x", 2 * n + 3, n + 1))
    hidden = net.op("Tanh", net.dense(hidden, n + 1, 2 * n))
    net.op("Sigmoid", net.dense(hidden, 2 * n, 5))
    return net.program(device, numbers, {"x": (2, 2 * n + 3)}, 1)


def tap_convolution(device: Device, numbers: Numbers) -> Program:
    """3x3 over more than one vector of channels."""
    n, net = device.native_dim, Net(2)
    net.op("Relu", net.conv("x", n + 2, n + 1, 3, 1))
    return net.program(device, numbers, {"x": (1, n + 2, 4, 5)}, 1)


def packed_convolution(device: Device, numbers: Numbers) -> Program:
    """5x5 of stride 2 over so few channels that taps share a vector, where the format lets them."""
    n, net = device.native_dim, Net(3)
    net.op("Relu", net.conv("x", max(2, n // 2), n, 5, 2, 2))
    return net.program(device, numbers, {"x": (1, max(2, n // 2), 6, 5)}, 1)


def window_convolution(device: Device, numbers: Numbers) -> Program:
    """A stem: windows of 3 channels, unrolled."""
    n, net = device.native_dim, Net(4)
    net.op("Relu", net.conv("x", 3, n + 4, 3, 1, 2))
    return net.program(device, numbers, {"x": (1, 3, 9, 8)}, 1)


def residual(device: Device, numbers: Numbers) -> Program:
    """A residual block with a strided shortcut, and a clip."""
    n, net = device.native_dim, Net(5)
    inner = net.op("Relu", net.conv("x", n, n, 3, 1, 2))
    inner = net.conv(inner, n, n + 5, 3, 1)
    short = net.conv("x", n, n + 5, 1, 0, 2)
    both = net.op("Relu", net.op("Add", inner, short))
    net.conv(both, n + 5, 3)
    return net.program(device, numbers, {"x": (1, n, 5, 6)}, 1)


def pools(device: Device, numbers: Numbers) -> Program:
    """A padded max pool, an average pool, a global one."""
    n, net = device.native_dim, Net(6)
    a = net.op("MaxPool", "x", attributes="kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]")
    b = net.op("AveragePool", a, attributes="kernel_shape = [2, 2], pads = [0, 1, 0, 1]")
    net.op("GlobalAveragePool", b)
    return net.program(device, numbers, {"x": (1, n + 3, 7, 6)}, 1)


def depthwise(device: Device, numbers: Numbers) -> Program:
    """A depthwise convolution between two of 1x1, with activations."""
    n, net = device.native_dim, Net(7)
    a = net.op("Relu", net.conv("x", n, n + 2))
    w = net.weight(n + 2, 1, 3, 3, scale=0.3)
    b = net.op("Conv", a, w, net.weight(n + 2, scale=0.1), attributes=f"group = {n + 2}, pads = [1, 1, 1, 1]")
    net.conv(net.op("Relu", b), n + 2, n)
    return net.program(device, numbers, {"x": (1, n, 4, 4)}, 1)


def concatenation(device: Device, numbers: Numbers) -> Program:
    """Channels joined where vectors do not end, as in DenseNet."""
    n, net = device.native_dim, Net(8)
    a = net.op("Relu", net.conv("x", n - 1, n // 2, 3, 1))
    joined = net.op("Concat", "x", a, attributes="axis = 1")
    net.conv(joined, n - 1 + n // 2, n)
    return net.program(device, numbers, {"x": (1, n - 1, 3, 4)}, 1)


def gru(device: Device, numbers: Numbers) -> Program:
    """Two steps of a GRU: z, r, candidate, h' = n + z * (h - n)."""
    n, net, h = device.native_dim, Net(9), "h"
    hidden = n + n // 2
    weights = [net.weight(n, hidden, scale=n**-0.5) for _ in range(3)]
    recurrent = [net.weight(hidden, hidden, scale=hidden**-0.5) for _ in range(3)]
    bias = [net.weight(hidden, scale=0.1) for _ in range(3)]
    for step in ("x", "x2"):
        own = [net.op("Gemm", step, w, b) for w, b in zip(weights, bias, strict=True)]
        z, r = (net.op("Sigmoid", net.op("Add", net.op("MatMul", h, recurrent[g]), own[g])) for g in (0, 1))
        inner = net.op("Mul", r, net.op("MatMul", h, recurrent[2]))
        candidate = net.op("Tanh", net.op("Add", inner, own[2]))
        h = net.op("Add", net.op("Mul", z, net.op("Sub", h, candidate)), candidate)
    return net.program(device, numbers, {"x": (1, n), "x2": (1, n), "h": (1, hidden)}, 1)


def lstm(device: Device, numbers: Numbers) -> Program:
    """Two steps of an LSTM."""
    n, net, h, c = device.native_dim, Net(10), "h", "c"
    weights = [net.weight(n - 2, n, scale=n**-0.5) for _ in range(4)]
    recurrent = [net.weight(n, n, scale=n**-0.5) for _ in range(4)]
    bias = [net.weight(n, scale=0.1) for _ in range(4)]
    for step in ("x", "x2"):
        own = [net.op("Gemm", step, w, b) for w, b in zip(weights, bias, strict=True)]
        sums = [net.op("Add", net.op("MatMul", h, u), v) for u, v in zip(recurrent, own, strict=True)]
        i, f, o = (net.op("Sigmoid", total) for total in sums[:3])
        c = net.op("Add", net.op("Mul", f, c), net.op("Mul", i, net.op("Tanh", sums[3])))
        h = net.op("Mul", o, net.op("Tanh", c))
    return net.program(device, numbers, {"x": (1, n - 2), "x2": (1, n - 2), "h": (1, n), "c": (1, n)}, 1)


#: Every network by name.
NETWORKS: dict[str, Callable[[Device, Numbers], Program]] = {
    made.__name__: made
    for made in (dense, tap_convolution, packed_convolution, window_convolution, residual, pools, depthwise,
                 concatenation, gru, lstm)
}  # fmt: skip


def feeds(program: Program, seed: int = 0) -> dict[str, Array]:
    """Random inputs of `program`."""
    random = np.random.default_rng(seed)
    return {port.name: random.standard_normal(port.shape).astype(np.float32) for port in program.inputs}
