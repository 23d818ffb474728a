"""`Plan`: which node runs where, why, and what that costs."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from fpgasim.compiler import UnsupportedCode
from fpgasim.errors import InputError, PlacementError, UnknownNameError
from fpgasim.graph import Graph
from fpgasim.npu import Device, Numbers
from fpgasim.placement.cost_graph import CostGraph, Side, check_convex, objective, phases, pin, real_number
from fpgasim.placement.pipelines import SPLITS_FOR, Link, Split, SplitFor, Stages, held, price, room_of
from fpgasim.placement.problem import WEIGHTS, Problem, Weights, check_limits
from fpgasim.placement.solving import ALGORITHMS, Algorithm, Maker

if TYPE_CHECKING:
    from fpgasim.placement.explaining import Explanation
    from fpgasim.placement.timing import Timing

Objective = Literal["latency", "coverage"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
#: Where the times of the nodes on the CPU come from.
Costs = Literal["analytic", "measured"]
COSTS: tuple[Costs, ...] = get_args(Costs)
ReasonCode = (
    UnsupportedCode
    | Literal["forced"]
    | Literal["coverage", "cheaper-on-fpga", "saves-transfer"]  # on the FPGA
    | Literal["cheaper-on-cpu", "not-worth-transfer", "capacity", "segment-limit"]
)
SIDES: tuple[Side, ...] = get_args(Side)
REASON_CODES: tuple[ReasonCode, ...] = tuple(code for codes in get_args(ReasonCode) for code in get_args(codes))

#: From FPGA to FPGA through a data centre's network (Chung et al., IEEE Micro 38(2), 2018). That its line rate of
#: 40 Gb/s is used in full is assumed.
HOP_S = 10e-6
LINK_BYTES_PER_S = 5e9


@dataclass(frozen=True)
class Options:
    """What `partition` was asked for besides the objective; its arguments say what each is.

    `force` holds (node name or pattern, side) pairs. `capacity` is in bytes; on one device it is that device's where
    none was given for weights that are to stay on the chip. On several it bounds each of them, and None stands for what
    it holds. Raises UnknownNameError and InputError for a value that is none.
    """

    algorithm: Algorithm = "auto"
    costs: Costs = "analytic"
    max_segments: int | None = None
    capacity: float | None = None
    weights: Weights = "streamed"
    force: tuple[tuple[str, Side], ...] = ()
    cut_at: tuple[str, ...] = ()
    require_fpga: bool = False
    time_limit: float = 20.0
    devices: int | Literal["auto"] = 1
    hop_s: float = HOP_S
    link_bytes_per_s: float = LINK_BYTES_PER_S
    split_for: SplitFor = "latency"

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("algorithm", self.algorithm, ALGORITHMS),
            ("cost table", self.costs, COSTS),
            ("way of keeping weights", self.weights, WEIGHTS),
            ("aim of a split", self.split_for, SPLITS_FOR),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        for pattern, side in self.force:
            if not isinstance(pattern, str):
                raise InputError(f"force: {pattern!r} is no node name or pattern")
            if side not in SIDES:
                raise UnknownNameError("side", side, SIDES)
        for tensor in self.cut_at:
            if not isinstance(tensor, str):
                raise InputError(f"cut_at: {tensor!r} is no tensor name")
        if not isinstance(self.require_fpga, bool):
            raise InputError(f"require_fpga={self.require_fpga!r} must be True or False")
        max_segments, _ = check_limits(self.max_segments, self.capacity, self.time_limit)
        object.__setattr__(self, "max_segments", max_segments)
        if not isinstance(self.capacity, int | float | None):
            object.__setattr__(self, "capacity", real_number(self.capacity))
        _check_link(self.hop_s, self.link_bytes_per_s)
        count = self.devices
        if count != "auto" and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise InputError(f'devices={count!r} must be a whole number from 1 up, or "auto"')
        if count != 1 and self.weights == "streamed":
            raise InputError(
                f'devices={count!r}, weights="streamed": several devices keep weights; see "pinned", "auto"'
            )

    @property
    def link(self) -> Link:
        """What moves tensors from device to device."""
        return Link(self.hop_s, self.link_bytes_per_s)


def _check_link(hop_s: object, bytes_per_s: object) -> None:
    for name, value, least in (("hop_s", hop_s, "0 up"), ("link_bytes_per_s", bytes_per_s, "above 0")):
        fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not fine or value < 0 or (value == 0 and name != "hop_s"):  # type: ignore[operator]
            raise InputError(f"{name}={value!r} must be a finite number from {least}")


@dataclass(frozen=True)
class Decision:
    """Where a node runs and why: a reason code, and a sentence with the figures or with what is in the way.

    `fpga_s` is None where the engine cannot compute the node; it leaves out the load of weights that stay on chip.
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
    segment or the graph's outputs need. `stage` is its device, from 0; an FPGA phase that several hold is a segment on
    each of them.
    """

    kind: Side
    phase: int
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    stage: int = 0


def priced(cost_graph: CostGraph, weights: Weights, pinned: Collection[str]) -> CostGraph:
    """`cost_graph` without the loads of weights that stay on the chip: see `Plan.priced`."""
    return pin(cost_graph, {node.name for node in cost_graph.nodes if node.weight} if weights == "pinned" else pinned)


@dataclass(frozen=True, eq=False)
class Plan:
    """A placement of a graph on a device, ready to compile.

    `graph` has all its dimensions bound, `source_graph` is the one given. `algorithm` made the placement.
    `lower_bound_s` bounds the latency objective of every placement under the same `options` from below. `note` says
    where something else than asked for was taken, or what a time limit cut off; else ''. The weights of the nodes
    `pinned` are on the chip before the first run. `solver_s` is what choosing took. `stages` are the nodes on each
    device where several may be used (`options.devices`), else empty.

    Two plans are equal if all of this but `solver_s` is, graphs by fingerprint. Raises PlacementError where decisions,
    costs and graph do not fit, a node is where it cannot be, a limit is exceeded or a segment is not convex,
    UnknownNameError for an unknown name, DeviceError or PlacementError where the device does not compute in that
    format.
    """

    graph: Graph
    source_graph: Graph
    device: Device
    numbers: Numbers
    objective_name: Objective
    algorithm: Maker
    decisions: tuple[Decision, ...]
    cost_graph: CostGraph
    lower_bound_s: float
    note: str = ""
    options: Options = Options()
    pinned: frozenset[str] = frozenset()
    solver_s: float = 0.0
    stages: Stages = ()

    def __post_init__(self) -> None:
        names = [node.name for node in self.graph.nodes]
        if [d.node for d in self.decisions] != names or [n.name for n in self.cost_graph.nodes] != names:
            raise PlacementError(f"the decisions of this plan are not about the nodes of graph {self.graph.name!r}")
        for kind, name, known in (
            ("objective", self.objective_name, OBJECTIVES),
            ("algorithm of a plan", self.algorithm, get_args(Maker)),
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
        for node_name in self.pinned:
            if self.options.weights == "streamed" or self.assignment.get(node_name) != "fpga":
                raise PlacementError(f"the weights of node {node_name!r} do not stay on the chip in this plan")
        for decision, node in zip(self.decisions, self.priced.nodes, strict=True):
            if (decision.cpu_s, decision.fpga_s) != (node.cpu, node.fpga):
                raise PlacementError(
                    f"the decision about node {node.name!r} says {decision.cpu_s} s on the CPU and {decision.fpga_s} s "
                    f"on the FPGA, the cost graph {node.cpu} and {node.fpga}"
                )
        if isinstance(self.solver_s, bool) or not isinstance(self.solver_s, int | float) or not self.solver_s >= 0:
            raise PlacementError(f"solver_s={self.solver_s!r} is no time in seconds")
        bound, cost = self.lower_bound_s, self.objective_s  # refuses a node on a side that it cannot be on
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not -math.inf < bound <= cost * (1 + 1e-9):
            raise PlacementError(f"lower_bound_s={bound!r} is no bound below the {cost} s of this placement")
        asked = self.options
        capacity = asked.capacity if asked.devices == 1 else None
        problem = Problem(self.cost_graph, {}, asked.max_segments, capacity, asked.weights)
        if broken := problem.broken(self.assignment, self.pinned) or self._stages_broken():
            raise PlacementError(f"this placement does not keep to what was asked for: {broken}")
        check_convex(self.cost_graph, [segment.nodes for segment in self.segments])

    def _stages_broken(self) -> str:
        """What the stages do that was not asked for, or ''; that they are the FPGA nodes is for `split` to say."""
        asked = self.options
        if asked.devices == 1:
            return "stages of several devices" if self.stages else ""
        if asked.devices != "auto" and len(self.stages) > asked.devices:
            return f"{len(self.stages)} devices, more than devices={asked.devices}"
        room = room_of(asked.capacity, self.device, self.numbers)
        for i, names in enumerate(self.stages):
            used, there = held(self.cost_graph, names, self.pinned, room)
            if used > there:
                return f"{used:,.0f} bytes of weights on device {i + 1}, which keeps {there:,.0f}"
        return ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._facts == other._facts

    def __hash__(self) -> int:
        return hash((self.graph.fingerprint(), self.decisions))

    @property
    def _facts(self) -> tuple[object, ...]:
        graphs = (self.graph.fingerprint(), self.source_graph.fingerprint())
        chosen = (
            self.objective_name,
            self.algorithm,
            self.decisions,
            self.note,
            self.options,
            self.pinned,
            self.stages,
        )
        return (*graphs, self.device, self.numbers, *chosen, self.cost_graph, self.lower_bound_s)

    @cached_property
    def assignment(self) -> Mapping[str, Side]:
        """Node name -> "cpu" or "fpga"."""
        return {decision.node: decision.device for decision in self.decisions}

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """FPGA segments and CPU pieces in the order they run in."""
        phase_of = phases(self.cost_graph, self.assignment, self.options.max_segments)
        part_of = {name: (phase, self.stage_of.get(name, 0)) for name, phase in phase_of.items()}
        members: dict[tuple[int, int], list[str]] = {}
        for node in self.graph.nodes:
            members.setdefault(part_of[node.name], []).append(node.name)
        reads: dict[tuple[int, int], list[str]] = {part: [] for part in members}
        writes: dict[tuple[int, int], list[str]] = {part: [] for part in members}
        for tensor in self.cost_graph.tensors:
            home = None if tensor.producer is None else part_of[tensor.producer]
            away = {part_of[name] for name in tensor.consumers} - {home}
            for part in away:
                reads[part].append(tensor.name)
            if home is not None and (away or tensor.output):
                writes[home].append(tensor.name)
        return tuple(
            Segment("fpga" if p[0] % 2 else "cpu", p[0], tuple(members[p]), tuple(reads[p]), tuple(writes[p]), p[1])
            for p in sorted(members)
        )

    @cached_property
    def stage_of(self) -> Mapping[str, int]:
        """FPGA node -> its device, from 0; empty where there is one device."""
        return {name: i for i, names in enumerate(self.stages) for name in names}

    @cached_property
    def priced(self) -> CostGraph:
        """The costs that were chosen by: `cost_graph` without the loads of weights that stay on the chip.

        With `weights="pinned"` those of every node, wherever it is; else those of the nodes `pinned`.
        """
        return priced(self.cost_graph, self.options.weights, self.pinned)

    @cached_property
    def objective_s(self) -> float:
        """What this placement costs by the objective, in seconds; on several devices with what lies between them."""
        if self.stages:
            return self.split.latency_s
        return objective(self.priced, self.assignment, max_segments=self.options.max_segments)

    @cached_property
    def split(self) -> Split:
        """What a batch takes in each stage and on the host by the objective: latency, and time between batches."""
        return price(self.priced, self.assignment, self.stages, self.hops, self.options.max_segments)

    @cached_property
    def hops(self) -> Mapping[str, float]:
        """Tensor -> the seconds that it takes from device to device."""
        return self.options.link.hops(self.graph, self.device, self.numbers)

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

    def explain(self, counterfactuals: bool = True) -> str:
        """`explanation` as text: the figures, what would help, every node with its reason, the steps in order."""
        from fpgasim.placement.explaining import explanation
        from fpgasim.placement.wording import text

        return text(self, explanation(self, counterfactuals))

    def explanation(self, counterfactuals: bool = True) -> Explanation:
        """Why every node is where it is and what it would cost elsewhere, what is moved, what would make it quicker.

        With `counterfactuals` the nodes are placed anew with each of them on its other side, with each group of
        unsupported ones supported, and with other limits; without, nothing is solved for.
        """
        from fpgasim.placement.explaining import explanation

        return explanation(self, counterfactuals)

    def to_dot(self) -> str:
        """A picture of the plan in Graphviz's language.

        Green nodes are on the FPGA, red ones the engine cannot compute, orange ones it could. Segments and CPU pieces
        are boxes around their nodes; thick edges cross between host and FPGA.
        """
        from fpgasim.placement.graphviz import to_dot

        return to_dot(self)

    def to_svg(self) -> str:
        """The picture of `to_dot` as SVG. Raises InputError where pygraphviz is not installed (the extra `svg`)."""
        from fpgasim.placement.graphviz import to_svg

        return to_svg(self)

    def timing(self) -> Timing:
        """What one run takes by the event model, in cycles and seconds: layers, transfers and CPU pieces in turn.

        It counts what the objective's table estimates: segments as they really follow each other. Nothing is computed.
        """
        from fpgasim.placement.timing import plan_timing

        return plan_timing(self)

    def replan(self, input_shapes: Mapping[str, tuple[int, ...]], *, keep_sides: bool = False) -> Plan:
        """This plan for inputs of other shapes: what `partition` would choose for them, asked for the same.

        Measured times on the CPU are scaled by what the table says of both shapes. With `keep_sides` every node stays
        on its side instead, and the note says so, and what the CPU alone would take where that is less. Where an input
        is empty everything is on the CPU. Raises InputError for shapes that contradict the model, PlacementError where
        what was asked for cannot be met at these shapes, or a node whose side is kept cannot stay on the FPGA.
        """
        from fpgasim.placement.partitioning import replan

        return replan(self, input_shapes, keep_sides)

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
