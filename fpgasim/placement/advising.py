"""What stands in the way of a quicker plan, and what removing it would save: by placing the nodes anew.

An obstacle is a group of nodes that the engine cannot compute, all of one operator and for one reason. What supporting
them would save is reckoned as if each took one pass through the pointwise unit, for as many vectors as its output has:
less it cannot take, and more it would take only if it were a product or a reduction.

Everything here is reckoned by the rule that the plan was made by: for the shortest time by placing all nodes anew
within its limits, for coverage by putting on the FPGA what could be there and leaving the rest.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from fpgasim.errors import PlacementError
from fpgasim.npu import Layer, Stage
from fpgasim.npu.segment import nhwc_shape
from fpgasim.npu.timing import layer_timing
from fpgasim.placement.cost_graph import CostGraph, Placement, objective
from fpgasim.placement.costs import chip_capacity
from fpgasim.placement.explaining_stages import resplit, undivided
from fpgasim.placement.solving import Solution, forced_sides, fpga_segments, solve, what_if
from fpgasim.placement.wording import WORTH, few, milliseconds, plural

if TYPE_CHECKING:
    from fpgasim.placement.plan import Decision, Plan

#: All that is solved anew for one explanation takes no longer than about this, one question no longer than ASK_S. What
#: is always reckoned, bounds and what they are compared with, may run over by some seconds on a busy machine.
TOTAL_S = 8.0
ASK_S = 3.0


@dataclass(frozen=True)
class Obstacle:
    """Nodes that the engine cannot compute, of one operator and for one reason.

    `message` is that of the first node. `round_trips` are the CPU pieces between two FPGA segments that they are a
    cause of: a path leads from the FPGA through them back to it. `saves_s` is what the whole would take less if the
    engine could compute them, `segments` how many FPGA segments there would be, `frees` which other nodes would then be
    on the FPGA too. They are None and empty where nothing can be said: a shape is not known, or it is control flow, or
    the time did not do. Where `exact` is False it would save at least that.
    """

    operator: str
    code: str
    message: str
    nodes: tuple[str, ...]
    round_trips: int
    saves_s: float | None = None
    segments: int | None = None
    frees: tuple[str, ...] = ()
    exact: bool = True


@dataclass(frozen=True)
class Advice:
    """Something else to ask for, or to support all obstacles at once, and what it would save, or at least save."""

    kind: Literal["support", "algorithm", "objective", "max_segments", "capacity", "weights", "force", "cut_at"]
    text: str
    saves_s: float
    exact: bool = True


class Clock:
    """Deals out the time there is for solving."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def slice(self) -> float:
        """How long the next question may take; 0 when the time is over."""
        return min(ASK_S, self.left())

    def left(self) -> float:
        """Seconds until the time is over."""
        return max(0.0, self._end - time.monotonic())


def find_obstacles(plan: Plan, clock: Clock | None) -> tuple[Obstacle, ...]:
    """The obstacles of `plan`, those that cost most first. Without a `clock` nothing is solved for."""
    groups: dict[tuple[str, str, str], list[Decision]] = {}
    for decision in _hindered(plan):
        groups.setdefault(_kind_of(plan, decision), []).append(decision)
    between = _between(plan)
    found = []
    for (operator, code, _), members in groups.items():
        names = tuple(decision.node for decision in members)
        trips = {between[name] for name in names if name in between}
        obstacle = Obstacle(operator, code, members[0].message, names, len(trips))
        found.append(obstacle if clock is None else _reckoned(plan, obstacle, clock))
    return tuple(sorted(found, key=lambda o: (-(o.saves_s or 0.0), -o.round_trips)))


def _hindered(plan: Plan) -> Iterator[Decision]:
    """What the engine cannot compute and nobody wants on the CPU anyway. A Constant is on both sides from the start."""
    wanted = set(plan.assignment)
    if plan.options.cut_at:
        pending = [producer.name for name in plan.options.cut_at if (producer := plan.graph.producer(name)) is not None]
        wanted = set()
        while pending:
            name = pending.pop()
            if name not in wanted:
                wanted.add(name)
                pending += plan.cost_graph.predecessors[name]
    wanted -= forced_sides(plan.cost_graph, dict(plan.options.force)).keys()
    for decision in plan.decisions:
        if decision.fpga_s is None and decision.node in wanted and plan.graph.node(decision.node).op_type != "Constant":
            yield decision


