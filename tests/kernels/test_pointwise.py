"""The pointwise unit against NumPy's float16, ml_dtypes' bfloat16 and loops that spell the definition out."""

from collections.abc import Callable
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fpgasim.kernels import Window, pointwise as unit
from fpgasim.kernels.contract import POINTWISE

TYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32}
each_type = pytest.mark.parametrize("pointwise", POINTWISE)
each_half = pytest.mark.parametrize("pointwise", ["fp16", "bf16"])


def every_code(pointwise: str) -> Any:
    return np.arange(1 << 16, dtype=np.uint16).view(TYPES[pointwise]).astype(np.float32)


def cast(x: Any, pointwise: Any) -> Any:
    """`x` in the type by NumPy or ml_dtypes; fp16 saturates."""
    with np.errstate(all="ignore"):
        if pointwise == "fp16":
            x = np.clip(x, -65504.0, 65504.0)
        return np.asarray(x).astype(TYPES[pointwise]).astype(np.float32)


@each_type
@pytest.mark.parametrize("kind", ["ordinary", "spread", "any", "tiny"])
def test_rounding_float32_is_the_cast(pointwise: Any, kind: str, numbers: Any, same_bits: Any) -> None:
    x = numbers(np.random.default_rng(0), kind, 20000)
    assert same_bits(unit.round_to(x, pointwise), cast(x, pointwise))


@each_half
def test_rounding_around_every_code_and_every_tie_is_the_cast(pointwise: Any, same_bits: Any) -> None:
    codes = every_code(pointwise)
    codes = np.unique(codes[np.isfinite(codes)])
    ties = (codes[1:].astype(np.float64) + codes[:-1]) / 2
    for x in (codes, ties.astype(np.float32)):
        around = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))])
        assert same_bits(unit.round_to(around, pointwise), cast(around, pointwise))


def test_rounding_a_double_to_bf16_is_one_rounding() -> None:
    x = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 3 * 2.0**-8 - 2.0**-40, 2.0**-134 * (1 + 2.0**-30), -(2.0**-134)])
    assert unit.round_to(x, "bf16").tolist() == [1 + 2.0**-7, 1 + 2.0**-7, 2.0**-133, -0.0]


def test_fp16_saturates_and_counts_it() -> None:
    x = np.array([65504.0, 65519.9, 65520.0, -1e9, np.inf, np.nan], np.float32)
    assert unit.round_to(x, "fp16")[:5].tolist() == [65504.0, 65504.0, 65504.0, -65504.0, 65504.0]
    assert np.isnan(unit.round_to(x, "fp16")[5])
    assert unit.count_overflows(x, "fp16") == 3
    assert unit.count_overflows(x, "bf16") == 0


