"""`CostGraph`, the table of costs a placement is chosen by, and the one objective all algorithms are measured with.

Times are in seconds. The file form (`to_json`) is
{"nodes": [{"name", "cpu", "fpga", "weight", "load"}],
"tensors": [{"name", "producer", "consumers", "to_fpga", "to_cpu", "output"}],
"pairs": [{"first", "second", "saves", "kind"}], "launch", "cpu_call"}; `weight`, `load`, `output`, `pairs`, `kind`,
`launch` and `cpu_call` may be left out.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any, Literal, TypeVar, get_args

from fpgasim.errors import InputError, PlacementError, UnknownNameError

Side = Literal["cpu", "fpga"]
PairKind = Literal["fused", "overlap"]
PAIR_KINDS: tuple[PairKind, ...] = get_args(PairKind)
Placement = Mapping[str, Side]
#: Characters of a wrong value that a message shows.
_SHOWN = 60


@dataclass(frozen=True)
class CostNode:
    """A node: its time on the CPU, its time on the FPGA (None = not possible there), its weights in bytes.

    `load` is the part of `fpga` that goes into loading the weights; it falls away where they stay on chip.
    """

    name: str
    cpu: float
    fpga: float | None
    weight: float = 0.0
    load: float = 0.0

    def __post_init__(self) -> None:
        where = f"node {self.name!r}"
        _make_floats(self, where, "cpu", "weight", "load", *([] if self.fpga is None else ["fpga"]))
        if self.load > (self.fpga or 0.0):
            raise InputError(f"cost graph: {where}: load={self.load!r} is more than fpga={self.fpga!r}")


@dataclass(frozen=True)
class CostTensor:
    """A tensor: who makes it (None = a graph input, made on the CPU), who reads it, its transfer in each direction.

    `output` marks a graph output, which must end on the CPU.
    """

    name: str
    producer: str | None
    consumers: tuple[str, ...]
    to_fpga: float
    to_cpu: float
    output: bool = False

    def __post_init__(self) -> None:
        _make_floats(self, f"tensor {self.name!r}", "to_fpga", "to_cpu")


@dataclass(frozen=True)
class Pair:
    """What is saved where `first` and `second` are both on the FPGA.

    kind "overlap": the weights of `second` load behind the computation of `first`; that saves nothing where they stay
    on chip.
    """

    first: str
    second: str
    saves: float
    kind: PairKind = "fused"

    def __post_init__(self) -> None:
        _make_floats(self, f"pair {self.first!r}, {self.second!r}", "saves")
        if self.kind not in PAIR_KINDS:
            raise UnknownNameError("kind of pair", self.kind, PAIR_KINDS)


@dataclass(frozen=True)
class CostGraph:
    """The costs of a graph: nodes, tensors, pairs, the launch of a segment, the call of a CPU piece.

    All costs and weights become floats, whatever numbers they come as. Raises InputError where a name is unknown or
    twice there, a cost is negative or not finite, or the nodes run in a circle.
    """

    nodes: tuple[CostNode, ...]
    tensors: tuple[CostTensor, ...]
    pairs: tuple[Pair, ...] = ()
    launch: float = 0.0
    cpu_call: float = 0.0

    def __post_init__(self) -> None:
        _check_unique("node", (node.name for node in self.nodes))
        _check_unique("tensor", (tensor.name for tensor in self.tensors))
        known = self.node_of
        for tensor in self.tensors:
            where = f"tensor {tensor.name!r}"
            for name in (*tensor.consumers, *([] if tensor.producer is None else [tensor.producer])):
                _check_known(where, name, known)
        for pair in self.pairs:
            where = f"pair {pair.first!r}, {pair.second!r}"
            _check_known(where, pair.first, known)
            _check_known(where, pair.second, known)
            if pair.first == pair.second:
                raise InputError(f"cost graph: {where} is one node twice")
        _make_floats(self, "the graph", "launch", "cpu_call")
        if len(self.order) < len(self.nodes):
            stuck = next(node.name for node in self.nodes if node.name not in set(self.order))
            raise InputError(f"cost graph: node {stuck!r} is on or behind a circle; a graph must be acyclic")

    @cached_property
    def node_of(self) -> dict[str, CostNode]:
        """Name -> node."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def predecessors(self) -> dict[str, tuple[str, ...]]:
        """Name -> the nodes whose tensors it reads, each once."""
        found: dict[str, dict[str, None]] = {node.name: {} for node in self.nodes}
        for tensor in self.tensors:
            if tensor.producer is not None:
                for consumer in tensor.consumers:
                    found[consumer][tensor.producer] = None
        return {name: tuple(producers) for name, producers in found.items()}

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The node names in a topological order; shorter than `nodes` where there is a circle."""
        waiting = {name: len(producers) for name, producers in self.predecessors.items()}
        successors: dict[str, list[str]] = {name: [] for name in waiting}
        for name, producers in self.predecessors.items():
            for producer in producers:
                successors[producer].append(name)
        order = [name for name, count in waiting.items() if count == 0]
        for name in order:  # grows while it is walked
            for successor in successors[name]:
                waiting[successor] -= 1
                if waiting[successor] == 0:
                    order.append(successor)
        return tuple(order)

    @cached_property
    def direct_predecessors(self) -> dict[str, tuple[str, ...]]:
        """`predecessors` without those that are also behind another of them (the transitive reduction).

        These alone decide phases: a phase that rises from u to v on the way u → w → v rises on one of its edges.
        """
        number = {name: i for i, name in enumerate(self.order)}
        before: dict[str, int] = {}  # bit i: node i of the order
        found = {}
        for name in self.order:
            seen = 0
            direct = []
            for producer in sorted(self.predecessors[name], key=number.__getitem__, reverse=True):
                if not seen >> number[producer] & 1:
                    direct.append(producer)
                    seen |= before[producer]
            before[name] = seen | 1 << number[name]
            found[name] = tuple(direct)
        return found

    def to_json(self) -> str:
        """The file form as text; `from_json` gives an equal CostGraph back."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, source: str | Mapping[str, Any]) -> CostGraph:
        """The cost graph in `source`: JSON text or what json.loads made of it. Raises InputError for anything else."""
        data: Any = source
        if isinstance(source, str):
            try:
                data = json.loads(source.removeprefix("\ufeff"))
            except ValueError as error:  # JSONDecodeError, or a number of too many digits
                raise InputError(f"cost graph: not JSON: {error}") from None
            except RecursionError:
                raise InputError("cost graph: its JSON is nested too deeply") from None
        values = _checked(cls, data, "the graph")
        for key, row in (("nodes", CostNode), ("tensors", CostTensor), ("pairs", Pair)):
            values[key] = tuple(_rows(row, values.get(key, []), key))
        return cls(**values)


