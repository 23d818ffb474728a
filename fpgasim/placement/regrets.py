"""What the whole would take with a node on its other side, for every node."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fpgasim.errors import PlacementError
from fpgasim.placement.cost_graph import CostGraph, Placement, Side
from fpgasim.placement.frontier import side_bounds
from fpgasim.placement.greedy import greedy_placement
from fpgasim.placement.labels import capacity_price
from fpgasim.placement.problem import Problem, Weights, check_limits, weight_of
from fpgasim.placement.solving import EXACT, Solution, forced_sides, solve


@dataclass(frozen=True)
class Counterfactual:
    """The best objective with a node on `side`, the one it is not on in the placement asked about.

    Both figures are None where it cannot be there. Not `exact` where the time did not do: then `objective` is that of
    the best placement found, infinite if none was, and the true one lies between `lower_bound` and it.
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
    """For every node of `cost_graph` the best objective there is with it on the side that it is not on in `chosen`.

    The other nodes are free within the limits; a forced node is asked about as if it were not. Exact for all nodes at
    once where the graph is narrow and no capacity binds; else each node that bounds do not settle is solved anew, as
    many as `time_limit` seconds do for. Arguments and errors as those of `solve`.
    """
    deadline = time.monotonic() + time_limit
    check_limits(max_segments, capacity, time_limit)
    placement = chosen.placement if isinstance(chosen, Solution) else chosen
    problem = Problem(cost_graph, forced_sides(cost_graph, force), max_segments, capacity, weights)
    lower, upper = _bounds(problem)
    others: dict[str, Side] = {name: "fpga" if placement[name] == "cpu" else "cpu" for name in cost_graph.node_of}
    undecided = [
        (name, side) for name, side in others.items() if not _close(lower.get((name, side)), upper.get((name, side)))
    ]
    undecided = [
        (name, side)
        for name, side in undecided
        if (name, side) in lower or (name in problem.forced and cost_graph.node_of[name].fpga is not None)
    ]
    least = -math.fsum([pair.saves for pair in cost_graph.pairs])  # nothing costs less
    for key in undecided:
        lower[key] = max(least, lower.get(key, least))
        if isinstance(chosen, Solution) and key[0] not in problem.forced:
            lower[key] = max(lower[key], chosen.lower_bound)
    if undecided:
        for there in _at_hand(problem, placement):
            pinned = problem.pinned(there)
            if not problem.broken(there, pinned):
                _note_cost(upper, there, problem.cost(there, pinned))
    for name, side in undecided:
        left = deadline - time.monotonic()
        if left <= 0 or _close(lower.get((name, side)), upper.get((name, side))):
            continue
        sides = {**problem.forced, name: side}
        try:
            best = solve(cost_graph, "auto", max_segments, capacity, sides, weights=weights, time_limit=left)
        except PlacementError:
            if time.monotonic() < deadline:  # there is no such placement
                lower.pop((name, side), None)
                upper.pop((name, side), None)
            continue
        lower[name, side] = max(best.lower_bound, lower[name, side])
        if name in problem.forced:
            upper[name, side] = best.objective
        else:
            _note_cost(upper, best.placement, best.objective)
    return {
        name: _counterfactual(side, lower.get((name, side)), upper.get((name, side))) for name, side in others.items()
    }


_Sided = dict[tuple[str, Side], float]


def _counterfactual(side: Side, lower: float | None, upper: float | None) -> Counterfactual:
    if lower is None:
        return Counterfactual(side, None, None)
    objective = math.inf if upper is None else upper
    return Counterfactual(side, objective, min(lower, objective), _close(lower, upper))


def _close(lower: float | None, upper: float | None) -> bool:
    return lower is not None and upper is not None and upper < math.inf and upper - lower <= EXACT * abs(upper)


def _note_cost(upper: _Sided, placement: Placement, cost: float) -> None:
    for key in placement.items():
        upper[key] = min(upper.get(key, math.inf), cost)


def _bounds(problem: Problem) -> tuple[_Sided, _Sided]:
    """Bounds from below and above on the objective by node and side; no entry from below where it cannot be there."""
    graph = problem.cost_graph
    fitting = problem.capacity is None or weight_of(graph, graph.node_of) <= problem.capacity
    price = 0.0 if fitting else capacity_price(problem)[0]
    bounds = side_bounds(problem, price)
    paid = 0.0 if fitting or problem.capacity is None else price * problem.capacity
    both: list[tuple[str, Side]] = [(name, side) for name in graph.node_of for side in problem.sides(name)]
    lower = {(name, side): bounds.lower[name][side] - paid for name, side in both}
    upper = {(name, side): bounds.upper[name][side] for name, side in both if fitting}
    return {key: bound for key, bound in lower.items() if bound < math.inf}, upper


def _at_hand(problem: Problem, placement: Placement) -> list[Placement]:
    """Placements that cost nothing to find: the one asked about with one node moved, greedy, all on the CPU."""
    moved: list[Placement] = [placement, greedy_placement(problem), problem.all_cpu()]
    for base in (placement, problem.all_cpu()):
        for name, side in base.items():
            for other in problem.sides(name):
                if other != side:
                    moved.append({**base, name: other})
    return moved
