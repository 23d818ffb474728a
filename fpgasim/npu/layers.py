"""What one FPGA layer is. The compiler makes layers, the runtime executes them, timing counts them.

Inside a segment images are NHWC; a tensor with two dimensions (N, C) counts as (N, 1, 1, C). A layer is one pass
through the engine: a head (matrix unit, pool, or nothing) and the pointwise stages chained behind it. Every stage
rounds once to the pointwise type, so fusing stages into a layer cannot change a bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fpgasim.kernels.contract import Window

Head = Literal["conv", "depthwise", "matmul", "max_pool", "average_pool", "concat", "reshape", "upsample", "pointwise"]
StageKind = Literal["bias", "add", "mul", "sub", "max", "relu", "clip", "sigmoid", "tanh"]
Packing = Literal["channel", "window"]
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Stage:
    """One pointwise step: the ONNX tensor `output` from the value in the pipeline and, with two operands, `operand`.

    `operand` names a tensor of the segment or a constant of it. `swapped` puts the operand first (sub).
    `low` and `high` bound a clip, as values of the pointwise type.
    """

    kind: StageKind
    output: str
    operand: str | None = None
    swapped: bool = False
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Layer:
    """One layer of a segment.

    `inputs` are ONNX tensors the head reads; `head_output` is the tensor the head makes and `output` the last one,
    after the stages. A node of several steps (a bias; a batch norm's mul and add) gives all of them its output's
    name, which means the last. `nodes` are the ONNX nodes it computes. `weight` names a constant of the Segment.
    `in_shape` and `out_shape` are NHWC; a concat also says how many channels each of its inputs
    has, an upsample how often it repeats each row and column.
    """

    name: str
    head: Head
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    head_output: str
    in_shape: Shape
    out_shape: Shape
    stages: tuple[Stage, ...] = ()
    window: Window | None = None
    groups: int = 1
    weight: str | None = None
    packing: Packing = "channel"
    count_padding: bool = False
    input_channels: tuple[int, ...] = ()
    repeat: tuple[int, int] = (1, 1)

    @property
    def output(self) -> str:
        return self.stages[-1].output if self.stages else self.head_output

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the head, without padding to the native dimension."""
        n, oh, ow, outputs = self.out_shape
        if self.head == "matmul":
            return n * oh * ow * outputs * self.in_shape[3]
        if self.head in ("conv", "depthwise"):
            assert self.window is not None
            kh, kw = self.window.kernel
            return n * oh * ow * outputs * kh * kw * (self.in_shape[3] // self.groups)
        return 0

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every ONNX tensor the layer makes, in order. A pointwise head makes none: its output is its input."""
        made = dict.fromkeys((self.head_output, *(stage.output for stage in self.stages)))
        return tuple(name for name in made if self.head != "pointwise" or name != self.head_output)
