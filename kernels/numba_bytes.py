"""The tile convolution of the Numba backend: integer mantissas, by the dot product instruction of the CPU.

It takes over from the loops of `numba_loops.py` where `_fold` and `_fits` say that its bits are the same.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass

import numpy as np

from fpgasim.kernels import numba_tiles as tiles
from fpgasim.kernels.contract import Accumulator, Array, Float32Array, Operand, Order, Unquantized, Window
from fpgasim.kernels.numba_quantize import form_of
from fpgasim.kernels.numba_vectors import MAGIC_BITS, Dot
from fpgasim.kernels.parallel import split
from fpgasim.kernels.weights import PLACES_KEPT, WeightCache
from fpgasim.numerics import NAN_EXPONENT

#: How many bits a dot product may have for each way to make terms of it.
_BITS = {"magic": 22, "convert": 31, "exact": 31}


@dataclass(frozen=True)
class _Source:
    """Activations: rows (pixels, n) of numbers to be quantized to `form`, or of codes with `exponents`."""

    rows: Array
    exponents: Array | None
    form: tuple[int, ...]
    fraction_bits: int
    image: tuple[int, int, int]
    code_bytes: int
    largest: int


@dataclass(frozen=True)
class _Packed:
    """Weights (panels, bytes), their largest mantissa, and the powers of two they are scaled by, zeros left out."""

    panels: Array
    low: int
    high: int
    nan: bool


@dataclass(frozen=True)
class _Place:
    """Where a layer of one input shape reads.

    For each pixel of the padded image its row of the input, or -1; and, in bytes of the padded image, where the window
    of each output pixel starts, where each term lies from there, and where the channels of each group start.
    """

    sources: Array
    origins: Array
    offsets: Array
    starts: Array
    shape: tuple[int, int, int, int]


class TileConvolution:
    """The tile convolution by the first of `dots`, fastest first, that takes a layer's mantissas."""

    def __init__(self, dots: list[Dot]) -> None:
        self._dots = dots
        self._largest: WeightCache[int] = WeightCache()
        self._weights: WeightCache[_Packed] = WeightCache()
        self._places: WeightCache[_Place | None] = WeightCache(PLACES_KEPT)
        self._scratch = threading.local()

    def convolve(
        self,
        x: Operand | Unquantized,
        w: Operand,
        window: Window,
        groups: int,
        accumulator: Accumulator,
        order: Order,
        threads: int,
    ) -> Float32Array | None:
        """The convolution (N, OH, OW, O); None if it is not for tiles."""
        source, spans = _source(x), _group_blocks(w, groups)
        if source is None or w.exponents is None or w.mantissas.dtype == np.float32 or min(spans) != max(spans):
            return None
        size = max(source.code_bytes, w.mantissas.itemsize)
        dot = next((d for d in self._dots if d.code_bytes >= size and w.block * d.code_bytes % 4 == 0), None)
        largest = self._largest.get(w, (), lambda: int(np.abs(w.mantissas.astype(np.int32)).max(initial=0)))
        bound = source.largest * largest * w.block
        fold = _fold(accumulator, order, bound)
        if dot is None or fold is None or source.form[0] != w.block:
            return None
        packed = self._weights.get(w, (groups, order, dot, fold), lambda: _pack(w, groups, order, dot, fold))
        key = (source.image, window, groups, order, dot)
        place = self._places.get(w, key, lambda: _place(source.image, w, window, groups, order, dot))
        if place is None:
            return None
        image, powers = self._fill(source, w.blocks, place, dot, threads)
        if not _fits(fold, powers, packed, bound * place.offsets.size):
            return None
        result = np.empty(place.shape, np.float32)
        flat = result.reshape(-1, place.shape[3])
        words = w.block * dot.code_bytes // 4
        layer = (image, words, place.origins, place.offsets, place.starts, packed.panels)
        run = functools.partial(tiles.convolution_of(dot, fold), *layer)
        pixels, panels = len(flat), len(packed.panels)
        if pixels >= panels:
            split(pixels, threads, lambda first, last: run(first, last, 0, panels, flat))
        else:  # few pixels are shared out by outputs
            split(panels, threads, lambda first, last: run(0, pixels, first, last, flat))
        return result

    def _fill(
        self, source: _Source, blocks: int, place: _Place, dot: Dot, threads: int
    ) -> tuple[Array, list[tuple[int, int, bool]]]:
        """The padded image, and for each thread the powers that its blocks are scaled by."""
        block, pixels = source.form[0], place.sources.size
        # Bytes are unsigned, but as signed ones they have the same bits and the quantizer is compiled once less.
        bias = np.full(4 // dot.code_bytes, dot.bias).astype(np.int8 if dot.code_bytes == 1 else np.int16)
        words = block * dot.code_bytes // 4
        image = self._room(pixels * blocks * (words + 1))
        like, rows = source.rows.dtype.type(0), np.require(source.rows, requirements="W")
        exponents = None if source.exponents is None else np.require(source.exponents, requirements="W")
        args = (source.form, source.fraction_bits, place.sources, words, bias[0], bias.view(np.int32)[0], image, blocks)
        return image, split(pixels, threads, lambda first, last: tiles.fill(rows, exponents, like, *args, first, last))

    def _room(self, words: int) -> Array:
        """Room for activations, kept by this thread from layer to layer."""
        room: Array | None = getattr(self._scratch, "room", None)
        if room is None or room.size < words:
            room = self._scratch.room = np.empty(words, np.int32)
        return room


def _source(x: Operand | Unquantized) -> _Source | None:
    """The activations `x`; None if they are no integers."""
    if isinstance(x, Unquantized):
        shape, fmt = x.values.shape, x.format
        if fmt.is_float or fmt.is_fp32:
            return None
        rows, code_bytes = x.values.reshape(-1, shape[-1]), 1 if fmt.max_code < 128 else 2
        return _Source(rows, None, form_of(fmt), fmt.fraction_bits, shape[:-1], code_bytes, fmt.max_code)
    if x.exponents is None or x.mantissas.dtype == np.float32:
        return None
    shape, size = x.mantissas.shape, x.mantissas.itemsize
    form = (x.block, *[0] * 8)  # nothing is left to quantize
    rows, exponents = x.mantissas.reshape(-1, shape[-1]), x.exponents.reshape(-1, x.blocks)
    return _Source(rows, exponents, form, x.fraction_bits, shape[:-1], size, 1 << 8 * size - 1)


def _fold(accumulator: Accumulator, order: Order, bound: int) -> str | None:
    """How to make terms of dot products up to `bound`; None if the sums are not for tiles."""
    if order not in ("khwc", "chwk") or accumulator not in ("fp32", "exact"):
        return None
    folds = ("exact",) if accumulator == "exact" else ("magic", "convert")
    return next((fold for fold in folds if bound < 1 << _BITS[fold]), None)


def _fits(fold: str, powers: list[tuple[int, int, bool]], w: _Packed, bound: int) -> bool:
    """Whether every product on the way is exact: of a dot product by one scale, and by both.

    `bound` is that of the sum of all |d|.
    """
    low, high = min(p[0] for p in powers), max(p[1] for p in powers)
    if w.nan or any(p[2] for p in powers):
        return False
    top = 127 - _BITS[fold]  # a power above, and a dot product may overflow; MAGIC has two bits more
    if low <= high and not -126 <= low <= high <= 127:  # as scales, normal floats
        return False
    if low > high or w.low > w.high:  # all terms are zero, but on the way each is scaled by its weight's power
        return w.low > w.high or w.high <= top - 2
    if w.low < -126 or w.high > top - 2 or not -126 <= low + w.low <= high + w.high <= top:
        return False
    # Every term is a multiple of 2^(low + w.low), and no partial sum in float64 has more than 53 bits.
    return fold != "exact" or bound << (high + w.high - low - w.low) < 1 << 53


def _group_blocks(w: Operand, groups: int) -> list[int]:
    """How many blocks have a channel of each group."""
    per_group = w.channels // groups
    return [-(-(g + 1) * per_group // w.block) - g * per_group // w.block for g in range(groups)]


def _first_blocks(w: Operand, groups: int) -> Array:
    return np.arange(groups) * (w.channels // groups) // w.block


def _pack(w: Operand, groups: int, order: Order, dot: Dot, fold: str) -> _Packed:
    """Weights as `numba_vectors.tile_of` takes them."""
    assert w.exponents is not None
    outputs, blocks, panel = len(w.mantissas), max(_group_blocks(w, groups)), dot.outputs
    filters = outputs // groups
    panels = -(-filters // panel)
    mantissas = w.mantissas.reshape(outputs, -1, w.blocks, w.block)
    exponents = w.exponents.reshape(outputs, -1, w.blocks)
    terms, words = mantissas.shape[1] * blocks, w.block * dot.code_bytes // 4
    used = mantissas.any(axis=-1)
    powers = exponents.astype(np.int32) - w.fraction_bits
    nan = bool((exponents == NAN_EXPONENT).any())
    known = powers[used]
    low, high = (int(known.min()), int(known.max())) if known.size else (1, 0)
    scales = np.where(used, np.ldexp(np.float32(1.0), np.clip(powers, -126, 127)), np.float32(1.0))
    packed = np.zeros((groups, panels, terms, panel * (8 + 4 * words)), np.uint8)
    for g, first in enumerate(_first_blocks(w, groups)):
        part = (slice(g * filters, (g + 1) * filters), slice(None), slice(first, first + blocks))
        m, s = mantissas[part], scales[part]
        if order == "chwk":
            m, s = m.swapaxes(1, 2), s.swapaxes(1, 2)
        rows = np.zeros((panels * panel, terms, w.block), np.int8 if dot.code_bytes == 1 else np.int16)
        rows[:filters] = m.reshape(filters, terms, w.block)
        factors = np.ones((panels * panel, terms), np.float32)
        factors[:filters] = s.reshape(filters, terms)
        starts = (MAGIC_BITS if fold == "magic" else 0) - dot.bias * rows.sum(axis=-1, dtype=np.int32)
        fields = packed[g].view(np.int32).reshape(panels, terms, words + 2, panel)
        fields[:, :, 0] = starts.reshape(panels, panel, terms).swapaxes(1, 2)
        fields[:, :, 1] = factors.view(np.int32).reshape(panels, panel, terms).swapaxes(1, 2)
        fields[:, :, 2:] = rows.view(np.int32).reshape(panels, panel, terms, words).transpose(0, 2, 3, 1)
    return _Packed(packed.reshape(groups * panels, -1), low, high, nan)


def _place(image: tuple[int, ...], w: Operand, window: Window, groups: int, order: Order, dot: Dot) -> _Place | None:
    """None where the taps lie further apart than an offset of 32 bits reaches."""
    images, height, width = image
    sizes = window.output_size(height, width)
    block_bytes = w.block * dot.code_bytes + 4
    pixel_bytes = w.blocks * block_bytes
    down, right = (d * (k - 1) for d, k in zip(window.dilation, window.kernel, strict=True))
    if (down * ((sizes[1] - 1) * window.stride[1] + right + 1) + right + 1) * pixel_bytes > 1 << 31:
        return None
    axes = []
    for axis, (size, length) in enumerate(zip(sizes, (height, width), strict=True)):
        stride, pad, reach = window.stride[axis], window.pads[axis], window.dilation[axis] * (window.kernel[axis] - 1)
        if window.kernel == (1, 1):  # only the pixels under the window
            at, step = np.arange(size) * stride - pad, 1
        else:
            at, step = np.arange((size - 1) * stride + reach + 1) - pad, stride
        axes.append((np.where((at >= 0) & (at < length), at, -1), step))
    (rows, row_step), (columns, column_step) = axes
    inside = (rows[:, None] >= 0) & (columns >= 0)
    one = np.where(inside, rows[:, None] * width + columns, -1)
    sources = np.where(inside, np.arange(images)[:, None, None] * (height * width) + one, -1)

    def offset(image: Array, row: Array, column: Array) -> Array:
        return ((image * len(rows) + row) * len(columns) + column) * pixel_bytes

    n, y, x = np.ogrid[:images, : sizes[0], : sizes[1]]
    origins = offset(n, y * row_step, x * column_step)
    blocks = max(_group_blocks(w, groups))
    kh, kw, b = np.ogrid[: window.kernel[0], : window.kernel[1], :blocks]
    offsets = offset(np.zeros((), int), kh * window.dilation[0], kw * window.dilation[1]) + b * block_bytes
    if order == "chwk":
        offsets = offsets.transpose(2, 0, 1)
    starts = _first_blocks(w, groups) * block_bytes
    return _Place(
        sources.reshape(-1), origins.reshape(-1), np.ascontiguousarray(offsets).reshape(-1).astype(np.int32), starts,
        (images, *sizes, len(w.mantissas)),
    )  # fmt: skip
