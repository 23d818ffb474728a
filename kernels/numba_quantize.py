"""The quantizer of the Numba backend."""

# mypy: disable-error-code="call-arg, assignment, no-untyped-def, misc, untyped-decorator"

from __future__ import annotations

import math

import numba
import numpy as np

from fpgasim.kernels import numba_vectors as vectors
from fpgasim.kernels.numba_sums import POWERS, ZERO
from fpgasim.numerics import NAN_EXPONENT, ROUNDINGS, BlockFormat
from fpgasim.numerics.scalar import largest_code

EVEN, NEAREST, FLOOR, STOCHASTIC = range(len(ROUNDINGS))
CHUNK = vectors.CHUNK
#: The bits of the smallest normal float32 and of infinity.
NORMAL, INFINITE = 0x00800000, 0x7F800000
#: No exponent.
ELSEWHERE = -1000


def form_of(fmt: BlockFormat) -> tuple[int, ...]:
    """A format as the loops take it.

    (block, mantissa_bits, element_exponent_bits, emin, emax, max_code, low, high, above): the last three are the range
    of the shared exponent, and what it becomes above that.
    """
    emin = fmt.element_emin if fmt.is_float else 0
    low, high = fmt.exponent_range
    above = NAN_EXPONENT if fmt.exponent_bits == 8 else high
    element = fmt.mantissa_bits, fmt.element_exponent_bits, emin, fmt.element_emax, largest_code(fmt)
    return (fmt.block, *element, low, high, above)


@numba.njit
def _random_bits(seed, index):
    z = seed + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) >> np.uint64(32)


@numba.njit
def _round_magnitude(v, rounding, seed, index):
    v = min(v, 1048576.0)  # above 2^20 every format saturates
    whole = np.int64(v)
    rest = v - whole
    if rounding == EVEN and (rest > 0.5 or (rest == 0.5 and whole & 1)):
        return whole + 1
    if rounding == NEAREST and rest >= 0.5:
        return whole + 1
    if rounding == STOCHASTIC:
        return np.int64((np.uint64(v * 4294967296.0) + _random_bits(seed, np.uint64(index))) >> np.uint64(32))
    return whole


@numba.njit
def _encode(number, s, form, rounding, seed, index):
    """The code of any finite number: every scaling is by a power of two and exact in float64."""
    _, mantissa_bits, element_exponent_bits, emin, _, max_code, _, _, _ = form
    v = abs(np.float64(number)) * POWERS[ZERO - s]
    negative = math.copysign(1.0, number) < 0
    if element_exponent_bits == 0:
        q = min(_round_magnitude(v * POWERS[ZERO + mantissa_bits - 1], rounding, seed, index), max_code)
        return -q if negative else q
    p = max(math.frexp(v)[1] - 1, emin) if v > 0.0 else emin
    digits = _round_magnitude(v * POWERS[ZERO + mantissa_bits - p], rounding, seed, index)
    return min(((p - emin) << mantissa_bits) + digits, max_code) | (
        np.int64(negative) << (mantissa_bits + element_exponent_bits)
    )


@numba.njit
def _shared_exponent(e, form):
    """The shared exponent of a block whose largest number is 2^e to 2^(e + 1)."""
    _, _, _, _, emax, _, low, high, above = form
    s = max(e - emax, low)
    return s if s <= high else above


@numba.njit
def _encode_one_by_one(source, count, form, rounding, seed, index, bias, target):
    largest = np.int32(0)
    for i in range(count):
        largest = max(largest, vectors.read(source + 4 * i, np.int32(0)) & np.int32(0x7FFFFFFF))
    s = NAN_EXPONENT
    if largest < INFINITE:
        e = -126
        if largest >= NORMAL:
            e = (largest >> 23) - 127
        elif largest > 0:  # a subnormal number is worth its bits times 2^-149
            e = math.frexp(np.float64(largest))[1] - 150
        s = _shared_exponent(e, form)
    for i in range(form[0]):
        code = np.int64(0)
        if i < count and s != NAN_EXPONENT:
            code = _encode(vectors.read(source + 4 * i, np.float32(0)), s, form, rounding, seed, index + i)
        vectors.write(code, bias, target, i)
    return s


@numba.njit(forceinline=True)
def power_of_two(e):
    """2^e as float32, a normal number: faster than a look into POWERS."""
    return np.int32((e + 127) << 23).view(np.float32)


@numba.njit(forceinline=True)
def _encode_chunks(source, count, block, form, bias, target):
    """As `encode_block`, if the block is whole chunks and rounded to even; ELSEWHERE if it cannot be done so."""
    _, mantissa_bits, element_exponent_bits, emin, _, max_code, _, _, _ = form
    largest = np.int32(0)
    for i in range(0, block, CHUNK):
        largest = max(largest, vectors.largest(source + 4 * i, count - i))
    s = _shared_exponent(max((largest >> 23) - 127, -126), form)
    # A product with a float32 scale is exact, or so small that it rounds to zero: if the scale is a normal number.
    power = (0 if element_exponent_bits else mantissa_bits - 1) - s
    if largest == 0:
        power = 0
    elif largest < NORMAL or largest >= INFINITE or s == NAN_EXPONENT or power < -126 or power > 127:
        return ELSEWHERE
    scale = power_of_two(power)
    if element_exponent_bits == 0:
        for i in range(0, block, CHUNK):
            vectors.encode_integers(source + 4 * i, count - i, scale, max_code, bias, target, i)
        return s
    drop, sign = 23 - mantissa_bits, mantissa_bits + element_exponent_bits
    smallest, magic, offset = power_of_two(emin), power_of_two(emin + drop), (126 + emin) << mantissa_bits
    for i in range(0, block, CHUNK):
        vectors.encode_floats(
            source + 4 * i, count - i, scale, drop, smallest, magic, offset, max_code, sign, target, i
        )  # fmt: skip
    return s


@numba.njit(forceinline=True)
def encode_block(source, count, form, rounding, seed, index, bias, target):
    """Writes the codes of a block, `count` numbers at `source`, each plus `bias`, to `target`; returns its exponent.

    `bias` has the type of the codes, `form` is what `form_of` returns, and `index` is the position of the first
    number in the tensor. Addresses, since counting the references of an array here would take longer than a block.
    """
    block, s = form[0], ELSEWHERE
    if rounding == EVEN and block == CHUNK:  # the usual size, without loops
        s = _encode_chunks(source, count, CHUNK, form, bias, target)
    elif rounding == EVEN and block % CHUNK == 0:
        s = _encode_chunks(source, count, block, form, bias, target)
    return _encode_one_by_one(source, count, form, rounding, seed, index, bias, target) if s == ELSEWHERE else s


@numba.njit(nogil=True)
def quantize(x, form, rounding, seed, none, codes, exponents):
    """Fills codes (rows, blocks·block) and exponents (rows, blocks) from x (rows, n); `none` is a zero code."""
    n, block, target = x.shape[1], form[0], np.int64(codes.ctypes.data)
    for row in range(x.shape[0]):
        for b in range(exponents.shape[1]):
            index, count = row * n + b * block, min(block, n - b * block)
            source = np.int64(x.ctypes.data) + 4 * index
            exponents[row, b] = encode_block(source, count, form, rounding, seed, index, none, target)
            target += codes.itemsize * block
