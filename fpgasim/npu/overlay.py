"""Cycles of the overlay engine: Intel's open NPU and its kin, which keep the weights of dense and recurrent layers.

Boutros et al., "Beyond Peak Performance", FPT 2020; Nurvitadhi et al., FCCM 2019; github.com/intel/fpga-npu. The
micro-architecture and what is assumed of it stand in docs/microarchitecture.md, section 6. A very long instruction word
drives five units in order: the matrix unit, an external register file, two multifunction units and the loader. Weights
stay on the chip; `interleave` vectors share each weight that is read, and `cores` work in lockstep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from fpgasim.npu.device import Device

#: Cycles from a write to the comparison of its tag, and through a queue before or behind a unit (show-ahead, with an
#: output register), as the register transfer code of github.com/intel/fpga-npu has them.
_TAG = _QUEUE = 2


@dataclass(frozen=True)
class WorkTiming:
    """What a batch costs, from the first fetch to the last write; on an overlay the load of its inputs included.

    `losses` says where every cycle went and adds up to `cycles`; its names are those of `simulation.CYCLES`.
    `utilization` is macs of the whole batch over what the engine could do in `cycles`.
    """

    cycles: int
    seconds: float
    utilization: float
    macs: int
    losses: dict[str, int]


class Overlay:
    """The engine between two chains. Vectors go by name; a chain adds its cycles to those before it."""

    def __init__(self, device: Device) -> None:
        self.device = device
        d = device
        self.group = d.interleave
        #: Words of a pass: as many rows as vectors are needed to fill the operand registers of a dot product.
        self.chunk = d.pass_rows
        self.mvm_free = self.loader_free = d.start_cycles
        self.ready: dict[str, int] = {}
        self.words: dict[str, int] = {}  # that each vector was written in
        self.end = self.last = 0  # of the last chain: when it was written, and in how many words
        self.tally: Counter[str] = Counter({"fetch": d.start_cycles})

    @property
    def now(self) -> int:
        return self.mvm_free

    @property
    def through(self) -> int:
        """Cycles from the matrix unit or the external file to a register file."""
        return _TAG + self.device.mfus * (self.device.mfu_latency + 2 * _QUEUE) + self.device.loader_latency

    def relative(self) -> Hashable:
        now = self.now
        # A vector that was there before can hold up neither a product nor the loader.
        old = min(now, self.loader_free) - max(self.words.values()) - self.device.external_latency - self.through
        ready = tuple((name, max(time, old) - now) for name, time in self.ready.items())
        return self.loader_free - now, self.end - now, self.last, ready

    def skip(self, duration: int) -> None:
        self.mvm_free += duration
        self.loader_free += duration
        self.end += duration
        self.ready = {name: time + duration for name, time in self.ready.items()}

    def inputs(self, length: int) -> int:
        """Passes over the tile engines that an input of `length` takes: ⌈length / (T·L)⌉."""
        return -(-length // (self.device.tiles * self.device.lanes))

    def load(self, name: str, length: int) -> None:
        """Takes the vectors `name` from the input queue, one word of L elements in a cycle, padded to T·L."""
        self._take(name, self.group * self.device.tiles * self.inputs(length))

    def load_external(self, name: str, length: int) -> None:
        """The same into the external file, padded to N."""
        self._take(name, self.group * -(-length // self.device.native_dim))

    def _take(self, name: str, words: int) -> None:
        self.loader_free += words
        self.ready[name], self.words[name] = self.loader_free, words

    def constant(self, name: str) -> None:
        """Vectors that are there from the start."""
        self.ready[name] = self.words[name] = 0

    def product(
        self, source: str, length: int, outputs: int, targets: Sequence[str], operands: Sequence[str] = ()
    ) -> None:
        """`targets` become the matrix (outputs × length) times `source`, with `operands` from the register files."""
        d = self.device
        passes, rows = self.inputs(length), -(-outputs // d.native_dim)
        begin = max(self.mvm_free, self.ready[source])
        self._idle(begin - self.mvm_free, self.words[source], "dependency")
        self.tally["busy"] += rows * passes
        done = stream = begin
        for count in _chunks(rows, self.chunk):  # a chunk's results come together, then one vector in a cycle
            done += count * passes
            stream = max(stream, done) + self.group * count
        self.mvm_free = done
        self._write(stream + d.mvm_latency, rows, targets, operands)

    def pointwise(self, source: str, length: int, targets: Sequence[str], operands: Sequence[str] = ()) -> None:
        """`targets` become what the multifunction units make of `source` from the external file and `operands`."""
        rows = -(-length // self.device.native_dim)
        stream = self.ready[source] + self.device.external_latency + self.group * rows
        self._write(stream, rows, targets, operands)

    def _write(self, stream: int, rows: int, targets: Sequence[str], operands: Sequence[str]) -> None:
        """The loader writes the results, one vector in a cycle, in order, not before their operands have come.

        `stream` is when the last vector comes from the matrix unit or the external file.
        """
        words = self.group * rows
        arrival = max([stream, *(self.ready[name] + words for name in operands)])
        self.loader_free = self.end = max(arrival + self.through, self.loader_free + words)
        self.last = words
        for name in targets:
            self.ready[name], self.words[name] = self.end, words

    def _idle(self, cycles: int, words: int, rest: str) -> None:
        """Names cycles without a product: in some of them the `words` that are waited for pass, one in a cycle."""
        self.tally["port"] += min(cycles, words)
        self.tally[rest] += cycles - min(cycles, words)

    def timing(self, macs: int) -> WorkTiming:
        """What all chains so far cost, `macs` of whose multiply-accumulates are asked for."""
        d, tally = self.device, self.tally.copy()
        behind = self.end - self.mvm_free  # the last results are on their way
        tally["port"] += min(behind, self.last)
        tally["drain"] += behind - min(behind, self.last)
        useful = min(tally["busy"], -(-macs // d.macs_per_cycle))
        losses = {"useful": useful, "padding": tally["busy"] - useful}
        losses |= {name: tally[name] for name in ("fetch", "port", "dependency", "drain")}
        losses["idle"] = self.end - sum(losses.values())
        return WorkTiming(self.end, self.end / d.clock_hz, macs / (self.end * d.macs_per_cycle), macs, losses)


def _chunks(rows: int, chunk: int) -> list[int]:
    """Rows of the passes: `chunk` each, but the last, which takes what is left, up to 2·chunk − 1."""
    full = max(0, rows // chunk - 1)
    return [chunk] * full + [rows - chunk * full]
