"""One FPGA segment made ready: layers fused, constants packed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from types import MappingProxyType

import numpy as np

from fpgasim.compiler.fusion import fuse, reads
from fpgasim.compiler.nodes import Constant, lower_with_constants
from fpgasim.errors import ModelError
from fpgasim.graph import Graph
from fpgasim.kernels.contract import Backend, rows_operand
from fpgasim.kernels.pointwise import round_to
from fpgasim.npu import Device, Layer, Numbers
from fpgasim.npu.segment import Packed, Segment
from fpgasim.ops import quantize_rows


def lower(
    graph: Graph,
    node_names: Collection[str],
    device: Device,
    numbers: Numbers,
    kernels: Backend | None = None,
    packed: Mapping[str, Packed] = MappingProxyType({}),
) -> Segment:
    """One segment: `node_names` of a bound `graph`, for `device`, in `numbers`.

    Weights are quantized with `kernels` (the fastest backend by default; all give the same bits), but those in
    `packed`, those of a Segment of the same nodes for other shapes, are taken as they are. Tensors that
    another node or the graph's outputs need leave the segment. Raises Unsupported for a node that the engine cannot
    compute, ModelError for weights that are not finite.
    """
    layers, sources, outputs = _segment(graph, frozenset(node_names), device, numbers)
    made = list(dict.fromkeys(name for layer in layers for name in layer.tensors))
    inputs = tuple(
        dict.fromkeys(name for layer in layers for name in reads(layer) if name not in made and name not in sources)
    )
    clash = sources.keys() & {*made, *inputs}
    if clash:
        raise ModelError(f"tensor {min(clash)!r} bears the name of a packed constant; another name would do")
    constants = {
        name: packed[name] if name in packed else _pack(name, source, numbers, kernels)
        for name, source in sources.items()
    }
    shapes = {name: _shape(graph, name) for name in (*inputs, *made)}
    return Segment(device, numbers, layers, constants, inputs, outputs, shapes)


def segment_layers(graph: Graph, node_names: Collection[str], device: Device, numbers: Numbers) -> tuple[Layer, ...]:
    """The layers that `lower` would make, without their constants. Raises Unsupported."""
    return _segment(graph, frozenset(node_names), device, numbers)[0]


def _segment(
    graph: Graph, names: frozenset[str], device: Device, numbers: Numbers
) -> tuple[tuple[Layer, ...], dict[str, Constant], tuple[str, ...]]:
    """The fused layers of the nodes `names`, the constants they read, and the tensors that leave the segment."""
    lowered = [lower_with_constants(graph, node, device) for node in graph.nodes if node.name in names]
    results = {tensor.name for tensor in graph.outputs}
    outputs = tuple(
        name
        for name in (part.layer.output for part in lowered)
        if name in results or any(node.name not in names for node in graph.consumers(name))
    )
    layers = fuse([_with_rounded_bounds(part.layer, numbers) for part in lowered], outputs)
    return layers, {name: source for part in lowered for name, source in part.constants.items()}, outputs


def _shape(graph: Graph, name: str) -> tuple[int, ...]:
    return tuple(dim for dim in graph.tensor(name).shape or () if isinstance(dim, int))


def _with_rounded_bounds(layer: Layer, numbers: Numbers) -> Layer:
    """The bounds of a clip as values of the pointwise type; an absent bound stays infinite."""

    def rounded(bound: float) -> float:
        return bound if math.isinf(bound) else float(round_to(np.array([bound], np.float32), numbers.pointwise)[0])

    stages = tuple(
        dataclasses.replace(stage, low=rounded(stage.low), high=rounded(stage.high)) if stage.kind == "clip" else stage
        for stage in layer.stages
    )
    return dataclasses.replace(layer, stages=stages)


def _pack(name: str, constant: Constant, numbers: Numbers, kernels: Backend | None) -> Packed:
    values = constant.values()
    if not np.isfinite(values).all():
        raise ModelError(f"constant {name!r} holds {values[~np.isfinite(values)][0]}; finite numbers would do")
    if not constant.blocked:
        return np.ascontiguousarray(round_to(np.ascontiguousarray(values), numbers.pointwise))
    rows = np.ascontiguousarray(values, np.float32)
    codes, exponents = quantize_rows(rows, numbers.format, kernels=kernels)
    return rows_operand(codes, exponents, numbers.format, rows.shape[-1])
