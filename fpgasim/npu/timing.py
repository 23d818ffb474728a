"""How many cycles a layer and a segment take on a device; the formulas stand in docs/cycles.md.

Closed forms in whole numbers, no values touched. A layer's cycles run from its first instruction to its last write;
a segment's from the start of its first weight load to its last write, for the batch of its layers' shapes. Transfers
to and from the host and the launch are counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

from fpgasim.kernels.contract import Pointwise, engines_of
from fpgasim.npu.device import Device, get_device
from fpgasim.npu.layers import Layer, Shape, Stage, StageKind
from fpgasim.npu.numbers import Numbers

Lowering = Literal["window", "tap", "tap_packed", "matrix"]
Unit = Literal["add", "multiply", "activation"]

POINTWISE_BYTES: dict[Pointwise, int] = {"fp16": 2, "bf16": 2, "fp32": 4}
#: The function unit of a multifunction unit that does each stage (Fowers et al., ISCA 2018, IV; clip is assumed).
STAGE_UNIT: dict[StageKind, Unit] = {
    "bias": "add",
    "add": "add",
    "sub": "add",
    "max": "add",
    "mul": "multiply",
    "relu": "activation",
    "clip": "activation",
    "sigmoid": "activation",
    "tanh": "activation",
}
#: The function units that the last pass of a head needs, in its first multifunction unit.
_HEAD_UNITS: dict[str, tuple[Unit, ...]] = {
    "depthwise": ("multiply", "add"),
    "max_pool": ("add",),
    "average_pool": ("add", "multiply"),
}


class Mapping(NamedTuple):
    """How a matrix lies in native tiles, and how the tile engines share the work.

    `pixels` output positions are worked on at once, each by `tiles` tile engines.
    """

    lowering: Lowering
    pixels: int
    tiles: int

    @property
    def kind(self) -> str:
        return "tile-parallel" if self.pixels == 1 else "pixel-parallel" if self.tiles == 1 else "hybrid"


@dataclass(frozen=True)
class LayerTiming:
    """What one layer costs on one device.

    `compute_cycles` = mvm_cycles + pointwise_cycles + fill_cycles. `pointwise_cycles` are those that the matrix unit
    does not hide. `weight_bytes` are the weights padded to native tiles (or vectors), `load_bytes` the DRAM bursts
    that hold them. `utilization` is macs over what the tile engines could do in compute_cycles.
    """

    name: str
    head: str
    mapping: Mapping | None
    macs: int
    native_tiles: int
    mvm_cycles: int
    pointwise_cycles: int
    fill_cycles: int
    weight_bytes: int
    load_bytes: int
    load_cycles: int
    utilization: float

    @property
    def compute_cycles(self) -> int:
        return self.mvm_cycles + self.pointwise_cycles + self.fill_cycles


@dataclass(frozen=True)
class SegmentTiming:
    """What the layers of a segment cost one after another, the weights of the next streaming in meanwhile.

    `fits_on_chip` says whether all matrices fit into the matrix register file at once; they are streamed all the same.
    """

    layers: tuple[LayerTiming, ...]
    cycles: int
    seconds: float
    utilization: float
    fits_on_chip: bool

    @property
    def compute_cycles(self) -> int:
        return sum(layer.compute_cycles for layer in self.layers)

    @property
    def load_cycles(self) -> int:
        return sum(layer.load_cycles for layer in self.layers)

    @property
    def load_bytes(self) -> int:
        return sum(layer.load_bytes for layer in self.layers)

    @property
    def native_tiles(self) -> int:
        return sum(layer.native_tiles for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)


def layer_timing(layer: Layer, device: str | Device, numbers: Numbers) -> LayerTiming:
    """The cost of `layer` on `device` in `numbers` (see `resolve_numbers`)."""
    d = get_device(device)
    n, height, width, channels = layer.out_shape
    mapping: Mapping | None = None
    tiles = mvm = 0
    if layer.head in ("conv", "matmul"):
        lowering, rows = _tile_rows(layer, d, numbers)
        mapping, steps = _map(lowering, rows, n * height * width, d.tiles, _engines_of_a_sum(layer, d, numbers))
        tiles, mvm = sum(rows), steps * d.cycles_per_mvm
    latency = d.mfus * d.mfu_latency
    passes = _passes(layer, d)
    occupancy = _ceil(n * height * width * _ceil(channels, d.native_dim), d.tiles) * d.cycles_per_mvm
    pointwise = fill = 0
    if passes:
        pointwise = (passes - 1) * max(occupancy, latency) + (0 if mapping else occupancy)
        fill = d.dispatch_cycles + latency + (d.mvm_latency if mapping else 0)
    weight_bytes = _weight_bytes(layer, tiles, d, numbers)
    load_bytes = _ceil(weight_bytes, d.dram_burst_bytes) * d.dram_burst_bytes
    compute = mvm + pointwise + fill
    return LayerTiming(
        name=layer.name,
        head=layer.head,
        mapping=mapping,
        macs=layer.macs,
        native_tiles=tiles,
        mvm_cycles=mvm,
        pointwise_cycles=pointwise,
        fill_cycles=fill,
        weight_bytes=weight_bytes,
        load_bytes=load_bytes,
        load_cycles=math.ceil(load_bytes * d.clock_hz / (d.dram_bytes_per_s * d.dram_efficiency)),
        utilization=_utilization(layer.macs, compute, d),
    )


def segment_timing(layers: Iterable[Layer], device: str | Device, numbers: Numbers) -> SegmentTiming:
    """The cost of `layers` in order: load_0 + Σ max(compute_i, load_{i+1}), nothing loading beside the last one.

    Where the device's hazard rule is `data`, the fill of a layer that reads nothing of the layer just before it is
    hidden behind that layer.
    """
    d = get_device(device)
    order = tuple(layers)
    rows = tuple(layer_timing(layer, d, numbers) for layer in order)
    cycles = rows[0].load_cycles if rows else 0
    for i, row in enumerate(rows):
        compute = row.compute_cycles
        if d.hazard == "data" and i and not _reads(order[i], order[i - 1]):
            compute -= min(row.fill_cycles, rows[i - 1].compute_cycles)
        cycles += max(compute, rows[i + 1].load_cycles if i + 1 < len(rows) else 0)
    return SegmentTiming(
        layers=rows,
        cycles=cycles,
        seconds=cycles / d.clock_hz,
        utilization=_utilization(sum(row.macs for row in rows), cycles, d),
        fits_on_chip=sum(row.native_tiles for row in rows) <= d.mrf_tiles,
    )


def transfer_seconds(payload_bytes: int, device: str | Device) -> float:
    """Seconds to move `payload_bytes` to or from the host in one transfer: latency + bytes / rate."""
    d = get_device(device)
    return d.pcie_latency_s + payload_bytes / d.pcie_bytes_per_s


def wire_bytes(shape: Shape, device: str | Device, pointwise: Pointwise) -> int:
    """Bytes that an NHWC tensor takes on the wire: each image flattened and padded to whole native vectors.

    Microsoft's BrainSlice firmware does so: an image of 230×230×3 is 1,240 vectors of 128, features of 7×7×2048 are
    784 (github.com/microsoft/onnxruntime, providers/brainslice).
    """
    native = get_device(device).native_dim
    return shape[0] * _ceil(math.prod(shape[1:]), native) * native * POINTWISE_BYTES[pointwise]


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _utilization(macs: int, cycles: int, device: Device) -> float:
    return macs / (cycles * device.macs_per_cycle) if cycles else 0.0


def _tile_rows(layer: Layer, device: Device, numbers: Numbers) -> tuple[Lowering, list[int]]:
    """The lowering, and how many native tiles each row of them has; a row makes N outputs."""
    native, block = device.native_dim, numbers.format.block
    inputs, outputs = layer.in_shape[3], layer.out_shape[3]
    rows = _ceil(outputs, native)
    if layer.head == "matmul":
        return "matrix", [_ceil(inputs, native)] * rows
    taps = _taps(layer)
    if layer.packing == "window":
        return "window", [_ceil(taps * inputs, native)] * rows
    if layer.groups > 1:
        return "tap", [taps * _touched(layer, row, native) for row in range(rows)]
    slot = _ceil(inputs, block) * block  # channels of a tap, padded so that no block straddles two
    in_order = numbers.accumulator == "exact" or numbers.order != "chwk" or slot == block
    if taps > 1 and native // slot > 1 and in_order:
        return "tap_packed", [_ceil(taps, native // slot)] * rows
    return "tap", [taps * _ceil(inputs, native)] * rows


def _touched(layer: Layer, row: int, native: int) -> int:
    """Native vectors of input channels that the groups of tile row `row` read; elsewhere its weights are zero."""
    inputs, outputs = layer.in_shape[3] // layer.groups, layer.out_shape[3] // layer.groups
    first = row * native // outputs
    last = (min((row + 1) * native, layer.out_shape[3]) - 1) // outputs
    return _ceil((last + 1) * inputs, native) - first * inputs // native


def _engines_of_a_sum(layer: Layer, device: Device, numbers: Numbers) -> int | None:
    """How many tile engines may add up one sum without changing a bit: T of `tree(T)`, else 1; None for any number.

    The engines of a tree add whole blocks in turn, so it needs tiles that are one block of one sequence each.
    """
    if numbers.accumulator == "exact":
        return None
    return engines_of(numbers.order) if numbers.format.block == device.native_dim and layer.groups == 1 else 1


def _map(
    lowering: Lowering, rows: Sequence[int], positions: int, engines: int, together: int | None
) -> tuple[Mapping, int]:
    """The quickest mapping and its steps of one native matrix-vector product an engine.

    With `together` of None a sum may be split over tile engines anywhere, else over that many, which take its tiles
    in turn, or over none: then rows of tiles are.
    """
    best: tuple[int, Mapping] | None = None
    for pixels in range(1, engines + 1):
        share = engines // pixels
        steps = _ceil(sum(rows), share) if together is None else _ceil(len(rows), share) * max(rows)
        if together is not None and together <= share:
            steps = min(steps, _ceil(len(rows), share // together) * _ceil(max(rows), together))
        candidate = (_ceil(positions, pixels) * steps, Mapping(lowering, pixels, share))
        if best is None or candidate[0] < best[0]:
            best = candidate
    assert best is not None
    return best[1], best[0]


def _passes(layer: Layer, device: Device) -> int:
    """How often the layer's vectors go through the multifunction units; 0 where the layer is only addressing."""
    chain = _chain_passes(layer.stages, _HEAD_UNITS.get(layer.head, ()), device.mfus)
    if layer.head in _HEAD_UNITS:  # one pass a tap, the last one carrying the stages
        return _taps(layer) - 1 + chain
    if layer.stages or layer.head in ("conv", "matmul"):
        return chain
    return int(layer.head != "pointwise" and not _is_addressing(layer, device))


