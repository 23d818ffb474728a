"""The best placement of a narrow graph under every limit: labels on the states of a frontier.

A label is a way to reach a state: its cost so far and the weight it has used. Of two labels of a state the one that is
neither cheaper nor lighter goes. So does one whose cost and the least for the rest exceed that of a placement known:
the least for the rest is known for a few prices p of a unit of weight (`to_the_end`), and max over p of
that − p · (weight left) is a bound for each (Lagrange's relaxation; Handler and Zang, A dual algorithm for the
constrained shortest path problem, Networks 10, 1980).

Where there are more labels than a width, those of the least bounds are kept, and the least bound of the others is a
bound for what was lost. The width grows until nothing is lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fpgasim.placement.cost_graph import Side
from fpgasim.placement.frontier import (
    Array,
    Floats,
    Layer,
    Step,
    beyond_phases,
    frontier_layers,
    frontier_steps,
    to_the_end,
    up_to,
)
from fpgasim.placement.mincut import minimum_cut
from fpgasim.placement.problem import Found, Problem, weight_of

_WIDTHS = (1_000, 8_000, 64_000)
#: Prices of a unit of weight, relative to that at which a minimum cut about fills the capacity.
_PRICES = (0.0, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.8, 2.2, 3.0, 5.0)
#: Phases counted at first, and where the graph is too wide for so many.
_PHASES, _FEW = 7, 4
_ROUNDING = 1e-12
#: Numbers that the bounds of all layers may take; beyond it there are too many states for this.
_MOST_BOUNDS = 30_000_000


def solve_labels(problem: Problem, *, time_limit: float, upper: float = math.inf) -> Found | None:
    """The best placement of `problem`; None where its graph is too wide for this.

    `upper` is the cost of a placement known; one that is not below it need not be found. After about `time_limit`
    seconds the best found so far is given with a bound, and `finished` is False.
    """
    deadline = time.monotonic() + time_limit
    price, relaxed = capacity_price(problem)
    prices = [0.0] if problem.capacity is None or not price else [factor * price for factor in _PRICES]
    steps = frontier_steps(problem)
    upper = _above(upper)
    best: Found | None = None
    count = _PHASES
    while True:
        graphs = _graphs(problem, steps, prices, count)
        if graphs is None and count > _FEW and best is None:
            count = _FEW
            graphs = _graphs(problem, steps, prices, count)
        if graphs is None:
            return best
        for width in _WIDTHS:
            runs = [_run(problem, *graph, prices, upper, width, deadline) for graph in graphs]
            for run in runs:
                if run.ways is not None and run.cost < upper:
                    upper = _above(run.cost)
                    best = _found(problem, run)
            lost = min(run.lost for run in runs)
            if lost >= upper or time.monotonic() > deadline:
                break
        beyond = relaxed + beyond_phases(problem, count) if problem.phased else math.inf
        finished = lost >= upper and beyond >= upper
        least = min(upper, lost, beyond)
        lower = max(least - 4 * _ROUNDING * abs(least), relaxed) if least < math.inf else least
        best = replace(best or Found(None, frozenset(), lower, finished), lower_bound=lower, finished=finished)
        if finished or lost < upper or time.monotonic() > deadline:
            return best
        count = 2 * count - 1


def _graphs(
    problem: Problem, steps: Sequence[Step], prices: Sequence[float], count: int
) -> list[tuple[list[Layer], list[Floats], Floats]] | None:
    """Layers, the least to the end by `_rest` and the cost of the end, for each way to count phases."""
    graphs = []
    for phases in up_to(problem, count) if problem.phased else [None]:
        made = frontier_layers(problem, steps, phases)
        if made is None or sum(layer.size for layer in made[0]) * len(prices) > _MOST_BOUNDS:
            return None
        graphs.append((made[0], _rest(made[0], made[1], prices), made[1]))
    return graphs


def _above(cost: float) -> float:
    """`cost` and a rounding more: what is below it is at most `cost`."""
    return cost + _ROUNDING * abs(cost) + 1e-300


def capacity_price(problem: Problem) -> tuple[float, float]:
    """Seconds for a unit of weight at which the minimum cut about fills the capacity, and the best bound on the way.

    By bisection; 0 where there is no capacity. The bound leaves out launches and CPU calls.
    """
    cut = minimum_cut(problem.relaxed(), problem.forced)
    bound = cut.lower_bound
    if problem.capacity is None:
        return 0.0, bound
    heavy = {node.name: node for node in problem.cost_graph.nodes if node.weight and node.fpga is not None}
    lowest, highest = 0.0, 2 * max(((node.cpu + node.load) / node.weight for node in heavy.values()), default=0.0)
    for _ in range(16):
        price = (lowest + highest) / 2
        cut = minimum_cut(problem.relaxed(price), problem.forced)
        bound = max(bound, cut.lower_bound - price * problem.capacity)
        used = [
            name
            for name, node in heavy.items()
            if cut.placement[name] == "fpga" and (problem.weights != "auto" or node.load > price * node.weight)
        ]
        if weight_of(problem.cost_graph, used) > problem.capacity:
            lowest = price
        else:
            highest = price
    return highest, bound


@dataclass(frozen=True)
class _Run:
    """The cheapest way to the end found, as (layer, entry) numbers in order, and the least bound of what was lost."""

    layers: Sequence[Layer]
    cost: float
    ways: list[int] | None
    lost: float


def _rest(layers: Sequence[Layer], end: Floats, prices: Sequence[float]) -> list[Floats]:
    """(prices, states) before each layer and after the last: the least to the end by `to_the_end`."""
    by_price = [to_the_end(layers, end, price) for price in prices]
    return [np.stack(rows) for rows in zip(*by_price, strict=True)]


def _run(
    problem: Problem,
    layers: Sequence[Layer],
    rest: Sequence[Floats],
    end: Floats,
    prices: Sequence[float],
    upper: float,
    width: int,
    deadline: float,
) -> _Run:
    capacity = math.inf if problem.capacity is None else problem.capacity * (1 + _ROUNDING)
    column = np.array(prices)[:, None]
    state: Array = np.zeros(1, np.int64)
    cost, used = np.zeros(1), np.zeros(1)
    lost = math.inf
    trail: list[tuple[Array, Array]] = []
    for layer, least in zip(layers, rest[1:], strict=True):
        order = np.argsort(layer.source, kind="stable")
        first = np.searchsorted(layer.source[order], np.arange(layer.size + 1))
        counts = np.diff(first)[state]
        parent = np.repeat(np.arange(len(state)), counts)
        entry = order[first[state][parent] + np.arange(len(parent)) - np.repeat(np.cumsum(counts) - counts, counts)]
        target = layer.target[entry]
        heavier = used[parent] + layer.weight[entry]
        dearer = cost[parent] + layer.seconds[entry]
        left = capacity - heavier if problem.capacity is not None else np.zeros(len(heavier))
        bound = dearer + (least[:, target] - column * left).max(axis=0, initial=-math.inf)
        kept = np.flatnonzero((heavier <= capacity) & (bound < upper))
        kept = kept[np.lexsort((dearer[kept], heavier[kept], target[kept]))]
        kept = kept[_undominated(target[kept], dearer[kept])]
        if time.monotonic() > deadline:
            width = min(width, _WIDTHS[0])
        if len(kept) > width:
            by_bound = np.argpartition(bound[kept], width)
            lost = min(lost, float(bound[kept[by_bound[width:]]].min()))
            kept = np.sort(kept[by_bound[:width]])
        trail.append((parent[kept], entry[kept]))
        state, cost, used = target[kept], dearer[kept], heavier[kept]
    if not len(state):
        return _Run(layers, math.inf, None, lost)
    whole = cost + end[state]
    label = int(whole.argmin())
    total = float(whole[label])
    ways = []
    for parents, entries in reversed(trail):
        ways.append(int(entries[label]))
        label = int(parents[label])
    return _Run(layers, total, ways[::-1], lost)


def _undominated(group: Array, cost: Floats) -> Array:
    """Of labels sorted by group, weight and cost, the numbers of those cheaper than all lighter ones of their group."""
    if not len(group):
        return np.zeros(0, np.int64)
    rank = np.argsort(np.argsort(cost, kind="stable"), kind="stable")  # whole numbers, so that groups can be shifted
    shifted = rank - np.cumsum(np.concatenate([[0], group[1:] != group[:-1]])) * len(group)
    lowest = np.minimum.accumulate(shifted)
    return np.flatnonzero(np.concatenate([[True], shifted[1:] < lowest[:-1]]))


def _found(problem: Problem, run: _Run) -> Found:
    placement: dict[str, Side] = {}
    stay = set()
    for layer, entry in zip(run.layers, run.ways or [], strict=True):
        placement[layer.name] = "fpga" if layer.on_fpga[entry] else "cpu"
        if layer.stays[entry]:
            stay.add(layer.name)
    pinned = frozenset(stay) if problem.weights == "auto" else problem.pinned(placement)
    return Found({name: placement[name] for name in problem.cost_graph.node_of}, pinned, -math.inf, False)
