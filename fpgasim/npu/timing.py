"""How many cycles a layer and a segment take on a device; the formulas stand in docs/cycles.md.

Closed forms in whole numbers, no values touched. A layer's cycles run from its first instruction to its last write;
a segment's from the start of its first weight load to its last write, for the batch of its layers' shapes. Transfers
to and from the host and the launch are counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate

from fpgasim.kernels.contract import Pointwise
from fpgasim.npu.device import Device
from fpgasim.npu.layers import Layer, Shape
from fpgasim.npu.mapping import HEAD_UNITS, Mapping, best_mapping, engines_of_a_sum, mfus_of, taps_of, tile_rows
from fpgasim.npu.numbers import Numbers
from fpgasim.npu.presets import get_device
from fpgasim.npu.systolic import Array, array_timing

POINTWISE_BYTES: dict[Pointwise, int] = {"fp16": 2, "bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class LayerTiming:
    """What one layer costs on one device.

    `compute_cycles` = mvm_cycles + pointwise_cycles + fill_cycles. `pointwise_cycles` are those that the matrix unit
    does not hide. `weight_bytes` are the weights padded to native tiles (or vectors), `load_bytes` the DRAM bursts
    that hold them; on a systolic array `native_tiles` are folds, and `load_bytes` all that its product moves.
    `utilization` is macs over what the engine could do in compute_cycles. `array_cycles` says where the mvm_cycles of a
    systolic array went, by names of `simulation.CYCLES`; it is empty on other engines.
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
    array_cycles: dict[str, int] = field(default_factory=dict, hash=False)

    @property
    def compute_cycles(self) -> int:
        return self.mvm_cycles + self.pointwise_cycles + self.fill_cycles


@dataclass(frozen=True)
class SegmentTiming:
    """What the layers of a segment cost one after another, the weights of the next streaming in meanwhile.

    `spans` are the begin and end of each layer's work, in cycles from the first load; until the next layer's begin its
    weights are waited for. `fits_on_chip` says whether all matrices fit into the matrix register file at once; they are
    streamed all the same.
    """

    layers: tuple[LayerTiming, ...]
    spans: tuple[tuple[int, int], ...]
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
    n, height, width, _ = layer.out_shape
    if d.engine == "systolic":
        return _array_timing(layer, d, numbers)
    mapping: Mapping | None = None
    tiles = mvm = 0
    if layer.head in ("conv", "matmul"):
        lowering, rows = tile_rows(layer, d, numbers)
        mapping, steps = best_mapping(lowering, rows, n * height * width, d.tiles, engines_of_a_sum(layer, d, numbers))
        tiles, mvm = sum(rows), steps * d.cycles_per_mvm
    pointwise, fill = _pointwise(layer, d, mapping is not None)
    weight_bytes = _weight_bytes(layer, tiles, d, numbers)
    load_cycles, load_bytes = dram_cycles(d, weight_bytes)
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
        load_cycles=load_cycles,
        utilization=_utilization(layer.macs, compute, d),
    )


def _pointwise(layer: Layer, device: Device, behind_product: bool) -> tuple[int, int]:
    """Cycles of the pointwise unit that nothing hides, and cycles until the first vector is through."""
    n, height, width, channels = layer.out_shape
    latency, passes = device.mfus * device.mfu_latency, _passes(layer, device)
    if not passes:
        return 0, 0
    occupancy = _ceil(n * height * width * _ceil(channels, device.native_dim), device.tiles) * device.cycles_per_mvm
    return (
        (passes - 1) * max(occupancy, latency) + (0 if behind_product else occupancy),
        device.dispatch_cycles + latency + (device.mvm_latency if behind_product else 0),
    )


