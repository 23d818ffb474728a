"""Weights as native tiles, and which vectors of the input each row of tiles reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from fpgasim.compiler.memory import Buffer, Piece
from fpgasim.compiler.writing import Source
from fpgasim.kernels.contract import Array, Operand, Window, engines_of
from fpgasim.npu.layers import Layer
from fpgasim.npu.mapping import Lowering, engines_of_a_sum, slot_of, tile_rows, touched_vectors
from fpgasim.npu.programs import native_tiles
from fpgasim.npu.segment import Segment


@dataclass(frozen=True)
class Band:
    """Consecutive rows of tiles that read the same input: `run` elements of each tap from element `lead` on.

    Row r of `rows` makes the outputs from (r − rows[0])·N + `output` on, up to `outputs`; its tiles follow those of the
    row before it, `columns` in each.
    """

    rows: range
    columns: int
    tile: int
    lead: int
    run: int
    gather: bool
    output: int
    outputs: int


@dataclass(frozen=True, eq=False)
class Matrix:
    """The matrix of a layer: its `bands`, and how many tiles each row has. `together` is as in `best_mapping`.

    `by_group`: a band is a group, whose outputs need not begin at a vector.
    """

    lowering: Lowering
    bands: tuple[Band, ...]
    rows: tuple[int, ...]
    together: int | None
    by_group: bool
    tiles: Operand

    def tiles_before(self, row: int) -> int:
        return sum(self.rows[:row])


def matrix_of(layer: Layer, segment: Segment) -> Matrix:
    """The matrix of a conv or matmul `layer`."""
    device, numbers = segment.device, segment.numbers
    native, weight = device.native_dim, segment.operand(layer.weight or "")
    by_group = layer.groups > 1 and engines_of(numbers.order) > 1 and numbers.accumulator != "exact"
    together = engines_of_a_sum(layer, device, numbers)
    if by_group:
        return _by_group(layer, weight, native)
    lowering, rows = tile_rows(layer, device, numbers)
    channels, outputs = layer.in_shape[3], layer.out_shape[3]
    count, starts = len(rows), np.concatenate([[0], np.cumsum(rows)]).tolist()
    vectors = -(-channels // native) * native
    if layer.groups > 1:
        bands, parts = [], []
        for touched, group in groupby(range(count), lambda row: touched_vectors(layer, row, native)):
            found = list(group)
            lead, run = touched.start * native, len(touched) * native
            span = range(found[0], found[-1] + 1)
            bands.append(
                Band(span, rows[span.start], starts[span.start], lead, run, False, span.start * native, outputs)
            )
            filters = slice(span.start * native, min(span.stop * native, outputs))
            parts.append(_tiles(weight, filters, slice(lead, lead + run), native))
        return Matrix(lowering, tuple(bands), tuple(rows), together, False, joined(parts))
    if lowering == "tap_packed":
        run, gather = slot_of(layer, numbers), True
    elif lowering == "window":
        run, gather = channels, True
    else:
        run, gather = vectors, False
    columns = weight.mantissas.shape[3] if gather else vectors
    tiles = _tiles(weight, slice(0, outputs), slice(0, columns), native)
    band = Band(range(count), rows[0], 0, 0, run, gather, 0, outputs)
    assert len(tiles.mantissas) == sum(rows)
    return Matrix(lowering, (band,), tuple(rows), together, False, tiles)


def _by_group(layer: Layer, weight: Operand, native: int) -> Matrix:
    """A band for each group, which reads the blocks that hold its channels and no others."""
    block, groups = weight.block, layer.groups
    inputs, outputs = layer.in_shape[3] // groups, layer.out_shape[3] // groups
    bands: list[Band] = []
    parts: list[Operand] = []
    rows: list[int] = []
    for g in range(groups):
        lead, end = g * inputs // block * block, -(-(g + 1) * inputs // block) * block
        tiles = _tiles(weight, slice(g * outputs, (g + 1) * outputs), slice(lead, end), native)
        count = -(-outputs // native)
        columns = len(tiles.mantissas) // count
        span = range(len(rows), len(rows) + count)
        bands.append(Band(span, columns, sum(rows), lead, end - lead, True, g * outputs, (g + 1) * outputs))
        rows += [columns] * count
        parts.append(tiles)
    return Matrix("tap_packed", tuple(bands), tuple(rows), 1, True, joined(parts))


def source_of(task_window: Window, packing: str, band: Band, image: Buffer, piece: Piece, native: int) -> Source:
    """What the chain of `piece` reads of `image`, which holds the halo."""
    (kh, kw), (sh, sw), (dh, dw) = task_window.kernel, task_window.stride, task_window.dilation
    y, x = piece.top * sh - task_window.pads[0], piece.left * sw - task_window.pads[1]
    at = image.at(piece.image, y, x, (sh, sw), band.lead)
    inner = band.run if band.gather else band.run // native
    return Source(at, inner, kw, kh, dw * image.pixel, dh * image.row, gather=band.gather)


def _tiles(weight: Operand, filters: slice, channels: slice, native: int) -> Operand:
    """Native tiles of some `filters` and `channels` (whole blocks, zeros beyond the last) of weights (O, KH, KW, ·)."""

    def cut(array: Array, width: int) -> Array:
        first, last = channels.start // width, channels.stop // width
        part = array[filters, :, :, first:last]
        missing = last - first - part.shape[3]
        part = np.pad(part, ((0, 0), (0, 0), (0, 0), (0, missing)))
        return part.reshape(len(part), -1)

    exponents = None if weight.exponents is None else cut(weight.exponents, weight.block)
    mantissas = cut(weight.mantissas, 1)
    return native_tiles(Operand(mantissas, exponents, weight.block, weight.fraction_bits, mantissas.shape[1]), native)


def joined(parts: Sequence[Operand]) -> Operand:
    """The tiles of all `parts`, one behind the other."""
    first = parts[0]
    exponents = (
        None if first.exponents is None else np.concatenate([p.exponents for p in parts if p.exponents is not None])
    )
    return Operand(
        np.concatenate([p.mantissas for p in parts]), exponents, first.block, first.fraction_bits, first.channels
    )
