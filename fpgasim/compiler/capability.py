"""What a lowering asks of a node, and how it says no."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fpgasim.graph import Graph, Node
from fpgasim.npu import Device, Layer

UnsupportedCode = Literal["unsupported-op", "unsupported-attr", "unsupported-dtype", "dynamic-shape", "too-large"]
Array = npt.NDArray[Any]


class Unsupported(Exception):
    """The engine cannot compute a node: `code` is one of five reasons, `message` says what is in the way."""

    def __init__(self, code: UnsupportedCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, eq=False)
class Request:
    """A node that is to run on `device`, with checked access to what it reads; every method may raise Unsupported."""

    graph: Graph
    node: Node
    device: Device

    def refuse(self, message: str) -> Unsupported:
        return Unsupported("unsupported-attr", f"{self.node.op_type}: {message}")

    def attribute(self, name: str, default: Any) -> Any:
        return self.node.attributes.get(name, default)

    def has_input(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] != ""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a float32 tensor with two or four dimensions."""
        tensor = self.graph.tensor(name)
        if tensor.dtype != np.float32:
            raise Unsupported("unsupported-dtype", f"tensor {name!r} is {tensor.dtype}; the engine takes float32")
        if tensor.shape is None:
            raise Unsupported("dynamic-shape", f"the rank of tensor {name!r} is not known before the run")
        dims = tuple(dim for dim in tensor.shape if isinstance(dim, int))
        if len(dims) < len(tensor.shape):
            known = ", ".join("?" if dim is None else str(dim) for dim in tensor.shape)
            raise Unsupported("dynamic-shape", f"tensor {name!r} has shape ({known}), not known before the run")
        if len(dims) not in (2, 4) or min(dims) < 1:
            raise self.refuse(f"tensor {name!r} has shape {dims}; the engine takes (N, C) and (N, C, H, W)")
        return dims

    def activation(self, index: int, rank: int | None = None) -> str:
        """The name of an input that is computed or fed, after a check of its dtype and shape."""
        name = self.node.inputs[index]
        if self.graph.constant(name) is not None:
            raise self.refuse(f"input {index}, {name!r}, is a constant; the engine takes a tensor there")
        shape = self.shape(name)
        if rank is not None and len(shape) != rank:
            raise self.refuse(f"input {index}, {name!r}, has shape {shape}; it needs {rank} dimensions")
        return name

    def constant(self, index: int, what: str) -> Array:
        """An input that must be a constant, of any dtype."""
        value = self.graph.constant(self.node.inputs[index])
        if value is None:
            raise self.refuse(f"{what} {self.node.inputs[index]!r} is computed in the run; the engine needs a constant")
        return value

    def weights(self, index: int, what: str) -> npt.NDArray[np.float32]:
        value = self.constant(index, what)
        if value.dtype != np.float32:
            raise Unsupported("unsupported-dtype", f"{what} {self.node.inputs[index]!r} is {value.dtype}, not float32")
        return value

    def channels(self, index: int, what: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """A constant that broadcasts over (N, C) or (N, C, H, W) `shape` along the channels alone: (1,) or (C,)."""
        value = self.weights(index, what)
        dims = (1,) * (len(shape) - value.ndim) + value.shape
        along = dims[1] if len(dims) == len(shape) else 0
        if along not in (1, shape[1]) or math.prod(dims) != along:
            raise self.refuse(f"{what} has shape {value.shape}; over {shape} one value, or one a channel, would do")
        return value.reshape(-1)


def check_size(layer: Layer, device: Device) -> None:
    """Raises Unsupported("too-large") for a layer that no division into stripes of rows makes fit.

    What cannot be divided: the input rows under one row of windows (a reshape needs the whole image) and one row of
    output vectors, which must fit in the initial VRF; and the matrix tiles of one native row of outputs, which must
    fit in the MRF, since a sum continued in a second pass would be rounded between the two. A systolic array streams
    everything from DRAM in folds.
    """
    if device.engine == "systolic":
        return

    def vectors(channels: int) -> int:
        return -(-channels // device.native_dim)

    _, height, width, channels = layer.in_shape
    rows = height if layer.head == "reshape" else 1
    if layer.window is not None:
        rows = min(height, layer.window.dilation[0] * (layer.window.kernel[0] - 1) + 1)
    for what, needed in (
        (f"{rows} input rows of {width} pixels and {channels} channels", rows * width * vectors(channels)),
        (f"one output row of {layer.out_shape[2]} pixels", layer.out_shape[2] * vectors(layer.out_shape[3])),
    ):
        if needed > device.initial_vrf:
            raise Unsupported("too-large", f"{what} take {needed} vectors, the initial VRF holds {device.initial_vrf}")
    if layer.head in ("conv", "matmul"):
        taps = math.prod(layer.window.kernel) if layer.window is not None else 1
        tiles = vectors(taps * channels) if layer.packing == "window" else taps * vectors(channels)
        if tiles > device.mrf_tiles:
            raise Unsupported("too-large", f"one row of outputs takes {tiles} tiles, the MRF holds {device.mrf_tiles}")
