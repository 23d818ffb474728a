"""The catalogue and formats of one's own."""

from typing import Any

import pytest

from fpgasim.errors import FormatError, UnknownNameError
from fpgasim.numerics import CATALOGUE, WHOLE, BlockFormat, get_format

BITS_PER_ELEMENT = {
    # NeurIPS 2020: the average bits of MSFP-N are N − 8 plus a half for the exponent shared by sixteen.
    **{f"msfp{n}": n - 8 + 0.5 for n in range(11, 17)},
    "bw_1s5e2m": 3 + 5 / 128,
    "bw_1s5e3m": 4 + 5 / 128,
    "bw_1s5e5m": 6 + 5 / 128,
    # OCP MX v1.0, table 1, and 8 bits of scale shared by 32.
    "mxint8": 8.25,
    "mxfp8_e5m2": 8.25,
    "mxfp8_e4m3": 8.25,
    "mxfp6_e3m2": 6.25,
    "mxfp6_e2m3": 6.25,
    "mxfp4_e2m1": 4.25,
    "fp11_intel": 7 + 5 / 16,
    "fp12agx": 8 + 5 / 16,
    "fp13agx": 9 + 5 / 16,
    "fp16_bfp": 12 + 5 / 16,
    "fp32": 32.0,
}


def test_the_catalogue_has_every_format_with_its_storage() -> None:
    assert {name: f.bits_per_element for name, f in CATALOGUE.items()} == BITS_PER_ELEMENT


@pytest.mark.parametrize(
    ("name", "emax", "emin"),
    [("e5m2", 15, -14), ("e4m3", 8, -6), ("e3m2", 4, -2), ("e2m3", 2, 0), ("e2m1", 2, 0)],
)
def test_element_exponents_are_those_of_the_ocp_table(name: str, emax: int, emin: int) -> None:
    fmt = next(f for f in CATALOGUE.values() if f.name.endswith(name))
    assert (fmt.element_emax, fmt.element_emin) == (emax, emin)


def test_a_format_is_found_by_name_or_is_one_already() -> None:
    mine = BlockFormat("mine", mantissa_bits=4, exponent_bits=8, block=24)
    assert get_format("msfp12") is CATALOGUE["msfp12"]
    assert get_format(mine) is mine
    assert mine.with_block(7) == BlockFormat("mine", 4, 8, 7)
    assert (mine.max_code, mine.fraction_bits, mine.element_bits) == (15, 3, 5)


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="no format 'int3'; there are msfp11, msfp12"):
        get_format("int3")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mantissa_bits", 0),
        ("mantissa_bits", 16),
        ("exponent_bits", 7),
        ("block", -1),
        ("block", 65537),
        ("block", 16.0),
        ("mantissa_bits", "4"),
        ("encoding", "ones_complement"),
    ],
)
def test_a_bad_field_of_an_integer_format_is_named(field: str, value: Any) -> None:
    fields = {"mantissa_bits": 4, "exponent_bits": 8, "block": 16, field: value}
    with pytest.raises(FormatError, match=f"format 'bad': {field}={value} must be"):
        BlockFormat("bad", **fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("element_exponent_bits", 1),
        ("element_exponent_bits", 6),
        ("mantissa_bits", 4),
        ("element_max", 0.0),
        ("element_max", 481.0),
        ("element_max", 439.0),
        ("element_max", "x"),
        ("exponent_bits", 5),
    ],
)
def test_a_bad_field_of_a_float_format_is_named(field: str, value: Any) -> None:
    fields = {"mantissa_bits": 3, "exponent_bits": 8, "block": 32, "element_exponent_bits": 4, "element_max": 448.0}
    with pytest.raises(FormatError, match=f"format 'bad': {field}={value} must be"):
        BlockFormat("bad", **(fields | {field: value}))


def test_fp32_has_no_blocks() -> None:
    with pytest.raises(FormatError, match="format 'fp32': block=16 must be 1 for fp32"):
        CATALOGUE["fp32"].with_block(16)


def test_a_block_may_be_a_whole_vector() -> None:
    whole = CATALOGUE["msfp16"].with_block(WHOLE)
    assert whole.bits_per_element == 8
    assert whole.for_length(37) == CATALOGUE["msfp16"].with_block(37)
    assert whole.for_length(0).block == 1
    assert CATALOGUE["msfp16"].for_length(37) is CATALOGUE["msfp16"]
    with pytest.raises(FormatError, match="format 'msfp16': block=65537 must be between 1 and 65536, or WHOLE = 0"):
        whole.for_length(65537)
