"""The loops of the Numba backend. Importing this compiles nothing; the first call of each function does.

No fastmath: LLVM then keeps every rounding and the order of every sum, and fuses no product with an addition.
"""

# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator"

from __future__ import annotations

import math

import numba
import numpy as np

from fpgasim.kernels import numba_sums as sums
from fpgasim.kernels.numba_sums import POWERS, ZERO


@numba.njit
def _add_products(a, w, lo, d):
    """d (n) += a (block) times w (block, outputs) for the n outputs from lo on, product after product."""
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


@numba.njit
def _pixel_under(sizes, p, tap):
    """The pixel of the input under tap `tap` of output pixel `p`, or -1 outside the image."""
    height, width, oh, ow, _, kw, stride_h, stride_w, top, left, dilation_h, dilation_w = sizes
    column, line = p % ow, p // ow
    y = line % oh * stride_h + tap // kw * dilation_h - top
    z = column * stride_w + tap % kw * dilation_w - left
    if y < 0 or y >= height or z < 0 or z >= width:
        return -1
    return (line // oh * height + y) * width + z


@numba.njit
def _blocks_of_group(g, groups, channels, block):
    """The first block with a channel of group `g`, and how many there are."""
    first = g * (channels // groups) // block
    return first, ((g + 1) * (channels // groups) + block - 1) // block - first


@numba.njit(nogil=True)
def conv2d(sizes, groups, channels, chwk, mode, x, x_scales, w, w_scales, first, last, result):
    """Pixels first <= p < last of result (pixels, outputs), summed in fp32 or exactly.

    x (pixels, blocks, block) and w (taps, blocks, block, outputs) are of one float type that holds each dot product.
    """
    outputs, block, taps = w.shape[3], x.shape[2], w.shape[0]
    filters = outputs // groups
    d = np.empty(filters, x.dtype)
    acc = np.empty(filters, np.float32)
    doubles = np.empty(filters, np.float64)
    limbs = np.empty((filters, sums.LIMB_COUNT), np.int64)
    for p in range(first, last):
        for g in range(groups):
            lo = g * filters
            acc[:] = 0
            doubles[:] = 0
            if mode == sums.LIMBS:
                limbs[:] = 0
            first_block, blocks = _blocks_of_group(g, groups, channels, block)
            for step in range(taps * blocks):
                tap = step % taps if chwk else step // blocks
                b = first_block + (step // taps if chwk else step % blocks)
                pixel = _pixel_under(sizes, p, tap)
                if pixel < 0:
                    continue
                if mode == sums.PLAIN:
                    _add_products(x[pixel, b], w[tap, b], lo, acc)
                    continue
                d[:] = 0
                _add_products(x[pixel, b], w[tap, b], lo, d)
                s, ws = x_scales[pixel, b], w_scales[tap, b, lo : lo + filters]
                if mode == sums.FP32:
                    for o in range(d.size):
                        acc[o] += np.float32(np.float64(d[o]) * (s * ws[o]))
                elif mode == sums.DOUBLE:
                    for o in range(d.size):
                        doubles[o] += np.float64(d[o]) * (s * ws[o])
                else:
                    for o in range(d.size):
                        t = np.float64(d[o]) * (s * ws[o])
                        if not math.isfinite(t):
                            acc[o] += np.float32(t)
                        elif t != 0.0:
                            sums.add_limbs(limbs[o], t)
            for o in range(filters):
                if mode == sums.DOUBLE:
                    result[p, lo + o] = np.float32(doubles[o])
                elif mode == sums.LIMBS and acc[o] == 0:
                    result[p, lo + o] = sums.round_limbs(limbs[o])
                else:
                    result[p, lo + o] = acc[o]


@numba.njit(nogil=True)
def conv2d_ordered(sizes, groups, channels, chwk, engines, mode, fixed, x, x_scales, w, w_scales, first, last, result):
    """As `conv2d`, for the other accumulators, and for trees of engines.

    A function of its own, since compiling it takes seconds that most programs can do without.
    """
    outputs, block, taps = w.shape[3], x.shape[2], w.shape[0]
    filters = outputs // groups
    d = np.empty(filters, x.dtype)
    t = np.empty(filters, np.float32)
    acc = np.empty(filters, np.float32)
    integers = np.empty(filters, np.int64)
    waiting = np.empty((sums.LEVELS, filters), np.float32)  # sums of 2^level engines that wait for a neighbour
    waiting_integers = np.empty((sums.LEVELS, filters), np.int64)
    for p in range(first, last):
        for g in range(groups):
            lo = g * filters
            first_block, blocks = _blocks_of_group(g, groups, channels, block)
            for engine in range(engines + 1):
                acc[:] = 0
                integers[:] = 0
                for step in range(engine, taps * blocks if engine < engines else 0, engines):
                    tap = step % taps if chwk else step // blocks
                    b = first_block + (step // taps if chwk else step % blocks)
                    pixel = _pixel_under(sizes, p, tap)
                    if pixel < 0:
                        continue
                    d[:] = 0
                    _add_products(x[pixel, b], w[tap, b], lo, d)
                    s, ws = x_scales[pixel, b], w_scales[tap, b, lo : lo + filters]
                    for o in range(d.size):
                        t[o] = np.float32(np.float64(d[o]) * (s * ws[o]))
                    sums.add_terms(mode, fixed, acc, integers, t)
                # A bit of `engine` says that a sum of so many engines waits: the left neighbour of this one, while
                # the bits are 1 from the lowest up. In the end, after the last engine, all that wait are joined.
                level = 0
                while level < sums.LEVELS and (engine == engines or engine >> level & 1):
                    if engine >> level & 1:
                        sums.join(mode, fixed, acc, integers, waiting[level], waiting_integers[level])
                    level += 1
                if engine < engines:
                    waiting[level], waiting_integers[level] = acc, integers
            sums.results(mode, fixed, acc, integers, result[p, lo : lo + filters])


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
            if pointwise == sums.FP16:
                sums.round_fp16(products, product_bits)
            elif pointwise == sums.BF16:
                sums.round_bf16(products, product_bits)
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
            if pointwise == sums.FP16:
                sums.round_fp16(acc, acc_bits)
            elif pointwise == sums.BF16:
                sums.round_bf16(acc, acc_bits)
