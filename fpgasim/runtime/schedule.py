"""The order of work of a Program, decided before the first run: operations on arrays whose places are known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fpgasim.compiler.fusion import reads
from fpgasim.kernels.contract import (
    Array,
    Backend,
    Float32Array,
    Operand,
    Pointwise,
    Step,
    Unquantized,
    Window,
    element_table,
)
from fpgasim.kernels.pointwise import FP16_MAX
from fpgasim.npu import Layer, Stage
from fpgasim.npu.program import Program, nhwc_shape
from fpgasim.numerics.tensors import code_dtype
from fpgasim.runtime.arena import Layout, Slot, lay_out

OperationKind = Literal[
    "enter", "quantize", "unfold", "matrix", "depthwise", "pool", "pointwise", "concat", "reshape", "upsample"
]
#: What an operation does on the arrays of a run; returns how many values saturated.
Work = Callable[[], int]
Feeds = dict[str, Float32Array]
#: What a matrix layer reads: a tensor, or the windows of it that are unrolled.
_Key = tuple[str, Window | None]


@dataclass(frozen=True)
class Operation:
    """One call of a kernel. `bind` makes the work out of the arrays of all slots and what is fed.

    Saturations are counted under `name`, that of a layer or of the tensor that enters.
    """

    kind: OperationKind
    name: str
    bind: Callable[[Sequence[Array], Feeds], Work]


@dataclass(frozen=True)
class Schedule:
    """`operations` in order, their arrays, and the slot of each tensor that was asked for."""

    operations: tuple[Operation, ...]
    layout: Layout
    results: Mapping[str, int]


def make_schedule(program: Program, wanted: Collection[str], kernels: Backend, threads: int) -> Schedule:
    """The schedule of `program` that leaves the tensors `wanted` in their slots."""
    planner = _Planner(program, frozenset(wanted), kernels, threads)
    for name in program.inputs:
        planner.enter(name)
    for layer in program.layers:
        planner.layer(layer)
    for name in wanted:
        planner.slots[planner.values[name]].last = len(planner.operations)
    return Schedule(
        tuple(planner.operations), lay_out(planner.slots), {name: planner.values[name] for name in wanted}
    )


class _Planner:
    """Collects operations and slots; `values` says in which slot a tensor is, NHWC and of the pointwise type."""

    def __init__(self, program: Program, wanted: frozenset[str], kernels: Backend, threads: int) -> None:
        self.program, self.wanted, self.kernels, self.threads = program, wanted, kernels, threads
        self.operations: list[Operation] = []
        self.slots: list[Slot] = []
        self.values: dict[str, int] = {}
        #: What the matrix unit reads: a tensor, or its unrolled windows, quantized once for all layers that read it.
        self.blocks: dict[_Key, _Blocks] = {}
        self.unrolled: dict[_Key, int] = {}
        self.matrix_readers = Counter(
            _read_by_matrix(layer) for layer in program.layers if layer.head in ("conv", "matmul")
        )
        self.readers = Counter(name for layer in program.layers for name in reads(layer))

    def enter(self, name: str) -> None:
        n, h, w, c = nhwc_shape(self.program.shapes[name])
        to = self.new((n, h, w, c))
        kernels, pointwise, threads = self.kernels, self.program.numbers.pointwise, self.threads

        def bind(arrays: Sequence[Array], feeds: Feeds) -> Work:
            out = arrays[to]
            return lambda: kernels.enter(feeds[name].reshape(n, c, h, w), pointwise, threads, out)[1]

        self.add("enter", name, bind, [to])
        self.values[name] = to

    def layer(self, layer: Layer) -> None:
        """The layer's head, then its stages; what is read later or wanted gets a slot."""
        names = [layer.head_output, *(stage.output for stage in layer.stages)]
        last = {name: i - 1 for i, name in enumerate(names)}
        kept = {i: name for name, i in last.items() if name in self.wanted or name == layer.output}
        if layer.head in ("conv", "matmul"):
            results = self.results_of(layer, kept)
            self.matrix(layer, results)
        elif layer.head == "pointwise":
            kept.pop(-1, None)
            source = self.values[layer.inputs[0]]
            results = self.results_of(layer, kept, source if self.dies(layer.inputs[0], layer) else None)
            self.chain(layer, source, results)
        else:
            results = self.results_of(layer, kept)
            head = results[len(layer.stages) - 1]
            self.head(layer, head)
            if layer.stages:
                self.chain(layer, head, results)
        self.values.update((kept[i], slot) for i, slot in results.items())
        self.readers.subtract(reads(layer))

    def results_of(self, layer: Layer, kept: Mapping[int, str], reuse: int | None = None) -> dict[int, int]:
        """A slot for each result that is kept; the last one may overwrite `reuse`."""
        return {
            i: reuse if name == layer.output and reuse is not None else self.new(layer.out_shape)
            for i, name in kept.items()
        }

    def dies(self, name: str, layer: Layer) -> bool:
        """Whether nobody needs tensor `name` after `layer`, which reads it once."""
        return self.readers[name] == 1 and name not in self.wanted and name in self.values

    def new(self, shape: tuple[int, ...], dtype: Any = np.float32) -> int:
        now = len(self.operations)
        self.slots.append(Slot(shape, np.dtype(dtype), now, now))
        return len(self.slots) - 1

    def add(
        self,
        kind: OperationKind,
        name: str,
        bind: Callable[[Sequence[Array], Feeds], Work],
        uses: Collection[int],
    ) -> None:
        for slot in uses:
            self.slots[slot].last = len(self.operations)
        self.operations.append(Operation(kind, name, bind))

    def chain(self, layer: Layer, source: int, results: Mapping[int, int]) -> None:
        kernels, pointwise, threads = self.kernels, self.program.numbers.pointwise, self.threads
        steps_of, operands = self.steps(layer.stages)

        def bind(arrays: Sequence[Array], _: Feeds) -> Work:
            made = {i: _rows(arrays[slot]) for i, slot in results.items()}
            args = (_rows(arrays[source]), steps_of(arrays), made, pointwise, False, threads)
            return lambda: kernels.chain(*args)

        self.add("pointwise", layer.name, bind, [source, *results.values(), *operands])

    def steps(self, stages: Sequence[Stage]) -> tuple[Callable[[Sequence[Array]], list[Step]], list[int]]:
        """What makes the kernels' steps of `stages` out of the arrays, and the slots that they read."""
        program = self.program
        slots = [self.values.get(stage.operand or "") for stage in stages]

        def make(arrays: Sequence[Array]) -> list[Step]:
            steps = []
            for stage, slot in zip(stages, slots, strict=True):
                operand = None if slot is None else _rows(arrays[slot])
                if stage.operand is not None and slot is None:
                    operand = program.vector(stage.operand)
                kind = "add" if stage.kind == "bias" else stage.kind
                steps.append(Step(kind, operand, stage.swapped, stage.low, stage.high))
            return steps

        return make, [slot for slot in slots if slot is not None]

    def matrix(self, layer: Layer, results: Mapping[int, int]) -> None:
        numbers, kernels, threads = self.program.numbers, self.kernels, self.threads
        weight = self.program.operand(layer.weight or "")
        key = _read_by_matrix(layer)
        window = layer.window if layer.window is not None and key[1] is None else Window((1, 1))
        read, operand_of = self.operand(layer)
        steps_of, operands = self.steps(layer.stages)

        def bind(arrays: Sequence[Array], _: Feeds) -> Work:
            made = {i: _rows(arrays[slot]) for i, slot in results.items()}
            args = (operand_of(arrays), weight, window, layer.groups, numbers.accumulator, numbers.order)
            steps = steps_of(arrays)
            return lambda: kernels.layer(*args, steps, made, numbers.pointwise, threads)

        self.add("matrix", layer.name, bind, [*read, *results.values(), *operands])

    def operand(self, layer: Layer) -> tuple[list[int], Callable[[Sequence[Array]], Operand | Unquantized]]:
        """The slots of the layer's input and what makes the input of them.

        Numbers that one layer reads are quantized on the way into its kernel, those that several read once before.
        """
        fmt, key = self.program.numbers.format, _read_by_matrix(layer)
        if key not in self.unrolled:
            self.unrolled[key] = self.unroll(layer, key[1])
        source = self.unrolled[key]
        if self.matrix_readers[key] == 1:
            return [source], lambda arrays: Unquantized(arrays[source], fmt)
        if key not in self.blocks:
            self.blocks[key] = self.quantize(layer, source)
        blocks = self.blocks[key]
        return blocks.slots, blocks.operand

    def unroll(self, layer: Layer, window: Window | None) -> int:
        """The slot of the layer's input, or of its windows laid out one after the other, each in whole blocks."""
        source = self.values[layer.inputs[0]]
        if window is None:
            return source
        n, height, width, channels = layer.in_shape
        block = self.program.numbers.format.block
        row = -(-math.prod(window.kernel) * channels // block) * block
        to = self.new((n, *window.output_size(height, width), row))
        kernels, threads = self.kernels, self.threads

        def bind(arrays: Sequence[Array], _: Feeds) -> Work:
            return lambda: kernels.unfold(arrays[source], window, threads, arrays[to]).size * 0

        self.add("unfold", layer.name, bind, [source, to])
        return to

    def quantize(self, layer: Layer, source: int) -> _Blocks:
        fmt, kernels = self.program.numbers.format, self.kernels
        *image, channels = self.slots[source].shape
        count = -(-channels // fmt.block)
        codes = self.new((*image, count * fmt.block), code_dtype(fmt))
        exponents = self.new((*image, count), np.int16)
        table, fraction_bits = element_table(fmt)
        mantissas = codes if table is None else self.new(self.slots[codes].shape, table.dtype)
        blocks = _Blocks(mantissas, None if fmt.is_fp32 else exponents, fmt.block, fraction_bits, channels)

        def bind(arrays: Sequence[Array], _: Feeds) -> Work:
            rows, out = _rows(arrays[source]), (_rows(arrays[codes]), _rows(arrays[exponents]))

            def work() -> int:
                kernels.quantize(rows, fmt, "even", 0, out)
                if table is not None:
                    np.take(table, arrays[codes], out=arrays[mantissas], mode="clip")
                return 0

            return work

        self.add("quantize", layer.name, bind, [source, codes, exponents, mantissas])
        return blocks

    def head(self, layer: Layer, to: int) -> None:
        kernels, numbers, threads = self.kernels, self.program.numbers, self.threads
        pointwise: Pointwise = numbers.pointwise
        sources = [self.values[name] for name in layer.inputs]
        window, first = layer.window or Window((1, 1)), sources[0]
        kind: OperationKind
        match layer.head:
            case "depthwise":
                kind, taps = "depthwise", self.program.vector(layer.weight or "")

                def call(x: Float32Array, out: Float32Array) -> int:
                    kernels.depthwise(x, taps, window, pointwise, threads, out)
                    return _at_limit(out, pointwise)

            case "max_pool":
                kind = "pool"

                def call(x: Float32Array, out: Float32Array) -> int:
                    kernels.max_pool(x, window, threads, out)
                    return 0

            case "average_pool":
                kind = "pool"

                def call(x: Float32Array, out: Float32Array) -> int:
                    kernels.average_pool(x, window, pointwise, layer.count_padding, threads, out)
                    return _at_limit(out, pointwise)

            case "reshape":
                kind = "reshape"

                def call(x: Float32Array, out: Float32Array) -> int:  # ONNX's order: channel, row, column
                    n, height, width, channels = x.shape
                    kernels.leave(x, threads, out.reshape(n, channels, height, width))
                    return 0

            case "upsample":
                kind, (down, right) = "upsample", layer.repeat

                def call(x: Float32Array, out: Float32Array) -> int:
                    n, height, width, channels = x.shape
                    out.reshape(n, height, down, width, right, channels)[:] = x[:, :, None, :, None]
                    return 0

            case _:
                assert layer.head == "concat"

                def join(arrays: Sequence[Array], _: Feeds) -> Work:
                    parts = [arrays[slot] for slot in sources]
                    return lambda: np.concatenate(parts, axis=3, out=arrays[to]).size * 0

                self.add("concat", layer.name, join, [*sources, to])
                return

        self.add(kind, layer.name, lambda arrays, _: lambda: call(arrays[first], arrays[to]), [first, to])


def _read_by_matrix(layer: Layer) -> _Key:
    return layer.inputs[0], layer.window if layer.packing == "window" else None


@dataclass(frozen=True)
class _Blocks:
    """The slots of an operand of the matrix unit; see `contract.Operand`."""

    mantissas: int
    exponents: int | None
    block: int
    fraction_bits: int
    channels: int

    @property
    def slots(self) -> list[int]:
        return [self.mantissas] if self.exponents is None else [self.mantissas, self.exponents]

    def operand(self, arrays: Sequence[Array]) -> Operand:
        exponents = None if self.exponents is None else arrays[self.exponents]
        return Operand(arrays[self.mantissas], exponents, self.block, self.fraction_bits, self.channels)


def _rows(array: Array) -> Array:
    """An image as (pixels, C), a view."""
    return array.reshape(-1, array.shape[-1])


def _at_limit(x: Float32Array, pointwise: Pointwise) -> int:
    """How many elements lie at ±65504, where fp16 saturates."""
    if pointwise != "fp16" or (x.max() < FP16_MAX and x.min() > -FP16_MAX):
        return 0
    return int(np.count_nonzero(np.abs(x) == FP16_MAX))