def _array_timing(layer: Layer, device: Device, numbers: Numbers) -> LayerTiming:
    """The cost of `layer` on a systolic array: one product a group, in the engine's own mode with its memories.

    What waits for DRAM, weights included, is in its compute cycles, so nothing is loaded beside.
    """
    n, height, width, outputs = layer.out_shape
    product = layer.head in ("conv", "matmul")
    mvm = load_bytes = weight_bytes = folds = 0
    names: dict[str, int] = {}
    if product:
        window = taps_of(layer) if layer.head == "conv" else 1
        inner = window * (layer.in_shape[3] // layer.groups)
        bits = bits_per_element(numbers)
        array = Array(
            device.array_rows,
            device.native_dim,
            device.dataflow,
            device.input_sram_bytes,
            device.weight_sram_bytes,
            device.output_sram_bytes,
            Fraction(device.dram_bytes_per_s * device.dram_efficiency * 8) / device.clock_hz,
        )
        one = array_timing(n * height * width, outputs // layer.groups, inner, array, bits, bits, 32)
        mvm, folds, load_bytes = (layer.groups * count for count in (one.cycles, one.folds, _ceil(one.bits, 8)))
        weight_bytes = _ceil(outputs * inner * bits, 8)
        names = {name: layer.groups * cycles for name, cycles in ({"useful": one.useful} | one.losses).items()}
    pointwise, fill = _pointwise(layer, device, product)
    compute = mvm + pointwise + fill
    return LayerTiming(
        name=layer.name,
        head=layer.head,
        mapping=None,
        macs=layer.macs,
        native_tiles=folds,
        mvm_cycles=mvm,
        pointwise_cycles=pointwise,
        fill_cycles=fill,
        weight_bytes=weight_bytes,
        load_bytes=load_bytes,
        load_cycles=0,
        utilization=_utilization(layer.macs, compute, device),
        array_cycles=names,
    )


def bits_per_element(numbers: Numbers) -> int:
    """Bits that an element takes in an array's memories, its share of the exponent rounded up."""
    return numbers.format.element_bits + _ceil(numbers.format.exponent_bits, numbers.format.block)


def segment_timing(
    layers: Iterable[Layer], device: str | Device, numbers: Numbers, pinned: Collection[str] = ()
) -> SegmentTiming:
    """The cost of `layers` in order: load_0 + Σ max(compute_i, load_{i+1}), nothing loading beside the last one.

    A layer whose first node, which has its weights, is among `pinned` loads none: they are on the chip already.
    Where the device's hazard rule is `data`, the fill of a layer that reads nothing of the layer just before it is
    hidden behind that layer.
    """
    d = get_device(device)
    order = tuple(layers)
    rows = tuple(
        replace(row, load_cycles=0, load_bytes=0) if pinned and layer.nodes[0] in pinned else row
        for layer, row in ((layer, layer_timing(layer, d, numbers)) for layer in order)
    )
    cycles = rows[0].load_cycles if rows else 0
    spans = []
    for i, row in enumerate(rows):
        compute = row.compute_cycles
        if d.hazard == "data" and i and not _reads(order[i], order[i - 1]):
            compute -= min(row.fill_cycles, rows[i - 1].compute_cycles)
        spans.append((cycles, cycles + compute))
        cycles += max(compute, rows[i + 1].load_cycles if i + 1 < len(rows) else 0)
    return SegmentTiming(
        layers=rows,
        spans=tuple(spans),
        cycles=cycles,
        seconds=cycles / d.clock_hz,
        utilization=_utilization(sum(row.macs for row in rows), cycles, d),
        fits_on_chip=sum(row.native_tiles for row in rows) <= d.mrf_tiles,
    )


def dram_cycles(device: Device, payload_bytes: int) -> tuple[int, int]:
    """Cycles and bytes of moving `payload_bytes` in whole bursts."""
    whole = _ceil(payload_bytes, device.dram_burst_bytes) * device.dram_burst_bytes
    return math.ceil(whole * device.clock_hz / (device.dram_bytes_per_s * device.dram_efficiency)), whole


def tile_bytes(device: Device, numbers: Numbers, tiles: int = 1) -> int:
    """Bytes of `tiles` native tiles: N rows of N elements and N/B exponents each, dense."""
    fmt = numbers.format
    row_bits = device.native_dim * fmt.element_bits + device.native_dim // fmt.block * fmt.exponent_bits
    return _ceil(tiles * device.native_dim * row_bits, 8)


def on_chip_bytes(device: Device, numbers: Numbers) -> int:
    """Bytes of weights that the chip holds: the matrix register file full of tiles; an array's memory of weights."""
    if device.engine == "systolic":
        return device.weight_sram_bytes
    elements, fmt = device.weights_on_chip, numbers.format
    return _ceil(elements * fmt.element_bits + elements // fmt.block * fmt.exponent_bits, 8)


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


def _passes(layer: Layer, device: Device) -> int:
    """How often the layer's vectors go through the multifunction units; 0 where the layer is only addressing."""
    chain = mfus_of(layer, device.mfus)[1] // device.mfus + 1
    if layer.head in HEAD_UNITS:  # one pass a tap, the last one carrying the stages
        return taps_of(layer) - 1 + chain
    if layer.stages or layer.head in ("conv", "matmul"):
        return chain
    return int(layer.head != "pointwise" and not _is_addressing(layer, device))


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
        vectors = taps_of(layer) * _ceil(layer.out_shape[3], device.native_dim)
        return vectors * device.native_dim * POINTWISE_BYTES[numbers.pointwise]
    return tile_bytes(device, numbers, tiles)


def _reads(layer: Layer, before: Layer) -> bool:
    """Whether `layer` reads a tensor that `before` makes."""
    return not {*layer.inputs, *(stage.operand for stage in layer.stages)}.isdisjoint(before.tensors)
