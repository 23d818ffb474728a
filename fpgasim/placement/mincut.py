"""The placement that a minimum s-t cut finds: exact for the objective without launches and CPU calls.

The source side is the CPU, the sink side the FPGA; an edge is cut, and paid, where it leads from the source side to
the sink side.

    v -> t         time of v on the CPU
    s -> v         time of v on the FPGA (unbounded where it cannot be there; a forced side works likewise)
    u -> a -> w…   upload of u's tensor, once for all its readers w: a -> w is unbounded
    w… -> b -> u   download of u's tensor, once for all its readers w: w -> b is unbounded
    v, w -> p -> t what the pair (v, w) saves: paid unless both are on the FPGA, and taken off as a constant

Every term is submodular, so the minimum cut is the minimum (Picard and Ratliff, 1975).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fpgasim.placement.cost_graph import CostGraph, Placement, Side, cut_objective, objective

#: SciPy's capacities are int32. A residual capacity is at most capacity + flow, so both stay within 2^30.
_UNBOUNDED = 1 << 30


@dataclass(frozen=True)
class Cut:
    """A placement that minimises `cut_objective`.

    `lower_bound` is below the `cut_objective` of every placement; this one's is at most `error` above it. The two
    differ only because SciPy's capacities are integers.
    """

    placement: Placement
    lower_bound: float
    error: float


def minimum_cut(cost_graph: CostGraph, forced: Mapping[str, Side] | None = None) -> Cut:
    """The minimum cut of `cost_graph` with the nodes `forced` on their sides.

    Among equally cheap ones that with the fewest nodes on the FPGA.
    """
    sides = forced or {}
    network, constant = _network(cost_graph, sides)
    on_cpu: dict[str, Side] = {node.name: sides.get(node.name, "cpu") for node in cost_graph.nodes}
    on_fpga: dict[str, Side] = {
        node.name: sides.get(node.name, "cpu" if node.fpga is None else "fpga") for node in cost_graph.nodes
    }
    everything_on_cpu = cut_objective(cost_graph, on_cpu) - constant
    if everything_on_cpu <= 0:
        return Cut(on_cpu, constant, 0.0)
    # The flow is at most the cut of either. Capacities are rounded down, so the flow bounds the true cut from below.
    most = min(everything_on_cpu, max(cut_objective(cost_graph, on_fpga) - constant, 1e-6 * everything_on_cpu))
    scale = (_UNBOUNDED - 1) / most
    flow, residual = _maximum_flow(_matrix(network, scale))
    sink_side = _sink_side(residual)
    placement: dict[str, Side] = {
        node.name: "fpga" if i in sink_side else "cpu" for i, node in enumerate(cost_graph.nodes, 2)
    }
    lower_bound = constant + flow / scale
    return Cut(placement, lower_bound, max(0.0, cut_objective(cost_graph, placement) - lower_bound))


def lower_bound(cost_graph: CostGraph, cut: Cut, forced: Mapping[str, Side] | None = None) -> float:
    """A bound below the `objective` of every placement with the nodes `forced` on their sides, from their minimum cut.

    A placement is all on the CPU, all on the FPGA (both costs are known), or mixed: then it costs at least the cut
    plus one launch plus one CPU call.
    """
    sides = set((forced or {}).values())
    bounds = [cut.lower_bound + cost_graph.launch + cost_graph.cpu_call]
    if "fpga" not in sides:
        bounds.append(objective(cost_graph, {node.name: "cpu" for node in cost_graph.nodes}))
    if "cpu" not in sides and all(node.fpga is not None for node in cost_graph.nodes):
        bounds.append(objective(cost_graph, {node.name: "fpga" for node in cost_graph.nodes}))
    return min(bounds)


def side_cuts(cost_graph: CostGraph, forced: Mapping[str, Side] | None = None) -> dict[str, dict[Side, float]]:
    """For each node and side a bound below the `cut_objective` of every placement with the node there.

    Infinite where it cannot be there. The flow of the minimum cut is kept, and only what forcing a node adds is found.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    sides = forced or {}
    best = minimum_cut(cost_graph, sides)
    bounds: dict[str, dict[Side, float]] = {
        node.name: {"cpu": math.inf, "fpga": math.inf, best.placement[node.name]: best.lower_bound}
        for node in cost_graph.nodes
    }
    moves: dict[str, tuple[int, int]] = {}  # the edge that is unbounded where the node is forced to its other side
    for number, node in enumerate(cost_graph.nodes, 2):
        if node.name not in sides and node.fpga is not None:
            moves[node.name] = (0, number) if best.placement[node.name] == "fpga" else (number, 1)
    if not moves:
        return bounds
    adds = {node.name: node.cpu + (node.fpga or 0.0) for node in cost_graph.nodes}  # no less than what moving it does
    for tensor in cost_graph.tensors:
        for name in {*tensor.consumers, *([] if tensor.producer is None else [tensor.producer])}:
            adds[name] += tensor.to_fpga + tensor.to_cpu
    for pair in cost_graph.pairs:
        adds[pair.first] += pair.saves
        adds[pair.second] += pair.saves
    network, constant = _network(cost_graph, sides)
    most = best.lower_bound + best.error - constant + max(adds.values())
    if most <= 0:  # nothing costs anything
        return {name: {side: constant for side in there if there[side] < math.inf} for name, there in bounds.items()}
    scale = (_UNBOUNDED - 1) / most
    flow, residual = _maximum_flow(_matrix(network, scale))
    entries = residual.tocoo()
    left = np.minimum(entries.data, _UNBOUNDED)  # no more can flow, and scipy's sums stay within int32
    known = {edge: int(there) for edge, there in zip(zip(entries.row, entries.col, strict=True), left, strict=True)}
    for name, (start, end) in moves.items():
        starts, ends = np.append(entries.row, start), np.append(entries.col, end)
        room = np.append(left, np.int32(_UNBOUNDED - known.get((start, end), 0)))
        more = maximum_flow(csr_array((room, (starts, ends)), shape=residual.shape), 0, 1).flow_value
        other: Side = "cpu" if best.placement[name] == "fpga" else "fpga"
        bounds[name][other] = constant + (flow + int(more)) / scale
    return bounds


