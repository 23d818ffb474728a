"""The states of a dynamic programme over the frontier of a graph, and by them the best with each node on each side.

The nodes are taken in a topological order. What the rest of the sum depends on is small: of the nodes taken, those that
are still read or stand in a pair to come, each with its phase, and which tensors have been moved already. That is a
state. F(state) is the least cost of reaching it, B(state) the least from there to the end, both over all ways; so the
best with node v on a side is the least F + step + B over the steps that put v there (forward-backward, as for hidden
Markov models; the order is a path decomposition: Bodlaender, A tourist guide through treewidth, 1993).

Networks are narrow: a frontier of three or four nodes does for residual and dense networks. Phases are counted up to a
number; a cost that more of them could not undercut is exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fpgasim.placement.cost_graph import CostGraph, CostTensor, Side, pin
from fpgasim.placement.mincut import side_cuts
from fpgasim.placement.problem import Problem

#: States of one step beyond which a graph counts as too wide.
_MOST_STATES = 20_000
#: Bits of a word that a state is packed into.
WORD = 62
SIDES: tuple[Side, Side] = ("cpu", "fpga")
#: By node name the least objective on each side, infinite where it cannot be there.
Marginals = Mapping[str, Mapping[Side, float]]


@dataclass(frozen=True)
class Bounds:
    """For each node and side the least objective, `upper` of a placement there is and `lower` of any.

    Equal, but for rounding, where it is known exactly.
    """

    lower: Marginals
    upper: Marginals


def side_bounds(problem: Problem, price: float = 0.0) -> Bounds:
    """Bounds on the best objective with each node on each side.

    Where the graph is too wide for any number of phases, few of them are counted exactly and minimum cuts bound the
    rest; where it is too wide for few, `upper` is infinite. The capacity is not looked at; instead every unit of the
    weights that it would bound costs `price`, so with one (Lagrange's) `lower` − price · capacity is a bound and
    `upper` none.
    """
    steps = frontier_steps(problem, narrow_order(problem.cost_graph))
    free = _marginals(problem, steps, price, None)
    if free is not None and not problem.phased:
        return Bounds(free, free)
    if free is None:
        free = side_cuts(problem.relaxed(price), problem.forced)
    least = min(problem.cost_graph.launch, problem.cost_graph.cpu_call)  # one phase there is
    known = Bounds(
        {name: {side: cost + least for side, cost in there.items()} for name, there in free.items()},
        {name: dict.fromkeys(SIDES, math.inf) for name in free},
    )
    count = 3
    while problem.phased:
        runs = [_marginals(problem, steps, price, phases) for phases in up_to(problem, count)]
        found = [run for run in runs if run is not None]
        if len(found) < 2:
            break
        upper = {v: {s: min(run[v][s] for run in found) for s in SIDES} for v in free}
        beyond = beyond_phases(problem, count)
        lower = {v: {s: min(upper[v][s], free[v][s] + beyond) for s in SIDES} for v in free}
        known = Bounds(lower, upper)
        if all(upper[v][s] <= lower[v][s] for v in free for s in SIDES):
            break
        count = 2 * count - 1
    return known


def up_to(problem: Problem, count: int) -> list[tuple[int, int]]:
    """(phase of a CPU node without producers, highest phase) of both ways to count up to `count` phases."""
    nodes = len(problem.cost_graph.nodes)
    last = 2 * (nodes if problem.max_segments is None else min(nodes, problem.max_segments))
    return [(0, min(count - 1, last)), (2, min(count, last))]


def beyond_phases(problem: Problem, count: int) -> float:
    """What launches and CPU calls take at least with more than `count` phases; infinite where there cannot be more."""
    longer = set(up_to(problem, count + 1)) - set(up_to(problem, count))
    return min((fixed_cost(problem.cost_graph, start, highest) for start, highest in longer), default=math.inf)


def fixed_cost(graph: CostGraph, start: int, highest: int) -> float:
    """Launches and CPU calls of the phases up to `highest`, from 0 or, where nothing is in it, from 1."""
    used = range(0 if start == 0 else 1, highest + 1)
    return sum(graph.launch if phase % 2 else graph.cpu_call for phase in used)


def narrow_order(graph: CostGraph) -> list[str]:
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


Kind = Literal["last", "phase", "side", "moved"]


@dataclass
class Step:
    """How states change as a node is taken. Numbers are rows of the states before it; -1 is no row.

    `reads`: (row of the producer, row of "moved already", seconds up, seconds down) of each tensor; `pairs`: (row of
    the other node, saves, the kind is overlap, this node is the second); `keep`: (row, only its side still matters).
    The node itself gets a row if it `waits` for others, of its side only if `reduced`, and so do `made` of its tensors.
    `down` are the seconds of its outputs to the CPU; `rows`: what each row after it holds and of which node or tensor.
    """

    name: str
    producers: list[int]
    pairs: list[tuple[int, float, bool, bool]]
    reads: list[tuple[int, int, float, float]] = field(default_factory=list)
    keep: list[tuple[int, bool]] = field(default_factory=list)
    rows: list[tuple[Kind, str]] = field(default_factory=list)
    waits: bool = False
    reduced: bool = False
    is_read: bool = True
    down: float = 0.0
    made: int = 0


def frontier_steps(problem: Problem, order: Sequence[str]) -> list[Step]:
    """The steps of the nodes of `problem` in `order`."""
    return _steps(_streamed(problem), order)


def narrowed(problem: Problem, readers: int) -> Problem:
    """`problem` with each tensor moved for its first `readers` readers only, so that the frontier is narrower.

    No placement costs more than in `problem`, and each has the same phases.
    """
    graph = problem.cost_graph
    when = {name: i for i, name in enumerate(graph.order)}
    tensors = []
    for tensor in graph.tensors:
        first = sorted(set(tensor.consumers), key=when.__getitem__)
        tensors.append(replace(tensor, consumers=tuple(first[:readers])))
        if len(first) > readers:
            name = f"{tensor.name} for {first[readers]} …"
            tensors.append(CostTensor(name, tensor.producer, tuple(first[readers:]), 0.0, 0.0))
    return replace(problem, cost_graph=replace(graph, tensors=tuple(tensors)))


def _streamed(problem: Problem) -> CostGraph:
    """The cost graph without the loads of weights that stay on chip wherever they are."""
    graph = problem.cost_graph
    return pin(graph, {node.name for node in graph.nodes if node.weight}) if problem.weights == "pinned" else graph


def _steps(graph: CostGraph, order: Sequence[str]) -> list[Step]:
    """The steps in `order`. Row 0 is the last phase of a node that nobody reads; a graph input gets a row if needed."""
    when = {name: i for i, name in enumerate(order)}
    last_phase = dict.fromkeys(order, -1)  # until when its phase matters, and until when its side does
    for name, producers in graph.direct_predecessors.items():
        for producer in producers:
            last_phase[producer] = max(last_phase[producer], when[name])
    last_side = dict.fromkeys(order, -1)
    pairs: dict[str, list[tuple[str, float, bool, bool]]] = {name: [] for name in order}
    for pair in graph.pairs:
        if pair.saves:
            early, late = sorted((pair.first, pair.second), key=when.__getitem__)
            last_side[early] = max(last_side[early], when[late])
            pairs[late].append((early, pair.saves, pair.kind == "overlap", late == pair.second))
    reads: dict[str, list[CostTensor]] = {name: [] for name in order}
    makes: dict[str, list[CostTensor]] = {name: [] for name in order}
    shared: dict[str, int] = {}
    rows: list[tuple[str, str]] = [("last", "")]
    for tensor in graph.tensors:
        readers = {name: when[name] for name in tensor.consumers} if tensor.to_fpga or tensor.to_cpu else {}
        for name in readers:
            reads[name].append(tensor)
        if len(readers) > 1:
            shared[tensor.name] = max(readers.values())
        if tensor.producer is not None:
            makes[tensor.producer].append(tensor)
            last_side[tensor.producer] = max(last_side[tensor.producer], *readers.values(), -1)
        elif tensor.name in shared:
            rows.append(("tensor", tensor.name))
    steps = []
    for i, name in enumerate(order):
        row_of = {key: row for row, key in enumerate(rows)}
        step = Step(
            name,
            [row_of["node", producer] for producer in graph.direct_predecessors[name]],
            [(row_of["node", other], *how) for other, *how in pairs[name]],  # type: ignore[misc]
        )
        for tensor in reads[name]:
            home = -1 if tensor.producer is None else row_of["node", tensor.producer]
            down = 0.0 if tensor.output else tensor.to_cpu  # an output comes down as it is made
            step.reads.append((home, row_of.get(("tensor", tensor.name), -1), tensor.to_fpga, down))
        kept: list[tuple[str, str]] = []
        for row, (kind, key) in enumerate(rows):
            if kind == "last" or (shared[key] if kind == "tensor" else max(last_phase[key], last_side[key])) > i:
                kept.append((kind, key))
                step.keep.append((row, kind == "node" and last_phase[key] <= i))
        step.is_read = last_phase[name] >= 0
        step.waits = max(last_phase[name], last_side[name]) > i
        step.reduced = last_phase[name] <= i
        if step.waits:
            kept.append(("node", name))
        step.down = sum(tensor.to_cpu for tensor in makes[name] if tensor.output)
        new = [("tensor", tensor.name) for tensor in makes[name] if tensor.name in shared]
        step.made = len(new)
        rows = kept + new
        for kind, key in rows:
            still: Kind = "phase" if kind == "node" and last_phase[key] > i else "side"
            step.rows.append(("last" if kind == "last" else "moved" if kind == "tensor" else still, key))
        steps.append(step)
    return steps


Array = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """All ways to take one node, by number of the state before: `source` → `target` at a cost, one entry each.

    `size`: states before; `keys`: those after, packed and sorted; `weight`: what a way adds to what is bounded.
    """

    name: str
    size: int
    keys: Array
    source: Array
    target: Array
    seconds: Floats
    weight: Floats
    on_fpga: Flags


@dataclass(frozen=True)
class Counting:
    """How states are written: `start` and `highest` phase, None where phases are not counted; `shift`.

    `start` is the phase of a CPU node without producers. Without phases a node's side stands for its phase. A row of
    a node holds phase · 2^shift, and 1 more if its weights stay on chip; shift is 0 where nobody chooses that.
    """

    phases: tuple[int, int] | None
    shift: int

    def packed(self, states: Array, rows: Sequence[tuple[Kind, str]]) -> Array:
        """(words, states): each state in as few whole numbers of `WORD` bits as hold its rows."""
        bits = 1 if self.phases is None else max(1, self.phases[1].bit_length())
        width_of: dict[Kind, int] = {"last": bits, "phase": bits + self.shift, "side": 1 + self.shift, "moved": 1}
        words: list[Array] = []
        room = 0
        for values, (kind, _) in zip(states, rows, strict=True):
            if width_of[kind] > room:
                words.append(np.zeros(states.shape[1], np.int64))
                room = WORD
            words[-1] = words[-1] << width_of[kind] | values
            room -= width_of[kind]
        return np.stack(words)

    def end(self, graph: CostGraph, states: Array) -> Floats:
        """Launches and CPU calls of each of the last states."""
        if self.phases is None:
            return np.zeros(states.shape[1])
        start, highest = self.phases
        costs = [fixed_cost(graph, start, phase) for phase in range(highest + 1)]
        return np.array([costs[phase] for phase in states[0]])


def least_bits(step: Step) -> int:
    """How many bits the states after `step` take at least."""
    return len(step.rows)


def first_state(steps: Sequence[Step]) -> Array:
    """The state before the first step: all rows there are, and all 0."""
    return np.zeros((len(steps[0].keep) if steps else 1, 1), np.int64)


def frontier_layers(
    problem: Problem, steps: Sequence[Step], counting: Counting, deadline: float = math.inf
) -> tuple[list[Layer], Floats] | None:
    """A layer for each step, and the cost of ending in each of the last states; None where there are too many.

    None also where they are not made by `deadline`, of time.monotonic().
    """
    states = first_state(steps)
    layers = []
    for step, ways in zip(steps, step_options(problem, steps), strict=True):
        taken = [take(step, states, way, counting) for way in ways]
        after = np.concatenate([rows for rows, _, _ in taken], axis=1)
        words = counting.packed(after, step.rows)
        if len(words) > 1 or time.monotonic() > deadline:
            return None
        keys, firsts, target = np.unique(words[0], return_index=True, return_inverse=True)
        if len(firsts) > _MOST_STATES:
            return None
        counts = [len(source) for _, source, _ in taken]
        layers.append(
            Layer(
                step.name,
                states.shape[1],
                keys,
                np.concatenate([source for _, source, _ in taken]),
                target,
                np.concatenate([seconds for _, _, seconds in taken]),
                np.repeat([way.weight for way in ways], counts),
                np.repeat([way.side == "fpga" for way in ways], counts),
            )
        )
        states = after[:, firsts]
    return layers, counting.end(problem.cost_graph, states)


def to_the_end(layers: Sequence[Layer], end: Floats, price: float) -> list[Floats]:
    """The least cost from each state to the end, before each layer and after the last, at a price for weights."""
    least = [end]
    for layer in reversed(layers):
        before = np.full(layer.size, np.inf)
        np.minimum.at(before, layer.source, layer.seconds + price * layer.weight + least[-1][layer.target])
        least.append(before)
    return least[::-1]


def _marginals(
    problem: Problem, steps: Sequence[Step], price: float, phases: tuple[int, int] | None
) -> dict[str, dict[Side, float]] | None:
    """The least cost with each node on each side; None where there are too many states."""
    made = frontier_layers(problem, steps, Counting(phases, shift_of(problem)))
    if made is None:
        return None
    layers, end = made
    reached = np.zeros(1)
    found: dict[str, dict[Side, float]] = {}
    for layer, rest in zip(layers, to_the_end(layers, end, price)[1:], strict=True):
        cost = reached[layer.source] + layer.seconds + price * layer.weight
        whole = cost + rest[layer.target]
        found[layer.name] = {
            "cpu": float(whole[~layer.on_fpga].min(initial=np.inf)),
            "fpga": float(whole[layer.on_fpga].min(initial=np.inf)),
        }
        reached = np.full(len(rest), np.inf)
        np.minimum.at(reached, layer.target, cost)
    return found


@dataclass(frozen=True)
class Way:
    """A way to place a node: `stays` if its weights stay on chip, `weight` what it adds to what the capacity bounds."""

    side: Side
    stays: bool
    seconds: float
    weight: float


def shift_of(problem: Problem) -> int:
    """`Counting.shift` of the states of `problem`."""
    return int(problem.weights == "auto")


def step_options(problem: Problem, steps: Sequence[Step]) -> list[list[Way]]:
    """The ways to place the node of each step."""
    graph = _streamed(problem)
    options = []
    for step in steps:
        node = graph.node_of[step.name]
        options.append([Way("cpu", False, node.cpu, 0.0)] if "cpu" in problem.sides(step.name) else [])
        if "fpga" in problem.sides(step.name) and node.fpga is not None:
            counted = 0.0 if problem.weights == "auto" else node.weight
            options[-1].append(Way("fpga", False, node.fpga, counted))
            if problem.weights == "auto" and node.weight:
                options[-1].append(Way("fpga", True, node.fpga - node.load, node.weight))
    return options


def take(step: Step, states: Array, way: Way, counting: Counting) -> tuple[Array, Array, Floats]:
    """The states after a step, the numbers of those they come from and the cost of each."""
    size, shift, phases = states.shape[1], counting.shift, counting.phases
    on_fpga = way.side == "fpga"
    costs = np.full(size, way.seconds + step.down * on_fpga)
    if phases is None:
        phase = np.full(size, int(on_fpga), np.int64)
    else:
        phase = np.full(size, 0 if step.producers else 1 if on_fpga else phases[0], np.int64)
        for row in step.producers:
            made_in = states[row] >> shift
            np.maximum(phase, made_in + ((made_in & 1) != on_fpga), out=phase)
    moves: dict[int, Array] = {}
    for home, flag, up, down in step.reads:
        away = np.full(size, on_fpga) if home < 0 else ((states[home] >> shift) & 1) != on_fpga
        if flag >= 0:
            moves[flag] = states[flag] | away
            away = away & (states[flag] == 0)
        costs += np.where(away, up if on_fpga else down, 0.0)
    if on_fpga:
        for row, saves, overlap, second in step.pairs:
            both = ((states[row] >> shift) & 1) == 1
            if overlap and shift:
                both = both & (not way.stays if second else (states[row] & 1) == 0)
            costs -= np.where(both, saves, 0.0)
    rows = []
    for row, side_only in step.keep:
        value = moves.get(row, states[row])
        rows.append(value & (2 << shift) - 1 if side_only else value)
    if phases is not None and not step.is_read:
        rows[0] = np.maximum(rows[0], phase)
    if step.waits:
        rows.append((phase & 1 if step.reduced else phase) << shift | int(way.stays))
    rows += [np.zeros(size, np.int64)] * step.made
    there = np.arange(size) if phases is None else np.flatnonzero(phase <= phases[1])
    return np.stack(rows)[:, there], there, costs[there]
