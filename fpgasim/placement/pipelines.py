"""Several FPGAs in a row: which nodes each of them holds, and what a batch takes through all of them.

The FPGA nodes stand in one linear order, by phase and within one as the graph lists them. A device holds a contiguous
part of it, its stage, so tensors only go forward. By the objective of `cost_graph` with these terms more, a stage takes
its nodes less the pairs within it, a launch for each phase it has a part in, a transfer for each tensor that it reads
of the host's or that the host reads of its own, and a hop for each tensor that an earlier device made.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fpgasim.errors import PlacementError
from fpgasim.graph import Graph
from fpgasim.npu import Device, Numbers
from fpgasim.placement.cost_graph import CostGraph, Placement, phases
from fpgasim.placement.costs import chip_capacity, transfer_bytes
from fpgasim.placement.problem import Weights

SplitFor = Literal["latency", "throughput"]
SPLITS_FOR: tuple[SplitFor, ...] = get_args(SplitFor)
#: The nodes of each device in the order they run in.
Stages = tuple[tuple[str, ...], ...]

#: Costs this close, of themselves, are the same: sums of other orders.
_SAME = 1e-12


@dataclass(frozen=True)
class Room:
    """Bytes of weights that a device keeps on the chip: `whole`, or `beside` others that stream through it."""

    whole: float
    beside: float


def room_of(capacity: float | None, device: Device, numbers: Numbers) -> Room:
    """The room that `partition` plans with on each device: `capacity` bytes, or what the chip holds."""
    if capacity is not None:
        return Room(capacity, capacity)
    return Room(chip_capacity("pinned", device, numbers), chip_capacity("auto", device, numbers))


def resident(cost_graph: CostGraph, weights: Weights, room: Room) -> set[str]:
    """The nodes whose weights one of several devices keeps if they are on it; with "auto" those that one can keep."""
    most = math.inf if weights == "pinned" else room.whole
    return {node.name for node in cost_graph.nodes if 0 < node.weight <= most}


@dataclass(frozen=True)
class Link:
    """What moves tensors from device to device: seconds until the first byte is there, bytes a second from then on."""

    hop_s: float
    bytes_per_s: float

    def seconds(self, payload_bytes: float) -> float:
        """What a hop of so many bytes takes."""
        return self.hop_s + payload_bytes / self.bytes_per_s

    def hops(self, graph: Graph, device: Device, numbers: Numbers) -> dict[str, float]:
        """Tensor of the bound `graph` -> seconds from device to device, as the bytes that go to and from the host."""
        made = [name for node in graph.nodes for name in node.outputs if name]
        return {name: self.seconds(transfer_bytes(graph, name, device, numbers)) for name in made}


@dataclass(frozen=True)
class Split:
    """Stages, what a batch takes in each of them and on the host, in seconds.

    A transfer is in the time of the device that waits for it: a hop of the one that reads, the host's of the FPGA. So
    stages and host add up to the latency of a batch. Each works on a batch of its own, one thing after another, so the
    slowest sets the throughput.
    """

    stages: Stages
    stage_s: tuple[float, ...]
    host_s: float

    @property
    def latency_s(self) -> float:
        """From the first transfer to the last, for one batch alone."""
        return math.fsum((*self.stage_s, self.host_s))

    @property
    def interval_s(self) -> float:
        """From one batch to the next: the time of the slowest stage, or of the host."""
        return max((*self.stage_s, self.host_s))


def linear_order(cost_graph: CostGraph, placement: Placement, max_segments: int | None = None) -> tuple[str, ...]:
    """The FPGA nodes by phase, then in the graph's own order, or the first topological one by it."""
    index = {node.name: i for i, node in enumerate(cost_graph.nodes)}
    names = [node.name for node in cost_graph.nodes]
    waiting = {name: len(cost_graph.predecessors[name]) for name in names}
    successors: dict[str, list[str]] = {name: [] for name in names}
    for name in names:
        for producer in cost_graph.predecessors[name]:
            successors[producer].append(name)
    ready = [index[name] for name in names if not waiting[name]]
    heapq.heapify(ready)
    order = []
    while ready:
        name = names[heapq.heappop(ready)]
        order.append(name)
        for successor in successors[name]:
            waiting[successor] -= 1
            if not waiting[successor]:
                heapq.heappush(ready, index[successor])
    phase_of = phases(cost_graph, placement, max_segments)
    return tuple(sorted((name for name in order if placement[name] == "fpga"), key=phase_of.__getitem__))