def _chain_passes(stages: Sequence[Stage], units: Sequence[Unit], mfus: int) -> int:
    """Passes of a chain of stages behind `units`: a multifunction unit has each function unit once, in any order."""
    used, count = set(units), 1
    for stage in stages:
        unit = STAGE_UNIT[stage.kind]
        if unit in used:
            used, count = set(), count + 1
        used.add(unit)
    return _ceil(count, mfus)


def _is_addressing(layer: Layer, device: Device) -> bool:
    """Whether a layer only moves whole native vectors, so that writing to the right addresses is all it takes."""
    if layer.head == "upsample":
        return True
    if layer.head == "concat":
        assert sum(layer.input_channels) == layer.out_shape[3], "a concat names the channels of its inputs"
        return all(offset % device.native_dim == 0 for offset in accumulate(layer.input_channels[:-1]))
    return layer.in_shape == layer.out_shape


def _weight_bytes(layer: Layer, tiles: int, device: Device, numbers: Numbers) -> int:
    if layer.head == "depthwise":
        vectors = _taps(layer) * _ceil(layer.out_shape[3], device.native_dim)
        return vectors * device.native_dim * POINTWISE_BYTES[numbers.pointwise]
    fmt = numbers.format
    row_bits = device.native_dim * fmt.element_bits + device.native_dim // fmt.block * fmt.exponent_bits
    return _ceil(tiles * device.native_dim * row_bits, 8)


def _taps(layer: Layer) -> int:
    assert layer.window is not None
    return math.prod(layer.window.kernel)


def _reads(layer: Layer, before: Layer) -> bool:
    """Whether `layer` reads a tensor that `before` makes."""
    return not {*layer.inputs, *(stage.operand for stage in layer.stages)}.isdisjoint(before.tensors)
