"""`Segment`: one FPGA segment, ready to run: its layers in order and their constants as the engine keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fpgasim.kernels.contract import Float32Array, Operand
from fpgasim.npu.device import Device
from fpgasim.npu.layers import Layer, Shape
from fpgasim.npu.numbers import Numbers

#: A constant as the engine keeps it.
Packed = Operand | Float32Array


@dataclass(frozen=True, eq=False)
class Segment:
    """One FPGA segment on `device` in `numbers`.

    `constants`, by name: packed weights of the matrix unit as an `Operand`; depthwise taps (KH, KW, O) and what the
    stages read, one value or one a channel, as float32 values of the pointwise type. `inputs` and `outputs` are the
    ONNX tensors that cross the segment's border; `shapes` holds the ONNX shape of these and of every tensor made.
    """

    device: Device
    numbers: Numbers
    layers: tuple[Layer, ...]
    constants: Mapping[str, Packed]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def operand(self, name: str) -> Operand:
        """The packed weights called `name`."""
        found = self.constants[name]
        assert isinstance(found, Operand)
        return found

    def vector(self, name: str) -> Float32Array:
        """The pointwise constant called `name`."""
        found = self.constants[name]
        assert not isinstance(found, Operand)
        return found


def nhwc_shape(shape: tuple[int, ...]) -> Shape:
    """An ONNX shape (N, C, H, W) or (N, C) as the engine sees it: (N, H, W, C) or (N, 1, 1, C)."""
    n, c, *image = shape
    height, width = image or (1, 1)
    return n, height, width, c
