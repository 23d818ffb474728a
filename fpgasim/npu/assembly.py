"""Assembly: instruction words as text and back, and the manual.

One instruction stands on a line: `v_rd mem=initial_vrf address=12 step_x=1`. Fields that are 0 may be left out. Numbers
are decimal or hexadecimal (`0x1f`), the value of a clip register may be a number like `6.0` or `-inf`, and a word may
stand for its instruction. `#` begins a comment. Blocks are written

    block "name" repeat 3 macs 1000 {
    }

where all but the brace may be left out (`macs` are the useful multiply-accumulates of one turn). Instructions outside
of braces are a block that is done once.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
import textwrap
from collections.abc import Iterable
from typing import NoReturn

from fpgasim.errors import ProgramError
from fpgasim.npu.isa import (
    FLOAT_REGISTERS,
    INSTRUCTIONS,
    OPCODE_BITS,
    START,
    WORD_BITS,
    Instruction,
    Mem,
    Register,
    bits_float,
    decode,
    encode,
    fields,
    float_bits,
)
from fpgasim.npu.programs import Block

MNEMONICS = {cls.mnemonic: cls for cls in INSTRUCTIONS.values()}

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_CODE = re.compile(rf"(?:{_QUOTED}|[^#])*")  # a line up to its comment
_HEADER = re.compile(rf"(?:block\s*(?P<name>{_QUOTED})?\s*)?(?:repeat\s+(?P<repeat>[0-9]+)\s*)?"
                     r"(?:macs\s+(?P<macs>[0-9]+)\s*)?\{")  # fmt: skip
_WORD = re.compile(r"\S+")
#: The least number that no word holds.
_BEYOND = 1 << WORD_BITS


_TITLE = f"""\
# Instructions

`fpgasim.npu.assembly.manual()` wrote this page from `fpgasim/npu/isa.py`. What a chain may be, how long it takes and
where its numbers are rounded is in [microarchitecture.md](microarchitecture.md).

