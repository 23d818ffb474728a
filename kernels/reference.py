"""The definition of every kernel on arrays: plain NumPy, no cleverness, exact."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fpgasim.kernels.contract import Accumulator, Array, Float32Array, Int16Array, Operand, Order, Pointwise, Window
from fpgasim.kernels.numpy_unit import PointwiseUnit, given, given_pair
from fpgasim.kernels.pointwise import round_to
from fpgasim.kernels.reference_sums import OrderedSum, Products
from fpgasim.numerics import NAN_EXPONENT, BlockFormat, Rounding
from fpgasim.numerics.tensors import code_dtype

Float64Array = npt.NDArray[np.float64]


class Reference(PointwiseUnit):
    """The slow backend that the others equal bit for bit."""

    name = "reference"

    def quantize(
        self,
        x: Float32Array,
        fmt: BlockFormat,
        rounding: Rounding,
        seed: int,
        /,
        out: tuple[Array, Int16Array] | None = None,
    ) -> tuple[Array, Int16Array]:
        rows, n = x.shape
        blocks = -(-n // fmt.block)
        if fmt.is_fp32:
            return given_pair(x.copy(), np.zeros((rows, n), np.int16), out)
        padded = np.zeros((rows, blocks * fmt.block))
        with np.errstate(invalid="ignore"):  # a signaling NaN
            padded[:, :n] = x
        v = padded.reshape(rows, blocks, fmt.block)
        s = _shared_exponents(v, fmt)
        v = np.where((s == NAN_EXPONENT)[..., None], 0.0, v)
        draws = np.zeros((rows, blocks * fmt.block), np.uint64)
        if rounding == "stochastic":
            draws[:, :n] = _random_bits(seed, rows * n).reshape(rows, n)
        codes = _encode(v, s[..., None], fmt, rounding, draws.reshape(v.shape))
        return given_pair(codes.reshape(rows, blocks * fmt.block), s.astype(np.int16), out)

    def conv2d(
        self,
        x: Operand,
        w: Operand,
        window: Window,
        groups: int,
        accumulator: Accumulator,
        order: Order,
        threads: int,
        /,
    ) -> Float32Array:
        n, height, width, _ = x.mantissas.shape
        oh, ow = window.output_size(height, width)
        outputs = w.mantissas.shape[0]
        result = np.empty((n * oh * ow, outputs), np.float32)
        for g in range(groups):
            first, last = g * x.channels // groups, (g + 1) * x.channels // groups
            blocks = range(first // x.block, -(-last // x.block))
            filters = slice(g * outputs // groups, (g + 1) * outputs // groups)
            steps = list(_steps(window, blocks, order))
            total = OrderedSum((n * oh * ow, filters.stop - filters.start), accumulator, order, len(steps))
            for kh, kw, block in steps:
                pixels, inside = _pixels(x, window, kh, kw, oh, ow)
                a, ea = _block(x, block)
                b, eb = _block(w, block)
                a, ea = a.reshape(-1, x.block)[pixels], ea.reshape(-1)[pixels]
                b, eb = b[filters, kh, kw], eb[filters, kh, kw]
                total.add(_products(a, ea, b, eb, inside, x.fraction_bits + w.fraction_bits))
            result[:, filters] = total.result()
        return result.reshape(n, oh, ow, outputs)

    def matmul(self, a: Operand, b: Operand, accumulator: Accumulator, order: Order, threads: int, /) -> Float32Array:
        total = OrderedSum((len(a.mantissas), len(b.mantissas)), accumulator, order, a.blocks)
        inside = np.ones(len(a.mantissas), bool)
        for block in range(a.blocks):
            total.add(_products(*_block(a, block), *_block(b, block), inside, a.fraction_bits + b.fraction_bits))
        return total.result()

    def depthwise(
        self,
        x: Float32Array,
        w: Float32Array,
        window: Window,
        pointwise: Pointwise,
        threads: int,
        /,
        out: Float32Array | None = None,
    ) -> Float32Array:
        n, height, width, channels = x.shape
        oh, ow = window.output_size(height, width)
        outputs = w.shape[2]
        source = np.arange(outputs) // (outputs // channels)
        acc = np.zeros((n * oh * ow, outputs), np.float32)
        started = np.zeros(n * oh * ow, bool)
        for kh, kw in np.ndindex(window.kernel):
            pixels, inside = _pixel_index(n, height, width, window, kh, kw, oh, ow)
            taps = x.reshape(-1, channels)[pixels][:, source].astype(np.float64) * w[kh, kw]
            products = round_to(taps, pointwise)
            with np.errstate(invalid="ignore", over="ignore"):
                sums = round_to(acc + products, pointwise)
            acc = np.where(inside[:, None], np.where(started[:, None], sums, products), acc)
            started |= inside
        return given(acc.reshape(n, oh, ow, outputs), out)


def _shared_exponents(v: Float64Array, fmt: BlockFormat) -> npt.NDArray[np.int64]:
    """v is (rows, blocks, block); rules 1 and 2 of `numerics/scalar.py`."""
    low, high = fmt.exponent_range
    largest = np.abs(v).max(axis=-1)
    finite = np.isfinite(v).all(axis=-1)
    e = np.where(largest == 0, -126, np.frexp(np.where(finite, largest, 1.0))[1] - 1)
    s = np.maximum(e - fmt.element_emax, low)
    s = np.where(s > high, NAN_EXPONENT if fmt.exponent_bits == 8 else high, s)
    return np.where(finite, s, NAN_EXPONENT).astype(np.int64)


def _encode(
    v: Float64Array, s: npt.NDArray[np.int64], fmt: BlockFormat, rounding: Rounding, draws: npt.NDArray[np.uint64]
) -> Array:
    """Rule 3 of `numerics/scalar.py`; every scaling is by a power of two and exact in float64."""
    magnitude = np.ldexp(np.abs(v), -s)
    if not fmt.is_float:
        q = _round(np.ldexp(magnitude, fmt.fraction_bits), rounding, draws)
        mantissas: Array = np.copysign(np.minimum(q, fmt.max_code), v).astype(code_dtype(fmt))
        return mantissas
    m, emin = fmt.mantissa_bits, fmt.element_emin
    p = np.where(magnitude == 0, emin, np.maximum(np.frexp(magnitude)[1] - 1, emin))
    magnitude = np.minimum(np.ldexp(_round(np.ldexp(magnitude, m - p), rounding, draws), p - m), fmt.element_max)
    p = np.where(magnitude == 0, emin, np.maximum(np.frexp(magnitude)[1] - 1, emin))
    digits = np.ldexp(magnitude, m - p).astype(np.int64)
    normal = digits >> m
    codes = (p - emin + normal << m) + (digits - (normal << m))
    patterns: Array = (codes | np.signbit(v).astype(np.int64) << fmt.element_bits - 1).astype(np.uint8)
    return patterns


def _round(v: Float64Array, rounding: Rounding, draws: npt.NDArray[np.uint64]) -> Float64Array:
    if rounding == "floor":
        return np.floor(v)
    if rounding == "nearest":
        whole = np.floor(v)
        return whole + (v - whole >= 0.5)
    if rounding == "even":
        return np.rint(v)
    # Above 2^20 every format saturates, so the clamp changes nothing and keeps the sum inside 64 bits.
    scaled = np.floor(np.ldexp(np.minimum(v, 2.0**20), 32)).astype(np.uint64)
    return (scaled + draws >> np.uint64(32)).astype(np.float64)


def _random_bits(seed: int, count: int) -> npt.NDArray[np.uint64]:
    """`numerics.scalar.random_bits` of the indices 0 … count − 1; unsigned arithmetic wraps as intended."""
    z = np.uint64(seed & (1 << 64) - 1) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return (z ^ z >> np.uint64(31)) >> np.uint64(32)


def _steps(window: Window, blocks: range, order: Order) -> Iterator[tuple[int, int, int]]:
    """(kh, kw, channel block) in the order of the sum."""
    if order == "chwk":
        yield from ((kh, kw, block) for block in blocks for kh, kw in np.ndindex(window.kernel))
    else:
        yield from ((kh, kw, block) for kh, kw in np.ndindex(window.kernel) for block in blocks)


def _pixels(x: Operand, window: Window, kh: int, kw: int, oh: int, ow: int) -> tuple[Array, Array]:
    n, height, width, _ = x.mantissas.shape
    return _pixel_index(n, height, width, window, kh, kw, oh, ow)


def _pixel_index(
    n: int, height: int, width: int, window: Window, kh: int, kw: int, oh: int, ow: int
) -> tuple[Array, Array]:
    """For each output pixel the flat index of the input pixel under tap (kh, kw), and whether it is inside."""
    rows = np.arange(oh) * window.stride[0] + kh * window.dilation[0] - window.pads[0]
    columns = np.arange(ow) * window.stride[1] + kw * window.dilation[1] - window.pads[1]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    index = np.clip(rows, 0, height - 1)[:, None] * width + np.clip(columns, 0, width - 1)
    index = np.arange(n)[:, None, None] * (height * width) + index
    return index.reshape(-1), np.broadcast_to(inside, (n, oh, ow)).reshape(-1)


def _block(operand: Operand, block: int) -> tuple[Array, Array]:
    """(mantissas (…, block), exponents (…)) of channel block `block`."""
    mantissas = operand.mantissas[..., block * operand.block : (block + 1) * operand.block]
    if operand.exponents is None:
        return mantissas, np.zeros(mantissas.shape[:-1], np.int16)
    return mantissas, operand.exponents[..., block]


def _products(a: Array, ea: Array, b: Array, eb: Array, inside: Array, fraction_bits: int) -> Products:
    """The block products of a (pixels, B) and b (outputs, B), the exponents ea (pixels) and eb (outputs)."""
    s = ea[:, None].astype(np.int64) + eb[None, :] - fraction_bits
    nan = (ea == NAN_EXPONENT)[:, None] | (eb == NAN_EXPONENT)[None, :]
    return Products(_dot(a, b), s, nan, np.broadcast_to(inside[:, None], s.shape))


def _dot(a: Array, b: Array) -> Float64Array:
    """The dot products (pixels, outputs) of a block, as float64.

    Integers: exact, since |mantissa| < 2^15 and a block has at most 2^16 elements, so every partial sum is an
    integer below 2^46. Floats: fp32 products added in fp32, in ascending order.
    """
    if a.dtype != np.float32 and b.dtype != np.float32:
        return a.astype(np.float64) @ b.astype(np.float64).T
    a, b = a.astype(np.float32), b.astype(np.float32)
    d = np.zeros((len(a), len(b)), np.float32)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        for i in range(a.shape[1]):
            d = d + a[:, i, None] * b[None, :, i]
    return d.astype(np.float64)
