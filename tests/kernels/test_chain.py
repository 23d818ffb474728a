"""Chains of pointwise steps compute what `kernels/pointwise.py` defines step by step, bit for bit."""

import numpy as np
import pytest

from fpgasim.kernels import pointwise as unit
from fpgasim.kernels.contract import Step
from fpgasim.kernels.numpy_unit import PIECE, round_in_place

#: Every float32 that has no bits below the eighth-last, and its neighbours around what fp16 and bf16 round at.
ENDINGS = (0, 1, 0x7F, 0x80, 0xFF)


@pytest.mark.parametrize("pointwise", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_rounding_is_the_definition_for_every_upper_half_of_a_float(kernels, pointwise, ending, same_bits):
    # fp16 keeps 10 bits of the fraction, the 11th and the rest decide: all sign, exponent, fraction bits down to the
    # 12th, with every ending below them that can matter.
    upper = np.arange(1 << 21, dtype=np.uint32) << np.uint32(11)
    x = (upper | np.uint32(ending)).view(np.float32)
    for values in (x, x[np.isfinite(x)]):
        expected = unit.round_to(values.copy(), pointwise)
        got = np.empty((1, values.size), np.float32)
        saturated = kernels.chain(values[None], [], {-1: got}, pointwise, True, 1)
        assert same_bits(got[0], expected)
        assert saturated == unit.count_overflows(values, pointwise)
        with np.errstate(all="ignore"):
            saturated = round_in_place(values, pointwise, [np.empty_like(values), np.empty_like(values)])
        assert same_bits(values, expected)


@pytest.mark.parametrize("pointwise", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize(("pixels", "channels"), [(1, 40), (7, 40), (PIECE // 40 + 3, 40), (3, 5000)])
def test_a_chain_is_its_steps_one_after_the_other(kernels, pointwise, pixels, channels, same_bits):
    rng = np.random.default_rng(0)
    source = (rng.standard_normal((pixels, channels)) * 300).astype(np.float32)
    source[0, :5] = np.nan, -0.0, np.inf, 1e-7, 3e38
    image, vector, one = (
        unit.round_to((rng.standard_normal(shape) * 300).astype(np.float32), pointwise)
        for shape in ((pixels, channels), channels, 1)
    )
    vector[7:9] = -0.0, np.nan
    steps = [
        Step("add", vector), Step("mul", image), Step("sub", one, swapped=True), Step("sub", image),
        Step("max", vector), Step("relu"), Step("add", one), Step("mul", one), Step("clip", low=-0.0, high=6.0),
        Step("tanh"), Step("sigmoid"),
    ]  # fmt: skip
    v = unit.round_to(source, pointwise)
    overflows = unit.count_overflows(source, pointwise)
    expected = [v]
    for step in steps:
        operand = one if step.operand is None else step.operand
        with np.errstate(all="ignore"):
            exact = {
                "add": v.astype(np.float64) + operand,
                "mul": v.astype(np.float64) * operand,
                "sub": (operand.astype(np.float64) - v) if step.swapped else (v.astype(np.float64) - operand),
            }.get(step.kind)
            if exact is not None:
                overflows += unit.count_overflows(exact, pointwise)
        match step.kind:
            case "add":
                v = unit.add(v, operand, pointwise)
            case "mul":
                v = unit.mul(v, operand, pointwise)
            case "sub":
                v = unit.add(operand, -v, pointwise) if step.swapped else unit.add(v, -operand, pointwise)
            case "max":
                v = np.maximum(v, operand) + np.float32(0)
            case "relu":
                v = unit.relu(v)
            case "clip":
                v = unit.clip(v, step.low, step.high)
            case "tanh":
                v = unit.tanh(v, pointwise)
            case "sigmoid":
                v = unit.sigmoid(v, pointwise)
        expected.append(v)
    results = {i: np.empty_like(source) for i in range(-1, len(steps))}
    assert kernels.chain(source, steps, results, pointwise, True, 2) == overflows
    assert [i for i in results if not same_bits(results[i], expected[i + 1])] == []
    # The last result may overwrite the source, and a source that is of the type already is not rounded again.
    rounded = expected[0].copy()
    kernels.chain(rounded, steps, {len(steps) - 1: rounded}, pointwise, False, 1)
    assert same_bits(rounded, expected[-1])


@pytest.mark.parametrize("pointwise", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_tables_are_read_at_every_code(kernels, pointwise, function, same_bits):
    codes = np.arange(1 << 16, dtype=np.uint16)
    x = codes.view(np.float16).astype(np.float32) if pointwise == "fp16" else (codes.astype(np.uint32) << 16).view("f4")
    got = np.empty((16, 4096), np.float32)
    kernels.chain(x.reshape(16, 4096), [Step(function)], {0: got}, pointwise, False, 1)
    with np.errstate(invalid="ignore"):
        assert same_bits(got.reshape(-1), getattr(unit, function)(x, pointwise))
