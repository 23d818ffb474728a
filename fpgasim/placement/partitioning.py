"""Choosing the placement: `partition`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from fpgasim.errors import InputError, PlacementError, UnknownNameError
from fpgasim.graph import Graph
from fpgasim.npu import Device, Numbers, get_device, resolve_numbers
from fpgasim.npu.timing import on_chip_bytes
from fpgasim.numerics import BlockFormat
from fpgasim.placement.cost_graph import CostGraph, Placement, Side, objective as cost_of, phases, pin
from fpgasim.placement.costs import CostTable, chip_capacity, cost_table
from fpgasim.placement.cpu_costs import cpu_seconds
from fpgasim.placement.mincut import lower_bound, minimum_cut
from fpgasim.placement.pipelines import SplitFor, Stages, resident, room_of, split
from fpgasim.placement.plan import (
    HOP_S,
    LINK_BYTES_PER_S,
    OBJECTIVES,
    Costs,
    Decision,
    Objective,
    Options,
    Plan,
    ReasonCode,
    priced,
)
from fpgasim.placement.problem import Weights, weight_of
from fpgasim.placement.solving import Algorithm, Maker, forced_sides, solve
from fpgasim.placement.wording import milliseconds, plural


def partition(
    graph: Graph,
    device: str | Device,
    format: str | BlockFormat,
    *,
    algorithm: Algorithm = "auto",
    objective: Objective = "latency",
    costs: Costs = "analytic",
    max_segments: int | None = None,
    capacity: float | None = None,
    weights: Weights | None = None,
    force: Mapping[str, Side] | None = None,
    cut_at: Sequence[str] | None = None,
    require_fpga: bool = False,
    devices: int | Literal["auto"] = 1,
    hop_s: float = HOP_S,
    link_bytes_per_s: float = LINK_BYTES_PER_S,
    split_for: SplitFor = "latency",
    accumulator: str | None = None,
    order: str | None = None,
    pointwise: str | None = None,
    dims: Mapping[str, int] | None = None,
    time_limit: float = 20.0,
) -> Plan:
    """The plan of `graph` on `device` in `format`: each node on the FPGA or the CPU, with the reason.

    `objective="latency"` takes the placement that is cheapest by `objective` of `fpgasim.placement`, found and proved
    by `algorithm` (see `solve`); one that would lose to the CPU alone is replaced by that. `"coverage"` puts every node
    on the FPGA that the engine can compute, whatever it costs; under a limit as many multiply-accumulates as possible.

    - `costs`: times on the CPU from a table, the same on every machine, or `"measured"` on this one (`measuring`).
    - `max_segments`: FPGA segments at most. `capacity`: bytes of weights on the FPGA at most.
    - `weights`: `"streamed"` from memory in every run, the default; `"pinned"`, all on the chip before the first run;
      `"auto"`, the best ones pinned, the others streamed. `capacity` then bounds those on the chip, and without one it
      is what the chip holds; half of that with `"auto"`, the other half being where weights stream through.
    - `force`: node name or pattern (as in a shell) -> "cpu" or "fpga".
    - `cut_at`: names of tensors; what they are not computed from stays on the CPU.
    - `require_fpga`: everything, before the cut if there is one, must be on the FPGA.
    - `devices`: FPGAs of this kind at most, which hold all weights together (`pipelines`), or `"auto"`, the fewest that
      do. They stay on the chips (`weights="pinned"`, the default then; with `"auto"` a layer that no device holds is
      streamed); `capacity` bounds those of each device. From one to the next a tensor takes `hop_s` and its bytes at
      `link_bytes_per_s`. The borders are those of the least latency or, with `split_for="throughput"`, of most batches
      a second. The sides are chosen before them, as if one device held everything.
    - `accumulator`, `order`, `pointwise` replace the device's. `dims` binds symbolic dimensions, 1 those not in it.
    - `time_limit`: seconds for a search that is not polynomial; what it cuts off is in the plan's note.

    Raises UnknownNameError for an unknown name, InputError for a value that is none, DeviceError where the format's
    block does not divide the native dimension, PlacementError naming what is in the way of a demand.
    """
    if not isinstance(graph, Graph):
        raise InputError(f"partition takes a Graph, as fpgasim.load returns it; got {type(graph).__name__}")
    if objective not in OBJECTIVES:
        raise UnknownNameError("objective", objective, OBJECTIVES)
    engine = get_device(device)
    numbers = resolve_numbers(engine, format, accumulator, order, pointwise)
    options = Options(
        algorithm,
        costs,
        max_segments,
        capacity,
        weights if weights is not None else "streamed" if devices == 1 else "pinned",
        _force(force),
        _cut_at(cut_at),
        require_fpga,
        time_limit,
        devices,
        hop_s,
        link_bytes_per_s,
        split_for,
    )
    options = dataclasses.replace(options, capacity=_capacity(options, engine, numbers))
    bound = graph.bind(dims)
    cpu_s = _measured(bound) if costs == "measured" else None
    return _planned(graph, bound, engine, numbers, objective, options, cpu_s)


def _planned(
    graph: Graph,
    bound: Graph,
    engine: Device,
    numbers: Numbers,
    objective: Objective,
    options: Options,
    cpu_s: Mapping[str, float] | None,
) -> Plan:
    """The plan of `graph` with its dimensions as in `bound`; `cpu_s` are the nodes' times on the CPU if measured."""
    table = cost_table(bound, engine, numbers, cpu_s)
    forced = _forced(bound, table, options)
    sides = {name: side for name, (side, _) in forced.items()}
    pinned: frozenset[str] = frozenset()
    stages: Stages = ()
    made: Maker = "coverage"
    whole, limits = _undivided(table.cost_graph, options, engine, numbers)
    if objective == "coverage" and options.max_segments is None and options.capacity is None:
        placement: Placement = {
            node.name: sides.get(node.name, "cpu" if node.fpga is None else "fpga") for node in table.cost_graph.nodes
        }
        bound_s, seconds, note = _lower_bound(table.cost_graph, options.weights), 0.0, _loss(whole, placement)
    else:
        found = solve(
            whole,
            options.algorithm,
            options.max_segments,
            limits.capacity,
            sides,
            weights=limits.weights,
            coverage=_macs(bound) if objective == "coverage" else None,
            time_limit=options.time_limit,
        )
        placement, pinned, made = found.placement, found.pinned, found.algorithm
        bound_s, seconds, note = found.lower_bound, found.seconds, found.note
        if objective == "coverage":  # its bound is one of the coverage
            bound_s = _lower_bound(table.cost_graph, options.weights)
    if options.devices != 1:
        room = room_of(options.capacity, engine, numbers)
        pinned = frozenset(n for n in resident(table.cost_graph, options.weights, room) if placement[n] == "fpga")
        parts = split(
            whole,
            placement,
            options.link.hops(bound, engine, numbers),
            room,
            None if options.devices == "auto" else options.devices,
            pinned=pinned,
            split_for=options.split_for,
            max_segments=options.max_segments,
        )
        stages = parts.stages
        alone = cost_of(whole, dict.fromkeys(placement, "cpu"))
        if stages and parts.latency_s > alone:
            if objective == "latency" and "fpga" not in sides.values():
                placement, pinned, made = dict.fromkeys(placement, "cpu"), frozenset(), "all-cpu"
                late = f"everything is left on the CPU: {plural(len(stages), 'device')} would take"
                note, stages = _joined(note, f"{late} {milliseconds(parts.latency_s)}"), ()
            elif not note:
                note = _slower(alone, parts.latency_s)
    costs_now = priced(table.cost_graph, options.weights, pinned)
    reasons = {name: why for name, (_, why) in forced.items()}
    return Plan(
        bound,
        graph,
        engine,
        numbers,
        objective,
        made,
        tuple(_decisions(bound, table, costs_now, placement, objective, limits, reasons)),
        table.cost_graph,
        bound_s,
        note,
        options,
        pinned,
        seconds,
        stages,
    )


