"""The chain that runs in place computes what `kernels/pointwise.py` defines, bit for bit."""

import numpy as np
import pytest

from fpgasim.kernels import pointwise as unit
from fpgasim.npu import Stage
from fpgasim.runtime.stages import PIECE, count_limits, round_in_place, run_chain

from .evaluator import same_bits

#: Every float32 that has no bits below the eighth-last, and its neighbours around what fp16 and bf16 round at.
ENDINGS = (0, 1, 0x7F, 0x80, 0xFF)


@pytest.mark.parametrize("pointwise", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_rounding_in_place_is_the_definition_for_every_upper_half_of_a_float(pointwise, ending):
    # fp16 keeps 10 bits of the fraction, the 11th and the rest decide: all sign, exponent, fraction bits down to the
    # 12th, with every ending below them that can matter.
    upper = np.arange(1 << 21, dtype=np.uint32) << np.uint32(11)
    x = (upper | np.uint32(ending)).view(np.float32)
    for values in (x, x[np.isfinite(x)]):
        expected = unit.round_to(values.copy(), pointwise)
        got = values.copy()
        with np.errstate(all="ignore"):
            saturated = round_in_place(got, pointwise, [np.empty_like(got), np.empty_like(got)])
        assert same_bits(got, expected)
        assert saturated == unit.count_overflows(values, pointwise)


@pytest.mark.parametrize("pointwise", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("pixels", [1, 7, PIECE // 40 + 3])
def test_a_chain_is_its_stages_one_after_the_other(pointwise, pixels):
    rng = np.random.default_rng(0)
    source = (rng.standard_normal((pixels, 40)) * 300).astype(np.float32)
    source[0, :5] = np.nan, -0.0, np.inf, 1e-7, 3e38
    image, vector, one = (
        unit.round_to((rng.standard_normal(shape) * 300).astype(np.float32), pointwise)
        for shape in ((pixels, 40), 40, 1)
    )
    operands = {"image": image, "vector": vector, "one": one}
    stages = [
        Stage("bias", "a", "vector"), Stage("mul", "b", "image"), Stage("sub", "c", "one", swapped=True),
        Stage("sub", "d", "image"), Stage("max", "e", "vector"), Stage("relu", "f"), Stage("add", "g", "one"),
        Stage("mul", "h", "one"), Stage("clip", "i", low=-0.0, high=6.0), Stage("tanh", "j"), Stage("sigmoid", "k"),
    ]  # fmt: skip
    v = unit.round_to(source, pointwise)
    overflows = unit.count_overflows(source, pointwise)
    expected = [v]
    for stage in stages:
        operand = operands.get(stage.operand or "", one)
        with np.errstate(all="ignore"):
            exact = {
                "add": v.astype(np.float64) + operand,
                "bias": v.astype(np.float64) + operand,
                "mul": v.astype(np.float64) * operand,
                "sub": (operand.astype(np.float64) - v) if stage.swapped else (v.astype(np.float64) - operand),
            }.get(stage.kind)
            if exact is not None:
                overflows += unit.count_overflows(exact, pointwise)
        match stage.kind:
            case "add" | "bias":
                v = unit.add(v, operand, pointwise)
            case "mul":
                v = unit.mul(v, operand, pointwise)
            case "sub":
                v = unit.add(operand, -v, pointwise) if stage.swapped else unit.add(v, -operand, pointwise)
            case "max":
                v = np.maximum(v, operand) + np.float32(0)
            case "relu":
                v = unit.relu(v)
            case "clip":
                v = unit.clip(v, stage.low, stage.high)
            case "tanh":
                v = unit.tanh(v, pointwise)
            case "sigmoid":
                v = unit.sigmoid(v, pointwise)
        expected.append(v)
    results = {i: np.empty_like(source) for i in range(-1, len(stages))}
    assert run_chain(source, stages, operands.__getitem__, pointwise, results, 2, unrounded=True) == overflows
    assert [i for i in results if not same_bits(results[i], expected[i + 1])] == []
    # The last result may overwrite the source, and a source that is of the type already is not rounded again.
    rounded = expected[0].copy()
    run_chain(rounded, stages, operands.__getitem__, pointwise, {len(stages) - 1: rounded}, 1, unrounded=False)
    assert same_bits(rounded, expected[-1])


def test_values_at_the_limit_of_fp16_are_counted():
    x = np.array([65504, -65504, 65472, np.nan, 0], np.float32)
    assert [count_limits(x, kind) for kind in ("fp16", "bf16", "fp32")] == [2, 0, 0]