@each_type
@pytest.mark.parametrize(("name", "operation"), [("add", np.add), ("mul", np.multiply)])
def test_sums_and_products_round_once(
    pointwise: Any, name: str, operation: Callable[..., Any], numbers: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(1)
    for kind in ("ordinary", "spread", "tiny"):
        a, b = (unit.round_to(numbers(rng, kind, 20000), pointwise) for _ in range(2))
        exact = operation(a.astype(np.longdouble), b.astype(np.longdouble))  # 64 bits hold both
        expected = exact.astype(np.float32) if pointwise == "fp32" else round_long(exact, pointwise)
        assert same_bits(getattr(unit, name)(a, b, pointwise), expected)


def round_long(x: Any, pointwise: str) -> Any:
    bits, emin = {"fp16": (10, -14), "bf16": (7, -126)}[pointwise]
    step = np.ldexp(np.longdouble(1), np.maximum(np.frexp(x)[1] - 1, emin) - bits)
    rounded = np.rint(x / step) * step
    return (np.clip(rounded, -65504, 65504) if pointwise == "fp16" else rounded).astype(np.float32)


@each_half
@pytest.mark.parametrize(
    ("name", "exact"), [("sigmoid", lambda x: 1 / (1 + np.exp(-x))), ("tanh", np.tanh)], ids=["sigmoid", "tanh"]
)
def test_activation_tables_are_correctly_rounded(pointwise: Any, name: str, exact: Callable[..., Any]) -> None:
    x = every_code(pointwise)
    with np.errstate(over="ignore", invalid="ignore"):
        got = getattr(unit, name)(x, pointwise)
        y = exact(x.astype(np.longdouble))
    assert np.isnan(got[np.isnan(x)]).all()
    x, y, got = x[~np.isnan(x)], y[~np.isnan(x)], got[~np.isnan(x)]
    low, high = (round_long(y * (1 + sign * np.longdouble(1e-15)), pointwise) for sign in (-1, 1))
    clear = low == high  # no rounding boundary is as near as the error of y
    assert clear.mean() > 0.999
    assert (got[clear] == low[clear]).all()
    assert ((got == low) | (got == high)).all()
    assert (np.signbit(got) == (np.signbit(x) if name == "tanh" else False)).all()


@pytest.mark.parametrize(("name", "exact"), [("sigmoid", lambda x: 1 / (1 + np.exp(-x))), ("tanh", np.tanh)])
def test_fp32_activations_are_within_half_a_step(name: str, exact: Callable[..., Any]) -> None:
    x = np.concatenate([np.linspace(-40, 40, 20001), np.geomspace(1e-30, 1, 2001), [0.0]]).astype(np.float32)
    got, y = getattr(unit, name)(x, "fp32"), exact(x.astype(np.longdouble))
    assert (np.abs(got - y) <= np.spacing(np.abs(got)) * np.longdouble(0.5001)).all()


def test_relu_and_clip_make_positive_zeros_and_keep_nan() -> None:
    x = np.array([-1.0, -0.0, 0.0, 2.0, 9.0, np.nan, np.inf], np.float32)
    assert np.array_equal(unit.relu(x), np.array([0, 0, 0, 2, 9, np.nan, np.inf], np.float32), equal_nan=True)
    assert np.array_equal(unit.clip(x, 0.0, 6.0), np.array([0, 0, 0, 2, 6, np.nan, 6], np.float32), equal_nan=True)
    assert not np.signbit(unit.relu(x)[:3]).any()
    assert not np.signbit(unit.clip(x, 0.0, 6.0)[:3]).any()


WINDOWS = [
    Window((2, 2), stride=(2, 2)),
    Window((3, 3), stride=(2, 1), pads=(1, 0, 1, 2)),
    Window((2, 3), pads=(0, 1, 1, 0), dilation=(2, 1)),
]


def window_values(x: Any, window: Window, y: int, z: int) -> list[Any]:
    """The values (C) under the window of output (y, z), None where it hangs over the edge, in row-major order."""
    found = []
    for kh, kw in product(range(window.kernel[0]), range(window.kernel[1])):
        row = y * window.stride[0] + kh * window.dilation[0] - window.pads[0]
        column = z * window.stride[1] + kw * window.dilation[1] - window.pads[1]
        found.append(x[row, column] if 0 <= row < x.shape[0] and 0 <= column < x.shape[1] else None)
    return found


@each_type
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_pools_and_unfolding_follow_their_definitions(
    pointwise: Any, window: Window, numbers: Any, same_bits: Any
) -> None:
    x = unit.round_to(numbers(np.random.default_rng(2), "ordinary", 2, 5, 6, 3), pointwise)
    oh, ow = window.output_size(5, 6)
    largest, means, padded = (
        unit.max_pool(x, window),
        *(unit.average_pool(x, window, pointwise, p) for p in (False, True)),
    )
    columns = unit.unfold(x, window)
    for image, y, z in product(range(2), range(oh), range(ow)):
        under = window_values(x[image], window, y, z)
        inside = [v for v in under if v is not None]
        assert same_bits(largest[image, y, z], np.max(inside, axis=0) + np.float32(0))
        total = np.zeros(3, np.float32)
        for v in inside:
            total = cast(total + v, pointwise)
        for mean, count in ((means, len(inside)), (padded, len(under))):
            weight = cast(np.array([1.0 / count]), pointwise)
            assert same_bits(mean[image, y, z], cast(total.astype(np.float64) * weight, pointwise))
        assert same_bits(
            columns[image, y, z], np.concatenate([np.zeros(3, np.float32) if v is None else v for v in under])
        )


def test_a_nan_wins_in_a_max_pool() -> None:
    x = np.array([1.0, np.nan, 3.0, 2.0], np.float32).reshape(1, 2, 2, 1)
    assert np.isnan(unit.max_pool(x, Window((2, 2)))).all()


def test_the_global_average_of_many_values_is_rounded_at_each_step() -> None:
    x = np.full((1, 60, 60, 1), 1.0, np.float32)
    assert unit.global_average(x, "fp32").item() == pytest.approx(1.0)
    # fp16 stops counting at 2048, and r(1/3600) is 2.7776e-04.
    assert unit.global_average(x, "fp16").item() == float(np.float16(2048 * float(np.float16(1 / 3600))))
