"""Every backend quantizes like the reference, bit for bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fpgasim.kernels import Backend
from fpgasim.kernels.reference import Reference
from fpgasim.numerics import CATALOGUE, ROUNDINGS, BlockFormat

OWN = [
    BlockFormat("one", mantissa_bits=1, exponent_bits=8, block=5),
    BlockFormat("wide", mantissa_bits=15, exponent_bits=5, block=33),
    BlockFormat("e2m5", 5, 8, 3, element_exponent_bits=2, element_max=7.875),
]
each_format = pytest.mark.parametrize("fmt", [*CATALOGUE.values(), *OWN], ids=lambda f: f.name)
#: (images, n, pixels): whole and partial tiles of 64 pixels and 16 elements, one pixel, nothing.
ACROSS = [(2, 7, 3), (1, 32, 64), (3, 16, 1), (2, 17, 1), (1, 33, 65), (2, 48, 49), (1, 150, 130), (2, 0, 3), (2, 3, 0)]
KINDS = ("ordinary", "spread", "any", "finite", "tiny", "zeros")


#: The largest element from a subnormal one below 2^0 to the last that 8 bits have.
TOPS = [
    BlockFormat(name, mantissa_bits, 8, block, element_exponent_bits=exponent_bits, element_max=largest)
    for name, exponent_bits, mantissa_bits, block, largest in (
        ("to 2^-9", 4, 3, 16, 2.0**-9), ("to 0.5", 4, 3, 16, 0.5), ("to 0.9375", 3, 4, 64, 0.9375),
        ("to 1", 2, 1, 32, 1.0), ("to 1.1875", 3, 4, 32, 1.1875), ("to 1.875", 2, 3, 48, 1.875),
        ("to 2", 2, 5, 128, 2.0), ("to 114688", 5, 2, 32, 114688.0), ("to 2^-16", 5, 2, 32, 2.0**-16),
    )
]  # fmt: skip


@each_format
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_quantize_is_the_reference(
    kernels: Backend, fmt: BlockFormat, rounding: Any, numbers: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(0)
    for n in (0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 64, 127, 129, 300):
        for kind in KINDS:
            x = numbers(rng, kind, 3, n)
            seed = int(rng.integers(0, 2**64, dtype=np.uint64))
            codes, exponents = kernels.quantize(x, fmt, rounding, seed)
            expected = Reference().quantize(x, fmt, rounding, seed)
            assert same_bits(codes, expected[0]), (n, kind)
            assert same_bits(exponents, expected[1]), (n, kind)


@each_format
def test_quantize_is_the_reference_around_powers_of_two_and_ties(
    kernels: Backend, fmt: BlockFormat, same_bits: Any
) -> None:
    powers = (2.0 ** np.arange(-149, 128)).astype(np.float32)
    around = np.stack([np.nextafter(powers, np.float32(0)), powers, np.nextafter(powers, np.float32(np.inf))], axis=1)
    steps = np.arange(1, 257, dtype=np.float32) / 2
    ties = np.stack([np.full_like(steps, 128.0), steps, -steps, steps / 1024], axis=1) * np.float32(2.0**-3)
    for x, block in ((around, 3), (np.ascontiguousarray(around.T), 2), (ties, 4), (ties.reshape(1, -1), 16)):
        for rounding in ROUNDINGS:
            small = fmt if fmt.is_fp32 else fmt.with_block(block)
            got, expected = (k.quantize(x, small, rounding, 3) for k in (kernels, Reference()))
            assert same_bits(got[0], expected[0])
            assert same_bits(got[1], expected[1])


@st.composite
def formats(draw: st.DrawFn) -> BlockFormat:
    if draw(st.booleans()):
        known = draw(st.sampled_from(list(CATALOGUE.values())))
        return known if known.is_fp32 else known.with_block(draw(st.integers(1, 140)))
    return BlockFormat("own", draw(st.integers(1, 15)), draw(st.sampled_from([5, 8])), draw(st.integers(1, 140)))


def test_quantize_is_the_reference_for_any_shape_and_any_numbers(
    kernels: Backend, fuzz: settings, numbers: Any, same_bits: Any
) -> None:
    @fuzz
    @given(
        formats(),
        st.sampled_from(ROUNDINGS),
        st.sampled_from(KINDS),
        st.tuples(st.integers(0, 5), st.integers(0, 300)),
        st.integers(0, 2**64 - 1),
    )
    def check(fmt: BlockFormat, rounding: Any, kind: str, shape: tuple[int, int], seed: int) -> None:
        x = numbers(np.random.default_rng(seed), kind, *shape)
        got, expected = (k.quantize(x, fmt, rounding, seed) for k in (kernels, Reference()))
        assert same_bits(got[0], expected[0])
        assert same_bits(got[1], expected[1])

    check()


def test_a_read_only_array_is_quantized_too(kernels: Backend, same_bits: Any) -> None:
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    writable = kernels.quantize(x, CATALOGUE["msfp16"], "even", 0)
    x.setflags(write=False)
    assert same_bits(kernels.quantize(x, CATALOGUE["msfp16"], "even", 0)[0], writable[0])


@each_format
def test_many_blocks_at_once_are_quantized_as_by_the_reference(
    kernels: Backend, fmt: BlockFormat, numbers: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(4)
    block = 16 if fmt.is_fp32 else -(-fmt.block // 16) * 16
    if not fmt.is_fp32:
        fmt = fmt.with_block(block)
    for kind in KINDS:
        x = numbers(rng, kind, 5, 7 * block)
        if kind == "ordinary":  # blocks whose largest number is anything from subnormal to the top of float32
            x = np.ldexp(x.reshape(35, block), rng.integers(-150, 126, (35, 1))).astype(np.float32).reshape(5, -1)
        expected = Reference().quantize(x, fmt, "even", 0)
        got = kernels.quantize(x, fmt, "even", 0)
        assert same_bits(got[0], expected[0]), kind
        assert same_bits(got[1], expected[1]), kind


@pytest.mark.parametrize("fmt", [*CATALOGUE.values(), *OWN, *TOPS], ids=lambda f: f.name)
def test_blocks_of_any_exponent_are_quantized_as_by_the_reference(
    kernels: Backend, fmt: BlockFormat, same_bits: Any
) -> None:
    # 16 blocks in a row are alike, so that none of them makes the quick way give up the others.
    rng, block = np.random.default_rng(5), -(-fmt.block // 16) * 16
    fmt = fmt if fmt.is_fp32 else fmt.with_block(block)
    powers = np.arange(-149, 128).repeat(16)
    x = np.ldexp(rng.uniform(-1, 1, (len(powers), block)), powers[:, None])
    x[:, 3] = np.copysign(np.ldexp(rng.uniform(1, 1.9, len(powers)), powers), x[:, 3])
    x = x.astype(np.float32)
    expected = Reference().quantize(x, fmt, "even", 0)
    assert all(map(same_bits, kernels.quantize(x, fmt, "even", 0), expected))
    across = np.ascontiguousarray(x.T)[None]
    assert all(map(same_bits, kernels.quantize_across(across, fmt, "even", 0, True), expected))


def check_across(kernels: Backend, x: Any, fmt: BlockFormat, rounding: Any, seed: int, same_bits: Any) -> None:
    """Both layouts of `quantize_across` against the reference's blocks of the rows that lie across `x`."""
    images, n, pixels = x.shape
    rows = np.ascontiguousarray(np.moveaxis(x, 1, 2)).reshape(images * pixels, n)
    expected = Reference().quantize(rows, fmt, rounding, seed)
    assert all(map(same_bits, kernels.quantize_across(x, fmt, rounding, seed, True), expected))
    like_x = [np.moveaxis(a.reshape(images, pixels, a.shape[1]), 2, 1) for a in (expected[0][:, :n], expected[1])]
    assert all(map(same_bits, kernels.quantize_across(x, fmt, rounding, seed, False), like_x))


