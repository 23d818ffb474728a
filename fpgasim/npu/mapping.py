"""How a layer lies on the engine: its matrix in native tiles, these on tile engines, its stages in MFUs.

The cycle model, which counts, and the compiler, which makes instructions, both go by this. The formulas stand in
docs/cycles.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from fpgasim.kernels.contract import engines_of
from fpgasim.npu.device import Device
from fpgasim.npu.layers import Layer, StageKind
from fpgasim.npu.numbers import Numbers

Lowering = Literal["window", "tap", "tap_packed", "matrix"]
Unit = Literal["add", "multiply", "activation"]

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
HEAD_UNITS: dict[str, tuple[Unit, ...]] = {
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


def tile_rows(layer: Layer, device: Device, numbers: Numbers) -> tuple[Lowering, list[int]]:
    """The lowering, and how many native tiles each row of them has; a row makes N outputs."""
    native = device.native_dim
    inputs, outputs = layer.in_shape[3], layer.out_shape[3]
    rows = _ceil(outputs, native)
    if layer.head == "matmul":
        return "matrix", [_ceil(inputs, native)] * rows
    taps = taps_of(layer)
    if layer.packing == "window":
        return "window", [_ceil(taps * inputs, native)] * rows
    if layer.groups > 1:
        return "tap", [taps * len(touched_vectors(layer, row, native)) for row in range(rows)]
    slot, apart = slot_of(layer, numbers), taps * _ceil(inputs, native)
    packed = _ceil(taps * slot, native)
    in_turn = engines_of(numbers.order) > 1 and slot % native != 0  # engines would meet blocks that fill up a tap
    if taps > 1 and _may_share_tiles(slot, numbers) and (packed < apart or in_turn):
        return "tap_packed", [packed] * rows
    return "tap", [apart] * rows


def slot_of(layer: Layer, numbers: Numbers) -> int:
    """Elements of a tap where taps share tiles: its channels in whole blocks, so that none straddles two taps."""
    block = numbers.format.block
    return _ceil(layer.in_shape[3], block) * block


def _may_share_tiles(slot: int, numbers: Numbers) -> bool:
    """Whether the terms of taps one behind the other come in the order of the sum."""
    return numbers.accumulator == "exact" or numbers.order != "chwk" or slot == numbers.format.block


def touched_vectors(layer: Layer, row: int, native: int) -> range:
    """The native vectors of input channels that the groups of tile row `row` read; elsewhere its weights are zero."""
    inputs, outputs = layer.in_shape[3] // layer.groups, layer.out_shape[3] // layer.groups
    first = row * native // outputs
    last = (min((row + 1) * native, layer.out_shape[3]) - 1) // outputs
    return range(first * inputs // native, _ceil((last + 1) * inputs, native))


def engines_of_a_sum(layer: Layer, device: Device, numbers: Numbers) -> int | None:
    """How many tile engines may add up one sum without changing a bit: T of `tree(T)`, else 1; None for any number.

    The engines of a tree add whole blocks in turn, so it needs tiles that are one block of one sequence each.
    """
    if numbers.accumulator == "exact":
        return None
    return engines_of(numbers.order) if numbers.format.block == device.native_dim and layer.groups == 1 else 1


def best_mapping(
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


def mfus_of(layer: Layer, mfus: int) -> tuple[list[int], int]:
    """The multifunction unit of each stage, counted on through all passes of `mfus` units, and the last one used.

    A unit has each function unit once, in any order; the last pass of the head uses some of the first. All clips of a
    pass have the same bounds, which are set before it.
    """
    used, mfu, found = set(HEAD_UNITS.get(layer.head, ())), 0, []
    bounds: dict[int, tuple[float, float]] = {}
    for stage in layer.stages:
        unit = STAGE_UNIT[stage.kind]
        if unit in used:
            used, mfu = set(), mfu + 1
        clip = (stage.low, stage.high)
        if stage.kind == "clip" and bounds.setdefault(mfu // mfus, clip) != clip:
            used, mfu = set(), (mfu // mfus + 1) * mfus
            bounds[mfu // mfus] = clip
        used.add(unit)
        found.append(mfu)
    return found, mfu


def taps_of(layer: Layer) -> int:
    """The positions of a layer's window."""
    assert layer.window is not None
    return math.prod(layer.window.kernel)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
