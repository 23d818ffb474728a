"""The scalar rules: hand-worked blocks, known random bits, and the array definition says the same."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fpgasim.errors import UnknownNameError
from fpgasim.numerics import CATALOGUE, NAN_EXPONENT, ROUNDINGS, BlockFormat, get_rounding
from fpgasim.numerics.scalar import decode_element, quantize_block, random_bits, round_to_float32

FORMATS = [f for f in CATALOGUE.values() if not f.is_fp32]
Quantize = Callable[..., Any]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_the_array_definition_is_the_scalar_one(
    fmt: BlockFormat, rounding: Any, quantize: Quantize, blocks: Any
) -> None:
    small = fmt.with_block(4)  # blocks of four and a tail

    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(blocks, st.integers(0, 2**64 - 1))
    def check(values: list[float], seed: int) -> None:
        tensor = quantize([values, values[::-1]], small, rounding, seed)
        for row, x in enumerate((values, values[::-1])):
            for block, first in enumerate(range(0, len(x), 4)):
                codes, s = quantize_block(x[first : first + 4], small, rounding, seed, row * len(x) + first)
                assert tensor.exponents[row, block] == s
                assert tensor.codes[row, first : first + 4].tolist() == codes

    check()


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_whole_blocks_of_the_format_are_quantized_alike(fmt: BlockFormat, quantize: Quantize) -> None:
    x = np.random.default_rng(1).standard_normal((2, fmt.block + 3)).astype(np.float32)
    tensor = quantize(x, fmt)
    for row in range(2):
        codes, s = quantize_block(x[row, : fmt.block].tolist(), fmt)
        assert (tensor.codes[row, : fmt.block].tolist(), tensor.exponents[row, 0]) == (codes, s)


def test_msfp12_has_three_magnitude_bits_under_the_largest_exponent() -> None:
    # S = 0, one step is 2^-2: 1.0 = 4 steps, 0.3 = 1.2 steps, 1.99 would be 8 steps and saturates at 7.
    assert quantize_block([1.0, 0.5, 0.3, -0.25], CATALOGUE["msfp12"]) == ([4, 2, 1, -1], 0)
    assert quantize_block([1.99, -1.99, 0.125, 0.375], CATALOGUE["msfp12"]) == ([7, -7, 0, 2], 0)


def test_a_five_bit_exponent_underflows_and_saturates() -> None:
    fmt = CATALOGUE["bw_1s5e2m"]  # S from -15 (code 0) to 16 (code 31), one step is 2^(S - 1)
    assert quantize_block([2.0**-15, 2.0**-16, 2.0**-17, 3 * 2.0**-17], fmt) == ([2, 1, 0, 2], -15)
    assert quantize_block([2.0**-18, -(2.0**-16)], fmt) == ([0, -1], -15)
    assert quantize_block([2.0**20, -(2.0**15), 2.0**14], fmt) == ([3, -1, 0], 16)
    assert decode_element(3, 16, fmt) == 98304.0


def test_an_eight_bit_exponent_keeps_tiny_blocks() -> None:
    fmt = CATALOGUE["mxint8"]  # one step is 2^(S - 6)
    assert quantize_block([1.0, -1.999, 2.0**-7, 3 * 2.0**-7], fmt) == ([64, -127, 0, 2], 0)
    assert quantize_block([2.0**-127, 2.0**-140], fmt) == ([64, 0], -127)
    assert quantize_block([2.0**-149], fmt) == ([0], -127)
    assert decode_element(1, -127, fmt) == 2.0**-133


def test_mxfp4_rounds_ties_to_the_even_code_and_saturates_at_six() -> None:
    # The values are 0, 0.5, 1, 1.5, 2, 3, 4, 6: codes 0 to 7; S = 0 because the largest exponent is 2.
    assert quantize_block([6.0, 5.0, 2.5, 0.25, -1.0, 7.9], CATALOGUE["mxfp4_e2m1"]) == ([7, 6, 4, 0, 0b1010, 7], 0)
    assert quantize_block([-0.0, 4.0], CATALOGUE["mxfp4_e2m1"]) == ([0b1000, 6], 0)


def test_the_roundings_differ_where_they_should() -> None:
    fmt = CATALOGUE["msfp12"]
    x = [1.0, 0.375, -0.375, 0.125, 0.49]  # 4, 1.5, -1.5, 0.5 and 1.96 steps
    assert quantize_block(x, fmt, "even")[0] == [4, 2, -2, 0, 2]
    assert quantize_block(x, fmt, "nearest")[0] == [4, 2, -2, 1, 2]
    assert quantize_block(x, fmt, "floor")[0] == [4, 1, -1, 0, 1]


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_infinities_and_nans_make_the_block_nan(fmt: BlockFormat) -> None:
    for bad in (math.inf, -math.inf, math.nan):
        assert quantize_block([1.0, bad], fmt) == ([0, 0], NAN_EXPONENT)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_a_block_of_zeros_is_zero(fmt: BlockFormat) -> None:
    codes, s = quantize_block([0.0, 0.0], fmt)
    assert codes == [0, 0]
    assert fmt.exponent_range[0] <= s < 0


def test_the_random_bits_are_splitmix64() -> None:
    # The published generator's first outputs for these seeds, upper half.
    assert random_bits(0, 0) == 0xE220A8397B1DCDAF >> 32
    assert [random_bits(1234567, i) for i in range(2)] == [6457827717110365317 >> 32, 3203168211198807973 >> 32]


def test_stochastic_rounding_is_fair_and_seeded(quantize: Quantize) -> None:
    fmt = CATALOGUE["msfp12"]
    x = np.tile(np.array([1.0, 0.3, -0.6, 0.01], np.float32), (4000, 1))
    first = quantize(x, fmt, "stochastic", 5).dequantize()
    assert (first == quantize(x, fmt, "stochastic", 5).dequantize()).all()
    assert (first != quantize(x, fmt, "stochastic", 6).dequantize()).any()
    assert np.abs(first.mean(axis=0) - x[0]).max() < 5 * 0.125 / math.sqrt(4000)


@pytest.mark.parametrize(("alias", "name"), [("away", "nearest"), ("truncate", "floor"), *((r, r) for r in ROUNDINGS)])
def test_roundings_have_aliases(alias: str, name: str) -> None:
    assert get_rounding(alias) == name


def test_an_unknown_rounding_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"no rounding 'up'; there are even, nearest, floor, stochastic"):
        get_rounding("up")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.integers(-(2**90), 2**90), st.integers(-260, 60))
def test_round_to_float32_takes_the_nearest_float(digits: int, exponent: int) -> None:
    exact, result = Fraction(digits) * Fraction(2) ** exponent, round_to_float32(digits, exponent)
    if math.isinf(result):
        assert abs(exact) >= Fraction(2) ** 128 - Fraction(2) ** 103
        return
    x = np.float32(result)
    assert float(x) == result
    below, above = (np.nextafter(x, np.float32(to)) for to in (-np.inf, np.inf))
    error = abs(exact - Fraction(result))
    for other in (below, above):
        if np.isfinite(other):
            distance = abs(exact - Fraction(float(other)))
            assert error < distance or (error == distance and not x.view(np.uint32) & 1)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(-(2**53), 2**53), st.integers(-220, 80))
def test_round_to_float32_is_numpy_where_a_double_holds_the_number(digits: int, exponent: int) -> None:
    with np.errstate(over="ignore", under="ignore"):
        assert round_to_float32(digits, exponent) == np.float32(math.ldexp(digits, exponent))
