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


@dataclass(frozen=True)
class FpgaSegment:
    """One FPGA segment: its layers and, in the same order, what each of them takes."""

    phase: int
    layers: tuple[Layer, ...]
    timing: SegmentTiming

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
    """A tensor that crosses between host and FPGA, once in a direction."""

    tensor: str
    direction: Literal["to_fpga", "to_cpu"]
    payload_bytes: int
    seconds: float


@dataclass(frozen=True)
class Timing:
    """What one run of a plan takes, for the batch its graph is bound to.

    `cycles` and `milliseconds` cover the FPGA segments alone, each from the start of its first weight load to its
    last write. Transfers, launches and the CPU pieces stand beside them, and `total_ms` is the sum of all, one after
    another. Seconds of CPU pieces are the plan's estimates; device fields that nobody published are assumed.
    `pinned_bytes` of weights are on the chip before the first run; loading them is not counted.
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
    def launch_ms(self) -> float:
        return len(self.segments) * self.device.launch_s * 1e3

    @property
    def cpu_ms(self) -> float:
        return sum(piece.seconds for piece in self.cpu_pieces) * 1e3

    @property
    def total_ms(self) -> float:
        return self.milliseconds + self.transfer_ms + self.launch_ms + self.cpu_ms


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
        segments.append(FpgaSegment(part.phase, layers, segment_timing(layers, plan.device, plan.numbers, plan.pinned)))
    on_chip = sum(plan.cost_graph.node_of[name].weight for name in plan.pinned)
    return Timing(plan.device, plan.numbers, tuple(segments), tuple(pieces), tuple(plan_transfers(plan)), on_chip)


def plan_transfers(plan: Plan) -> Iterator[Transfer]:
    """As in the objective: what the FPGA reads of the host's goes there once, what the host needs comes back once."""
    for tensor in plan.cost_graph.tensors:
        readers = {plan.assignment[name] for name in tensor.consumers}
        direction: Literal["to_fpga", "to_cpu"]
        if tensor.producer is not None and plan.assignment[tensor.producer] == "fpga":
            crosses, direction = tensor.output or "cpu" in readers, "to_cpu"
        else:
            crosses, direction = "fpga" in readers, "to_fpga"
        if crosses:
            size = transfer_bytes(plan.graph, tensor.name, plan.device, plan.numbers)
            yield Transfer(tensor.name, direction, size, transfer_seconds(size, plan.device))
