"""`fpgasim emit`: a network's FPGA part as an instruction program, and when each chain of it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fpgasim.cli.models import make_plan, plan_provenance, planned
from fpgasim.cli.reports import write
from fpgasim.errors import InputError
from fpgasim.report.provenance import to_json
from fpgasim.report.text import count, milliseconds, plural, scaled, share, show, table

if TYPE_CHECKING:
    from fpgasim.placement import Plan, Segment


@click.command()
@planned
@click.option("-o", "--out", metavar="FILE.fpgaprog", help="Write the program, with its packed weights.")
@click.option("--segment", "number", type=click.IntRange(1), help="Which FPGA segment, where there are several.")
@click.option(
    "--keep-weights",
    type=click.Choice(["auto", "pin", "stream"]),
    default="auto",
    show_default=True,
    help="pin: all weights in the matrix register file from the start; stream: from DRAM; auto: pin if they fit.",
)
@click.option("--trace", metavar="FILE", help="A timeline of its chains for ui.perfetto.dev or chrome://tracing.")
def emit(
    model: str,
    weights: str | None,
    device: str,
    format_: str,
    objective: str,
    residency: str | None,
    devices: int | str,
    json_: bool,
    out: str | None,
    number: int | None,
    keep_weights: str,
    trace: str | None,
) -> None:
    """Compile the FPGA part of MODEL to instructions and count its cycles chain by chain.

    MODEL is an ONNX file, a network of the zoo or a saved plan. `fpgasim disasm` prints what -o writes.
    """
    from fpgasim.compiler import emit as emit_program, lower
    from fpgasim.npu import simulate
    from fpgasim.report.trace import program_trace

    plan = make_plan(model, weights, device, format_, objective, residency, devices)
    part = _chosen(plan, number)
    lowered = lower(plan.graph, part.nodes, plan.device, plan.numbers)
    program = emit_program(lowered, weights=keep_weights, name=plan.graph.name)  # type: ignore[arg-type]
    timing = simulate(program)
    origin = plan_provenance(model, weights, plan)
    if out is not None:
        program.save(out)
    if trace is not None:
        write(trace, to_json(program_trace(program, timing, origin)))
    words = sum(len(block.words) for block in program.blocks)
    if json_:
        result = {
            "provenance": origin,
            "blocks": len(program.blocks),
            "words": words,
            "chains": len(timing.chains),
            "cycles": timing.cycles,
            "ms": timing.seconds * 1e3,
            "utilization": timing.utilization,
            "macs": timing.macs,
            "dram_bytes": timing.dram_bytes,
            "losses": timing.losses,
        }
        click.echo(to_json(result))
        return
    rows = [(name, count(cycles), share(cycles / timing.cycles)) for name, cycles in timing.losses.items() if cycles]
    show(
        f"{plan.graph.name} for {plan.device.name}: {plural(len(program.blocks), 'block')}, {plural(words, 'word')}, "
        f"{plural(len(timing.chains), 'chain')}, {scaled(timing.dram_bytes, 'B')} from and to DRAM",
        f"{count(timing.cycles)} cycles, {milliseconds(timing.seconds)} ms, utilization {share(timing.utilization)}",
        "",
        table(("where they go", ">cycles", ">share"), [*rows, ("total", count(timing.cycles), "")]),
        *(f"wrote {path}" for path in (out, trace) if path is not None),
    )


def _chosen(plan: Plan, number: int | None) -> Segment:
    parts = [step for step in plan.segments if step.kind == "fpga"]
    if not parts:
        raise InputError(f"nothing of {plan.graph.name} is on the FPGA; --objective coverage may change that")
    if number is None and len(parts) > 1:
        raise InputError(f"{plan.graph.name} has {len(parts)} FPGA segments; --segment 1 to {len(parts)} would do")
    if number is not None and number > len(parts):
        raise InputError(f"--segment {number}: {plan.graph.name} has {plural(len(parts), 'FPGA segment')}")
    return parts[(number or 1) - 1]
