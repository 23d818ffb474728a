"""What the C kernels read of our types."""

from __future__ import annotations

import functools
from typing import Any

from fpgasim.kernels._native import ffi
from fpgasim.kernels.contract import Array
from fpgasim.numerics import NAN_EXPONENT, BlockFormat
from fpgasim.numerics.scalar import encode_element
from fpgasim.numerics.tensors import code_dtype


def pointer(kind: str, array: Array) -> Any:
    """A C pointer to the elements of `array`, which must outlive it."""
    return ffi.from_buffer(f"{kind}[]", array)


@functools.lru_cache(256)
def format_struct(fmt: BlockFormat) -> Any:
    """`fmt` as an `fs_format *`."""
    low, high = fmt.exponent_range
    return ffi.new("fs_format *", {
        "block": fmt.block,
        "code_bytes": code_dtype(fmt).itemsize,
        "mantissa_bits": fmt.mantissa_bits,
        "element_exponent_bits": fmt.element_exponent_bits,
        "element_emin": fmt.element_emin if fmt.is_float else 0,
        "element_emax": fmt.element_emax,
        "max_code": encode_element(fmt.element_max, 0, fmt, "floor") if fmt.is_float else fmt.max_code,
        "exponent_low": low,
        "exponent_high": high,
        "exponent_above": NAN_EXPONENT if fmt.exponent_bits == 8 else high,
    })  # fmt: skip
