"""Room where a layer leaves blocks for byte convolutions, laid out so that these read them as they lie there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fpgasim.kernels._native import ffi, lib
from fpgasim.kernels.contract import Array, Codes, Float32Array, Operand
from fpgasim.kernels.native_structs import format_struct
from fpgasim.numerics import NAN_EXPONENT, BlockFormat

#: Bytes before the codes, for the `fs_range` of all blocks.
_HEAD = 64
_MANTISSAS: dict[int, type[np.signedinteger[Any]]] = {
    lib.FS_SIGNED_BYTES: np.int8,
    lib.FS_BIASED_BYTES: np.int8,
    lib.FS_BFLOAT16: np.int8,
    lib.FS_WORDS: np.int16,
}

#: An `fs_range` of no block so far.
NO_RANGE = (2**31 - 1, -(2**31), 0, 0, 0)


@dataclass(frozen=True)
class Rows:
    """How activations lie in a buffer, `fs_bytes`: the codes of a pixel are `blocks` blocks, the last one of `tail`."""

    layout: int
    block: int
    blocks: int
    tail: int
    step: int

    @property
    def codes(self) -> int:
        return (self.blocks - 1) * self.block + self.tail

    @property
    def code_bytes(self) -> int:
        return 2 if self.layout in (lib.FS_BFLOAT16, lib.FS_WORDS) else 1

    def code_size(self, pixels: int) -> int:
        """Bytes of the codes of so many pixels, in whole lines of the cache."""
        return -(-pixels * self.codes * self.code_bytes // 64) * 64

    def size(self, pixels: int) -> int:
        """Bytes of codes and then scales."""
        return self.code_size(pixels) + 4 * pixels * self.blocks

    def image(self, buffer: tuple[int, int, int]) -> Any:
        """`buffer` (images, height, width) as an `fs_bytes *`, without codes and scales."""
        return ffi.new(
            "fs_bytes *", (ffi.NULL, ffi.NULL, *buffer, self.blocks, self.block, self.tail, self.codes, self.step)
        )

    def put(self, image: Any, buffer: tuple[int, int, int], memory: Any, origin: int = 0) -> None:
        """Says that the codes and scales of `image`, a part of `buffer` from pixel `origin` on, are in `memory`."""
        image.codes = memory + origin * self.codes * self.code_bytes
        image.scales = ffi.cast("float *", memory + self.code_size(math.prod(buffer))) + origin * self.blocks


@dataclass(frozen=True)
class BytesRoom:
    """Room for a tensor of `shape` (N, H, W, C) in blocks of `format`, as `rows`, with zeros around each image.

    `kernels` are the byte convolution that reads it; `pads` is how many rows and columns of zeros there are: top, left,
    bottom, right.
    """

    kernels: Any
    rows: Rows
    format: BlockFormat
    shape: tuple[int, int, int, int]
    pads: tuple[int, int, int, int]

    @property
    def buffer(self) -> tuple[int, int, int]:
        """(images, height, width) with the zeros."""
        n, height, width, _ = self.shape
        top, left, bottom, right = self.pads
        return n, height + top + bottom, width + left + right

    @property
    def size(self) -> int:
        return _HEAD + self.rows.size(math.prod(self.buffer))

    def range(self, memory: Array) -> Any:
        """The `fs_range *` in `memory`."""
        return ffi.cast("fs_range *", ffi.from_buffer(memory))

    def image(self, memory: Array, origin: int = 0) -> Any:
        """The `fs_bytes *` that a layer reads, from pixel `origin` of the buffer on."""
        image = self.rows.image(self.buffer)
        self.rows.put(image, self.buffer, ffi.cast("uint8_t *", ffi.from_buffer(memory)) + _HEAD, origin)
        return image

    def codes(self, memory: Array) -> Any:
        """The `fs_codes *` that a layer fills; and what it points to."""
        _, height, width, channels = self.shape
        image = self.image(memory)
        if not any(self.pads):  # all pixels in one row
            image.images, image.height, image.width = 1, 1, math.prod(self.buffer)
            height, width = 1, image.width
        place = ffi.new("fs_source *", {
            "height": height, "width": width, "channels": channels, "pitch": channels,
            "top": self.pads[0], "left": self.pads[1], "rows": height, "columns": width,
            "row_stride": 1, "column_stride": 1,
        })  # fmt: skip
        form = format_struct(self.format, np.dtype(_MANTISSAS[self.rows.layout]).itemsize)
        return ffi.new("fs_codes *", (form, place, image, self.range(memory))), (form, place, image)

    def fill(self, memory: Array, values: Float32Array) -> None:
        """Quantizes `values` (pixels, C) into `memory`."""
        _, (form, place, image) = self.codes(memory)
        place.values = ffi.from_buffer("float[]", values)
        powers = self.range(memory)
        powers[0] = ffi.new("fs_range *", NO_RANGE)[0]
        self.kernels.fill(form, place, image, 0, image.images * image.height, powers)

    def operand(self, memory: Array) -> Operand:
        """What lies in `memory`, for those who cannot read it there."""
        n, height, width, channels = self.shape
        rows, pixels = self.rows, math.prod(self.buffer)
        inside = (slice(None), slice(self.pads[0], self.pads[0] + height), slice(self.pads[1], self.pads[1] + width))
        end = _HEAD + pixels * rows.codes * rows.code_bytes
        codes = memory[_HEAD:end].view(f"u{rows.code_bytes}").reshape(*self.buffer, rows.codes)[inside]
        scales = memory[_HEAD + rows.code_size(pixels) : self.size].view(np.float32)
        scales = scales.reshape(*self.buffer, rows.blocks)[inside]
        kind = _MANTISSAS[rows.layout]
        mantissas = np.zeros((n, height, width, rows.blocks * rows.block), kind)
        if rows.layout == lib.FS_BFLOAT16:
            values = (codes.astype(np.uint32) << 16).view(np.float32)
            by = np.repeat(np.where(np.isnan(scales), 1, scales), rows.block, axis=-1)[..., : rows.codes]
            mantissas[..., : rows.codes] = values / by
        else:
            flip = 128 if rows.layout == lib.FS_BIASED_BYTES else 0
            mantissas[..., : rows.codes] = (codes ^ codes.dtype.type(flip)).view(kind)
        fraction_bits = self.format.fraction_bits
        exponents = np.where(np.isnan(scales), NAN_EXPONENT, np.frexp(scales)[1] - 1 + fraction_bits)
        return Operand(mantissas, exponents.astype(np.int16), rows.block, fraction_bits, channels)


def room_of(codes: Codes) -> BytesRoom:
    """The room of `codes`, which was made here."""
    assert isinstance(codes.room, BytesRoom)
    return codes.room
