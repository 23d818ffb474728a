"""How the Numba backend adds terms up; one function for each kind of accumulator, on vectors of them.

As in `numba_loops.py`, no fastmath.
"""

# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator"

from __future__ import annotations

import math

import numba
import numpy as np

FP16, BF16, FP32 = range(3)  # as in contract.POINTWISE
#: Integers modulo 2^64 or clamped; exact sums that fit into a double or not; fp32 products, one after the other.
WRAP, SATURATE, DOUBLE, LIMBS, PLAIN = range(3, 8)

#: 2^e is POWERS[e + ZERO].
ZERO = 600
POWERS = np.ldexp(1.0, np.arange(-ZERO, ZERO + 1))

#: A tree of 1024 engines has sums of 2^0 to 2^10 of them.
LEVELS = 11

#: An exact sum of doubles is a number of limbs of 32 bits, least first, each kept in 64; bit 0 is worth 2^LIMB_BASE.
#: Terms lie between 2^(-149 - 254 - 28), their last bit 52 places lower, and 2^(128 + 254).
LIMB_COUNT = 30
LIMB_BASE = -512


@numba.njit
def add_limbs(limbs, t):
    mantissa, exponent = math.frexp(t)
    digits = np.int64(abs(mantissa) * 9007199254740992.0)
    position = exponent - 53 - LIMB_BASE
    at, shift = position >> 5, position & 31
    low, high = (digits & 0xFFFFFFFF) << shift, (digits >> 32) << shift
    sign = -1 if t < 0 else 1
    limbs[at] += sign * (low & 0xFFFFFFFF)
    limbs[at + 1] += sign * ((low >> 32) + (high & 0xFFFFFFFF))
    limbs[at + 2] += sign * (high >> 32)


@numba.njit
def _carry(limbs):
    carry = np.int64(0)
    for i in range(LIMB_COUNT):
        v = limbs[i] + carry
        carry = v >> 32
        limbs[i] = v & 0xFFFFFFFF
    return carry


@numba.njit
def round_limbs(limbs):
    """The sum rounded once to float32. Spoils the limbs."""
    sign = 1.0
    if _carry(limbs) < 0:
        sign = -1.0
        for i in range(LIMB_COUNT):
            limbs[i] = limbs[i] ^ 0xFFFFFFFF
        limbs[0] += 1
        _carry(limbs)
    top = LIMB_COUNT - 1
    while top > 0 and limbs[top] == 0:
        top -= 1
    if limbs[top] == 0:
        return np.float32(0.0)
    # The upper 33 to 53 bits with a 1 for anything below them: rounding that to float32 is rounding the sum.
    below = limbs[top - 1] if top > 0 else np.int64(0)
    rest = False
    for i in range(top - 1):
        rest |= limbs[i] != 0
    last = LIMB_BASE + 32 * (top - 1)
    if limbs[top] >> 20:
        digits = (limbs[top] << 20) | (below >> 12)
        rest |= (below & 0xFFF) != 0
        last += 12
    else:
        digits = (limbs[top] << 32) | below
    return np.float32(sign * np.float64(digits | np.int64(rest)) * POWERS[ZERO + last])


@numba.njit
def round_fp16(values, bits):
    """Rounds float32 values, whose bits are `bits`, to fp16; saturates."""
    for i in range(values.size):
        sign = bits[i] & np.int32(-0x80000000)
        magnitude = abs(values[i])
        v = bits[i] & 0x7FFFFFFF
        if magnitude >= np.float32(65504.0):
            values[i] = np.float32(65504.0)
        elif magnitude >= np.float32(6.103515625e-05):
            bits[i] = (v + 0xFFF + ((v >> 13) & 1)) & ~0x1FFF
        elif magnitude == magnitude:
            values[i] = (magnitude + np.float32(0.75)) - np.float32(0.75)  # a multiple of 2^-24
        bits[i] = bits[i] | sign


