"""The kernels compiled by Numba: the backend of machines without a C compiler.

The loops are in `numba_loops.py`, which is imported, and so compiled, at the first call.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
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
    Step,
    Unquantized,
    Window,
    engines_of,
    fixed_of,
)
from fpgasim.kernels.numpy_unit import PointwiseUnit, given, given_pair
from fpgasim.kernels.parallel import split
from fpgasim.kernels.weights import WeightCache
from fpgasim.numerics import NAN_EXPONENT, ROUNDINGS, BlockFormat, Rounding
from fpgasim.numerics.tensors import code_dtype


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(f"fpgasim.kernels.numba_{name}")


class Numba(PointwiseUnit):
    """Float arithmetic throughout: integers up to 2^24 are exact in float32, up to 2^53 in float64.

    Numba compiles a loop once for each type of its arguments, and a read-only array is another type: those are copied.
    """

    name = "numba"

    def __init__(self) -> None:
        self._weights: WeightCache[tuple[Array, Array]] = WeightCache()
        self._rows: WeightCache[Operand] = WeightCache()

    @functools.cached_property
    def tiles(self) -> Any:
        return _module("bytes").TileConvolution(_module("vectors").dots_here())

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
        blocks, kind = -(-n // fmt.block), code_dtype(fmt)
        if out is None:
            out = np.empty((rows, blocks * fmt.block), kind), np.empty((rows, blocks), np.int16)
        codes, exponents = out
        signed = np.int16 if kind == np.int16 else np.int8  # fewer types to compile for
        quantizer = _module("quantize")
        quantizer.quantize(
            np.require(x, requirements="W"), quantizer.form_of(fmt), ROUNDINGS.index(rounding),
            np.uint64(seed & (1 << 64) - 1), signed(0), codes.view(signed), exponents,
        )  # fmt: skip
        return codes, exponents

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
        found: Float32Array | None = self.tiles.convolve(x, w, window, groups, accumulator, order, threads)
        if found is not None:
            return found
        loops, weights = _module("loops"), w
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
        w = self._rows.get(b, (), lambda: _pixels(b))
        return self.conv2d(_pixels(a), w, Window((1, 1)), 1, accumulator, order, threads)[:, 0, 0]

    def layer(
        self,
        x: Operand | Unquantized,
        w: Operand,
        window: Window,
        groups: int,
        accumulator: Accumulator,
        order: Order,
        steps: Sequence[Step],
        results: Mapping[int, Float32Array],
        pointwise: Pointwise,
        threads: int,
        /,
    ) -> tuple[int, int]:
        if isinstance(x, Unquantized):  # the tiles quantize where they fill their buffer
            x, before = self.plain(x, pointwise, threads)
            found: Float32Array | None = self.tiles.convolve(x, w, window, groups, accumulator, order, threads)
            if found is not None:
                count = self.chain(found.reshape(-1, found.shape[3]), steps, results, pointwise, True, threads)
                return before, count
            _, count = super().layer(x, w, window, groups, accumulator, order, steps, results, pointwise, threads)
            return before, count
        return super().layer(x, w, window, groups, accumulator, order, steps, results, pointwise, threads)

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
        split(n * oh * ow, threads, lambda first, last: _module("loops").depthwise(*args, first, last, result))
        return given(result.reshape(n, oh, ow, -1), out)


def _pixels(rows: Operand) -> Operand:
    """The rows of a matrix as images of one pixel."""
    return replace(
        rows,
        mantissas=rows.mantissas[:, None, None],
        exponents=None if rows.exponents is None else rows.exponents[:, None, None],
    )


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
