"""`Plan`: which node runs where, why, and what that costs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from fpgasim.compiler import UnsupportedCode
from fpgasim.errors import PlacementError, UnknownNameError
from fpgasim.graph import Graph
from fpgasim.npu import Device, Numbers
from fpgasim.placement.cost_graph import CostGraph, Side, check_convex, objective, phases

if TYPE_CHECKING:
    from fpgasim.placement.timing import Timing

Objective = Literal["latency", "coverage"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
#: What made the placement of a plan.
Winner = Literal["mincut", "coverage", "all-cpu"]
WINNERS: tuple[Winner, ...] = get_args(Winner)
ReasonCode = (
    UnsupportedCode
    | Literal["coverage", "cheaper-on-fpga", "saves-transfer"]  # on the FPGA
    | Literal["cheaper-on-cpu", "not-worth-transfer"]
)
REASON_CODES: tuple[ReasonCode, ...] = tuple(code for codes in get_args(ReasonCode) for code in get_args(codes))


@dataclass(frozen=True)
class Decision:
    """Where a node runs and why: a reason code, and a sentence with the figures or with what is in the way.

    `fpga_s` is None where the engine cannot compute the node.
    """

    node: str
    device: Side
    code: ReasonCode
    message: str
    cpu_s: float
    fpga_s: float | None


@dataclass(frozen=True)
class Segment:
    """What runs in one go: all nodes of one phase, in graph order; an FPGA segment or a CPU piece.

    `inputs` are the tensors it reads and does not make (constants aside), `outputs` those it makes that another
    segment or the graph's outputs need.
    """

    kind: Side
    phase: int
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """A placement of a graph on a device, ready to compile.

    `graph` has all its dimensions bound, `source_graph` is the one given. `lower_bound_s` bounds the latency
    objective of every placement from below. `note` says where something else than asked for was taken; else ''.
    Two plans are equal if all of this is, graphs by fingerprint. Raises PlacementError where decisions, costs and
    graph do not fit, a node is where it cannot be, or a segment is not convex, UnknownNameError for an unknown name,
    DeviceError or PlacementError where the device does not compute in that format.
    """

    graph: Graph
    source_graph: Graph
    device: Device
    numbers: Numbers
    objective_name: Objective
    algorithm: Winner
    decisions: tuple[Decision, ...]
    cost_graph: CostGraph
    lower_bound_s: float
    note: str = ""

    def __post_init__(self) -> None:
        names = [node.name for node in self.graph.nodes]
        if [d.node for d in self.decisions] != names or [n.name for n in self.cost_graph.nodes] != names:
            raise PlacementError(f"the decisions of this plan are not about the nodes of graph {self.graph.name!r}")
        for kind, name, known in (
            ("objective", self.objective_name, OBJECTIVES),
            ("algorithm of a plan", self.algorithm, WINNERS),
            *(("reason code", decision.code, REASON_CODES) for decision in self.decisions),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        format = self.device.resolve_format(self.numbers.format)
        if format != self.numbers.format:
            raise PlacementError(
                f"format {format.name!r} has blocks of {self.numbers.format.block}; "
                f"device {self.device.name!r} computes in blocks of {format.block}"
            )
        for decision, node in zip(self.decisions, self.cost_graph.nodes, strict=True):
            if (decision.cpu_s, decision.fpga_s) != (node.cpu, node.fpga):
                raise PlacementError(
                    f"the decision about node {node.name!r} says {decision.cpu_s} s on the CPU and {decision.fpga_s} s "
                    f"on the FPGA, the cost graph {node.cpu} and {node.fpga}"
                )
        bound, cost = self.lower_bound_s, self.objective_s  # refuses a node on a side that it cannot be on
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not -math.inf < bound <= cost * (1 + 1e-9):
            raise PlacementError(f"lower_bound_s={bound!r} is no bound below the {cost} s of this placement")
        check_convex(self.cost_graph, [segment.nodes for segment in self.segments])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._facts == other._facts

    def __hash__(self) -> int:
        return hash((self.graph.fingerprint(), self.decisions))

    @property
    def _facts(self) -> tuple[object, ...]:
        graphs = (self.graph.fingerprint(), self.source_graph.fingerprint())
        chosen = (self.objective_name, self.algorithm, self.decisions, self.note)
        return (*graphs, self.device, self.numbers, *chosen, self.cost_graph, self.lower_bound_s)

    @cached_property
    def assignment(self) -> Mapping[str, Side]:
        """Node name -> "cpu" or "fpga"."""
        return {decision.node: decision.device for decision in self.decisions}

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """FPGA segments and CPU pieces in the order they run in."""
        members: dict[int, list[str]] = {}
        phase_of = phases(self.cost_graph, self.assignment)
        for node in self.graph.nodes:
            members.setdefault(phase_of[node.name], []).append(node.name)
        reads: dict[int, list[str]] = {phase: [] for phase in members}
        writes: dict[int, list[str]] = {phase: [] for phase in members}
        for tensor in self.cost_graph.tensors:
            home = None if tensor.producer is None else phase_of[tensor.producer]
            away = sorted({phase_of[name] for name in tensor.consumers} - {home})
            for phase in away:
                reads[phase].append(tensor.name)
            if home is not None and (away or tensor.output):
                writes[home].append(tensor.name)
        return tuple(
            Segment("fpga" if p % 2 else "cpu", p, tuple(members[p]), tuple(reads[p]), tuple(writes[p]))
            for p in sorted(members)
        )

    @cached_property
    def objective_s(self) -> float:
        """What this placement costs by the objective, in seconds."""
        return objective(self.cost_graph, self.assignment)

    @cached_property
    def all_cpu_s(self) -> float:
        """What everything on the CPU costs by the objective, in seconds."""
        return objective(self.cost_graph, dict.fromkeys(self.assignment, "cpu"))

    @property
    def gap(self) -> float:
        """How far the objective may be above the best there is: (objective − lower bound) / objective."""
        return (self.objective_s - self.lower_bound_s) / self.objective_s if self.objective_s else 0.0

    @cached_property
    def fpga_mac_share(self) -> float:
        """The share of the graph's multiply-accumulates that the FPGA does; 0 for a graph without any."""
        macs = {node.name: self.graph.macs(node) for node in self.graph.nodes}
        on_fpga = sum(count for name, count in macs.items() if self.assignment[name] == "fpga")
        return on_fpga / sum(macs.values()) if any(macs.values()) else 0.0

    def explain(self) -> str:
        """The plan as text: the figures, every node with its reason, the segments with their transfers."""
        from fpgasim.placement.explaining import explain

        return explain(self)

    def timing(self) -> Timing:
        """What one run takes by the event model, in cycles and seconds: layers, transfers and CPU pieces in turn.

        It counts what the objective's table estimates: segments as they really follow each other. Nothing is computed.
        """
        from fpgasim.placement.timing import plan_timing

        return plan_timing(self)

    def replan(self, input_shapes: Mapping[str, tuple[int, ...]]) -> Plan:
        """This placement for inputs of other shapes: every node stays on its side, the costs are the new shapes'.

        Raises InputError for shapes that contradict the model, PlacementError where a node cannot stay on the FPGA.
        """
        from fpgasim.placement.partitioning import replan

        return replan(self, input_shapes)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the bound graph as ONNX with a model-local function `fpgasim::fpga0`, … for each FPGA segment.

        Any runtime computes what it computes without them; `fpgasim.load` reads the same network. Node metadata
        `layer_ann` names the segment, or "cpu". Weights beyond 2 GB go to a file beside it. ModelError if it cannot be
        written.
        """
        from fpgasim.placement.exporting import export

        export(self, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes plan and graph to one file, replacing `path` only once that is whole; ModelError if it cannot."""
        from fpgasim.placement.archive import save

        save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """The plan that `save` wrote; ModelError for a file that is not there, damaged or of another version."""
        from fpgasim.placement.archive import load

        return load(path)