Row = TypeVar("Row", CostNode, CostTensor, Pair)


def _rows(row: type[Row], data: object, key: str) -> Iterable[Row]:
    if not isinstance(data, list | tuple):
        raise InputError(f"cost graph: {key}={shown(data)} must be a list")
    for i, item in enumerate(data):
        values = _checked(row, item, f"{key}[{i}]")
        if "consumers" in values:
            consumers = values["consumers"]
            if not isinstance(consumers, list | tuple) or not all(isinstance(name, str) for name in consumers):
                raise InputError(f"cost graph: {key}[{i}]: consumers={shown(consumers)} must be a list of node names")
            values["consumers"] = tuple(consumers)
        for field in ("name", "producer", "first", "second"):
            name = values.get(field, "")
            if not (isinstance(name, str) or (field == "producer" and name is None)):
                raise InputError(f"cost graph: {key}[{i}]: {field}={shown(name)} must be a name")
        if not isinstance(values.get("output", False), bool):
            raise InputError(f"cost graph: {key}[{i}]: output={shown(values['output'])} must be true or false")
        yield row(**values)


def _checked(kind: type[Any], data: object, where: str) -> dict[str, Any]:
    """`data` as the arguments of the dataclass `kind`; InputError for a key too many or too few."""
    if not isinstance(data, Mapping):
        raise InputError(f"cost graph: {where} must be an object, not {type(data).__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(str(key) for key in set(data) - set(fields))
    if unknown:
        raise InputError(f"cost graph: {where} has no field {unknown[0]!r}; there are {', '.join(fields)}")
    for name, field in fields.items():
        if name not in data and field.default is dataclasses.MISSING:
            raise InputError(f"cost graph: {where} lacks {name!r}")
    return dict(data)


def _check_unique(kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"cost graph: {kind} {name!r} is there twice; names must be unique")
        seen.add(name)


def _check_known(where: str, name: str, known: Mapping[str, CostNode]) -> None:
    if name not in known:
        raise InputError(f"cost graph: {where} names node {name!r}, which is not among the nodes")


def _make_floats(row: object, where: str, *fields: str) -> None:
    """Makes the costs in `fields` of the frozen dataclass `row` floats; InputError for one that is no cost."""
    for field in fields:
        value = getattr(row, field)
        cost = real_number(value)
        if cost is None or not 0 <= cost < math.inf:
            raise InputError(f"cost graph: {where}: {field}={shown(value)} must be a finite number of at least 0")
        object.__setattr__(row, field, cost)


def real_number(value: object) -> float | None:
    """`value` as a float, infinite where it is beyond them; None where it is no real number, as True is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def shown(value: object) -> str:
    """`value` as it is written in a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def pin(cost_graph: CostGraph, pinned: Collection[str]) -> CostGraph:
    """`cost_graph` with the weights of the nodes `pinned` on chip: without their loads and what overlapped those."""
    if not pinned:
        return cost_graph
    return replace(
        cost_graph,
        nodes=tuple(
            node
            if node.fpga is None or node.name not in pinned
            else replace(node, fpga=node.fpga - node.load, load=0.0)
            for node in cost_graph.nodes
        ),
        pairs=tuple(pair for pair in cost_graph.pairs if pair.kind != "overlap" or pair.second not in pinned),
    )


def objective(
    cost_graph: CostGraph,
    placement: Placement,
    *,
    pinned: Collection[str] = (),
    max_segments: int | None = None,
) -> float:
    """The time of `placement` in seconds: node times + transfers − pairs + launches + CPU calls.

    Each tensor is moved at most once (it stays where it was brought). Launches count the FPGA segments and CPU calls
    the CPU pieces of `phases` under `max_segments`. The weights of the nodes `pinned` are on chip. Raises
    PlacementError where a node is missing or cannot be on the FPGA.
    """
    moved = cut_objective(pin(cost_graph, pinned), placement)
    used = set(phases(cost_graph, placement, max_segments).values())
    segments = sum(phase % 2 for phase in used)
    return moved + cost_graph.launch * segments + cost_graph.cpu_call * (len(used) - segments)


def cut_objective(cost_graph: CostGraph, placement: Placement) -> float:
    """`objective` without launches and CPU calls: the part that a minimum cut minimises exactly."""
    terms: list[float] = []
    for node in cost_graph.nodes:
        side = placement.get(node.name)
        if side == "cpu":
            terms.append(node.cpu)
        elif side == "fpga" and node.fpga is not None:
            terms.append(node.fpga)
        else:
            wrong = "cannot be on the FPGA" if side == "fpga" else f"has side {side!r}; there are cpu, fpga"
            raise PlacementError(f"node {node.name!r} {wrong}")
    for tensor in cost_graph.tensors:
        if tensor.producer is not None and placement[tensor.producer] == "fpga":
            if tensor.output or any(placement[name] == "cpu" for name in tensor.consumers):
                terms.append(tensor.to_cpu)
        elif any(placement[name] == "fpga" for name in tensor.consumers):
            terms.append(tensor.to_fpga)
    terms += [-p.saves for p in cost_graph.pairs if placement[p.first] == placement[p.second] == "fpga"]
    return math.fsum(terms)


def phases(cost_graph: CostGraph, placement: Placement, max_segments: int | None = None) -> dict[str, int]:
    """Node name -> phase, with the fewest phases there can be.

    A phase is even on the CPU, odd on the FPGA, and never falls along an edge.
    phase(v) = max over its producers u of phase(u) + (their sides differ). A CPU node without producers gets phase 0
    or, where that needs fewer phases, 2 (then nothing is in phase 0: the FPGA begins). Where both need equally many
    one with at most `max_segments` FPGA segments is taken, then the cheaper by launches and CPU calls, then phase 0.
    """

    def label(first_cpu: int) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in cost_graph.order:
            side = placement[name]
            phase = first_cpu if side == "cpu" else 1
            for producer in cost_graph.direct_predecessors[name]:
                phase = max(phase, found[producer] + (placement[producer] != side))
            found[name] = phase
        return found

    def cost(labels: dict[str, int]) -> tuple[int, bool, float]:
        used = set(labels.values())
        odd = sum(phase % 2 for phase in used)
        too_many = max_segments is not None and odd > max_segments
        return len(used), too_many, cost_graph.launch * odd + cost_graph.cpu_call * (len(used) - odd)

    return min((label(0), label(2)), key=cost)


def check_convex(cost_graph: CostGraph, groups: Sequence[Iterable[str]]) -> None:
    """Raises PlacementError where a path leaves one of the disjoint `groups` of node names and comes back into it."""
    for members in (set(group) for group in groups):
        left: set[str] = set()  # nodes outside that a member reaches
        for name in cost_graph.order:
            producers = cost_graph.predecessors[name]
            if name not in members:
                if any(producer in members or producer in left for producer in producers):
                    left.add(name)
            elif any(producer in left for producer in producers):
                raise PlacementError(f"a segment is not convex: a path leaves it and comes back at node {name!r}")
