"""`Explanation`: a plan in figures, node by node and as a whole, and what would make it quicker.

`Explanation.to_dict` is the JSON form; docs/explaining.md says what each key means.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from fpgasim.errors import PlacementError
from fpgasim.placement.advising import TOTAL_S, Advice, Clock, Obstacle, find_advice, find_obstacles
from fpgasim.placement.cost_graph import Side, objective
from fpgasim.placement.explaining_stages import PipelineExplanation, explain_pipeline, filled, moved_alone, undivided
from fpgasim.placement.regrets import Counterfactual, counterfactuals as find_counterfactuals
from fpgasim.placement.solving import solve
from fpgasim.placement.timing import Direction, Transfer, plan_transfers

if TYPE_CHECKING:
    from fpgasim.placement.plan import Plan, ReasonCode

#: Of `to_dict`; raised by one whenever a key goes or changes its meaning.
SCHEMA = 1


@dataclass(frozen=True)
class NodeExplanation:
    """A node: where it runs, why, what it costs here and there, and what the whole with it on the other side.

    `step` is the step it runs in, from 1. `receives` and `sends` are the tensors it reads and makes that are moved
    to or from it. `other_side` is None where nothing was solved for. `on_device` counts the devices of a pipeline from
    1; it is 0 on the CPU and where there is one.
    """

    name: str
    operator: str
    device: Side
    step: int
    code: ReasonCode
    message: str
    macs: int
    cpu_s: float
    fpga_s: float | None
    weight_bytes: float
    pinned: bool
    receives: tuple[str, ...]
    sends: tuple[str, ...]
    other_side: Counterfactual | None
    on_device: int = 0


@dataclass(frozen=True)
class Step:
    """An FPGA segment or a CPU piece, in running order.

    `seconds` are its nodes with its launch or call, less what pairs of nodes save; all steps and all transfers add up
    to the objective. A tensor is moved once and stays: `to_fpga` are those brought for this step first, `to_cpu` those
    it makes that the host needs. `hops` are those that come for it from earlier devices, `on_device` its own, from 1;
    0 on the CPU and where there is one.
    """

    kind: Side
    nodes: tuple[str, ...]
    seconds: float
    weight_bytes: float
    to_fpga: tuple[str, ...]
    to_cpu: tuple[str, ...]
    hops: tuple[str, ...] = ()
    on_device: int = 0


@dataclass(frozen=True)
class Baseline:
    """What is compared with: its time by the same objective, and how many FPGA segments it has."""

    seconds: float
    segments: int


@dataclass(frozen=True)
class Explanation:
    """A plan in figures; all times in seconds.

    `greedy` is what a partitioner that looks at no costs would do within the same limits: everything the engine can
    compute on the FPGA, in topological order, until a limit is reached; None where that meets none of the demands.
    `event_model_s` is what the event model says of the plan (`Plan.timing`); it is not what was minimised. `obstacles`
    and `advice` say what would make it quicker; without counterfactuals there is no advice and no saving. `pipeline` is
    None where one device was asked for.
    """

    schema: int
    network: str
    device: str
    format: str
    accumulator: str
    order: str
    pointwise: str
    objective: str
    algorithm: str
    options: Mapping[str, Any]
    note: str
    objective_s: float
    lower_bound_s: float
    gap: float
    all_cpu_s: float
    greedy: Baseline | None
    event_model_s: float
    solver_s: float
    macs: int
    fpga_mac_share: float
    steps: tuple[Step, ...]
    transfers: tuple[Transfer, ...]
    obstacles: tuple[Obstacle, ...]
    advice: tuple[Advice, ...]
    nodes: tuple[NodeExplanation, ...]
    pipeline: PipelineExplanation | None = None

    def to_dict(self) -> dict[str, Any]:
        """The explanation as JSON values: the fields by name."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values


def explanation(plan: Plan, counterfactuals: bool = True) -> Explanation:
    """The explanation of `plan`: see `Plan.explanation`."""
    clock = Clock(TOTAL_S) if counterfactuals else None
    transfers = tuple(plan_transfers(plan))
    obstacles = find_obstacles(plan, clock)
    numbers = plan.numbers
    return Explanation(
        schema=SCHEMA,
        network=plan.graph.name,
        device=plan.device.name,
        format=numbers.format.name,
        accumulator=numbers.accumulator,
        order=numbers.order,
        pointwise=numbers.pointwise,
        objective=plan.objective_name,
        algorithm=plan.algorithm,
        options=dataclasses.asdict(plan.options),
        note=plan.note,
        objective_s=plan.objective_s,
        lower_bound_s=plan.lower_bound_s,
        gap=plan.gap,
        all_cpu_s=plan.all_cpu_s,
        greedy=_greedy(plan),
        event_model_s=plan.timing().total_ms / 1e3,
        solver_s=plan.solver_s,
        macs=sum(plan.graph.macs(node) for node in plan.graph.nodes),
        fpga_mac_share=plan.fpga_mac_share,
        steps=steps_of(plan, transfers),
        transfers=transfers,
        obstacles=obstacles,
        advice=() if clock is None else find_advice(plan, obstacles, clock),
        nodes=_nodes(plan, transfers, {} if clock is None else _other_sides(plan, clock)),  # in the time that is left
        pipeline=explain_pipeline(plan, transfers),
    )


def _demands(plan: Plan) -> dict[str, Side]:
    return {decision.node: decision.device for decision in plan.decisions if decision.code == "forced"}


