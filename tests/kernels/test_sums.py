"""How terms add up: the reference against exact fractions, every backend against the reference, and each decision."""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fpgasim.errors import InputError, UnknownNameError
from fpgasim.kernels import Backend, Operand, Window
from fpgasim.kernels.contract import OVERFLOWS, Fixed, engines_of, fixed_of, get_accumulator, get_order
from fpgasim.kernels.reference import Reference
from fpgasim.numerics import CATALOGUE
from fpgasim.numerics.scalar import round_magnitude, round_to_float32

reference = Reference()
FIXED = ["fixed(2,0,wrap)", "fixed(16,8,saturate)", "fixed(32,16,wrap)", "fixed(48,30,saturate)", "fixed(64,20,wrap)",
         "fixed(64,63,saturate)", "fixed(64,0,saturate)"]  # fmt: skip
ROUNDED = ["fp32", "fp16", "bf16", *FIXED]
each_rounded = pytest.mark.parametrize("accumulator", ROUNDED)
#: Bits of precision, exponent of the last bit of the smallest number, largest finite number.
FLOATS = {"fp32": (24, -149, 2.0**128 - 2.0**104), "fp16": (11, -24, 65504.0), "bf16": (8, -133, 2.0**128 - 2.0**120)}


def total(kernels: Backend, terms: Any, accumulator: str, order: str = "khwc") -> Any:
    """The sums of `terms` (sums, terms), float32, taken as blocks of one element against weights of 1."""
    a = np.ascontiguousarray(terms, np.float32)
    zeros = np.zeros(a.shape, np.int16)
    x = Operand(a, zeros, 1, 0, a.shape[1])
    w = Operand(np.ones((1, a.shape[1]), np.float32), zeros[:1].copy(), 1, 0, a.shape[1])
    return kernels.matmul(x, w, accumulator, order, 1)[:, 0]


def rounded(v: Fraction, kind: str) -> float:
    """`v` rounded once to a float type, by its definition."""
    precision, lowest, largest = FLOATS[kind]
    if v == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(v.numerator)) - math.log2(v.denominator)) - 1
    while abs(v) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** max(exponent - precision + 1, lowest)
    magnitude = round_magnitude(abs(v) / unit, "even") * unit
    if magnitude > largest:
        return math.copysign(largest if kind == "fp16" else math.inf, v)
    return math.copysign(float(magnitude), v)


def add_float(acc: float, t: float, kind: str) -> float:
    if not (math.isfinite(acc) and math.isfinite(t)):
        result = acc + t
        return math.copysign(65504.0, result) if kind == "fp16" and math.isinf(result) else result
    return rounded(Fraction(acc) + Fraction(t), kind)


def sum_of(terms: Iterable[float], accumulator: str) -> float:
    """One sum, term by term, in Python's fractions."""
    fixed = fixed_of(accumulator)
    if fixed is None:
        acc = 0.0
        for t in terms:
            acc = add_float(acc, t, accumulator)
        return acc + 0.0
    whole, half = 0, 1 << fixed.bits - 1
    for t in terms:
        if math.isnan(t) or (math.isinf(t) and fixed.overflow == "wrap"):
            return math.nan
        if math.isinf(t):
            t = math.copysign(2.0**200, t)
        q = round_magnitude(abs(Fraction(t)) * 2**fixed.fraction, "even")
        whole += -q if t < 0 else q
        whole = (whole + half) % (2 * half) - half if fixed.overflow == "wrap" else max(-half, min(half - 1, whole))
    return round_to_float32(whole, -fixed.fraction)


