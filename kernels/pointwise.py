"""The pointwise unit: rounding to its type, activations and pools on float32 arrays. One definition for all backends.

Values of the type `fp16`, `bf16` or `fp32` are kept in float32. Every operation rounds once to the type, to nearest,
ties to even. Adding two fp16 or bf16 values in float32 first and rounding then is one rounding: float32 has more than
twice their precision plus two bits (Figueroa, 1995).
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from fpgasim.kernels.contract import Array, Float32Array, Pointwise, Window

FP16_MAX = 65504.0
#: fp16 values from here on round to infinity in IEEE 754; the device saturates them.
FP16_OVERFLOW = 65520.0


def round_to(x: Array, pointwise: Pointwise) -> Float32Array:
    """`x` (float32 or float64) rounded once to `pointwise`.

    fp16 saturates to ±65504, bf16 and fp32 overflow to infinity; NaN stays NaN; subnormals are kept.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if pointwise == "fp16":
            return np.clip(x, -FP16_MAX, FP16_MAX).astype(np.float16).astype(np.float32)
        if pointwise == "fp32":
            return x.astype(np.float32, copy=False)
        if x.dtype == np.float64:  # not by way of float32: two roundings can differ from one
            unit = np.ldexp(1.0, np.maximum(np.frexp(x)[1] - 1, -126) - 7)
            return np.where(np.isfinite(x), np.rint(x / unit) * unit, x).astype(np.float32)
        bits = x.view(np.uint32)
        rounded = (bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))) & np.uint32(0xFFFF0000)
        return np.where(np.isnan(x), np.float32(np.nan), rounded.view(np.float32))


def count_overflows(x: Array, pointwise: Pointwise) -> int:
    """How many elements of `x` saturate in `round_to`; only fp16 saturates."""
    return int(np.count_nonzero(np.abs(x) >= FP16_OVERFLOW)) if pointwise == "fp16" else 0


def count_at_limit(x: Float32Array, pointwise: Pointwise) -> int:
    """How many elements of `x` lie at ±65504, where fp16 saturates."""
    if pointwise != "fp16" or (x.max(initial=0) < FP16_MAX and x.min(initial=0) > -FP16_MAX):
        return 0
    return int(np.count_nonzero(np.abs(x) == FP16_MAX))


def add(a: Float32Array, b: Float32Array, pointwise: Pointwise) -> Float32Array:
    """r(a + b); both broadcast."""
    with np.errstate(over="ignore", invalid="ignore"):
        return round_to(a + b, pointwise)


def mul(a: Float32Array, b: Float32Array, pointwise: Pointwise) -> Float32Array:
    """r(a·b); both broadcast."""
    if pointwise == "bf16":  # a bf16 product can lie below float32's range and must still round once
        return round_to(a.astype(np.float64) * b, pointwise)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return round_to(a * b, pointwise)


def relu(x: Float32Array) -> Float32Array:
    """max(x, 0), with relu(−0) = +0; NaN stays NaN."""
    return np.where(x > 0, x, np.where(np.isnan(x), x, np.float32(0.0)))


def clip(x: Float32Array, low: float, high: float) -> Float32Array:
    """min(max(x, low), high); a zero result is +0, NaN stays NaN. The bounds are values of the pointwise type."""
    return np.clip(x, np.float32(low), np.float32(high)) + np.float32(0.0)


def sigmoid(x: Float32Array, pointwise: Pointwise) -> Float32Array:
    """1 / (1 + e^−x), correctly rounded for fp16 and bf16; for fp32 rounded once from float64."""
    return _by_table("sigmoid", x, pointwise)


def tanh(x: Float32Array, pointwise: Pointwise) -> Float32Array:
    """tanh x, correctly rounded for fp16 and bf16; for fp32 rounded once from float64."""
    return _by_table("tanh", x, pointwise)


def _by_table(function: str, x: Float32Array, pointwise: Pointwise) -> Float32Array:
    if pointwise == "fp32":
        return _FUNCTIONS[function](x.astype(np.float64)).astype(np.float32)
    codes = x.astype(np.float16).view(np.uint16) if pointwise == "fp16" else (x.view(np.uint32) >> np.uint32(16))
    return table(function, pointwise)[codes]


@functools.cache
def table(function: str, pointwise: Pointwise) -> Float32Array:
    """`sigmoid` or `tanh` for each of the 65,536 codes of fp16 or bf16."""
    codes = np.arange(1 << 16, dtype=np.uint32)
    values = (
        codes.astype(np.uint16).view(np.float16) if pointwise == "fp16" else (codes << np.uint32(16)).view(np.float32)
    )
    with np.errstate(invalid="ignore", under="ignore"):
        return round_to(_FUNCTIONS[function](values.astype(np.float64)), pointwise)