def price(
    cost_graph: CostGraph,
    placement: Placement,
    stages: Stages,
    hops: Mapping[str, float],
    max_segments: int | None = None,
) -> Split:
    """What `stages` cost. `hops` are the seconds of each tensor from device to device.

    With a single stage the latency is `objective`. A tensor goes to each device that reads it once, from where it was
    made. Raises PlacementError where the stages are not the FPGA nodes, each once, or an edge leads back to an earlier
    stage.
    """
    stage_of = {name: i for i, names in enumerate(stages) for name in names}
    if sorted(stage_of) != sorted(name for name, side in placement.items() if side == "fpga") or len(stage_of) < sum(
        map(len, stages)
    ):
        raise PlacementError("the stages of the devices are not the nodes on the FPGA, each of them once")
    phase_of = phases(cost_graph, placement, max_segments)
    terms: list[list[float]] = [[] for _ in stages]
    host = [cost_graph.cpu_call for _ in {phase for phase in phase_of.values() if not phase % 2}]
    for node in cost_graph.nodes:
        if node.name not in stage_of:
            host.append(node.cpu)
        elif node.fpga is None:
            raise PlacementError(f"node {node.name!r} cannot be on the FPGA")
        else:
            terms[stage_of[node.name]].append(node.fpga)
    for _, i in sorted({(phase_of[name], i) for name, i in stage_of.items()}):
        terms[i].append(cost_graph.launch)
    for pair in cost_graph.pairs:
        i = stage_of.get(pair.first, -1)
        if i >= 0 and stage_of.get(pair.second) == i:
            terms[i].append(-pair.saves)
    for tensor in cost_graph.tensors:
        readers = {stage_of[name] for name in tensor.consumers if name in stage_of}
        home = None if tensor.producer is None else stage_of.get(tensor.producer)
        if home is None:
            for i in readers:
                terms[i].append(tensor.to_fpga)
            continue
        if readers and min(readers) < home:
            raise PlacementError(f"tensor {tensor.name!r} goes from device {home + 1} back to {min(readers) + 1}")
        for i in readers - {home}:
            terms[i].append(hops[tensor.name])
        if tensor.output or any(name not in stage_of for name in tensor.consumers):
            terms[home].append(tensor.to_cpu)
    return Split(stages, tuple(math.fsum(part) for part in terms), math.fsum(host))


def fill(cost_graph: CostGraph, order: Sequence[str], pinned: Collection[str], room: Room) -> Stages:
    """`order` cut where a device is full: no split into contiguous stages has fewer of them.

    The weights of the nodes `pinned` stay on the chip, those of others stream. Raises PlacementError naming a node
    that no device holds.
    """
    stages: list[list[str]] = []
    used, streams = 0.0, False
    for name in order:
        weight = cost_graph.node_of[name].weight
        kept = weight if name in pinned else 0
        streamed = bool(weight) and name not in pinned
        limit = room.beside if streams or streamed else room.whole
        if not stages or used + kept > limit:
            stages.append([])
            used, streams = 0.0, False
            if kept > room.whole:
                raise PlacementError(_too_large(cost_graph, name, room))
        stages[-1].append(name)
        used, streams = used + kept, streams or streamed
    return tuple(map(tuple, stages))


def _too_large(cost_graph: CostGraph, name: str, room: Room) -> str:
    return (
        f"the weights of node {name!r}, {cost_graph.node_of[name].weight:,.0f} bytes, do not fit on one device, which "
        f'keeps {room.whole:,.0f}; weights="auto" would stream them, force would leave it to the CPU'
    )


def held(cost_graph: CostGraph, names: Collection[str], pinned: Collection[str], room: Room) -> tuple[float, float]:
    """Bytes of the weights that the nodes `names` keep on their device, and bytes there is room for."""
    nodes = [cost_graph.node_of[name] for name in names]
    streams = any(node.weight and node.name not in pinned for node in nodes)
    return math.fsum(node.weight for node in nodes if node.name in pinned), room.beside if streams else room.whole


