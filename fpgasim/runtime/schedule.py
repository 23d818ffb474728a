"""The order of work of a Segment, decided before the first run: operations on arrays whose places are known."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fpgasim.compiler.fusion import reads
from fpgasim.kernels.contract import (
    Array,
    Backend,
    Codes,
    Float32Array,
    Operand,
    Pointwise,
    Reader,
    Room,
    Step,
    Unquantized,
    Window,
    element_table,
    look_up,
)
from fpgasim.kernels.pointwise import count_at_limit
from fpgasim.npu import Layer, Stage
from fpgasim.npu.segment import Segment, nhwc_shape
from fpgasim.numerics.tensors import code_dtype
from fpgasim.runtime.arena import Layout, Slot, lay_out
from fpgasim.runtime.sharing import folded_layers, grown_concats, quantizes

OperationKind = Literal[
    "enter", "quantize", "matrix", "depthwise", "pool", "pointwise", "concat", "reshape", "upsample"
]
#: What an operation does on the arrays of a run; returns how many values saturated, for each of its names.
Work = Callable[[], tuple[int, ...]]
Feeds = dict[str, Float32Array]


@dataclass(frozen=True)
class Operation:
    """One call of a kernel. `bind` makes the work out of the arrays of all slots and what is fed.

    Saturations are counted under `names`: the layer or the tensor that enters, then a layer that is folded into it.
    """

    kind: OperationKind
    names: tuple[str, ...]
    bind: Callable[[Sequence[Array], Feeds], Work]


@dataclass(frozen=True)
class Schedule:
    """`operations` in order, their arrays, and the slot of each tensor that was asked for."""

    operations: tuple[Operation, ...]
    layout: Layout
    results: Mapping[str, int]


def make_schedule(segment: Segment, wanted: Collection[str], kernels: Backend, threads: int) -> Schedule:
    """The schedule of `segment` that leaves the tensors `wanted` in their slots."""
    planner = _Planner(segment, frozenset(wanted), kernels, threads)
    for name in segment.inputs:
        planner.enter(name)
    for layer in segment.layers:
        planner.layer(layer)
    for name in wanted:
        planner.slots[planner.values[name]].last = len(planner.operations)
    return Schedule(tuple(planner.operations), lay_out(planner.slots), {name: planner.values[name] for name in wanted})


class _Planner:
    """Collects operations and slots; `values` says in which slot a tensor is, NHWC and of the pointwise type."""

    def __init__(self, segment: Segment, wanted: frozenset[str], kernels: Backend, threads: int) -> None:
        self.segment, self.wanted, self.kernels, self.threads = segment, wanted, kernels, threads
        self.operations: list[Operation] = []
        self.slots: list[Slot] = []
        self.values: dict[str, int] = {}
        #: A tensor that several layers of the matrix unit read is quantized once, for all of them.
        self.blocks: dict[str, _Blocks] = {}
        #: A tensor that the layer making it leaves in blocks for those of the matrix unit: how, and in which slot.
        self.codes: dict[str, tuple[Room, int]] = {}
        self.matrix_readers = Counter(
            layer.inputs[0] for layer in segment.layers if quantizes(layer) and layer.packing != "window"
        )
        self.readers = Counter(name for layer in segment.layers for name in reads(layer))
        self.folded = folded_layers(segment, wanted)
        self.grown = grown_concats(segment, wanted, self.folded)
        #: The slots of the concats that grow, by their last one.
        self.grounds: dict[str, int] = {}

    def enter(self, name: str) -> None:
        n, h, w, c = nhwc_shape(self.segment.shapes[name])
        to = self.new((n, h, w, c))
        kernels, pointwise, threads = self.kernels, self.segment.numbers.pointwise, self.threads

        def bind(arrays: Sequence[Array], feeds: Feeds) -> Work:
            out = arrays[to]
            return lambda: (kernels.enter(feeds[name].reshape(n, c, h, w), pointwise, threads, out)[1],)

        self.add("enter", [name], bind, [to])
        self.values[name] = to

    def layer(self, layer: Layer) -> None:
        """The layer's head, then its stages; what is read later or wanted gets a slot."""
        if layer.output in self.folded:
            return
        names = [layer.head_output, *(stage.output for stage in layer.stages)]
        last = {name: i - 1 for i, name in enumerate(names)}
        kept = {i: name for name, i in last.items() if name in self.wanted or name == layer.output}
        if layer.head in ("conv", "matmul"):
            self.leave_codes(layer)
            if layer.output in self.codes and not self.needs_numbers(layer.output):
                del kept[len(layer.stages) - 1]
            results = self.results_of(layer, kept)
            self.matrix(layer, results)
        elif layer.head == "depthwise":
            results = self.results_of(layer, kept)
            self.depthwise(layer, results)
        elif layer.head == "pointwise":
            kept.pop(-1, None)
            source = self.values[layer.inputs[0]]
            results = self.results_of(layer, kept, source if self.dies(layer.inputs[0], layer) else None)
            self.chain(layer, source, results)
        elif layer.head == "concat" and not layer.stages:
            results = {-1: self.concat_slot(layer)}
            self.concat(layer, results[-1])
        else:
            results = self.results_of(layer, kept)
            head = results[len(layer.stages) - 1]
            if layer.head == "concat":
                head = self.concat_slot(layer) if layer.output in self.grown.values() else head
                self.concat(layer, head)
            else:
                self.head(layer, head)
            if layer.stages:
                self.chain(layer, head, results)
        self.values.update((kept[i], slot) for i, slot in results.items())
        self.readers.subtract(reads(layer))
        if layer.inputs[0] in self.folded:
            self.readers.subtract(reads(self.folded[layer.inputs[0]]))

    def results_of(self, layer: Layer, kept: Mapping[int, str], reuse: int | None = None) -> dict[int, int]:
        """A slot for each result that is kept; the last one may overwrite `reuse`."""
        return {
            i: reuse if name == layer.output and reuse is not None else self.new(layer.out_shape)
            for i, name in kept.items()
        }

    def dies(self, name: str, layer: Layer) -> bool:
        """Whether nobody needs tensor `name` after `layer`, which reads it once."""
        return self.readers[name] == 1 and name not in self.wanted and name in self.values

    def new(self, shape: tuple[int, ...], dtype: Any = np.float32, base: int | None = None) -> int:
        now = len(self.operations)
        self.slots.append(Slot(shape, np.dtype(dtype), now, now, base))
        return len(self.slots) - 1

    def add(
        self,
        kind: OperationKind,
        names: Sequence[str],
        bind: Callable[[Sequence[Array], Feeds], Work],
        uses: Collection[int],
    ) -> None:
        for slot in uses:
            self.slots[self.ground(slot)].last = len(self.operations)
        self.operations.append(Operation(kind, tuple(names), bind))

    def chain(self, layer: Layer, source: int, results: Mapping[int, int]) -> None:
        kernels, pointwise, threads = self.kernels, self.segment.numbers.pointwise, self.threads
        steps_of, operands = self.steps(layer.stages)

        def bind(arrays: Sequence[Array], _: Feeds) -> Work:
            made = {i: _rows(arrays[slot]) for i, slot in results.items()}
            args = (_rows(arrays[source]), steps_of(arrays), made, pointwise, False, threads)
            return lambda: (kernels.chain(*args),)

        self.add("pointwise", [layer.name], bind, [source, *results.values(), *operands])

    def leave_codes(self, layer: Layer) -> None:
        """A slot for what `layer` makes in blocks, if others read it so and the kernels have room for that."""
        numbers = self.segment.numbers
        readers = [
            Reader(
                self.segment.operand(reader.weight or ""),
                _window(reader),
                reader.groups,
                numbers.accumulator,
                numbers.order,
            )
            for reader in self.segment.layers
            if quantizes(reader) and reader.packing != "window" and reader.inputs[0] == layer.output
        ]
        n, h, w, c = layer.out_shape
        room = self.kernels.code_room((n, h, w, c), numbers.format, readers) if readers else None
        if room is not None:
            self.codes[layer.output] = room, self.new((room.size,), np.uint8)

    def needs_numbers(self, name: str) -> bool:
        """Whether anybody reads tensor `name` who does not take it in blocks."""
        return name in self.wanted or self.readers[name] > self.matrix_readers[name]

    def steps(self, stages: Sequence[Stage]) -> tuple[Callable[[Sequence[Array]], list[Step]], list[int]]:
        """What makes the kernels' steps of `stages` out of the arrays, and the slots that they read."""
        segment = self.segment
        slots = [self.values.get(stage.operand or "") for stage in stages]

        def make(arrays: Sequence[Array]) -> list[Step]:
            steps = []
            for stage, slot in zip(stages, slots, strict=True):
                operand = None if slot is None else _rows(arrays[slot])
                if stage.operand is not None and slot is None:
                    operand = segment.vector(stage.operand)
                kind = "add" if stage.kind == "bias" else stage.kind
                steps.append(Step(kind, operand, stage.swapped, stage.low, stage.high))
            return steps

        return make, [slot for slot in slots if slot is not None]

    def matrix(self, layer: Layer, results: Mapping[int, int]) -> None:
        numbers, kernels, threads = self.segment.numbers, self.kernels, self.threads
        weight = self.segment.operand(layer.weight or "")
        window = _window(layer)
        left = self.codes.get(layer.output)
        folded = self.folded.get(layer.inputs[0])
        read, operand_of = self.operand(layer)
        steps_of, operands = self.steps(layer.stages)

        def bind(arrays: Sequence[Array], _: Feeds) -> Work:
            made = {i: _rows(arrays[slot]) for i, slot in results.items()}
            args = (operand_of(arrays), weight, window, layer.groups, numbers.accumulator, numbers.order)
            codes = None if left is None else Codes(left[0], arrays[left[1]])
            layer_work = kernels.bind_layer(*args, steps_of(arrays), made, numbers.pointwise, threads, codes)

            def work() -> tuple[int, int]:
                before, after = layer_work()
                return after, before

            return work

        names = [layer.name] if folded is None else [layer.name, folded.name]
        used = [] if left is None else [left[1]]
        self.add("matrix", names, bind, [*read, *results.values(), *operands, *used])

    def operand(self, layer: Layer) -> tuple[list[int], Callable[[Sequence[Array]], Operand | Unquantized | Codes]]:
        """The slots of the layer's input and what makes the input of them.

        Numbers that another layer did not leave in blocks are quantized on the way into the kernel of the one layer
        that reads them; those that several read once before.
        """
        fmt, name = self.segment.numbers.format, layer.inputs[0]
        if name in self.codes and layer.packing != "window":
            room, slot = self.codes[name]
            return [slot], lambda arrays: Codes(room, arrays[slot])
        if name in self.folded:
            folded = self.folded[name]
            source = self.values[folded.inputs[0]]
            steps_of, _ = self.steps(folded.stages)
            return [source], lambda arrays: Unquantized(arrays[source], fmt, steps=steps_of(arrays))
        source = self.values[name]
        if layer.packing == "window":
            return [source], lambda arrays: Unquantized(arrays[source], fmt, layer.window)
        if self.matrix_readers[name] == 1:
            return [source], lambda arrays: Unquantized(arrays[source], fmt)
        if name not in self.blocks:
            self.blocks[name] = self.quantize(layer, source)
        blocks = self.blocks[name]
        return blocks.slots, blocks.operand

    def quantize(self, layer: Layer, source: int) -> _Blocks:
        fmt, kernels = self.segment.numbers.format, self.kernels
        *image, channels = self.slots[source].shape
        count = -(-channels // fmt.block)
        codes = self.new((*image, count * fmt.block), code_dtype(fmt))
        exponents = self.new((*image, count), np.int16)
        table, fraction_bits = element_table(fmt)
        mantissas = codes if table is None else self.new(self.slots[codes].shape, table.dtype)
        blocks = _Blocks(mantissas, None if fmt.is_fp32 else exponents, fmt.block, fraction_bits, channels)

        def bind(arrays: Sequence[Array], _: Feeds) -> Work:
            rows, out = _rows(arrays[source]), (_rows(arrays[codes]), _rows(arrays[exponents]))

            def work() -> tuple[int, ...]:
                kernels.quantize(rows, fmt, "even", 0, out)
                if table is not None:
                    look_up(table, arrays[codes], arrays[mantissas])
                return ()

            return work

        self.add("quantize", [layer.name], bind, [source, codes, exponents, mantissas])
        return blocks

    def concat_slot(self, layer: Layer) -> int:
        """A slot for what a concat makes: where concats grow, the first makes room for the last."""
        last = layer.output
        while last in self.grown:
            last = self.grown[last]
        if last not in self.grounds:
            self.grounds[last] = self.new(nhwc_shape(self.segment.shapes[last]))
        return self.grounds[last] if last == layer.output else self.new(layer.out_shape, base=self.grounds[last])

    def concat(self, layer: Layer, to: int) -> None:
        """Copies what does not lie there yet."""
        sources = [self.values[name] for name in layer.inputs]
        ends = list(itertools.accumulate(layer.input_channels))
        parts = [
            (source, end - count, end)
            for source, count, end in zip(sources, layer.input_channels, ends, strict=True)
            if end > count or self.ground(source) != self.ground(to)
        ]

        def bind(arrays: Sequence[Array], _: Feeds) -> Work:
            copies = [(arrays[to][..., start:end], arrays[source]) for source, start, end in parts]

            def work() -> tuple[int, ...]:
                for target, source in copies:
                    target[:] = source
                return ()

            return work

        self.add("concat", [layer.name], bind, [*sources, to])

    def ground(self, slot: int) -> int:
        """The slot whose memory `slot` is in."""
        base = self.slots[slot].base
        return slot if base is None else base

    def depthwise(self, layer: Layer, results: Mapping[int, int]) -> None:
        kernels, pointwise, threads = self.kernels, self.segment.numbers.pointwise, self.threads
        window, source = layer.window or Window((1, 1)), self.values[layer.inputs[0]]
        taps = self.segment.vector(layer.weight or "")
        steps_of, operands = self.steps(layer.stages)

        def bind(arrays: Sequence[Array], _: Feeds) -> Work:
            made = {i: _rows(arrays[slot]) for i, slot in results.items()}
            args = (arrays[source], taps, window, steps_of(arrays), made, pointwise, threads)
            layer_work = kernels.bind_depthwise(*args)
            return lambda: (layer_work(),)

        self.add("depthwise", [layer.name], bind, [source, *results.values(), *operands])

    def head(self, layer: Layer, to: int) -> None:
        kernels, numbers, threads = self.kernels, self.segment.numbers, self.threads
        pointwise: Pointwise = numbers.pointwise
        window, first = layer.window or Window((1, 1)), self.values[layer.inputs[0]]
        kind: OperationKind
        match layer.head:
            case "max_pool":
                kind = "pool"

                def call(x: Float32Array, out: Float32Array) -> int:
                    kernels.max_pool(x, window, threads, out)
                    return 0

            case "average_pool":
                kind = "pool"

                def call(x: Float32Array, out: Float32Array) -> int:
                    kernels.average_pool(x, window, pointwise, layer.count_padding, threads, out)
                    return count_at_limit(out, pointwise)

            case "reshape":
                kind = "reshape"

                def call(x: Float32Array, out: Float32Array) -> int:  # ONNX's order: channel, row, column
                    n, height, width, channels = x.shape
                    kernels.leave(x, threads, out.reshape(n, channels, height, width))
                    return 0

            case _:
                assert layer.head == "upsample"
                kind, (down, right) = "upsample", layer.repeat

                def call(x: Float32Array, out: Float32Array) -> int:
                    n, height, width, channels = x.shape
                    out.reshape(n, height, down, width, right, channels)[:] = x[:, :, None, :, None]
                    return 0

        self.add(kind, [layer.name], lambda arrays, _: lambda: (call(arrays[first], arrays[to]),), [first, to])


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


def _window(layer: Layer) -> Window:
    """Where a layer of the matrix unit looks in what it is given, which may be windows already."""
    return layer.window if layer.window is not None and layer.packing != "window" else Window((1, 1))


def _rows(array: Array) -> Array:
    """An image as (pixels, C), a view."""
    return array.reshape(-1, array.shape[-1])
