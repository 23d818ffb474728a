"""The definition of every kernel on arrays: plain NumPy, no cleverness, exact."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fpgasim.kernels.contract import Accumulator, Array, Float32Array, Int16Array, Operand, Order, Pointwise, Window
from fpgasim.kernels.pointwise import round_to
from fpgasim.numerics import NAN_EXPONENT, BlockFormat, Rounding
from fpgasim.numerics.scalar import round_to_float32
from fpgasim.numerics.tensors import code_dtype

Float64Array = npt.NDArray[np.float64]


class Reference:
    """The slow backend that the others equal bit for bit."""

    name = "reference"

    def quantize(self, x: Float32Array, fmt: BlockFormat, rounding: Rounding, seed: int, /) -> tuple[Array, Int16Array]:
        rows, n = x.shape
        blocks = -(-n // fmt.block)
        if fmt.is_fp32:
            return x.copy(), np.zeros((rows, n), np.int16)
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
        return codes.reshape(rows, blocks * fmt.block), s.astype(np.int16)

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
            sums = _Sums(n * oh * ow, filters.stop - filters.start, accumulator)
            for kh, kw, block in _steps(window, blocks, order):
                pixels, inside = _pixels(x, window, kh, kw, oh, ow)
                a, ea = _block(x, block)
                b, eb = _block(w, block)
                b, eb = b[filters, kh, kw], eb[filters, kh, kw]
                sums.add(
                    a.reshape(-1, x.block)[pixels],
                    ea.reshape(-1)[pixels],
                    b,
                    eb,
                    inside,
                    x.fraction_bits + w.fraction_bits,
                )
            result[:, filters] = sums.rounded()
        return result.reshape(n, oh, ow, outputs)

    def matmul(self, a: Operand, b: Operand, accumulator: Accumulator, threads: int, /) -> Float32Array:
        sums = _Sums(len(a.mantissas), len(b.mantissas), accumulator)
        inside = np.ones(len(a.mantissas), bool)
        for block in range(a.blocks):
            sums.add(*_block(a, block), *_block(b, block), inside, a.fraction_bits + b.fraction_bits)
        return sums.rounded()

    def depthwise(
        self, x: Float32Array, w: Float32Array, window: Window, pointwise: Pointwise, threads: int, /
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
        return acc.reshape(n, oh, ow, outputs)


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


class _Sums:
    """The accumulators of a (pixels, outputs) result."""

    def __init__(self, pixels: int, outputs: int, accumulator: Accumulator) -> None:
        self.exact = accumulator == "exact"
        self.acc = np.zeros((pixels, outputs), np.float32)
        # A finite exact sum is the Python integer `digits` times 2^BASE; infinities and NaNs add up in `acc`.
        self.digits = np.zeros((pixels, outputs), object) if self.exact else None

    BASE = -700  # below every last bit: a float32 d is a multiple of 2^-149 and s is at least -2·127 - 2·14

    def add(self, a: Array, ea: Array, b: Array, eb: Array, inside: Array, fraction_bits: int) -> None:
        """Add the block products of a (pixels, B) and b (outputs, B), where the pixel is inside."""
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            d = _dot(a, b)
            s = ea[:, None].astype(np.int64) + eb[None, :] - fraction_bits
            nan = (ea == NAN_EXPONENT)[:, None] | (eb == NAN_EXPONENT)[None, :]
            terms = np.where(nan, np.nan, np.ldexp(d, s)).astype(np.float32)
            if self.digits is None:
                self.acc = np.where(inside[:, None], self.acc + terms, self.acc)
                return
            special = nan | ~np.isfinite(d)
            self.acc = np.where(special & inside[:, None], self.acc + terms, self.acc)
            mantissa, exponent = np.frexp(np.where(special | ~inside[:, None], 0.0, d))
            digits = np.ldexp(mantissa, 53).astype(np.int64).astype(object)
            self.digits += digits << (exponent - 53 + s - self.BASE).astype(object)

    def rounded(self) -> Float32Array:
        if self.digits is None:
            return self.acc
        finite = np.frompyfunc(lambda digits: round_to_float32(digits, self.BASE), 1, 1)(self.digits)
        return np.where(self.acc == 0, finite.astype(np.float32), self.acc)


def _dot(a: Array, b: Array) -> Float64Array:
    """The dot products (pixels, outputs) of a block, as float64.

    Integers: exact, since |mantissa| < 2^15 and a block has at most 2^16 elements, so every partial sum is an
    integer below 2^46. Floats: fp32 products added in fp32, in ascending order.
    """
    if a.dtype != np.float32 and b.dtype != np.float32:
        return a.astype(np.float64) @ b.astype(np.float64).T
    a, b = a.astype(np.float32), b.astype(np.float32)
    d = np.zeros((len(a), len(b)), np.float32)
    for i in range(a.shape[1]):
        d = d + a[:, i, None] * b[None, :, i]
    return d.astype(np.float64)
