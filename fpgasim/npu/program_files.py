"""One file for one program.

Little-endian: the magic number, the version, the sizes of head and body, the SHA-256 of both, the head, which is JSON,
and the body: instruction words, vectors in the pointwise type, tiles packed as in `BlockTensor.pack`, each in the order
of the head.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import struct
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

from fpgasim.errors import FpgasimError, InputError, ProgramError
from fpgasim.kernels.contract import Float32Array, Operand, Pointwise, element_table, rows_operand
from fpgasim.npu.device import Device
from fpgasim.npu.isa import Mem
from fpgasim.npu.numbers import Numbers
from fpgasim.npu.programs import Block, Port, Program
from fpgasim.numerics import BlockFormat, BlockTensor

MAGIC = b"fpgaprog"
#: Raised by one whenever a file of before can no longer be read.
VERSION = 1
#: Magic number, version, bytes of head and of body, SHA-256 of both.
_START = struct.Struct("<8sIIQ32s")
#: Tiles that are packed together: with any format they are whole bytes.
_GROUP = 8


def save(program: Program, path: str | os.PathLike[str]) -> None:
    """Writes `program` to `path`. Raises ProgramError where that cannot be done, InputError for what is no path.

    The same program makes the same bytes. A file that is there already is replaced whole or stays; what is there and no
    regular file, as a folder or a device, stays.
    """
    target = os.path.abspath(_decoded(path))
    if os.path.exists(target) and not os.path.isfile(target):
        raise ProgramError(f"program file {target!r} cannot be written: it is there and no regular file; another path "
                           "would do")  # fmt: skip
    body = b"".join(
        (
            *(np.array(block.words, "<u8").tobytes() for block in program.blocks),
            *(_pack_vectors(vectors, program.numbers.pointwise) for vectors in program.vectors.values()),
            *(_pack_tiles(tiles, program.numbers.format) for tiles in program.tiles.values()),
        )
    )
    head = json.dumps(_facts(program)).encode()
    partial = None
    try:
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(target), prefix=".program-", delete=False) as file:
            partial = file.name
            file.write(_START.pack(MAGIC, VERSION, len(head), len(body), hashlib.sha256(head + body).digest()))
            file.write(head + body)
        os.replace(partial, target)
    except OSError as error:
        if partial is not None:
            with contextlib.suppress(OSError):
                os.unlink(partial)
        raise ProgramError(f"program file {target!r} cannot be written: {error.strerror or error}") from error


def is_program(data: bytes) -> bool:
    """Whether `data` begins like a program file."""
    return data[: len(MAGIC)] == MAGIC


def load(path: str | os.PathLike[str]) -> Program:
    """The program in `path`.

    Raises ProgramError for a file that cannot be read, is no program, is of another version, is cut off or whose
    checksum is wrong, InputError for what is no path.
    """
    path = _decoded(path)
    where = f"program file {path!r}"
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ProgramError(f"{where} cannot be read: {error.strerror or error}") from error
    if not is_program(data):
        raise ProgramError(f"{where} is no program; Program.save writes one")
    if len(data) < _START.size:
        raise ProgramError(f"{where} is cut off: it has {len(data)} bytes, its beginning alone {_START.size}")
    _, version, head_bytes, body_bytes, digest = _START.unpack_from(data)
    if version != VERSION:
        raise ProgramError(f"{where} is of version {version}; this fpgasim reads version {VERSION}")
    size = _START.size + head_bytes + body_bytes
    if len(data) != size:
        what = "cut off" if len(data) < size else "too long"
        raise ProgramError(f"{where} is {what}: it has {len(data)} bytes and should have {size}")
    rest = memoryview(data)[_START.size :]
    if hashlib.sha256(rest).digest() != digest:
        raise ProgramError(f"{where} is damaged: its checksum is wrong")
    try:
        return _program(json.loads(bytes(rest[:head_bytes])), rest[head_bytes:])
    except (
        FpgasimError, KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError,
    ) as error:  # fmt: skip
        message = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ProgramError(f"{where} is damaged: {message}") from error


def _decoded(path: str | os.PathLike[str]) -> str:
    try:
        decoded = os.fsdecode(path)
    except TypeError:
        raise InputError(f"path={path!r} is no path; a str or a pathlib.Path would do") from None
    if "\0" in decoded:
        raise InputError(f"path={decoded!r} is no path; one without a null character would do")
    return decoded


def _facts(program: Program) -> dict[str, Any]:
    device = dataclasses.asdict(program.device)
    return {
        "name": program.name,
        "device": {**device, "assumed": sorted(program.device.assumed)},
        "numbers": dataclasses.asdict(program.numbers),
        "blocks": [{**dataclasses.asdict(block), "words": len(block.words)} for block in program.blocks],
        "vectors": [{"mem": mem.name.lower(), "count": len(vectors)} for mem, vectors in program.vectors.items()],
        "tiles": [{"mem": mem.name.lower(), "count": len(tiles.mantissas)} for mem, tiles in program.tiles.items()],
        "inputs": [dataclasses.asdict(port) for port in program.inputs],
        "outputs": [dataclasses.asdict(port) for port in program.outputs],
    }


class _Body:
    """The bytes of a body, taken from the front."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> memoryview:
        if not 0 <= size <= len(self.data) - self.at:
            raise ProgramError(f"its head speaks of {size} bytes where {len(self.data) - self.at} are left")
        self.at += size
        return self.data[self.at - size : self.at]


