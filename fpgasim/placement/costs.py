"""From a bound graph to its cost graph: what nodes and transfers cost and what pairs of nodes save."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from fpgasim.compiler import Unsupported, UnsupportedCode, fuse, lower_node
from fpgasim.graph import Graph
from fpgasim.npu import Device, Layer, Numbers
from fpgasim.npu.segment import nhwc_shape
from fpgasim.npu.timing import layer_timing, on_chip_bytes, transfer_seconds, wire_bytes
from fpgasim.placement.cost_graph import CostGraph, CostNode, CostTensor, Pair, PairKind
from fpgasim.placement.cpu_costs import cpu_seconds
from fpgasim.placement.problem import Weights


@dataclass(frozen=True)
class CostTable:
    """The cost graph of a bound graph, and for each node the engine cannot compute its code and message."""

    cost_graph: CostGraph
    unsupported: Mapping[str, tuple[UnsupportedCode, str]]


def cost_table(graph: Graph, device: Device, numbers: Numbers, cpu_s: Mapping[str, float] | None = None) -> CostTable:
    """What every node of the bound `graph` costs on the CPU and on `device`, in seconds.

    `cpu_s` are the times of the nodes on the CPU; by default those of the table in `cpu_costs`.
    A node on the FPGA costs its cycles and the load of its weights. Pairs give back what a segment saves where both
    nodes are in it: a pointwise operation fused into the layer before it, and the load of a layer's weights behind
    the computation of the layer before it. So a network that is one segment costs what `segment_timing` says.
    """
    layers: dict[str, Layer] = {}
    unsupported: dict[str, tuple[UnsupportedCode, str]] = {}
    for node in graph.nodes:
        try:
            layers[node.name] = lower_node(graph, node, device)
        except Unsupported as reason:
            unsupported[node.name] = reason.code, reason.message
    if cpu_s is None:
        cpu_s = {node.name: cpu_seconds(graph, node) for node in graph.nodes}
    nodes = tuple(_node(n.name, cpu_s[n.name], layers.get(n.name), device, numbers) for n in graph.nodes)
    tensors = _tensors(graph, device, numbers)
    pairs = tuple(_pairs(graph, layers, device, numbers))
    return CostTable(CostGraph(nodes, tensors, pairs, device.launch_s, device.cpu_call_s), unsupported)


def _node(name: str, cpu_s: float, layer: Layer | None, device: Device, numbers: Numbers) -> CostNode:
    if layer is None:
        return CostNode(name, cpu_s, None)
    timing = layer_timing(layer, device, numbers)
    fpga_s = (timing.compute_cycles + timing.load_cycles) / device.clock_hz
    return CostNode(name, cpu_s, fpga_s, timing.weight_bytes, timing.load_cycles / device.clock_hz)


def _tensors(graph: Graph, device: Device, numbers: Numbers) -> tuple[CostTensor, ...]:
    """Every tensor that is fed or computed; constants are on both sides from the start."""
    outputs = {tensor.name for tensor in graph.outputs}
    made: list[tuple[str, str | None]] = [(tensor.name, None) for tensor in graph.inputs]
    made += [(name, node.name) for node in graph.nodes if node.op_type != "Constant" for name in node.outputs if name]
    rows = []
    for name, producer in made:
        seconds = transfer_seconds(transfer_bytes(graph, name, device, numbers), device)
        readers = tuple(node.name for node in graph.consumers(name))
        rows.append(CostTensor(name, producer, readers, seconds, seconds, name in outputs))
    return tuple(rows)


def chip_capacity(weights: Weights, device: Device, numbers: Numbers) -> int:
    """Bytes of weights that may stay on the chip: all it holds, or half where others stream through the rest."""
    there = on_chip_bytes(device, numbers)
    return there if weights == "pinned" else there // 2


def transfer_bytes(graph: Graph, name: str, device: Device, numbers: Numbers) -> int:
    """Bytes of tensor `name` between host and FPGA; 0 for a shape the engine does not take, which never goes there."""
    shape = graph.tensor(name).shape or ()
    dims = tuple(dim for dim in shape if isinstance(dim, int))
    return wire_bytes(nhwc_shape(dims), device, numbers.pointwise) if len(dims) == len(shape) in (2, 4) else 0


def _pairs(graph: Graph, layers: Mapping[str, Layer], device: Device, numbers: Numbers) -> list[Pair]:
    """What pairs save on the fixed order of the fused layers, all nodes on the FPGA that can be there."""

    def compute_cycles(layer: Layer) -> int:
        return layer_timing(layer, device, numbers).compute_cycles

    kept = {tensor.name for tensor in graph.outputs}
    kept |= {name for layer in layers.values() for name in layer.tensors if _read_outside(graph, name, layers)}
    order = fuse(list(layers.values()), kept)
    saved: list[tuple[str, str, int, PairKind]] = []
    for layer in order:
        chain = [_first_nodes(graph, layer, count) for count in range(1, len(layer.nodes) + 1)]
        for shorter, longer in itertools.pairwise(chain):
            added = compute_cycles(longer) - compute_cycles(shorter)
            alone = compute_cycles(layers[longer.nodes[-1]])
            saved.append((shorter.nodes[-1], longer.nodes[-1], alone - added, "fused"))
    for before, after in itertools.pairwise(order):
        hidden = min(compute_cycles(before), layer_timing(after, device, numbers).load_cycles)
        saved.append((before.nodes[0], after.nodes[0], hidden, "overlap"))
    return [Pair(first, second, cycles / device.clock_hz, kind) for first, second, cycles, kind in saved if cycles > 0]


def _read_outside(graph: Graph, name: str, layers: Mapping[str, Layer]) -> bool:
    return any(node.name not in layers for node in graph.consumers(name))


def _first_nodes(graph: Graph, layer: Layer, count: int) -> Layer:
    """The fused `layer` as far as its first `count` nodes go."""
    made = {graph.node(name).outputs[0] for name in layer.nodes[:count]}
    stages = tuple(stage for stage in layer.stages if stage.output in made)
    return dataclasses.replace(layer, nodes=layer.nodes[:count], stages=stages)
