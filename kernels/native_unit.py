"""The pointwise unit of the C kernels: chains of steps, pools, and the layouts at a segment's borders."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fpgasim.kernels import pointwise as unit
from fpgasim.kernels._native import ffi, lib
from fpgasim.kernels.contract import POINTWISE, Array, Float32Array, Pointwise, Step, Window
from fpgasim.kernels.native_structs import kept, room
from fpgasim.kernels.numpy_unit import PointwiseUnit
from fpgasim.kernels.parallel import split

TYPES = dict(zip(POINTWISE, (lib.FS_FP16, lib.FS_BF16, lib.FS_FP32), strict=True))
_KINDS = {"add": lib.FS_STAGE_ADD, "mul": lib.FS_STAGE_MUL, "max": lib.FS_STAGE_MAX}
_FUNCTIONS = ("sigmoid", "tanh")


class NativeUnit(PointwiseUnit):
    """The part of `Native` that works on values of the pointwise type."""

    _variant: Any

    def _room(self, purpose: str, shape: tuple[int, ...], dtype: Any) -> Array:
        return kept(purpose, shape, dtype)

    def chain(
        self,
        source: Float32Array,
        steps: Sequence[Step],
        results: Mapping[int, Float32Array],
        pointwise: Pointwise,
        unrounded: bool,
        threads: int,
        /,
    ) -> int:
        if is_beyond_c(steps, pointwise):
            return super().chain(source, steps, results, pointwise, unrounded, threads)
        pixels, channels = source.shape
        table = c_stages(steps, results, pointwise)
        rounded = _pointer(results[-1]) if -1 in results else ffi.NULL
        start, result = _pointer(source), _pointer(results[len(steps) - 1])
        def work(first: int, last: int) -> Any:
            return self._variant.stages(
                table, len(steps), TYPES[pointwise], unrounded, start, channels, first, last,
                room(len(steps) * lib.FS_PIECE),
                rounded, result,
            )  # fmt: skip

        return sum(split(pixels, threads, work))

    def max_pool(
        self, x: Float32Array, window: Window, threads: int, /, out: Float32Array | None = None
    ) -> Float32Array:
        place, result = _placed(x, window, x.shape[3], out)
        args = (place, _pointer(x), x.shape[3])
        to = _pointer(result)
        split(_pixels(result), threads, lambda first, last: self._variant.max_pool(*args, first, last, to))
        return result

    def average_pool(
        self,
        x: Float32Array,
        window: Window,
        pointwise: Pointwise,
        count_padding: bool,
        threads: int,
        /,
        out: Float32Array | None = None,
    ) -> Float32Array:
        place, result = _placed(x, window, x.shape[3], out)
        weights = _reciprocals(math.prod(window.kernel), pointwise)
        args = (place, _pointer(x), x.shape[3], TYPES[pointwise], count_padding, _pointer(weights))
        to = _pointer(result)
        split(_pixels(result), threads, lambda first, last: self._variant.average_pool(*args, first, last, to))
        return result

    def unfold(
        self, x: Float32Array, window: Window, threads: int, /, out: Float32Array | None = None
    ) -> Float32Array:
        place, result = _placed(x, window, math.prod(window.kernel) * x.shape[3], out)
        args = (place, _pointer(x), x.shape[3], result.shape[3])
        to = _pointer(result)
        split(_pixels(result), threads, lambda first, last: self._variant.unfold(*args, first, last, to))
        return result

    def enter(
        self, x: Float32Array, pointwise: Pointwise, threads: int, /, out: Float32Array | None = None
    ) -> tuple[Float32Array, int]:
        n, channels, height, width = x.shape
        result = np.empty((n, height, width, channels), np.float32) if out is None else out
        args = (_pointer(x), channels, height * width, TYPES[pointwise])
        to = _pointer(result)
        return result, sum(
            split(n * height * width, threads, lambda first, last: self._variant.enter(*args, first, last, to))
        )

    def leave(self, x: Float32Array, threads: int, /, out: Float32Array | None = None) -> Float32Array:
        n, height, width, channels = x.shape
        result = np.empty((n, channels, height, width), np.float32) if out is None else out
        args = (_pointer(x), channels, height * width)
        to = _pointer(result)
        split(n * height * width, threads, lambda first, last: self._variant.leave(*args, first, last, to))
        return result


def c_window(window: Window, height: int, width: int) -> dict[str, int]:
    """`window` over an image as the fields of fs_window."""
    oh, ow = window.output_size(height, width)
    return {
        "height": height,
        "width": width,
        "out_height": oh,
        "out_width": ow,
        "kernel_height": window.kernel[0],
        "kernel_width": window.kernel[1],
        "stride_height": window.stride[0],
        "stride_width": window.stride[1],
        "pad_top": window.pads[0],
        "pad_left": window.pads[1],
        "dilation_height": window.dilation[0],
        "dilation_width": window.dilation[1],
    }


def is_beyond_c(steps: Sequence[Step], pointwise: Pointwise) -> bool:
    """Whether the C kernels do not take `steps`: too many, or a function of fp32, which has no table of all codes."""
    return len(steps) > lib.FS_MAX_STAGES or (pointwise == "fp32" and any(step.kind in _FUNCTIONS for step in steps))


def c_chain(steps: Sequence[Step], results: Mapping[int, Float32Array], pointwise: Pointwise) -> Any:
    """`steps` as an `fs_chain *`."""
    rounded = _pointer(results[-1]) if -1 in results else ffi.NULL
    table = c_stages(steps, results, pointwise)
    chain = ffi.new("fs_chain *", (table, len(steps), TYPES[pointwise], rounded))
    _tables[chain] = table  # what is pointed to lives as long as the pointer
    return chain


_tables: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def c_stages(steps: Sequence[Step], results: Mapping[int, Float32Array], pointwise: Pointwise) -> Any:
    """`steps` as an `fs_stage[]`."""
    return ffi.new("fs_stage[]", [_step(step, results.get(i), pointwise) for i, step in enumerate(steps)])


def _step(step: Step, result: Float32Array | None, pointwise: Pointwise) -> dict[str, Any]:
    to = ffi.NULL if result is None else _pointer(result)
    if step.kind in _FUNCTIONS:
        return {"kind": lib.FS_STAGE_TABLE, "operand": _pointer(unit.table(step.kind, pointwise)), "result": to}
    if step.operand is None:
        low, high = (0.0, math.inf) if step.kind == "relu" else (step.low, step.high)
        return {"kind": lib.FS_STAGE_CLIP, "low": low, "high": high, "result": to}
    kind = _KINDS.get(step.kind, lib.FS_STAGE_SUB_FROM if step.swapped else lib.FS_STAGE_SUB)
    one = lib.FS_ONE if step.operand.size == 1 else lib.FS_CHANNELS
    span = lib.FS_ELEMENTS if step.operand.ndim == 2 else one
    return {"kind": kind, "span": span, "operand": _pointer(step.operand), "result": to}


def _placed(x: Float32Array, window: Window, channels: int, out: Float32Array | None) -> tuple[Any, Float32Array]:
    """The C window over `x`, and where its pixels of `channels` values go."""
    n, height, width, _ = x.shape
    place = ffi.new("fs_window *", c_window(window, height, width))
    shape = (n, place.out_height, place.out_width, channels)
    return place, np.empty(shape, np.float32) if out is None else out


def _pixels(result: Float32Array) -> int:
    return math.prod(result.shape[:3])


@functools.lru_cache(maxsize=64)
def _reciprocals(count: int, pointwise: Pointwise) -> Float32Array:
    """r(1/n) at index n = 1 … count."""
    return unit.round_to(np.concatenate([[0.0], 1.0 / np.arange(1, count + 1)]), pointwise)


def _pointer(array: Array) -> Any:
    return ffi.from_buffer("float[]", array)