def replan(plan: Plan, input_shapes: Mapping[str, tuple[int, ...]], keep_sides: bool = False) -> Plan:
    """`plan` for inputs of other shapes: see `Plan.replan`. A kept side of a node that only these bring is the CPU."""
    if not isinstance(input_shapes, Mapping):
        raise InputError(
            f"input_shapes is a {type(input_shapes).__name__}; a mapping from input name to shape, as in "
            f"{ {tensor.name: tensor.shape for tensor in plan.graph.inputs} }, would do"
        )
    for name, shape in input_shapes.items():
        if not isinstance(shape, tuple | list) or not all(isinstance(dim, int) for dim in shape):
            raise InputError(f"input {name!r}: shape {shape!r} must be a tuple of whole numbers")
    graph = plan.source_graph.with_input_shapes(input_shapes).bind()
    cpu_s = _scaled(plan, graph) if plan.options.costs == "measured" else None
    empty = any(0 in shape for shape in input_shapes.values())
    if keep_sides or empty:
        return _kept(plan, graph, cpu_s, empty)
    return _planned(plan.source_graph, graph, plan.device, plan.numbers, plan.objective_name, plan.options, cpu_s)


def _kept(plan: Plan, graph: Graph, cpu_s: Mapping[str, float] | None, empty: bool) -> Plan:
    """`plan` for `graph`, its source graph bound to other shapes, every node on its side; on the CPU if `empty`."""
    table = cost_table(graph, plan.device, plan.numbers, cpu_s)
    placement: dict[str, Side] = {node.name: plan.assignment.get(node.name, "cpu") for node in graph.nodes}
    note = f"every node is on its side in the plan for {_shapes(plan.graph)}"
    if empty:  # nothing to compute: the CPU knows what shape that has
        placement, note = dict.fromkeys(placement, "cpu"), "everything is left on the CPU: an input is empty"
    for name, (_, message) in table.unsupported.items():
        if placement[name] == "fpga":
            raise PlacementError(
                f"node {name!r} cannot stay on the FPGA at these shapes: {message}; keep_sides=False would do"
            )
    on_fpga = {name for name, side in placement.items() if side == "fpga"}
    pinned = plan.pinned & on_fpga
    stages = tuple(tuple(name for name in names if name in on_fpga) for names in plan.stages)
    limits = _undivided(table.cost_graph, plan.options, plan.device, plan.numbers)[1]
    reasons = {d.node: d.message for d in plan.decisions if d.code == "forced" and placement.get(d.node) == d.device}
    costs = priced(table.cost_graph, plan.options.weights, pinned)
    kept = dataclasses.replace(
        plan,
        graph=graph,
        algorithm=plan.algorithm if on_fpga else "all-cpu",
        decisions=tuple(_decisions(graph, table, costs, placement, plan.objective_name, limits, reasons)),
        cost_graph=table.cost_graph,
        lower_bound_s=_lower_bound(table.cost_graph, plan.options.weights),
        note=note,
        pinned=pinned,
        solver_s=0.0,
        stages=tuple(names for names in stages if names),
    )
    loss = _slower(kept.all_cpu_s, kept.objective_s) if kept.all_cpu_s < kept.objective_s else ""
    return dataclasses.replace(kept, note=_joined(note, loss))