A word has {WORD_BITS} bits: {OPCODE_BITS} of opcode, then the fields from the low bits up. Unused bits are zero.
"""


def assemble(text: str) -> tuple[Block, ...]:
    """The blocks that `text` describes. Raises ProgramError naming line and column, and the field where it is one."""
    blocks: list[Block] = []
    words: list[int] = []
    opened: tuple[int, Block] | None = None  # line and header of the block that is open
    for number, whole in enumerate(text.splitlines(), 1):
        code = _CODE.match(whole)
        assert code is not None  # it also matches nothing
        line = code[0].rstrip()
        start = line.strip()
        column = len(line) - len(line.lstrip()) + 1
        if not start:
            continue
        if start == "}":
            if opened is None:
                _refuse(number, column, "there is no block for } to close")
            blocks.append(dataclasses.replace(opened[1], words=tuple(words)))
            words, opened = [], None
        elif start.endswith("{") or start.split()[0] in ("block", "repeat", "macs"):
            if opened is not None:
                _refuse(number, column, f"blocks do not nest; the one of line {opened[0]} is still open")
            if words:
                blocks.append(Block(tuple(words)))
                words = []
            opened = (number, _header(start, number, column))
        else:
            words.append(_word(line, number))
    if opened is not None:
        _refuse(opened[0], 1, "the block is never closed; a line } would do")
    if words:
        blocks.append(Block(tuple(words)))
    return tuple(blocks)


def _header(text: str, line: int, column: int) -> Block:
    """The block that `text` opens, still empty."""
    found = _HEADER.fullmatch(text)
    if found is None:
        _refuse(line, column, f'{text!r} opens no block; block "name" repeat 3 macs 1000 {{ would')
    try:
        name = json.loads(found["name"]) if found["name"] else ""
    except json.JSONDecodeError as error:
        _refuse(line, column, f"the name {found['name']} is no JSON string: {error.msg}")
    counts = {key: _whole(found[key]) for key in ("repeat", "macs") if found[key]}
    for key, count in counts.items():
        if count is None or count >= _BEYOND:
            _refuse(line, column, f"{key} {_short(found[key])} does not fit in {WORD_BITS} bits")
    repeat = counts.get("repeat", 1)
    if not repeat:
        _refuse(line, column, f"repeat {repeat}; 1 or more would do")
    return Block((), repeat, name, counts.get("macs"))


def _word(line: str, number: int) -> int:
    """The word of the instruction on `line`."""
    first, *rest = _WORD.finditer(line)
    if first[0][0].isdigit() and not rest:
        word = _whole(first[0])
        if word is None or word >= _BEYOND:
            _refuse(number, first.start() + 1, f"{_short(first[0])} is no word of {WORD_BITS} bits")
        return word
    if first[0] not in MNEMONICS:
        _refuse(number, first.start() + 1, f"no instruction {first[0]!r}; there are {', '.join(MNEMONICS)}")
    cls = MNEMONICS[first[0]]
    texts: dict[str, tuple[str, int]] = {}
    for argument in rest:
        name, equals, text = argument[0].partition("=")
        names = [field.name for field in fields(cls)]
        if not equals or name not in names:
            has = f"; its fields are {', '.join(names)}" if names else ", which has no fields"
            _refuse(number, argument.start() + 1, f"{argument[0]!r} is no field of {cls.mnemonic}{has}")
        if name in texts:
            _refuse(number, argument.start() + 1, f"{cls.mnemonic}.{name} is given twice")
        texts[name] = (text, argument.start() + len(name) + 2)
    values: dict[str, int] = {}
    for field in fields(cls):
        if field.name not in texts:
            if field.default is dataclasses.MISSING:
                _refuse(number, first.start() + 1, f"{cls.mnemonic}.{field.name} is missing")
            continue
        text, column = texts[field.name]
        value = _value(text, field.kind, values.get("register"))
        if value is None:
            wanted = "a whole number"
            if isinstance(field.kind, enum.EnumType):
                wanted = ", ".join(member.lower() for member in field.kind.__members__)
            _refuse(number, column, f"{cls.mnemonic}.{field.name}={_short(text)} will not do; {wanted} would")
        values[field.name] = value
        if value >= 1 << field.width:
            _refuse(number, column, f"{cls.mnemonic}.{field.name}={_short(text)} does not fit in {field.width} bits")
    return encode(cls(**values))


def _value(text: str, kind: object, register: int | None) -> int | None:
    """The number that `text` is for a field of `kind`, in a `s_wr` to `register`; None where it is none."""
    if isinstance(kind, enum.EnumType):
        member = kind.__members__.get(text.upper()) if text == text.lower() else None
        return member if isinstance(member, int) else None
    whole = _whole(text)
    if whole is not None or register not in FLOAT_REGISTERS:
        return whole
    try:
        return float_bits(float(text))
    except (ValueError, OverflowError):
        return None


def _whole(text: str) -> int | None:
    """The number that decimal or hexadecimal digits are, `_BEYOND` if it is larger; None for other text."""
    if re.fullmatch(r"[0-9]+|0x[0-9a-fA-F]+", text) is None:
        return None
    base = 16 if text.startswith("0x") else 10
    digits = text[2 if base == 16 else 0 :].lstrip("0") or "0"
    # int() refuses thousands of digits, and so many are beyond any word.
    return _BEYOND if len(digits) > len(str(_BEYOND)) else min(int(digits, base), _BEYOND)


def _short(text: str) -> str:
    """`text` as a message has it."""
    return text if len(text) <= 40 else f"{text[:20]}…"


def _refuse(line: int, column: int, what: str) -> NoReturn:
    raise ProgramError(f"line {line}, column {column}: {what}")


def disassemble(blocks: Iterable[Block]) -> str:
    """`blocks` as text that `assemble` makes them from again. A word that is no instruction stands as a number."""
    lines = []
    for block in blocks:
        name = f" {json.dumps(block.name)}" if block.name else ""
        macs = "" if block.macs is None else f" macs {block.macs}"
        lines.append(f"block{name} repeat {block.repeat}{macs} {{")
        lines += [f"    {line(word)}" for word in block.words]
        lines.append("}")
    return "".join(f"{line}\n" for line in lines)


def line(word: int) -> str:
    """The instruction in `word` as text, or the word in hexadecimal where it is none."""
    try:
        return str(decode(word))
    except ProgramError:
        return f"{word:#018x}"


def manual() -> str:
    """The page of the instructions, in Markdown."""
    return "\n".join(
        (
            _TITLE,
            *_table(("opcode", "instruction", "fields: bits", "meaning"), map(_row, INSTRUCTIONS.values())),
            "",
            "## Memories",
            "",
            *_table(("`mem`", "name"), ((str(int(mem)), f"`{mem.name.lower()}`") for mem in Mem)),
            "",
            "## Registers",
            "",
            "All hold their start value before the first instruction and keep what `s_wr` sets until the next one.",
            "",
            *_table(("`register`", "name", "start"), map(_register_row, Register)),
            "",
            "## Text",
            "",
            *textwrap.dedent((__doc__ or "").partition("\n\n")[2])
            .strip()
            .replace("    block", "```\nblock")
            .replace("    }", "}\n```")
            .splitlines(),
            "",
        )
    )


def _row(cls: type[Instruction]) -> tuple[str, ...]:
    placed = ", ".join(f"`{f.name}`: {f.at}–{f.at + f.width - 1}" for f in fields(cls))
    return str(cls.opcode), f"`{cls.mnemonic}`", placed, " ".join((cls.__doc__ or "").split())


def _register_row(register: Register) -> tuple[str, ...]:
    start = START[register]
    value = bits_float(start) if register in FLOAT_REGISTERS else start
    shown = f"{'−' if value < 0 else '+'}∞" if math.isinf(value) else str(value)
    return str(int(register)), f"`{register.name.lower()}`", shown


def _table(headers: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headers, ("---",) * len(headers), *rows)]
