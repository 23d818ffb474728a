"""The instructions: one row each. Encoding, decoding, assembly and the manual's tables all come from these rows.

They are those of Fowers et al., ISCA 2018, Table II, with the windowed reads of Microsoft's BrainSlice code; what is
ours is marked in docs/microarchitecture.md, section 2.
"""

# ruff: noqa: RUF009 -- `bits` describes a field
from __future__ import annotations

import dataclasses
import enum
import functools
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, get_type_hints

from fpgasim.errors import ProgramError

OPCODE_BITS, WORD_BITS = 6, 64
#: No device has more multifunction units than `Mem` has register files for.
MAX_MFUS = 4


class Mem(enum.IntEnum):
    """A memory. Files of MFU m are `ADDSUB_VRF_0 + m` and `MULTIPLY_VRF_0 + m`."""

    INITIAL_VRF = 0
    NET_QUEUE = 1
    DRAM = 2
    MATRIX_RF = 3
    ADDSUB_VRF_0 = 4
    ADDSUB_VRF_1 = 5
    ADDSUB_VRF_2 = 6
    ADDSUB_VRF_3 = 7
    MULTIPLY_VRF_0 = 8
    MULTIPLY_VRF_1 = 9
    MULTIPLY_VRF_2 = 10
    MULTIPLY_VRF_3 = 11

    @property
    def mfu(self) -> int | None:
        """The number of the multifunction unit whose file this is; None for the other memories."""
        return (self - Mem.ADDSUB_VRF_0) % MAX_MFUS if self >= Mem.ADDSUB_VRF_0 else None

    @property
    def is_addsub(self) -> bool:
        return Mem.ADDSUB_VRF_0 <= self <= Mem.ADDSUB_VRF_3

    @property
    def is_multiply(self) -> bool:
        return Mem.MULTIPLY_VRF_0 <= self <= Mem.MULTIPLY_VRF_3


def addsub_vrf(mfu: int) -> Mem:
    """The register file of the add unit of MFU `mfu`."""
    return Mem(Mem.ADDSUB_VRF_0 + mfu)


def multiply_vrf(mfu: int) -> Mem:
    """The register file of the multiply unit of MFU `mfu`."""
    return Mem(Mem.MULTIPLY_VRF_0 + mfu)


class Register(enum.IntEnum):
    """A control register."""

    ROWS = 0
    COLUMNS = 1
    ITERATIONS_X = 2
    ITERATIONS_Y = 3
    WINDOW_INNER = 4
    WINDOW_MIDDLE = 5
    WINDOW_OUTER = 6
    PITCH_INNER = 7
    PITCH_MIDDLE = 8
    PITCH_OUTER = 9
    WIDTH = 10
    PIXELS = 11
    CLIP_LOW = 12
    CLIP_HIGH = 13


#: Registers that hold the bits of a float32.
FLOAT_REGISTERS = frozenset({Register.CLIP_LOW, Register.CLIP_HIGH})


def float_bits(value: float) -> int:
    """The bits of `value`, rounded to float32, as `s_wr` takes them."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def bits_float(bits: int) -> float:
    """The float32 whose bits are `bits`."""
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


#: What the registers hold before the first instruction.
START: dict[Register, int] = {
    register: {Register.CLIP_LOW: float_bits(-math.inf), Register.CLIP_HIGH: float_bits(math.inf)}.get(register, 1)
    for register in Register
}

#: Opcode -> the class of its instructions.
INSTRUCTIONS: dict[int, type[Instruction]] = {}


@dataclass(frozen=True)
class Instruction:
    """One instruction word. `str` gives it as assembly."""

    opcode: ClassVar[int]
    mnemonic: ClassVar[str]

    def __init_subclass__(cls, *, opcode: int | None = None) -> None:
        if opcode is None:  # several instructions share their fields
            return
        cls.opcode = opcode
        cls.mnemonic = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        INSTRUCTIONS[opcode] = cls

    def __str__(self) -> str:
        words = [self.mnemonic]
        for field in fields(type(self)):
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name}={_text(self, value)}")
        return " ".join(words)


def bits(width: int, default: Any = dataclasses.MISSING) -> Any:
    """A field of `width` bits; fields are packed in the order written, low bits first."""
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata={"width": width})
    return dataclasses.field(metadata={"width": width}, default=default)


@dataclass(frozen=True)
class Access(Instruction):
    """Vectors of a memory; in iteration (x, y) the address is `address` + x·`step_x` + y·`step_y`."""

    mem: Mem = bits(4)
    address: int = bits(24, 0)
    step_x: int = bits(14, 0)
    step_y: int = bits(16, 0)


class Read(Access):
    """The start of a vector chain."""


class Write(Access):
    """The end of a vector chain; several in a row write to all of them."""


class Pointwise(Instruction):
    """What a multifunction unit does with every vector of a chain."""


class Operation(Pointwise, Access):
    """A pointwise instruction with an operand."""


class VRd(Read, opcode=1):
    """Start of a vector chain: `columns` consecutive vectors."""


class VRd2(Read, opcode=2):
    """Start of a vector chain: `window_middle` runs of `window_inner` consecutive vectors, `pitch_middle` from run to
    run."""


class VRd3(Read, opcode=3):
    """Start of a vector chain: `window_outer` × `window_middle` × `window_inner` vectors with the three pitches, outer
    slowest."""


class VUnroll(Read, opcode=4):
    """As `v_rd3`, but of elements (addresses, steps and pitches too), gathered into vectors, the last one filled with
    zeros."""


class VWr(Write, opcode=5):
    """Writes the vectors of the chain, consecutive."""


class VPack(Write, opcode=6):
    """Writes the first `width` elements of the chain's vectors to element addresses, consecutive; their neighbours
    stay."""


@dataclass(frozen=True)
class MRd(Instruction, opcode=7):
    """Start of a matrix chain: `rows` × `columns` consecutive tiles from DRAM."""

    mem: Mem = bits(4)
    address: int = bits(24, 0)


@dataclass(frozen=True)
class MWr(Instruction, opcode=8):
    """End of a matrix chain: into MatrixRf or DRAM."""

    mem: Mem = bits(4)
    address: int = bits(24, 0)


@dataclass(frozen=True)
class MvMul(Instruction, opcode=9):
    """Matrix times vector: `rows` × `columns` consecutive tiles of MatrixRf, row by row."""

    address: int = bits(24, 0)


class VvAdd(Operation, opcode=10):
    """The chain's vectors plus those of an AddSubVrf."""