def hard_terms(rng: np.random.Generator, rows: int, n: int) -> Any:
    """Float32 terms among which sums often lie halfway between two results, or beside that by the least there is."""
    bits = rng.choice([1, 8, 9, 11, 12, 13, 24], (rows, n))
    mantissas = rng.integers(0, 1 << 24, (rows, n)) >> (24 - bits) << (24 - bits) | 1 << 23
    exponents = rng.choice([-149, -130, -50, -26, -25, -24, -14, -1, 0, 4, 12, 15, 16, 17, 60, 104], (rows, n))
    terms = np.ldexp(mantissas / 2.0**23, exponents + rng.integers(-2, 3, (rows, n))) * rng.choice([-1, 1], (rows, n))
    terms = np.where(rng.random((rows, n)) < 0.1, 0.0, terms)
    terms = terms.astype(np.float32)
    terms[rng.random((rows, n)) < 0.01] = np.inf
    terms[rng.random((rows, n)) < 0.01] = -np.inf
    terms[rng.random((rows, n)) < 0.005] = np.nan
    terms[rng.random((rows, n)) < 0.02] = np.finfo(np.float32).max
    return terms


@each_rounded
def test_the_reference_adds_like_exact_fractions_rounded_once(accumulator: str, same_bits: Any) -> None:
    terms = hard_terms(np.random.default_rng(0), 800, 6)
    expected = np.array([sum_of(row, accumulator) for row in terms.astype(float).tolist()], np.float32)
    assert same_bits(total(reference, terms, accumulator), expected)


@each_rounded
@pytest.mark.parametrize("order", ["khwc", "tree(4)", "tree(5)"])
def test_hard_terms_add_up_as_in_the_reference(kernels: Backend, accumulator: str, order: str, same_bits: Any) -> None:
    terms = hard_terms(np.random.default_rng(1), 4000, 11)
    assert same_bits(total(kernels, terms, accumulator, order), total(reference, terms, accumulator, order))


def test_a_sum_halfway_between_two_results_rounds_by_what_lies_far_below(kernels: Backend) -> None:
    # In double 2^-60 is lost beside 1 + 2^-8, halfway between the bf16 numbers 1 and 1 + 2^-7.
    tiny, half = 2.0**-60, 1 + 2.0**-8
    assert total(kernels, [[tiny, half], [-tiny, half], [0, half]], "bf16").tolist() == [1 + 2.0**-7, 1.0, 1.0]
    # In float32 2^-24 is lost beside 2048 + 1, halfway between the fp16 numbers 2048 and 2050.
    tiny, half = 2.0**-24, 2049.0
    assert total(kernels, [[tiny, half], [-tiny, half], [0, half]], "fp16").tolist() == [2050.0, 2048.0, 2048.0]


def test_fp16_saturates_and_a_saturated_sum_goes_on(kernels: Backend) -> None:
    terms = [[65504, 16], [-65504, -16], [1e30, -1e30], [np.inf, -480.0], [65504, -65504 * 2]]
    assert total(kernels, terms, "fp16").tolist() == [65504.0, -65504.0, -65504.0, 65024.0, -65504.0]


def test_bf16_overflows_to_infinity_and_infinities_cancel_to_nan(kernels: Backend) -> None:
    largest = 2.0**128 - 2.0**120
    got = total(kernels, [[largest, 2.0**118, 0], [largest, 2.0**119, 0], [np.inf, 1, -np.inf]], "bf16")
    assert got[:2].tolist() == [largest, np.inf]
    assert np.isnan(got[2])


@pytest.mark.parametrize("accumulator", ["fp16", "bf16", "fixed(16,8,wrap)", "fixed(16,8,saturate)"])
def test_a_nan_stays(kernels: Backend, accumulator: str) -> None:
    assert np.isnan(total(kernels, [[1, np.nan, 2, -np.inf], [np.nan, 0, 0, 0]], accumulator)).all()


@pytest.mark.parametrize("accumulator", ["fp32", "fp16", "bf16", "fixed(8,3,wrap)"])
def test_a_result_of_zero_is_plus_zero(kernels: Backend, accumulator: str) -> None:
    got = total(kernels, [[-0.0, -0.0], [-(2.0**-140), 2.0**-140], [-(2.0**-149), 0]], accumulator)
    assert not np.signbit(got[got == 0]).any()
    assert (got[:2] == 0).all()


