"""The byte convolution of the C variants that have one: taken where it is exact, and then the reference bit for bit."""

from typing import Any

import numpy as np
import pytest

from fpgasim.kernels import Operand, Window, available
from fpgasim.kernels.contract import Unquantized
from fpgasim.kernels.native import Native
from fpgasim.kernels.native_bytes import BytesConvolution
from fpgasim.kernels.reference import Reference
from fpgasim.numerics import CATALOGUE, NAN_EXPONENT

reference = Reference()
#: A CPU without any would leave nothing to test, which the parametrization then says.
BYTES = [b for b in available().values() if isinstance(b, Native) and b.bytes_convolution.there]


@pytest.fixture(params=BYTES, ids=lambda b: b.name)
def unit(request: pytest.FixtureRequest) -> BytesConvolution:
    native: Native = request.param
    return native.bytes_convolution


def padded(*pads: int) -> Window:
    return Window((3, 3), pads=(pads[0], pads[1], pads[2], pads[3]))


SHAPES = [
    # images, height, width, channels, outputs, groups, window
    (1, 9, 9, 64, 40, 1, padded(1, 1, 1, 1)),
    (2, 7, 15, 48, 33, 1, padded(0, 2, 1, 0)),
    (1, 8, 8, 32, 16, 1, Window((3, 2), stride=(2, 3), pads=(1, 0, 2, 1), dilation=(2, 1))),
    (3, 5, 6, 64, 65, 1, Window((1, 1))),
    (2, 7, 9, 64, 7, 1, Window((1, 1), stride=(2, 3))),
    (1, 4, 3, 64, 32, 1, Window((1, 1), pads=(1, 0, 0, 2))),
    (1, 2, 2, 64, 12, 1, Window((5, 5), pads=(4, 4, 4, 4))),
    (1, 6, 6, 96, 72, 3, padded(1, 1, 1, 1)),
    (1, 5, 5, 37, 50, 1, padded(1, 0, 0, 1)),
    (1, 3, 23, 5, 3, 1, Window((2, 2))),
    (1, 2, 30, 200, 20, 1, padded(1, 1, 1, 1)),
]
FORMATS = ["msfp16", "msfp12", "mxint8", "bw_1s5e5m", "fp12agx", "msfp11:4", "msfp16:64", "mxint8:20"]
WORDS = ["fp13agx", "fp16_bfp", "fp16_bfp:64", "fp13agx:20"]


def format_of(name: str) -> Any:
    key, _, block = name.partition(":")
    return CATALOGUE[key].with_block(int(block)) if block else CATALOGUE[key]


ORDERS = [("fp32", "khwc"), ("fp32", "chwk"), ("exact", "khwc"), ("exact", "chwk"), ("exact", "tree(6)")]
ROUNDED = [("fp16", "khwc"), ("fp16", "chwk"), ("bf16", "khwc")]
SUMS = [
    *((name, *sums) for name in FORMATS for sums in ORDERS),
    *((name, *sums) for name in ("msfp16", "mxint8", "msfp11:4", *WORDS) for sums in ROUNDED),
    *((name, "fp32", "khwc") for name in WORDS),
    ("fp13agx", "exact", "khwc"),
]