class VvASubB(Operation, opcode=11):
    """The chain's vectors minus those of an AddSubVrf."""


class VvBSubA(Operation, opcode=12):
    """The vectors of an AddSubVrf minus the chain's."""


class VvMax(Operation, opcode=13):
    """The larger of the chain's elements and those of an AddSubVrf."""


class VvMul(Operation, opcode=14):
    """The chain's vectors times those of a MultiplyVrf, element by element."""


class VRelu(Pointwise, opcode=15):
    """max(v, 0)."""


class VSigm(Pointwise, opcode=16):
    """1 / (1 + e^−v)."""


class VTanh(Pointwise, opcode=17):
    """tanh v."""


class VClip(Pointwise, opcode=18):
    """min(max(v, `clip_low`), `clip_high`)."""


@dataclass(frozen=True)
class SWr(Instruction, opcode=19):
    """Sets a control register; between chains only."""

    register: Register = bits(6)
    value: int = bits(32)


class EndChain(Instruction, opcode=20):
    """The end of a chain."""


class Field(NamedTuple):
    """A field of an instruction word: bits `at` … `at` + `width` − 1; `default` may be MISSING."""

    name: str
    kind: Callable[[int], Any]
    at: int
    width: int
    default: Any


def fields(cls: type[Instruction]) -> tuple[Field, ...]:
    """The fields of `cls`, low bits first."""
    return _fields(cls.opcode)


@functools.cache
def _fields(opcode: int) -> tuple[Field, ...]:
    cls = INSTRUCTIONS[opcode]
    hints, found, at = get_type_hints(cls), [], OPCODE_BITS
    for f in dataclasses.fields(cls):
        found.append(Field(f.name, hints[f.name], at, f.metadata["width"], f.default))
        at += f.metadata["width"]
    assert at <= WORD_BITS, f"{cls.__name__} needs {at} bits, a word has {WORD_BITS}"
    return tuple(found)


def encode(insn: Instruction) -> int:
    """The word of `insn`. Raises ProgramError naming a field that does not fit."""
    word = insn.opcode
    for field in fields(type(insn)):
        value = getattr(insn, field.name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ProgramError(f"{insn.mnemonic}.{field.name}={value!r} is no whole number")
        if not 0 <= value < 1 << field.width:
            raise ProgramError(f"{insn.mnemonic}.{field.name}={value:d} does not fit in {field.width} bits")
        word |= value << field.at
    return word


def decode(word: int) -> Instruction:
    """The instruction in `word`. Raises ProgramError for an unknown opcode, memory or register and for unused bits."""
    if not 0 <= word < 1 << WORD_BITS:
        raise ProgramError(f"word {word:#x} does not fit in {WORD_BITS} bits")
    opcode = word & (1 << OPCODE_BITS) - 1
    if opcode not in INSTRUCTIONS:
        raise ProgramError(f"word {word:#018x}: no instruction has opcode {opcode}; there are 1 to {max(INSTRUCTIONS)}")
    cls = INSTRUCTIONS[opcode]
    values, used = {}, (1 << OPCODE_BITS) - 1
    for field in fields(cls):
        raw = word >> field.at & (1 << field.width) - 1
        used |= (1 << field.width) - 1 << field.at
        try:
            values[field.name] = field.kind(raw)
        except ValueError:
            raise ProgramError(f"word {word:#018x}: {cls.mnemonic} has no {field.name} {raw}") from None
    if word & ~used:
        raise ProgramError(f"word {word:#018x}: {cls.mnemonic} does not use all bits that are set")
    return cls(**values)


def _text(insn: Instruction, value: int) -> str:
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(insn, SWr) and insn.register in FLOAT_REGISTERS:
        number = bits_float(value)
        return repr(number) if float_bits(number) == value and not math.isnan(number) else hex(value)
    return str(value)
