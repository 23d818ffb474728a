"""The placement that a mixed-integer linear program finds: exact for the whole objective and every limit.

x_v is 1 where node v is on the FPGA, 0 on the CPU; only these (and q_v, s) are integers.

    a_t ≥ x_w − x_u            tensor t of node u goes to the FPGA, once for all its readers w
    b_t ≥ x_u − x_w            … to the CPU
    z ≤ x_v, z ≤ x_w           the pair (v, w) saves
    q_v ≤ x_v                  the weights of v stay on chip; then z ≤ x_w − q_w for what overlapped their load
    Σ weight_v x_v ≤ capacity  or of q_v where the solver chooses what stays

Phases need one variable a node, p_v, and no bound on their number: p_v ≥ p_u + |x_v − x_u| along an edge, and for a
node without producers p_v ≥ x_v and p_v ≥ 2 (1 − s) − x_v, where s is 1 if phase 0 is used. At integer x the least p
is the phase, odd on the FPGA and even on the CPU, so the FPGA segments up to phase p are (p + x) / 2 and the CPU pieces
after phase 0 are (p − x) / 2:

    F ≥ (p_v + x_v) / 2,  C ≥ (p_v − x_v) / 2    for nodes that nobody reads
    cost  launch · F + cpu_call · (C + s),        F ≤ max_segments

HiGHS works with tolerances, so its answer is read as a placement only: what that costs and whether it keeps the limits
is computed again, and one that breaks the capacity by a rounding is forbidden by name and the program solved again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fpgasim.placement.cost_graph import Placement, Side, pin
from fpgasim.placement.problem import Found, Problem

#: The sum of all costs is scaled to this, so that HiGHS' absolute tolerances of 1e-6 and 1e-7 are nothing beside it.
_SCALE = 1e4
#: What the tolerances may take off a bound, of the scaled objective.
_SLACK = 2e-6


Term = tuple[int, float]


@dataclass
class _Program:
    """Columns and rows as they are added; a row is Σ coefficient · column ≥ its bound."""

    costs: list[float] = field(default_factory=list)
    lowest: list[float] = field(default_factory=list)
    highest: list[float] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    rows: list[Sequence[Term]] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    constant: float = 0.0
    x: dict[str, int] = field(default_factory=dict)
    q: dict[str, int] = field(default_factory=dict)

    def column(self, cost: float, lowest: float = 0.0, highest: float = 1.0, *, whole: bool = False) -> int:
        self.costs.append(cost)
        self.lowest.append(lowest)
        self.highest.append(highest)
        self.whole.append(whole)
        return len(self.costs) - 1

    def at_least(self, bound: float, *terms: Term) -> None:
        self.rows.append(terms)
        self.bounds.append(bound)


def solve_milp(problem: Problem, time_limit: float, coverage: Mapping[str, float] | None = None) -> Found:
    """The cheapest placement of `problem`, or the cheapest of those that cover the most.

    `coverage` is the worth of each node on the FPGA; its sum is maximised first. Takes at most about `time_limit`
    seconds; then `finished` is False and the placement the best found.
    """
    deadline = time.monotonic() + time_limit
    program = _program(problem)
    if coverage is None:
        return _solved(problem, program, deadline)
    worth = {name: float(value) for name, value in coverage.items() if value > 0 and "fpga" in problem.sides(name)}
    return _solved(problem, program, deadline) if not worth else _covering(problem, program, worth, deadline)


def _covering(problem: Problem, program: _Program, worth: Mapping[str, float], deadline: float) -> Found:
    """The cheapest placement among those of the greatest worth."""
    costs, constant = program.costs, program.constant
    unit = min(worth.values())
    program.costs, program.constant = [0.0] * len(costs), 0.0
    for name, value in worth.items():
        program.costs[program.x[name]] = -value / unit
    most = _solved(problem, program, deadline)
    program.costs, program.constant = costs, constant
    if most.placement is None:
        return most
    covered = [name for name in worth if most.placement[name] == "fpga"]
    if len(covered) == len(worth):  # the usual end, and free of rounding
        for name in covered:
            program.lowest[program.x[name]] = 1.0
    else:
        least = math.fsum([worth[name] / unit for name in covered])
        program.at_least(least, *((program.x[name], value / unit) for name, value in worth.items()))
    found = _solved(problem, program, deadline)
    if found.placement is None or _worth(worth, found.placement) < _worth(worth, most.placement):
        return Found(most.placement, most.pinned, found.lower_bound, False)
    return Found(found.placement, found.pinned, found.lower_bound, found.finished and most.finished)


def _worth(worth: Mapping[str, float], placement: Placement) -> float:
    return math.fsum([value for name, value in worth.items() if placement[name] == "fpga"])


def _program(problem: Problem) -> _Program:
    graph = problem.cost_graph
    if problem.weights == "pinned":
        graph = pin(graph, {node.name for node in graph.nodes if node.weight})
    made = _Program()
    x = made.x
    for node in graph.nodes:
        sides = problem.sides(node.name)
        on_fpga = node.cpu if node.fpga is None else node.fpga
        x[node.name] = made.column(on_fpga - node.cpu, "cpu" not in sides, "fpga" in sides, whole=True)
        made.constant += node.cpu
        if problem.weights == "auto" and node.weight and node.fpga is not None:
            made.q[node.name] = made.column(-node.load, whole=True)
            made.at_least(0.0, (x[node.name], 1.0), (made.q[node.name], -1.0))
    for tensor in graph.tensors:
        readers = [x[name] for name in dict.fromkeys(tensor.consumers)]
        home = [] if tensor.producer is None else [(x[tensor.producer], 1.0)]
        if readers and tensor.to_fpga:
            upload = made.column(tensor.to_fpga)
            for reader in readers:
                made.at_least(0.0, (upload, 1.0), (reader, -1.0), *home)
        if home and tensor.output:
            made.costs[home[0][0]] += tensor.to_cpu
        elif home and readers and tensor.to_cpu:
            download = made.column(tensor.to_cpu)
            for reader in readers:
                made.at_least(0.0, (download, 1.0), (reader, 1.0), (home[0][0], -1.0))
    for pair in graph.pairs:
        if pair.saves:
            both = made.column(-pair.saves)
            made.at_least(0.0, (x[pair.first], 1.0), (both, -1.0))
            stays = [(made.q[pair.second], -1.0)] if pair.kind == "overlap" and pair.second in made.q else []
            made.at_least(0.0, (x[pair.second], 1.0), (both, -1.0), *stays)
    if problem.phased:
        _add_phases(made, problem)
    if problem.capacity is not None:
        counted = made.q if problem.weights == "auto" else x
        unit = max(problem.capacity, 1e-300)  # nothing fits into 0
        weights = [(column, -graph.node_of[name].weight / unit) for name, column in counted.items()]
        for column, weight in weights:
            if weight < -1:
                made.highest[column] = min(made.highest[column], 0.0)
        made.at_least(-1.0 if problem.capacity else 0.0, *((c, w) for c, w in weights if made.highest[c] and w))
    return made


def _add_phases(made: _Program, problem: Problem) -> None:
    graph, x = problem.cost_graph, made.x
    most = len(graph.nodes)
    limit = most if problem.max_segments is None else min(most, problem.max_segments)
    segments = made.column(graph.launch, highest=limit)
    pieces = made.column(graph.cpu_call, highest=most)
    first = made.column(graph.cpu_call, whole=True)
    phase = {name: made.column(0.0, highest=most + 2) for name in graph.order}
    read = {producer for producers in graph.direct_predecessors.values() for producer in producers}
    for name, producers in graph.direct_predecessors.items():
        for producer in producers:
            rises = (phase[name], 1.0), (phase[producer], -1.0)
            made.at_least(0.0, *rises, (x[name], -1.0), (x[producer], 1.0))
            made.at_least(0.0, *rises, (x[name], 1.0), (x[producer], -1.0))
        if not producers:
            made.at_least(0.0, (phase[name], 1.0), (x[name], -1.0))
            made.at_least(2.0, (phase[name], 1.0), (x[name], 1.0), (first, 2.0))
        if name not in read:
            made.at_least(0.0, (segments, 2.0), (phase[name], -1.0), (x[name], -1.0))
            made.at_least(0.0, (pieces, 2.0), (phase[name], -1.0), (x[name], 1.0))


def _solved(problem: Problem, program: _Program, deadline: float) -> Found:
    """The program's placement; limits it breaks by a rounding are forbidden until it breaks none."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    spread = math.fsum([abs(cost) for cost in program.costs])
    scale = _SCALE / spread if spread else 1.0
    nothing: frozenset[str] = frozenset()
    while True:
        size = len(program.rows), len(program.costs)
        at = np.repeat(np.arange(size[0]), [len(row) for row in program.rows])
        columns = [column for row in program.rows for column, _ in row]
        matrix = csr_array(([value for row in program.rows for _, value in row], (at, columns)), shape=size)
        left = deadline - time.monotonic()
        result = milp(
            np.array(program.costs) * scale,
            integrality=program.whole,
            bounds=Bounds(np.array(program.lowest, float), np.array(program.highest, float)),
            constraints=[LinearConstraint(matrix, np.array(program.bounds), np.inf)] if program.rows else [],
            options={"time_limit": max(left, 1e-3), "mip_rel_gap": 0.0},
        )
        bound = -math.inf if result.mip_dual_bound is None else float(result.mip_dual_bound)
        lower_bound = program.constant + (bound - _SLACK) / scale
        if result.x is None:
            return Found(None, nothing, lower_bound, result.status == 2)
        names = [name for name, column in program.x.items() if result.x[column] > 0.5]
        placement: dict[str, Side] = dict.fromkeys(program.x, "cpu")
        placement |= dict.fromkeys(names, "fpga")
        if problem.weights == "auto":
            pinned = frozenset(name for name, column in program.q.items() if result.x[column] > 0.5)
        else:
            pinned = problem.pinned(placement)
        if not problem.broken(placement, pinned):
            return Found(placement, pinned, lower_bound, result.status == 0)
        counted = [program.q[name] for name in pinned] if problem.weights == "auto" else [program.x[n] for n in names]
        program.at_least(1.0 - len(counted), *((column, -1.0) for column in counted))