def split(
    cost_graph: CostGraph,
    placement: Placement,
    hops: Mapping[str, float],
    room: Room,
    devices: int | None = None,
    *,
    pinned: Collection[str],
    split_for: SplitFor = "latency",
    max_segments: int | None = None,
) -> Split:
    """The best split of the FPGA nodes of `placement` into at most `devices` contiguous stages of the linear order.

    None are as many as are needed to hold the weights of the nodes `pinned`. `split_for="latency"` takes the one of
    the least latency, "throughput" that of the shortest time between batches, among those of the least latency. By
    dynamic programming over the borders; exact for this placement in this order. Raises PlacementError saying how many
    devices are needed where these are too few, and naming a node that no device holds.
    """
    order = linear_order(cost_graph, placement, max_segments)
    needed = len(fill(cost_graph, order, pinned, room))
    if devices is not None and devices < needed:
        raise PlacementError(
            f"devices={devices} are too few: these weights need {needed}, each of which keeps {room.whole:,.0f} bytes; "
            f'devices={needed} or "auto" would do'
        )
    count = min(needed if devices is None else devices, len(order))
    if not order:
        return price(cost_graph, placement, (), hops, max_segments)
    columns = list(_columns(cost_graph, placement, order, hops, pinned, room, max_segments))
    limit = math.inf
    if split_for == "throughput":
        host_s = price(cost_graph, placement, (order,), hops, max_segments).host_s
        least = _borders(columns, count, np.maximum, math.inf)[0]
        limit = max(least, host_s) * (1 + _SAME)
    borders = _borders(columns, count, np.add, limit)[1]
    stages = tuple(order[begin:end] for begin, end in zip((0, *borders), (*borders, len(order)), strict=True))
    return price(cost_graph, placement, stages, hops, max_segments)


#: The first node that a stage up to some node may begin with, and what it takes from there on and from each later one.
_Column = tuple[int, npt.NDArray[np.float64]]


def _columns(
    cost_graph: CostGraph,
    placement: Placement,
    order: Sequence[str],
    hops: Mapping[str, float],
    pinned: Collection[str],
    room: Room,
    max_segments: int | None,
) -> Iterator[_Column]:
    """For each node of `order` what the stages that end with it take, by their first node.

    What a node adds to a stage depends only on which of the nodes before it are in it.
    """
    at = {name: i for i, name in enumerate(order)}
    phase_of = phases(cost_graph, placement, max_segments)
    reads: list[list[tuple[int, float, str]]] = [[] for _ in order]  # (place of the producer or -1, seconds, tensor)
    base = np.array([cost_graph.node_of[name].fpga for name in order], float)
    for tensor in cost_graph.tensors:
        home = at.get(tensor.producer or "", -1) if tensor.producer is not None else -1
        for j in {at[name] for name in tensor.consumers if name in at}:
            reads[j].append((home, tensor.to_fpga if home < 0 else hops[tensor.name], tensor.name))
        if home >= 0 and (tensor.output or any(name not in at for name in tensor.consumers)):
            base[home] += tensor.to_cpu
    saves: list[list[tuple[int, float]]] = [[] for _ in order]
    for pair in cost_graph.pairs:
        if pair.first in at and pair.second in at:
            first, second = sorted((at[pair.first], at[pair.second]))
            saves[second].append((first, pair.saves))
    last_reader: dict[str, int] = {}
    takes = np.zeros(len(order))
    low, kept, streaming = 0, 0.0, 0
    for j, name in enumerate(order):
        takes[:j] += base[j]
        takes[j] = base[j] + cost_graph.launch
        if j and phase_of[name] != phase_of[order[j - 1]]:
            takes[:j] += cost_graph.launch
        for first, seconds in saves[j]:
            takes[: first + 1] -= seconds
        for home, seconds, tensor_name in reads[j]:
            takes[max(home, last_reader.get(tensor_name, -1)) + 1 : j + 1] += seconds
            last_reader[tensor_name] = j
        weight = cost_graph.node_of[name].weight
        kept, streaming = (kept + weight, streaming) if name in pinned else (kept, streaming + bool(weight))
        while kept > (room.beside if streaming else room.whole):
            out = cost_graph.node_of[order[low]]
            low += 1
            if out.name in pinned:
                kept -= out.weight
            else:
                streaming -= bool(out.weight)
        yield low, takes[low : j + 1].copy()


def _borders(columns: Sequence[_Column], count: int, combine: np.ufunc, limit: float) -> tuple[float, list[int]]:
    """The least sum or maximum over at most `count` stages that take up to `limit` each, and where new ones begin."""
    nodes = len(columns)
    best = np.full((count + 1, nodes + 1), np.inf)
    best[0, 0] = combine.identity if combine.identity is not None else -np.inf
    begins = np.zeros((count + 1, nodes + 1), int)
    for j, (low, takes) in enumerate(columns):
        reached = combine(best[:-1, low : j + 1], np.where(takes <= limit, takes, np.inf))
        chosen = reached.argmin(axis=1)
        begins[1:, j + 1] = low + chosen
        best[1:, j + 1] = reached[np.arange(count), chosen]
    stages = int(best[:, nodes].argmin())
    cost, borders, end = float(best[stages, nodes]), [], nodes
    for k in range(stages, 0, -1):
        end = int(begins[k, end])
        borders.append(end)
    return cost, borders[-2::-1]
