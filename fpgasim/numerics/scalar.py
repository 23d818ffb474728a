"""The rules of block quantization for one block of Python floats: the definition to read.

Everything is exact (integers and fractions), nothing is fast. `kernels/reference.py` says the same for arrays.

For a block x_0 … x_{B−1}:
1. E = floor(log2 max|x|), also for subnormals; a block of zeros has E = −126.
   Any infinity or NaN makes the whole block NaN.
2. S = E − emax of the element (0 for integer mantissas), clamped to the exponent's range from below;
   with 8 bits an S above the range makes the block NaN, with 5 bits it is clamped there too.
3. integer mantissa: q = round(|x| / 2^(S − fraction_bits)), at most `max_code`, with the sign of x.
   float element: v = |x| / 2^S; p = max(floor(log2 v), emin); round(v / 2^(p−m))·2^(p−m), at most `element_max`.
Sources: Rouhani et al., arXiv 2310.10537, Algorithm 1; OCP MX v1.0, 6.3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, get_args

from fpgasim.errors import UnknownNameError
from fpgasim.numerics.formats import NAN_EXPONENT, BlockFormat

Rounding = Literal["even", "nearest", "floor", "stochastic"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
_ALIASES = {"away": "nearest", "truncate": "floor"}


def get_rounding(name: str) -> Rounding:
    """The canonical name of a rounding: `even`, `nearest` (ties away from zero), `floor` (to zero), `stochastic`."""
    canonical = _ALIASES.get(name, name) if isinstance(name, str) else None
    if canonical not in ROUNDINGS:
        raise UnknownNameError("rounding", name, (*ROUNDINGS, *_ALIASES))
    return canonical


def floor_log2(x: float) -> int:
    """floor(log2 |x|) of a finite x ≠ 0, exact (a float logarithm says 1 too much just below a power of 2)."""
    return math.frexp(x)[1] - 1


def random_bits(seed: int, index: int) -> int:
    """32 random bits that depend on `seed` and `index` alone (SplitMix64, Steele et al., OOPSLA 2014)."""
    mask = (1 << 64) - 1
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return (z ^ z >> 31) >> 32


def round_magnitude(v: Fraction, rounding: Rounding, bits: int = 0) -> int:
    """`v` ≥ 0 as an integer. `bits` are the 32 random bits that stochastic rounding adds below the point."""
    whole = v.numerator // v.denominator
    rest = v - whole
    if rounding == "floor":
        return whole
    if rounding == "nearest":
        return whole + (rest >= Fraction(1, 2))
    if rounding == "even":
        return whole + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2))
    scaled = v * (1 << 32)
    return (scaled.numerator // scaled.denominator + bits) >> 32


def shared_exponent(block: Sequence[float], fmt: BlockFormat) -> int:
    """The exponent S that `block` shares, or `NAN_EXPONENT`."""
    if not all(map(math.isfinite, block)):
        return NAN_EXPONENT
    low, high = fmt.exponent_range
    largest = max(map(abs, block))
    if largest == 0:
        return max(low, -126 - fmt.element_emax)
    s = max(floor_log2(largest) - fmt.element_emax, low)
    if s > high:
        return NAN_EXPONENT if fmt.exponent_bits == 8 else high
    return s


def encode_element(x: float, s: int, fmt: BlockFormat, rounding: Rounding, bits: int = 0) -> int:
    """The code of finite `x` under the shared exponent `s`: a signed mantissa, or the bit pattern of a small float."""
    negative = math.copysign(1.0, x) < 0
    v = abs(Fraction(x)) / Fraction(2) ** s
    if not fmt.is_float:
        q = min(round_magnitude(v * 2**fmt.fraction_bits, rounding, bits), fmt.max_code)
        return -q if negative else q
    m, emin = fmt.mantissa_bits, fmt.element_emin
    p = max(_floor_log2(v), emin) if v else emin
    v = min(
        round_magnitude(v / Fraction(2) ** (p - m), rounding, bits) * Fraction(2) ** (p - m), Fraction(fmt.element_max)
    )
    p = max(_floor_log2(v), emin) if v else emin  # rounding may have carried into the next power of two
    digits = int(v / Fraction(2) ** (p - m))
    normal = digits >> m  # 1, or 0 for a subnormal element
    magnitude = (p - emin + normal << m) + (digits - (normal << m))
    return magnitude | (negative << fmt.element_bits - 1)


@functools.lru_cache(256)
def largest_code(fmt: BlockFormat) -> int:
    """The code of the largest magnitude: a mantissa, or the bit pattern of `element_max`, without its sign bit."""
    return encode_element(fmt.element_max, 0, fmt, "floor") if fmt.is_float else fmt.max_code


def _floor_log2(v: Fraction) -> int:
    e = v.numerator.bit_length() - v.denominator.bit_length()
    return e if v >= Fraction(2) ** e else e - 1


def decode_element(code: int, s: int, fmt: BlockFormat) -> float:
    """The value of `code` under the shared exponent `s`; every one is a float32, exactly."""
    if s == NAN_EXPONENT:
        return math.nan
    if not fmt.is_float:
        return math.ldexp(code, s - fmt.fraction_bits)
    m = fmt.mantissa_bits
    field, digits = code >> m & (1 << fmt.element_exponent_bits) - 1, code & (1 << m) - 1
    magnitude = (
        math.ldexp(digits + (1 << m), field - 1 + fmt.element_emin - m)
        if field
        else math.ldexp(digits, fmt.element_emin - m)
    )
    return math.ldexp(-magnitude if code >> fmt.element_bits - 1 else magnitude, s)


def quantize_block(
    block: Sequence[float], fmt: BlockFormat, rounding: Rounding = "even", seed: int = 0, first_index: int = 0
) -> tuple[list[int], int]:
    """The codes of `block` and its shared exponent. `first_index` is the position of block[0] in its tensor."""
    s = shared_exponent(block, fmt)
    if s == NAN_EXPONENT:
        return [0] * len(block), s
    draws = [random_bits(seed, first_index + i) if rounding == "stochastic" else 0 for i in range(len(block))]
    return [encode_element(x, s, fmt, rounding, bits) for x, bits in zip(block, draws, strict=True)], s


def round_to_float32(digits: int, exponent: int) -> float:
    """digits·2^exponent rounded once to float32: ties to even, gradual underflow, infinity above the range."""
    if digits == 0:
        return 0.0
    magnitude = abs(digits)
    unit = max(magnitude.bit_length() + exponent - 24, -149)  # exponent of the result's last bit
    q = round_magnitude(Fraction(magnitude) * Fraction(2) ** (exponent - unit), "even")
    if q.bit_length() + unit > 128:
        return math.copysign(math.inf, digits)
    return math.copysign(math.ldexp(q, unit), digits)