def _program(facts: dict[str, Any], data: memoryview) -> Program:
    device = Device(**{**facts["device"], "assumed": frozenset(facts["device"]["assumed"])})
    numbers = Numbers(**{**facts["numbers"], "format": BlockFormat(**facts["numbers"]["format"])})
    n, body = device.native_dim, _Body(data)
    blocks = [
        Block(**{**block, "words": tuple(np.frombuffer(body.take(8 * block["words"]), "<u8").tolist())})
        for block in facts["blocks"]
    ]
    vectors = {
        Mem[part["mem"].upper()]: _unpack_vectors(body, part["count"], n, numbers.pointwise)
        for part in facts["vectors"]
    }
    tiles = {Mem[part["mem"].upper()]: _unpack_tiles(body, part["count"], n, numbers.format) for part in facts["tiles"]}
    if body.at != len(data):
        raise ProgramError(f"its head does not speak of its last {len(data) - body.at} bytes")
    inputs, outputs = (
        tuple(Port(port["name"], tuple(port["shape"]), port["packed"], tuple(port["halo"])) for port in facts[side])
        for side in ("inputs", "outputs")
    )
    return Program(facts["name"], device, numbers, tuple(blocks), vectors, tiles, inputs, outputs)


_STORED: dict[Pointwise, str] = {"fp16": "<f2", "bf16": "<u2", "fp32": "<f4"}


def _pack_vectors(vectors: Float32Array, pointwise: Pointwise) -> bytes:
    if pointwise == "bf16":
        return (vectors.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()
    return vectors.astype(_STORED[pointwise]).tobytes()


def _unpack_vectors(body: _Body, count: int, n: int, pointwise: Pointwise) -> Float32Array:
    kind = np.dtype(_STORED[pointwise])
    stored = np.frombuffer(body.take(count * n * kind.itemsize), kind).reshape(count, n)
    if pointwise == "bf16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def _pack_tiles(tiles: Operand, fmt: BlockFormat) -> bytes:
    codes = _codes(tiles, fmt)
    exponents = np.zeros(codes.shape, np.int16) if tiles.exponents is None else tiles.exponents
    groups = (slice(i, i + _GROUP) for i in range(0, len(codes), _GROUP))
    return b"".join(BlockTensor(codes[group], exponents[group], fmt, 2).pack() for group in groups)


def _unpack_tiles(body: _Body, count: int, n: int, fmt: BlockFormat) -> Operand:
    made = []
    for first in range(0, count, _GROUP):
        size = min(_GROUP, count - first)
        bits = size * n * (n // fmt.block) * (fmt.exponent_bits + fmt.block * fmt.element_bits)
        made.append(BlockTensor.unpack(bytes(body.take(-(-bits // 8))), fmt, (size, n, n)))
    if not made:
        raise ProgramError("it holds a memory of no tiles")
    codes, exponents = np.concatenate([t.codes for t in made]), np.concatenate([t.exponents for t in made])
    return rows_operand(codes, exponents, fmt, n)


def _codes(tiles: Operand, fmt: BlockFormat) -> npt.NDArray[Any]:
    """The codes that `tiles.mantissas` stand for; of a zero whose sign is lost the positive one."""
    table, _ = element_table(fmt)
    if table is None:
        return tiles.mantissas
    # Floats are compared by their bits, in which the two zeros differ.
    known, wanted = (a.view(np.int32) if a.dtype == np.float32 else a for a in (table, tiles.mantissas))
    order = np.argsort(known, kind="stable")
    return order[np.searchsorted(known[order], wanted)].astype(np.uint8)
