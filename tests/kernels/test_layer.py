"""A layer is its convolution and then its chain, on every backend, from numbers and from operands."""

import numpy as np
import pytest

from fpgasim.kernels import Window, backend, pointwise as unit
from fpgasim.kernels.contract import Step, Unquantized
from fpgasim.numerics import CATALOGUE

WINDOWS = [Window((1, 1)), Window((3, 3), stride=(2, 1), pads=(1, 1, 1, 1)), Window((7, 9))]


@pytest.mark.parametrize("pointwise", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("fmt", ["msfp16", "mxfp8_e4m3", "mxfp4_e2m1", "fp32"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_layer_is_a_convolution_and_a_chain(kernels, pointwise, fmt, window, numbers, blocked, same_bits):
    fmt = CATALOGUE[fmt]
    rng = np.random.default_rng(0)
    x = numbers(rng, "ordinary", 1, 7, 9, 40)
    w = blocked(numbers(rng, "ordinary", 24, *window.kernel, 40) * np.float32(300), fmt)
    shape = (np.prod(window.output_size(7, 9)), 24)
    bias, residual = (unit.round_to(numbers(rng, "ordinary", *s) * np.float32(6e4), pointwise) for s in ((24,), shape))
    steps = [Step("add", bias), Step("add", residual), Step("relu")]
    for accumulator, threads in (("fp32", 1), ("exact", 3)):
        source = backend("reference").conv2d(blocked(x, fmt), w, window, 1, accumulator, "khwc", 1)
        expected = {i: np.empty(shape, np.float32) for i in (-1, 0, 2)}
        with np.errstate(all="ignore"):
            count = backend("reference").chain(source.reshape(-1, 24), steps, expected, pointwise, True, 1)
        assert (count > 0) == (pointwise == "fp16")
        for operand in (Unquantized(x, fmt), blocked(x, fmt)):
            got = {i: np.full_like(v, np.nan) for i, v in expected.items()}
            args = (operand, w, window, 1, accumulator, "khwc", steps, got, pointwise, threads)
            assert kernels.layer(*args) == (0, count)
            assert all(same_bits(got[i], expected[i]) for i in got)


@pytest.mark.parametrize("pointwise", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("channels", [16, 40, 2100])
def test_steps_and_windows_on_the_way_in_are_those_before_it(kernels, pointwise, channels, numbers, blocked, same_bits):
    fmt, rng = CATALOGUE["msfp16"], np.random.default_rng(0)
    reference = backend("reference")
    spread = unit.round_to(numbers(rng, "ordinary", 2, 6, 7, channels + 24), pointwise)
    scale, shift = (unit.round_to(numbers(rng, "ordinary", channels) * np.float32(s), pointwise) for s in (3, 5e4))
    before = [Step("mul", scale), Step("add", shift), Step("relu"), Step("mul", scale[:1])]
    window = Window((3, 2), stride=(1, 2), pads=(1, 0, 1, 1))
    for values in (spread[..., :channels].copy(), spread[..., :channels]):
        done = np.empty((84, channels), np.float32)
        with np.errstate(all="ignore"):
            count = reference.chain(values.reshape(84, channels), before, {3: done}, pointwise, False, 1)
        rows = done.reshape(values.shape), unit.unfold(values, window)
        sources = [
            (Unquantized(values, fmt, steps=before), rows[0], Window((1, 1)), count),
            (Unquantized(values, fmt, steps=before), rows[0], Window((3, 2), pads=(1, 0, 1, 1)), count),
            (Unquantized(values, fmt, window), rows[1], Window((1, 1)), 0),
        ]
        for source, plain, through, saturated in sources:
            w = blocked(numbers(rng, "ordinary", 5, *through.kernel, plain.shape[3]), fmt)
            expected = reference.conv2d(blocked(plain, fmt), w, through, 1, "fp32", "khwc", 1).reshape(-1, 5)
            for threads in (1, 3):
                got = np.empty_like(expected)
                args = (source, w, through, 1, "fp32", "khwc", [], {-1: got}, pointwise, threads)
                assert kernels.layer(*args)[0] == saturated
                assert same_bits(got, unit.round_to(expected, pointwise))
