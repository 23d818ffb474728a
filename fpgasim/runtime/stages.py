"""A chain of pointwise stages over a layer's result, piece by piece and in place.

The bits are those of `kernels/pointwise.py`, which defines each step; only the passes over memory are fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fpgasim.kernels import pointwise as unit
from fpgasim.kernels.contract import Float32Array, Pointwise
from fpgasim.kernels.parallel import split
from fpgasim.npu import Stage

#: Elements of a piece: it goes through the whole chain while it stays in the processor's second-level cache.
PIECE = 1 << 15


def run_chain(
    source: Float32Array,
    stages: Sequence[Stage],
    operand: Callable[[str], Float32Array],
    pointwise: Pointwise,
    results: Mapping[int, Float32Array],
    threads: int,
    *,
    unrounded: bool,
) -> int:
    """Fills `results` from `source` (pixels, C) and returns how many values saturated.

    `results[i]` takes what stage i makes, `results[-1]` the rounded source; it may be `source` itself.
    `operand(name)` is (pixels, C), (C,) or (1,) and of the pointwise type, and so is `source` if not `unrounded`.
    """
    pixels, channels = source.shape
    operands = [None if stage.operand is None else operand(stage.operand) for stage in stages]
    step = max(1, PIECE // channels)
    counts: list[int] = []

    def work(first_piece: int, last_piece: int) -> None:
        buffer = np.empty((3, min(step, pixels), channels), np.float32)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for first in range(first_piece * step, min(last_piece * step, pixels), step):
                piece = slice(first, min(first + step, pixels))
                v, *scratch = buffer[:, : piece.stop - first]
                v[:] = source[piece]
                if unrounded:
                    counts.append(round_in_place(v, pointwise, scratch))
                if -1 in results:
                    results[-1][piece] = v
                for i, (stage, values) in enumerate(zip(stages, operands, strict=True)):
                    other = values[piece] if values is not None and values.ndim == 2 else values
                    counts.append(_apply(stage, v, other, pointwise, scratch))
                    if i in results:
                        results[i][piece] = v

    split(-(-pixels // step), threads, work)
    return sum(counts)


def _apply(
    stage: Stage, v: Float32Array, operand: Float32Array | None, pointwise: Pointwise, scratch: Sequence[Float32Array]
) -> int:
    """`stage` on `v` in place; returns how many values saturated."""
    kind = stage.kind
    if operand is None:
        if kind == "relu":
            np.maximum(v, np.float32(0.0), out=v)
            v += np.float32(0.0)  # -0 becomes +0
        elif kind == "clip":
            np.clip(v, np.float32(stage.low), np.float32(stage.high), out=v)
            v += np.float32(0.0)
        elif kind == "sigmoid":
            v[:] = unit.sigmoid(v, pointwise)
        else:
            assert kind == "tanh"
            v[:] = unit.tanh(v, pointwise)
        return 0
    if kind == "max":
        np.maximum(v, operand, out=v)
        v += np.float32(0.0)
        return 0
    if kind == "mul":
        if pointwise == "bf16":
            v[:] = unit.mul(v, operand, pointwise)
            return 0
        v *= operand
    elif kind == "sub":
        np.subtract(*((operand, v) if stage.swapped else (v, operand)), out=v)
    else:
        assert kind in ("add", "bias")
        v += operand
    return round_in_place(v, pointwise, scratch)


def round_in_place(v: Float32Array, pointwise: Pointwise, scratch: Sequence[Float32Array]) -> int:
    """`unit.round_to` on contiguous `v`, with two arrays of its shape to work in; returns how many values saturated."""
    if pointwise == "fp32":
        return 0
    a, b = scratch
    bits, work = v.view(np.uint32), a.view(np.uint32)
    if pointwise == "bf16":
        if np.isnan(v.max(initial=0.0)):
            v[:] = unit.round_to(v, pointwise)
            return 0
        np.right_shift(bits, np.uint32(16), out=work)
        work &= np.uint32(1)
        work += np.uint32(0x7FFF)
        bits += work
        bits &= np.uint32(0xFFFF0000)
        return 0
    saturated = 0
    np.abs(v, out=a)
    if not a.max(initial=0.0) < unit.FP16_OVERFLOW:
        saturated = unit.count_overflows(v, pointwise)
        np.clip(v, np.float32(-unit.FP16_MAX), np.float32(unit.FP16_MAX), out=v)
    # Adding 1.5·2^13·2^e to x, e its exponent but at least fp16's lowest, -14, leaves x's multiples of fp16's last
    # place, 2^(e-10), as float32's last place: the sum is rounded there, to even, and the difference is exact.
    np.bitwise_and(bits, np.uint32(0x7F800000), out=work)
    np.maximum(a, np.float32(2.0**-14), out=a)
    a *= np.float32(1.5 * 2**13)
    np.add(v, a, out=b)
    b -= a
    bits &= np.uint32(0x80000000)  # the sign, also of what became zero
    bits |= b.view(np.uint32)
    return saturated


def count_limits(x: npt.NDArray[np.float32], pointwise: Pointwise) -> int:
    """How many elements lie at ±65504, where fp16 saturates."""
    return int(np.count_nonzero(np.abs(x) == unit.FP16_MAX)) if pointwise == "fp16" else 0
