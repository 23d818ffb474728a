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


def format_of(name: str) -> Any:
    key, _, block = name.partition(":")
    return CATALOGUE[key].with_block(int(block)) if block else CATALOGUE[key]


@pytest.mark.parametrize(
    ("accumulator", "order"),
    [("fp32", "khwc"), ("fp32", "chwk"), ("exact", "khwc"), ("exact", "chwk"), ("exact", "tree(6)")],
)
@pytest.mark.parametrize("name", FORMATS)
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
@pytest.mark.parametrize("accumulator", ["fp32", "exact"])
@pytest.mark.parametrize("name", FORMATS)
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
