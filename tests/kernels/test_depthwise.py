"""Every backend's depthwise convolution is the reference's, bit for bit, and that one follows the pointwise unit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fpgasim.kernels import Backend, Window, pointwise as unit
from fpgasim.kernels.contract import POINTWISE, Step
from fpgasim.kernels.reference import Reference

WINDOWS = [
    Window((3, 3), pads=(1, 1, 1, 1)),
    Window((2, 3), stride=(2, 1), pads=(0, 2, 3, 0), dilation=(1, 2)),
    Window((1, 1), stride=(2, 2), pads=(3, 3, 3, 3)),  # most outputs see nothing but padding
    Window((1, 2), pads=(2, 1, 0, 6), dilation=(1, 12)),  # none sees both of its columns, some none
    Window((1, 5), stride=(1, 2), pads=(0, 40, 0, 40), dilation=(1, 9)),  # windows far apart
]
each_type = pytest.mark.parametrize("pointwise", POINTWISE)


@each_type
@pytest.mark.parametrize("kind", ["ordinary", "spread", "any", "tiny"])
def test_depthwise_is_the_reference(kernels: Backend, pointwise: Any, kind: str, numbers: Any, same_bits: Any) -> None:
    rng = np.random.default_rng(0)
    for window in WINDOWS:
        for channels, multiplier in ((1, 1), (19, 1), (70, 1), (4, 3)):
            x = unit.round_to(numbers(rng, kind, 2, 5, 9, channels), pointwise)
            w = unit.round_to(numbers(rng, kind, *window.kernel, channels * multiplier), pointwise)
            with np.errstate(over="ignore", invalid="ignore"):
                expected = Reference().depthwise(x, w, window, pointwise, 1)
            for threads in (1, 2):
                assert same_bits(kernels.depthwise(x, w, window, pointwise, threads), expected)


@each_type
@pytest.mark.parametrize(("channels", "multiplier"), [(19, 1), (70, 1), (4, 3), (2100, 1)])
def test_a_chain_follows_and_what_saturates_is_counted(
    kernels: Backend, pointwise: Any, channels: int, multiplier: int, numbers: Any, same_bits: Any
) -> None:
    rng, outputs, window = np.random.default_rng(2), channels * multiplier, WINDOWS[0]
    x = unit.round_to(numbers(rng, "ordinary", 2, 5, 9, channels) * np.float32(100), pointwise)
    w = unit.round_to(numbers(rng, "ordinary", 3, 3, outputs) * np.float32(100), pointwise)
    x[:, :2] = unit.round_to(x[:, :2] * np.float32(0.01), pointwise)  # some tiles saturate and some do not
    bias = unit.round_to(numbers(rng, "ordinary", outputs) * np.float32(4e4), pointwise)
    for steps in ([], [Step("add", bias), Step("relu")]):
        kept = [-1, 0, 1] if steps else [-1]
        expected = {i: np.empty((90, outputs), np.float32) for i in kept}
        with np.errstate(over="ignore", invalid="ignore"):
            count = Reference().bind_depthwise(x, w, window, steps, expected, pointwise, 1)()
        assert (count > 0) == (pointwise == "fp16")
        for threads in (1, 3):
            got = {i: np.full_like(v, np.nan) for i, v in expected.items()}
            work = kernels.bind_depthwise(x, w, window, steps, got, pointwise, threads)
            assert work() == count
            assert all(same_bits(got[i], expected[i]) for i in kept)


def test_depthwise_is_the_reference_for_any_shape_and_any_numbers(
    kernels: Backend, fuzz: settings, numbers: Any, same_bits: Any
) -> None:
    small = st.tuples(st.integers(1, 3), st.integers(1, 3))

    @fuzz
    @given(
        st.sampled_from(POINTWISE),
        st.tuples(st.sampled_from(["ordinary", "spread", "any", "tiny"]), st.integers(0, 2**32)),
        st.tuples(st.integers(1, 2), st.integers(5, 7), st.integers(5, 20), st.integers(1, 80)),
        st.builds(Window, small, small, st.tuples(*[st.integers(0, 3)] * 4), st.tuples(*[st.integers(1, 2)] * 2)),
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
    )
    def check(pointwise: Any, kind: Any, shape: Any, window: Window, more: tuple[int, int]) -> None:
        rng, (multiplier, threads) = np.random.default_rng(kind[1]), more
        x = unit.round_to(numbers(rng, kind[0], *shape), pointwise)
        w = unit.round_to(numbers(rng, kind[0], *window.kernel, shape[-1] * multiplier), pointwise)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = Reference().depthwise(x, w, window, pointwise, 1)
        assert same_bits(kernels.depthwise(x, w, window, pointwise, threads), expected)

    check()


@each_type
def test_products_that_underflow_round_once(kernels: Backend, pointwise: Any, same_bits: Any) -> None:
    exponents = np.arange(-150, 40)
    x = unit.round_to((1 + np.arange(190) % 7 / 8) * 2.0**exponents, pointwise).reshape(1, 1, 1, -1)
    for power in (-90, -60, -30, -12, 0, 10):
        w = np.full((1, 1, 190), unit.round_to(np.array([1.375 * 2.0**power]), pointwise)[0], np.float32)
        expected = Reference().depthwise(x, w, Window((1, 1)), pointwise, 1)
        assert same_bits(kernels.depthwise(x, w, Window((1, 1)), pointwise, 1), expected)


@each_type
def test_the_reference_rounds_each_product_and_each_sum(pointwise: Any, numbers: Any, same_bits: Any) -> None:
    rng = np.random.default_rng(1)
    x = unit.round_to(numbers(rng, "ordinary", 1, 1, 3, 2), pointwise)
    w = unit.round_to(numbers(rng, "ordinary", 1, 3, 2), pointwise)
    acc = unit.mul(x[0, 0, 0], w[0, 0], pointwise)
    for i in (1, 2):
        acc = unit.add(acc, unit.mul(x[0, 0, i], w[0, i], pointwise), pointwise)
    got = Reference().depthwise(x, w, Window((1, 3)), pointwise, 1)
    assert same_bits(got[0, 0, 0], acc)
