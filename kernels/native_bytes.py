"""The byte convolution of the C variants that have one: integer mantissas, a whole layer in one pass.

It takes over from the general convolution where `fs_bytes_fit` says that its bits are the same.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fpgasim.kernels._native import ffi, lib
from fpgasim.kernels.contract import ORDERS, Array, Codes, Float32Array, Operand, Reader, Unquantized, Window
from fpgasim.kernels.native_room import NO_RANGE, BytesRoom, Rows, room_of
from fpgasim.kernels.native_structs import aligned, format_struct, pointer, room, strided_pointer
from fpgasim.kernels.native_unit import c_window
from fpgasim.kernels.weights import PLACES_KEPT, WeightCache
from fpgasim.numerics import BlockFormat
from fpgasim.numerics.tensors import code_dtype

_SUMS = {"fp32": lib.FS_SUM_FP32, "fp16": lib.FS_SUM_FP16, "bf16": lib.FS_SUM_BF16, "exact": lib.FS_SUM_EXACT}
_INTEGERS = (np.int8, np.int16)
#: How many codes the offsets of an `fs_term` reach over.
_REACH = 1 << 31


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
    rows: Rows
    source: dict[str, int]
    buffer: tuple[int, int, int]
    result: tuple[int, ...]
    origin: int = 0  # the pixel of a buffer that is there already from which it reads


class BytesConvolution:
    """The byte convolutions of one variant: `kernels` for all but exact sums of bytes, for those, and for words."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self._weights: WeightCache[_Packed] = WeightCache()
        self._places: WeightCache[_Place | None] = WeightCache(PLACES_KEPT)
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
        shape = _shape(x)
        size = shape[0], *window.output_size(*shape[1:3]), len(w.mantissas)
        result = np.empty(size, np.float32) if out is None else out
        work = self.bind(x, w, window, groups, accumulator, order, chain, threads, result, before)
        counts = work() if work is not None else None
        return None if counts is None else (result, *counts)

    def bind(
        self,
        x: Operand | Unquantized | Codes,
        w: Operand,
        window: Window,
        groups: int,
        accumulator: str,
        order: str,
        chain: Any,
        threads: int,
        out: Float32Array | None,
        before: Any = ffi.NULL,
        codes: Codes | None = None,
    ) -> Callable[[], tuple[int, int] | None] | None:
        """`layer` made ready: the work that fills `out`, or `codes`, time and again, in one thread at a time."""
        order = "khwc" if accumulator == "exact" else order  # exact sums do not depend on it
        kernels = self._choose(x, w, groups, accumulator, order)
        if kernels is None or (codes is not None and room_of(codes).kernels != kernels):
            return None
        key = (groups, order, window.kernel, kernels.layout)
        sums = _SUMS[accumulator]
        shape, pads = _shape(x), None
        if isinstance(x, Codes):
            pads = room_of(x).pads
            if room_of(x).rows != _rows(kernels, w, groups) or any(np.greater(window.pads, pads)):
                return None
        place = self._places.get(
            w, (*key, shape, window, sums, pads), lambda: _place(kernels, shape, w, window, groups, order, sums, pads)
        )
        if place is None:
            return None
        packed = self._weights.get(  # words are laid out in a way of their own for fp32 sums
            w,
            (*key, kernels.layout == lib.FS_WORDS and accumulator == "fp32"),
            lambda: _pack(kernels, w, window, groups, order, sums),
        )
        layer, keep = self._bound(kernels, x, packed, place, before, chain, out, codes)
        own = place.rows.size(math.prod(place.buffer))
        lib.fs_bytes_share(layer, threads)
        floats = layer.threads * layer.room
        if out is None and layer.by_panels:
            floats += math.prod(place.result)
        saturated = ffi.new("int64_t[2]")

        def work() -> tuple[int, int] | None:
            assert keep
            if not isinstance(x, Codes):
                place.rows.put(layer.image, place.buffer, self._buffer(own))
            if lib.fs_bytes_layer(layer, room(floats), saturated) == lib.FS_BYTES_NOT:
                return None
            return saturated[0], saturated[1]

        return work

    def room(self, shape: tuple[int, int, int, int], fmt: BlockFormat, readers: Sequence[Reader]) -> BytesRoom | None:
        """As `contract.Backend.code_room`."""
        if all(max(np.subtract(r.window.stride, r.window.kernel)) > 0 for r in readers):  # few of its pixels are read
            return None
        x = Unquantized(np.empty(0, np.float32), fmt)
        found = []
        for r in readers:
            kernels = self._choose(x, r.w, r.groups, r.accumulator, r.order)
            if kernels is None:
                return None
            found.append((kernels, _rows(kernels, r.w, r.groups)))
        if any(other != found[0] for other in found):
            return None
        top, left, bottom, right = np.max([r.window.pads for r in readers], axis=0).tolist()
        return BytesRoom(*found[0], fmt, shape, (top, left, bottom, right))

    def _choose(
        self, x: Operand | Unquantized | Codes, w: Operand, groups: int, accumulator: str, order: str
    ) -> Any | None:
        """The byte convolution for these operands; None if they are for none."""
        if isinstance(x, Codes):
            return room_of(x).kernels
        if not self.there or w.mantissas.dtype not in _INTEGERS or w.exponents is None or w.block % 4:
            return None
        if accumulator not in _SUMS or (order not in ORDERS and accumulator != "exact"):
            return None
        if isinstance(x, Unquantized):
            if x.format.is_float or x.format.block != w.block:
                return None
            if x.window is not None and not x.values.flags.c_contiguous:
                return None
        elif x.mantissas.dtype not in _INTEGERS or x.exponents is None:
            return None
        spans = _group_blocks(w, groups)
        if min(spans) != max(spans):
            return None
        words = max(w.mantissas.itemsize, _code_bytes(x)) > 1
        return self._kernels[2 if words else accumulator == "exact"]

    def _bound(
        self,
        kernels: Any,
        x: Operand | Unquantized | Codes,
        packed: _Packed,
        place: _Place,
        before: Any,
        chain: Any,
        out: Float32Array | None,
        codes: Codes | None,
    ) -> tuple[Any, tuple[Any, ...]]:
        """The layer as an `fs_layer *`, and what it points into, which must outlive it."""
        conv, source, image = place.conv, ffi.new("fs_source *", place.source), place.rows.image(place.buffer)
        form, under, floats, mantissas = ffi.NULL, ffi.NULL, 0, None
        ready, left, kept = ffi.NULL, ffi.NULL, None
        if isinstance(x, Codes):
            image, ready = room_of(x).image(x.memory, place.origin), room_of(x).range(x.memory)
        elif isinstance(x, Unquantized):
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
        if codes is not None:
            left, kept = room_of(codes).codes(codes.memory)
        behind = chain.count * lib.FS_PIECE if chain else 0
        if out is None:
            behind += max(lib.FS_TOGETHER, lib.FS_MAX_TILE * conv.outputs)
        layer = ffi.new("fs_layer *", {
            "kernels": kernels,
            "format": form,
            "source": source[0],
            "image": image[0],
            "ready": ready,
            "conv": conv,
            "pixels": math.prod(place.result[:3]),
            "terms": pointer("fs_term", place.terms),
            "weights": pointer("uint8_t", packed.weights),
            "panels": packed.panels,
            "panel_bytes": packed.panel_bytes,
            "weights_range": packed.range,
            "chain": chain or ffi.NULL,
            "codes": left,
            "room": -(-max(floats, behind) // 16) * 16,  # whole lines of the cache
            "result": ffi.NULL if out is None else pointer("float", out),
        })  # fmt: skip
        return layer, (x, mantissas, form, under, before, place, packed, chain, out, codes, left, kept)

    def _buffer(self, size: int) -> Any:
        """Room for codes and scales, kept by this thread from layer to layer."""
        kept: Any = getattr(self._scratch, "kept", b"")
        if len(kept) < size:
            kept = self._scratch.kept = pointer("uint8_t", aligned(size))
        return kept


def _shape(x: Operand | Unquantized | Codes) -> tuple[int, int, int, int]:
    """(N, H, W, C) of a convolution's input; rows (N, C) are images of one pixel."""
    if isinstance(x, Codes):
        return room_of(x).shape
    shape = x.shape if isinstance(x, Unquantized) else (*x.mantissas.shape[:-1], x.channels)
    return (shape[0], 1, 1, shape[1]) if len(shape) == 2 else (shape[0], shape[1], shape[2], shape[3])


def _group_blocks(w: Operand, groups: int) -> list[int]:
    per_group = w.channels // groups
    return [-(-(g + 1) * per_group // w.block) - g * per_group // w.block for g in range(groups)]


def _code_bytes(x: Operand | Unquantized) -> int:
    return code_dtype(x.format).itemsize if isinstance(x, Unquantized) else x.mantissas.itemsize


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
    layout, tail = kernels.layout, _rows(kernels, w, groups).tail
    panel_bytes = lib.fs_bytes_panel(conv, panel, layout, _terms(conv, tail, order)[1])
    weights = aligned(panels * panel_bytes)
    powers = ffi.new("fs_range *", NO_RANGE)
    mantissas = w.mantissas.astype(f"i{_mantissa_bytes(kernels)}", copy=False)
    lib.fs_bytes_pack(
        conv, panel, layout, tail, order == "chwk", ffi.from_buffer(mantissas),
        pointer("int16_t", w.exponents), w.fraction_bits, pointer("uint8_t", weights), powers,
    )  # fmt: skip
    return _Packed(weights, powers, panels, panel_bytes)


def _rows(kernels: Any, w: Operand, groups: int) -> Rows:
    """How the activations of a layer lie: of a pixel's last block as many whole steps as hold its channels."""
    step = lib.fs_bytes_step(w.block, kernels.layout)
    left = w.channels - (w.blocks - 1) * w.block
    return Rows(kernels.layout, w.block, w.blocks, w.block if groups > 1 else -(-left // step) * step, step)


def _place(
    kernels: Any,
    shape: tuple[int, int, int, int],
    w: Operand,
    window: Window,
    groups: int,
    order: str,
    sums: int,
    pads: tuple[int, int, int, int] | None,
) -> _Place | None:
    """Of a layer with a buffer of its own, or without one if there are `pads`, those of a room.

    None where the taps lie further apart than a term's offset reaches.
    """
    n, height, width, channels = shape
    oh, ow = window.output_size(height, width)
    top, left = window.pads[:2]
    fields = c_window(window, height, width) | {"pad_top": 0, "pad_left": 0}
    origin, there = 0, pads is not None and (any(pads) or window.stride != (1, 1))
    if there:
        assert pads is not None
        rows, columns, strides = height, width, (1, 1)
        buffer = (n, height + pads[0] + pads[2], width + pads[1] + pads[3])
        fields |= {"height": buffer[1], "width": buffer[2]}
        origin = (pads[0] - top) * buffer[2] + pads[1] - left
    elif window.kernel == (1, 1) and not any(window.pads):  # only the pixels under the window, all in one row
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
    lies = _rows(kernels, w, groups)
    down, right = (d * (k - 1) for d, k in zip(window.dilation, window.kernel, strict=True))
    if (down * fields["width"] + right + 1) * lies.codes > _REACH:
        return None
    conv = _conv(w, window, groups, sums, fields)
    terms, _ = _terms(conv, lies.tail, order)
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
    return _Place(conv, terms, lies, source, buffer, (n, oh, ow, len(w.mantissas)), origin)


def _terms(conv: Any, tail: int, order: str) -> tuple[Array, int]:
    """What each term of a sum reads, as `fs_term`, and how many codes all of them."""
    terms = np.empty((conv.window.kernel_height * conv.window.kernel_width * conv.group_blocks, 3), np.int32)
    return terms, lib.fs_bytes_terms(conv, tail, order == "chwk", pointer("fs_term", terms))