@pytest.mark.parametrize(("name", "accumulator", "order"), SUMS)
def test_it_is_the_reference_from_numbers_and_from_operands(
    unit: BytesConvolution, name: str, accumulator: str, order: Any, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(11)
    fmt = format_of(name)
    for images, height, width, channels, outputs, groups, window in SHAPES:
        if groups > 1 and (channels // groups) % fmt.block:
            continue
        x = numbers(rng, "ordinary", images, height, width, channels) * 2.0 ** rng.integers(-4, 5, channels)
        x = x.astype(np.float32)
        w = blocked(numbers(rng, "ordinary", outputs, *window.kernel, channels), fmt)
        expected = reference.conv2d(blocked(x, fmt), w, window, groups, accumulator, order, 1)
        for source in (blocked(x, fmt), Unquantized(x, fmt)):
            for threads in (1, 3):
                got = unit.layer(source, w, window, groups, accumulator, order, None, threads)
                assert got is not None, (channels, window)
                assert same_bits(got[0], expected), (channels, window, threads)
                assert got[1] == 0


def test_sums_that_round_are_rounded_in_order(
    unit: BytesConvolution, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(12)
    fmt = CATALOGUE["msfp16"]
    scale = 2.0 ** rng.integers(-12, 13, (1, 1, 1, 64 // 16)).repeat(16, axis=3)
    x = (numbers(rng, "ordinary", 1, 7, 7, 64) * scale).astype(np.float32)
    w = blocked((numbers(rng, "ordinary", 32, 3, 3, 64) * scale[..., ::-1]).astype(np.float32), fmt)
    results = {}
    for order in ("khwc", "chwk"):
        expected = reference.conv2d(blocked(x, fmt), w, padded(1, 1, 1, 1), 1, "fp32", order, 1)
        got = unit.layer(Unquantized(x, fmt), w, padded(1, 1, 1, 1), 1, "fp32", order, None, 1)
        assert got is not None
        assert same_bits(got[0], expected)
        results[order] = expected
    assert (results["khwc"] != results["chwk"]).any()


@pytest.mark.parametrize("kind", ["any", "finite", "tiny", "zeros", "spread"])
@pytest.mark.parametrize(
    ("name", "accumulator"),
    [*((name, sums) for name in FORMATS for sums in ("fp32", "exact")), *((name, "fp32") for name in WORDS)],
)
def test_numbers_of_every_kind_are_quantized_as_by_the_reference(
    unit: BytesConvolution, name: str, accumulator: str, kind: str, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(13)
    fmt = format_of(name)
    one = np.ones((1, 1, 1, fmt.block), np.float32)
    for channels in (1, fmt.block, 3 * fmt.block + 1):
        # Each block has a filter that reads it alone, so that every block's mantissas show in the result.
        blocks = -(-channels // fmt.block)
        w = np.zeros((blocks, 1, 1, channels), np.float32)
        for b in range(blocks):
            part = w[b, ..., b * fmt.block : (b + 1) * fmt.block]
            part[...] = one[..., : part.shape[-1]]
        x = numbers(rng, kind, 1, 3, 17, channels)
        weights = blocked(w, fmt)
        got = unit.layer(Unquantized(x, fmt), weights, Window((1, 1)), 1, accumulator, "khwc", None, 1)
        if got is not None:
            expected = reference.conv2d(blocked(x, fmt), weights, Window((1, 1)), 1, accumulator, "khwc", 1)
            assert same_bits(got[0], expected)
        else:
            assert kind in ("any", "finite", "tiny", "spread")


def extreme(fill: int, exponent: int, shape: tuple[int, ...]) -> Operand:
    exponents = np.full((*shape[:-1], 1), exponent, np.int16)
    return Operand(np.full(shape, fill, np.int8), exponents, shape[-1], 0, shape[-1])


@pytest.mark.parametrize(
    ("x_exponent", "w_exponent", "accumulator", "taken"),
    [
        (0, 0, "fp32", True),
        (-60, -66, "fp32", True),
        (-60, -67, "fp32", False),  # a term is subnormal
        (100, 5, "fp32", True),
        (100, 6, "fp32", False),  # a term may overflow
        (0, 104, "fp32", False),
        (120, -20, "exact", True),
        (121, -20, "fp32", False),  # a mantissa times its scale may overflow
        (-60, -66, "exact", True),
        (NAN_EXPONENT, 0, "fp32", False),
        (0, NAN_EXPONENT, "exact", False),
    ],
)
def test_it_is_taken_only_where_no_term_leaves_the_normal_numbers(
    unit: BytesConvolution, x_exponent: int, w_exponent: int, accumulator: str, taken: bool, same_bits: Any
) -> None:
    x, w = extreme(127, x_exponent, (1, 2, 2, 16)), extreme(-127, w_exponent, (3, 1, 1, 16))
    got = unit.layer(x, w, Window((1, 1)), 1, accumulator, "khwc", None, 1)
    assert (got is not None) == taken
    if got is not None:
        assert same_bits(got[0], reference.conv2d(x, w, Window((1, 1)), 1, accumulator, "khwc", 1))


def test_exact_sums_are_taken_only_where_they_fit_into_float64(unit: BytesConvolution, same_bits: Any) -> None:
    w = extreme(127, 0, (1, 1, 1, 16))
    for spread, taken in ((30, True), (35, True), (36, False), (60, False)):
        x = extreme(127, 0, (1, 1, 2, 16))
        assert x.exponents is not None
        x.exponents[0, 0, 1] = -spread
        got = unit.layer(x, w, Window((1, 1)), 1, "exact", "khwc", None, 1)
        assert (got is not None) == taken, spread
        if got is not None:
            assert same_bits(got[0], reference.conv2d(x, w, Window((1, 1)), 1, "exact", "khwc", 1))


def test_a_dot_product_of_more_than_22_bits_is_not_taken(unit: BytesConvolution) -> None:
    for block, taken in ((256, True), (264, False)):
        x, w = extreme(127, 0, (1, 1, 1, block)), extreme(127, 0, (1, 1, 1, block))
        got = unit.layer(x, w, Window((1, 1)), 1, "fp32", "khwc", None, 1)
        assert (got is not None) == taken


@pytest.mark.parametrize("dilation", [1 << 25, 1 << 40])
def test_taps_further_apart_than_an_offset_of_32_bits_reaches_are_not_taken(
    unit: BytesConvolution, dilation: int, blocked: Any
) -> None:
    x = Unquantized(np.ones((1, 1, 1, 64), np.float32), CATALOGUE["msfp16"])
    for kernel, pads, apart in (
        ((2, 1), (0, 0, dilation, 0), (dilation, 1)),
        ((1, 2), (0, 0, 0, dilation), (1, dilation)),
        ((3, 3), (dilation // 2, 1, dilation // 2 * 3, 1), (dilation, 1)),
    ):
        w, window = blocked(np.ones((5, *kernel, 64), np.float32), x.format), Window(kernel, (1, 1), pads, apart)
        assert unit.layer(x, w, window, 1, "fp32", "khwc", None, 1) is None


def aligned_sum(x_exponents: list[int], w_exponent: int, signs: list[int]) -> tuple[Operand, Operand]:
    """Blocks of 13 bits whose dot products are almost 2^30 times a sign; all blocks of the weights have one scale."""
    blocks = len(signs)
    mantissas = np.repeat(np.array(signs) * 8191, 16).astype(np.int16).reshape(1, 1, 1, -1)
    x = Operand(mantissas, np.array(x_exponents, np.int16).reshape(1, 1, 1, -1), 16, 0, 16 * blocks)
    w = np.full((3, 1, 1, 16 * blocks), 8191, np.int16)
    return x, Operand(w, np.full((3, 1, 1, blocks), w_exponent, np.int16), 16, 0, 16 * blocks)


@pytest.mark.parametrize(
    ("x_exponents", "w_exponent", "signs", "finite"),
    [
        ([98], -90, [1], True),
        ([99], -90, [1], True),  # the sum before it is scaled is infinite
        ([120], -126, [1], True),
        ([120, 119, 118], -100, [1, 1, -1], True),
        ([94] * 20, -90, [1] * 20, True),  # so is that of terms which are not
        ([95] * 8, 0, [1, 1, 1, 1, 1, -1, -1, -1], True),
        ([46] * 8, 50, [1, 1, 1, 1, 1, -1, -1, -1], False),  # only the sum itself is: it stays so
        ([20] * 8, 76, [1, 1, 1, 1, 1, -1, -1, -1], False),
        ([-126], 60, [1], True),
    ],
)
def test_sums_of_words_with_one_scale_overflow_where_those_of_the_reference_do(
    unit: BytesConvolution, x_exponents: list[int], w_exponent: int, signs: list[int], finite: bool, same_bits: Any
) -> None:
    x, w = aligned_sum(x_exponents, w_exponent, signs)
    expected = reference.conv2d(x, w, Window((1, 1)), 1, "fp32", "khwc", 1)
    assert np.isfinite(expected).all() == finite
    got = unit.layer(x, w, Window((1, 1)), 1, "fp32", "khwc", None, 1)
    if max(x_exponents) + w_exponent <= 96 and max(x_exponents) <= 120:
        assert got is not None
        assert same_bits(got[0], expected)


@pytest.mark.parametrize("name", ["msfp16", "mxint8", "bw_1s5e5m"])
@pytest.mark.parametrize("accumulator", ["fp32", "exact"])
def test_rows_may_be_longer_than_the_layer_has_channels(
    unit: BytesConvolution, name: str, accumulator: str, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng, fmt = np.random.default_rng(14), CATALOGUE[name]
    x = numbers(rng, "ordinary", 1, 3, 9, 75)
    w = blocked(numbers(rng, "ordinary", 35, 1, 1, 75), fmt)
    rows = np.concatenate([x, np.zeros((*x.shape[:-1], -75 % fmt.block), np.float32)], axis=-1)
    got = unit.layer(Unquantized(rows, fmt), w, Window((1, 1)), 1, accumulator, "khwc", None, 1)
    assert got is not None
    assert same_bits(got[0], reference.conv2d(blocked(x, fmt), w, Window((1, 1)), 1, accumulator, "khwc", 1))


def spread_operand(rng: np.random.Generator, bits: int, base: int, spread: int, *shape: int) -> Operand:
    """Mantissas of `bits` bits, many of them at the ends of their range or 0, and exponents from `base` on."""
    largest, block = (1 << bits) - 1, 16
    mantissas = rng.integers(-largest, largest + 1, shape)
    ends = rng.choice([-largest, -1, 0, 0, 1, largest], shape)
    mantissas = np.where(rng.random(shape) < 0.5, mantissas, ends).astype(np.int8 if bits < 8 else np.int16)
    exponents = base + rng.integers(0, spread + 1, (*shape[:-1], shape[-1] // block))
    return Operand(mantissas, exponents.astype(np.int16), block, bits - 1, shape[-1])


#: Lowest exponents and spreads: sums of fp16 that are subnormal, ordinary, that saturate, or that float does not hold.
RANGES = [(-4, 1), (-4, 6), (-12, 0), (-16, 4), (-22, 8), (-10, 24), (2, 2), (6, 0), (9, 3), (-24, 40)]


@pytest.mark.parametrize(("base", "spread"), RANGES)
@pytest.mark.parametrize("bits", [7, 8, 13])
@pytest.mark.parametrize("accumulator", ["fp16", "bf16", "fp32"])
def test_sums_of_any_range_are_those_of_the_reference(
    unit: BytesConvolution, accumulator: str, bits: int, base: int, spread: int, same_bits: Any
) -> None:
    rng = np.random.default_rng(14)
    window = padded(1, 1, 1, 1)
    x = spread_operand(rng, bits, base, spread, 1, 3, 8, 48)
    w = spread_operand(rng, bits, -2, spread // 2, 40, 3, 3, 48)
    got = unit.layer(x, w, window, 1, accumulator, "khwc", None, 1)
    assert got is not None
    assert same_bits(got[0], reference.conv2d(x, w, window, 1, accumulator, "khwc", 1))


@pytest.mark.parametrize("accumulator", ["fp16", "bf16"])
def test_sums_halfway_between_two_results_round_by_what_lies_far_below(
    unit: BytesConvolution, accumulator: str, same_bits: Any
) -> None:
    # The first block is tiny, the second a number halfway between two results; float does not hold the sum of both.
    rng = np.random.default_rng(15)
    for precision, ones, last in ((8, 1, 65), (11, 15, 72)):
        mantissas, exponents = np.zeros((1, 1, 64, 32), np.int8), np.zeros((1, 1, 64, 2), np.int16)
        mantissas[..., 0], mantissas[..., 16 : 16 + ones], mantissas[..., 31] = rng.choice([-1, 0, 1], 64), 127, last
        exponents[..., 0], exponents[..., 1] = rng.integers(-24, -14, 64), 6 - precision
        weights = np.ones((32, 1, 1, 32), np.int8)
        weights[..., 31] = 2  # ones * 127 + 2 * last is 2^precision + 1
        weights[1::2] *= -1
        x = Operand(mantissas, exponents, 16, 0, 32)
        w = Operand(weights, np.zeros((32, 1, 1, 2), np.int16), 16, 0, 32)
        got = unit.layer(x, w, Window((1, 1)), 1, accumulator, "khwc", None, 1)
        assert got is not None
        expected = reference.conv2d(x, w, Window((1, 1)), 1, accumulator, "khwc", 1)
        assert same_bits(got[0], expected)
        assert len(np.unique(np.abs(expected))) == (2 if {8: "bf16", 11: "fp16"}[precision] == accumulator else 1)


@pytest.mark.parametrize("spread", [0, 3, 9])
@pytest.mark.parametrize(("x_bits", "w_bits"), [(7, 11), (11, 7), (8, 11), (14, 8)])
def test_bytes_and_words_mix(unit: BytesConvolution, x_bits: int, w_bits: int, spread: int, same_bits: Any) -> None:
    rng = np.random.default_rng(16)
    x = spread_operand(rng, x_bits, 0, spread, 2, 4, 5, 32)
    w = spread_operand(rng, w_bits, -2, spread, 33, 2, 2, 32)
    for accumulator in ("fp32", "fp16"):
        got = unit.layer(x, w, Window((2, 2)), 1, accumulator, "chwk", None, 1)
        assert got is not None
        assert same_bits(got[0], reference.conv2d(x, w, Window((2, 2)), 1, accumulator, "chwk", 1))


def test_a_dot_product_of_words_of_more_than_31_bits_is_not_taken(unit: BytesConvolution, same_bits: Any) -> None:
    for bits, taken in ((13, True), (14, False)):
        shape, largest = (1, 1, 1, 16), (1 << bits) - 1
        exponents = np.zeros((1, 1, 1, 1), np.int16)
        x, w = (Operand(np.full(shape, v, np.int16), exponents, 16, 0, 16) for v in (largest, -largest))
        got = unit.layer(x, w, Window((1, 1)), 1, "fp32", "khwc", None, 1)
        assert (got is not None) == taken
        if got is not None:
            assert same_bits(got[0], reference.conv2d(x, w, Window((1, 1)), 1, "fp32", "khwc", 1))
