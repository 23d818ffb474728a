"""`fs.conv2d` with all its arguments against a convolution of Python's numbers, block by block."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.numerics import CATALOGUE, NAN_EXPONENT, WHOLE, BlockFormat, get_format
from fpgasim.numerics.scalar import decode_element, quantize_block

OWN = [BlockFormat("five", 4, 8, 24), BlockFormat("five in eights", 4, 5, 8), BlockFormat("six", 6, 8, 64),
       BlockFormat("whole", 7, 8, WHOLE), BlockFormat("twelve", 11, 8, 16),
       BlockFormat("e3m4", 4, 8, 16, element_exponent_bits=3, element_max=15.5)]  # fmt: skip
Vector = list[float]


def blocks_of(v: Vector, fmt: BlockFormat, rounding: Any) -> list[Vector]:
    """The values of `v` after quantizing it, block by block."""
    fmt, found = fmt.for_length(len(v)), []
    for first in range(0, len(v), fmt.block):
        part = v[first : first + fmt.block]
        if not fmt.is_fp32:
            codes, s = quantize_block(part, fmt, rounding)
            assert s != NAN_EXPONENT
            scale = 2.0 ** (s - fmt.fraction_bits)
            part = [decode_element(code, s, fmt) if fmt.is_float else code * scale for code in codes]
        found.append(part)
    return found


def dot(a: Vector, b: Vector, in_order: bool) -> float:
    """Exactly, or with fp32 products and sums in ascending order."""
    if not in_order:
        return math.fsum(u * v for u, v in zip(a, b, strict=True))
    total = np.float32(0)
    for u, v in zip(a, b, strict=True):
        total = total + np.float32(u) * np.float32(v)
    return float(total)


def to_float32(v: Fraction) -> Any:
    """`v` rounded once, ties to even."""
    near = np.float32(float(v))
    candidates = [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - v), int(c.view(np.uint32)) & 1))


def total(terms: list[float | None], accumulator: str, order: str) -> Any:
    """The sum of `terms`, None for a position outside the image."""
    if accumulator == "exact":
        return to_float32(sum((Fraction(t) for t in terms if t is not None), Fraction(0)))
    count = min(int(order[5:-1]) if order.startswith("tree") else 1, len(terms))
    sums = [np.float32(0)] * count
    for i, t in enumerate(terms):
        sums[i % count] += np.float32(0 if t is None else t)
    while len(sums) > 1:
        sums = [sum(sums[i : i + 2], np.float32(0)) for i in range(0, len(sums), 2)]
    return sums[0]


def convolution(
    x: Any,
    w: Any,
    *,
    format: Any,
    weight_format: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    packing: str,
    accumulator: str,
    order: str,
    rounding: str,
) -> Any:
    """x is (N, C, H, W); `padding` is (top, left, bottom, right), `stride` and `dilation` are pairs."""
    fmts = x_format, w_format = get_format(format), get_format(weight_format)
    in_order = any(f.is_fp32 or f.name.startswith("mxfp8") for f in fmts)
    (n, channels, height, width), (outputs, per_group, kh, kw) = x.shape, w.shape
    (top, left, bottom, right), taps = padding, list(np.ndindex(kh, kw))
    oh, ow = (
        (size + pad - d * (k - 1) - 1) // s + 1
        for size, pad, d, k, s in zip(
            (height, width), (top + bottom, left + right), dilation, (kh, kw), stride, strict=True
        )
    )
    result = np.empty((n, outputs, oh, ow), np.float32)
    for image, o, i, j in np.ndindex(result.shape):
        first = o * groups // outputs * per_group
        filters = np.zeros((channels, kh, kw), np.float32)
        filters[first : first + per_group] = w[o]
        places = [(i * stride[0] - top + a * dilation[0], j * stride[1] - left + b * dilation[1]) for a, b in taps]
        inside = [0 <= r < height and 0 <= c < width for r, c in places]
        pixels = [
            x[image, :, r, c].tolist() if is_in else [0.0] * channels
            for (r, c), is_in in zip(places, inside, strict=True)
        ]
        weights = [filters[:, a, b].tolist() for a, b in taps]
        if packing == "window":
            pixels, weights, inside = [list(itertools.chain(*pixels))], [list(itertools.chain(*weights))], [True]
        of_x = [blocks_of(v, x_format, rounding) for v in pixels]
        of_w = [blocks_of(v, w_format, rounding) for v in weights]
        block = x_format.for_length(channels).block
        own = range(len(of_x[0])) if packing == "window" else range(first // block, -(-(first + per_group) // block))
        steps = list(itertools.product(range(len(of_x)), own))
        if order == "chwk":
            steps = [(tap, b) for b, tap in itertools.product(own, range(len(of_x)))]
        terms = [dot(of_x[tap][b], of_w[tap][b], in_order) if inside[tap] else None for tap, b in steps]
        result[image, o, i, j] = total(terms, accumulator, order)
    return result


@pytest.mark.parametrize("seed", range(30))
def test_conv2d_is_the_convolution_of_quantized_blocks(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def choose(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    formats = [*CATALOGUE.values(), *OWN, *OWN]
    fmt = formats[rng.integers(len(formats))]
    groups = choose(1, 1, 2, 3)
    channels, outputs = groups * choose(3, 8, 17), groups * int(rng.integers(1, 3))
    arguments = {
        "format": fmt,
        "weight_format": choose(*(f for f in formats if f.block == fmt.block)),
        "stride": choose((1, 1), (2, 2), (2, 1)),
        "padding": choose((0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 1)),
        "dilation": choose((1, 1), (1, 2)),
        "groups": groups,
        "packing": choose("channel", "window") if groups == 1 else "channel",
        "accumulator": choose("fp32", "exact"),
        "order": choose("khwc", "chwk", "tree(3)"),
        "rounding": choose("even", "nearest", "floor"),
    }
    x = rng.standard_normal((choose(1, 2), channels, 4, 5)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = 0
    w = rng.standard_normal((outputs, channels // groups, choose(1, 2, 3), choose(1, 3))).astype(np.float32)
    expected = convolution(x, w, **arguments)
    assert (fs.conv2d(x, w, **arguments, threads=choose(1, 2)) == expected).all()
    last = fs.conv2d(np.moveaxis(x, 1, 3), w, **arguments, layout="NHWC")
    assert (np.moveaxis(last, 3, 1) == expected).all()
