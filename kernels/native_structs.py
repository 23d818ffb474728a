"""What the C kernels read of our types."""

from __future__ import annotations

import functools
import math
import threading
from typing import Any

import numpy as np

from fpgasim.kernels._native import ffi
from fpgasim.kernels.contract import Array
from fpgasim.numerics import NAN_EXPONENT, BlockFormat
from fpgasim.numerics.scalar import largest_code
from fpgasim.numerics.tensors import code_dtype


def pointer(kind: str, array: Array) -> Any:
    """A C pointer to the elements of `array`, which must outlive it."""
    return ffi.from_buffer(f"{kind}[]", array)


def strided_pointer(array: Array) -> Any:
    """A C pointer to the first float of `array`, which must outlive it, whatever lies between its pixels."""
    return ffi.cast("float *", array.ctypes.data)


_kept = threading.local()


def aligned(size: int) -> Array:
    """Bytes that begin with a line of the cache."""
    room = np.empty(size + 64, np.uint8)
    return room[-room.ctypes.data % 64 :]


def kept(purpose: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array that is this thread's until it asks again for the same purpose; what is in it is undefined."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = _kept.__dict__.get(purpose)
    if memory is None or memory.size < size:
        memory = _kept.__dict__[purpose] = aligned(size)
    array: Array = memory[:size].view(dtype).reshape(shape)
    return array


def room(floats: int) -> Any:
    """A C pointer to that many floats, which are this thread's until it asks again."""
    return pointer("float", kept("room", (floats,), np.float32))


@functools.lru_cache(256)
def format_struct(fmt: BlockFormat, code_bytes: int | None = None) -> Any:
    """`fmt` as an `fs_format *`, with codes of `code_bytes` bytes if that is given."""
    low, high = fmt.exponent_range
    return ffi.new("fs_format *", {
        "block": fmt.block,
        "code_bytes": code_bytes or code_dtype(fmt).itemsize,
        "mantissa_bits": fmt.mantissa_bits,
        "element_exponent_bits": fmt.element_exponent_bits,
        "element_emin": fmt.element_emin if fmt.is_float else 0,
        "element_emax": fmt.element_emax,
        "max_code": largest_code(fmt),
        "exponent_low": low,
        "exponent_high": high,
        "exponent_above": NAN_EXPONENT if fmt.exponent_bits == 8 else high,
    })  # fmt: skip
