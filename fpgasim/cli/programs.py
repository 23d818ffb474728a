"""`fpgasim asm` and `fpgasim disasm`: instructions as text, and programs as files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fpgasim.errors import InputError, ProgramError
from fpgasim.report.text import plural

if TYPE_CHECKING:
    from fpgasim.npu.programs import Block, Program


@click.command()
@click.argument("file", metavar="FILE.asm")
@click.option("-o", "--out", metavar="FILE.fpgaprog", help="Write a program file, not words.")
@click.option("--device", default="bw_a10", show_default=True, help="See `fpgasim devices`; or a .yaml file.")
@click.option("--format", "format_", default="bw_1s5e5m", show_default=True, help="See `fpgasim formats`.")
def asm(file: str, out: str | None, device: str, format_: str) -> None:
    """Translate the assembly in FILE.asm to words, after a check that DEVICE can execute them."""
    from fpgasim.npu import get_device, resolve_numbers
    from fpgasim.npu.chains import program_chains
    from fpgasim.npu.programs import Program

    target = get_device(device)
    program = Program(Path(file).stem, target, resolve_numbers(target, format_), _assembled(file))
    chains = sum(map(len, program_chains(program)))
    if out is None:
        click.echo("".join(_hexadecimal(program.blocks)), nl=False)
        return
    program.save(out)
    words = sum(len(block.words) for block in program.blocks)
    click.echo(
        f"wrote {out}: {plural(len(program.blocks), 'block')}, {plural(words, 'word')}, {plural(chains, 'chain')}"
    )


@click.command()
@click.argument("file", metavar="FILE")
def disasm(file: str) -> None:
    """Print the program file FILE, or the words in a text, as assembly."""
    from fpgasim.npu.assembly import disassemble
    from fpgasim.npu.program_files import is_program
    from fpgasim.npu.programs import Program

    if not is_program(_read(file)):
        click.echo(disassemble(_assembled(file)), nl=False)
        return
    program = Program.load(file)
    click.echo("".join(f"# {line}\n" for line in _description(program)) + disassemble(program.blocks), nl=False)


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"file {file!r}: {error.strerror}") from error


def _assembled(file: str) -> tuple[Block, ...]:
    from fpgasim.npu.assembly import assemble

    try:
        return assemble(_read(file).decode())
    except UnicodeDecodeError as error:
        raise InputError(f"file {file!r} is neither a text in UTF-8 nor a program file") from error
    except ProgramError as error:
        raise ProgramError(f"{file}, {error}") from error


def _hexadecimal(blocks: tuple[Block, ...]) -> Iterator[str]:
    """The blocks in the syntax of assembly, instructions as words."""
    from fpgasim.npu.assembly import disassemble

    for block in blocks:
        opening, *_, closing = disassemble([block]).splitlines()
        yield from (f"{opening}\n", *(f"    {word:#018x}\n" for word in block.words), f"{closing}\n")


def _description(program: Program) -> Iterator[str]:
    """What a program is beside its instructions, a line each."""
    numbers, n = program.numbers, program.device.native_dim
    yield f"program {program.name!r} for {program.device.name}"
    yield f"numbers: {numbers.format.name}, {numbers.accumulator} sums, order {numbers.order}, {numbers.pointwise}"
    for kind, ports in (("input", program.inputs), ("output", program.outputs)):
        for port in ports:
            how = "packed in " if port.packed else ""
            yield f"{kind} {port.name!r}: {port.shape}, {how}{plural(port.vectors(n), 'vector')} of {n}"
    for mem, vectors in program.vectors.items():
        yield f"{mem.name.lower()} holds {plural(len(vectors), 'vector')}"
    for mem, tiles in program.tiles.items():
        yield f"{mem.name.lower()} holds {plural(len(tiles.mantissas), 'tile')}"
