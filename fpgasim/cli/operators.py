"""`fpgasim operators`: which operator can run where."""

from __future__ import annotations

import click

from fpgasim.report.provenance import to_json
from fpgasim.report.text import show, table


@click.command()
@click.argument("name", required=False)
@click.option("--device", default="bw_a10", show_default=True, help="The engine that is asked; see `fpgasim devices`.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print docs/operators.md.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def operators(name: str | None, device: str, as_markdown: bool, json_: bool) -> None:
    """List where each ONNX operator can run, or why the FPGA takes the one called NAME or not."""
    from fpgasim.report import operators as found

    if as_markdown and (json_ or name):
        raise click.UsageError("--markdown goes with neither --json nor a NAME.")
    rows = found.operators(device) if name is None else (found.operator(name, device),)
    if as_markdown:
        click.echo(found.markdown(rows, device), nl=False)
    elif json_:
        click.echo(to_json({"device": device, "operators": [found.to_dict(row) for row in rows]}))
    elif name is None:
        show(
            table(
                ("operator", "FPGA", "CPU, versions", "not run, versions"),
                (
                    (
                        found.full_name(row.domain, row.name),
                        "yes" if row.trials else "",
                        found.spans(row.runs),
                        found.spans(row.not_run),
                    )
                    for row in rows
                ),
            ),
            "\n`fpgasim operators NAME` says what the FPGA takes of an operator.",
        )
    else:
        row = rows[0]
        taken, refused = found.taken_and_refused(row)
        runs = {"kernel": row.by_kernel, "function of other operators": row.by_function, "not run": row.not_run}
        show(f"on ONNX Runtime: {'; '.join(f'{how}, {found.spans(v)}' for how, v in runs.items() if v)}")
        if not row.trials:
            show(f"on {device}: not an operator of the engine")
            return
        show(f"on {device}: yes{f', also with {chr(10)}  ' if taken else ''}" + "\n  ".join(taken))
        show("not with", table(("change", "code", "reason"), refused, indent=2))