def _exp(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """e^x for x <= 0 from IEEE operations alone, so that every machine computes the same bits.

    x = k·ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts, Cody and Waite 1980), Taylor to r^17.
    """
    x = np.maximum(x, -745.0)
    k = np.rint(x * 1.4426950408889634)
    r = (x - k * 0.6931471803691238) - k * 1.9082149292705877e-10
    result = np.ones_like(r)
    for n in range(17, 0, -1):
        result = 1.0 + r * result / n
    return np.ldexp(result, np.where(np.isnan(k), 0, k).astype(np.int32))


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    small = _exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small) + np.where(np.isnan(x), x, 0.0)


def _tanh(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(1 − e^−2|x|) / (1 + e^−2|x|); by its odd series near 0, where that difference would cancel."""
    small = _exp(-2.0 * np.abs(x))
    far = np.copysign((1.0 - small) / (1.0 + small), x)
    z = np.minimum(x * x, 1.0)  # where the series is not used it need not overflow
    near = np.zeros_like(x)
    for coefficient in _TANH_SERIES[::-1]:
        near = near * z + coefficient
    return np.where(np.abs(x) < 0.125, near * x, far)


def _tanh_series(terms: int) -> list[float]:
    """Taylor coefficients of tanh: (2^2n (2^2n − 1) B_2n / (2n)!), by the recurrence of y' = 1 − y²."""
    a = [1.0]
    for n in range(1, terms):
        a.append(-sum(a[i] * a[n - 1 - i] for i in range(n)) / (2 * n + 1))
    return a


_TANH_SERIES = _tanh_series(10)
_FUNCTIONS = {"sigmoid": _sigmoid, "tanh": _tanh}


def max_pool(x: Float32Array, window: Window) -> Float32Array:
    """The largest value under each window of `x` (N, H, W, C), padding ignored; NaN wins, a zero is +0."""
    result: Float32Array | None = None
    for tap, inside in _taps(x, window):
        tap = np.where(inside, tap, np.float32(-np.inf))
        result = tap if result is None else np.maximum(result, tap)
    assert result is not None
    with np.errstate(invalid="ignore"):  # a signaling NaN
        return result + np.float32(0.0)


def average_pool(x: Float32Array, window: Window, pointwise: Pointwise, count_padding: bool = False) -> Float32Array:
    """The mean under each window of `x` (N, H, W, C): adds in row-major order, each rounded, then × r(1/count).

    `count` is the number of positions inside the image, or with `count_padding` inside the padded image.
    """
    oh, ow = window.output_size(x.shape[1], x.shape[2])
    acc = np.zeros((x.shape[0], oh, ow, x.shape[3]), np.float32)
    count = np.zeros((oh, ow, 1))
    for tap, inside in _taps(x, window):
        acc = np.where(inside, add(acc, tap, pointwise), acc)
        count += 1.0 if count_padding else inside
    return mul(acc, round_to(1.0 / np.maximum(count, 1.0), pointwise), pointwise)


def global_average(x: Float32Array, pointwise: Pointwise) -> Float32Array:
    """The mean (N, 1, 1, C) over the image of `x` (N, H, W, C); rounded as `average_pool`."""
    return average_pool(x, Window((x.shape[1], x.shape[2])), pointwise)


def _taps(x: Float32Array, window: Window) -> list[tuple[Float32Array, Array]]:
    """For each window position in row-major order the value under it for each output, and whether it is inside."""
    height, width = x.shape[1:3]
    oh, ow = window.output_size(height, width)
    rows = np.arange(oh) * window.stride[0] - window.pads[0]
    columns = np.arange(ow) * window.stride[1] - window.pads[1]
    taps = []
    for kh in range(window.kernel[0]):
        for kw in range(window.kernel[1]):
            r, c = rows + kh * window.dilation[0], columns + kw * window.dilation[1]
            inside = ((r >= 0) & (r < height))[:, None] & ((c >= 0) & (c < width))
            tap = x[:, np.clip(r, 0, height - 1)][:, :, np.clip(c, 0, width - 1)]
            taps.append((tap, inside[..., None]))
    return taps


def unfold(x: Float32Array, window: Window) -> Float32Array:
    """The windows of `x` (N, H, W, C) laid out as (N, OH, OW, KH·KW·C) in (kh, kw, c) order, zero outside the image."""
    return np.concatenate([np.where(inside, tap, np.float32(0.0)) for tap, inside in _taps(x, window)], axis=-1)
