"""Cycles of a segment whose weights are loaded as far ahead as the matrix register file has room for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from fpgasim.npu.device import Device
from fpgasim.npu.layers import Layer
from fpgasim.npu.mapping import tile_rows
from fpgasim.npu.numbers import Numbers
from fpgasim.npu.timing import dram_cycles, layer_timing, tile_bytes


class _Portion(NamedTuple):
    """What is loaded in one go, and the cycles of its load and of the work on it."""

    tiles: int
    load: int
    compute: int


def prefetched_cycles(layers: Sequence[Layer], device: Device, numbers: Numbers) -> int:
    """Cycles of `layers` one after another on a matrix-vector engine, from the first load to the last write.

    DRAM loads rows of tiles (N outputs each) in order, each as soon as there is room beside those that are not done;
    Microsoft's firmware too loads ahead of what is computed (github.com/microsoft/onnxruntime, providers/brainslice).
    A row is worked on when it is loaded and the one before is done. `segment_timing` loads one layer ahead, no more.
    """
    done: list[int] = []
    portions = [portion for layer in layers for portion in _portions(layer, device, numbers)]
    loaded = oldest = held = room = 0
    for portion in portions:
        held += portion.tiles
        while held > device.mrf_tiles and oldest < len(done):
            held, room, oldest = held - portions[oldest].tiles, done[oldest], oldest + 1
        loaded = max(loaded, room) + portion.load
        done.append(max(loaded, done[-1] if done else 0) + portion.compute)
    return done[-1] if done else 0


def _portions(layer: Layer, device: Device, numbers: Numbers) -> Iterator[_Portion]:
    """The layer row by row of its tiles; its cycles are shared evenly."""
    timing = layer_timing(layer, device, numbers)
    if not timing.native_tiles:
        yield _Portion(0, timing.load_cycles, timing.compute_cycles)
        return
    rows = tile_rows(layer, device, numbers)[1]
    shares = [timing.compute_cycles * end // timing.native_tiles for end in accumulate(rows, initial=0)]
    for tiles, (start, stop) in zip(rows, pairwise(shares), strict=True):
        yield _Portion(tiles, dram_cycles(device, tile_bytes(device, numbers, tiles))[0], stop - start)
