"""Tensors of the wire as arrays and back: TensorFlow's TensorProto, and those of the Open Inference Protocol.

Strings are arrays of `object` that hold `bytes`. Nothing larger than a limit is allocated, whatever a message claims.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from fpgasim.errors import InputError
from fpgasim.service import wire

Array = np.ndarray[Any, Any]

#: What a tensor may take in memory once it is unpacked, unless a caller says otherwise.
MAX_BYTES = 256 << 20
MAX_RANK = 32
#: What Python has for the values of a dtype, by its kind; strings are looked at one by one.
_PYTHON: dict[str, set[type]] = {"i": {int}, "u": {int}, "b": {bool, int}, "f": {int, float}, "V": {int, float}}


@dataclass(frozen=True)
class Kind:
    """An element type: TensorFlow's name, the list of a TensorProto that holds such values, the protocol's datatype.

    A datatype of '' is not known to the Open Inference Protocol.
    """

    name: str
    values: str
    dtype: np.dtype[Any]
    datatype: str

    @property
    def number(self) -> int:
        """TensorFlow's DataType."""
        return int(wire.enumeration("tensorflow.DataType")[self.name])


KINDS = (
    Kind("DT_FLOAT", "float_val", np.dtype("<f4"), "FP32"),
    Kind("DT_DOUBLE", "double_val", np.dtype("<f8"), "FP64"),
    Kind("DT_HALF", "half_val", np.dtype("<f2"), "FP16"),
    Kind("DT_BFLOAT16", "half_val", np.dtype(ml_dtypes.bfloat16), "BF16"),
    Kind("DT_INT8", "int_val", np.dtype("i1"), "INT8"),
    Kind("DT_INT16", "int_val", np.dtype("<i2"), "INT16"),
    Kind("DT_INT32", "int_val", np.dtype("<i4"), "INT32"),
    Kind("DT_INT64", "int64_val", np.dtype("<i8"), "INT64"),
    Kind("DT_UINT8", "int_val", np.dtype("u1"), "UINT8"),
    Kind("DT_UINT16", "int_val", np.dtype("<u2"), "UINT16"),
    Kind("DT_UINT32", "uint32_val", np.dtype("<u4"), "UINT32"),
    Kind("DT_UINT64", "uint64_val", np.dtype("<u8"), "UINT64"),
    Kind("DT_BOOL", "bool_val", np.dtype("?"), "BOOL"),
    Kind("DT_COMPLEX64", "scomplex_val", np.dtype("<c8"), ""),
    Kind("DT_COMPLEX128", "dcomplex_val", np.dtype("<c16"), ""),
    Kind("DT_STRING", "string_val", np.dtype(object), "BYTES"),
)


def kind_of(dtype: np.dtype[Any]) -> Kind:
    """The kind of arrays of `dtype`; text and bytes of any length are strings. Raises InputError for none."""
    wanted = np.dtype(object) if dtype.kind in "OSUT" else dtype.newbyteorder("=")
    for kind in KINDS:
        if kind.dtype == wanted:
            return kind
    raise InputError(f"no tensor of the wire has dtype {dtype}; there are {', '.join(str(k.dtype) for k in KINDS)}")


