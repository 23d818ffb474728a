"""The best objective with each node on each side, for all nodes at once, by dynamic programming over a frontier.

The nodes are taken in a topological order. What the rest of the sum depends on is small: of the nodes taken, those that
are still read or stand in a pair to come, each with its phase, and which tensors have been moved already. That is a
state. F(state) is the least cost of reaching it, B(state) the least from there to the end, both over all ways; so the
best with node v on a side is the least F + step + B over the steps that put v there (forward-backward, as for hidden
Markov models; the states are those of Bodlaender, *A tourist guide through treewidth*, 1993, for a path decomposition).

Networks are narrow: a frontier of three or four nodes does for residual and dense networks. Phases are counted up to a
number; a cost that more of them could not undercut is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fpgasim.placement.cost_graph import CostGraph, CostTensor, Side, pin
from fpgasim.placement.problem import Problem

#: States of one step beyond which a graph counts as too wide.
_MOST_STATES = 100_000
_SIDES: tuple[Side, Side] = ("cpu", "fpga")
#: By node name the least objective on each side, infinite where it cannot be there.
Marginals = Mapping[str, Mapping[Side, float]]


@dataclass(frozen=True)
class Bounds:
    """For each node and side the least objective, `upper` of a placement there is and `lower` of any.

    Equal, but for rounding, where it is known exactly.
    """

    lower: Marginals
    upper: Marginals


def side_bounds(problem: Problem, price: float = 0.0) -> Bounds | None:
    """Bounds on the best objective with each node on each side; None where the graph is too wide for this.

    The capacity is not looked at; instead every unit of the weights that it would bound costs `price`, so with one
    (Lagrange's) `lower` − price · capacity is a bound and `upper` none.
    """
    graph = problem.cost_graph
    if problem.weights == "pinned":
        graph = pin(graph, {node.name for node in graph.nodes if node.weight})
    steps = _steps(graph, _narrow_order(graph))
    free = _marginals(problem, graph, steps, price, None)
    if free is None or not (graph.launch or graph.cpu_call or problem.max_segments is not None):
        return None if free is None else Bounds(free, free)
    last = 2 * (len(graph.nodes) if problem.max_segments is None else problem.max_segments)
    highest = min(4, last)
    known: Bounds | None = None
    while True:
        runs = [_marginals(problem, graph, steps, price, (start, highest)) for start in (0, 2)]
        found = [run for run in runs if run is not None]
        if len(found) < 2:
            return known
        upper = {v: {s: min(run[v][s] for run in found) for s in _SIDES} for v in free}
        if highest == last:
            return Bounds(upper, upper)
        beyond = min(_fixed(graph, start, highest + 1) for start in (0, 2))
        lower = {v: {s: min(upper[v][s], free[v][s] + beyond) for s in _SIDES} for v in free}
        known = Bounds(lower, upper)
        if all(upper[v][s] <= lower[v][s] for v in free for s in _SIDES):
            return known
        highest = min(last, 2 * highest)


def _fixed(graph: CostGraph, start: int, highest: int) -> float:
    """Launches and CPU calls of the phases up to `highest`, from 0 or, where nothing is in it, from 1."""
    used = range(0 if start == 0 else 1, highest + 1)
    return sum(graph.launch if phase % 2 else graph.cpu_call for phase in used)


def _narrow_order(graph: CostGraph) -> list[str]:
    """A topological order that keeps few nodes waiting for readers and pairs: always the ready node that leaves fewest.

    Of equals the one that became ready last, so a branch is followed to its end.
    """
    successors: dict[str, list[str]] = {name: [] for name in graph.node_of}
    for name, producers in graph.predecessors.items():
        for producer in producers:
            successors[producer].append(name)
    missing = {name: len(producers) for name, producers in graph.predecessors.items()}
    awaited = {name: set(readers) for name, readers in successors.items()}
    for pair in graph.pairs:
        awaited[pair.first].add(pair.second)
        awaited[pair.second].add(pair.first)
    waited_by: dict[str, list[str]] = {name: [] for name in graph.node_of}
    for name, others in awaited.items():
        for other in others:
            waited_by[other].append(name)
    ready = {name: i for i, name in enumerate(graph.order) if not missing[name]}
    order: list[str] = []
    taken: set[str] = set()

    def widening(name: str) -> tuple[int, int]:
        freed = sum(other in taken and len(awaited[other]) == 1 for other in waited_by[name])
        return any(other not in taken for other in awaited[name]) - freed, -ready[name]

    while ready:
        chosen = min(ready, key=widening)
        del ready[chosen]
        order.append(chosen)
        taken.add(chosen)
        for other in waited_by[chosen]:
            awaited[other].discard(chosen)
        for name in successors[chosen]:
            missing[name] -= 1
            if not missing[name]:
                ready[name] = len(order) + len(graph.nodes)
    return order


@dataclass
class _Step:
    """How states change as a node is taken. Numbers are rows of the states before it; -1 is no row.

    `reads`: (row of the producer, row of "moved already", seconds up, seconds down) of each tensor; `pairs`: (row of
    the other node, saves, the kind is overlap, this node is the second); `keep`: (row, only its side still matters).
    The node itself gets a row if it `waits` for others, of its side only if `reduced`, and so do `made` of its tensors.
    `down` are the seconds of its outputs to the CPU; `wide`: whether each row after it holds a phase.
    """

    name: str
    producers: list[int]
    pairs: list[tuple[int, float, bool, bool]]
    reads: list[tuple[int, int, float, float]] = field(default_factory=list)
    keep: list[tuple[int, bool]] = field(default_factory=list)
    wide: list[bool] = field(default_factory=list)
    waits: bool = False
    reduced: bool = False
    is_read: bool = True
    down: float = 0.0
    made: int = 0


def _steps(graph: CostGraph, order: Sequence[str]) -> list[_Step]:
    """The steps in `order`. Row 0 is the last phase of a node that nobody reads; a graph input gets a row if needed."""
    when = {name: i for i, name in enumerate(order)}
    last_read = dict.fromkeys(order, -1)
    for name, producers in graph.predecessors.items():
        for producer in producers:
            last_read[producer] = max(last_read[producer], when[name])
    last_pair = dict.fromkeys(order, -1)
    pairs: dict[str, list[tuple[str, float, bool, bool]]] = {name: [] for name in order}
    for pair in graph.pairs:
        if pair.saves:
            early, late = sorted((pair.first, pair.second), key=when.__getitem__)
            last_pair[early] = max(last_pair[early], when[late])
            pairs[late].append((early, pair.saves, pair.kind == "overlap", late == pair.second))
    reads: dict[str, list[CostTensor]] = {name: [] for name in order}
    makes: dict[str, list[CostTensor]] = {name: [] for name in order}
    shared: dict[str, int] = {}
    rows: list[tuple[str, str]] = [("phase", "")]
    for tensor in graph.tensors:
        for name in set(tensor.consumers):
            reads[name].append(tensor)
        if len(set(tensor.consumers)) > 1 and (tensor.to_fpga or tensor.to_cpu):
            shared[tensor.name] = max(when[name] for name in tensor.consumers)
        if tensor.producer is not None:
            makes[tensor.producer].append(tensor)
        elif tensor.name in shared:
            rows.append(("tensor", tensor.name))
    steps = []
    for i, name in enumerate(order):
        row_of = {key: row for row, key in enumerate(rows)}
        step = _Step(
            name,
            [row_of["node", producer] for producer in graph.predecessors[name]],
            [(row_of["node", other], *how) for other, *how in pairs[name]],  # type: ignore[misc]
        )
        for tensor in reads[name]:
            home = -1 if tensor.producer is None else row_of["node", tensor.producer]
            down = 0.0 if tensor.output else tensor.to_cpu  # an output comes down as it is made
            step.reads.append((home, row_of.get(("tensor", tensor.name), -1), tensor.to_fpga, down))
        kept: list[tuple[str, str]] = []
        for row, (kind, key) in enumerate(rows):
            if kind == "phase" or (shared[key] if kind == "tensor" else max(last_read[key], last_pair[key])) > i:
                kept.append((kind, key))
                step.keep.append((row, kind == "node" and last_read[key] <= i))
        step.is_read = last_read[name] >= 0
        step.waits = max(last_read[name], last_pair[name]) > i
        step.reduced = last_read[name] <= i
        if step.waits:
            kept.append(("node", name))
        step.down = sum(tensor.to_cpu for tensor in makes[name] if tensor.output)
        new = [("tensor", tensor.name) for tensor in makes[name] if tensor.name in shared]
        step.made = len(new)
        rows = kept + new
        step.wide = [kind == "phase" or (kind == "node" and last_read[key] > i) for kind, key in rows]
        steps.append(step)
    return steps


Array = NDArray[np.int64]
Floats = NDArray[np.float64]


def _marginals(
    problem: Problem, graph: CostGraph, steps: Sequence[_Step], price: float, phases: tuple[int, int] | None
) -> dict[str, dict[Side, float]] | None:
    """The least cost with each node on each side; None where there are too many states.

    `phases` = (phase of a CPU node without producers, highest phase); None counts neither launches nor CPU calls. A row
    of a node holds 2 · phase + 1 if its weights stay on chip; without phases its side stands for the phase.
    """
    bits = 2 if phases is None else 1 + phases[1].bit_length()
    states: Array = np.zeros((len(steps[0].keep) if steps else 1, 1), np.int64)  # all rows there are, and all 0
    forward: list[Floats] = [np.zeros(1)]
    edges: list[list[tuple[Side, Array, Array, Floats]]] = []
    for step in steps:
        parts = [
            (side, *_taken(step, states, side == "fpga", stays, cost, phases))
            for side, stays, cost in _options(problem, graph, step.name, price)
        ]
        after = np.concatenate([rows for _, rows, _, _ in parts], axis=1)
        widths = [bits if wide else 2 for wide in step.wide]
        if sum(widths) > 62:
            return None
        keys = np.zeros(after.shape[1], np.int64)
        for row, width in zip(after, widths, strict=True):
            keys = keys << width | row
        _, firsts, index = np.unique(keys, return_index=True, return_inverse=True)
        if len(firsts) > _MOST_STATES:
            return None
        states = after[:, firsts]
        reached = np.full(len(firsts), np.inf)
        edges.append([])
        begin = 0
        for side, rows, source, cost in parts:
            target = index[begin : begin + rows.shape[1]]
            begin += rows.shape[1]
            np.minimum.at(reached, target, forward[-1][source] + cost)
            edges[-1].append((side, source, target, cost))
        forward.append(reached)
    backward = np.zeros(states.shape[1])
    if phases is not None:
        backward = np.array([_fixed(graph, phases[0], int(phase)) for phase in states[0]])
    found: dict[str, dict[Side, float]] = {}
    for step, before, leaving in zip(reversed(steps), reversed(forward[:-1]), reversed(edges), strict=True):
        earlier = np.full(len(before), np.inf)
        found[step.name] = dict.fromkeys(_SIDES, float("inf"))
        for side, source, target, cost in leaving:
            rest = cost + backward[target]
            np.minimum.at(earlier, source, rest)
            if len(rest):
                found[step.name][side] = min(found[step.name][side], float((before[source] + rest).min()))
        backward = earlier
    return found


def _options(problem: Problem, graph: CostGraph, name: str, price: float) -> list[tuple[Side, bool, float]]:
    """(side, its weights stay on chip, seconds) of each way to place node `name`."""
    node = graph.node_of[name]
    options: list[tuple[Side, bool, float]] = []
    for side in problem.sides(name):
        if side == "cpu" or node.fpga is None:
            options.append((side, False, node.cpu))
        elif problem.weights != "auto":
            options.append((side, False, node.fpga + price * node.weight))
        else:
            options.append((side, False, node.fpga))
            if node.weight:
                options.append((side, True, node.fpga - node.load + price * node.weight))
    return options


def _taken(
    step: _Step, states: Array, on_fpga: bool, stays: bool, cost: float, phases: tuple[int, int] | None
) -> tuple[Array, Array, Floats]:
    """The states after a step, the numbers of those they come from and the cost of each."""
    size = states.shape[1]
    costs = np.full(size, cost + step.down * on_fpga)
    if phases is None:
        phase = np.full(size, int(on_fpga), np.int64)
    else:
        phase = np.full(size, 0 if step.producers else 1 if on_fpga else phases[0], np.int64)
        for row in step.producers:
            made_in = states[row] >> 1
            np.maximum(phase, made_in + ((made_in & 1) != on_fpga), out=phase)
    moves: dict[int, Array] = {}
    for home, flag, up, down in step.reads:
        away = np.full(size, on_fpga) if home < 0 else ((states[home] >> 1) & 1) != on_fpga
        if flag >= 0:
            moves[flag] = states[flag] | away
            away = away & (states[flag] == 0)
        costs += np.where(away, up if on_fpga else down, 0.0)
    if on_fpga:
        for row, saves, overlap, second in step.pairs:
            both = ((states[row] >> 1) & 1) == 1
            if overlap:
                both = both & (not stays if second else (states[row] & 1) == 0)
            costs -= np.where(both, saves, 0.0)
    rows = []
    for row, side_only in step.keep:
        value = moves.get(row, states[row])
        rows.append(((value >> 1) & 1) << 1 | (value & 1) if side_only else value)
    if phases is not None and not step.is_read:
        rows[0] = np.maximum(rows[0], phase)
    if step.waits:
        rows.append((phase & 1 if step.reduced else phase) << 1 | int(stays))
    rows += [np.zeros(size, np.int64)] * step.made
    there = np.arange(size) if phases is None else np.flatnonzero(phase <= phases[1])
    return np.stack(rows)[:, there], there, costs[there]
