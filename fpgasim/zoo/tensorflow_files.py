"""Reads TensorFlow's checkpoints without TensorFlow: the one file of version 1, and version 2's index beside its data.

Both keep a sorted table of names in LevelDB's format (github.com/google/leveldb, doc/table_format.md), never compressed
by TensorFlow; its values are protocol buffers (tensorflow/core/protobuf/tensor_bundle.proto and
core/util/saved_tensor_slice.proto). Sizes are checked before memory is taken; the checksums are not.
"""

import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fpgasim.errors import WeightsError
from fpgasim.zoo.elements import Array, elements, item_size
from fpgasim.zoo.unpickling import MAX_DIMENSIONS

FOOTER_BYTES = 48
MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
#: tensorflow/core/framework/types.proto; strings are no weights and are passed over.
DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 9: "int64", 10: "bool", 14: "bfloat16",
    17: "uint16", 19: "float16", 22: "uint32", 23: "uint64",
}  # fmt: skip
STRING = 7
#: The fields of a TensorProto that version 1 writes numbers in -> how one is packed (0: as a varint).
VALUES = {5: "<f4", 6: "<f8", 7: 0, 10: 0, 11: 0, 13: 0, 16: 0, 17: 0}


class _Entry(NamedTuple):
    """A tensor of version 2: where it lies in which data file."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    sliced: bool


def is_table(path: Path) -> bool:
    """Whether the file ends as a table of LevelDB does."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - len(MAGIC), 0))
        return file.read() == MAGIC


def index_of(path: Path) -> Path:
    """The index where `path` names a checkpoint in TensorFlow's way, without an ending, or one of its data files."""
    prefix, data, _ = str(path).partition(".data-")
    index = Path(f"{prefix}.index")
    return index if index.is_file() and (data or not path.exists()) else path


def read_table(path: Path) -> dict[str, Array]:
    """The tensors of a checkpoint of version 1, or of the index `path` of one of version 2 and its data files."""
    data = path.read_bytes()
    rows = dict(_rows(data))
    header = rows.pop(b"", None)
    if header is None:
        raise WeightsError("it is a table without the header of a TensorFlow checkpoint")
    if header[:1] == b"\x0a":  # version 1's header is a message in field 1, version 2's a number
        return dict(_slices(header, rows.values()))
    shards, big_endian = _numbers(header, 1, 1), _numbers(header, 2, 0)
    return _bundle(path, rows, shards, ">" if big_endian else "<")