def _shapes(graph: Graph) -> str:
    return ", ".join(f"{tensor.name} {tensor.shape}" for tensor in graph.inputs) or "no input"


def _force(force: object) -> tuple[tuple[str, Side], ...]:
    if force is None:
        return ()
    if not isinstance(force, Mapping):
        raise InputError(f"force={force!r} must map node names or patterns to sides, as in {{'conv*': 'cpu'}}")
    return tuple(force.items())


def _cut_at(cut_at: object) -> tuple[str, ...]:
    if cut_at is None:
        return ()
    if isinstance(cut_at, str) or not isinstance(cut_at, Sequence):
        raise InputError(f"cut_at={cut_at!r} must be a list of tensor names")
    return tuple(cut_at)


def _capacity(options: Options, device: Device, numbers: Numbers) -> float | None:
    """The capacity to plan with; InputError for one beyond the chip's where weights are to stay on it."""
    if options.weights == "streamed" or (options.devices != 1 and options.capacity is None):
        return options.capacity
    if options.capacity is None:
        return chip_capacity(options.weights, device, numbers)
    there = on_chip_bytes(device, numbers)
    if options.capacity > there:
        raise InputError(
            f"capacity={options.capacity:,} bytes of weights do not stay on {device.name!r}, which holds {there:,} in "
            f"{numbers.format.name}"
        )
    return options.capacity


