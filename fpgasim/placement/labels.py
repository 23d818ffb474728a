"""The best placement of a narrow graph under every limit: labels on the states of a frontier.

A label is a way to reach a state: its cost so far and the weight it has used. Of two labels of a state the one that is
neither cheaper nor lighter goes. So does one whose cost and the least for the rest exceed that of a placement known:
the least for the rest is known for a few prices p of a unit of weight (`to_the_end`), and max over p of
that − p · (weight left) is a bound for each (Lagrange's relaxation; Handler and Zang, A dual algorithm for the
constrained shortest path problem, Networks 10, 1980).

The least for the rest needs all states. Where there are too many, it is that of a narrower problem, in which a tensor
is moved for its first readers only: that costs no placement more, and its states are parts of the states here.

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
    WORD,
    Array,
    Counting,
    Floats,
    Step,
    Way,
    beyond_phases,
    first_state,
    frontier_layers,
    frontier_steps,
    least_bits,
    narrow_order,
    narrowed,
    shift_of,
    step_options,
    take,
    to_the_end,
    up_to,
)
from fpgasim.placement.mincut import minimum_cut
from fpgasim.placement.problem import Found, Problem, weight_of

_WIDTHS = (1_000, 8_000, 64_000)
#: Prices of a unit of weight, relative to that at which a minimum cut about fills the capacity.
_PRICES = (0.0, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.8, 2.2, 3.0, 5.0)
#: Phases counted at first.
_PHASES = 7
#: How many readers a tensor is moved for in narrower problems, tried in turn.
_READERS = (4, 1)
_ROUNDING = 1e-12
#: Numbers that the bounds of all layers may take; beyond it there are too many states for this.
_MOST_BOUNDS = 30_000_000


def solve_labels(problem: Problem, *, time_limit: float, upper: float = math.inf) -> Found | None:
    """The best placement of `problem`; None where its graph is too wide for this in the time there is.

    `upper` is the cost of a placement known; one that is not below it need not be found. After about `time_limit`
    seconds the best found so far is given with a bound, and `finished` is False.
    """
    deadline = time.monotonic() + time_limit
    if time_limit <= 0 or _too_wide(problem):
        return None
    price, relaxed = capacity_price(problem, deadline)
    prices = [0.0] if problem.capacity is None or not price else [factor * price for factor in _PRICES]
    upper = _above(upper)
    best: Found | None = None
    count = _PHASES
    while True:
        searches = _searches(problem, prices, count, deadline)
        if searches is None:
            return best
        for width in _WIDTHS:
            runs = [_run(problem, search, prices, upper, width, deadline) for search in searches]
            for search, run in zip(searches, runs, strict=True):
                if run.ways is not None and run.cost < upper:
                    found = _found(problem, search, run.ways)
                    if problem.broken(found.placement or {}, found.pinned):  # sums too fine for two floats
                        return best
                    upper, best = _above(run.cost), found
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


@dataclass(frozen=True)
class _Search:
    """What a search goes by: the steps with their options, and what bounds the rest after each.

    `parts` are the rows of a state that make one of the narrower problem, `keys` the states of that problem and
    `rest` (prices, keys) the least to the end from each.
    """

    counting: Counting
    steps: Sequence[Step]
    options: Sequence[Sequence[Way]]
    parts: Sequence[Sequence[int]]
    keys: Sequence[Array]
    rest: Sequence[Floats]


def _searches(problem: Problem, prices: Sequence[float], count: int, deadline: float) -> list[_Search] | None:
    """A search for each way to count up to `count` phases; None where the graph is too wide or the time over."""
    for readers in (len(problem.cost_graph.nodes), *_READERS):
        narrow = narrowed(problem, readers)
        order = narrow_order(narrow.cost_graph)
        fewer = frontier_steps(narrow, order)
        if time.monotonic() > deadline:
            break
        if any(least_bits(step) > WORD for step in fewer):
            continue
        steps = frontier_steps(problem, order)
        parts = []
        for step, part in zip(steps, fewer, strict=True):
            row_of = {row: i for i, row in enumerate(step.rows)}
            parts.append([row_of[row] for row in part.rows])
        found = []
        for phases in up_to(problem, count) if problem.phased else [None]:
            counting = Counting(phases, shift_of(problem))
            made = frontier_layers(narrow, fewer, counting, deadline)
            if made is None or sum(layer.size for layer in made[0]) * len(prices) > _MOST_BOUNDS:
                break
            by_price = [to_the_end(*made, price)[1:] for price in prices]
            rest = [np.stack(rows) for rows in zip(*by_price, strict=True)]
            keys = [layer.keys for layer in made[0]]
            found.append(_Search(counting, steps, step_options(problem, steps), parts, keys, rest))
        else:
            return found
    return None


def _too_wide(problem: Problem) -> bool:
    """Whether not even the states of the narrowest problem fit into a word."""
    narrow = narrowed(problem, _READERS[-1])
    return any(least_bits(step) > WORD for step in frontier_steps(narrow, narrow_order(narrow.cost_graph)))


def _above(cost: float) -> float:
    """`cost` and a rounding more: what is below it is at most `cost`."""
    return cost + _ROUNDING * abs(cost) + 1e-300


def capacity_price(problem: Problem, deadline: float = math.inf) -> tuple[float, float]:
    """Seconds for a unit of weight at which the minimum cut about fills the capacity, and the best bound on the way.

    By bisection, until `deadline` of time.monotonic(); 0 where there is no capacity. The bound leaves out launches and
    CPU calls.
    """
    cut = minimum_cut(problem.relaxed(), problem.forced)
    bound = cut.lower_bound
    if problem.capacity is None:
        return 0.0, bound
    heavy = {node.name: node for node in problem.cost_graph.nodes if node.weight and node.fpga is not None}
    lowest, highest = 0.0, 2 * max(((node.cpu + node.load) / node.weight for node in heavy.values()), default=0.0)
    for _ in range(16):
        if time.monotonic() > deadline:
            break
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
    """The cheapest way to the end that was found, by number of each option, and the least bound of what was lost."""

    cost: float
    ways: list[int] | None
    lost: float


def _run(problem: Problem, search: _Search, prices: Sequence[float], upper: float, width: int, deadline: float) -> _Run:
    limited = problem.capacity is not None
    capacity = math.inf if problem.capacity is None else problem.capacity
    column = np.array(prices)[:, None]
    states = first_state(search.steps)
    cost, used, finer_used = np.zeros(1), np.zeros(1), np.zeros(1)
    lost = math.inf
    trail: list[tuple[Array, Array]] = []
    for step, ways, parts, keys, rest in zip(
        search.steps, search.options, search.parts, search.keys, search.rest, strict=True
    ):
        taken = [take(step, states, way, search.counting) for way in ways]
        counts = [len(source) for _, source, _ in taken]
        after = np.concatenate([rows for rows, _, _ in taken], axis=1)
        parent = np.concatenate([source for _, source, _ in taken])
        way = np.repeat(np.arange(len(ways)), counts)
        dearer = cost[parent] + np.concatenate([seconds for _, _, seconds in taken])
        weight = np.repeat([way.weight if limited else 0.0 for way in ways], counts)
        heavier, finer = _added(used[parent], finer_used[parent], weight)
        part = np.searchsorted(keys, search.counting.packed(after[parts], [step.rows[row] for row in parts])[0])
        left = capacity * (1 + _ROUNDING) - heavier if limited else heavier
        bound = dearer + (rest[:, part] - column * left).max(axis=0, initial=-math.inf)
        kept = np.flatnonzero((heavier <= capacity) & (bound < upper))
        words = search.counting.packed(after[:, kept], step.rows)
        order = np.lexsort((dearer[kept], finer[kept], heavier[kept], *words))
        kept, words = kept[order], words[:, order]
        kept = kept[_undominated(words, dearer[kept])]
        if time.monotonic() > deadline:
            width = min(width, _WIDTHS[0])
        if len(kept) > width:
            by_bound = np.argpartition(bound[kept], width)
            lost = min(lost, float(bound[kept[by_bound[width:]]].min()))
            kept = np.sort(kept[by_bound[:width]])
        trail.append((parent[kept], way[kept]))
        states, cost = after[:, kept], dearer[kept]
        used, finer_used = heavier[kept], finer[kept]
    if not len(cost):
        return _Run(math.inf, None, lost)
    whole = cost + search.counting.end(problem.cost_graph, states)
    label = int(whole.argmin())
    total = float(whole[label])
    chosen = []
    for parents, numbers in reversed(trail):
        chosen.append(int(numbers[label]))
        label = int(parents[label])
    return _Run(total, chosen[::-1], lost)


def _added(used: Floats, finer: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """The sums `used` + `finer` + `weight`, again as the nearest float and the rest, as `Total` has them.

    Else a sum of decimals would keep or break a capacity by the order it is made in (Joldes, Muller and Popescu, Tight
    and rigorous error bounds for basic building blocks of double-word arithmetic, 2017, algorithm 4).
    """
    rough = used + weight
    added = rough - used
    rest = finer + ((used - (rough - added)) + (weight - added))
    whole = rough + rest
    return whole, rest - (whole - rough)


def _undominated(words: Array, cost: Floats) -> Array:
    """Of labels sorted by state, weight and cost, the numbers of those cheaper than all lighter ones of their state."""
    if not len(cost):
        return np.zeros(0, np.int64)
    rank = np.argsort(np.argsort(cost, kind="stable"), kind="stable")  # whole numbers, so that states can be shifted
    begins = np.concatenate([[False], (words[:, 1:] != words[:, :-1]).any(axis=0)])
    shifted = rank - np.cumsum(begins) * len(cost)
    lowest = np.minimum.accumulate(shifted)
    return np.flatnonzero(np.concatenate([[True], shifted[1:] < lowest[:-1]]))


def _found(problem: Problem, search: _Search, numbers: Sequence[int]) -> Found:
    chosen = {step.name: ways[number] for step, ways, number in zip(search.steps, search.options, numbers, strict=True)}
    placement: dict[str, Side] = {name: chosen[name].side for name in problem.cost_graph.node_of}
    stay = frozenset(name for name, way in chosen.items() if way.stays)
    return Found(placement, stay if problem.weights == "auto" else problem.pinned(placement), -math.inf, False)
