"""Layers made ready for emission: their stages as passes through the MFUs, their constants as vectors of a memory."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from fpgasim.compiler.fusion import reads
from fpgasim.compiler.matrices import Matrix, matrix_of
from fpgasim.kernels.contract import Array, Float32Array, Pointwise, Window
from fpgasim.kernels.pointwise import FP16_MAX, round_to
from fpgasim.npu.isa import Mem, addsub_vrf, multiply_vrf
from fpgasim.npu.layers import Layer, Shape, Stage
from fpgasim.npu.mapping import STAGE_UNIT, mfus_of
from fpgasim.npu.segment import Segment, nhwc_shape

#: Heads that do one chain for each position of their window, with the sum so far in AddSubVrf_0.
TAPPED = frozenset({"depthwise", "max_pool", "average_pool"})
#: Heads whose windows or rows are read again and again, so that they need the image in InitialVrf.
WINDOWED = TAPPED | {"conv", "reshape"}


@dataclass(frozen=True)
class Constant:
    """Vectors `first` … `first` + `vectors` − 1 of the constants of `mem`."""

    mem: Mem
    first: int
    vectors: int


@dataclass(frozen=True)
class Step:
    """A stage in a pass: with an operand in `mem`, which is a constant or a tensor of the segment."""

    stage: Stage
    mem: Mem | None = None
    constant: Constant | None = None
    tensor: str | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """A layer ready for emission.

    `passes` are its stages as often as its vectors go through the MFUs; the first rides on the head's (last) chain.
    Where the head only moves elements (`raw`), it has no stages, and its result lies in InitialVrf between the two.
    `taps` are constants of the head by tap: factors of a depthwise convolution, and what a pool begins with; `counts`
    the factors of an average by how many positions it is of.
    """

    layer: Layer
    passes: tuple[tuple[Step, ...], ...]
    raw: bool = False
    matrix: Matrix | None = None
    taps: tuple[Constant, ...] = ()
    counts: Mapping[int, Constant] = field(default_factory=dict)

    @property
    def window(self) -> Window:
        return self.layer.window or Window((1, 1))

    @property
    def head_input(self) -> str:
        return self.layer.inputs[0]

    def steps(self) -> Iterator[Step]:
        for steps in self.passes:
            yield from steps

    def temporaries(self) -> frozenset[Mem]:
        """Memories in which the task keeps sums, or may have to bring operands."""
        sums = {addsub_vrf(0)} if self.layer.head in TAPPED else set()
        return frozenset(sums | {step.mem for step in self.steps() if step.tensor is not None and step.mem is not None})


class Constants:
    """The constant vectors of every MFU's memories, each kept once."""

    def __init__(self, native: int) -> None:
        self.native = native
        self.vectors: dict[Mem, list[Float32Array]] = defaultdict(list)
        self._found: dict[tuple[Mem, bytes], Constant] = {}

    def add(self, mem: Mem, values: Float32Array) -> Constant:
        """`values`, one a channel, as vectors filled up with zeros."""
        n = self.native
        padded = np.zeros(-(-len(values) // n) * n, np.float32)
        padded[: len(values)] = values
        key = (mem, padded.tobytes())
        if key not in self._found:
            have = self.vectors[mem]
            self._found[key] = Constant(mem, len(have), len(padded) // n)
            have.extend(padded.reshape(-1, n))
        return self._found[key]


def make_tasks(segment: Segment) -> tuple[list[Task], Constants]:
    """The tasks of `segment` in order, and their constants."""
    native = segment.device.native_dim
    constants, unclean = Constants(native), set[str]()
    shared: dict[tuple[object, ...], Matrix] = {}
    tasks = []
    for layer in _with_clean_tails(segment, unclean):
        task = _task(segment, layer, constants)
        if task.matrix is not None:  # the steps of a recurrence have the same weights
            task = dataclasses.replace(task, matrix=shared.setdefault(_contents(task.matrix), task.matrix))
        tasks.append(task)
    return tasks, constants


def _contents(matrix: Matrix) -> tuple[object, ...]:
    """What makes two matrices one."""
    exponents = b"" if matrix.tiles.exponents is None else matrix.tiles.exponents.tobytes()
    digests = (hashlib.blake2b(part).digest() for part in (matrix.tiles.mantissas.tobytes(), exponents))
    return matrix.bands, matrix.rows, *digests


def readers_halo(task: Task) -> tuple[int, int, int, int]:
    """How far the windows of a convolution reach beyond the image: (top, left, bottom, right)."""
    if task.layer.head != "conv":
        return 0, 0, 0, 0
    window, (_, height, width, _), (_, oh, ow, _) = task.window, task.layer.in_shape, task.layer.out_shape
    far = [
        max(0, (outputs - 1) * s + d * (k - 1) - p - (size - 1))
        for outputs, s, d, k, p, size in zip(
            (oh, ow), window.stride, window.dilation, window.kernel, window.pads, (height, width), strict=False
        )
    ]
    return window.pads[0], window.pads[1], far[0], far[1]


def _with_clean_tails(segment: Segment, unclean: set[str]) -> Iterator[Layer]:
    """The layers, such that no block that straddles the end of the channels holds anything but zeros behind them.

    A sigmoid makes 1/2 out of the zeros that fill up a vector, and a clip its bound. Where a matrix product reads the
    result, a multiplication by ones and zeros follows.
    """
    block = segment.numbers.format.block
    readers = {
        layer.inputs[0]
        for layer in segment.layers
        if layer.head in ("conv", "matmul") and layer.in_shape[3] % block and layer.packing == "channel"
    }
    for layer in segment.layers:
        head_clean = (
            layer.head in ("conv", "matmul")
            or (layer.head != "reshape" and layer.inputs[-1] not in unclean)
            or layer.head == "reshape"
        )
        clean = head_clean
        for stage in layer.stages:
            if stage.kind == "sigmoid" or (stage.kind == "clip" and not stage.low <= 0 <= stage.high):
                clean = False
            clean = clean and stage.operand not in unclean
        if not clean and layer.output in readers:
            ones = Stage("mul", layer.output, ONES)
            layer, clean = dataclasses.replace(layer, stages=(*layer.stages, ones)), True
        if not clean:
            unclean.add(layer.output)
        yield layer


#: Names the operand of a stage that clears what lies behind the channels.
ONES = "\0ones"


def _task(segment: Segment, layer: Layer, constants: Constants) -> Task:
    mfus = segment.device.mfus
    matrix = matrix_of(layer, segment) if layer.head in ("conv", "matmul") else None
    raw = layer.head in ("concat", "reshape") or (matrix is not None and matrix.by_group)
    units, _ = mfus_of(layer, mfus)
    passes: list[list[Step]] = [[]]
    for stage, mfu in zip(layer.stages, units, strict=True):
        while len(passes) <= mfu // mfus:
            passes.append([])
        passes[-1].append(_step(segment, layer, stage, mfu % mfus, constants))
    if raw and layer.stages:
        passes.insert(0, [])
    taps: list[Constant] = []
    counts: dict[int, Constant] = {}
    outputs = layer.out_shape[3]
    if layer.head == "depthwise":
        weight = segment.vector(layer.weight or "")
        taps = [constants.add(multiply_vrf(0), tap) for tap in weight.reshape(-1, outputs)]
    elif layer.head in TAPPED:
        start = lowest(segment.numbers.pointwise) if layer.head == "max_pool" else 0.0
        taps = [constants.add(addsub_vrf(0), np.full(outputs, start, np.float32))]
    if layer.head == "average_pool":
        for count in sorted(set(position_counts(layer).reshape(-1).tolist())):
            factor = round_to(np.array([1.0 / max(count, 1)]), segment.numbers.pointwise)
            counts[count] = constants.add(multiply_vrf(0), np.repeat(factor, outputs))
    return Task(layer, tuple(map(tuple, passes)), raw, matrix, tuple(taps), counts)


def lowest(pointwise: Pointwise) -> float:
    """What no value of the pointwise type is below."""
    return -FP16_MAX if pointwise == "fp16" else -math.inf


def _step(segment: Segment, layer: Layer, stage: Stage, mfu: int, constants: Constants) -> Step:
    if stage.operand is None:
        return Step(stage)
    mem = multiply_vrf(mfu) if STAGE_UNIT[stage.kind] == "multiply" else addsub_vrf(mfu)
    channels = layer.out_shape[3]
    if stage.operand == ONES:
        return Step(stage, mem, constants.add(mem, np.ones(channels, np.float32)))
    if stage.operand in segment.constants:
        values = np.broadcast_to(segment.vector(stage.operand).reshape(-1), channels)
        return Step(stage, mem, constants.add(mem, values))
    return Step(stage, mem, tensor=stage.operand)


def inside(outputs: int, stride: int, offset: int, size: int) -> range:
    """The outputs whose tap at `offset` (from the first pixel, negative in the padding) lies inside the image."""
    low = max(0, -(offset // stride))
    high = min(outputs, (size - 1 - offset) // stride + 1)
    return range(low, max(low, high))


def position_counts(layer: Layer) -> Array:
    """How many positions the average of each output (OH, OW) is of."""
    window = layer.window
    assert window is not None
    if layer.count_padding:
        return np.full(layer.out_shape[1:3], math.prod(window.kernel))
    rows, columns = (
        np.sum(
            [[y in inside(outputs, s, k * d - p, size) for y in range(outputs)] for k in range(kernel)],
            axis=0,
        )
        for outputs, s, d, p, size, kernel in zip(
            layer.out_shape[1:3],
            window.stride,
            window.dilation,
            window.pads,
            layer.in_shape[1:3],
            window.kernel,
            strict=False,
        )
    )
    return np.outer(rows, columns)


@dataclass
class Tensor:
    """What the segment does with a tensor: which layers read it, for what."""

    shape: Shape
    made: int  # the layer that makes it; −1 where it is fed
    heads: list[int] = field(default_factory=list)
    operands: list[tuple[int, Mem]] = field(default_factory=list)
    is_output: bool = False

    @property
    def used(self) -> list[int]:
        return [*self.heads, *(layer for layer, _ in self.operands)]


def tensors_of(segment: Segment, tasks: list[Task]) -> dict[str, Tensor]:
    """Every tensor that lies in a memory, by name."""
    found = {name: Tensor(nhwc_shape(segment.shapes[name]), -1) for name in segment.inputs}
    for i, task in enumerate(tasks):
        for name in task.layer.inputs:
            found[name].heads.append(i)
        for step in task.steps():
            if step.tensor is not None and step.mem is not None:
                found[step.tensor].operands.append((i, step.mem))
        found[task.layer.output] = Tensor(task.layer.out_shape, i)
    for name in segment.outputs:
        found[name].is_output = True
    assert all(name in found for layer in segment.layers for name in reads(layer) if name not in segment.constants)
    return found
