"""Small formats over every code and every pair of codes, on every backend; NumPy and ml_dtypes as oracles."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fpgasim.kernels import Backend, Operand, operand, pointwise as unit
from fpgasim.numerics import CATALOGUE, BlockFormat, BlockTensor
from fpgasim.numerics.scalar import largest_code
from fpgasim.numerics.tensors import code_dtype, element_values

SMALL = ("mxfp4_e2m1", "mxfp6_e2m3", "mxfp6_e3m2", "msfp11", "msfp12", "msfp13", "bw_1s5e2m", "bw_1s5e3m", "bw_1s5e5m")
FP16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
BF16 = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
TYPES = {"fp16": (FP16, np.float16), "bf16": (BF16, ml_dtypes.bfloat16)}


def every_code(name: str, s: int) -> BlockTensor:
    """Each code of a format as a row of one block of one element, under the shared exponent `s`."""
    fmt = CATALOGUE[name].with_block(1)
    codes = range(1 << fmt.element_bits) if fmt.is_float else range(-fmt.max_code, fmt.max_code + 1)
    array = np.array(codes).astype(code_dtype(fmt))[:, None]
    return BlockTensor(array, np.full(array.shape, s, np.int16), fmt, 1)


@pytest.mark.parametrize("accumulator", ["fp32", "exact", "fixed(64,40,wrap)"])
@pytest.mark.parametrize("name", SMALL)
def test_the_product_of_any_two_codes_is_that_of_their_values(kernels: Backend, name: str, accumulator: str) -> None:
    for other in SMALL:
        a, b = every_code(name, 3), every_code(other, -5)
        values = a.dequantize().astype(float) * b.dequantize().astype(float).T
        products = kernels.matmul(operand(a), operand(b), accumulator, "khwc", 1)
        assert (products == values).all()  # of at most 14 bits


@pytest.mark.parametrize(
    "fmt",
    [
        BlockFormat(f"e{e}m{m} to {largest}", m, 8, 8, element_exponent_bits=e, element_max=largest)
        for e, m, largest in (
            (2, 5, 3.5), (2, 5, 4.0), (2, 1, 1.0), (3, 4, 0.5), (3, 4, 15.5), (4, 3, 448.0), (5, 2, 2.0)
        )
    ],
    ids=lambda f: f.name,
)  # fmt: skip
def test_a_format_cut_off_anywhere_multiplies_the_values_of_its_codes(kernels: Backend, fmt: BlockFormat) -> None:
    codes = np.arange(largest_code(fmt) + 1, dtype=np.uint8)
    codes = np.concatenate([codes, codes | 1 << fmt.element_bits - 1])
    rows = np.zeros((len(codes), fmt.block), np.uint8)
    rows[:, 2] = codes
    x = BlockTensor(rows, np.zeros((len(codes), 1), np.int16), fmt, 1)
    values = x.dequantize()[:, 2].astype(float)
    products = kernels.matmul(operand(x), operand(x), "fp32", "khwc", 1)
    assert (products == values[:, None] * values).all()


def every_quotient(fmt: BlockFormat) -> Any:
    """Every element value, the values halfway between two neighbours, and the float32 beside those."""
    if fmt.is_float:
        values = element_values(fmt)
        values = np.unique(values[np.abs(values) <= fmt.element_max])
    else:
        values = np.arange(-fmt.max_code, fmt.max_code + 1, dtype=np.float32) / np.float32(2.0**fmt.fraction_bits)
    ties = (values[1:] + values[:-1]) / 2
    beside = [np.nextafter(ties, np.float32(to)) for to in (-np.inf, np.inf)]
    return np.concatenate([values, ties, *beside]).astype(np.float32)


@pytest.mark.parametrize("name", SMALL)
def test_every_value_and_every_tie_quantizes_to_the_nearest_element(kernels: Backend, name: str) -> None:
    fmt = CATALOGUE[name].with_block(2)
    x = every_quotient(fmt)
    largest = fmt.element_max if fmt.is_float else 1.0
    elements = np.unique(every_code(name, 0).dequantize())
    codes, exponents = kernels.quantize(np.stack([np.full_like(x, largest), x], 1), fmt, "even", 0)
    assert (exponents == 0).all()
    got = BlockTensor(codes, exponents, fmt, 1).dequantize()[:, 1]
    elements = elements[np.abs(elements) <= (fmt.element_max if fmt.is_float else np.inf)]
    assert (np.abs(got - x) == np.abs(elements[None] - x[:, None]).min(axis=1)).all()
    assert (np.signbit(got) == np.signbit(x))[got != 0].all()


def sums(kernels: Backend, terms: Any, accumulator: str) -> Any:
    zeros = np.zeros(terms.shape, np.int16)
    ones = Operand(np.ones((1, terms.shape[1]), np.float32), zeros[:1].copy(), 1, 0, terms.shape[1])
    return kernels.matmul(Operand(terms, zeros, 1, 0, terms.shape[1]), ones, accumulator, "khwc", 1)[:, 0]


@pytest.mark.parametrize("kind", TYPES)
def test_every_value_of_a_type_is_a_sum_of_itself(kernels: Backend, kind: Any) -> None:
    values = TYPES[kind][0]
    expected = np.clip(values, -65504, 65504) if kind == "fp16" else values
    assert np.array_equal(sums(kernels, values[:, None].copy(), kind), expected, equal_nan=True)
    assert np.array_equal(unit.round_to(values, kind), expected, equal_nan=True)


@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("kind", TYPES)
def test_every_value_rounds_to_the_other_type_as_in_numpy_and_ml_dtypes(kind: Any, source: str) -> None:
    values = TYPES[source][0]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(TYPES[kind][1]).astype(np.float32)
        doubles = values.astype(np.float64)
    if kind == "fp16":
        expected = np.where(np.isinf(expected), np.copysign(np.float32(65504), expected), expected)
    assert np.array_equal(unit.round_to(values, kind), expected, equal_nan=True)
    assert np.array_equal(unit.round_to(doubles, kind), expected, equal_nan=True)


@pytest.mark.parametrize("kind", TYPES)
def test_every_value_plus_many_others_is_the_sum_of_numpy_and_ml_dtypes(
    kernels: Backend, kind: Any, same_bits: Any
) -> None:
    values, dtype = TYPES[kind]
    finite = values[np.isfinite(values)]
    rng = np.random.default_rng(0)
    for _ in range(4):
        pairs = np.stack([finite, rng.permutation(finite)], axis=1)
        with np.errstate(over="ignore"):
            expected = (pairs[:, 0].astype(dtype) + pairs[:, 1].astype(dtype)).astype(np.float32) + np.float32(0)
        if kind == "fp16":
            expected = np.clip(expected, np.float32(-65504), np.float32(65504))
        assert same_bits(sums(kernels, np.ascontiguousarray(pairs), kind), expected)