def test_fixed_point_wraps_or_saturates_and_rounds_each_term_to_even(kernels: Backend) -> None:
    # 4 bits, one behind the point: from -4 to 3.5 in steps of a half.
    terms = [[3, 1], [-4, -1], [0.25, 0], [0.75, 0], [-0.25, -0.25], [3, 3], [100, -0.5], [2.0**90, 1.5]]
    assert total(kernels, terms, "fixed(4,1,saturate)").tolist() == [3.5, -4, 0, 1, 0, 3.5, 3, 3.5]
    assert total(kernels, terms, "fixed(4,1,wrap)").tolist() == [-4, 3, 0, 1, 0, -2, 3.5, 1.5]


def test_an_infinite_term_is_beyond_the_range_where_that_is_clamped_and_nan_where_it_wraps(kernels: Backend) -> None:
    assert total(kernels, [[np.inf, -1], [-np.inf, 1]], "fixed(8,0,saturate)").tolist() == [126, -127]
    assert np.isnan(total(kernels, [[np.inf, -1], [1, -np.inf]], "fixed(8,0,wrap)")).all()


def test_64_bits_are_all_used(kernels: Backend) -> None:
    big = 2.0**63
    terms = [[-big, big, 3], [-big, big + 2.0**40, 0], [-big, 2 * big - 2.0**40, 0], [-big, 2 * big, 0], [big, 1, -1]]
    assert total(kernels, terms, "fixed(64,0,saturate)").tolist() == [3, 2.0**40, big - 2.0**40, big, big]
    wrapped = total(kernels, [[big, big, 5], [3 * 2.0**62, 0, 0], [2.0**88, 7, 0]], "fixed(64,0,wrap)")
    assert wrapped.tolist() == [5, -(2.0**62), 7]


def test_a_tree_adds_every_t_th_term_and_then_neighbours(kernels: Backend) -> None:
    def add(*terms: float) -> float:
        return sum_of(terms, "bf16")

    t = np.random.default_rng(2).standard_normal(11).astype(np.float32)
    v = t.astype(float).tolist()
    expected = {
        1: add(*v),
        2: add(add(*v[::2]), add(*v[1::2])),
        3: add(add(add(*v[::3]), add(*v[1::3])), add(*v[2::3])),
        5: add(add(add(add(*v[::5]), add(*v[1::5])), add(add(*v[2::5]), add(*v[3::5]))), add(*v[4::5])),
    }
    one = [add(t) for t in v]  # what an engine makes of a single term
    pairs = [add(a, b) for a, b in zip(one[::2], one[1::2], strict=False)]
    expected[16] = add(add(add(pairs[0], pairs[1]), add(pairs[2], pairs[3])), add(pairs[4], one[10]))
    expected[1024] = expected[16]
    assert len(set(expected.values())) > 2
    for engines, value in expected.items():
        assert total(kernels, t[None], "bf16", f"tree({engines})").tolist() == [value]


def test_a_block_outside_the_image_keeps_its_place_in_the_tree(kernels: Backend) -> None:
    # One row of three taps over the pixels 1, 2^-8, 2^-8; the output at the left edge has its first tap outside.
    x = np.array([1, 2.0**-8, 2.0**-8], np.float32).reshape(1, 1, 3, 1)
    zeros = np.zeros(3, np.int16)
    a = Operand(x, zeros.reshape(1, 1, 3, 1), 1, 0, 1)
    b = Operand(np.ones((1, 1, 3, 1), np.float32), zeros.reshape(1, 1, 3, 1).copy(), 1, 0, 1)
    window = Window((1, 3), pads=(0, 1, 0, 1))
    got = kernels.conv2d(a, b, window, 1, "bf16", "tree(2)", 1)[0, 0, :, 0].tolist()
    # Middle: engine 0 has 1 + 2^-8, which rounds to 1, and so does the tree's sum. Left edge: engine 0 has the last
    # tap, engine 1 the middle one.
    assert got == [1.0, 1.0, 2.0**-7]
    assert kernels.conv2d(a, b, window, 1, "bf16", "tree(3)", 1)[0, 0, 1, 0] == 1.0


