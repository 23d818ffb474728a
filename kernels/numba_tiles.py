"""The loops of the Numba backend's tile convolution; `numba_bytes.py` says what they take."""

# mypy: disable-error-code="call-arg, assignment, no-untyped-def, misc, untyped-decorator"

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from fpgasim.kernels import numba_vectors as vectors
from fpgasim.kernels.numba_quantize import CHUNK, EVEN, encode_block, power_of_two
from fpgasim.kernels.numba_vectors import Dot
from fpgasim.numerics import NAN_EXPONENT


@numba.njit
def _differs(address, words, word):
    """Whether one of the words at `address` is not `word`."""
    difference = np.int32(0)
    for i in range(words):
        difference |= vectors.read(address + 4 * i, word) ^ word
    return difference != 0


@numba.njit(nogil=True)
def fill(x, exponents, like, form, fraction_bits, sources, words, bias, word, image, blocks, first, last):
    """Blocks of the pixels first <= p < last of `image`; returns the lowest and highest power of a scale, and any NaN.

    `sources[p]` is the row of x under a pixel, or -1. Its numbers are quantized by `form` if `exponents` is None, else
    they are codes of the type of `like`. A code is stored plus `bias`, and `word` is four bytes of zero codes.
    """
    block, span, low, high, nan = form[0], 4 * words + 4, 1000, -1000, False
    for p in range(first, last):
        row = sources[p]
        for b in range(blocks):
            to, e = np.int64(image.ctypes.data) + (p * blocks + b) * span, 0
            source = np.int64(x.ctypes.data) + x.itemsize * (row * x.shape[1] + b * block)
            if row < 0:
                for i in range(words):
                    vectors.put(word, to + 4 * i)
            elif exponents is None:
                e = encode_block(source, min(block, x.shape[1] - b * block), form, EVEN, np.uint64(0), 0, bias, to)
            else:
                e, whole = exponents[row, b], block - block % CHUNK
                for i in range(0, whole, CHUNK):
                    vectors.copy(source + x.itemsize * i, like, bias, to, i)
                for i in range(whole, block):
                    vectors.write(np.int64(vectors.read(source + x.itemsize * i, like)), bias, to, i)
            power, scale = np.int64(e) - fraction_bits, np.float32(1.0)
            if e == NAN_EXPONENT:
                nan = True
            elif low <= power <= high or _differs(to, words, word):  # a block of zeros does not count
                low, high, scale = min(low, power), max(high, power), power_of_two(power)
            vectors.put(scale, to + 4 * words)
    return low, high, nan


@functools.cache
def convolution_of(dot: Dot, fold: str) -> Any:
    """The loop over tiles for one instruction and one way to make terms; see `numba_vectors.tile_of`."""
    tile, width, panel = vectors.tile_of(dot, fold), dot.pixels, dot.outputs

    @numba.njit(nogil=True)
    def convolve(image, words, origins, offsets, starts, packed, first, last, first_panel, last_panel, result):
        """Pixels first <= p < last and panels first_panel <= … < last_panel of result (pixels, outputs)."""
        outputs, groups = result.shape[1], starts.size
        filters, panels = outputs // groups, packed.shape[0] // groups
        pixels, targets = np.empty(width, np.int64), np.empty(width, np.int64)
        # As many pixels as have their results in a quarter of a megabyte of cache.
        step = max(1, 65536 // outputs // width) * width
        for begin in range(first, last, step):
            end = min(begin + step, last)
            for at in range(first_panel, last_panel):
                group, skip = at // panels, at % panels * panel
                base = np.int64(image.ctypes.data) + starts[group]
                to = np.int64(result.ctypes.data) + 4 * (group * filters + skip)
                for p in range(begin, end, width):
                    for i in range(width):
                        q = min(p + i, end - 1)  # the last pixel may be computed several times
                        pixels[i], targets[i] = base + origins[q], to + 4 * q * outputs
                    tile(
                        pixels.ctypes.data, offsets.ctypes.data, offsets.size, words,
                        np.int64(packed.ctypes.data) + at * packed.shape[1], min(panel, filters - skip),
                        targets.ctypes.data,
                    )  # fmt: skip

    return convolve
