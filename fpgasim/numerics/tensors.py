"""`BlockTensor`: a tensor as block codes, and its dense bit packing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fpgasim.errors import FormatError, InputError
from fpgasim.numerics.float_state import ieee
from fpgasim.numerics.formats import NAN_EXPONENT, BlockFormat, get_format
from fpgasim.numerics.scalar import decode_element, largest_code

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]


def code_dtype(fmt: BlockFormat) -> np.dtype[Any]:
    """What a code of `fmt` is kept in: int8 or int16 for integer mantissas, uint8 for float elements, float32."""
    if fmt.is_fp32:
        return np.dtype(np.float32)
    if fmt.is_float:
        return np.dtype(np.uint8)
    return np.dtype(np.int8 if fmt.mantissa_bits <= 7 else np.int16)


def element_values(fmt: BlockFormat) -> Float32Array:
    """The value of every element code of a float format under the shared exponent 0; index = code."""
    return np.array([decode_element(code, 0, fmt) for code in range(1 << fmt.element_bits)], np.float32)


def checked_axis(axis: int, shape: tuple[int, ...], name: str) -> int:
    """`axis`, counted from 0, of `name` with `shape`. Raises InputError where it is none."""
    n = len(shape)
    if n == 0:
        raise InputError(f"{name} is a scalar; at least one dimension to make blocks along would do")
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer) or not -n <= axis < n:
        raise InputError(f"axis={axis!r} is not an axis of {name} with shape {shape}; -{n} to {n - 1} are")
    return int(axis) % n


def _within(what: str, values: Array, low: int, high: int, fmt: BlockFormat) -> None:
    """Raises FormatError for the first of `values` that is not between `low` and `high`."""
    if values.size and (values.min() < low or values.max() > high):
        wrong = values[(values < low) | (values > high)].flat[0]
        raise FormatError(f"{what} {wrong} is not one of {fmt.name}; {low} to {high} would do")


def _within_floats(codes: Array, fmt: BlockFormat) -> None:
    """Raises FormatError for the first bit pattern of no number of `fmt`: of a NaN, or of one beyond the largest."""
    sign, largest = 1 << fmt.element_bits - 1, largest_code(fmt)
    flat, piece = codes.ravel(order="K"), 1 << 16  # in pieces, which take little memory
    for i in range(0, flat.size, piece):
        magnitudes = flat[i : i + piece] & np.uint8(0xFF ^ sign)
        if magnitudes.max() > largest:
            wrong = flat[i + int(np.argmax(magnitudes > largest))]
            raise FormatError(
                f"code {wrong} is not one of {fmt.name}; 0 to {largest} and {sign} to {sign + largest} would do"
            )


@dataclass(frozen=True, eq=False)
class BlockTensor:
    """A tensor in a block format.

    `codes` has the tensor's shape: signed mantissas, bit patterns of float elements, or for fp32 the values.
    `exponents` (int16) has the same shape except along `axis`, where it counts blocks: the shared exponent S as a
    power of two, `NAN_EXPONENT` where the block is NaN. A `WHOLE` block of the format given becomes the axis's length.
    Raises InputError for an axis, a dtype or a shape that does not fit, FormatError for a code or an exponent that the
    format does not have: the kernels trust what a BlockTensor holds.
    """

    codes: Array
    exponents: npt.NDArray[np.int16]
    format: BlockFormat
    axis: int

    def __post_init__(self) -> None:
        shape = np.shape(self.codes)
        checked_axis(self.axis, shape, "codes")
        object.__setattr__(self, "format", get_format(self.format).for_length(shape[self.axis]))
        blocks = list(shape)
        blocks[self.axis] = -(-blocks[self.axis] // self.format.block)
        for name, wanted in (("codes", code_dtype(self.format)), ("exponents", np.dtype(np.int16))):
            found = getattr(getattr(self, name), "dtype", type(getattr(self, name)).__name__)
            if found != wanted:
                raise InputError(f"{name} of {self.format.name} have dtype {found}; {wanted} would do")
        if self.exponents.shape != tuple(blocks):
            raise InputError(f"exponents of shape {self.exponents.shape} do not fit; {tuple(blocks)} would")
        fmt = self.format
        if self.codes.size and not fmt.is_fp32:
            if fmt.is_float:
                _within_floats(self.codes, fmt)
            else:
                _within("code", self.codes, -fmt.max_code, fmt.max_code, fmt)
            _within("exponent", self.exponents[self.exponents != NAN_EXPONENT], *fmt.exponent_range, fmt)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def rows(self) -> tuple[Array, npt.NDArray[np.int16]]:
        """Codes (…, blocks·block) and exponents (…, blocks), the block axis last, the tail padded with zero codes."""
        codes, exponents = np.moveaxis(self.codes, self.axis, -1), np.moveaxis(self.exponents, self.axis, -1)
        padding = exponents.shape[-1] * self.format.block - codes.shape[-1]
        if padding:
            codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, padding)])
        return np.ascontiguousarray(codes), np.ascontiguousarray(exponents)

    @ieee
    def dequantize(self) -> Float32Array:
        """The values as float32, exactly; NaN blocks are NaN.

        A value beyond float32 is infinite; `quantize` makes none.
        """
        if self.format.is_fp32:
            return self.codes.astype(np.float32, copy=True)
        codes, exponents = self.rows()
        if self.format.is_float:
            codes = element_values(self.format)[codes]
        scale = np.ldexp(1.0, exponents.astype(np.int32) - self.format.fraction_bits)
        scale[exponents == NAN_EXPONENT] = np.nan
        values = codes.reshape(*exponents.shape, self.format.block) * scale[..., None]
        rows = values.reshape(codes.shape)[..., : self.shape[self.axis]]
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(np.moveaxis(rows, -1, self.axis), dtype=np.float32)

    def pack(self) -> bytes:
        """The tensor as dense bits: per row along `axis` and per block the shared exponent, then `block` elements.

        Fields follow each other without gaps, low bit first; a tail's missing elements are zero. fp32 is the
        little-endian floats in C order. Raises FormatError where a 5-bit exponent would have to say NaN.
        """
        fmt = self.format
        if fmt.is_fp32:
            return self.codes.astype("<f4").tobytes()
        codes, exponents = self.rows()
        if fmt.exponent_bits < 8 and (exponents == NAN_EXPONENT).any():
            count = int((exponents == NAN_EXPONENT).sum())
            raise FormatError(f"{count} NaN blocks cannot be packed: the 5-bit exponent of {fmt.name} has no NaN code")
        elements = codes.reshape(-1, fmt.block).astype(np.int32)
        if not fmt.is_float and fmt.encoding == "sign_magnitude":
            elements = np.abs(elements) | (elements < 0).astype(np.int32) << fmt.mantissa_bits
        stored = exponents.reshape(-1, 1).astype(np.int32) + fmt.exponent_bias
        bits = np.concatenate([_to_bits(stored, fmt.exponent_bits), _to_bits(elements, fmt.element_bits)], axis=1)
        return np.packbits(bits, bitorder="little").tobytes()

    @classmethod
    def unpack(cls, data: bytes, format: str | BlockFormat, shape: tuple[int, ...], axis: int = -1) -> BlockTensor:
        """The tensor of `shape` whose `pack()` gave `data`.

        Raises InputError for a shape or an axis that is none and for the wrong number of bytes, FormatError for a
        mantissa or a bit pattern that the format never uses.
        """
        if not isinstance(shape, tuple | list) or not all(isinstance(n, int | np.integer) and n >= 0 for n in shape):
            raise InputError(f"shape={shape!r} is no shape; whole numbers from 0 up would do")
        try:
            packed = memoryview(data).cast("B")
        except TypeError:
            raise InputError(f"data is of type {type(data).__name__}; bytes would do") from None
        axis = checked_axis(axis, tuple(shape), "the tensor")
        fmt = get_format(format).for_length(shape[axis])
        moved = (*shape[:axis], *shape[axis + 1 :])
        blocks = -(-shape[axis] // fmt.block)
        rows = math.prod(moved)
        block_bits = fmt.exponent_bits + fmt.block * fmt.element_bits
        size = -(-rows * blocks * block_bits // 8)
        if len(packed) != size:
            raise InputError(f"{len(packed)} bytes do not hold a {fmt.name} tensor of shape {shape}; {size} would")
        exponents = np.zeros((*moved, blocks), np.int16)
        if fmt.is_fp32:
            codes = np.moveaxis(np.frombuffer(packed, "<f4").reshape(shape), axis, -1).astype(np.float32)
        else:
            stream = np.unpackbits(np.frombuffer(packed, np.uint8), count=rows * blocks * block_bits, bitorder="little")
            bits = stream.reshape(rows * blocks, block_bits)
            stored = _from_bits(bits[:, : fmt.exponent_bits], fmt.exponent_bits)
            exponents = (stored - fmt.exponent_bias).astype(np.int16).reshape(*moved, blocks)
            elements = _from_bits(bits[:, fmt.exponent_bits :], fmt.element_bits)
            codes = (
                _signed(elements, fmt).astype(code_dtype(fmt)).reshape(*moved, blocks * fmt.block)[..., : shape[axis]]
            )
        return cls(
            np.ascontiguousarray(np.moveaxis(codes, -1, axis)),
            np.ascontiguousarray(np.moveaxis(exponents, -1, axis)),
            fmt,
            axis,
        )


def _signed(elements: npt.NDArray[np.int32], fmt: BlockFormat) -> npt.NDArray[np.int32]:
    if fmt.is_float:
        return elements
    sign = elements >> fmt.mantissa_bits
    if fmt.encoding == "sign_magnitude":
        return np.where(sign, -(elements & fmt.max_code), elements)
    codes = elements - (sign << fmt.element_bits)
    if (codes < -fmt.max_code).any():
        raise FormatError(
            f"mantissa {-fmt.max_code - 1} is not one of {fmt.name}: its mantissas are ±{fmt.max_code} at most"
        )
    return codes


def _to_bits(values: npt.NDArray[np.int32], width: int) -> npt.NDArray[np.uint8]:
    """(n, m) integers as (n, m·width) bits, low bit first."""
    return (values[..., None] >> np.arange(width) & 1).astype(np.uint8).reshape(len(values), values.shape[1] * width)


def _from_bits(bits: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.int32]:
    weights = np.int32(1) << np.arange(width, dtype=np.int32)
    return bits.reshape(-1, width).astype(np.int32) @ weights
