"""Why a network is split over several devices as it is, and what other splits would cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fpgasim.errors import PlacementError
from fpgasim.placement.cost_graph import CostGraph, Placement, Side, pin
from fpgasim.placement.pipelines import (
    SPLITS_FOR,
    Split,
    SplitFor,
    Stages,
    fill,
    held,
    linear_order,
    price,
    resident,
    room_of,
    split,
)
from fpgasim.placement.regrets import Counterfactual
from fpgasim.placement.timing import Transfer

if TYPE_CHECKING:
    from fpgasim.placement.plan import Plan


@dataclass(frozen=True)
class StageExplanation:
    """One device of a pipeline; `device` counts from 1.

    `weight_bytes` of weights stay on the chip, which has room for `capacity_bytes`; those of the nodes `streamed` load
    in every run. `receives` are the tensors that earlier devices made. `seconds` are all that the device does for a
    batch. `reason` says why it begins where it does; `earlier_s` and `later_s` what the latency would change if it
    began one node earlier or later, None where the device that had it then could not hold that, and for the first.
    """

    device: int
    nodes: tuple[str, ...]
    weight_bytes: float
    capacity_bytes: float
    streamed: tuple[str, ...]
    receives: tuple[str, ...]
    seconds: float
    reason: str
    earlier_s: float | None
    later_s: float | None


@dataclass(frozen=True)
class Alternative:
    """What the same placement would take by the same objective if it were split otherwise."""

    text: str
    devices: int
    latency_s: float
    batches_per_s: float


@dataclass(frozen=True)
class PipelineExplanation:
    """A split in figures: the `latency_s` of one batch alone, and how many leave in a second where they follow.

    `slowest` is what sets that: a device's number from 1, or 0 for the host. `needed` are the fewest devices that hold
    the weights. No split of this order of the nodes into contiguous parts has less latency (or more batches a second,
    by `split_for`); another order is not looked at. `event_latency_s` and `event_batches_per_s` are the event model's.
    """

    split_for: SplitFor
    needed: int
    latency_s: float
    batches_per_s: float
    slowest: int
    host_s: float
    hop_s: float
    link_bytes_per_s: float
    event_latency_s: float
    event_batches_per_s: float
    stages: tuple[StageExplanation, ...]
    alternatives: tuple[Alternative, ...]


def explain_pipeline(plan: Plan, transfers: tuple[Transfer, ...]) -> PipelineExplanation | None:
    """Why `plan` is split as it is; None where it is for one device, or nothing is on the FPGA."""
    if not plan.stages:
        return None
    whole, asked, timing = plan.split, plan.options, plan.timing()
    room = room_of(asked.capacity, plan.device, plan.numbers)
    busy = (whole.host_s, *whole.stage_s)
    stages = []
    for i, names in enumerate(plan.stages):
        used, there = held(plan.cost_graph, names, plan.pinned, room)
        streamed = tuple(n for n in names if plan.cost_graph.node_of[n].weight and n not in plan.pinned)
        receives = tuple(t.tensor for t in transfers if t.direction == "hop" and t.stage == i)
        stages.append(
            StageExplanation(
                device=i + 1,
                nodes=names,
                weight_bytes=used,
                capacity_bytes=there,
                streamed=streamed,
                receives=receives,
                seconds=whole.stage_s[i],
                reason=border_reason(plan, i),
                earlier_s=_moved_border(plan, i, -1),
                later_s=_moved_border(plan, i, 1),
            )
        )
    return PipelineExplanation(
        split_for=asked.split_for,
        needed=len(fill(plan.cost_graph, _order(plan), plan.pinned, room)),
        latency_s=whole.latency_s,
        batches_per_s=_rate(whole),
        slowest=max(range(len(busy)), key=busy.__getitem__),
        host_s=whole.host_s,
        hop_s=asked.hop_s,
        link_bytes_per_s=asked.link_bytes_per_s,
        event_latency_s=timing.total_ms / 1e3,
        event_batches_per_s=timing.batches_per_s,
        stages=tuple(stages),
        alternatives=tuple(_alternatives(plan)),
    )


def _order(plan: Plan) -> tuple[str, ...]:
    return linear_order(plan.cost_graph, plan.assignment, plan.options.max_segments)


def _rate(found: Split) -> float:
    return 1 / found.interval_s if found.interval_s else 0.0


def _priced(plan: Plan, stages: Stages) -> Split:
    return price(plan.priced, plan.assignment, stages, plan.hops, plan.options.max_segments)


def _fits(plan: Plan, names: tuple[str, ...]) -> bool:
    room = room_of(plan.options.capacity, plan.device, plan.numbers)
    used, there = held(plan.cost_graph, names, plan.pinned, room)
    return used <= there


def border_reason(plan: Plan, i: int) -> str:
    """Why stage `i` begins where it does: what the device before it cannot hold, or the costs."""
    if i == 0:
        return "the first nodes"
    before, names = plan.stages[i - 1], plan.stages[i]
    room = room_of(plan.options.capacity, plan.device, plan.numbers)
    for count, name in enumerate(names, 1):
        used, there = held(plan.cost_graph, (*before, *names[:count]), plan.pinned, room)
        if used > there:
            weight = f"{plan.cost_graph.node_of[name].weight:,.0f} bytes"
            how = f"({weight}) does not fit" if name in plan.pinned else f"({weight}) finds no room to stream through"
            why = f"capacity: {name} {how} on device {i}"
            return why if count == 1 else f"{why}; the best border before it"
    aim = "time between batches" if plan.options.split_for == "throughput" else "latency"
    return f"{aim}: all of it would fit on device {i}"


def _moved_border(plan: Plan, i: int, by: int) -> float | None:
    """What the latency changes if stage `i` begins `by` nodes later; None where that cannot be."""
    if i == 0:
        return None
    names = (*plan.stages[i - 1], *plan.stages[i])
    at = len(plan.stages[i - 1]) + by
    if not (0 < at < len(names) and _fits(plan, names[:at]) and _fits(plan, names[at:])):
        return None
    stages = (*plan.stages[: i - 1], names[:at], names[at:], *plan.stages[i + 1 :])
    return _priced(plan, stages).latency_s - plan.objective_s


def _alternatives(plan: Plan) -> list[Alternative]:
    """The other aim, one device more for either, and a single one that keeps nothing."""
    asked = plan.options
    count = len(plan.stages) if asked.devices == "auto" else asked.devices
    found = []
    for devices in (count, count + 1):
        for aim in SPLITS_FOR:
            if (devices, aim) == (count, asked.split_for):
                continue
            other = resplit(plan, plan.assignment, devices, aim)
            text = f"at most {devices} devices, the best for {aim}"
            if other.stages != plan.stages:
                found.append(Alternative(text, len(other.stages), other.latency_s, _rate(other)))
    streamed = price(plan.cost_graph, plan.assignment, (_order(plan),), plan.hops, asked.max_segments)
    return [*found, Alternative("one device, all weights streamed", 1, streamed.latency_s, _rate(streamed))]


def undivided(plan: Plan) -> CostGraph:
    """The costs that the sides were chosen by: of one device that holds all that the devices keep together."""
    room = room_of(plan.options.capacity, plan.device, plan.numbers)
    return pin(plan.cost_graph, resident(plan.cost_graph, plan.options.weights, room))


def resplit(
    plan: Plan,
    placement: Placement,
    devices: int | None = None,
    split_for: SplitFor | None = None,
    costs: CostGraph | None = None,
) -> Split:
    """The best split of another placement of `plan`'s nodes, by what was asked for unless said otherwise.

    `costs` are as those of `undivided`. Raises PlacementError where the devices do not hold it.
    """
    asked = plan.options
    room = room_of(asked.capacity, plan.device, plan.numbers)
    if devices is None and asked.devices != "auto":
        devices = asked.devices
    return split(
        undivided(plan) if costs is None else costs,
        placement,
        plan.hops,
        room,
        devices,
        pinned=resident(plan.cost_graph, asked.weights, room),
        split_for=asked.split_for if split_for is None else split_for,
        max_segments=asked.max_segments,
    )


def filled(plan: Plan, placement: Placement) -> Split:
    """What `placement` takes with each device filled before the next, no cost looked at."""
    room = room_of(plan.options.capacity, plan.device, plan.numbers)
    kept = resident(plan.cost_graph, plan.options.weights, room)
    costs = undivided(plan)
    stages = fill(costs, linear_order(costs, placement, plan.options.max_segments), kept, room)
    return price(costs, placement, stages, plan.hops, plan.options.max_segments)


def moved_alone(plan: Plan) -> Mapping[str, Counterfactual]:
    """Every node on its other side, all others and the borders where they are: at most that is what it would take."""
    found = {}
    for node in plan.priced.nodes:
        side: Side = "fpga" if plan.assignment[node.name] == "cpu" else "cpu"
        if side == "fpga" and node.fpga is None:
            found[node.name] = Counterfactual(side, None, None)
            continue
        placement = {**plan.assignment, node.name: side}
        try:
            if side == "fpga":
                seconds = resplit(plan, placement).latency_s
            else:
                stages = tuple(tuple(n for n in names if n != node.name) for names in plan.stages)
                stages = tuple(names for names in stages if names)
                seconds = price(plan.priced, placement, stages, plan.hops, plan.options.max_segments).latency_s
        except PlacementError:
            seconds = math.inf
        found[node.name] = Counterfactual(side, seconds, min(plan.lower_bound_s, seconds), exact=False)
    return found
