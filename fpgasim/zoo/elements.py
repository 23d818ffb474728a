"""Raw elements as arrays, bfloat16 among them."""

from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
ByteOrder = Literal["<", ">"]


def item_size(dtype: str) -> int:
    """Bytes of an element; `dtype` is a NumPy name or `bfloat16`."""
    return np.dtype(_stored(dtype)).itemsize


def elements(data: Any, dtype: str, count: int, offset: int = 0, *, order: ByteOrder = "<") -> Array:
    """`count` elements at byte `offset` of `data`, in the machine's byte order; bfloat16 comes as float32, exactly."""
    raw = np.frombuffer(data, np.dtype(_stored(dtype)).newbyteorder(order), count, offset)
    native = raw.astype(raw.dtype.newbyteorder("="))
    # A bfloat16 is the upper half of the float32 of the same value.
    return (native.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else native


def _stored(dtype: str) -> str:
    return "uint16" if dtype == "bfloat16" else dtype
