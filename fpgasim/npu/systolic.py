"""Cycles of a systolic array: the serial convention in closed form, and the engine's own mode with its memories.

Both are defined in docs/microarchitecture.md, section 5. A product has m output pixels, n filters and k reductions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from fpgasim.errors import DeviceError, InputError, UnknownNameError
from fpgasim.npu.steady import repeat

Dataflow = Literal["os", "ws", "is"]
DATAFLOWS: tuple[Dataflow, ...] = get_args(Dataflow)


def systolic_cycles(m: int, n: int, k: int, rows: int, cols: int, dataflow: str) -> int:
    """Cycles of an m×k by k×n product on a `rows` × `cols` array, in serial folds of the full size.

    The convention of SCALE-Sim (Samajdar et al., 2018, and its version 3): a partial fold costs what a full one does,
    and no two overlap. No memory is modelled. Raises InputError for a number below 1, UnknownNameError for a dataflow.
    """
    _check({"m": m, "n": n, "k": k, "rows": rows, "cols": cols})
    down, across, time = _roles(m, n, k, dataflow)
    load = 0 if dataflow == "os" else rows
    return -(-down // rows) * -(-across // cols) * (load + rows + cols + time - 2)


@dataclass(frozen=True)
class Array:
    """A systolic engine. Each operand's memory has two halves: from one the array works, the other is filled.

    `bits_per_cycle` is what DRAM moves, both ways together.
    """

    rows: int
    cols: int
    dataflow: Dataflow
    input_bytes: int
    weight_bytes: int
    output_bytes: int
    bits_per_cycle: Fraction

    def __post_init__(self) -> None:
        _check({name: getattr(self, name) for name in ("rows", "cols", "input_bytes", "weight_bytes", "output_bytes")})
        _roles(1, 1, 1, self.dataflow)
        if not self.bits_per_cycle > 0:
            raise InputError(f"bits_per_cycle={self.bits_per_cycle} will not do; a rate above 0 would")


@dataclass(frozen=True)
class ArrayTiming:
    """What a product costs on an `Array`.

    `losses` names every cycle in which the array is not fully busy, by names of `simulation.CYCLES`, and adds up, with
    `useful`, to `cycles`: padding (cells without work in partial folds), fill, drain, weight load (waiting for a
    stationary operand to be shifted in) and dram. `bits` is what crossed the DRAM interface.
    """

    cycles: int
    useful: int
    losses: dict[str, int]
    bits: int
    folds: int
    macs: int
    utilization: float


@dataclass(frozen=True)
class _Fold:
    """One pass of the array, or a chunk of one: `rows` × `cols` cells for `time` cycles.

    `shift` cycles bring the stationary operand in, before; `load` and `store` are bits.
    """

    rows: int
    cols: int
    time: int
    shift: int
    load: int
    store: int


class _Work:
    """Times in ticks, `tick` of them a cycle, so that all are whole. DRAM serves its queue in order:
    the load of the next fold is before the store of this one."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.cycle, self.bit = array.bits_per_cycle.numerator, array.bits_per_cycle.denominator
        self.tally: Counter[str] = Counter()
        self.started = 0  # when the last fold's streaming began
        self.ended = 0  # and when the next may begin
        self.input_free = 0  # when the half that the next load fills was left
        self.stored = [0, 0]  # when the two halves of the outputs were free again
        self.dram = 0
        self.waiting = 0  # bits of the last fold that are still to be stored
        self.last: _Fold | None = None

    @property
    def now(self) -> int:
        return self.ended

    def relative(self) -> tuple[object, ...]:
        times = (self.started, self.input_free, *self.stored, self.dram)
        # What lies far enough back can hold nothing up, but how far is not known here: all of it counts.
        return (*(time - self.ended for time in times), self.waiting, self.last)

    def skip(self, duration: int) -> None:
        self.started += duration
        self.ended += duration
        self.input_free += duration
        self.stored = [time + duration for time in self.stored]
        self.dram += duration

    def transfer(self, bits: int, ready: int) -> int:
        """When `bits` have crossed, no sooner than `ready`; the queue is in order."""
        if not bits:
            return ready
        self.dram = max(self.dram, ready) + bits * self.bit
        self.tally["bits"] += bits
        return self.dram

    def fold(self, f: _Fold) -> None:
        loaded = self.transfer(f.load, self.input_free)
        if self.waiting:
            self.stored = [self.stored[1], self.transfer(self.waiting, self.ended)]
        shifted = max(self.started, loaded) + f.shift * self.cycle
        begin = max(self.ended, shifted, self.stored[0] if f.store else 0)
        wait = begin - self.ended
        shifting = min(wait, max(0, self.started + f.shift * self.cycle - self.ended))
        first = self.last is None
        self.tally["fill" if first else "weight load"] += shifting
        self.tally["dram"] += wait - shifting
        # Results that lay still leave through their column during the next fold, which so lasts as long as they take.
        leaving = self.last.rows if self.last and self.last.store and self.array.dataflow == "os" else 0
        busy = max(f.time, leaving) * self.cycle
        self.tally["busy"] += busy
        self.tally["macs"] += f.rows * f.cols * f.time
        self.tally["folds"] += 1
        self.input_free = self.ended
        self.started, self.ended = begin, begin + busy
        self.waiting = f.store
        self.last = f

    def finish(self) -> int:
        """The end: the last results leave the array, then the chip."""
        assert self.last is not None
        drain = (self.last.rows + self.last.cols - 2) * self.cycle
        self.tally["drain"] += drain
        out = self.ended + drain
        done = max(out, self.transfer(self.waiting, out))
        self.tally["dram"] += done - out
        return done