def from_proto(proto: Any, name: str, max_bytes: int = MAX_BYTES) -> Array:
    """The array that the TensorProto `proto` holds, in its shape; strings as `object`.

    Both forms are read: `tensor_content`, and the list of values, whose last one repeats up to the shape
    (TensorFlow's `Tensor::FromProto`). Raises InputError, naming the tensor `name`, for a type that is not known, a
    shape that is not whole or larger than `max_bytes`, and values that do not fit.
    """
    kind = next((kind for kind in KINDS if kind.number == proto.dtype), None)
    if kind is None:
        raise InputError(f"tensor {name!r} has dtype {proto.dtype}; there are {_listed(k.name for k in KINDS)}")
    if proto.tensor_shape.unknown_rank:
        raise InputError(f"tensor {name!r} has a shape of unknown rank; a request must say it")
    shape = checked_shape([dim.size for dim in proto.tensor_shape.dim], kind, name, max_bytes)
    count = math.prod(shape)
    content = proto.tensor_content  # a copy each time
    if content:
        return _from_content(content, kind, shape, name)
    values = getattr(proto, kind.values)
    parts = 2 if kind.dtype.kind == "c" else 1
    if len(values) % parts or len(values) > count * parts:
        raise InputError(f"tensor {name!r} of shape {shape} has {len(values)} values in {kind.values}")
    if count and not values:
        raise InputError(f"tensor {name!r} of shape {shape} has neither tensor_content nor {kind.values}")
    if kind.name == "DT_STRING" and values:
        size = count * kind.dtype.itemsize + sum(map(len, values)) + (count - len(values)) * len(values[-1])
        if size > max_bytes:
            raise InputError(f"tensor {name!r} holds strings of {size} bytes, and at most {max_bytes} are taken")
    made = np.empty(count, kind.dtype)
    given = _elements(values, kind, name, bits=True)
    made[: len(given)] = given
    if len(given) < count:
        made[len(given) :] = given[-1:]
    return made.reshape(shape)


def to_proto(array: Array, *, content: bool = False) -> Any:
    """`array` as a TensorProto; its numbers in the list of values, which every client reads, or in `tensor_content`.

    Raises InputError for a dtype that the wire does not have.
    """
    kind = kind_of(array.dtype)
    proto = wire.message("tensorflow.TensorProto")(dtype=kind.number)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if kind.name == "DT_STRING":
        proto.string_val.extend(_as_bytes(item) for item in array.reshape(-1))
    elif content:
        proto.tensor_content = np.ascontiguousarray(array, kind.dtype).tobytes()
    elif kind.name in ("DT_FLOAT", "DT_DOUBLE"):
        # A packed list is its little-endian elements behind one tag: put there at once instead of one by one.
        field = proto.DESCRIPTOR.fields_by_name[kind.values].number
        data = np.ascontiguousarray(array, kind.dtype).tobytes()
        proto.MergeFromString(_varint(field << 3 | 2) + _varint(len(data)) + data)
    else:
        flat = np.ascontiguousarray(array, kind.dtype).reshape(-1)
        if kind.values == "half_val":
            flat = flat.view(np.uint16)
        elif flat.dtype.kind == "c":
            flat = flat.view(flat.real.dtype)
        getattr(proto, kind.values).extend(flat.tolist())
    return proto


def from_raw(data: bytes, datatype: str, shape: Sequence[int], name: str, max_bytes: int = MAX_BYTES) -> Array:
    """The array of the Open Inference Protocol's raw `data`: little-endian, a BYTES element behind its 4-byte length.

    Raises InputError, naming the tensor, for a datatype that is not known, a shape that is too large, and data of
    another size.
    """
    kind = datatype_kind(datatype, name)
    sizes = checked_shape(shape, kind, name, max_bytes)
    return _from_content(data, kind, sizes, name) if kind.datatype != "BYTES" else _from_lengths(data, sizes, name)


def to_raw(array: Array) -> bytes:
    """The raw data of `array` in the Open Inference Protocol; InputError for a dtype it does not have."""
    kind = kind_of(array.dtype)
    if kind.datatype == "BYTES":
        items = [_as_bytes(item) for item in array.reshape(-1)]
        return b"".join(struct.pack("<I", len(item)) + item for item in items)
    if not kind.datatype:
        raise InputError(f"the Open Inference Protocol has no datatype for {array.dtype}")
    return np.ascontiguousarray(array, kind.dtype).tobytes()


def from_values(
    values: Iterable[Any], datatype: str, shape: Sequence[int], name: str, max_bytes: int = MAX_BYTES
) -> Array:
    """The array of a list of `values` in row-major order (the protocol's `contents`, or its JSON); errors as above."""
    kind = datatype_kind(datatype, name)
    sizes = checked_shape(shape, kind, name, max_bytes)
    listed = list(values)
    if len(listed) != math.prod(sizes):
        raise InputError(f"tensor {name!r} of shape {sizes} has {len(listed)} values")
    check_types(listed, kind.dtype, name)
    made = np.empty(len(listed), kind.dtype)
    made[:] = _elements(listed, kind, name)
    return made.reshape(sizes)


