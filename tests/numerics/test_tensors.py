"""Tensors of blocks: what quantization keeps, and the dense packing."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import fpgasim as fs
from fpgasim.errors import FormatError, InputError
from fpgasim.numerics import CATALOGUE, NAN_EXPONENT, ROUNDINGS, WHOLE, BlockFormat, BlockTensor
from fpgasim.numerics.scalar import largest_code

Quantize = Callable[..., Any]
FORMATS = [f for f in CATALOGUE.values() if not f.is_fp32]
each_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
few = settings(max_examples=15, deadline=None, derandomize=True, database=None)


@each_format
def test_quantizing_again_changes_no_value(fmt: BlockFormat, quantize: Quantize, blocks: Any) -> None:
    @few
    @given(blocks)
    def check(values: list[float]) -> None:
        for rounding in ROUNDINGS:
            once = quantize([values], fmt.with_block(4), rounding).dequantize()
            again = quantize(once, fmt.with_block(4), rounding).dequantize()
            assert np.array_equal(once, again, equal_nan=True)

    check()


@each_format
def test_quantization_keeps_the_order_and_mirrors_the_sign(fmt: BlockFormat, quantize: Quantize, blocks: Any) -> None:
    @few
    @given(blocks)
    def check(values: list[float]) -> None:
        x = np.sort(np.array([[v for v in values if np.isfinite(v)]], np.float32))
        whole = fmt.with_block(16)
        for rounding in ROUNDINGS[:-1]:
            y = quantize(x, whole, rounding).dequantize()
            if not np.isnan(y).any():
                assert (np.diff(y) >= 0).all()
            assert np.array_equal(quantize(-x, whole, rounding).dequantize(), -y, equal_nan=True)

    check()


@each_format
def test_the_error_is_at_most_half_a_step(fmt: BlockFormat, quantize: Quantize) -> None:
    x = np.random.default_rng(4).standard_normal((20, fmt.block)).astype(np.float32)
    tensor = quantize(x, fmt)
    bits = fmt.mantissa_bits if fmt.is_float else fmt.mantissa_bits - 1
    largest = np.abs(x).max(axis=1, keepdims=True)
    step = 2.0 ** (np.floor(np.log2(largest)) - bits)
    error = np.abs(tensor.dequantize() - x)
    unsaturated = np.abs(x) <= np.abs(tensor.dequantize()).max(axis=1, keepdims=True)
    assert (error <= step / 2)[unsaturated].all()
    assert (error <= step).all() or fmt.is_float


@each_format
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_packing_and_unpacking_returns_the_tensor(fmt: BlockFormat, axis: int) -> None:
    rng = np.random.default_rng(axis)
    shape, blocks = [3, 5, 2], [3, 5, 2]
    shape[axis] = 11
    small = fmt.with_block(4)
    blocks[axis] = 3
    low, high = small.exponent_range
    exponents = rng.integers(low, high, blocks, endpoint=True).astype(np.int16)
    if small.exponent_bits == 8:
        exponents.flat[1] = NAN_EXPONENT
    if small.is_float:
        sign = rng.integers(0, 2, shape) << small.element_bits - 1
        codes = (rng.integers(0, largest_code(small), shape, endpoint=True) | sign).astype(np.uint8)
    else:
        kind = np.int8 if small.mantissa_bits <= 7 else np.int16
        codes = rng.integers(-small.max_code, small.max_code, shape, endpoint=True).astype(kind)
    tensor = BlockTensor(codes, exponents, small, axis)
    data = tensor.pack()
    rows = 30 // (3, 5, 2)[axis]
    assert len(data) == -(-rows * 3 * (small.exponent_bits + 4 * small.element_bits) // 8)
    back = BlockTensor.unpack(data, small, tuple(shape), axis)
    assert back.codes.dtype == codes.dtype
    assert (back.codes == codes).all()
    assert (back.exponents == exponents).all()
    assert back.axis == axis
    assert np.array_equal(back.dequantize(), tensor.dequantize(), equal_nan=True)


def test_the_packed_bits_are_exponent_then_elements_low_bit_first() -> None:
    x = np.array([[4, -1]], np.int8)
    tensor = BlockTensor(x, np.zeros((1, 1), np.int16), CATALOGUE["msfp12"].with_block(2), 1)
    assert tensor.pack() == bytes([127, 0b1001_0100])  # sign and magnitude
    agx = BlockTensor(x, np.zeros((1, 1), np.int16), CATALOGUE["fp12agx"].with_block(2), 1)
    assert int.from_bytes(agx.pack(), "little") == 15 | 4 << 5 | 0xFF << 13  # two's complement


def test_fp32_packs_as_little_endian_floats() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3) - 2
    tensor = BlockTensor(x, np.zeros((2, 3), np.int16), CATALOGUE["fp32"], 1)
    assert tensor.pack() == x.astype("<f4").tobytes()
    assert (BlockTensor.unpack(tensor.pack(), "fp32", (2, 3)).dequantize() == x).all()


def test_nan_blocks_pack_with_eight_bits_and_not_with_five(quantize: Quantize) -> None:
    x = np.array([[1.0, np.inf]], np.float32)
    wide = quantize(x, CATALOGUE["msfp16"].with_block(2))
    assert wide.pack()[0] == 255
    assert np.isnan(BlockTensor.unpack(wide.pack(), wide.format, (1, 2)).dequantize()).all()
    with pytest.raises(FormatError, match="1 NaN blocks cannot be packed: the 5-bit exponent of fp11_intel"):
        quantize(x, CATALOGUE["fp11_intel"].with_block(2)).pack()


def test_unpacking_the_wrong_number_of_bytes_says_the_right_one() -> None:
    with pytest.raises(InputError, match=r"3 bytes do not hold a msfp12 tensor of shape \(1, 16\); 9 would"):
        BlockTensor.unpack(b"abc", "msfp12", (1, 16))


def test_unpacking_a_mantissa_that_is_never_made_is_refused() -> None:
    fmt = CATALOGUE["fp12agx"].with_block(1)
    with pytest.raises(FormatError, match="mantissa -128 is not one of fp12agx"):
        BlockTensor.unpack((15 | 0x80 << 5).to_bytes(2, "little"), fmt, (1, 1))


def test_exponents_that_do_not_fit_the_codes_are_refused() -> None:
    with pytest.raises(InputError, match=r"exponents of shape \(1, 1\) do not fit; \(1, 2\) would"):
        BlockTensor(np.zeros((1, 17), np.int8), np.zeros((1, 1), np.int16), CATALOGUE["msfp12"], 1)


@each_format
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_whole_vector_is_one_block_in_memory_and_packed(fmt: BlockFormat, axis: int) -> None:
    @few
    @given(st.integers(1, 70), st.integers(0, 2**32))
    def check(n: int, seed: int) -> None:
        shape = [2, 3, 4]
        shape[axis] = n
        x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        tensor, known = fs.quantize(x, fmt.with_block(WHOLE), axis), fs.quantize(x, fmt.with_block(n), axis)
        assert tensor.exponents.shape[axis] == 1
        assert (tensor.codes == known.codes).all()
        assert (tensor.exponents == known.exponents).all()
        assert tensor.pack() == known.pack()
        back = BlockTensor.unpack(tensor.pack(), fmt.with_block(WHOLE), tuple(shape), axis)
        assert (back.dequantize() == tensor.dequantize()).all()

    check()


def test_a_tensor_of_ones_own_with_whole_blocks_has_the_length_of_its_axis() -> None:
    whole = CATALOGUE["msfp12"].with_block(WHOLE)
    assert BlockTensor(np.ones((2, 5), np.int8), np.zeros((2, 1), np.int16), whole, 1).format.block == 5
    with pytest.raises(InputError, match=r"exponents of shape \(2, 5\) do not fit; \(2, 1\) would"):
        BlockTensor(np.ones((2, 5), np.int8), np.zeros((2, 5), np.int16), whole, 1)


GOOD = {"codes": np.ones((2, 20), np.int8), "exponents": np.zeros((2, 2), np.int16), "format": "msfp12", "axis": 1}
SMALL = {"codes": np.ones((2, 20), np.uint8), "exponents": np.zeros((2, 1), np.int16), "format": "mxfp4_e2m1"}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"exponents": np.zeros((2, 2), np.int8)}, InputError, "exponents of msfp12 have dtype int8; int16 would do"),
        ({"exponents": np.zeros((2, 2), np.int64)}, InputError, "exponents of msfp12 have dtype int64"),
        ({"exponents": np.zeros((2, 2))}, InputError, "exponents of msfp12 have dtype float64"),
        ({"exponents": np.zeros((2, 2), ">i2")}, InputError, "exponents of msfp12 have dtype >i2"),
        ({"exponents": [[0, 0]] * 2}, InputError, "exponents of msfp12 have dtype list"),
        ({"exponents": np.full((2, 2), 129, np.int16)}, FormatError, "exponent 129 is not one of msfp12; -127 to 127"),
        ({"exponents": np.full((2, 2), -128, np.int16)}, FormatError, "exponent -128 is not one of msfp12"),
        (
            {"format": CATALOGUE["fp11_intel"], "exponents": np.full((2, 2), 17, np.int16)},
            FormatError,
            "exponent 17 is not one of fp11_intel; -15 to 16 would do",
        ),
        ({"codes": np.ones((2, 20), np.uint8)}, InputError, "codes of msfp12 have dtype uint8; int8 would do"),
        ({"codes": np.ones((2, 20), np.int16)}, InputError, "codes of msfp12 have dtype int16"),
        ({"codes": np.full((2, 20), 8, np.int8)}, FormatError, "code 8 is not one of msfp12; -7 to 7 would do"),
        ({"codes": np.full((2, 20), -8, np.int8)}, FormatError, "code -8 is not one of msfp12"),
        (SMALL | {"codes": np.full((2, 20), 200, np.uint8)}, FormatError, "code 200 is not one of mxfp4_e2m1; 0 to 7"),
        ({"codes": np.int8(1)}, InputError, "codes is a scalar"),
        ({"axis": 9}, InputError, r"axis=9 is not an axis of codes with shape (2, 20); -2 to 1 are"),
        ({"axis": 1.0}, InputError, "axis=1.0 is not an axis"),
        ({"format": "msfp99"}, InputError, "no format 'msfp99'"),
    ],
)
def test_a_tensor_of_ones_own_is_checked(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = GOOD | wrong
    with pytest.raises(error, match=re.escape(message)):
        BlockTensor(**arguments)


def test_a_tensor_of_ones_own_may_hold_whatever_its_format_has() -> None:
    exponents = np.array([[-127, 127], [NAN_EXPONENT, 0]], np.int16)
    for code in (-7, 7):
        tensor = BlockTensor(np.full((2, 20), code, np.int8), exponents, "msfp12", -1)  # type: ignore[arg-type]
        assert tensor.format is CATALOGUE["msfp12"]
    assert BlockTensor(np.full((2, 20), 15, np.uint8), exponents[:, :1], CATALOGUE["mxfp4_e2m1"], 1).shape == (2, 20)


CUT = BlockFormat("cut", 5, 8, 32, element_exponent_bits=2, element_max=3.5)


@pytest.mark.parametrize(
    ("fmt", "largest"),
    [(CATALOGUE["mxfp8_e4m3"], 0x7E), (CATALOGUE["mxfp8_e5m2"], 0x7B), (CATALOGUE["mxfp6_e2m3"], 0x1F), (CUT, 0x58)],
    ids=lambda v: getattr(v, "name", v),
)
def test_bit_patterns_of_no_number_are_refused(fmt: BlockFormat, largest: int) -> None:
    sign, exponents = 1 << fmt.element_bits - 1, np.zeros((1, 1), np.int16)
    for code in range(256):
        codes = np.zeros((1, 20), np.uint8)
        codes[0, 7] = code
        if code & ~sign <= largest:
            value = BlockTensor(codes, exponents, fmt, 1).dequantize()[0, 7]
            assert abs(value) <= fmt.element_max
            continue
        message = f"code {code} is not one of {fmt.name}; 0 to {largest} and {sign} to {sign + largest} would do"
        with pytest.raises(FormatError, match=message):
            BlockTensor(codes, exponents, fmt, 1)
        if code < 2 * sign:
            data = (127 | code << 8).to_bytes(2, "little")
            with pytest.raises(FormatError, match=message):
                BlockTensor.unpack(data[: -(-(8 + fmt.element_bits) // 8)], fmt.with_block(1), (1, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((b"", "msfp12", ()), "the tensor is a scalar"),
        ((b"", "msfp12", (-2, -20)), "shape=(-2, -20) is no shape; whole numbers from 0 up would do"),
        ((b"", "msfp12", 3), "shape=3 is no shape"),
        ((b"abc", "msfp12", (1, 16), 2), "axis=2 is not an axis of the tensor with shape (1, 16)"),
        (("abc", "msfp12", (1, 16)), "data is of type str; bytes would do"),
    ],
)
def test_unpacking_names_the_argument_that_does_not_fit(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        BlockTensor.unpack(*arguments)
