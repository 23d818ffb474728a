"""`fpgasim simulate` and `validate`: cycles of networks and workloads, and published figures beside them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fpgasim.cli.inputs import open_model, open_plan
from fpgasim.cli.models import make_plan, plan_of, plan_options, plan_provenance
from fpgasim.errors import InputError
from fpgasim.report.provenance import provenance, to_json
from fpgasim.report.text import count, milliseconds, paragraphs, plural, scaled, share, show, table

if TYPE_CHECKING:
    from fpgasim.npu.workloads import Workload
    from fpgasim.placement import Plan
    from fpgasim.report.validation import Result


@click.command()
@plan_options
@click.argument("model", required=False)
@click.option(
    "--workload",
    metavar="SPEC",
    help="gemv:IN:OUT, rnn:H:T, gru:H:T, lstm:H:T, mlp:A-B-C..., conv:H:W:C:K:KH:KW:S:P or a MODEL.",
)
@click.option("--batch", type=click.IntRange(1), help="Inputs at once; default 1, of a SPEC the device's own.")
@click.option("--layers", is_flag=True, help="Print the cycles of every layer.")
def simulate(
    model: str | None,
    workload: str | None,
    weights: str | None,
    device: str,
    format_: str,
    objective: str,
    residency: str | None,
    devices: int | str,
    batch: int | None,
    json_: bool,
    layers: bool,
) -> None:
    """Count the cycles that MODEL takes, or a layer or cell given by --workload, without computing a value.

    MODEL is an ONNX file, a network of the zoo or a saved plan. Symbolic dimensions count as 1.
    """
    from fpgasim.npu.workloads import FORMS, KINDS, parse_workload

    if (model is None) == (workload is None):
        raise click.UsageError("Give either a MODEL or --workload SPEC.")
    if workload is not None and workload.partition(":")[0] not in KINDS and not _is_model(workload):
        forms = ", ".join(FORMS.values())
        raise InputError(f"workload {workload!r} is no file and no network of the zoo; one of {forms} would do too")
    if workload is not None and workload.partition(":")[0] in KINDS:
        _simulate_workload(parse_workload(workload), device, batch, json_)
        return
    name = str(model or workload)
    plan = _plan(name, weights, batch, device, format_, objective, residency, devices)
    _simulate_plan(name, weights, plan, json_, layers)


def _is_model(text: str) -> bool:
    from fpgasim import zoo

    return text in zoo.names() or os.path.exists(text)


def _plan(model: str, weights: str | None, batch: int | None, *asked: Any) -> Plan:
    """The plan of `model` for `batch` inputs; of as many as it says where that is None. `asked` as of `plan_of`."""
    if batch is None:
        return make_plan(model, weights, *asked)
    saved = open_plan(model)
    graph = open_model(model, weights) if saved is None else saved.source_graph
    shapes = {
        tensor.name: (batch, *(dim if isinstance(dim, int) else 1 for dim in tensor.shape[1:]))
        for tensor in graph.inputs
        if tensor.shape
    }
    if saved is not None:
        return saved.replan(shapes)
    return plan_of(graph.with_input_shapes(shapes), *asked)


def _simulate_plan(model: str, weights: str | None, plan: Plan, json_: bool, layers: bool) -> None:
    from fpgasim.npu.workloads import segment_losses
    from fpgasim.report import runs
    from fpgasim.runtime import plan_timing

    timing = plan_timing(plan)
    if json_:
        losses: dict[str, int] = {}
        for segment in timing.segments:
            for name, cycles in segment_losses(segment.timing).items():
                losses[name] = losses.get(name, 0) + cycles
        first = plan.graph.inputs[0].shape if plan.graph.inputs else None
        result = {
            "provenance": plan_provenance(model, weights, plan),
            "device": plan.device.name,
            "batch": first[0] if first else 1,
            "macs": sum(segment.timing.macs for segment in timing.segments),
            "cycles": timing.cycles,
            "ms": timing.milliseconds,
            "utilization": timing.utilization,
            "losses": losses,
            "fpga_mac_share": plan.fpga_mac_share,
            "timing": runs.timing_json(timing),
        }
        click.echo(to_json(result))
        return
    show(runs.title(plan), runs.placement_line(plan), "")
    if layers:
        show(runs.layers_table(timing), "")
    show(*runs.timing_parts(plan, timing))


def _simulate_workload(workload: Workload, device: str, batch: int | None, json_: bool) -> None:
    from fpgasim.npu import get_device
    from fpgasim.npu.workloads import covers, workload_timing

    context = click.get_current_context()
    for name in ("weights", "format_", "objective", "residency", "devices", "layers"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = f"--{name.rstrip('_')}"
            raise InputError(f"{option} is for networks; leave it out with --workload {workload.text}")
    target = get_device(device)
    inputs = target.batch if batch is None else batch
    timing = workload_timing(workload, target, inputs)
    if json_:
        result = {
            "provenance": provenance(device=target.name, workload=workload.text, batch=inputs, assumed=target.assumed),
            "device": target.name,
            "workload": workload.text,
            "batch": inputs,
            "macs": timing.macs,
            "cycles": timing.cycles,
            "ms": timing.seconds * 1e3,
            "utilization": timing.utilization,
            "losses": timing.losses,
        }
        click.echo(to_json(result))
        return
    rows = [(name, count(n), share(n / timing.cycles)) for name, n in timing.losses.items() if n]
    rate = scaled(2 * timing.macs / timing.seconds, "OPS")
    notes = [f"Cycles of {target.name} at {scaled(target.clock_hz, 'Hz')}: {covers(workload, target)}."]
    if target.assumed:
        notes.append(f"Assumed, since nobody published them: {', '.join(sorted(target.assumed))}.")
    show(
        f"{workload.text} on {target.name}, batch {inputs}: {count(timing.cycles)} cycles, "
        f"{milliseconds(timing.seconds)} ms, {rate}, utilization {share(timing.utilization)}",
        "",
        table(("where they go", ">cycles", ">share"), [*rows, ("total", count(timing.cycles), "")]),
        "",
        paragraphs(*notes),
    )


@click.command()
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def validate(json_: bool) -> None:
    """Print every published figure beside what the models say; exit with 1 where one misses its bound."""
    from fpgasim.npu.references import REFERENCES
    from fpgasim.report.validation import result_json, steps_of_cells, validate as results_of

    results = results_of(REFERENCES)
    missed = [result for result in results if result.holds is False]
    if json_:
        rows = [result_json(result) for result in results]
        steps = [row._asdict() for row in steps_of_cells(results)[1]]
        click.echo(to_json({"provenance": provenance(), "missed": len(missed), "rows": rows, "steps_of_cells": steps}))
    else:
        show(*_validation(results, len(missed)))
    if missed:
        click.get_current_context().exit(1)


def _validation(results: list[Result], missed: int) -> list[Any]:
    """A table for each source, notes, and the sum of it."""
    from fpgasim.report.validation import steps_of_cells

    notes = [note for note in dict.fromkeys(result.reference.note for result in results) if note]
    headers = ("device", "workload", "unit", ">expected", ">got", ">error", ">bound", "used to fit", "so it is", "")
    parts: list[Any] = []
    for source in dict.fromkeys(result.reference.source for result in results):
        rows = [_cells(result, notes) for result in results if result.reference.source == source]
        parts += [source, table(headers, rows, indent=2), ""]
    bounded = [result for result in results if result.holds is not None]
    lines = [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
    lines += [
        f"{plural(len(results), 'row')}: {len(bounded) - missed} within their bounds, {missed} not, "
        f"{len(results) - len(bounded)} without one."
    ]
    for what, chosen in (
        ("Validated figures", [result for result in bounded if result.reference.word == "validated"]),
        ("Resources", [result for result in bounded if result.reference.workload == "resources"]),
    ):
        errors = [abs(result.error) for result in chosen]
        if errors:
            figures = _errors(sum(errors) / len(errors), max(errors))
            lines.append(f"{what}: {len(errors)}, {figures}.")
    rows_of_cells, steps = steps_of_cells(results)
    if steps:
        lines.append(f"Cycles a step of bw_s10, {plural(rows_of_cells, 'row')}:")
        lines += [f"by {row.by}: {_errors(row.mean_error, row.largest_error)}." for row in steps]
    return [*parts, paragraphs(*lines)]


def _errors(mean: float, largest: float) -> str:
    return f"mean error {mean * 100:.1f} %, largest {largest * 100:.1f} %"


def _cells(result: Result, notes: list[str]) -> tuple[str, ...]:
    row = result.reference
    low, high = _figure(result.low), _figure(result.high)
    return (
        row.device,
        row.workload,
        row.unit,
        _figure(row.expected),
        low if low == high else f"{low}-{high}",
        f"{result.error * 100:+.1f} %" if row.expected else _figure(result.error),
        "-" if row.bound is None else f"{row.bound * 100:.2g} %",
        row.used_for or "-",
        "misses its bound" if result.holds is False else row.word if result.holds else "-",
        f"[{notes.index(row.note) + 1}]" if row.note else "",
    )


def _figure(value: float) -> str:
    return count(value) if value == round(value) and abs(value) >= 100 else f"{value:.4g}"