def array_timing(
    m: int, n: int, k: int, array: Array, input_bits: int, weight_bits: int, output_bits: int
) -> ArrayTiming:
    """What an m×k by k×n product costs on `array`, with elements of so many bits and sums of `output_bits`.

    Folds overlap: the next stationary operand is shifted in while one streams, a partial fold takes the rows it has.
    Raises InputError for a number below 1, DeviceError where half a memory holds not even one row of a fold.
    """
    _check({"m": m, "n": n, "k": k, "input_bits": input_bits, "weight_bits": weight_bits, "output_bits": output_bits})
    work = _Work(array)
    inputs, weights = (
        _Memory("input", array.input_bytes, input_bits),
        _Memory("weight", array.weight_bytes, weight_bits),
    )
    if array.dataflow == "os":
        _output_stationary(work, m, n, k, inputs, weights, output_bits)
    elif array.dataflow == "ws":
        _operand_stationary(work, m, n, k, inputs, weights, output_bits)
    else:
        _operand_stationary(work, n, m, k, weights, inputs, output_bits)
    end = work.finish()
    return _summary(work, end, m * n * k)


@dataclass(frozen=True)
class _Memory:
    """One of the three memories, and the bits of what it holds."""

    name: str
    bytes: int
    bits: int

    def fits(self, words: int) -> int:
        """How many vectors of `words` lie in half of it. Raises DeviceError if none does."""
        half = self.bytes * 8 // 2
        if half < words * self.bits:
            raise DeviceError(
                f"half of the {self.name} memory holds {half // 8} bytes and a fold needs "
                f"{-(-words * self.bits // 8)}; a memory of {-(-words * self.bits // 4)} bytes would do"
            )
        return half // (words * self.bits)

    def holds(self, words: int) -> bool:
        """Whether so many fit into the whole of it, to stay."""
        return words * self.bits <= self.bytes * 8


