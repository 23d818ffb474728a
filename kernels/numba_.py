"""The kernels compiled by Numba: the backend of machines without a C compiler.

The loops are in `numba_loops.py`, which is imported, and so compiled, at the first call.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import replace
from typing import Any

import numpy as np

from fpgasim.kernels.contract import (
    POINTWISE,
    Accumulator,
    Array,
    Float32Array,
    Int16Array,
    Operand,
    Order,
    Pointwise,
    Window,
    engines_of,
    fixed_of,
)
from fpgasim.kernels.numpy_unit import PointwiseUnit, given, given_pair
from fpgasim.kernels.parallel import split
from fpgasim.kernels.weights import WeightCache
from fpgasim.numerics import NAN_EXPONENT, ROUNDINGS, BlockFormat, Rounding
from fpgasim.numerics.scalar import encode_element
from fpgasim.numerics.tensors import code_dtype


@functools.cache
def _loops() -> Any:
    return importlib.import_module("fpgasim.kernels.numba_loops")


class Numba(PointwiseUnit):
    """Float arithmetic throughout: integers up to 2^24 are exact in float32, up to 2^53 in float64.

    Numba compiles a loop once for each type of its arguments, and a read-only array is another type: those are copied.
    """

    name = "numba"

    def __init__(self) -> None:
        self._weights: WeightCache[tuple[Array, Array]] = WeightCache()

    def quantize(
        self,
        x: Float32Array,
        fmt: BlockFormat,
        rounding: Rounding,
        seed: int,
        /,
        out: tuple[Array, Int16Array] | None = None,
    ) -> tuple[Array, Int16Array]:
        rows, n = x.shape
        if fmt.is_fp32:
            return given_pair(x.copy(), np.zeros((rows, n), np.int16), out)
        blocks = -(-n // fmt.block)
        codes = np.zeros((rows, blocks * fmt.block), np.int16)
        exponents = np.empty((rows, blocks), np.int16)
        low, high = fmt.exponent_range
        above = NAN_EXPONENT if fmt.exponent_bits == 8 else high
        emin, largest = 0, fmt.max_code
        if fmt.is_float:
            emin, largest = fmt.element_emin, encode_element(fmt.element_max, 0, fmt, "floor")
        _loops().quantize(
            np.require(x, requirements="W"), fmt.block, fmt.mantissa_bits, fmt.element_exponent_bits, emin,
            fmt.element_emax, largest, low, high, above, ROUNDINGS.index(rounding),
            np.uint64(seed & (1 << 64) - 1), codes, exponents,
        )  # fmt: skip
        return given_pair(codes.astype(code_dtype(fmt)), exponents, out)

    def conv2d(
        self,
        x: Operand,
        w: Operand,
        window: Window,
        groups: int,
        accumulator: Accumulator,
        order: Order,
        threads: int,
        /,
    ) -> Float32Array:
        loops, weights = _loops(), w
        modes = loops.sums
        n, height, width, _ = x.mantissas.shape
        oh, ow = window.output_size(height, width)
        outputs, kh, kw, _ = w.mantissas.shape
        integers = np.float32 not in (x.mantissas.dtype, w.mantissas.dtype)
        bound = _largest(x) * _largest(w) * x.block if integers else 0.0
        kind = np.dtype(np.float32 if bound <= 1 << 24 else np.float64)
        mode = modes.FP32
        if x.exponents is None and accumulator == "fp32" and order == "khwc":
            # Blocks of one with a scale of one: a tap's products go straight into the sum.
            mode = modes.PLAIN
            x, w = (replace(o, block=o.channels // groups) for o in (x, w))
        a = x.mantissas.reshape(-1, x.blocks, x.block).astype(kind)
        b, b_scales = self._weights.get(weights, (kind, w.block), lambda: _pack(w, kind))
        fixed = fixed_of(accumulator)
        if accumulator == "exact":
            spread = bound * (kh * kw * x.blocks) * 2.0 ** (_spread(x) + _spread(w))
            mode = modes.DOUBLE if integers and spread < 2.0**53 else modes.LIMBS
        elif fixed:
            mode = {"wrap": modes.WRAP, "saturate": modes.SATURATE}[fixed.overflow]
        elif accumulator in ("fp16", "bf16"):
            mode = POINTWISE.index(accumulator)
        engines = 1 if accumulator == "exact" else min(engines_of(order), kh * kw * x.blocks)
        sizes = np.array([height, width, oh, ow, *window.kernel, *window.stride, *window.pads[:2], *window.dilation])
        result = np.empty((n * oh * ow, outputs), np.float32)
        layer = (sizes, groups, x.channels, order == "chwk")
        operands = (a, _scales(x), b, b_scales)
        run = functools.partial(loops.conv2d, *layer, mode, *operands)
        if mode not in (modes.PLAIN, modes.FP32, modes.DOUBLE, modes.LIMBS) or engines > 1:
            digits = (fixed.bits, fixed.fraction) if fixed else (64, 0)
            run = functools.partial(loops.conv2d_ordered, *layer, engines, mode, digits, *operands)
        split(n * oh * ow, threads, lambda first, last: run(first, last, result))
        return result.reshape(n, oh, ow, outputs)

    def matmul(self, a: Operand, b: Operand, accumulator: Accumulator, order: Order, threads: int, /) -> Float32Array:
        x, w = (Operand(o.mantissas[:, None, None], o.exponents, o.block, o.fraction_bits, o.channels) for o in (a, b))
        return self.conv2d(x, w, Window((1, 1)), 1, accumulator, order, threads)[:, 0, 0]

    def depthwise(
        self,
        x: Float32Array,
        w: Float32Array,
        window: Window,
        pointwise: Pointwise,
        threads: int,
        /,
        out: Float32Array | None = None,
    ) -> Float32Array:
        n, height, width, _ = x.shape
        oh, ow = window.output_size(height, width)
        sizes = np.array([height, width, oh, ow, *window.kernel, *window.stride, *window.pads[:2], *window.dilation])
        result = np.zeros((n * oh * ow, w.shape[2]), np.float32)
        args = (sizes, POINTWISE.index(pointwise), np.require(x, requirements="W"), np.require(w, requirements="W"))
        split(n * oh * ow, threads, lambda first, last: _loops().depthwise(*args, first, last, result))
        return given(result.reshape(n, oh, ow, -1), out)


def _scales(operand: Operand) -> Array:
    """2^(exponent − fraction_bits) of each block (…, blocks) as float64, NaN for a NaN block."""
    if operand.exponents is None:
        return np.ones((operand.mantissas.size // operand.mantissas.shape[-1], operand.blocks))
    scales = np.ldexp(1.0, operand.exponents.astype(np.int32) - operand.fraction_bits)
    scales[operand.exponents == NAN_EXPONENT] = np.nan
    return scales.reshape(-1, operand.blocks)


def _pack(w: Operand, kind: np.dtype[Any]) -> tuple[Array, Array]:
    """Mantissas (taps, blocks, block, outputs) and scales (taps, blocks, outputs): the filters lie side by side."""
    outputs = len(w.mantissas)
    mantissas = w.mantissas.reshape(outputs, -1, w.blocks, w.block).transpose(1, 2, 3, 0).astype(kind)
    scales = _scales(w).reshape(outputs, -1, w.blocks).transpose(1, 2, 0)
    return np.ascontiguousarray(mantissas), np.ascontiguousarray(scales)


def _largest(operand: Operand) -> float:
    return float(np.abs(operand.mantissas.astype(np.int32)).max(initial=0))


def _spread(operand: Operand) -> int:
    """How far apart the exponents of blocks lie that add anything."""
    if operand.exponents is None:
        return 0
    used = operand.mantissas.reshape(*operand.exponents.shape, operand.block).any(axis=-1)
    exponents = operand.exponents[used & (operand.exponents != NAN_EXPONENT)].astype(int)
    return int(exponents.max() - exponents.min()) if exponents.size else 0