_Network = dict[tuple[int, int], float]


def _network(cost_graph: CostGraph, forced: Mapping[str, Side]) -> tuple[_Network, float]:
    """Capacities by (from, to), and the constant to add to a cut. 0 is the source, 1 the sink, node i is i + 2."""
    number = {node.name: i for i, node in enumerate(cost_graph.nodes, 2)}
    network: _Network = {}
    count = len(number) + 2

    def add(start: int, end: int, capacity: float) -> None:
        if start != end and capacity > 0:
            network[start, end] = network.get((start, end), 0.0) + capacity

    def helper() -> int:
        nonlocal count
        count += 1
        return count - 1

    for node in cost_graph.nodes:
        side = forced.get(node.name)
        add(number[node.name], 1, math.inf if side == "fpga" else node.cpu)
        add(0, number[node.name], math.inf if node.fpga is None or side == "cpu" else node.fpga)
    for tensor in cost_graph.tensors:
        made = 0 if tensor.producer is None else number[tensor.producer]
        readers = sorted({number[name] for name in tensor.consumers})
        if len(readers) == 1:
            add(made, readers[0], tensor.to_fpga)
        elif readers:
            upload = helper()
            add(made, upload, tensor.to_fpga)
            for reader in readers:
                add(upload, reader, math.inf)
        if tensor.output:
            add(0, made, tensor.to_cpu)
        elif len(readers) == 1 and made:
            add(readers[0], made, tensor.to_cpu)
        elif readers and made:
            download = helper()
            add(download, made, tensor.to_cpu)
            for reader in readers:
                add(reader, download, math.inf)
    for pair in cost_graph.pairs:
        both = helper()
        add(number[pair.first], both, math.inf)
        add(number[pair.second], both, math.inf)
        add(both, 1, pair.saves)
    return network, -math.fsum([pair.saves for pair in cost_graph.pairs])


def _matrix(network: _Network, scale: float) -> Any:
    """Capacities floor(capacity · scale) as a csr_array; 0 is the source, 1 the sink."""
    from scipy.sparse import csr_array

    edges = sorted(network)
    capacities = [_UNBOUNDED if (c := network[edge] * scale) >= _UNBOUNDED else int(c) for edge in edges]
    size = 1 + max(max(edge) for edge in edges)
    starts, ends = zip(*edges, strict=True)
    return csr_array((np.array(capacities, dtype=np.int32), (starts, ends)), shape=(size, size))


def _maximum_flow(matrix: Any) -> tuple[int, Any]:
    """The maximum flow from 0 to 1 and what capacity it leaves, as a csr_array."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    result = maximum_flow(matrix, 0, 1)
    residual = csr_array(matrix - result.flow)
    residual.eliminate_zeros()
    return int(result.flow_value), residual


def _sink_side(residual: Any) -> frozenset[int]:
    """The smallest sink side of a minimum cut: what still reaches the sink. It is the same for all maximum flows."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order

    return frozenset(breadth_first_order(csr_array(residual.T), 1, return_predecessors=False).tolist())
