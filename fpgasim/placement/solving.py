"""`solve`: the best placement of a cost graph, by the algorithm that was asked for."""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from fpgasim.errors import InputError, PlacementError, UnknownNameError
from fpgasim.placement.cost_graph import CostGraph, CostNode, Placement, Side, objective, phases, pin
from fpgasim.placement.mincut import lower_bound, minimum_cut

Algorithm = Literal["auto", "mincut", "milp", "greedy"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
Weights = Literal["streamed", "pinned", "auto"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
Maker = Literal["mincut", "milp", "greedy", "coverage", "all-cpu"]


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
        """How far the objective may be above the best there is: (objective − lower bound) / objective."""
        return (self.objective - self.lower_bound) / self.objective if self.objective else 0.0


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
    """The best placement of `cost_graph`: a CostGraph, its file form as an object or JSON text, or a path to a file."""
    begun = time.perf_counter()
    if algorithm not in ALGORITHMS:
        raise UnknownNameError("algorithm", algorithm, ALGORITHMS)
    if weights not in WEIGHTS:
        raise UnknownNameError("way of weights", weights, WEIGHTS)
    graph = read_cost_graph(cost_graph)
    forced = forced_sides(graph, force)
    pinned_graph = graph if weights == "streamed" else pin(graph, {node.name for node in graph.nodes if node.weight})
    cut = minimum_cut(pinned_graph)
    candidates: dict[Maker, Placement] = {
        "all-cpu": {**{node.name: "cpu" for node in graph.nodes}, **forced},
        "mincut": {**cut.placement, **forced},
    }
    made: Maker = min(candidates, key=lambda name: objective(pinned_graph, candidates[name]))
    placement = candidates[made]
    return Solution(
        placement,
        objective(pinned_graph, placement),
        lower_bound(pinned_graph, cut),
        fpga_segments(graph, placement, max_segments),
        made,
        frozenset(),
        time.perf_counter() - begun,
        "",
    )


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
    """The best placement if each node of `fpga_s` took that long on the FPGA, and could be there."""
    nodes = tuple(
        CostNode(node.name, node.cpu, fpga_s[node.name], node.weight) if node.name in fpga_s else node
        for node in cost_graph.nodes
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
    if isinstance(source, str) and source.lstrip().startswith("{"):
        return CostGraph.from_json(source)
    if isinstance(source, str | os.PathLike):
        try:
            return CostGraph.from_json(Path(source).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cost graph: cannot read {os.fspath(source)!r}: {error}") from None
    raise InputError(f"solve takes a CostGraph, its JSON or a path; got {type(source).__name__}")


def forced_sides(cost_graph: CostGraph, force: Mapping[str, Side] | None) -> dict[str, Side]:
    """Node name -> side, of the nodes that `force` names: {node name or fnmatch pattern: "cpu" or "fpga"}.

    An exact name beats a pattern. Raises InputError for a side that is none, PlacementError for a name or pattern that
    meets no node, patterns that contradict each other, and a node that cannot be on the FPGA.
    """
    forced: dict[str, Side] = {}
    by: dict[str, str] = {}
    for exact in (False, True):
        for pattern, side in (force or {}).items():
            if side not in get_args(Side):
                raise InputError(f"force: {pattern!r} is sent to {side!r}; there are cpu, fpga")
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