def _undivided(costs: CostGraph, options: Options, device: Device, numbers: Numbers) -> tuple[CostGraph, Options]:
    """What the sides are chosen by: for several devices as if one of them held all that they keep."""
    if options.devices == 1:
        return costs, options
    kept = resident(costs, options.weights, room_of(options.capacity, device, numbers))
    return pin(costs, kept), dataclasses.replace(options, devices=1, weights="streamed", capacity=None)


def _measured(graph: Graph) -> dict[str, float]:
    from fpgasim.placement.measuring import measured_seconds

    return measured_seconds(graph)


def _scaled(plan: Plan, graph: Graph) -> dict[str, float]:
    """The measured times for the shapes of `graph`: what the table says of both shapes is their ratio."""
    before = {
        decision.node: decision.cpu_s / cpu_seconds(plan.graph, node)
        for decision, node in zip(plan.decisions, plan.graph.nodes, strict=True)
    }
    return {node.name: cpu_seconds(graph, node) * before.get(node.name, 1.0) for node in graph.nodes}


def _macs(graph: Graph) -> dict[str, float]:
    return {node.name: float(graph.macs(node)) for node in graph.nodes}


def _loss(costs: CostGraph, placement: Placement) -> str:
    """What the CPU alone would take, where `placement` takes longer; else ''."""
    alone, here = cost_of(costs, dict.fromkeys(placement, "cpu")), cost_of(costs, placement)
    return _slower(alone, here) if alone < here else ""


def _slower(alone: float, here: float) -> str:
    return f"the CPU alone would take {milliseconds(alone)} instead of {milliseconds(here)}"


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _lower_bound(graph: CostGraph, weights: Weights) -> float:
    """A bound below the objective of every placement, whatever is forced, limited, or pinned if it may be."""
    cheapest = graph if weights == "streamed" else pin(graph, graph.node_of)
    return lower_bound(cheapest, minimum_cut(cheapest))


def _forced(graph: Graph, table: CostTable, options: Options) -> dict[str, tuple[Side, str]]:
    """Node name -> the side it must be on and who says so. Raises PlacementError where demands contradict."""
    forced: dict[str, tuple[Side, str]] = {
        name: (side, "force puts it there")
        for name, side in forced_sides(table.cost_graph, dict(options.force)).items()
    }
    required = {node.name for node in graph.nodes if node.op_type != "Constant" or node.domain}
    if options.cut_at:
        where = f"the cut at {', '.join(map(repr, options.cut_at))}"
        before = _before(graph, table.cost_graph, options.cut_at)
        required &= before
        for name in table.cost_graph.node_of:
            if name in before:
                continue
            if forced.get(name, ("cpu", ""))[0] == "fpga":
                raise PlacementError(f"force puts node {name!r} on the FPGA, but it is behind {where}")
            forced[name] = "cpu", f"behind {where}"
    if options.require_fpga:
        missing = [
            f"{name!r} ({why})" for name in graph_order(graph, required) if (why := _why_not(name, table, forced))
        ]
        if missing:
            raise PlacementError(
                f"require_fpga: {len(missing)} of {len(required)} nodes cannot be on the FPGA: {', '.join(missing)}"
            )
        forced |= dict.fromkeys(graph_order(graph, required), ("fpga", "require_fpga puts it there"))
    _check_room(table.cost_graph, forced, options)
    return forced


def _check_room(costs: CostGraph, forced: Mapping[str, tuple[Side, str]], options: Options) -> None:
    """Raises PlacementError naming the node at which the weights of those forced to the FPGA exceed its capacity."""
    names = [name for name in costs.node_of if forced.get(name, ("cpu", ""))[0] == "fpga"]
    if options.capacity is None or options.devices != 1 or options.weights == "auto":
        return
    if weight_of(costs, names) <= options.capacity:
        return
    for i, name in enumerate(names, 1):
        if weight_of(costs, names[:i]) > options.capacity:
            raise PlacementError(
                f"capacity={options.capacity:,.0f} bytes of weights do not hold those of the "
                f"{plural(len(names), 'node')} that must be on the FPGA, {weight_of(costs, names):,.0f}; "
                f"{name!r}, with {costs.node_of[name].weight:,.0f}, is the first without room ({forced[name][1]})"
            )


