"""The loops of the Numba backend. Importing this compiles nothing; the first call of each function does.

No fastmath: LLVM then keeps every rounding and the order of every sum, and fuses no product with an addition.
"""

# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator"

from __future__ import annotations

import math

import numba
import numpy as np

from fpgasim.numerics import NAN_EXPONENT, ROUNDINGS

EVEN, NEAREST, FLOOR, STOCHASTIC = range(len(ROUNDINGS))
FP16, BF16 = range(2)  # as in contract.POINTWISE
FP32, DOUBLE, LIMBS = range(3)  # how terms are summed

#: 2^e is POWERS[e + ZERO].
ZERO = 600
POWERS = np.ldexp(1.0, np.arange(-ZERO, ZERO + 1))

#: An exact sum of doubles is a number of limbs of 32 bits, least first, each kept in 64; bit 0 is worth 2^LIMB_BASE.
#: Terms lie between 2^(-149 - 254 - 28), their last bit 52 places lower, and 2^(128 + 254).
LIMB_COUNT = 30
LIMB_BASE = -512


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


@numba.njit(nogil=True)
def quantize(
    x,
    block,
    mantissa_bits,
    element_exponent_bits,
    emin,
    emax,
    max_code,
    low,
    high,
    above,
    rounding,
    seed,
    codes,
    exponents,
):
    """Fills codes (rows, blocks·block), zeros before, and exponents (rows, blocks)."""
    rows, n = x.shape
    for row in range(rows):
        for b in range(exponents.shape[1]):
            first, last = b * block, min((b + 1) * block, n)
            largest, finite = 0.0, True
            for i in range(first, last):
                v = abs(np.float64(x[row, i]))
                largest = max(largest, v)
                finite &= math.isfinite(v)
            if not finite:
                exponents[row, b] = NAN_EXPONENT
                continue
            e = math.frexp(largest)[1] - 1 if largest > 0.0 else -126
            s = max(e - emax, low)
            if s > high:
                s = above
            exponents[row, b] = s
            if s == NAN_EXPONENT:
                continue
            for i in range(first, last):
                v = abs(np.float64(x[row, i])) * POWERS[ZERO - s]
                negative = math.copysign(1.0, x[row, i]) < 0
                if element_exponent_bits == 0:
                    q = _round_magnitude(v * POWERS[ZERO + mantissa_bits - 1], rounding, seed, row * n + i)
                    q = min(q, max_code)
                    codes[row, i] = -q if negative else q
                else:
                    p = max(math.frexp(v)[1] - 1, emin) if v > 0.0 else emin
                    digits = _round_magnitude(v * POWERS[ZERO + mantissa_bits - p], rounding, seed, row * n + i)
                    code = min(((p - emin) << mantissa_bits) + digits, max_code)
                    codes[row, i] = code | (np.int64(negative) << (mantissa_bits + element_exponent_bits))


@numba.njit
def _add_limbs(limbs, t):
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
def _round_limbs(limbs):
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
def _dot(a, w, lo, d):
    """d (n) = a (block) times w (block, outputs) for the n outputs from lo on, product after product."""
    d[:] = 0
    hi, n = lo + d.size, a.size
    for k in range(0, n - 3, 4):
        a0, a1, a2, a3 = a[k], a[k + 1], a[k + 2], a[k + 3]
        w0, w1, w2, w3 = w[k, lo:hi], w[k + 1, lo:hi], w[k + 2, lo:hi], w[k + 3, lo:hi]
        for o in range(d.size):
            d[o] = d[o] + a0 * w0[o] + a1 * w1[o] + a2 * w2[o] + a3 * w3[o]
    for k in range(n - n % 4, n):
        a0, w0 = a[k], w[k, lo:hi]
        for o in range(d.size):
            d[o] += a0 * w0[o]


