"""What the stages of a layer are to the kernels."""

from __future__ import annotations

import numpy as np

from fpgasim.kernels.contract import Float32Array, Pointwise, Step
from fpgasim.kernels.pointwise import FP16_MAX
from fpgasim.npu import Stage


def step_of(stage: Stage, operand: Float32Array | None) -> Step:
    """`stage` on its `operand`, which is (pixels, C), (C,) or (1,)."""
    return Step("add" if stage.kind == "bias" else stage.kind, operand, stage.swapped, stage.low, stage.high)


def count_limits(x: Float32Array, pointwise: Pointwise) -> int:
    """How many elements lie at ±65504, where fp16 saturates."""
    return int(np.count_nonzero(np.abs(x) == FP16_MAX)) if pointwise == "fp16" else 0
