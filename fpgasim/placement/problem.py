"""`Problem`: what a placement is sought for, and what a placement is worth by it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Literal, NamedTuple, get_args

from fpgasim.errors import InputError, PlacementError, UnknownNameError
from fpgasim.placement.cost_graph import CostGraph, Placement, Side, objective, phases, pin, real_number, shown

Weights = Literal["streamed", "pinned", "auto"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)


@dataclass(frozen=True)
class Problem:
    """A cost graph, the sides of nodes that are not free, limits (None where nothing is limited), where weights live.

    `max_segments` bounds the FPGA segments. `capacity` bounds, in the unit of `CostNode.weight`, the weights of all
    FPGA nodes or, with weights="auto", of the pinned ones. "streamed": all weights are loaded in every run; "pinned":
    all of them stay on chip; "auto": some do, as the solver chooses. Raises InputError for a limit that is none,
    PlacementError where forced nodes alone break the capacity.
    """

    cost_graph: CostGraph
    forced: Mapping[str, Side] = field(default_factory=dict)
    max_segments: int | None = None
    capacity: float | None = None
    weights: Weights = "streamed"

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise UnknownNameError("way of weights", self.weights, WEIGHTS)
        max_segments, capacity = check_limits(self.max_segments, self.capacity, 0)
        if max_segments is not None and max_segments >= len(self.cost_graph.nodes):
            max_segments = None
        if capacity is not None and weight_of(self.cost_graph, self._may_weigh()) <= capacity:
            capacity = None
        object.__setattr__(self, "max_segments", max_segments)
        object.__setattr__(self, "capacity", capacity)
        wanted = [name for name, side in self.forced.items() if side == "fpga"]
        if wanted and self.max_segments == 0:
            raise PlacementError(f"force: node {wanted[0]!r} must be on the FPGA, but max_segments=0")
        if self.capacity is not None and self.weights != "auto":
            need = weight_of(self.cost_graph, wanted)
            if need > self.capacity:
                raise PlacementError(
                    f"force: the nodes that must be on the FPGA weigh {need:g}, more than capacity={self.capacity:g}; "
                    f"the first is {wanted[0]!r}"
                )

    def _may_weigh(self) -> list[str]:
        """The nodes that may be on the FPGA."""
        return [node.name for node in self.cost_graph.nodes if "fpga" in self.sides(node.name)]

    @property
    def phased(self) -> bool:
        """Whether the number of phases matters: for launches, CPU calls or the limit of segments."""
        return bool(self.cost_graph.launch or self.cost_graph.cpu_call) or self.max_segments is not None

    def sides(self, name: str) -> tuple[Side, ...]:
        """The sides that node `name` may be on."""
        if name in self.forced:
            return (self.forced[name],)
        return ("cpu",) if self.cost_graph.node_of[name].fpga is None else ("cpu", "fpga")

    def all_cpu(self) -> dict[str, Side]:
        """Everything on the CPU that is not forced to the FPGA."""
        return {node.name: self.forced.get(node.name, "cpu") for node in self.cost_graph.nodes}

    def everything(self) -> dict[str, Side]:
        """Everything on the FPGA that may be there."""
        return {node.name: self.sides(node.name)[-1] for node in self.cost_graph.nodes}

    def pinned(self, placement: Placement) -> frozenset[str]:
        """The nodes whose weights stay on chip in `placement`; for "auto" the best by gain for weight until it is full.

        Without a capacity that is the best choice there is.
        """
        heavy = [node for node in self.cost_graph.nodes if node.weight and placement[node.name] == "fpga"]
        if self.weights != "auto":
            return frozenset(node.name for node in heavy) if self.weights == "pinned" else frozenset()
        gain = {node.name: node.load for node in heavy}
        for pair in self.cost_graph.pairs:
            if pair.kind == "overlap" and pair.second in gain and placement[pair.first] == "fpga":
                gain[pair.second] -= pair.saves
        used = Total()
        chosen: list[str] = []
        for node in sorted(heavy, key=lambda node: -gain[node.name] / node.weight):
            more = used.plus(node.weight)
            if gain[node.name] > 0 and (self.capacity is None or more.sum <= self.capacity):
                chosen.append(node.name)
                used = more
        return frozenset(chosen)

    def relaxed(self, price: float = 0.0) -> CostGraph:
        """A cost graph of which every placement costs at most what it does here, launches, CPU calls and limits aside.

        Each unit of the weights that the capacity bounds costs `price`; less price · capacity that is a bound still.
        """
        graph = self.cost_graph
        heavy = {node.name for node in graph.nodes if node.weight and node.fpga is not None}
        if self.weights != "auto":
            graph = pin(graph, heavy) if self.weights == "pinned" else graph
            paid = {name: price * graph.node_of[name].weight for name in heavy}
        else:  # what saves more by staying than its load could overlap stays; of others both are granted
            gains = {name: graph.node_of[name].load - price * graph.node_of[name].weight for name in heavy}
            overlapped = dict.fromkeys(graph.node_of, 0.0)
            for pair in graph.pairs:
                if pair.kind == "overlap":
                    overlapped[pair.second] += pair.saves
            staying = {name for name, gain in gains.items() if gain >= overlapped[name]}
            graph = replace(graph, pairs=pin(graph, staying).pairs)
            paid = {name: -max(gain, 0.0) for name, gain in gains.items()}
        if not any(paid.values()):
            return graph
        nodes = (
            replace(node, fpga=(node.fpga or 0.0) + paid[node.name], load=0.0) if node.name in paid else node
            for node in graph.nodes
        )
        return replace(graph, nodes=tuple(nodes))

    def cost(self, placement: Placement, pinned: Collection[str]) -> float:
        """`objective` of `placement` under the limit of segments."""
        return objective(self.cost_graph, placement, pinned=pinned, max_segments=self.max_segments)

    def broken(self, placement: Placement, pinned: Collection[str]) -> str:
        """Which limit `placement` breaks and how, or ''."""
        for name, side in self.forced.items():
            if placement[name] != side:
                return f"node {name!r} is not on the {side.upper()}"
        if self.max_segments is not None:
            phase_of = phases(self.cost_graph, placement, self.max_segments)
            segments = len({phase for phase in phase_of.values() if phase % 2})
            if segments > self.max_segments:
                return f"{segments} FPGA segments, more than max_segments={self.max_segments}"
        if self.capacity is not None:
            there = pinned if self.weights == "auto" else [name for name, side in placement.items() if side == "fpga"]
            weight = weight_of(self.cost_graph, there)
            if weight > self.capacity:
                return f"weights of {weight:g} on the FPGA, more than capacity={self.capacity:g}"
        return ""


@dataclass(frozen=True)
class Found:
    """What an exact algorithm found; `placement` is None where there is none or (`finished` False) none in time."""

    placement: Placement | None
    pinned: frozenset[str]
    lower_bound: float
    finished: bool


class Total(NamedTuple):
    """A running sum and the rest that its float leaves out, so that `sum` is rounded once, as `weight_of` is."""

    sum: float = 0.0
    rest: float = 0.0

    def plus(self, weight: float) -> Total:
        """The sum with `weight`."""
        whole = math.fsum((self.sum, self.rest, weight))
        return Total(whole, math.fsum((self.sum, self.rest, weight, -whole)))


def check_limits(max_segments: object, capacity: object, time_limit: object) -> tuple[int | None, float | None]:
    """`max_segments` and `capacity` as an int and a float, None where nothing is limited, as by an infinite capacity.

    Raises InputError for a limit that is no number from 0 up, whole for segments, and for such a time limit.
    """
    segments = None
    if max_segments is not None:
        whole = isinstance(max_segments, Integral) and not isinstance(max_segments, bool)
        segments = int(max_segments) if whole else -1  # type: ignore[call-overload]
        if segments < 0:
            wrong = f"max_segments={shown(max_segments)}"
            raise InputError(f"{wrong} must be a whole number from 0 up, or None for no limit")
    for name, value, none in (("capacity", capacity, ", or None for no limit"), ("time_limit", time_limit, "")):
        number = real_number(value)
        if not (value is None and none) and (number is None or not number >= 0):
            raise InputError(f"{name}={shown(value)} must be a number from 0 up{none}")
    limit = real_number(capacity)
    return segments, None if limit == math.inf else limit


def weight_of(cost_graph: CostGraph, names: Collection[str]) -> float:
    """The sum of the weights of the nodes `names`."""
    return math.fsum([cost_graph.node_of[name].weight for name in names])
