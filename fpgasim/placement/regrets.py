"""What the whole would take with a node on its other side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fpgasim.errors import PlacementError
from fpgasim.placement.cost_graph import CostGraph, Placement, Side
from fpgasim.placement.problem import Weights
from fpgasim.placement.solving import Solution, solve


@dataclass(frozen=True)
class Counterfactual:
    """The best objective with a node on `side`, the one it is not on in the placement asked about.

    None, and `lower_bound` None, where it cannot be there. Where the time did not do, `objective` is of the best
    placement found and the true one is between `lower_bound` and that; else `exact`.
    """

    side: Side
    objective: float | None
    lower_bound: float | None
    exact: bool = True


def counterfactuals(
    cost_graph: CostGraph,
    chosen: Solution | Placement,
    *,
    force: Mapping[str, Side] | None = None,
    max_segments: int | None = None,
    capacity: float | None = None,
    weights: Weights = "streamed",
    time_limit: float = 10.0,
) -> Mapping[str, Counterfactual]:
    """For every node of `cost_graph` the best objective there is with it on the side that it is not on in `chosen`."""
    placement = chosen.placement if isinstance(chosen, Solution) else chosen
    found: dict[str, Counterfactual] = {}
    for node in cost_graph.nodes:
        other: Side = "fpga" if placement[node.name] == "cpu" else "cpu"
        try:
            there = solve(
                cost_graph, "auto", max_segments, capacity, {**(force or {}), node.name: other}, weights=weights
            )
        except PlacementError:
            found[node.name] = Counterfactual(other, None, None)
        else:
            found[node.name] = Counterfactual(other, there.objective, there.lower_bound, there.gap <= 0)
    return found