def _kind_of(plan: Plan, decision: Decision) -> tuple[str, str, str]:
    """Operator with its modes, code, and what the message says but for names and sizes."""
    node = plan.graph.node(decision.node)
    modes = [f"{k}={v}" for k, v in sorted(node.attributes.items()) if isinstance(v, str) and v != "NOTSET"]
    names = {*node.inputs, *node.outputs}
    said = re.sub(r"'([^']*)'", lambda match: "" if match[1] in names else match[0], decision.message)
    said = re.sub(r"\([\d, ?]*\)", "", said)
    said = re.sub(r"\d+", "", said) if decision.code == "too-large" else said
    return " ".join([node.op_type, ", ".join(modes)]).strip(), decision.code, said


def _between(plan: Plan) -> dict[str, int]:
    """CPU node that lies between FPGA nodes, on a path -> its phase."""
    graph, on = plan.cost_graph, plan.assignment
    behind = dict.fromkeys(graph.order, False)
    before = dict(behind)
    for name in graph.order:
        behind[name] = any(on[p] == "fpga" or behind[p] for p in graph.predecessors[name])
    for name in reversed(graph.order):
        for producer in graph.predecessors[name]:
            before[producer] = before[producer] or on[name] == "fpga" or before[name]
    phase_of = {name: segment.phase for segment in plan.segments for name in segment.nodes}
    return {name: phase_of[name] for name in graph.order if on[name] == "cpu" and behind[name] and before[name]}


def _reckoned(plan: Plan, obstacle: Obstacle, clock: Clock) -> Obstacle:
    answer = _supported(plan, obstacle.nodes, clock)
    if answer is None:
        return obstacle
    placement = answer.placement
    return replace(
        obstacle,
        saves_s=max(0.0, plan.objective_s - answer.seconds),
        segments=answer.segments,
        frees=tuple(
            name
            for name, side in placement.items()
            if side == "fpga" and plan.assignment[name] == "cpu" and name not in obstacle.nodes
        ),
        exact=answer.exact,
    )


@dataclass(frozen=True)
class _Answer:
    placement: Placement
    seconds: float
    segments: int
    exact: bool


def _supported(plan: Plan, names: Collection[str], clock: Clock) -> _Answer | None:
    """What the plan's rule would do if the engine could compute the nodes `names`; None where nothing can be said."""
    passes = {name: pointwise_seconds(plan, name) for name in names}
    fpga_s = {name: seconds for name, seconds in passes.items() if seconds is not None}
    left = clock.slice()
    if len(fpga_s) < len(passes) or left <= 0:
        return None
    if plan.objective_name == "latency":
        found = _asked(lambda: what_if(_costs(plan), fpga_s, **_limits(plan), time_limit=left))
        if found is None:
            return None
        return _answer(plan, found, _with_times(_costs(plan), fpga_s))
    costs = _with_times(plan.priced, fpga_s)
    placement: Placement = {**plan.assignment, **dict.fromkeys(fpga_s, "fpga")}
    seconds = objective(costs, placement, max_segments=plan.options.max_segments)
    if plan.options.devices != 1:
        seconds = resplit(plan, placement, costs=costs).latency_s
    return _Answer(placement, seconds, len(fpga_segments(costs, placement, plan.options.max_segments)), True)


def _with_times(costs: CostGraph, fpga_s: Mapping[str, float]) -> CostGraph:
    return replace(costs, nodes=tuple(replace(node, fpga=fpga_s.get(node.name, node.fpga)) for node in costs.nodes))


def pointwise_seconds(plan: Plan, name: str) -> float | None:
    """What one pass through the pointwise unit takes for the first output of a node; None where nobody can say.

    That is where the output's shape is not known before the run and where the node is control flow.
    """
    import onnx_ir as ir

    node = plan.graph.node(name)
    shape = plan.graph.tensor(node.outputs[0]).shape if node.outputs and node.outputs[0] else None
    dims = tuple(dim for dim in shape or () if isinstance(dim, int))
    bodies = [value for value in node.attributes.values() if isinstance(value, ir.Graph)]
    if shape is None or len(dims) < len(shape) or min(dims, default=1) < 1 or bodies:
        return None
    size = 1
    for dim in dims:
        size *= dim
    image = nhwc_shape(dims if len(dims) in (2, 4) else (1, size))
    layer = Layer(name, "pointwise", (name,), ("in",), "in", image, image, (Stage("relu", "out"),))
    return layer_timing(layer, plan.device, plan.numbers).compute_cycles / plan.device.clock_hz


def find_advice(plan: Plan, obstacles: Sequence[Obstacle], clock: Clock) -> tuple[Advice, ...]:
    """What else to ask `partition` for, and what it would save; what saves most first."""
    found = [*_together(plan, obstacles, clock), *_questions(plan, clock)]
    found = [advice for advice in found if advice.saves_s > WORTH * plan.objective_s]
    return tuple(sorted(found, key=lambda advice: -advice.saves_s))