@numba.njit(nogil=True)
def conv2d(sizes, groups, channels, chwk, mode, x, x_scales, w, w_scales, first, last, result):
    """Pixels first <= p < last of result (pixels, outputs).

    x (pixels, blocks, block) and w (taps, blocks, block, outputs) are of one float type that holds each dot product.
    """
    height, width, oh, ow, kh, kw, stride_h, stride_w, top, left, dilation_h, dilation_w = sizes
    outputs, block, taps = w.shape[3], x.shape[2], kh * kw
    filters = outputs // groups
    d = np.empty(filters, x.dtype)
    acc = np.empty(filters, np.float32)
    sums = np.empty(filters, np.float64)
    limbs = np.empty((filters, LIMB_COUNT), np.int64)
    for p in range(first, last):
        column, line = p % ow, p // ow
        row, image = line % oh, line // oh
        for g in range(groups):
            acc[:] = 0
            sums[:] = 0
            if mode == LIMBS:
                limbs[:] = 0
            lo = g * filters
            first_block = g * (channels // groups) // block
            blocks = ((g + 1) * (channels // groups) + block - 1) // block - first_block
            for step in range(taps * blocks):
                tap = step % taps if chwk else step // blocks
                b = first_block + (step // taps if chwk else step % blocks)
                y = row * stride_h + tap // kw * dilation_h - top
                z = column * stride_w + tap % kw * dilation_w - left
                if y < 0 or y >= height or z < 0 or z >= width:
                    continue
                pixel = (image * height + y) * width + z
                _dot(x[pixel, b], w[tap, b], lo, d)
                s, ws = x_scales[pixel, b], w_scales[tap, b, lo : lo + filters]
                if mode == FP32:
                    for o in range(d.size):
                        acc[o] += np.float32(np.float64(d[o]) * (s * ws[o]))
                elif mode == DOUBLE:
                    for o in range(d.size):
                        sums[o] += np.float64(d[o]) * (s * ws[o])
                else:
                    for o in range(d.size):
                        t = np.float64(d[o]) * (s * ws[o])
                        if not math.isfinite(t):
                            acc[o] += np.float32(t)
                        elif t != 0.0:
                            _add_limbs(limbs[o], t)
            for o in range(filters):
                if mode == DOUBLE:
                    result[p, lo + o] = np.float32(sums[o])
                elif mode == LIMBS and acc[o] == 0:
                    result[p, lo + o] = _round_limbs(limbs[o])
                else:
                    result[p, lo + o] = acc[o]


@numba.njit
def _round_fp16(values, bits):
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
def _round_bf16(values, bits):
    """Rounds float32 values, whose bits are `bits`, to bf16."""
    for i in range(values.size):
        if values[i] == values[i]:
            v = np.int64(bits[i])
            bits[i] = np.int32((v + 0x7FFF + ((v >> 16) & 1)) & ~0xFFFF)


@numba.njit(nogil=True)
def depthwise(sizes, pointwise, x, w, first, last, result):
    """Pixels first <= p < last of result (pixels, outputs), zeros before."""
    height, width, oh, ow, kh, kw, stride_h, stride_w, top, left, dilation_h, dilation_w = sizes
    outputs = w.shape[2]
    multiplier = outputs // x.shape[3]
    products = np.empty(outputs, np.float32)
    product_bits = products.view(np.int32)
    magic = 1.5 * POWERS[ZERO - 81]
    for p in range(first, last):
        column, line = p % ow, p // ow
        row, image = line % oh, line // oh
        acc = result[p]
        acc_bits = acc.view(np.int32)
        started = False
        for tap in range(kh * kw):
            y = row * stride_h + tap // kw * dilation_h - top
            z = column * stride_w + tap % kw * dilation_w - left
            if y < 0 or y >= height or z < 0 or z >= width:
                continue
            a, b = x[image, y, z], w[tap // kw, tap % kw]
            for o in range(outputs):
                products[o] = a[o // multiplier] * b[o]
            if pointwise == FP16:
                _round_fp16(products, product_bits)
            elif pointwise == BF16:
                _round_bf16(products, product_bits)
                for o in range(
                    outputs
                ):  # below 2^-126 the float32 product was rounded already: once, from the exact one
                    exact = abs(np.float64(a[o // multiplier]) * np.float64(b[o]))
                    if exact < POWERS[ZERO - 126]:
                        products[o] = math.copysign(np.float32((exact + magic) - magic), products[o])
            if not started:
                acc[:] = products
                started = True
                continue
            for o in range(outputs):
                acc[o] += products[o]
            if pointwise == FP16:
                _round_fp16(acc, acc_bits)
            elif pointwise == BF16:
                _round_bf16(acc, acc_bits)
