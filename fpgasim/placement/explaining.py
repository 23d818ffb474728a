"""A plan as text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fpgasim.npu import device_rows
from fpgasim.placement.costs import transfer_bytes

if TYPE_CHECKING:
    from fpgasim.placement.cost_graph import Side
    from fpgasim.placement.plan import Plan

WIDTH = 118
_ASKED = {"latency": "the shortest time", "coverage": "as much as possible on the FPGA"}
_CHOSEN = {"mincut": "the minimum cut", "coverage": "all that the engine can compute", "all-cpu": "all on the CPU"}


def milliseconds(seconds: float) -> str:
    """`seconds` in ms, with three significant digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds * 1e3:.0f} ms"


def explain(plan: Plan) -> str:
    """The plan as text: see `Plan.explain`."""
    return "\n".join([*_headline(plan), "", *_nodes(plan, "cpu"), *_nodes(plan, "fpga"), *_segments(plan)])


def _headline(plan: Plan) -> Iterator[str]:
    numbers, kinds = plan.numbers, [segment.kind for segment in plan.segments]
    macs = sum(plan.graph.macs(node) for node in plan.graph.nodes)
    share = math.floor(plan.fpga_mac_share * 1000) / 1000  # 100.0% is said of all only
    on_fpga = sum(side == "fpga" for side in plan.assignment.values())
    yield (
        f"{plan.graph.name} on {plan.device.name} in {numbers.format.name} (blocks of {numbers.format.block}, "
        f"{numbers.accumulator} sums in {numbers.order} order, {numbers.pointwise} between layers)"
    )
    yield f"asked for {_ASKED[plan.objective_name]}; the placement is {_CHOSEN[plan.algorithm]}"
    if plan.note:
        yield from textwrap.wrap(f"note: {plan.note}", WIDTH, subsequent_indent="  ")
    yield (
        f"on the FPGA: {share:.1%} of {macs / 1e9:.3g} G multiply-accumulates, {on_fpga} of "
        f"{len(plan.assignment)} nodes, FPGA segments: {kinds.count('fpga')}, CPU pieces: {kinds.count('cpu')}"
    )
    yield (
        f"predicted {milliseconds(plan.objective_s)}, all on the CPU {milliseconds(plan.all_cpu_s)}; "
        f"by the same costs no placement takes less than {milliseconds(plan.lower_bound_s)} (gap {plan.gap:.2%})"
    )
    rows = [row for row in device_rows(plan.device) if row.source == "assumed"]
    rows = [row for row in rows if getattr(numbers, row.field, row.value) == row.value]  # not what the plan overrides
    assumed = [f"{r.field}={f'{r.value:g}' if isinstance(r.value, float) else r.value} {r.unit}".rstrip() for r in rows]
    if assumed:
        text = f"assumed of {plan.device.name}, not published: {', '.join(assumed)}"
        yield from textwrap.wrap(text, WIDTH, subsequent_indent="  ")
    yield "CPU times come from a table for one thread of a server core; FPGA times are of a node by itself, unfused"


def _nodes(plan: Plan, side: Side) -> Iterator[str]:
    """The nodes on one side, each with its reason."""
    decisions = [decision for decision in plan.decisions if decision.device == side]
    if not decisions:
        return
    yield f"{len(decisions)} nodes on the {side.upper()}"
    rows = [("node", "operator", "CPU", "FPGA", "reason")]
    for d in decisions:
        fpga = "-" if d.fpga_s is None else milliseconds(d.fpga_s)
        rows.append((d.node, plan.graph.node(d.node).op_type, milliseconds(d.cpu_s), fpga, f"{d.code}: {d.message}"))
    yield from _table(rows)
    yield ""


def _segments(plan: Plan) -> Iterator[str]:
    """Segments and CPU pieces in order, and what each FPGA segment moves; what was moved once stays."""
    there: set[str] = set()
    on_cpu = {t.name for t in plan.cost_graph.tensors if t.producer is None or plan.assignment[t.producer] == "cpu"}
    needed = {
        t.name
        for t in plan.cost_graph.tensors
        if t.output or any(plan.assignment[name] == "cpu" for name in t.consumers)
    }
    rows = [("step", "nodes", "to the FPGA", "to the CPU")]
    for i, segment in enumerate(plan.segments, 1):
        up = [name for name in segment.inputs if name in on_cpu and name not in there] if segment.kind == "fpga" else []
        down = [name for name in segment.outputs if name in needed] if segment.kind == "fpga" else []
        there.update(up)
        rows.append((f"{i} {segment.kind}", str(len(segment.nodes)), _moved(plan, up), _moved(plan, down)))
    yield "steps in order"
    yield from _table(rows)


def _moved(plan: Plan, names: Sequence[str]) -> str:
    parts = [f"{name} {transfer_bytes(plan.graph, name, plan.device, plan.numbers):,} bytes" for name in names]
    return ", ".join(parts) or "-"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """`rows` in columns; the last column is not padded."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