def size_of(array: Array) -> int:
    """The bytes that `array` takes, its strings with it, each at its own length."""
    return array.nbytes + (sum(map(len, array.flat)) if array.dtype == object else 0)


def datatype_kind(datatype: str, name: str) -> Kind:
    """The kind that the Open Inference Protocol calls `datatype`; InputError names the tensor."""
    for kind in KINDS:
        if kind.datatype and kind.datatype == datatype:
            return kind
    known = _listed(kind.datatype for kind in KINDS if kind.datatype)
    raise InputError(f"tensor {name!r} has datatype {datatype!r}; there are {known}")


def check_types(values: Iterable[Any], dtype: np.dtype[Any], name: str) -> None:
    """Raises InputError for a value that JSON has and NumPy would make a number of: null, a text, 1.5 as an integer."""
    allowed = _PYTHON.get(dtype.kind)
    wrong = set(map(type, values)) - allowed if allowed else set()
    if wrong:
        there = " and ".join(sorted("null" if found is type(None) else found.__name__ for found in wrong))
        raise InputError(f"tensor {name!r} has a value that is no {dtype}: a {there}")


def checked_shape(shape: Sequence[int], kind: Kind, name: str, max_bytes: int) -> tuple[int, ...]:
    """`shape` as a tuple; InputError for a negative size, too many dimensions or more than `max_bytes` of elements."""
    sizes = tuple(shape)
    if len(sizes) > MAX_RANK or any(size < 0 for size in sizes):
        raise InputError(f"tensor {name!r} has shape {sizes[:MAX_RANK]}; a request has at most {MAX_RANK} sizes from 0")
    if math.prod(size or 1 for size in sizes) * kind.dtype.itemsize > max_bytes:  # NumPy minds these with a 0 too
        raise InputError(f"tensor {name!r} of shape {sizes} is larger than the {max_bytes} bytes allowed")
    return sizes


def _from_content(content: bytes, kind: Kind, shape: tuple[int, ...], name: str) -> Array:
    if kind.name == "DT_STRING":
        raise InputError(f"tensor {name!r} holds strings in tensor_content; put them in string_val")
    needed = math.prod(shape) * kind.dtype.itemsize
    if len(content) != needed:
        raise InputError(f"tensor {name!r} of {kind.dtype} {shape} needs {needed} bytes and has {len(content)}")
    if kind.name == "DT_BOOL":
        return np.frombuffer(content, np.uint8).reshape(shape).astype(bool)
    return np.frombuffer(content, kind.dtype).reshape(shape)


def _from_lengths(data: bytes, shape: tuple[int, ...], name: str) -> Array:
    items: list[bytes] = []
    count, at = math.prod(shape), 0
    while at < len(data) and len(items) < count:
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > len(data):
            break
        items.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    if at != len(data) or len(items) != count:
        raise InputError(f"tensor {name!r} of BYTES {shape}: its raw data does not hold {count} elements")
    return np.array([*items, None], object)[:-1].reshape(shape)  # None keeps NumPy from looking into the items


def _elements(values: Iterable[Any], kind: Kind, name: str, *, bits: bool = False) -> Array:
    """`values` in the kind's dtype, 16-bit floats as their bits if `bits`; InputError for one that does not fit."""
    listed = list(values)
    try:
        if kind.name == "DT_STRING":
            return np.array([*(_as_bytes(value) for value in listed), None], object)[:-1]
        if bits and kind.values == "half_val":
            return np.array(listed, np.uint16).view(kind.dtype)
        if kind.dtype.kind == "c":
            halves = np.array(listed, kind.dtype.type(0).real.dtype)
            return halves.view(kind.dtype)
        with np.errstate(over="ignore"):
            return np.array(listed, kind.dtype)
    except InputError:
        raise
    except (OverflowError, TypeError, ValueError) as error:
        raise InputError(f"tensor {name!r} has a value that is no {kind.dtype}: {error}") from None


def _as_bytes(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes):
        return item
    raise InputError(f"a string of a tensor is a {type(item).__name__}; it must be bytes or text")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
