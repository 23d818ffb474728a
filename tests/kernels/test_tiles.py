"""The tile convolution of the Numba backend: the same bits with every dot product instruction, or the plain loops."""

from typing import Any

import numpy as np
import pytest

from fpgasim.kernels import Backend, Operand, Window, available, backend
from fpgasim.kernels.contract import Unquantized
from fpgasim.kernels.numba_ import Numba
from fpgasim.kernels.numba_bytes import TileConvolution
from fpgasim.kernels.numba_vectors import DOTS, Dot, dots_here, dots_of
from fpgasim.kernels.reference import Reference
from fpgasim.numerics import CATALOGUE, NAN_EXPONENT

reference = Reference()
INT8 = ["msfp16", "msfp12", "mxint8", "bw_1s5e5m", "fp12agx", "msfp11:4", "msfp16:64", "mxint8:20"]
INT16 = ["fp16_bfp", "fp16_bfp:6"]
SHAPES = [
    # images, height, width, channels, outputs, groups, window
    (1, 9, 9, 64, 40, 1, Window((3, 3), pads=(1, 1, 1, 1))),
    (2, 7, 15, 48, 33, 1, Window((3, 3), pads=(0, 2, 1, 0))),
    (1, 8, 8, 32, 16, 1, Window((3, 2), stride=(2, 3), pads=(1, 0, 2, 1), dilation=(2, 1))),
    (3, 5, 6, 64, 65, 1, Window((1, 1))),
    (2, 7, 9, 64, 7, 1, Window((1, 1), stride=(2, 3), pads=(1, 0, 0, 2))),
    (1, 2, 2, 64, 12, 1, Window((5, 5), pads=(4, 4, 4, 4))),
    (1, 6, 6, 384, 72, 3, Window((3, 3), pads=(1, 1, 1, 1))),
    (1, 5, 5, 37, 50, 1, Window((3, 3), pads=(1, 0, 0, 1))),
    (1, 3, 23, 5, 3, 1, Window((2, 2))),
]


@pytest.fixture(params=dots_here(), ids=lambda d: d.name)
def dot(request: pytest.FixtureRequest) -> Dot:
    """Each instruction this CPU has; one without any would leave nothing to test, which the parametrization says."""
    found: Dot = request.param
    return found


def format_of(name: str) -> Any:
    key, _, block = name.partition(":")
    return CATALOGUE[key].with_block(int(block)) if block else CATALOGUE[key]