def _greedy(plan: Plan) -> Baseline | None:
    options = plan.options
    limits = options.max_segments, options.capacity, _demands(plan)
    if options.devices != 1:
        try:
            found = solve(undivided(plan), "greedy", options.max_segments, None, _demands(plan))
            return Baseline(filled(plan, found.placement).latency_s, len(found.segments))
        except PlacementError:
            return None
    try:
        found = solve(plan.cost_graph, "greedy", *limits, weights=options.weights)
    except PlacementError:
        return None
    return Baseline(found.objective, len(found.segments))


def _other_sides(plan: Plan, clock: Clock) -> Mapping[str, Counterfactual]:
    """Every node on its other side and the rest as the plan's rule then has it; for coverage that is where it is.

    So it is on several devices, where that is only a bound from above.
    """
    options = plan.options
    if options.devices != 1:
        return moved_alone(plan)
    if plan.objective_name == "latency":
        return find_counterfactuals(
            plan.cost_graph,
            plan.assignment,
            force=_demands(plan),
            max_segments=options.max_segments,
            capacity=options.capacity,
            weights=options.weights,
            time_limit=clock.left(),
        )
    found = {}
    for node in plan.priced.nodes:
        side: Side = "fpga" if plan.assignment[node.name] == "cpu" else "cpu"
        seconds = None
        if side == "cpu" or node.fpga is not None:
            moved = {**plan.assignment, node.name: side}
            seconds = objective(plan.priced, moved, max_segments=options.max_segments)
        found[node.name] = Counterfactual(side, seconds, seconds)
    return found


def steps_of(plan: Plan, transfers: Sequence[Transfer]) -> tuple[Step, ...]:
    """The segments and pieces of `plan` in running order."""
    costs = plan.priced
    on_the_way = {direction: set[tuple[str, int]]() for direction in get_args(Direction)}
    for transfer in transfers:
        on_the_way[transfer.direction].add((transfer.tensor, transfer.stage))

    def moved(direction: Direction, names: Sequence[str], stage: int) -> tuple[str, ...]:
        """Those of `names` that go that way, each the first time that it is asked about."""
        found = tuple(name for name in names if (name, stage) in on_the_way[direction])
        on_the_way[direction] -= {(name, stage) for name in found}
        return found

    saves: dict[str, float] = {}
    for pair in costs.pairs:
        same = plan.stage_of.get(pair.first) == plan.stage_of.get(pair.second)
        if same and plan.assignment[pair.first] == plan.assignment[pair.second] == "fpga":
            saves[pair.second] = saves.get(pair.second, 0.0) + pair.saves
    steps = []
    for segment in plan.segments:
        to_fpga: tuple[str, ...] = ()
        to_cpu: tuple[str, ...] = ()
        hops: tuple[str, ...] = ()
        nodes = [costs.node_of[name] for name in segment.nodes]
        if segment.kind == "cpu":
            terms = [costs.cpu_call, *(node.cpu for node in nodes)]
        else:
            terms = [costs.launch, *(node.fpga or 0.0 for node in nodes), *(-saves.get(n.name, 0.0) for n in nodes)]
            to_fpga = moved("to_fpga", segment.inputs, segment.stage)
            hops = moved("hop", segment.inputs, segment.stage)
            to_cpu = moved("to_cpu", segment.outputs, segment.stage)
        weight_bytes = sum(node.weight for node in nodes)
        number = segment.stage + 1 if plan.stages and segment.kind == "fpga" else 0
        seconds = math.fsum(terms)
        steps.append(Step(segment.kind, segment.nodes, seconds, weight_bytes, to_fpga, to_cpu, hops, number))
    return tuple(steps)


def _nodes(
    plan: Plan, transfers: Sequence[Transfer], other_sides: Mapping[str, Counterfactual]
) -> tuple[NodeExplanation, ...]:
    moved = {transfer.tensor for transfer in transfers}
    place = {name: (side, plan.stage_of.get(name, 0)) for name, side in plan.assignment.items()}
    receives: dict[str, list[str]] = {name: [] for name in plan.assignment}
    sends: dict[str, list[str]] = {name: [] for name in plan.assignment}
    for tensor in plan.cost_graph.tensors:
        home = ("cpu", 0) if tensor.producer is None else place[tensor.producer]
        if tensor.name in moved:
            for name in tensor.consumers:
                if place[name] != home:
                    receives[name].append(tensor.name)
            if tensor.producer is not None:
                sends[tensor.producer].append(tensor.name)
    step_of = {name: i for i, segment in enumerate(plan.segments, 1) for name in segment.nodes}
    return tuple(
        NodeExplanation(
            name=decision.node,
            operator=node.op_type,
            device=decision.device,
            step=step_of[decision.node],
            code=decision.code,
            message=decision.message,
            macs=plan.graph.macs(node),
            cpu_s=decision.cpu_s,
            fpga_s=decision.fpga_s,
            weight_bytes=plan.cost_graph.node_of[decision.node].weight,
            pinned=decision.node in plan.pinned,
            receives=tuple(receives[decision.node]),
            sends=tuple(sends[decision.node]),
            other_side=other_sides.get(decision.node),
            on_device=plan.stage_of.get(decision.node, -1) + 1,
        )
        for decision, node in zip(plan.decisions, plan.graph.nodes, strict=True)
    )
