"""`fpgasim report` and `fpgasim sweep`: files about a network on an engine, and about many engines."""

from __future__ import annotations

from pathlib import Path

import click

from fpgasim.cli.inputs import open_model
from fpgasim.cli.models import make_plan, plan_provenance, planned
from fpgasim.errors import InputError
from fpgasim.report.provenance import provenance, to_json
from fpgasim.report.text import show


@click.command()
@planned
@click.option("--csv", "csv_", metavar="FILE", help="One row a layer, with a header.")
@click.option("--json-file", metavar="FILE", help="The same rows with provenance.")
@click.option("--trace", metavar="FILE", help="A timeline for ui.perfetto.dev or chrome://tracing.")
@click.option("--roofline", metavar="FILE", help="Picture (.png or .svg): multiply-accumulates over bytes moved.")
def report(
    model: str,
    weights: str | None,
    device: str,
    format_: str,
    objective: str,
    residency: str | None,
    devices: int | str,
    json_: bool,
    csv_: str | None,
    json_file: str | None,
    trace: str | None,
    roofline: str | None,
) -> None:
    """Write what MODEL costs, layer by layer: tables, a timeline, a roofline. Without a file, print the table.

    MODEL is an ONNX file, a network of the zoo or a saved plan. No value is computed.
    """
    from fpgasim.report.layers import layer_rows, layers_json, to_csv
    from fpgasim.report.roofline import check_picture, draw_roofline
    from fpgasim.report.runs import layers_table, pipeline_line, pipeline_table
    from fpgasim.report.trace import plan_trace
    from fpgasim.runtime import plan_timing

    if roofline is not None:
        check_picture(roofline)
    plan = make_plan(model, weights, device, format_, objective, residency, devices)
    timing = plan_timing(plan)
    origin = plan_provenance(model, weights, plan)
    rows = layer_rows(timing)
    files = {
        csv_: lambda: to_csv(rows),
        json_file: lambda: to_json(layers_json(rows, timing, origin)),
        trace: lambda: to_json(plan_trace(plan, timing, origin)),
    }
    written = [path for path in files if path is not None]
    for path in written:
        write(path, files[path]())
    if roofline is not None:
        draw_roofline(rows, plan.device, roofline)
        written.append(roofline)
    if json_:
        click.echo(to_json(layers_json(rows, timing, origin)))
    elif written:
        show(*(f"wrote {path}" for path in written))
    else:
        show(layers_table(timing))
        if plan.stages:
            show("", pipeline_table(plan, timing), "", pipeline_line(plan, timing))


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...]:
    if value is None:
        return ()
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers, such as 8,16") from None


@click.command()
@click.argument("model")
@click.option("--device", default="bw_a10", show_default=True, help="The engine to start from; see `fpgasim devices`.")
@click.option("--format", "formats", default="bw_1s5e5m", show_default=True, help="Formats, with commas between.")
@click.option("--native-dim", callback=_numbers, help="N, with commas between.")
@click.option("--lanes", callback=_numbers, help="L, with commas between.")
@click.option("--tiles", callback=_numbers, help="T, with commas between.")
@click.option("--bandwidth", callback=_numbers, help="Bytes a second of DRAM, as in 17e9,34e9.")
@click.option("--clock", callback=_numbers, help="Hz, as in 250e6,300e6.")
@click.option("--csv", "csv_", metavar="FILE", help="All rows as one tidy table.")
@click.option("--plot", metavar="FILE", help="Picture (.png or .svg) of time over area.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def sweep(
    model: str,
    device: str,
    formats: str,
    csv_: str | None,
    plot: str | None,
    json_: bool,
    **axes: tuple[float, ...],
) -> None:
    """Time MODEL on every combination of engine sizes and formats, and mark those that no other beats.

    MODEL is an ONNX file or a network of the zoo. Area is estimated; see `fpgasim validate`.
    """
    import dataclasses

    from fpgasim.report.layers import to_csv
    from fpgasim.report.roofline import check_picture
    from fpgasim.report.sweep import draw_pareto, sweep as run_sweep, swept
    from fpgasim.report.text import milliseconds, share, table

    if plot is not None:
        check_picture(plot)
    keys = formats.split(",")
    swept(device, keys)
    graph = open_model(model, None)
    rows = run_sweep(graph, device, keys, {name: values for name, values in axes.items() if values})
    if csv_ is not None:
        write(csv_, to_csv(rows))
    if plot is not None:
        draw_pareto(rows, f"{graph.name} from {device}", plot)
    if json_:
        click.echo(to_json({"provenance": provenance(model=model), "rows": [dataclasses.asdict(row) for row in rows]}))
        return
    cells = [
        (
            "*" if row.pareto else "",
            row.format,
            row.native_dim,
            row.lanes,
            row.tiles,
            f"{row.dram_gb_per_s:g}",
            f"{row.clock_mhz:g}",
            "-" if row.total_ms is None else milliseconds(row.total_ms / 1e3),
            "-" if row.utilization is None else share(row.utilization),
            "-" if row.alms is None else f"{row.alms:,}",
            "-" if row.m20ks is None else f"{row.m20ks:,}",
            "-" if row.dsps is None else f"{row.dsps:,}",
            f"{row.area:,.0f}" if row.complete else "-",
            row.note,
        )
        for row in rows
    ]
    sizes, figures = (">N", ">L", ">T", ">GB/s", ">MHz"), (">ms", ">utilization", ">ALMs", ">M20Ks", ">DSPs", ">area")
    show(
        table(("", "format", *sizes, *figures, "note"), cells),
        "",
        "* no other is both as quick and as small; areas are estimates, in ALMs, of which an M20K counts 40, a DSP 30",
    )


def write(path: str, text: str) -> None:
    """Writes a whole file or none. Raises InputError where it cannot be written."""
    target = Path(path)
    part = target.with_name(target.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path}: {error.strerror}; a path that can be written would do") from None
