"""Every backend convolves like the reference, bit for bit; the reference is held against exact arithmetic."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fpgasim.kernels import Backend, Operand, Window, operand
from fpgasim.kernels.contract import ACCUMULATORS, ORDERS, OVERFLOWS
from fpgasim.kernels.reference import Reference
from fpgasim.numerics import CATALOGUE, NAN_EXPONENT, BlockFormat, BlockTensor

reference = Reference()
each_accumulator = pytest.mark.parametrize("accumulator", ["fp32", "exact"])  # the others are in test_sums.py
each_order = pytest.mark.parametrize("order", ORDERS)
#: A window with everything: two strides, four pads, two dilations.
WINDOW = Window((2, 3), stride=(2, 1), pads=(1, 0, 2, 3), dilation=(1, 2))


def positions(window: Window, height: int, width: int) -> Iterator[tuple[int, int, int, int, int, int]]:
    """(output row, output column, kh, kw, input row, input column) inside the image, in (kh, kw) order."""
    oh, ow = window.output_size(height, width)
    for y, x, kh, kw in product(range(oh), range(ow), range(window.kernel[0]), range(window.kernel[1])):
        row = y * window.stride[0] + kh * window.dilation[0] - window.pads[0]
        column = x * window.stride[1] + kw * window.dilation[1] - window.pads[1]
        if 0 <= row < height and 0 <= column < width:
            yield y, x, kh, kw, row, column


@each_order
@each_accumulator
@pytest.mark.parametrize("fmt", CATALOGUE.values(), ids=lambda f: f.name)
def test_conv2d_is_the_reference_for_every_format(
    kernels: Backend, fmt: BlockFormat, accumulator: Any, order: Any, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(1)
    for kind in ("ordinary", "spread"):
        x = blocked(numbers(rng, kind, 2, 5, 4, 37), fmt)
        w = blocked(numbers(rng, kind, 11, 2, 3, 37), fmt)
        expected = reference.conv2d(x, w, WINDOW, 1, accumulator, order, 1)
        assert same_bits(kernels.conv2d(x, w, WINDOW, 1, accumulator, order, 1), expected)


@pytest.mark.parametrize("accumulator", ACCUMULATORS)
@pytest.mark.parametrize("fmt", ["msfp16", "mxint8", "mxfp4_e2m1"])
@pytest.mark.parametrize("size", [1e30, 1e36, 3e38])
def test_zeros_times_the_largest_weights_are_zero(
    kernels: Backend, fmt: str, accumulator: Any, size: float, blocked: Any, same_bits: Any
) -> None:
    """Nothing on the way may overflow, where all activations are zero and where a window sees only padding."""
    numbers = CATALOGUE[fmt]
    w = blocked(np.full((3, 2, 2, 40), size, np.float32), numbers)
    for value, window in ((0.0, WINDOW), (1e-30, Window((2, 2), stride=(4, 4), pads=(2, 2, 2, 2)))):
        x = blocked(np.full((1, 4, 4, 40), value, np.float32), numbers)
        window = Window((2, 2), window.stride, window.pads)
        expected = reference.conv2d(x, w, window, 1, accumulator, "khwc", 1)
        assert same_bits(kernels.conv2d(x, w, window, 1, accumulator, "khwc", 1), expected)
        assert value or not expected.any()


MIXED = [
    ("msfp16", "msfp12"),
    ("fp16_bfp", "msfp14"),
    ("fp11_intel", "fp13agx"),
    ("mxint8", "mxfp8_e4m3"),
    ("mxfp8_e5m2", "mxfp4_e2m1"),
    ("mxfp6_e3m2", "mxfp6_e2m3"),
]


@each_accumulator
@pytest.mark.parametrize(("x_format", "w_format"), MIXED)
def test_conv2d_is_the_reference_for_two_formats(
    kernels: Backend, x_format: str, w_format: str, accumulator: Any, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(2)
    x = blocked(numbers(rng, "ordinary", 1, 4, 5, 70), CATALOGUE[x_format])
    w = blocked(numbers(rng, "ordinary", 9, 2, 2, 70), CATALOGUE[w_format])
    window = Window((2, 2))
    expected = reference.conv2d(x, w, window, 1, accumulator, "khwc", 1)
    assert same_bits(kernels.conv2d(x, w, window, 1, accumulator, "khwc", 1), expected)


@st.composite
def fixed_point(draw: st.DrawFn) -> str:
    bits = draw(st.integers(2, 64))
    return f"fixed({bits},{draw(st.integers(0, bits - 1))},{draw(st.sampled_from(OVERFLOWS))})"


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    block = draw(st.sampled_from([1, 2, 3, 5, 8, 16, 17, 32, 64, 128]))
    bits = st.integers(1, 15)
    own = st.builds(lambda m, e: BlockFormat("own", m, e, block), bits, st.sampled_from([5, 8]))
    named = st.sampled_from([f.with_block(block) for f in CATALOGUE.values() if not f.is_fp32])
    x_format, w_format = draw(
        st.one_of(st.tuples(named, named), st.tuples(own, own), st.just((CATALOGUE["fp32"],) * 2))
    )
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kind = st.sampled_from(["ordinary", "spread", "any", "finite", "tiny", "zeros"])
    sizes = st.integers(1, 2), st.integers(5, 7), st.integers(5, 8)
    pads, dilation = st.tuples(*[st.integers(0, 3)] * 4), st.tuples(*[st.integers(1, 2)] * 2)
    return {
        "formats": (x_format, w_format),
        "kinds": (draw(kind), draw(kind)),
        "groups": groups,
        "channels": groups * draw(st.integers(1, 20)),
        "outputs": groups * draw(st.integers(1, 11)),
        "image": draw(st.tuples(*sizes)),
        "window": Window(draw(pair), draw(pair), draw(pads), draw(dilation)),
        "accumulator": draw(st.one_of(st.sampled_from(ACCUMULATORS), fixed_point())),
        "order": draw(st.one_of(st.sampled_from(ORDERS), st.integers(1, 40).map("tree({})".format))),
        "threads": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 2**32)),
    }


def test_conv2d_is_the_reference_for_any_shape_and_any_numbers(
    kernels: Backend, fuzz: settings, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    @fuzz
    @given(cases())
    def check(case: dict[str, Any]) -> None:
        rng = np.random.default_rng(case["seed"])
        window, channels = case["window"], case["channels"]
        x = blocked(numbers(rng, case["kinds"][0], *case["image"], channels), case["formats"][0])
        w = blocked(numbers(rng, case["kinds"][1], case["outputs"], *window.kernel, channels), case["formats"][1])
        args = (x, w, window, case["groups"], case["accumulator"], case["order"])
        assert same_bits(kernels.conv2d(*args, case["threads"]), reference.conv2d(*args, 1))

    check()


def extreme(shape: tuple[int, ...], fill: float, kind: type, exponents: Any, blocks: int) -> Operand:
    lead = shape[:-1]
    e = np.broadcast_to(np.asarray(exponents, np.int16), (*lead, blocks)).copy()
    return Operand(np.full(shape, fill, kind), e, shape[-1] // blocks, 0, shape[-1])


@each_accumulator
@pytest.mark.parametrize(
    ("x_exponents", "w_exponents"),
    [([-127, -120], [-20, -22]), ([-127, 3], [-127, 5]), ([127, 126], [127, -3]), ([100, -100], [60, -60])],
)
def test_terms_that_underflow_and_overflow_round_once(
    kernels: Backend, x_exponents: Any, w_exponents: Any, accumulator: Any, same_bits: Any
) -> None:
    for x_fill, w_fill, kind in (
        (127, -127, np.int8),
        (3, 5, np.int8),
        (32767, 32767, np.int16),
        (1.5, -7.0, np.float32),
    ):
        x = extreme((1, 2, 3, 64), x_fill, kind, x_exponents, 2)
        w = extreme((5, 1, 2, 64), w_fill, kind, w_exponents, 2)
        x.mantissas[0, 0, 0, :9] = 0
        expected = reference.conv2d(x, w, Window((1, 2)), 1, accumulator, "khwc", 1)
        assert same_bits(kernels.conv2d(x, w, Window((1, 2)), 1, accumulator, "khwc", 1), expected)


@each_accumulator
def test_the_largest_block_sums_exactly(kernels: Backend, accumulator: Any, same_bits: Any) -> None:
    for kind, fill in ((np.int8, 127), (np.int16, 32767)):
        a = extreme((2, 1 << 16), fill, kind, [3], 1)
        b = extreme((3, 1 << 16), -fill, kind, [-5], 1)
        b.mantissas[0, 5] = fill
        assert same_bits(kernels.matmul(a, b, accumulator, "khwc", 1), reference.matmul(a, b, accumulator, "khwc", 1))


@each_order
@each_accumulator
@pytest.mark.parametrize("name", ["msfp12", "mxfp8_e4m3"])
def test_nan_blocks_spoil_only_the_sums_that_reach_them(
    kernels: Backend, name: str, accumulator: Any, order: Any, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(3)
    x = blocked(numbers(rng, "ordinary", 1, 6, 6, 40), CATALOGUE[name].with_block(8))
    w = blocked(numbers(rng, "ordinary", 20, 3, 3, 40), CATALOGUE[name].with_block(8))
    x.exponents[0, 2, 1, 3] = NAN_EXPONENT
    w.exponents[4, 0, 2, 1] = NAN_EXPONENT  # a tap that hangs over the edge for some outputs
    window = Window((3, 3), pads=(1, 1, 1, 1))
    expected = reference.conv2d(x, w, window, 1, accumulator, order, 1)
    assert 0 < np.isnan(expected[..., 4]).sum() < 36
    assert 0 < np.isnan(expected[..., 5]).sum() < 36
    assert same_bits(kernels.conv2d(x, w, window, 1, accumulator, order, 2), expected)


@each_accumulator
def test_infinite_and_nan_float32_operands_add_as_in_ieee_754(
    kernels: Backend, accumulator: Any, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(4)
    x, w = numbers(rng, "ordinary", 1, 4, 4, 3), numbers(rng, "ordinary", 12, 3, 3, 3)
    x[0, 1, 1, 0], x[0, 3, 2, 1], x[0, 0, 3, 2] = np.inf, -np.inf, np.nan
    w[2, 0, 0, 1] = np.inf
    operands = blocked(x, CATALOGUE["fp32"]), blocked(w, CATALOGUE["fp32"])
    args = (*operands, Window((3, 3), pads=(1, 1, 1, 1)), 1, accumulator, "khwc")
    expected = reference.conv2d(*args, 1)
    assert np.isinf(expected).any()
    assert same_bits(kernels.conv2d(*args, 1), expected)


@each_accumulator
def test_matmul_is_the_reference(
    kernels: Backend, accumulator: Any, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(5)
    for name in CATALOGUE:
        for rows, outputs, n in ((1, 1, 1), (1, 19, 130), (7, 8, 128), (9, 3, 33)):
            a = blocked(numbers(rng, "ordinary", rows, n), CATALOGUE[name])
            b = blocked(numbers(rng, "ordinary", outputs, n), CATALOGUE[name])
            expected = reference.matmul(a, b, accumulator, "khwc", 1)
            for threads in (1, 2):
                assert same_bits(kernels.matmul(a, b, accumulator, "khwc", threads), expected)


@each_accumulator
def test_the_bits_do_not_depend_on_the_thread_count(
    kernels: Backend, accumulator: Any, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(6)
    fmt = CATALOGUE["msfp14"]
    x, w = blocked(numbers(rng, "spread", 2, 9, 7, 48), fmt), blocked(numbers(rng, "spread", 40, 3, 3, 48), fmt)
    one, *more = (kernels.conv2d(x, w, WINDOW_3, 1, accumulator, "khwc", threads) for threads in (1, 2, 3, 64))
    assert all(same_bits(one, other) for other in more)


WINDOW_3 = Window((3, 3), pads=(1, 1, 1, 1))


def test_the_reference_in_fp32_is_a_convolution(numbers: Any, blocked: Any) -> None:
    rng = np.random.default_rng(7)
    x, w = numbers(rng, "ordinary", 2, 5, 6, 8), numbers(rng, "ordinary", 4, 2, 3, 8)
    expected = np.zeros((2, *WINDOW.output_size(5, 6), 4))
    for y, z, kh, kw, row, column in positions(WINDOW, 5, 6):
        expected[:, y, z] += np.einsum("nc,oc->no", x[:, row, column].astype(np.float64), w[:, kh, kw])
    for accumulator in ("fp32", "exact"):
        got = reference.conv2d(
            blocked(x, CATALOGUE["fp32"]), blocked(w, CATALOGUE["fp32"]), WINDOW, 1, accumulator, "khwc", 1
        )
        np.testing.assert_allclose(got, expected, rtol=0, atol=48 * 2.0**-24 * np.abs(x).max() * np.abs(w).max() * 48)


@pytest.mark.parametrize("name", ["msfp12", "bw_1s5e5m", "mxint8", "mxfp4_e2m1", "fp16_bfp"])
def test_the_exact_sum_of_the_reference_is_the_rational_one_rounded(name: str, numbers: Any) -> None:
    rng = np.random.default_rng(8)
    fmt = CATALOGUE[name]

    def quantized(*shape: int) -> tuple[Any, Operand]:
        codes, exponents = reference.quantize(numbers(rng, "spread", *shape), fmt, "even", 0)
        tensor = BlockTensor(np.ascontiguousarray(codes[:, : shape[1]]), exponents, fmt, 1)
        return tensor.dequantize(), operand(tensor)

    (a, a_operand), (b, b_operand) = quantized(3, 150), quantized(4, 150)
    got = reference.matmul(a_operand, b_operand, "exact", "khwc", 1)
    for i, j in np.ndindex(3, 4):
        exact = sum((Fraction(float(p)) * Fraction(float(q)) for p, q in zip(a[i], b[j], strict=True)), Fraction(0))
        error = abs(Fraction(float(got[i, j])) - exact)
        assert error <= Fraction(float(np.spacing(np.abs(got[i, j])))) / 2


def test_skipping_blocks_outside_the_group_changes_no_finite_result(numbers: Any, blocked: Any, same_bits: Any) -> None:
    rng = np.random.default_rng(9)
    fmt = CATALOGUE["msfp16"].with_block(4)
    x = blocked(numbers(rng, "ordinary", 1, 4, 4, 12), fmt)
    w = numbers(rng, "ordinary", 6, 2, 2, 12)
    for o, c in np.ndindex(6, 12):
        if o // 2 != c // 4:
            w[o, :, :, c] = 0.0
    grouped = reference.conv2d(x, blocked(w, fmt), Window((2, 2)), 3, "fp32", "khwc", 1)
    assert same_bits(grouped, reference.conv2d(x, blocked(w, fmt), Window((2, 2)), 1, "fp32", "khwc", 1))


def test_the_order_of_the_sum_matters_in_fp32_and_not_exactly(kernels: Backend, numbers: Any, blocked: Any) -> None:
    rng = np.random.default_rng(10)
    fmt = CATALOGUE["msfp16"]
    x, w = blocked(numbers(rng, "spread", 1, 6, 6, 64), fmt), blocked(numbers(rng, "ordinary", 8, 3, 3, 64), fmt)
    by_order = {(a, o): kernels.conv2d(x, w, WINDOW_3, 1, a, o, 1) for a in ("fp32", "exact") for o in ORDERS}
    assert (by_order["fp32", "khwc"] != by_order["fp32", "chwk"]).any()
    assert (by_order["exact", "khwc"] == by_order["exact", "chwk"]).all()


@pytest.mark.parametrize("name", ["msfp16", "fp16_bfp", "mxfp8_e4m3", "fp32"])
@pytest.mark.parametrize("dilation", [1 << 25, 1 << 40])
def test_taps_may_be_any_distance_apart(
    kernels: Backend, name: str, dilation: int, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng, fmt = np.random.default_rng(8), CATALOGUE[name]
    for kernel, pads, apart in (
        ((2, 1), (0, 0, dilation, 0), (dilation, 1)),
        ((1, 2), (0, 0, 0, dilation), (1, dilation)),
        ((3, 1), (2 * dilation, 0, 0, 0), (dilation, 1)),
    ):
        x = blocked(numbers(rng, "ordinary", 2, 3, 2, 64), fmt)
        w, window = blocked(numbers(rng, "ordinary", 5, *kernel, 64), fmt), Window(kernel, (1, 1), pads, apart)
        got, expected = (k.conv2d(x, w, window, 1, "fp32", "khwc", 1) for k in (kernels, Reference()))
        assert same_bits(got, expected)
