"""The byte convolution of the C variants that have one: integer mantissas, a whole layer in one pass.

It takes over from the general convolution where `fs_bytes_fit` says that its bits are the same.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fpgasim.kernels._native import ffi, lib
from fpgasim.kernels.contract import ORDERS, Array, Float32Array, Operand, Unquantized, Window
from fpgasim.kernels.native_structs import format_struct, pointer, room, strided_pointer
from fpgasim.kernels.native_unit import c_window
from fpgasim.kernels.weights import WeightCache
from fpgasim.numerics.tensors import code_dtype

_SUMS = {"fp32": lib.FS_SUM_FP32, "fp16": lib.FS_SUM_FP16, "bf16": lib.FS_SUM_BF16, "exact": lib.FS_SUM_EXACT}
_INTEGERS = (np.int8, np.int16)


@dataclass(frozen=True)
class _Packed:
    weights: Array
    range: Any
    panels: int
    panel_bytes: int


@dataclass(frozen=True)
class _Place:
    """Where a layer of one input shape reads and writes: C structs, and the sizes of its buffers."""

    conv: Any
    terms: Array
    tail: int
    step: int
    row: int
    source: dict[str, int]
    buffer: tuple[int, int, int]
    result: tuple[int, ...]


class BytesConvolution:
    """The byte convolutions of one variant: `kernels` for all but exact sums of bytes, for those, and for words."""

    def __init__(self, kernels: Any, stages: Any) -> None:
        self._kernels, self._stages = kernels, stages
        self._weights: WeightCache[_Packed] = WeightCache()
        self._places: WeightCache[_Place] = WeightCache()
        self._scratch = threading.local()

    @property
    def there(self) -> bool:
        """Whether the variant has any."""
        return bool(self._kernels[0])

    def layer(
        self,
        x: Operand | Unquantized,
        w: Operand,
        window: Window,
        groups: int,
        accumulator: str,
        order: str,
        chain: Any,
        threads: int,
        out: Float32Array | None = None,
        before: Any = ffi.NULL,
    ) -> tuple[Float32Array, int, int] | None:
        """The result (N, OH, OW, O) after `chain`; how many values saturated in the steps `before`, of `x`, and in it.

        None if this is not for bytes. `out`, if given, takes the result.
        """
        bound = self.bind(x, w, window, groups, accumulator, order, chain, threads, out, before)
        if bound is None:
            return None
        result, work = bound
        counts = work()
        return None if counts is None else (result, *counts)

    def bind(
        self,
        x: Operand | Unquantized,
        w: Operand,
        window: Window,
        groups: int,
        accumulator: str,
        order: str,
        chain: Any,
        threads: int,
        out: Float32Array | None = None,
        before: Any = ffi.NULL,
    ) -> tuple[Float32Array, Callable[[], tuple[int, int] | None]] | None:
        """`layer` made ready: its result, and the work that fills it time and again, in one thread at a time."""
        order = "khwc" if accumulator == "exact" else order  # exact sums do not depend on it
        if not self._takes(x, w, groups) or accumulator not in _SUMS or order not in ORDERS:
            return None
        words = max(w.mantissas.itemsize, _code_bytes(x)) > 1
        kernels = self._kernels[2 if words else accumulator == "exact"]
        key = (groups, order, window.kernel, kernels.layout)
        sums = _SUMS[accumulator]
        packed = self._weights.get(  # words are laid out in a way of their own for fp32 sums
            w, (*key, words and accumulator == "fp32"), lambda: _pack(kernels, w, window, groups, order, sums)
        )
        shape = _shape(x)
        place = self._places.get(
            w, (*key, shape, window, sums), lambda: _place(kernels, shape, w, window, groups, order, sums)
        )
        result = np.empty(place.result, np.float32) if out is None else out.reshape(place.result)
        pixels, row_bytes = math.prod(place.buffer), _row_bytes(kernels, place)
        work_on, keep = self._bound(kernels, x, packed, place, before, chain, result)
        saturated = ffi.new("int64_t[2]")

        def work() -> tuple[int, int] | None:
            assert keep
            codes, scales = self._buffers(pixels, row_bytes, place.conv.blocks)
            floats = room(threads * work_on.room)
            if lib.fs_bytes_layer(work_on, threads, codes, scales, floats, saturated) == lib.FS_BYTES_NOT:
                return None
            return saturated[0], saturated[1]

        return result, work

    def _takes(self, x: Operand | Unquantized, w: Operand, groups: int) -> bool:
        if not self.there or w.mantissas.dtype not in _INTEGERS or w.exponents is None or w.block % 4:
            return False
        if isinstance(x, Unquantized):
            if x.format.is_float or x.format.block != w.block:
                return False
            if x.window is not None and not x.values.flags.c_contiguous:
                return False
        elif x.mantissas.dtype not in _INTEGERS or x.exponents is None:
            return False
        spans = _group_blocks(w, groups)
        return min(spans) == max(spans)

    def _bound(
        self,
        kernels: Any,
        x: Operand | Unquantized,
        packed: _Packed,
        place: _Place,
        before: Any,
        chain: Any,
        result: Float32Array,
    ) -> tuple[Any, tuple[Any, ...]]:
        """The layer as an `fs_layer *`, and what it points into, which must outlive it."""
        conv, source = place.conv, ffi.new("fs_source *", place.source)
        form, under, floats, mantissas = ffi.NULL, ffi.NULL, 0, None
        if isinstance(x, Unquantized):
            form = format_struct(x.format, _mantissa_bytes(kernels))
            if x.window is not None:
                under = ffi.new("fs_window *", c_window(x.window, *x.values.shape[1:3]))
            if under or before:
                floats = source.columns * source.channels + (before.count * lib.FS_PIECE if before else 0)
            source.values, source.pitch = strided_pointer(x.values), x.values.strides[-2] // x.values.itemsize
            source.window, source.before = under, before
        else:
            assert x.exponents is not None
            mantissas = x.mantissas.astype(f"i{_mantissa_bytes(kernels)}", copy=False)
            source.codes, source.exponents = ffi.from_buffer(mantissas), pointer("int16_t", x.exponents)
            source.fraction_bits = x.fraction_bits
        layer = ffi.new("fs_layer *", {
            "kernels": kernels,
            "format": form,
            "source": source[0],
            "image": (ffi.NULL, ffi.NULL, *place.buffer, conv.blocks, conv.block, place.tail, place.row, place.step),
            "conv": conv,
            "pixels": result.size // conv.outputs,
            "terms": pointer("fs_term", place.terms),
            "weights": pointer("uint8_t", packed.weights),
            "panels": packed.panels,
            "panel_bytes": packed.panel_bytes,
            "weights_range": packed.range,
            "chain": chain or ffi.NULL,
            "stages": self._stages,
            "room": max(floats, chain.count * lib.FS_PIECE if chain else 0),
            "result": pointer("float", result),
        })  # fmt: skip
        return layer, (x, mantissas, form, under, before, place, packed, chain, result)

    def _buffers(self, pixels: int, row_bytes: int, blocks: int) -> tuple[Any, Any]:
        """Room for codes and scales, kept by this thread from layer to layer."""
        codes = pixels * row_bytes + -pixels * row_bytes % 64
        kept: Any = getattr(self._scratch, "kept", b"")
        if len(kept) < codes + 4 * pixels * blocks:
            kept = self._scratch.kept = pointer("uint8_t", _aligned(codes + 4 * pixels * blocks))
        return kept, ffi.cast("float *", kept + codes)


def _aligned(size: int) -> Array:
    """Bytes that begin with a line of the cache."""
    room = np.empty(size + 64, np.uint8)
    return room[-room.ctypes.data % 64 :]


#: No power of two, so far.
_NO_RANGE = (2**31 - 1, -(2**31), 0, 0, 0)


def _shape(x: Operand | Unquantized) -> tuple[int, int, int, int]:
    """(N, H, W, C) of a convolution's input; rows (N, C) are images of one pixel."""
    shape = x.shape if isinstance(x, Unquantized) else (*x.mantissas.shape[:-1], x.channels)
    return (shape[0], 1, 1, shape[1]) if len(shape) == 2 else (shape[0], shape[1], shape[2], shape[3])


