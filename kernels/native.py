"""The C kernels of `csrc/` as backends, one for each variant that this CPU can run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fpgasim.kernels._native import ffi, lib
from fpgasim.kernels.contract import (
    Accumulator,
    Array,
    Codes,
    Float32Array,
    Int16Array,
    Operand,
    Order,
    Pointwise,
    Reader,
    Step,
    Unquantized,
    Window,
    engines_of,
    fixed_of,
)
from fpgasim.kernels.native_bytes import BytesConvolution
from fpgasim.kernels.native_room import BytesRoom, room_of
from fpgasim.kernels.native_structs import format_struct, pointer, room
from fpgasim.kernels.native_unit import TYPES, NativeUnit, c_chain, c_window, is_beyond_c
from fpgasim.kernels.numpy_unit import given_pair
from fpgasim.kernels.parallel import split
from fpgasim.kernels.weights import WeightCache
from fpgasim.numerics import ROUNDINGS, BlockFormat, Rounding
from fpgasim.numerics.tensors import code_dtype

_ROUNDING = dict(zip(ROUNDINGS, (lib.FS_EVEN, lib.FS_NEAREST, lib.FS_FLOOR, lib.FS_STOCHASTIC), strict=True))

_SUM = {
    "fp32": lib.FS_SUM_FP32, "fp16": lib.FS_SUM_FP16, "bf16": lib.FS_SUM_BF16, "exact": lib.FS_SUM_EXACT,
    "wrap": lib.FS_SUM_WRAP, "saturate": lib.FS_SUM_SATURATE,
}  # fmt: skip


@dataclass(frozen=True)
class _Packed:
    """Packed weights: the C struct and the arrays it points into."""

    filters: Any
    panels: int
    arrays: tuple[Array, ...]


class Native(NativeUnit):
    """The C kernels, in one of the variants that `csrc/variants.inc` lists."""

    def __init__(self, variant: Any) -> None:
        self.name = f"native-{ffi.string(variant.name).decode()}"
        self._variant = variant
        self._weights: WeightCache[_Packed] = WeightCache()
        self.bytes_convolution = BytesConvolution(variant.bytes)

    def peak(self) -> float:
        """Integer multiply-accumulates a second that one thread does when it does nothing else, measured."""
        sums, best = np.empty(16, np.int32), 0.0
        for _ in range(5):
            start = time.thread_time()
            macs = self._variant.peak(200_000, pointer("int32_t", sums))
            best = max(best, macs / (time.thread_time() - start))
        return best

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
        if out is None:
            out = np.empty((rows, blocks * fmt.block), code_dtype(fmt)), np.empty((rows, blocks), np.int16)
        codes, exponents = out
        self._variant.quantize(
            format_struct(fmt), pointer("float", x), rows, n, _ROUNDING[rounding], seed & (1 << 64) - 1,
            ffi.from_buffer(codes), pointer("int16_t", exponents),
        )  # fmt: skip
        return codes, exponents

    def quantize_across(
        self, x: Float32Array, fmt: BlockFormat, rounding: Rounding, seed: int, as_rows: bool, /
    ) -> tuple[Array, Int16Array]:
        if fmt.is_fp32:
            return super().quantize_across(x, fmt, rounding, seed, as_rows)
        images, n, pixels = x.shape
        blocks = -(-n // fmt.block)
        codes = np.empty((images * pixels, blocks * fmt.block) if as_rows else x.shape, code_dtype(fmt))
        exponents = np.empty((images * pixels, blocks) if as_rows else (images, blocks, pixels), np.int16)
        self._variant.quantize_across(
            format_struct(fmt), pointer("float", x), images, n, pixels, _ROUNDING[rounding], seed & (1 << 64) - 1,
            as_rows, ffi.from_buffer(codes), pointer("int16_t", exponents),
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
        result = np.empty(_result_shape(x, w, window), np.float32)
        return self._convolved(x, w, window, groups, accumulator, order, threads, result)

    def _product(
        self,
        x: Operand,
        w: Operand,
        window: Window,
        groups: int,
        accumulator: Accumulator,
        order: Order,
        threads: int,
    ) -> Float32Array:
        result = self._room("product", _result_shape(x, w, window), np.float32)
        return self._convolved(x, w, window, groups, accumulator, order, threads, result)

    def _convolved(
        self,
        x: Operand,
        w: Operand,
        window: Window,
        groups: int,
        accumulator: Accumulator,
        order: Order,
        threads: int,
        result: Float32Array,
    ) -> Float32Array:
        """`result`, filled."""
        if self.bytes_convolution.layer(x, w, window, groups, accumulator, order, None, threads, result) is None:
            _, height, width, _ = x.mantissas.shape
            conv = _conv(x, w, height, width, window, groups, accumulator, order)
            self._convolve(conv, x, w, threads, result.reshape(-1, conv.outputs))
        return result

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
        args = (x, w, window, groups, accumulator, order, steps, results, pointwise, threads)
        return self.bind_layer(*args)()

    def bind_layer(
        self,
        x: Operand | Unquantized | Codes,
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
        codes: Codes | None = None,
    ) -> Callable[[], tuple[int, int]]:
        last = len(steps) - 1
        first = x.steps if isinstance(x, Unquantized) else ()
        pixels = len(results[last]) if codes is None else math.prod(room_of(codes).shape[:3])
        bound = None
        if not is_beyond_c([*first, *steps], pointwise):
            before = c_chain(first, {}, pointwise) if first else ffi.NULL
            chain = c_chain(steps, results, pointwise)
            bound = self.bytes_convolution.bind(
                x, w, window, groups, accumulator, order, chain, threads, results.get(last), before, codes
            )

        def work() -> tuple[int, int]:
            counts = bound() if bound is not None else None
            if counts is not None:
                return counts
            made = dict(results)
            if last not in made:
                made[last] = self._room("numbers", (pixels, len(w.mantissas)), np.float32)
            source = room_of(x).operand(x.memory) if isinstance(x, Codes) else x
            args = (source, w, window, groups, accumulator, order, steps, made, pointwise, threads)
            counts = super(Native, self).layer(*args)
            if codes is not None:
                room_of(codes).fill(codes.memory, made[last])
            return counts

        return work

    def code_room(
        self, shape: tuple[int, int, int, int], fmt: BlockFormat, readers: Sequence[Reader], /
    ) -> BytesRoom | None:
        return self.bytes_convolution.room(shape, fmt, readers)

    def matmul(self, a: Operand, b: Operand, accumulator: Accumulator, order: Order, threads: int, /) -> Float32Array:
        found = self.bytes_convolution.layer(a, b, Window((1, 1)), 1, accumulator, order, None, threads)
        if found is not None:
            return found[0][:, 0, 0]
        rows = len(a.mantissas)
        conv = _conv(a, b, rows, 1, Window((1, 1)), 1, accumulator, order)
        result = np.empty((rows, conv.outputs), np.float32)
        self._convolve(conv, a, b, threads, result)
        return result

    def _convolve(self, conv: Any, x: Operand, w: Operand, threads: int, result: Float32Array) -> None:
        """Fills `result` (pixels, outputs)."""
        pixels, out_pixels = math.prod(x.mantissas.shape[:-1]), len(result)
        key = (conv.groups, conv.channels, conv.is_float, conv.has_exponents, conv.chwk)
        packed = self._weights.get(w, key, lambda: self._pack(conv, w))
        kind = np.float32 if conv.is_float else np.int16
        mantissas = self._room("padded", (pixels + 1, conv.blocks, conv.padded), kind)
        _fill(mantissas[:-1], x)
        mantissas[-1] = 0
        activations = ffi.new("fs_pixels *", {"mantissas": ffi.from_buffer(mantissas), "pixels": pixels})
        if conv.has_exponents:
            scales = self._room("scales", (pixels + 1, conv.blocks), np.float32)
            low, high = self._room("powers", (2, pixels), np.int16)
            activations.scales = pointer("float", scales)
            activations.low, activations.high = pointer("int16_t", low), pointer("int16_t", high)
            self._variant.prepare(conv, pointer("int16_t", _exponents(x)), x.fraction_bits, activations)
        taps = conv.window.kernel_height * conv.window.kernel_width

        def run(first_pixel: int, last_pixel: int, first_panel: int, last_panel: int) -> None:
            offsets = self._room("offsets", (taps * lib.FS_MAX_TILE,), np.int64)
            self._variant.conv2d(
                conv, activations, packed.filters, first_pixel, last_pixel, first_panel, last_panel,
                pointer("int64_t", offsets), pointer("float", result),
            )  # fmt: skip

        if out_pixels >= packed.panels:
            split(out_pixels, threads, lambda first, last: run(first, last, 0, packed.panels))
        else:
            split(packed.panels, threads, lambda first, last: run(0, out_pixels, first, last))

    def _pack(self, conv: Any, w: Operand) -> _Packed:
        size = self._variant.panel_outputs()
        panels = conv.groups * -(-(conv.outputs // conv.groups) // size)
        taps = conv.window.kernel_height * conv.window.kernel_width
        source = np.empty((conv.outputs, taps, conv.blocks, conv.padded), np.float32 if conv.is_float else np.int16)
        _fill(source, w)
        mantissas = np.empty((panels, taps * conv.group_blocks, conv.padded, size), source.dtype)
        scales = np.empty((panels, taps * conv.group_blocks, size), np.float32)
        low, high, finite = np.empty(panels, np.int16), np.empty(panels, np.int16), np.empty(panels, np.uint8)
        filters = ffi.new("fs_filters *")
        filters.mantissas, filters.scales = ffi.from_buffer(mantissas), pointer("float", scales)
        filters.low, filters.high = pointer("int16_t", low), pointer("int16_t", high)
        filters.finite = pointer("uint8_t", finite)
        self._variant.pack(conv, ffi.from_buffer(source), pointer("int16_t", _exponents(w)), w.fraction_bits, filters)
        return _Packed(filters, panels, (mantissas, scales, low, high, finite))

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
        result = np.empty((len(x), *window.output_size(*x.shape[1:3]), w.shape[2]), np.float32) if out is None else out
        self._depthwise(x, w, window, None, pointwise, threads, result)()
        return result

    def bind_depthwise(
        self,
        x: Float32Array,
        w: Float32Array,
        window: Window,
        steps: Sequence[Step],
        results: Mapping[int, Float32Array],
        pointwise: Pointwise,
        threads: int,
        /,
    ) -> Callable[[], int]:
        if is_beyond_c(steps, pointwise):
            return super().bind_depthwise(x, w, window, steps, results, pointwise, threads)
        chain = c_chain(steps, results, pointwise) if steps else None
        return self._depthwise(x, w, window, chain, pointwise, threads, results[len(steps) - 1])

    def _depthwise(
        self,
        x: Float32Array,
        w: Float32Array,
        window: Window,
        chain: Any,
        pointwise: Pointwise,
        threads: int,
        result: Float32Array,
    ) -> Callable[[], int]:
        n, height, width, channels = x.shape
        place = ffi.new("fs_window *", c_window(window, height, width))
        source, taps, to = pointer("float", x), pointer("float", w), pointer("float", result)
        floats = chain.count * lib.FS_PIECE if chain else 0

        def work() -> int:
            count: int = lib.fs_depthwise_layer(
                self._variant.depthwise, place, source, taps, n, channels, w.shape[2] // channels, TYPES[pointwise],
                chain or ffi.NULL, threads, floats, room(threads * floats), to,
            )  # fmt: skip
            return count

        return work


def variants() -> list[Native]:
    """The variants this CPU can run, slowest first."""
    table = [lib.fs_variants[i] for i in range(lib.fs_num_variants)]
    return [Native(v) for v in table if v.runs_here()]


def _result_shape(x: Operand, w: Operand, window: Window) -> tuple[int, int, int, int]:
    n, height, width, _ = x.mantissas.shape
    return (n, *window.output_size(height, width), len(w.mantissas))


def _exponents(operand: Operand) -> Int16Array:
    if operand.exponents is not None:
        return operand.exponents
    return np.zeros((*operand.mantissas.shape[:-1], operand.blocks), np.int16)


def _conv(
    x: Operand, w: Operand, height: int, width: int, window: Window, groups: int, accumulator: Accumulator, order: Order
) -> Any:
    is_float = np.float32 in (x.mantissas.dtype, w.mantissas.dtype)
    per_group = x.channels // groups
    fixed, engines = fixed_of(accumulator), engines_of(order)
    spans = [-(-(g + 1) * per_group // x.block) - g * per_group // x.block for g in range(groups)]
    return ffi.new("fs_conv *", {
        "window": c_window(window, height, width),
        "outputs": len(w.mantissas),
        "groups": groups,
        "channels": x.channels,
        "block": x.block,
        "blocks": x.blocks,
        "padded": x.block if is_float else x.block + x.block % 2,
        "group_blocks": max(spans),
        "is_float": is_float,
        "has_exponents": x.exponents is not None or accumulator != "fp32" or engines > 1,
        "chwk": order == "chwk",
        "accumulator": _SUM[fixed.overflow if fixed else accumulator],
        "bits": fixed.bits if fixed else 64,
        "fraction": fixed.fraction if fixed else 0,
        "engines": engines,
    })  # fmt: skip


def _fill(target: Array, operand: Operand) -> None:
    """Writes the mantissas into `target` (…, blocks, padded)."""
    target[..., : operand.block] = operand.mantissas.reshape(*target.shape[:-1], operand.block)
    target[..., operand.block :] = 0