@pytest.mark.parametrize("accumulator", ["fp32", "exact", "fixed(32,12,wrap)"])
def test_trees_that_round_nothing_change_nothing(kernels: Backend, accumulator: str) -> None:
    terms = np.random.default_rng(3).integers(-1000, 1000, (50, 40)) / 16
    one = total(kernels, terms, accumulator)
    for order in ("tree(1)", "tree(3)", "tree(64)"):
        assert (total(kernels, terms, accumulator, order) == one).all()


@pytest.mark.parametrize("order", ["khwc", "chwk", "tree(3)", "tree(64)"])
@pytest.mark.parametrize("accumulator", ["fp16", "bf16", "fixed(24,10,saturate)"])
def test_formats_of_every_kind_add_up_as_in_the_reference(
    kernels: Backend, accumulator: str, order: str, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(4)
    window = Window((2, 3), stride=(2, 1), pads=(1, 0, 2, 3), dilation=(1, 2))
    for name in ("msfp12", "bw_1s5e5m", "fp16_bfp", "mxfp4_e2m1", "mxfp8_e4m3", "fp32"):
        for kind in ("ordinary", "spread", "any"):
            x = blocked(numbers(rng, kind, 1, 5, 4, 37), CATALOGUE[name])
            w = blocked(numbers(rng, "ordinary", 9, 2, 3, 37), CATALOGUE[name])
            expected = reference.conv2d(x, w, window, 1, accumulator, order, 1)
            assert same_bits(kernels.conv2d(x, w, window, 1, accumulator, order, 2), expected), (name, kind)


@given(st.integers(2, 64), st.data())
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_accumulators_and_orders_read_back_what_they_say(bits: int, data: st.DataObject) -> None:
    fraction, overflow = data.draw(st.integers(0, bits - 1)), data.draw(st.sampled_from(OVERFLOWS))
    name = get_accumulator(f"fixed( {bits}, {fraction} ,{overflow} )")
    assert name == f"fixed({bits},{fraction},{overflow})" == str(Fixed(bits, fraction, overflow))
    assert fixed_of(name) == Fixed(bits, fraction, overflow)
    assert get_order(f"tree( {bits} )") == f"tree({bits})"
    assert engines_of(f"tree({bits})") == bits


def test_plain_names_stay_what_they_are() -> None:
    assert [get_accumulator(a) for a in ("fp32", "fp16", "bf16", "exact")] == ["fp32", "fp16", "bf16", "exact"]
    assert [(get_order(o), engines_of(o)) for o in ("khwc", "chwk")] == [("khwc", 1), ("chwk", 1)]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("fp8", UnknownNameError, r"no accumulator 'fp8'; there are fp32, .*fixed\(bits,frac,wrap\|saturate\)"),
        ("fixed(8,4)", UnknownNameError, r"no accumulator 'fixed\(8,4\)'"),
        ("fixed(8,4,clip)", UnknownNameError, "no accumulator"),
        (None, UnknownNameError, "no accumulator None"),
        ("fixed(1,0,wrap)", InputError, r"accumulator fixed\(1,0,wrap\): 1 bits will not do; 2 to 64 would"),
        ("fixed(8,9,wrap)", InputError, "9 of 8 bits behind the point will not do; 0 to 7 would"),
    ],
)
def test_a_bad_accumulator_is_named_with_what_would_do(name: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        get_accumulator(name)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("tree", UnknownNameError, r"no order 'tree'; there are khwc, chwk, tree\(T\)"),
        (3, UnknownNameError, "no order 3"),
        ("tree(0)", InputError, r"order tree\(0\): 0 engines will not do; 1 to 1024 would"),
        ("tree(2000)", InputError, "2000 engines will not do"),
    ],
)
def test_a_bad_order_is_named_with_what_would_do(name: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        get_order(name)
