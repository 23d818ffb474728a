"""Writes checkpoints as TensorFlow does, byte by byte, so that reading them needs no TensorFlow."""

import struct
from pathlib import Path

import numpy as np

MAGIC = 0xDB4775248B80FB57
TYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "float16": 19, "S": 7}


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def number(field, value):
    return varint(field << 3) + varint(value)


def message(field, data):
    return varint(field << 3 | 2) + varint(len(data)) + data


def shape_proto(shape):
    return b"".join(message(2, number(1, n)) for n in shape)


def block(rows, compression=0):
    """Rows of a sorted table; each key drops what it shares with the one before, as LevelDB's do."""
    body, last = bytearray(), b""
    for key, value in rows:
        shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:]
        body += value
        last = key
    return body + struct.pack("<II", 0, 1), bytes([compression]) + bytes(4)


def table(rows, rows_of_a_block=3, compression=0):
    rows, data, index = sorted(rows.items()), bytearray(), []
    for start in range(0, len(rows), rows_of_a_block):
        part = rows[start : start + rows_of_a_block]
        body, trailer = block(part, compression)
        index.append((part[-1][0], varint(len(data)) + varint(len(body))))
        data += body + trailer
    handles = []
    for body, trailer in (block([]), block(index)):
        handles.append(varint(len(data)) + varint(len(body)))
        data += body + trailer
    return data + b"".join(handles).ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def write_bundle(prefix, arrays, *, slices=(), **options):
    """Version 2: `prefix`.index and one data file; names in `slices` are marked as saved in parts."""
    rows, data = {b"": number(1, 1)}, bytearray()
    for name, array in sorted(arrays.items()):
        raw = array.tobytes()
        code = TYPES.get(array.dtype.name, 7)
        entry = number(1, code) + message(2, shape_proto(array.shape)) + number(4, len(data)) + number(5, len(raw))
        entry += varint(6 << 3 | 5) + bytes(4)  # the checksum
        rows[name.encode()] = entry + (message(7, message(1, b"")) if name in slices else b"")
        data += raw
    Path(f"{prefix}.index").write_bytes(table(rows, **options))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
    return prefix


def write_version_1(path, arrays):
    """Version 1: one file, the numbers in the table's values."""
    metas, rows = b"", {}
    for i, (name, array) in enumerate(arrays.items()):
        whole = b"".join(message(1, b"") for _ in array.shape)
        meta = message(1, name.encode()) + message(2, shape_proto(array.shape))
        metas += message(1, meta + number(3, TYPES[array.dtype.name]) + message(4, whole))
        if array.dtype.kind == "f":
            numbers = message(5 if array.dtype == np.float32 else 6, array.tobytes())
        else:
            values = b"".join(varint(int(value) & (1 << 64) - 1) for value in array.ravel())
            numbers = message({"int64": 10, "bool": 11}.get(array.dtype.name, 7), values)
        saved = message(1, name.encode()) + message(2, whole) + message(3, numbers)
        rows[b"\0" + i.to_bytes(2, "big")] = message(2, saved)
    rows[b""] = message(1, metas)
    path.write_bytes(table(rows))
    return path
