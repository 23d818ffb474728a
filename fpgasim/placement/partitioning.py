"""Choosing the placement: `partition`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from fpgasim.errors import InputError, PlacementError, UnknownNameError
from fpgasim.graph import Graph
from fpgasim.npu import Device, get_device, resolve_numbers
from fpgasim.numerics import BlockFormat
from fpgasim.placement import cost_graph
from fpgasim.placement.cost_graph import Placement, Side
from fpgasim.placement.costs import CostTable, cost_table
from fpgasim.placement.explaining import milliseconds
from fpgasim.placement.mincut import lower_bound, minimum_cut
from fpgasim.placement.plan import OBJECTIVES, Decision, Objective, Plan, ReasonCode, Winner

Algorithm = Literal["auto", "mincut"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
COSTS = ("analytic",)


def partition(
    graph: Graph,
    device: str | Device,
    format: str | BlockFormat,
    *,
    algorithm: Algorithm = "auto",
    objective: Objective = "latency",
    costs: Literal["analytic"] = "analytic",
    accumulator: str | None = None,
    order: str | None = None,
    pointwise: str | None = None,
    dims: Mapping[str, int] | None = None,
) -> Plan:
    """The plan of `graph` on `device` in `format`: each node on the FPGA or the CPU, with the reason.

    `objective="latency"` takes the cheapest placement by `objective` of `fpgasim.placement.cost_graph`:
    `algorithm="mincut"` the minimum cut (exact but for launches and CPU calls), `"auto"` the better one of that and of
    everything the engine can compute; a plan that would lose to the CPU alone is replaced by that. `"coverage"` puts
    every node on the FPGA that the engine can compute, whatever it costs. Symbolic dimensions are bound to `dims`, to
    1 where it has none. `accumulator`, `order` and `pointwise` replace the device's.

    Raises UnknownNameError for an unknown name, DeviceError where the format's block does not divide the native
    dimension, InputError for what is not a Graph or a size below 1.
    """
    if not isinstance(graph, Graph):
        raise InputError(f"partition takes a Graph, as fpgasim.load returns it; got {type(graph).__name__}")
    for kind, name, known in (
        ("algorithm", algorithm, ALGORITHMS),
        ("objective", objective, OBJECTIVES),
        ("cost table", costs, COSTS),
    ):
        if name not in known:
            raise UnknownNameError(kind, name, known)
    engine = get_device(device)
    numbers = resolve_numbers(engine, format, accumulator, order, pointwise)
    bound = graph.bind(dims)
    table = cost_table(bound, engine, numbers)
    cut = minimum_cut(table.cost_graph)
    candidates: dict[Winner, Placement] = {
        "all-cpu": {node.name: "cpu" for node in table.cost_graph.nodes},
        "mincut": cut.placement,
        "coverage": {n.name: "cpu" if n.fpga is None else "fpga" for n in table.cost_graph.nodes},
    }
    seconds = {winner: cost_graph.objective(table.cost_graph, placement) for winner, placement in candidates.items()}
    winner: Winner = "coverage"
    note = ""
    if objective == "latency":
        tried = [name for name in candidates if algorithm == "auto" or name != "coverage"]
        winner = min(tried, key=seconds.__getitem__)
        if winner != "mincut" and candidates[winner] != cut.placement:
            note = _note(winner, seconds)
    return Plan(
        bound,
        graph,
        engine,
        numbers,
        objective,
        winner,
        tuple(_decisions(table, candidates[winner], objective)),
        table.cost_graph,
        lower_bound(table.cost_graph, cut),
        note,
    )


def _note(winner: Winner, seconds: Mapping[Winner, float]) -> str:
    taken = {"all-cpu": "everything is left on the CPU", "coverage": "everything the engine can compute is on the FPGA"}
    return (
        f"{taken[winner]}: that takes {milliseconds(seconds[winner])} by the objective; the minimum cut, which does "
        f"not see launches and CPU calls, {milliseconds(seconds['mincut'])}"
    )


def replan(plan: Plan, input_shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """`plan` for inputs of other shapes: see `Plan.replan`. A node that only these shapes bring runs on the CPU."""
    graph = plan.source_graph.with_input_shapes(input_shapes).bind()
    table = cost_table(graph, plan.device, plan.numbers)
    placement: dict[str, Side] = {node.name: plan.assignment.get(node.name, "cpu") for node in graph.nodes}
    for name, (_, message) in table.unsupported.items():
        if placement[name] == "fpga":
            raise PlacementError(f"node {name!r} cannot stay on the FPGA at these shapes: {message}; partition anew")
    return dataclasses.replace(
        plan,
        graph=graph,
        decisions=tuple(_decisions(table, placement, plan.objective_name)),
        cost_graph=table.cost_graph,
        lower_bound_s=lower_bound(table.cost_graph, minimum_cut(table.cost_graph)),
        note="",
    )


def _decisions(table: CostTable, placement: Placement, objective: Objective) -> Iterator[Decision]:
    total = cost_graph.objective(table.cost_graph, placement)
    for node in table.cost_graph.nodes:
        side = placement[node.name]
        code: ReasonCode
        if node.fpga is None:
            code, message = table.unsupported[node.name]
        elif side == "fpga" and objective == "coverage":
            code, message = "coverage", "the engine can compute it"
        elif side == "fpga" and node.fpga < node.cpu:
            code, message = "cheaper-on-fpga", f"{milliseconds(node.cpu - node.fpga)} quicker by itself"
        else:
            other: Side = "cpu" if side == "fpga" else "fpga"
            more = cost_graph.objective(table.cost_graph, {**placement, node.name: other}) - total
            quicker = (node.fpga < node.cpu) == (side == "fpga")
            code = "saves-transfer" if side == "fpga" else "cheaper-on-cpu" if quicker else "not-worth-transfer"
            message = (
                f"{milliseconds(abs(node.cpu - node.fpga))} {'quicker' if quicker else 'slower'} by itself; "
                f"moving it alone to the {other.upper()} would change the whole by {more * 1e3:+.3g} ms"
            )
        yield Decision(node.name, side, code, message, node.cpu, node.fpga)