@numba.njit
def round_bf16(values, bits):
    """Rounds float32 values, whose bits are `bits`, to bf16."""
    for i in range(values.size):
        if values[i] == values[i]:
            v = np.int64(bits[i])
            bits[i] = np.int32((v + 0x7FFF + ((v >> 16) & 1)) & ~0xFFFF)


@numba.njit
def _add_floats(mode, acc, t):
    """acc = r(acc + t), the exact sum rounded once to fp16, bf16 or fp32.

    The float32 sum is rounded to odd first: where it is not exact, its last bit is made 1. A number that is then
    rounded to at least two bits less comes out as if it had been rounded once (Boldo and Melquiond, 2008).
    """
    if mode == FP32:
        for o in range(acc.size):
            acc[o] += t[o]
        return
    bits = acc.view(np.int32)
    largest = np.float32(262144.0) if mode == FP16 else np.float32(np.inf)  # beyond it fp16 saturates whatever acc is
    for o in range(acc.size):
        a, b = acc[o], t[o]
        if b > largest:
            b = largest
        if b < -largest:
            b = -largest
        total = a + b
        # Knuth's 2Sum, exact. Nothing overflows in between: |a| is less than the largest float32.
        left = total - b
        right = total - left
        error = (a - left) + (b - right)
        acc[o] = total
        if error != 0 and abs(total) < np.float32(np.inf) and bits[o] & 1 == 0:
            bits[o] += 1 if (error > 0) == (total > 0) else -1
    if mode == FP16:
        round_fp16(acc, bits)
    else:
        round_bf16(acc, bits)


@numba.njit
def _saturate(acc, q, high):
    """acc + q between -high - 1 and high; both are of 64 bits."""
    if q > 0:
        return high if acc > high - q else acc + q
    return -high - 1 if acc < -high - 1 - q else acc + q


@numba.njit
def add_terms(mode, fixed, acc, integers, t):
    """Adds t. `fixed` is (bits, fraction); the sums of WRAP and SATURATE are `integers`, and their NaNs in acc."""
    if mode < WRAP:
        _add_floats(mode, acc, t)
        return
    scale, high = POWERS[ZERO + fixed[1]], np.int64((np.uint64(1) << np.uint64(fixed[0] - 1)) - np.uint64(1))
    for o in range(acc.size):
        v = np.rint(np.float64(t[o]) * scale)
        if v != v or (mode == WRAP and not math.isfinite(v)):
            acc[o] = np.nan
        elif mode == SATURATE:
            if abs(v) < POWERS[ZERO + 62]:
                integers[o] = _saturate(integers[o], np.int64(v), high)
            else:  # a multiple of 2^39; from 2^64 on the sum is clamped whatever it was
                quarter = np.int64(min(max(v, -POWERS[ZERO + 64]), POWERS[ZERO + 64]) * 0.25)
                for _ in range(4):
                    integers[o] = _saturate(integers[o], quarter, high)
        elif abs(v) < POWERS[ZERO + 63]:
            integers[o] += np.int64(v)
        else:
            mantissa, exponent = math.frexp(v)
            if exponent < 53 + 64:
                integers[o] += np.int64(mantissa * 9007199254740992.0) << np.int64(exponent - 53)


@numba.njit
def join(mode, fixed, acc, integers, other, other_integers):
    """Adds the sums of another engine."""
    if mode < WRAP:
        _add_floats(mode, acc, other)
        return
    high = np.int64((np.uint64(1) << np.uint64(fixed[0] - 1)) - np.uint64(1))
    for o in range(acc.size):
        acc[o] += other[o]
        if mode == SATURATE:
            integers[o] = _saturate(integers[o], other_integers[o], high)
        else:
            integers[o] += other_integers[o]


@numba.njit
def results(mode, fixed, acc, integers, result):
    """The sums as float32."""
    if mode < WRAP:
        for o in range(result.size):
            result[o] = acc[o] + np.float32(0.0)
        return
    unused = np.int64(64 - fixed[0])
    for o in range(result.size):  # what WRAP added above its bits is shifted out
        whole = (integers[o] << unused) >> unused
        result[o] = acc[o] + np.float32(whole) * np.float32(POWERS[ZERO - fixed[1]])