@pytest.fixture(scope="module")
def layers(numbers: Any, blocked: Any) -> list[tuple[Any, ...]]:
    """(format, numbers, weights, window, groups, accumulator, order, result by the reference)."""
    rng, found = np.random.default_rng(11), []
    for i, name in enumerate(INT8 + INT16):
        fmt = format_of(name)
        for j, (images, height, width, channels, outputs, groups, window) in enumerate(SHAPES):
            if groups > 1 and channels // groups % fmt.block:
                continue
            x = numbers(rng, "ordinary", images, height, width, channels) * 2.0 ** rng.integers(-4, 5, channels)
            w = blocked(numbers(rng, "ordinary", outputs, *window.kernel, channels), fmt)
            args = (w, window, groups, ("fp32", "exact")[i % 2 ^ j % 2], ("khwc", "chwk")[j // 2 % 2])
            x = x.astype(np.float32)
            found.append((fmt, x, args, reference.conv2d(blocked(x, fmt), *args, 1)))
    return found


def test_it_is_the_reference_with_every_instruction(
    dot: Dot, layers: list[tuple[Any, ...]], blocked: Any, same_bits: Any
) -> None:
    tiles, taken = TileConvolution([dot]), 0
    for fmt, x, args, expected in layers:
        for source, threads in ((blocked(x, fmt), 1), (Unquantized(x, fmt), 3)):
            got = tiles.convolve(source, *args, threads)
            if fmt.mantissa_bits <= 7 or (dot.code_bytes == 2 and "fp32" in args):
                assert got is not None, (fmt.name, args)
            taken += got is not None
            assert got is None or same_bits(got, expected), (fmt.name, args, threads)
    assert taken >= (len(layers) if dot.code_bytes == 2 else len(layers) * 4 // 5)


def test_plain_loops_and_tiles_give_equal_bits(numbers: Any, blocked: Any, same_bits: Any) -> None:
    rng, plain = np.random.default_rng(12), Numba()
    plain.tiles = TileConvolution([])
    for name in ("msfp16", "fp16_bfp"):
        fmt = CATALOGUE[name]
        x = blocked(numbers(rng, "ordinary", 1, 7, 7, 48), fmt)
        w = blocked(numbers(rng, "ordinary", 40, 3, 3, 48), fmt)
        args = (x, w, Window((3, 3), pads=(1, 1, 1, 1)), 1, "fp32", "khwc", 1)
        assert same_bits(plain.conv2d(*args), TileConvolution(dots_here()).convolve(*args))


def test_the_instruction_follows_the_features_of_the_cpu() -> None:
    names = {
        "+avx2,+fma,-avx512vnni": ["llvm.x86.avx2.pmadd.wd"],
        "+avx2,+fma,+avxvnni": ["llvm.x86.avx512.vpdpbusd.256", "llvm.x86.avx2.pmadd.wd"],
        "+avx512bw,+avx2": ["llvm.x86.avx512.pmaddw.d.512"],
        "+sse4.2,-avx2,+neon": [],
        "": [],
    }
    for features, expected in names.items():
        assert [dot.name for dot in dots_of(features)] == expected
    everything = ",".join({f"+{feature}" for dot in DOTS for feature in dot.features})
    assert dots_of(everything) == list(DOTS)


def test_sums_that_round_are_rounded_in_order(numbers: Any, blocked: Any, same_bits: Any) -> None:
    rng, fmt = np.random.default_rng(13), CATALOGUE["msfp16"]
    scale = 2.0 ** rng.integers(-12, 13, (1, 7, 7, 64 // 16)).repeat(16, axis=3)
    x = blocked((numbers(rng, "ordinary", 1, 7, 7, 64) * scale).astype(np.float32), fmt)
    w = blocked(numbers(rng, "ordinary", 32, 3, 3, 64), fmt)
    results = {}
    for order in ("khwc", "chwk"):
        args = (x, w, Window((3, 3), pads=(1, 1, 1, 1)), 1, "fp32", order, 1)
        results[order] = reference.conv2d(*args)
        got = TileConvolution(dots_here()).convolve(*args)
        assert same_bits(got, results[order])
    assert (results["khwc"] != results["chwk"]).any()


@pytest.mark.parametrize("kind", ["any", "finite", "tiny", "zeros", "spread"])
@pytest.mark.parametrize("name", INT8)
def test_numbers_of_every_kind_are_quantized_as_by_the_reference(
    name: str, kind: str, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng, fmt, numba = np.random.default_rng(14), format_of(name), backend("numba")
    for channels in (1, fmt.block, 3 * fmt.block + 1):
        # Each block has a filter that reads it alone, so that every block's mantissas show in the result.
        blocks = -(-channels // fmt.block)
        w = np.zeros((blocks, 1, 1, channels), np.float32)
        for c in range(channels):
            w[c // fmt.block, ..., c] = 1.0
        x, weights = numbers(rng, kind, 1, 3, 17, channels), blocked(w, fmt)
        expected = {-1: np.empty((51, blocks), np.float32)}
        got = {-1: np.empty((51, blocks), np.float32)}
        for kernels, results in ((reference, expected), (numba, got)):
            kernels.layer(Unquantized(x, fmt), weights, Window((1, 1)), 1, "fp32", "khwc", (), results, "fp32", 1)
        assert same_bits(got[-1], expected[-1]), channels


def extreme(fill: int, exponent: int, shape: tuple[int, ...], kind: type = np.int8) -> Operand:
    exponents = np.full((*shape[:-1], 1), exponent, np.int16)
    return Operand(np.full(shape, fill, kind), exponents, shape[-1], 0, shape[-1])


@pytest.mark.parametrize("accumulator", ["fp32", "exact"])
@pytest.mark.parametrize("kind", [np.int8, np.int16])
@pytest.mark.parametrize("exponents", [(0, 0), (-60, -66), (-60, -67), (100, 5), (100, 6), (0, 96), (0, 104), (96, 0),
                                       (NAN_EXPONENT, 0), (0, NAN_EXPONENT), (-127, 60)])  # fmt: skip
def test_terms_that_leave_the_normal_numbers_are_those_of_the_reference(
    exponents: tuple[int, int], kind: type, accumulator: str, same_bits: Any
) -> None:
    largest = int(np.iinfo(kind).max)
    x, w = extreme(largest, exponents[0], (1, 2, 2, 16), kind), extreme(-largest, exponents[1], (3, 1, 1, 16), kind)
    args = (x, w, Window((1, 1)), 1, accumulator, "khwc", 1)
    assert same_bits(backend("numba").conv2d(*args), reference.conv2d(*args))


@pytest.mark.parametrize("kernels", [b for b in available().values() if b.name != "reference"], ids=lambda b: b.name)
@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_weights_of_zero_make_zeros_of_the_smallest_and_the_largest_numbers(
    kernels: Backend, kind: type, same_bits: Any
) -> None:
    w = extreme(0, 0, (3, 1, 1, 16), kind)
    for exponent in (-149, -128, -127, -126, 127):
        args = (extreme(3, exponent, (1, 5, 6, 16), kind), w, Window((1, 1)), 1, "fp32", "khwc", 1)
        assert same_bits(kernels.conv2d(*args), np.zeros((1, 5, 6, 3), np.float32)), exponent


def test_exact_sums_are_taken_only_where_they_fit_into_float64(same_bits: Any) -> None:
    w = extreme(127, 0, (1, 1, 1, 16))
    for spread, taken in ((30, True), (33, True), (36, False), (60, False)):
        x = extreme(127, 0, (1, 1, 2, 16))
        assert x.exponents is not None
        x.exponents[0, 0, 1] = -spread
        got = TileConvolution(dots_here()).convolve(x, w, Window((1, 1)), 1, "exact", "khwc", 1)
        assert (got is not None) == taken, spread
        if got is not None:
            assert same_bits(got, reference.conv2d(x, w, Window((1, 1)), 1, "exact", "khwc", 1))


def test_a_dot_product_of_more_than_31_bits_is_not_taken(same_bits: Any) -> None:
    for block, kind, fill, taken in (
        (256, np.int8, 127, True),
        (264, np.int8, 127, True),
        (16, np.int16, 4095, True),
        (16, np.int16, 4096, False),
    ):
        x, w = extreme(fill, 0, (1, 1, 1, block), kind), extreme(fill, 0, (1, 1, 1, block), kind)
        args = (x, w, Window((1, 1)), 1, "fp32", "khwc", 1)
        got = TileConvolution(dots_here()).convolve(*args)
        assert (got is not None) == taken
        assert got is None or same_bits(got, reference.conv2d(*args))
