"""`solve`: the best placement of a cost graph, by the algorithm that was asked for."""

from __future__ import annotations

import fnmatch
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from fpgasim.errors import InputError, PlacementError, UnknownNameError
from fpgasim.placement.cost_graph import CostGraph, Placement, Side, phases, real_number, shown
from fpgasim.placement.greedy import greedy_placement
from fpgasim.placement.labels import solve_labels
from fpgasim.placement.milp import solve_milp
from fpgasim.placement.mincut import lower_bound, minimum_cut
from fpgasim.placement.problem import Problem, Weights, check_limits
from fpgasim.placement.wording import milliseconds

Algorithm = Literal["auto", "mincut", "frontier", "milp", "greedy"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
#: What made a placement; "coverage" = everything on the FPGA that may be there, "forced" = only what is forced there,
#: "all-cpu" = nothing.
Maker = Literal["mincut", "frontier", "milp", "greedy", "coverage", "forced", "all-cpu"]

#: What proves a placement the best, in the order it is tried in.
_EXACT: tuple[Literal["frontier", "milp"], ...] = ("frontier", "milp")
#: A placement this close to the bound, of its objective, counts as the best. Capacities of a cut are 30 bits.
EXACT = 1e-6


@dataclass(frozen=True)
class Solution:
    """A placement, what it costs, and how far that may be from the best there is.

    `objective` is `fpgasim.placement.objective` of it in seconds, `lower_bound` a proved bound below that of every
    placement under the same limits. `segments` are the FPGA segments in the order they run in, each its nodes in the
    order of the graph. `algorithm` made the placement; `pinned` are the nodes whose weights stay on chip. `seconds` is
    the solver's wall time. `note` says why something else than what was asked for was taken, or what the time limit
    cut off; else ''.
    """

    placement: Placement
    objective: float
    lower_bound: float
    segments: tuple[tuple[str, ...], ...]
    algorithm: Maker
    pinned: frozenset[str]
    seconds: float
    note: str

    @property
    def gap(self) -> float:
        """How far the objective may be above the best there is: (objective − lower bound) / |objective|."""
        return (self.objective - self.lower_bound) / abs(self.objective) if self.objective else 0.0


def solve(
    cost_graph: CostGraph | Mapping[str, Any] | str | os.PathLike[str],
    algorithm: Algorithm = "auto",
    max_segments: int | None = None,
    capacity: float | None = None,
    force: Mapping[str, Side] | None = None,
    *,
    weights: Weights = "streamed",
    coverage: Mapping[str, float] | None = None,
    time_limit: float = 20.0,
) -> Solution:
    """The best placement of `cost_graph`: a CostGraph, its file form as an object or JSON text, or a path to a file.

    `algorithm`: "mincut" minimises the objective without launches and CPU calls; "frontier" (dynamic programming, for
    narrow graphs) and "milp" minimise all of it under all limits; "greedy" takes what fits and looks at no cost. "auto"
    takes the minimum cut where its bound proves it the best, else "frontier", else "milp". A cut or greedy placement
    that breaks a limit gives way to these. What `time_limit` seconds leave unproved is the best found, with its bound.
    What loses to all-CPU is replaced by it. A note says so each time.

    `max_segments` bounds the FPGA segments, `capacity` the weights on the FPGA in the unit of `CostNode.weight`.
    `force` is {node name or fnmatch pattern: side}, an exact name before patterns. `weights`: "streamed" through the
    engine in every run, "pinned" on chip, or "auto": the best choice for each node, of which those pinned share the
    capacity. `coverage` {node: worth} asks for the greatest worth on the FPGA first, the least objective second.

    Raises InputError or UnknownNameError for an argument that makes no sense, PlacementError where no placement keeps
    the limits, a force meets no node or an impossible one, or none was found in time.
    """
    import scipy.optimize
    import scipy.sparse.csgraph  # noqa: F401 - loading them is not the solver's time

    begun = time.perf_counter()
    if algorithm not in ALGORITHMS:
        raise UnknownNameError("algorithm", algorithm, ALGORITHMS)
    max_segments, capacity = check_limits(max_segments, capacity, time_limit)
    graph = read_cost_graph(cost_graph)
    problem = Problem(graph, forced_sides(graph, force), max_segments, capacity, weights)
    worth = None if coverage is None else _checked_worth(graph, coverage)
    chosen = _search(problem, algorithm, worth, time_limit)
    return Solution(
        chosen.placement,
        chosen.cost,
        min(chosen.lower_bound, chosen.cost),
        fpga_segments(graph, chosen.placement, max_segments),
        chosen.maker,
        chosen.pinned,
        time.perf_counter() - begun,
        chosen.note,
    )


@dataclass(frozen=True)
class _Candidate:
    """A placement with what it costs; `broken` says which limit it does not keep."""

    maker: Maker
    placement: Placement
    pinned: frozenset[str]
    cost: float
    broken: str = ""
    lower_bound: float = -math.inf
    note: str = ""


def _candidate(
    problem: Problem, maker: Maker, placement: Placement, pinned: frozenset[str] | None = None
) -> _Candidate:
    stay = problem.pinned(placement) if pinned is None else pinned
    maker = maker if "fpga" in placement.values() else "all-cpu"
    return _Candidate(maker, placement, stay, problem.cost(placement, stay), problem.broken(placement, stay))


def _search(problem: Problem, algorithm: Algorithm, worth: Mapping[str, float] | None, time_limit: float) -> _Candidate:
    """The placement that `solve` gives, after the guard against losing to the CPU alone."""
    if worth is not None and problem.max_segments is None and problem.capacity is None:
        covered: dict[str, Side] = {name: "fpga" for name in worth if "fpga" in problem.sides(name)}
        problem, worth = replace(problem, forced={**problem.forced, **covered}), None
        chosen = _found(problem, algorithm, None, time_limit)
        chosen = replace(chosen, maker="coverage") if chosen.maker != "all-cpu" else chosen
    else:
        chosen = _found(problem, algorithm, worth, time_limit)
    alone = _candidate(problem, "all-cpu", {node.name: "cpu" for node in problem.cost_graph.nodes})
    if chosen.cost <= alone.cost:
        return chosen
    here = milliseconds(chosen.cost, 4)
    if alone.broken or worth is not None:
        return _noted(chosen, f"the CPU alone would take {milliseconds(alone.cost, 4)} instead of {here}")
    instead = replace(alone, lower_bound=chosen.lower_bound)
    return _noted(instead, f"everything is left on the CPU: {chosen.maker} would take {here}", chosen.note)


def _found(problem: Problem, algorithm: Algorithm, worth: Mapping[str, float] | None, time_limit: float) -> _Candidate:
    """The placement of the algorithm, or of the next in order, with its bound."""
    deadline = time.monotonic() + time_limit
    cut, lower = _bounded_cut(problem)
    greedy = _candidate(problem, "greedy", greedy_placement(problem))
    notes: list[str] = []
    asked = greedy if algorithm == "greedy" else cut if algorithm == "mincut" and worth is None else None
    if asked is not None:
        if not asked.broken:
            return replace(asked, lower_bound=lower)
        notes.append(f"{algorithm} gives {asked.broken}: solved exactly instead")

    def rank(candidate: _Candidate) -> tuple[float, float]:
        covered = 0.0 if worth is None else math.fsum([w for n, w in worth.items() if candidate.placement[n] == "fpga"])
        return -covered, candidate.cost

    others = (_candidate(problem, "coverage", problem.everything()), _candidate(problem, "forced", problem.all_cpu()))
    quick = sorted((made for made in (cut, greedy, *others) if not made.broken), key=rank)
    if algorithm in ("auto", "mincut", "greedy") and worth is None and quick and _proved(quick[0], lower):
        return _noted(replace(quick[0], lower_bound=lower), *notes, _left(quick[0], cut))
    found: list[_Candidate] = []
    gave_up = ""
    for name in _EXACT if algorithm != "milp" else _EXACT[::-1]:
        if worth is not None and name == "frontier":
            continue
        left = max(0.0, deadline - time.monotonic())
        if name == "milp":
            share = 0.5 if algorithm == "milp" and worth is None else 0.9  # HiGHS overruns; frontier may follow
            answer = solve_milp(problem, time_limit=share * left, coverage=worth)
        else:
            known = min((made.cost for made in found + quick), default=math.inf)
            narrow = solve_labels(problem, time_limit=left / 2 if algorithm != "milp" else left, upper=known)
            if narrow is None:
                gave_up = "the graph is too wide for frontier in that time" if algorithm == "frontier" else gave_up
                continue
            answer = narrow
        lower = max(lower, answer.lower_bound)
        made = None if answer.placement is None else _candidate(problem, name, answer.placement, answer.pinned)
        if made is not None and not made.broken:
            found.append(made)
        if answer.finished and (made is None or not made.broken):
            if not found + quick:
                raise PlacementError(f"no placement keeps all of {_demands(problem)}")
            best = min(found + quick, key=rank) if made is None else made
            if gave_up:
                notes.append(f"{gave_up}: solved by {name} instead")
            return _noted(replace(best, lower_bound=lower), *notes, _left(best, cut))
        if name == algorithm:
            gave_up = f"{name} proved no best placement in its time"
    late = f"the time limit of {time_limit:g} s was over before a best placement was proved"
    if not found + quick:
        raise PlacementError(f"{late} or one found that keeps {_demands(problem)}")
    best = min(found + quick, key=rank)
    by = f"{late}; taken is the best found, by {best.maker}"
    return _noted(replace(best, lower_bound=lower), *notes, gave_up, by)


def _proved(candidate: _Candidate, lower_bound: float) -> bool:
    return candidate.cost - lower_bound <= EXACT * abs(candidate.cost)


def _left(chosen: _Candidate, cut: _Candidate) -> str:
    """What to say where the best is the CPU alone, and a minimum cut is not."""
    if "fpga" in chosen.placement.values() or "fpga" not in cut.placement.values():
        return ""
    return f"everything is left on the CPU: the minimum cut would take {milliseconds(cut.cost, 4)}{_but(cut.broken)}"


def _but(broken: str) -> str:
    return f", and has {broken}" if broken else ""


def _bounded_cut(problem: Problem) -> tuple[_Candidate, float]:
    """The minimum cut as a candidate, and a bound below the objective of every placement of `problem`."""
    graph = problem.relaxed()
    cut = minimum_cut(graph, problem.forced)
    return _candidate(problem, "mincut", cut.placement), lower_bound(graph, cut, problem.forced)


def _noted(candidate: _Candidate, *notes: str) -> _Candidate:
    return replace(candidate, note="; ".join(note for note in (*notes, candidate.note) if note))


def _demands(problem: Problem) -> str:
    limits = [
        f"{name}={value:g}"
        for name, value in (("max_segments", problem.max_segments), ("capacity", problem.capacity))
        if value is not None
    ]
    forced = [f"{name}={side}" for name, side in problem.forced.items()]
    more = f" and {len(forced) - 3} more" if len(forced) > 3 else ""
    return ", ".join(limits + ([f"force {', '.join(forced[:3])}{more}"] if forced else [])) or "the graph's own bounds"


def _checked_worth(cost_graph: CostGraph, coverage: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(coverage, Mapping):
        raise InputError(f"coverage={shown(coverage)} must be a mapping of node names to what each is worth")
    worth = {}
    for name, value in coverage.items():
        if name not in cost_graph.node_of:
            raise PlacementError(f"coverage: {name!r} is no node of the graph")
        number = real_number(value)
        if number is None or not 0 <= number < math.inf:
            raise InputError(f"coverage: {name!r}: {shown(value)} must be a finite number of at least 0")
        worth[name] = number
    return {name: value for name, value in worth.items() if value}


def what_if(
    cost_graph: CostGraph,
    fpga_s: Mapping[str, float],
    *,
    max_segments: int | None = None,
    capacity: float | None = None,
    force: Mapping[str, Side] | None = None,
    weights: Weights = "streamed",
    time_limit: float = 20.0,
) -> Solution:
    """The best placement if each node of `fpga_s` could be on the FPGA and took that many seconds there.

    Raises PlacementError for a name that is no node; else as `solve`.
    """
    for name in fpga_s:
        if name not in cost_graph.node_of:
            raise PlacementError(f"what_if: {name!r} is no node of the graph")
    nodes = tuple(
        replace(node, fpga=fpga_s[node.name], load=0.0) if node.name in fpga_s else node for node in cost_graph.nodes
    )
    return solve(
        replace(cost_graph, nodes=nodes),
        "auto",
        max_segments,
        capacity,
        force,
        weights=weights,
        time_limit=time_limit,
    )


def read_cost_graph(source: CostGraph | Mapping[str, Any] | str | os.PathLike[str]) -> CostGraph:
    """The cost graph that `source` is, or that its JSON text, its object or the file at that path holds."""
    if isinstance(source, CostGraph):
        return source
    if isinstance(source, Mapping):
        return CostGraph.from_json(source)
    if isinstance(source, str) and source.removeprefix("\ufeff").lstrip().startswith("{"):
        return CostGraph.from_json(source)
    if isinstance(source, str | os.PathLike):
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            reason = "no path has a NUL in it" if "\0" in os.fspath(source) else reason
            raise InputError(f"cost graph: cannot read {os.fspath(source)!r}: {reason}") from None
        return CostGraph.from_json(text)
    raise InputError(f"solve takes a CostGraph, its JSON or a path; got {type(source).__name__}")


def forced_sides(cost_graph: CostGraph, force: Mapping[str, Side] | None) -> dict[str, Side]:
    """Node name -> side, of the nodes that `force` names: {node name or fnmatch pattern: "cpu" or "fpga"}.

    An exact name beats a pattern. Raises InputError for a side that is none, PlacementError for a name or pattern that
    meets no node, patterns that contradict each other, and a node that cannot be on the FPGA.
    """
    if force is not None and not isinstance(force, Mapping):
        raise InputError(f"force={shown(force)} must be a mapping of node names or patterns to cpu or fpga")
    forced: dict[str, Side] = {}
    by: dict[str, str] = {}
    for exact in (False, True):
        for pattern, side in (force or {}).items():
            if not isinstance(pattern, str):
                raise InputError(f"force: {shown(pattern)} is no node name or pattern")
            if side not in get_args(Side):
                raise InputError(f"force: {pattern!r} is sent to {shown(side)}; there are cpu, fpga")
            if (pattern in cost_graph.node_of) != exact:
                continue
            names = [pattern] if exact else fnmatch.filter(cost_graph.node_of, pattern)
            if not names:
                raise PlacementError(f"force: {pattern!r} meets no node of the graph")
            for name in names:
                if not exact and forced.get(name, side) != side:
                    raise PlacementError(f"force: {by[name]!r} and {pattern!r} send node {name!r} to different sides")
                forced[name], by[name] = side, pattern
    for name, side in forced.items():
        if side == "fpga" and cost_graph.node_of[name].fpga is None:
            raise PlacementError(f"force: {by[name]!r} sends node {name!r} to the FPGA, which cannot compute it")
    return forced


def fpga_segments(
    cost_graph: CostGraph, placement: Placement, max_segments: int | None = None
) -> tuple[tuple[str, ...], ...]:
    """The FPGA segments of `placement` in the order they run in, the nodes of each in the order of the graph."""
    phase_of = phases(cost_graph, placement, max_segments)
    found: dict[int, list[str]] = {phase: [] for phase in sorted(set(phase_of.values())) if phase % 2}
    for node in cost_graph.nodes:
        if phase_of[node.name] % 2:
            found[phase_of[node.name]].append(node.name)
    return tuple(tuple(names) for names in found.values())
