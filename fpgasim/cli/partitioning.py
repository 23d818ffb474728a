"""`fpgasim partition`: where every node of a network goes and why, or of a cost graph that stands alone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fpgasim.cli.inputs import open_model, open_plan
from fpgasim.cli.models import plan_options, plan_provenance
from fpgasim.errors import InputError
from fpgasim.report.provenance import provenance, to_json
from fpgasim.report.text import milliseconds, plural, show, table

if TYPE_CHECKING:
    from fpgasim.placement import Plan, Solution

#: The options of a network, which a cost graph has not.
_OF_A_MODEL = (
    *("weights", "device", "format_", "objective", "cut_at", "require_fpga", "dim", "counterfactuals", "devices"),
    *("hop_s", "link_rate", "split_for"),
    *("dot", "svg", "export", "save"),
)


@click.command()
@click.argument("model", required=False)
@plan_options
@click.option(
    "--algorithm",
    default="auto",
    show_default=True,
    help="auto: exact, by the quickest that is; mincut, frontier, milp; greedy: what others do, for comparison.",
)
@click.option(
    "--costs",
    metavar="NAME|FILE",
    default="analytic",
    show_default=True,
    help="CPU times: analytic, from a table; measured on this machine. Without MODEL: a cost graph as JSON.",
)
@click.option("--max-segments", type=int, help="FPGA segments at most.")
@click.option("--capacity", type=float, metavar="BYTES", help="Bytes of weights on the FPGA at most.")
@click.option(
    "--force", metavar="NODE=cpu|fpga", multiple=True, help="Put a node, or all that match a pattern, on one side."
)
@click.option("--cut-at", metavar="TENSOR,…", multiple=True, help="What is behind these tensors stays on the CPU.")
@click.option("--require-fpga", is_flag=True, help="Fail unless everything, before the cut if any, is on the FPGA.")
@click.option("--dim", metavar="NAME=SIZE", multiple=True, help="Size of a symbolic dimension; default 1.")
@click.option("--hop-s", type=float, default=10e-6, show_default=True, help="Seconds of a hop from device to device.")
@click.option("--link-rate", type=float, default=5e9, show_default=True, help="Bytes a second of that link; assumed.")
@click.option(
    "--split-for",
    default="latency",
    show_default=True,
    help="Several devices: the least latency of a batch, or the highest throughput.",
)
@click.option("--time-limit", type=float, default=20.0, show_default=True, help="Seconds of search at most.")
@click.option(
    "--counterfactuals/--no-counterfactuals",
    default=True,
    help="Solve again with each node on the other side (default), or leave that out.",
)
@click.option("--dot", metavar="FILE", help="Write the placement as Graphviz text.")
@click.option("--svg", metavar="FILE", help="Write the placement as a picture.")
@click.option("--export", metavar="FILE.onnx", help="Write the network with a function for each FPGA segment.")
@click.option("--save", metavar="FILE.fpgaplan", help="Write the plan, a MODEL for the other commands.")
def partition(
    model: str | None,
    weights: str | None,
    device: str,
    format_: str,
    objective: str,
    residency: str | None,
    devices: int | str,
    json_: bool,
    algorithm: str,
    costs: str,
    max_segments: int | None,
    capacity: float | None,
    force: tuple[str, ...],
    cut_at: tuple[str, ...],
    require_fpga: bool,
    dim: tuple[str, ...],
    hop_s: float,
    link_rate: float,
    split_for: str,
    time_limit: float,
    counterfactuals: bool,
    dot: str | None,
    svg: str | None,
    export: str | None,
    save: str | None,
) -> None:
    """Place every node of MODEL on the FPGA or the CPU and print why.

    MODEL is an ONNX file, a network of the zoo or a saved plan. Without one, --costs names a cost graph as JSON (see
    docs/placement.md), whose nodes are placed.
    """
    import fpgasim
    from fpgasim.placement.plan import COSTS
    from fpgasim.report import runs

    asked: dict[str, Any] = {
        "algorithm": algorithm,
        "max_segments": max_segments,
        "capacity": capacity,
        "force": _pairs("--force", force, "NODE=cpu or NODE=fpga"),
        "time_limit": time_limit,
    }
    if model is None:
        _solve(costs, asked | {"weights": "streamed" if residency is None else residency}, json_)
        return
    plan = open_plan(model)
    if plan is None:
        if os.path.exists(costs):
            raise InputError(f"--costs {costs}: the nodes of {model!r} have costs; leave MODEL out to place the file's")
        if costs not in COSTS:
            raise InputError(
                f"no cost table {costs!r}; there are {', '.join(COSTS)} with a MODEL, and a file stands alone, without"
            )
        plan = fpgasim.partition(
            open_model(model, weights),
            device,
            format_,
            objective=objective,  # type: ignore[arg-type]
            costs=costs,
            cut_at=[name for names in cut_at for name in names.split(",")],
            require_fpga=require_fpga,
            dims=_dims(dim),
            weights=residency,  # type: ignore[arg-type]
            devices=devices,  # type: ignore[arg-type]
            hop_s=hop_s,
            link_bytes_per_s=link_rate,
            split_for=split_for,  # type: ignore[arg-type]
            **asked,
        )
    written = _write(plan, dot, svg, export, save)
    if json_:
        result = {
            "provenance": plan_provenance(model, weights, plan),
            "plan": runs.plan_json(plan),
            "explanation": plan.explanation(counterfactuals).to_dict(),
        }
        click.echo(to_json(result))
        return
    show(plan.explain(counterfactuals), *([f"\nwrote {', '.join(written)}"] if written else []))


def _write(plan: Plan, dot: str | None, svg: str | None, export: str | None, save: str | None) -> list[str]:
    """Writes the files that are asked for; the paths of those that were."""
    for path, text in ((dot, plan.to_dot), (svg, plan.to_svg)):
        if path is not None:
            Path(path).write_text(text(), encoding="utf-8")
    for path, write in ((export, plan.export), (save, plan.save)):
        if path is not None:
            write(path)
    return [path for path in (dot, svg, export, save) if path is not None]


def _pairs(option: str, items: Sequence[str], wanted: str) -> dict[str, str]:
    """ "name=value" items by name; a name may hold a =."""
    pairs: dict[str, str] = {}
    for item in items:
        name, _, value = item.rpartition("=")
        if not name or not value:
            raise InputError(f"{option} {item!r}; {wanted} would do")
        if pairs.setdefault(name, value) != value:
            raise InputError(f"{option} {name!r} is given twice, as {pairs[name]!r} and {value!r}")
    return pairs


def _dims(items: Sequence[str]) -> dict[str, int]:
    dims = {}
    for name, text in _pairs("--dim", items, "NAME=SIZE").items():
        if not text.isdecimal():
            raise InputError(f"--dim {name}={text}: the size must be a whole number from 1 up")
        dims[name] = int(text)
    return dims


def _solve(costs: str, asked: Mapping[str, Any], json_: bool) -> None:
    """Places the nodes of the cost graph in the file `costs` and prints the Solution."""
    from fpgasim.placement import solve
    from fpgasim.placement.plan import COSTS
    from fpgasim.placement.solving import read_cost_graph

    if costs in COSTS:
        raise click.UsageError("Give a MODEL, or a cost graph by --costs FILE.json.")
    context = click.get_current_context()
    for name in _OF_A_MODEL:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = next(o.opts[0] for o in context.command.params if o.name == name)
            raise InputError(f"{option} is for a MODEL; the cost graph {costs!r} is placed as it is")
    graph = read_cost_graph(costs)
    solution = solve(graph, **asked)
    if json_:
        values = {field.name: getattr(solution, field.name) for field in dataclasses.fields(solution)}
        click.echo(to_json(values | {"gap": solution.gap, "provenance": provenance(costs=costs)}))
        return
    show(*_headline(costs, solution), "")
    rows = []
    for node in graph.nodes:
        times = ("-" if seconds is None else milliseconds(seconds) for seconds in (node.cpu, node.fpga))
        kept = "pinned" if node.name in solution.pinned else ""
        rows.append((node.name, solution.placement[node.name], *times, kept))
    show(table(("node", "side", ">CPU ms", ">FPGA ms", ""), rows))


def _headline(costs: str, solution: Solution) -> list[str]:
    on_fpga = sum(side == "fpga" for side in solution.placement.values())
    lines = [
        f"{costs}: {on_fpga} of {plural(len(solution.placement), 'node')} on the FPGA in "
        f"{plural(len(solution.segments), 'segment')}, by {solution.algorithm} in {solution.seconds:.2f} s",
        f"objective {milliseconds(solution.objective)} ms; no placement takes less than "
        f"{milliseconds(solution.lower_bound)} ms (gap {solution.gap:.2%})",
    ]
    return [*lines, f"note: {solution.note}"] if solution.note else lines