def _group_blocks(w: Operand, groups: int) -> list[int]:
    per_group = w.channels // groups
    return [-(-(g + 1) * per_group // w.block) - g * per_group // w.block for g in range(groups)]


def _code_bytes(x: Operand | Unquantized) -> int:
    return code_dtype(x.format).itemsize if isinstance(x, Unquantized) else x.mantissas.itemsize


def _row_bytes(kernels: Any, place: _Place) -> int:
    return 2 * place.row if kernels.layout in (lib.FS_BFLOAT16, lib.FS_WORDS) else place.row


def _mantissa_bytes(kernels: Any) -> int:
    return 2 if kernels.layout == lib.FS_WORDS else 1


def _conv(w: Operand, window: Window, groups: int, sums: int, place: dict[str, int]) -> Any:
    return ffi.new("fs_conv *", {
        "window": place,
        "outputs": len(w.mantissas),
        "groups": groups,
        "channels": w.channels,
        "block": w.block,
        "blocks": w.blocks,
        "group_blocks": max(_group_blocks(w, groups)),
        "accumulator": sums,
    })  # fmt: skip


def _pack(kernels: Any, w: Operand, window: Window, groups: int, order: str, sums: int) -> _Packed:
    assert w.exponents is not None
    panel, outputs = kernels.panel, len(w.mantissas)
    panels = groups * -(-(outputs // groups) // panel)
    conv = _conv(w, window, groups, sums, {"kernel_height": window.kernel[0], "kernel_width": window.kernel[1]})
    layout, (tail, _) = kernels.layout, _row(kernels, w, groups)
    panel_bytes = lib.fs_bytes_panel(conv, panel, layout, _terms(conv, tail, order)[1])
    weights = _aligned(panels * panel_bytes)
    powers = ffi.new("fs_range *", _NO_RANGE)
    mantissas = w.mantissas.astype(f"i{_mantissa_bytes(kernels)}", copy=False)
    lib.fs_bytes_pack(
        conv, panel, layout, tail, order == "chwk", ffi.from_buffer(mantissas),
        pointer("int16_t", w.exponents), w.fraction_bits, pointer("uint8_t", weights), powers,
    )  # fmt: skip
    return _Packed(weights, powers, panels, panel_bytes)


def _row(kernels: Any, w: Operand, groups: int) -> tuple[int, int]:
    """How many codes of a pixel's last block are kept, as many whole steps as hold its channels; and the step."""
    step = lib.fs_bytes_step(w.block, kernels.layout)
    left = w.channels - (w.blocks - 1) * w.block
    return w.block if groups > 1 else -(-left // step) * step, step


def _place(
    kernels: Any, shape: tuple[int, int, int, int], w: Operand, window: Window, groups: int, order: str, sums: int
) -> _Place:
    n, height, width, channels = shape
    oh, ow = window.output_size(height, width)
    top, left = window.pads[:2]
    fields = c_window(window, height, width) | {"pad_top": 0, "pad_left": 0}
    if window.kernel == (1, 1) and not any(window.pads):  # only the pixels under the window, all in one row
        rows, columns, strides = oh, ow, window.stride
        buffer = (n, oh, ow)
        fields |= {"height": 1, "width": n * oh * ow, "out_height": 1, "out_width": n * oh * ow}
        fields |= {"stride_height": 1, "stride_width": 1}
    else:
        reach = [
            (size - 1) * stride + dilation * (kernel - 1) + 1
            for size, stride, dilation, kernel in zip(
                (oh, ow), window.stride, window.dilation, window.kernel, strict=True
            )
        ]
        rows, columns, strides = max(0, min(height, reach[0] - top)), max(0, min(width, reach[1] - left)), (1, 1)
        buffer = (n, reach[0], reach[1])
        fields |= {"height": reach[0], "width": reach[1]}
    conv = _conv(w, window, groups, sums, fields)
    tail, step = _row(kernels, w, groups)
    terms, _ = _terms(conv, tail, order)
    source = {
        "height": height,
        "width": width,
        "channels": channels,
        "top": top if rows else 0,
        "left": min(left, buffer[2]),
        "rows": rows if columns else 0,
        "columns": columns,
        "row_stride": strides[0],
        "column_stride": strides[1],
    }
    row = (w.blocks - 1) * w.block + tail
    return _Place(conv, terms, tail, step, row, source, buffer, (n, oh, ow, len(w.mantissas)))


def _terms(conv: Any, tail: int, order: str) -> tuple[Array, int]:
    """What each term of a sum reads, as `fs_term`, and how many codes all of them."""
    terms = np.empty((conv.window.kernel_height * conv.window.kernel_width * conv.group_blocks, 3), np.int32)
    return terms, lib.fs_bytes_terms(conv, tail, order == "chwk", pointer("fs_term", terms))