def _together(plan: Plan, obstacles: Sequence[Obstacle], clock: Clock) -> Iterator[Advice]:
    """All obstacles supported at once: where several cause a round trip, supporting one of them saves little."""
    known = [obstacle for obstacle in obstacles if obstacle.saves_s is not None]
    if len(known) > 1:
        answer = _supported(plan, [name for obstacle in known for name in obstacle.nodes], clock)
        if answer is not None:
            operators = few(list(dict.fromkeys(obstacle.operator for obstacle in known)))
            text = f"supporting {operators} together would take {_outcome(answer.seconds, answer.segments)}"
            yield Advice("support", text, plan.objective_s - answer.seconds, answer.exact)


def _outcome(seconds: float, segments: int) -> str:
    return f"{milliseconds(seconds)} in {plural(segments, 'FPGA segment')}"


def _questions(plan: Plan, clock: Clock) -> Iterator[Advice]:
    options = plan.options
    segments = sum(segment.kind == "fpga" for segment in plan.segments)

    def ask(kind: Any, what: str, **changes: Any) -> Iterator[Advice]:
        left = clock.slice()
        limits = {**_limits(plan), **changes}
        found = _asked(lambda: solve(_costs(plan), **limits, time_limit=left)) if left > 0 else None
        answer = None if found is None else _answer(plan, found, _costs(plan))
        if answer is not None:
            text = f"{what} it would take {_outcome(answer.seconds, answer.segments)}"
            yield Advice(kind, text, plan.objective_s - answer.seconds, answer.exact)

    if plan.objective_name == "coverage":  # the rest would be of another objective
        yield from ask("objective", 'with objective="latency"')
        return
    if options.algorithm != "auto" and plan.gap > WORTH:
        yield from ask("algorithm", 'with algorithm="auto"')
    if options.max_segments is not None and segments >= options.max_segments:
        more = options.max_segments + 1
        one_more = list(ask("max_segments", f"with max_segments={more}", max_segments=more))
        no_limit = list(ask("max_segments", "without max_segments", max_segments=None))
        yield from one_more
        if not one_more or any(a.saves_s > one_more[0].saves_s + WORTH * plan.objective_s for a in no_limit):
            yield from no_limit
    if options.capacity is not None and options.weights == "streamed":
        yield from ask("capacity", "without capacity", capacity=None)
    if options.weights == "streamed" and options.capacity is None and segments:
        room = chip_capacity("auto", plan.device, plan.numbers)
        what = f'with weights="auto", up to {room:,} bytes of them kept on the chip,'
        yield from ask("weights", what, weights="auto", capacity=room)
    demands = _limits(plan)["force"]
    forced = forced_sides(plan.cost_graph, dict(options.force)).keys() & demands.keys()
    if forced:
        left = {name: side for name, side in demands.items() if name not in forced}
        yield from ask("force", f"without force on {few([n for n in demands if n in forced])}", force=left)
    if options.cut_at and demands.keys() - forced:
        left = {name: side for name, side in demands.items() if name in forced}
        yield from ask("cut_at", f"without the cut at {few(options.cut_at)}", force=left)


def _limits(plan: Plan) -> dict[str, Any]:
    """What bounds the plan, as arguments of `solve`."""
    options = plan.options
    one = options.devices == 1
    return {
        "max_segments": options.max_segments,
        "capacity": options.capacity if one else None,
        "force": {decision.node: decision.device for decision in plan.decisions if decision.code == "forced"},
        "weights": options.weights if one else "streamed",
    }


def _costs(plan: Plan) -> CostGraph:
    """What sides are chosen by within `_limits`."""
    return plan.cost_graph if plan.options.devices == 1 else undivided(plan)


def _answer(plan: Plan, found: Solution, costs: CostGraph) -> _Answer | None:
    """`found` as an answer; on several devices split anew, which its sides were not chosen for."""
    seconds, exact = found.objective, _proved(found)
    if plan.options.devices != 1:
        try:
            seconds, exact = resplit(plan, found.placement, costs=costs).latency_s, False
        except PlacementError:
            return None
    return _Answer(found.placement, seconds, len(found.segments), exact)


def _asked(question: Callable[[], Solution]) -> Solution | None:
    """The answer, or None where there is no such placement."""
    try:
        return question()
    except PlacementError:
        return None


def _proved(solution: Solution) -> bool:
    return solution.gap <= WORTH
