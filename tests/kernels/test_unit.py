"""Pools, unfolding and layouts of every backend against `kernels/pointwise.py`."""

from itertools import product

import numpy as np
import pytest

from fpgasim.kernels import Window, backend, pointwise as unit
from fpgasim.kernels.contract import POINTWISE

each_type = pytest.mark.parametrize("pointwise", POINTWISE)
WINDOWS = [
    Window((1, 1)),
    Window((2, 2), stride=(2, 2)),
    Window((3, 3), stride=(2, 1), pads=(1, 0, 1, 2)),
    Window((2, 3), pads=(0, 1, 1, 0), dilation=(2, 1)),
    Window((3, 3), pads=(2, 2, 2, 2), dilation=(1, 2)),
    Window((9, 11)),
]
CASES = list(product(WINDOWS, (3, 32, 37), (1, 3)))


def values(numbers, kind, pointwise, *shape):
    x = unit.round_to(numbers(np.random.default_rng(2), kind, *shape), pointwise)
    x[..., 0, 0, 0] = -0.0
    return x


@each_type
@pytest.mark.parametrize("kind", ["ordinary", "any"])
@pytest.mark.parametrize(("window", "channels", "threads"), CASES, ids=str)
def test_pools_and_unfolding_are_the_definition(
    kernels, pointwise, kind, window, channels, threads, numbers, same_bits
):
    x = values(numbers, kind, pointwise, 2, 9, 11, channels)
    with np.errstate(all="ignore"):
        largest = unit.max_pool(x, window)
        means = {padded: unit.average_pool(x, window, pointwise, padded) for padded in (False, True)}
    assert same_bits(kernels.max_pool(x, window, threads), largest)
    assert same_bits(kernels.unfold(x, window, threads), unit.unfold(x, window))
    longer = np.full((*largest.shape[:3], window.kernel[0] * window.kernel[1] * channels + 5), np.nan, np.float32)
    kernels.unfold(x, window, threads, longer)
    assert same_bits(longer[..., :-5], unit.unfold(x, window))
    assert not longer[..., -5:].any()
    for padded, expected in means.items():
        with np.errstate(all="ignore"):
            assert same_bits(kernels.average_pool(x, window, pointwise, padded, threads), expected)
    out = np.full(largest.shape, np.nan, np.float32)
    assert kernels.max_pool(x, window, threads, out) is out
    assert same_bits(out, largest)


def test_the_largest_of_zeros_is_positive(kernels):
    x = np.full((1, 4, 4, 20), -0.0, np.float32)
    x[:, ::2] = 0.0
    for b in (kernels, backend("reference")):
        assert not np.signbit(b.max_pool(x, Window((2, 2)), 1)).any()
        assert not np.signbit(b.max_pool(-x, Window((1, 1)), 1)).any()


@each_type
@pytest.mark.parametrize("kind", ["ordinary", "any"])
@pytest.mark.parametrize("shape", [(1, 3, 9, 11), (3, 70, 1, 1), (2, 17, 13, 10)])
@pytest.mark.parametrize("threads", [1, 3])
def test_tensors_enter_rounded_and_leave_as_they_are(kernels, pointwise, kind, shape, threads, numbers, same_bits):
    x = numbers(np.random.default_rng(3), kind, *shape)
    with np.errstate(all="ignore"):
        image, saturated = kernels.enter(x, pointwise, threads)
        assert same_bits(image, unit.round_to(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), pointwise))
    assert saturated == unit.count_overflows(x, pointwise)
    out = np.empty_like(x)
    assert kernels.leave(image, threads, out) is out
    assert same_bits(out, np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
