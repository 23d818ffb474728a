"""The matrix layers of a network one by one: quantize, multiply, bias, ReLU."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fpgasim.bench.peers import Call, layer_model, on_onnx_runtime
from fpgasim.bench.timing import medians
from fpgasim.errors import FpgasimError
from fpgasim.graph import Graph
from fpgasim.kernels import Backend, Operand, Window, available
from fpgasim.kernels.contract import Step, Unquantized, rows_operand
from fpgasim.npu import Device, Layer, Numbers
from fpgasim.ops import quantize_rows


@dataclass(frozen=True)
class LayerSpeed:
    """A shape that `count` layers of the network have; rates are multiply-accumulates a second.

    Ours begins with float32 numbers and ends with numbers of the pointwise type, both NHWC; theirs with float32, NCHW.
    """

    shape: str
    count: int
    macs: int
    rate: float
    rate_fp32: float
    rate_int8: float | None


def measure_layers(
    graph: Graph,
    device: Device,
    numbers: Numbers,
    kernels: Backend,
    threads: int = 1,
    rounds: int = 5,
    int8: bool = True,
) -> Iterator[LayerSpeed]:
    """The speed of each shape among the convolutions and products of the bound `graph`, in their order.

    Without `int8`, that of ONNX Runtime's int8 is None.

    Raises FpgasimError where backends differ in a bit on a corner of the image.
    """
    for layer, count in _shapes(graph, device).items():
        check_layer(layer, numbers)
        feeds = {"x": _image(layer).transpose(0, 3, 1, 2).copy()}
        contenders = {
            "ours": our_layer(layer, numbers, kernels, threads)[0],
            "fp32": on_onnx_runtime(layer_model(layer, int8=False), feeds, threads),
        }
        if int8:
            contenders["int8"] = on_onnx_runtime(layer_model(layer, int8=True), feeds, threads)
        seconds = medians(contenders, rounds, threads)
        rates = {name: layer.macs / s for name, s in seconds.items()}
        yield LayerSpeed(_text(layer), count, layer.macs, rates["ours"], rates["fp32"], rates.get("int8"))


def check_layer(layer: Layer, numbers: Numbers) -> None:
    """Raises FpgasimError unless all backends give the reference's bits on a corner of the layer's image."""
    if layer.window is not None:
        sizes = [
            min(size, dilation * (kernel - 1) + 1 + stride)
            for size, dilation, kernel, stride in zip(
                layer.in_shape[1:3], layer.window.dilation, layer.window.kernel, layer.window.stride, strict=True
            )
        ]
        in_shape = (1, sizes[0], sizes[1], layer.in_shape[3])
        out_shape = (1, *layer.window.output_size(*sizes), layer.out_shape[3])
        layer = dataclasses.replace(layer, in_shape=in_shape, out_shape=out_shape)
    results = {}
    for name, kernels in available().items():
        if name != "numba":  # it would compile for as long as everything else here takes; the tests have it
            call, results[name] = our_layer(layer, numbers, kernels, 1)
            call()
            if not np.array_equal(results[name].view(np.uint32), results["reference"].view(np.uint32)):
                raise FpgasimError(f"{name} and reference differ in layer {_text(layer)}; no speed is worth printing")


def our_layer(layer: Layer, numbers: Numbers, kernels: Backend, threads: int) -> tuple[Call, Any]:
    """The layer on `kernels` as a call, and the array that takes its result."""
    rng = np.random.default_rng(1)
    outputs = layer.out_shape[3]
    window = layer.window or Window((1, 1))
    unrolled = layer.packing == "window"
    taps = (1, 1) if unrolled else window.kernel
    channels = layer.in_shape[3] * (math.prod(window.kernel) if unrolled else 1)
    w = _weights(rng, (outputs, *taps, channels), layer.groups, numbers, kernels)
    x, out = _image(layer), np.empty((math.prod(layer.out_shape[:3]), outputs), np.float32)
    steps = [Step("add", np.full(outputs, 0.125, np.float32)), Step("relu")]
    fmt, through = numbers.format, Window((1, 1)) if unrolled else window
    source = Unquantized(x, fmt, window if unrolled else None)

    def call() -> None:
        kernels.layer(
            source, w, through, layer.groups, numbers.accumulator, numbers.order, steps, {1: out},
            numbers.pointwise, threads,
        )  # fmt: skip

    return call, out


def _weights(
    rng: np.random.Generator, shape: tuple[int, ...], groups: int, numbers: Numbers, kernels: Backend
) -> Operand:
    w = rng.standard_normal(shape).astype(np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    for g in range(groups):  # zero outside the group
        own = np.zeros(shape[3], bool)
        own[g * shape[3] // groups : (g + 1) * shape[3] // groups] = True
        w[g * shape[0] // groups : (g + 1) * shape[0] // groups, ..., ~own] = 0
    codes, exponents = quantize_rows(w, numbers.format, kernels=kernels)
    return rows_operand(codes, exponents, numbers.format, shape[3])


def _image(layer: Layer) -> Any:
    return np.maximum(np.random.default_rng(0).standard_normal(layer.in_shape), 0).astype(np.float32)


def _shapes(graph: Graph, device: Device) -> Mapping[Layer, int]:
    """Layers without names, and how often each occurs."""
    from fpgasim.compiler import Unsupported, lower_node

    found: Counter[Layer] = Counter()
    for node in graph.nodes:
        try:
            layer = lower_node(graph, node, device)
        except Unsupported:
            continue
        if layer.head in ("conv", "matmul"):
            bare = dataclasses.replace(layer, name="", nodes=(), inputs=(), head_output="", stages=(), weight=None)
            found[bare] += 1
    return found


def _text(layer: Layer) -> str:
    _, height, width, channels = layer.in_shape
    text = f"{height}x{width}x{channels}-{layer.out_shape[3]}"
    if layer.window is None:
        return text
    text += f" {layer.window.kernel[0]}x{layer.window.kernel[1]}"
    if layer.window.stride != (1, 1):
        text += f"/{layer.window.stride[0]}"
    return text + (f" in {layer.groups} groups" if layer.groups > 1 else "")
