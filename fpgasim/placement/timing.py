"""What a plan takes, in cycles and seconds, without computing a value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fpgasim.compiler import segment_layers
from fpgasim.npu import Device, Layer, Numbers
from fpgasim.npu.timing import LayerTiming, SegmentTiming, segment_timing, transfer_seconds
from fpgasim.placement.costs import transfer_bytes
from fpgasim.placement.plan import Plan

Direction = Literal["to_fpga", "to_cpu", "hop"]


@dataclass(frozen=True)
class FpgaSegment:
    """One FPGA segment: its layers and, in the same order, what each of them takes. `stage`: its device, from 0."""

    phase: int
    layers: tuple[Layer, ...]
    timing: SegmentTiming
    stage: int = 0

    @property
    def rows(self) -> Iterator[tuple[Layer, LayerTiming]]:
        """Each layer (name, nodes, shapes, macs) beside its timing (cycles, mapping, tiles, loads, utilization)."""
        return zip(self.layers, self.timing.layers, strict=True)


@dataclass(frozen=True)
class CpuPiece:
    """One CPU piece; `seconds` is the plan's estimate for its nodes and the call."""

    phase: int
    nodes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Transfer:
    """A tensor that crosses between host and FPGA, once in a direction, or from one FPGA to the next: a hop.

    `stage` is the FPGA's number from 0; that of a hop is where it goes.
    """

    tensor: str
    direction: Direction
    payload_bytes: int
    seconds: float
    stage: int = 0


@dataclass(frozen=True)
class StageTiming:
    """What a batch takes on one of several devices, in seconds.

    A transfer is in the time of the device that waits for it: hops of the one that reads, the host's of the FPGA.
    """

    compute_s: float
    launch_s: float
    hop_s: float
    transfer_s: float

    @property
    def seconds(self) -> float:
        return self.compute_s + self.launch_s + self.hop_s + self.transfer_s


@dataclass(frozen=True)
class Timing:
    """What one run of a plan takes, for the batch its graph is bound to.

    `cycles` and `milliseconds` cover the FPGA segments alone, each from the start of its first weight load to its
    last write. Transfers, launches and the CPU pieces stand beside them, and `total_ms` is the sum of all, one after
    another: the latency of one batch alone. Seconds of CPU pieces are the plan's estimates; device fields that nobody
    published are assumed. `pinned_bytes` of weights are on the chip before the first run; loading them is not counted.

    Where batches follow one another, each of the `stages` and the host works on a batch of its own, so one leaves every
    `interval_ms`: the time of the slowest of them, with its transfers, none of which overlaps its computation.
    """

    device: Device
    numbers: Numbers
    segments: tuple[FpgaSegment, ...]
    cpu_pieces: tuple[CpuPiece, ...]
    transfers: tuple[Transfer, ...]
    pinned_bytes: float = 0

    @property
    def cycles(self) -> int:
        return sum(segment.timing.cycles for segment in self.segments)

    @property
    def milliseconds(self) -> float:
        """`cycles` at the device's clock."""
        return self.cycles / self.device.clock_hz * 1e3

    @property
    def utilization(self) -> float:
        """Multiply-accumulates over what the engine could do in `cycles`."""
        macs = sum(segment.timing.macs for segment in self.segments)
        return macs / (self.cycles * self.device.macs_per_cycle) if self.cycles else 0.0

    @property
    def transfer_ms(self) -> float:
        return sum(transfer.seconds for transfer in self.transfers) * 1e3

    @property
    def hop_ms(self) -> float:
        """The part of `transfer_ms` that is from FPGA to FPGA."""
        return sum(transfer.seconds for transfer in self.transfers if transfer.direction == "hop") * 1e3

    @property
    def launch_ms(self) -> float:
        return len(self.segments) * self.device.launch_s * 1e3

    @property
    def cpu_ms(self) -> float:
        return sum(piece.seconds for piece in self.cpu_pieces) * 1e3

    @property
    def total_ms(self) -> float:
        return self.milliseconds + self.transfer_ms + self.launch_ms + self.cpu_ms

    @property
    def stages(self) -> tuple[StageTiming, ...]:
        """What each device takes for a batch, in the order that a batch goes through them."""
        rows = []
        for i in sorted({segment.stage for segment in self.segments}):
            own = [segment.timing.seconds for segment in self.segments if segment.stage == i]
            moved = [t for t in self.transfers if t.stage == i]
            hops = sum(t.seconds for t in moved if t.direction == "hop")
            transfers = sum(t.seconds for t in moved if t.direction != "hop")
            rows.append(StageTiming(sum(own), len(own) * self.device.launch_s, hops, transfers))
        return tuple(rows)

    @property
    def interval_ms(self) -> float:
        """From one batch to the next, where they follow one another; 0 for a plan without nodes."""
        return max([self.cpu_ms, *(stage.seconds * 1e3 for stage in self.stages)])

    @property
    def batches_per_s(self) -> float:
        """The throughput: how many batches leave in a second; 0 for a plan without nodes."""
        return 1e3 / self.interval_ms if self.interval_ms else 0.0


def plan_timing(plan: Plan) -> Timing:
    """What a run of `plan` takes: layers by `npu.timing`, transfers and CPU pieces as the plan counts them."""
    cpu_s = {decision.node: decision.cpu_s for decision in plan.decisions}
    segments, pieces = [], []
    for part in plan.segments:
        if part.kind == "cpu":
            seconds = sum(cpu_s[name] for name in part.nodes) + plan.device.cpu_call_s
            pieces.append(CpuPiece(part.phase, part.nodes, seconds))
            continue
        layers = segment_layers(plan.graph, part.nodes, plan.device, plan.numbers)
        timing = segment_timing(layers, plan.device, plan.numbers, plan.pinned)
        segments.append(FpgaSegment(part.phase, layers, timing, part.stage))
    on_chip = sum(plan.cost_graph.node_of[name].weight for name in plan.pinned)
    return Timing(plan.device, plan.numbers, tuple(segments), tuple(pieces), tuple(plan_transfers(plan)), on_chip)


def plan_transfers(plan: Plan) -> Iterator[Transfer]:
    """As in the objective: what an FPGA reads of the host's goes there once, what the host needs comes back once.

    So does what an FPGA reads of another's, which is a hop.
    """
    for tensor in plan.cost_graph.tensors:
        size = transfer_bytes(plan.graph, tensor.name, plan.device, plan.numbers)
        seconds = transfer_seconds(size, plan.device)
        readers = {plan.stage_of.get(name, 0) for name in tensor.consumers if plan.assignment[name] == "fpga"}
        if tensor.producer is None or plan.assignment[tensor.producer] == "cpu":
            for stage in sorted(readers):
                yield Transfer(tensor.name, "to_fpga", size, seconds, stage)
            continue
        home = plan.stage_of.get(tensor.producer, 0)
        for stage in sorted(readers - {home}):
            yield Transfer(tensor.name, "hop", size, plan.hops[tensor.name], stage)
        if tensor.output or any(plan.assignment[name] == "cpu" for name in tensor.consumers):
            yield Transfer(tensor.name, "to_cpu", size, seconds, home)
