"""The command `fpgasim`: functions that call the library and print.

Every error that fpgasim raises on purpose becomes one line on standard error and the exit code of its kind
(`fpgasim.errors.STATUS`); click's own usage errors exit with 2, an interrupt with 130.
"""

from __future__ import annotations

import sys
from typing import Any

import click

import fpgasim
from fpgasim.cli import (
    cycles,
    emission,
    images,
    listing,
    models,
    numbers,
    operators,
    partitioning,
    programs,
    registry,
    reports,
    scoring,
    services,
    serving,
    speed,
    workspaces,
    zoo,
)
from fpgasim.errors import FpgasimError, status

COMMANDS = {
    "Networks": (
        models.run,
        partitioning.partition,
        cycles.simulate,
        reports.report,
        reports.sweep,
        zoo.zoo,
        models.demo,
    ),
    "Service": (
        workspaces.workspace,
        registry.model,
        registry.convert,
        images.image,
        services.service,
        serving.serve,
        scoring.score,
    ),
    "Numbers": (numbers.quantize,),
    "Programs of the engine": (emission.emit, programs.asm, programs.disasm),
    "Speed": (speed.bench,),
    "How right it is": (cycles.validate,),
    "What is there": (listing.devices, listing.formats, listing.kernels, operators.operators, listing.doctor),
}


class Fpgasim(click.Group):
    """The group of all commands: turns errors into one line and an exit code, lists the commands by subject."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FpgasimError as error:
            _fail(ctx, str(error), status(error).exit_code)
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            _fail(ctx, f"{error.filename!r}: {error.strerror}" if error.filename else str(error), 1)
        except KeyboardInterrupt:
            ctx.exit(130)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for subject, commands in COMMANDS.items():
            with formatter.section(subject):
                formatter.write_dl([(str(c.name), c.get_short_help_str(100)) for c in commands])


def _fail(ctx: click.Context, message: str, code: int) -> None:
    click.echo(f"fpgasim: error: {' '.join(message.split())}", err=True)
    ctx.exit(code)


@click.group(cls=Fpgasim, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(fpgasim.__version__, prog_name="fpgasim")
def main() -> None:
    """What an FPGA would make of a network, without the FPGA.

    An ONNX file goes in; the numbers that a Brainwave-like engine would compute, the cycles it would take and the
    best split between FPGA and CPU come out.

    \b
    fpgasim run resnet50.onnx --image cat.jpg       classes, placement, cycles
    fpgasim partition resnet50.onnx                 which node goes where, and why
    fpgasim demo                                    a trained network on a real photograph

    FPGASIM_KERNELS chooses the kernel backend, FPGASIM_NUM_THREADS the number of threads.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? and does not fail


for _commands in COMMANDS.values():
    for _command in _commands:
        main.add_command(_command)