def _operand_stationary(
    work: _Work, t: int, across: int, k: int, streamed: _Memory, still: _Memory, output_bits: int
) -> None:
    """ws, and is with the operands swapped: a k×across operand lies still, t vectors of the other stream by.

    Sums of a column of folds stay in the output memory until the last of them.
    """
    array = work.array
    rows, cols = min(array.rows, k), min(array.cols, across)
    sums = _Memory("output", array.output_bytes, output_bits)
    chunk = min(t, streamed.fits(rows), sums.fits(cols))
    still.fits(rows * cols)
    keeps_stream, keeps_still = streamed.holds(t * k), still.holds(across * k)

    def column(c: int, first: bool) -> None:
        def pass_of(size: int, stationary_there: bool) -> None:
            def one(r: int, last: bool) -> _Fold:
                load = (0 if keeps_stream and not first else size * r * streamed.bits) + (
                    0 if stationary_there else r * c * still.bits
                )
                return _Fold(r, c, size, r, load, size * c * output_bits if last else 0)

            full, rest = divmod(k, array.rows)
            if not rest:
                full, rest = full - 1, array.rows
            middle = one(array.rows, last=False)
            repeat(work, lambda: work.fold(middle), full)
            work.fold(one(rest, last=True))

        full, rest = divmod(t, chunk)
        pass_of(chunk, False)
        repeat(work, lambda: pass_of(chunk, keeps_still), full - 1)
        if rest:
            pass_of(rest, keeps_still)

    full, rest = divmod(across, cols)
    column(cols, True)
    repeat(work, lambda: column(cols, False), full - 1)
    if rest:
        column(rest, False)


def _output_stationary(
    work: _Work, m: int, n: int, k: int, inputs: _Memory, weights: _Memory, output_bits: int
) -> None:
    """os: m×n sums lie still, both operands stream by; a fold's results leave while the next one runs."""
    array = work.array
    rows, cols = min(array.rows, m), min(array.cols, n)
    chunk = min(k, inputs.fits(rows), weights.fits(cols))
    _Memory("output", array.output_bytes, output_bits).fits(rows * cols)
    keeps_inputs, keeps_weights = inputs.holds(m * k), weights.holds(n * k)
    keeps_row = chunk == k  # a row of folds reads the same inputs, which then are in one half

    def tile(r: int, c: int, inputs_there: bool, weights_there: bool) -> None:
        def part(size: int, last: bool) -> _Fold:
            load = (0 if inputs_there else r * size * inputs.bits) + (0 if weights_there else c * size * weights.bits)
            return _Fold(r, c, size, 0, load, r * c * output_bits if last else 0)

        full, rest = divmod(k, chunk)
        if not rest:
            full, rest = full - 1, chunk
        middle = part(chunk, last=False)
        repeat(work, lambda: work.fold(middle), full)
        work.fold(part(rest, last=True))

    def row(r: int, weights_there: bool) -> None:
        full, rest = divmod(n, cols)
        tile(r, cols, False, weights_there)
        repeat(work, lambda: tile(r, cols, keeps_row or keeps_inputs, weights_there), full - 1)
        if rest:
            tile(r, rest, keeps_row or keeps_inputs, weights_there)

    full, rest = divmod(m, rows)
    row(rows, False)
    repeat(work, lambda: row(rows, keeps_weights), full - 1)
    if rest:
        row(rest, keeps_weights)


def _summary(work: _Work, end: int, macs: int) -> ArrayTiming:
    array, tally, tick = work.array, work.tally, work.cycle
    cells = array.rows * array.cols
    cycles, busy = -(-end // tick), tally["busy"] // tick
    useful = -(-macs // cells)
    losses = {"padding": busy - useful, "fill": tally["fill"] // tick, "drain": tally["drain"] // tick}
    losses["weight load"] = tally["weight load"] // tick
    losses["dram"] = cycles - useful - sum(losses.values())  # with the fractions of a cycle, which DRAM makes
    assert tally["macs"] == macs
    return ArrayTiming(cycles, useful, losses, tally["bits"], tally["folds"], macs, macs / (cycles * cells))


def _roles(m: int, n: int, k: int, dataflow: str) -> tuple[int, int, int]:
    """What lies along the rows, along the columns, and what passes in time."""
    if dataflow not in DATAFLOWS:
        raise UnknownNameError("dataflow", dataflow, DATAFLOWS)
    return {"os": (m, n, k), "ws": (k, n, m), "is": (k, m, n)}[dataflow]


def _check(numbers: dict[str, int]) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name}={value!r} will not do; a whole number from 1 up would")