def graph_order(graph: Graph, names: Collection[str]) -> Iterator[str]:
    """`names` in the order of the nodes of `graph`."""
    return (node.name for node in graph.nodes if node.name in names)


def _why_not(name: str, table: CostTable, forced: Mapping[str, tuple[Side, str]]) -> str:
    """Why node `name` cannot be on the FPGA; '' where it can."""
    if name in table.unsupported:
        return "{}: {}".format(*table.unsupported[name])
    return "forced to the CPU" if forced.get(name, ("fpga", ""))[0] == "cpu" else ""


def _before(graph: Graph, cost_graph: CostGraph, cut_at: Sequence[str]) -> set[str]:
    """The nodes that the tensors `cut_at` are computed from."""
    pending = []
    for name in cut_at:
        producer = graph.producer(name)  # an InputError names the tensors that are close
        if producer is None:
            raise InputError(f"cut_at: tensor {name!r} is fed or constant; one that a node computes would do")
        pending.append(producer.name)
    found: set[str] = set()
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += cost_graph.predecessors[node]
    return found


def _decisions(
    graph: Graph,
    table: CostTable,
    costs: CostGraph,
    placement: Placement,
    objective: Objective,
    options: Options,
    forced: Mapping[str, str],
) -> Iterator[Decision]:
    """Every node with its reason; `costs` are without the loads of what stays on the chip."""
    total = cost_of(costs, placement, max_segments=options.max_segments)
    wanted = _wanted(graph, costs, objective, options)
    for node in costs.nodes:
        side = placement[node.name]
        code: ReasonCode
        if node.fpga is None:
            code, message = table.unsupported[node.name]
        elif node.name in forced:
            code, message = "forced", forced[node.name]
        elif side == "fpga" and objective == "coverage":
            code, message = "coverage", "the engine can compute it"
        elif side == "fpga" and node.fpga < node.cpu:
            code, message = "cheaper-on-fpga", f"{milliseconds(node.cpu - node.fpga)} quicker by itself"
        elif side == "cpu" and node.name in wanted and (limit := _limit(costs, placement, node.name, options)):
            code, message = limit
        else:
            other: Side = "cpu" if side == "fpga" else "fpga"
            moved = {**placement, node.name: other}
            more = cost_of(costs, moved, max_segments=options.max_segments) - total
            quicker = (node.fpga < node.cpu) == (side == "fpga")
            code = "saves-transfer" if side == "fpga" else "cheaper-on-cpu" if quicker else "not-worth-transfer"
            message = (
                f"{milliseconds(abs(node.cpu - node.fpga))} {'quicker' if quicker else 'slower'} by itself; "
                f"moving it alone to the {other.upper()} would change the whole by {more * 1e3:+.3g} ms"
            )
        yield Decision(node.name, side, code, message, node.cpu, node.fpga)


def _wanted(graph: Graph, costs: CostGraph, objective: Objective, options: Options) -> set[str]:
    """The nodes that would be on the FPGA were there no limit; none if there is none."""
    if options.max_segments is None and options.capacity is None:
        return set()
    if objective == "coverage":
        return {name for name, macs in _macs(graph).items() if macs}
    return {name for name, side in minimum_cut(costs).placement.items() if side == "fpga"}


def _limit(costs: CostGraph, placement: Placement, name: str, options: Options) -> tuple[ReasonCode, str] | None:
    """The limit that keeps node `name`, which would be on the FPGA without any, on the CPU."""
    weight = costs.node_of[name].weight
    if options.capacity is not None and options.weights != "auto" and weight:
        used = sum(node.weight for node in costs.nodes if placement[node.name] == "fpga")
        if used + weight > options.capacity:
            both = f"its {weight:,.0f} bytes of weights and the {used:,.0f} there"
            return "capacity", f"{both} exceed {options.capacity:,.0f}"
    if options.max_segments is not None:
        count = len({p for p in phases(costs, {**placement, name: "fpga"}, options.max_segments).values() if p % 2})
        if count > options.max_segments:
            return "segment-limit", f"with it there would be {count} FPGA segments, and {options.max_segments} may be"
        return "segment-limit", f"no better use of {options.max_segments} FPGA segments"
    return None