def _rows(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    footer = data[-FOOTER_BYTES:]
    if len(footer) < FOOTER_BYTES or not footer.endswith(MAGIC):
        raise WeightsError("it does not end as a checkpoint of TensorFlow does")
    at = _varint(footer, _varint(footer, 0)[1])[1]
    for _, handle in _block(data, footer, at):
        yield from _block(data, handle, 0)


def _block(data: bytes, handle: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    """The rows of the block whose (offset, size) stand at `at` of `handle`; keys drop what they share with the last."""
    offset, at = _varint(handle, at)
    size, _ = _varint(handle, at)
    block = data[offset : offset + size]
    if offset + size >= len(data) or len(block) < 4:
        raise WeightsError(f"a block of {size} bytes at {offset} does not lie in the file's {len(data)}")
    if data[offset + size]:
        raise WeightsError("a block is compressed, which TensorFlow does not do")
    restarts = struct.unpack_from("<I", block, size - 4)[0]
    end = size - 4 * (restarts + 1)
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + own + length > end:
            raise WeightsError("a row does not lie in its block")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _bundle(path: Path, rows: dict[bytes, bytes], shards: int, order: Any) -> dict[str, Array]:
    prefix = str(path).removesuffix(".index")
    arrays: dict[str, Array] = {}
    for key, value in rows.items():
        name, entry = key.decode(), _entry(value)
        if entry.dtype == STRING:
            continue
        if entry.sliced:
            raise WeightsError(f"tensor {name!r} is saved in slices; save it whole")
        dtype, count = _dtype(name, entry.dtype), _count(name, entry.shape)
        if entry.size != count * item_size(dtype):
            raise WeightsError(f"tensor {name!r} of {dtype} {list(entry.shape)} has {entry.size} bytes")
        file = Path(f"{prefix}.data-{entry.shard:05}-of-{shards:05}")
        with file.open("rb") as stream:
            if entry.offset + entry.size > file.stat().st_size:
                raise WeightsError(f"tensor {name!r} does not lie in {file.name!r}, {file.stat().st_size} bytes")
            stream.seek(entry.offset)
            arrays[name] = elements(stream.read(entry.size), dtype, count, order=order).reshape(entry.shape)
    return arrays


def _entry(value: bytes) -> _Entry:
    fields: dict[int, Any] = {number: field for number, field in _fields(value) if number != 7}
    sliced = any(number == 7 for number, _ in _fields(value))
    shape = _shape(fields.get(2, b""))
    return _Entry(fields.get(1, 0), shape, fields.get(3, 0), fields.get(4, 0), fields.get(5, 0), sliced)


def _slices(header: bytes, values: Iterable[bytes]) -> Iterator[tuple[str, Array]]:
    """The tensors of version 1: the header has their types and shapes, each row a SavedSlice with name and numbers."""
    metas = (dict(_fields(meta)) for number, meta in _fields(dict(_fields(header))[1]) if number == 1)
    known = {bytes(meta[1]): (meta.get(3, 0), _shape(meta.get(2, b""))) for meta in metas}
    for value in values:
        fields = dict(_fields(dict(_fields(value))[2]))
        name = bytes(fields[1]).decode()
        code, shape = known[fields[1]]
        if any(extent for _, extent in _fields(fields.get(2, b""))):
            raise WeightsError(f"tensor {name!r} is saved in slices; save it whole")
        if code != STRING:
            yield name, _proto_array(name, list(_fields(fields[3])), _dtype(name, code), shape)


def _proto_array(name: str, tensor: list[tuple[int, Any]], dtype: str, shape: tuple[int, ...]) -> Array:
    """The numbers of a TensorProto: as bytes, or each in the field of its type."""
    count = _count(name, shape)
    content = next((value for number, value in tensor if number == 4), b"")
    if content:
        if len(content) != count * item_size(dtype):
            raise WeightsError(f"tensor {name!r} of {dtype} {list(shape)} has {len(content)} bytes")
        return elements(content, dtype, count).reshape(shape)
    parts = [_values(number, value) for number, value in tensor if number in VALUES]
    values = np.concatenate(parts) if parts else np.zeros(0)
    if len(values) != count or dtype in ("float16", "bfloat16"):
        raise WeightsError(f"tensor {name!r} of {dtype} {list(shape)} has {len(values)} numbers")
    return values.astype(dtype).reshape(shape)


def _values(number: int, value: Any) -> Array:
    packed = VALUES[number]
    if packed:
        return np.frombuffer(value, str(packed))
    numbers, at = [value] if isinstance(value, int) else [], 0
    while not isinstance(value, int) and at < len(value):
        one, at = _varint(value, at)
        numbers.append(one)
    return np.array(numbers, np.uint64).astype(np.int64)


def _shape(value: bytes) -> tuple[int, ...]:
    """Of a TensorShapeProto: repeated dim (2) { size (1) }."""
    return tuple(dict(_fields(dim)).get(1, 0) for number, dim in _fields(value) if number == 2)


def _count(name: str, shape: tuple[int, ...]) -> int:
    if len(shape) > MAX_DIMENSIONS or not all(0 <= n < 1 << 63 for n in shape):
        raise WeightsError(f"tensor {name!r} has a shape that makes no sense")
    return math.prod(shape)


def _dtype(name: str, code: int) -> str:
    if code not in DTYPES:
        raise WeightsError(f"tensor {name!r} has TensorFlow's type {code}; there are {', '.join(DTYPES.values())}")
    return DTYPES[code]


def _numbers(message: bytes, number: int, default: int) -> int:
    return int(dict(_fields(message)).get(number, default))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The (number, value) of a protocol buffer's fields: an int, or the bytes of all else."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise WeightsError(f"a message has a field of kind {kind}, which TensorFlow does not write")
        if at + size > len(message):
            raise WeightsError("a message is cut short")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise WeightsError("a number in it is cut short or has too many digits")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