@each_format
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_rows_across_memory_are_quantized_like_rows(
    kernels: Backend, fmt: BlockFormat, rounding: Any, numbers: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(1)
    for shape in ACROSS:
        for kind in KINDS:
            check_across(kernels, numbers(rng, kind, *shape), fmt, rounding, int(rng.integers(0, 1 << 62)), same_bits)


@each_format
def test_rows_across_memory_may_be_of_any_size(kernels: Backend, fmt: BlockFormat, same_bits: Any) -> None:
    rng = np.random.default_rng(2)
    x = np.ldexp(rng.uniform(-1, 1, (1, 40, 280)), np.arange(-152, 128)).astype(np.float32)
    small = fmt if fmt.is_fp32 else fmt.with_block(20)
    for rounding in ROUNDINGS:
        check_across(kernels, x, small, rounding, 3, same_bits)


def test_rows_across_memory_are_quantized_like_rows_for_any_shape_and_any_numbers(
    kernels: Backend, fuzz: settings, numbers: Any, same_bits: Any
) -> None:
    @fuzz
    @given(
        formats(),
        st.sampled_from(ROUNDINGS),
        st.sampled_from(KINDS),
        st.tuples(st.integers(0, 3), st.integers(0, 150), st.integers(0, 140)),
        st.integers(0, 2**64 - 1),
    )
    def check(fmt: BlockFormat, rounding: Any, kind: str, shape: tuple[int, int, int], seed: int) -> None:
        check_across(kernels, numbers(np.random.default_rng(seed), kind, *shape), fmt, rounding, seed, same_bits)

    check()
