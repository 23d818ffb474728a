"""When each chain of a program runs, in whole cycles, and where the cycles that do no work go.

The rules are those of docs/microarchitecture.md, section 4, whose letters are used here. No value is touched.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from fpgasim.kernels.contract import engines_of
from fpgasim.npu.chains import Chain, MatrixChain, Span, VectorChain, program_chains
from fpgasim.npu.device import Device
from fpgasim.npu.isa import Mem
from fpgasim.npu.numbers import Numbers
from fpgasim.npu.programs import Program
from fpgasim.npu.steady import repeat
from fpgasim.npu.timing import POINTWISE_BYTES, dram_cycles, tile_bytes

Wait = Literal["fetch", "dependency", "weight load", "unit", "dram"]
#: Where a cycle can go; `useful` is the first, the others are lost.
CYCLES = (
    "useful", "padding", "pointwise", "port", "fill", "drain", "fetch", "dependency", "unit", "weight load", "dram",
    "idle",
)  # fmt: skip


@dataclass(frozen=True)
class ChainTiming:
    """When one chain ran: `issue` (a), the steps' begin and end in the matrix unit or, without a product, in the MFUs,
    `end` (e), and its DRAM transfer, if it has one. `wait` names what it waited for last."""

    block: int
    chain: Chain
    issue: int
    begin: int
    stop: int
    end: int
    transfer: tuple[int, int] | None
    wait: Wait


@dataclass(frozen=True)
class ProgramTiming:
    """What a program costs on its device, from the first fetch to the last write.

    `losses` says, by the names of `CYCLES`, where every cycle went; it adds up to `cycles`. `chains` are those that
    were stepped, which took `stepped_cycles`; what repeats was added. `utilization` is macs over what the tile engines
    could do in `cycles`.
    """

    cycles: int
    seconds: float
    utilization: float
    macs: int
    losses: dict[str, int]
    stepped_cycles: int
    dram_bytes: int
    chains: tuple[ChainTiming, ...]


def simulate(program: Program) -> ProgramTiming:
    """The cycles of `program`. Raises ProgramError as `program_chains`."""
    engine = _Engine(program)
    blocks = program_chains(program)
    for i, (block, chains) in enumerate(zip(program.blocks, blocks, strict=True)):
        words = _words(len(block.words), chains)
        repeat(engine, lambda i=i, chains=chains, words=words: engine.turn(i, chains, words), block.repeat)  # type: ignore[misc]
    return engine.result(_macs(program, blocks))


def steps(chain: VectorChain, device: Device, numbers: Numbers) -> int:
    """How many steps of N/L cycles `chain` takes (n), without those that a write port adds."""
    if chain.tiles is None:
        return _ceil(chain.positions * chain.columns, device.tiles)
    pixels, rows, columns = chain.pixels, chain.rows, chain.columns
    engines, together = device.tiles // pixels, engines_of(numbers.order)
    if numbers.accumulator == "exact":
        each = _ceil(rows * columns, engines)
    elif 1 < together <= engines:
        each = _ceil(rows, engines // together) * _ceil(columns, together)
    else:
        each = _ceil(rows, engines) * columns
    return _ceil(chain.positions, pixels) * each


class _Engine:
    """The engine's state between two chains: when what is free, and what is on its way."""

    def __init__(self, program: Program) -> None:
        self.program, self.device = program, program.device
        d = program.device
        self.step, self.mvm, self.drain = d.cycles_per_mvm, d.mvm_latency, d.mfus * d.mfu_latency
        self.tile_bytes = tile_bytes(d, program.numbers)
        self.vector_bytes = d.native_dim * POINTWISE_BYTES[program.numbers.pointwise]
        self.tally: Counter[str] = Counter()
        self.skipped = 0
        self.decoded = 0  # d of the last chain
        self.issued: deque[int] = deque([-1] * d.queue_chains, maxlen=d.queue_chains)  # a of the last chains
        self.ends: deque[int] = deque([0] * d.in_flight, maxlen=d.in_flight)
        self.matrix_free = self.mfu_free = self.dram_free = self.matrix_end = 0
        self.writes: list[tuple[tuple[Span, ...], int]] = []  # of vector chains on their way: what, when it is there
        self.loads: list[tuple[Span, int]] = []  # tiles on their way
        self.products: list[tuple[Span, int]] = []  # tiles in use
        self.rows: list[ChainTiming] = []

    @property
    def now(self) -> int:
        return self.decoded

    def relative(self) -> Hashable:
        now = self.now
        # The next chain is decoded after now and issued after the last one, so what lies before both cannot hold it up.
        soonest = max(now, self.issued[-1])
        free = (*self.ends, self.matrix_free, self.mfu_free, self.dram_free, self.matrix_end)
        on_the_way = (self.writes, self.loads, self.products)
        return (
            self.ends[-1] - now,  # from which the next chain's cycles are named
            tuple(max(time, now) - now for time in self.issued),
            tuple(max(time, soonest - self.step - self.mvm) - now for time in free),
            tuple(tuple((what, time - now) for what, time in some if time > soonest) for some in on_the_way),
        )

    def skip(self, duration: int) -> None:
        self.skipped += duration
        self.decoded += duration
        self.matrix_free += duration
        self.mfu_free += duration
        self.dram_free += duration
        self.matrix_end += duration
        for times in (self.issued, self.ends):
            times.extend([time + duration for time in times])
        self.writes = [(what, time + duration) for what, time in self.writes]
        self.loads = [(what, time + duration) for what, time in self.loads]
        self.products = [(what, time + duration) for what, time in self.products]

    def turn(self, block: int, chains: Sequence[Chain], words: Sequence[int]) -> None:
        """One turn of a block."""
        for chain, count in zip(chains, words, strict=False):
            self.fetch(count)
            row = self.matrix(block, chain) if isinstance(chain, MatrixChain) else self.vector(block, chain)
            self.issued.append(row.issue)
            self.rows.append(row)
        if len(words) > len(chains):  # registers set behind the last chain
            self.fetch(words[-1])

    def fetch(self, words: int) -> None:
        self.decoded = max(self.decoded, self.issued[0]) + words * self.device.instruction_cycles

    def matrix(self, block: int, chain: MatrixChain) -> ChainTiming:
        issue = max(self.decoded + self.device.dispatch_cycles, self.issued[-1] + 1)
        begin = max(issue, self.dram_free)
        if chain.written is not None:
            begin = max([begin, *(time for span, time in self.products if span.overlaps(chain.written))])
        payload = chain.tiles * self.tile_bytes
        end = self.transfer(begin, payload)
        if chain.written is not None:
            self.loads = [(span, time) for span, time in self.loads if time > issue]
            self.loads.append((chain.written, end))
        self.matrix_end = max(self.matrix_end, end)
        return ChainTiming(block, chain, issue, begin, end, end, (begin, end), "dram")

    def vector(self, block: int, chain: VectorChain) -> ChainTiming:
        d = self.device
        base = steps(chain, d, self.program.numbers)
        ports = max(Counter(write.mem for write in chain.writes).values())
        work = base * ports * self.step
        payload = (chain.dram_read + chain.dram_written) * self.vector_bytes
        reach = self.step + (self.mvm if chain.tiles else 0)  # h
        candidates: dict[Wait, int] = {
            "fetch": self.decoded + d.dispatch_cycles,
            "dependency": max(self.issued[-1] + 1, self.ends[0], self.hazards(chain, reach)),
            "unit": max(self.mfu_free - reach, self.matrix_free if chain.tiles else 0),
            "weight load": 0,
            "dram": self.dram_free if payload else 0,
        }
        if chain.tiles:
            candidates["weight load"] = max([0, *(t for s, t in self.loads if s.overlaps(chain.tiles.span))])
        wait: Wait = max(candidates, key=lambda name: candidates[name])
        issue = candidates[wait]
        transfer = None
        if payload:
            transfer = (issue, self.transfer(issue, payload))
            work = max(work, transfer[1] - issue)
        stop = issue + work
        end = issue + reach + work - self.step + self.drain
        self.account(chain, wait, base * self.step, base * ports * self.step, work, reach, end)
        self.mfu_free = issue + reach + work
        self.writes = [(spans, time) for spans, time in self.writes if time > issue]
        self.writes.append((chain.written, end))
        if chain.tiles:
            self.matrix_free = stop
            self.products = [(span, time) for span, time in self.products if time > issue]
            self.products.append((chain.tiles.span, stop))
        self.ends.append(end)
        begin = issue if chain.tiles else issue + reach
        return ChainTiming(block, chain, issue, begin, begin + work, end, transfer, wait)

    def hazards(self, chain: VectorChain, reach: int) -> int:
        """No sooner than this, for what `chain` reads (rule 4, and rule 1 of `in_order`)."""
        if self.device.hazard == "in_order":
            return self.ends[-1] + self.device.dispatch_cycles
        soonest = 0
        for spans, time in self.writes:
            if _overlap(spans, chain.reads):
                soonest = max(soonest, time)
            elif _overlap(spans, chain.operands):
                soonest = max(soonest, time + self.step - reach)
        return soonest

    def transfer(self, begin: int, payload: int) -> int:
        """When `payload` bytes that start at `begin` are there; DRAM is busy until then."""
        cycles, whole = dram_cycles(self.device, payload)
        self.tally["dram bytes"] += whole
        self.dram_free = begin + cycles
        return self.dram_free

    def account(self, chain: VectorChain, wait: Wait, base: int, ported: int, work: int, reach: int, end: int) -> None:
        """Names the cycles from the latest end so far to `end`."""
        left = end - self.ends[-1] - work
        self.tally["matrix" if chain.tiles else "pointwise"] += base
        self.tally["port"] += ported - base
        self.tally["dram"] += work - ported
        if wait != "dependency":
            for name, most in (("drain", self.drain), ("fill", reach - self.step + self.device.dispatch_cycles)):
                self.tally[name] += min(left, most)
                left -= min(left, most)
        self.tally[wait] += left

    def result(self, macs: int) -> ProgramTiming:
        d, tally = self.device, self.tally
        vector_end = self.ends[-1]
        cycles = max(vector_end, self.matrix_end)
        useful = min(tally["matrix"], _ceil(macs, d.macs_per_cycle))
        losses = dict.fromkeys(CYCLES, 0) | {name: tally[name] for name in CYCLES}
        losses |= {"useful": useful, "padding": tally["matrix"] - useful}
        losses["weight load"] += cycles - vector_end  # loads that nothing waits for
        losses["idle"] = cycles - sum(losses.values())
        return ProgramTiming(
            cycles=cycles,
            seconds=cycles / d.clock_hz,
            utilization=macs / (cycles * d.macs_per_cycle) if cycles else 0.0,
            macs=macs,
            losses=losses,
            stepped_cycles=cycles - self.skipped,
            dram_bytes=tally["dram bytes"],
            chains=tuple(self.rows),
        )


def _words(total: int, chains: Sequence[Chain]) -> list[int]:
    """The words fetched for each chain, the registers set before it among them, then those behind the last."""
    ends = [0, *(chain.at + chain.words for chain in chains)]
    counts = [after - before for before, after in pairwise(ends)]
    return [*counts, total - ends[-1]] if total > ends[-1] else counts


def _macs(program: Program, blocks: Sequence[Sequence[Chain]]) -> int:
    """Multiply-accumulates: those a block says, else all that its tiles do."""
    native = program.device.native_dim**2

    def of_tiles(chains: Sequence[Chain]) -> int:
        return sum(
            chain.positions * chain.rows * chain.columns * native
            for chain in chains
            if isinstance(chain, VectorChain) and chain.tiles
        )

    return sum(
        block.repeat * (of_tiles(chains) if block.macs is None else block.macs)
        for block, chains in zip(program.blocks, blocks, strict=True)
    )


def _overlap(some: Sequence[Span], others: Sequence[Span]) -> bool:
    return any(one.overlaps(other) for one in some for other in others if one.mem != Mem.NET_QUEUE)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
