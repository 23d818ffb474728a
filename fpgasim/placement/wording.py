"""An explanation as text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fpgasim.npu import device_rows

if TYPE_CHECKING:
    from fpgasim.placement.advising import Obstacle
    from fpgasim.placement.cost_graph import Side
    from fpgasim.placement.explaining import Explanation, NodeExplanation
    from fpgasim.placement.explaining_stages import PipelineExplanation
    from fpgasim.placement.plan import Plan

WIDTH = 118
#: Names that a list of them says before it ends in "…".
_FIRST = 4
#: A smaller part of the whole is rounding, not a saving.
WORTH = 1e-6
_TABLE = "come from a table for one thread of a server core"
_ASKED = {"latency": "the shortest time", "coverage": "as much as possible on the FPGA"}
_CHOSEN = {
    "mincut": "the minimum cut",
    "frontier": "the best by dynamic programming",
    "milp": "the best by integer programming",
    "greedy": "all that the engine can compute, in order",
    "coverage": "all that the engine can compute",
    "forced": "all on the CPU but what was put on the FPGA",
    "all-cpu": "all on the CPU",
}


def milliseconds(seconds: float, digits: int = 3) -> str:
    """`seconds` in ms with `digits` significant digits, or more where they are whole."""
    ms = seconds * 1e3
    return f"{ms:,.{digits}g} ms" if abs(ms) < 10**digits - 0.5 else f"{ms:,.0f} ms"


def plural(number: int, noun: str) -> str:
    """1 and 'node' as '1 node', 2000 as '2,000 nodes'."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def few(names: Sequence[str]) -> str:
    """The first of `names`, and how many more there are."""
    more = len(names) - _FIRST
    return ", ".join(names[:_FIRST]) + (f" and {more} more" if more > 0 else "")


def text(plan: Plan, said: Explanation) -> str:
    """`said` about `plan`: the figures, what would help, every node with its reason, the steps with their transfers."""
    lines = [*_headline(plan, said), "", *_summary(said)]
    if said.pipeline is not None:
        lines += [*_pipeline(plan, said.pipeline), ""]
    return "\n".join([*lines, *_nodes(said, "cpu"), *_nodes(said, "fpga"), *_steps(said)])


def _headline(plan: Plan, said: Explanation) -> Iterator[str]:
    share = math.floor(said.fpga_mac_share * 1000) / 1000  # 100.0% is said of all only
    on_fpga = sum(node.device == "fpga" for node in said.nodes)
    kinds = [step.kind for step in said.steps]
    yield (
        f"{said.network} on {said.device} in {said.format} (blocks of {plan.numbers.format.block}, "
        f"{said.accumulator} sums in {said.order} order, {said.pointwise} between layers)"
    )
    yield f"asked for {_ASKED[said.objective]}; the placement is {_CHOSEN[said.algorithm]}"
    if said.note:
        yield from _folded(f"note: {said.note}")
    yield (
        f"on the FPGA: {share:.1%} of {said.macs / 1e9:.3g} G multiply-accumulates, {on_fpga} of "
        f"{len(said.nodes)} nodes, FPGA segments: {kinds.count('fpga')}, CPU pieces: {kinds.count('cpu')}"
    )
    yield (
        f"predicted {milliseconds(said.objective_s)}, all on the CPU {milliseconds(said.all_cpu_s)}; "
        f"by the same costs no placement takes less than {milliseconds(said.lower_bound_s)} (gap {said.gap:.2%})"
    )
    yield from _assumed(plan)
    source = "were measured on this machine" if plan.options.costs == "measured" else _TABLE
    yield f"CPU times {source}; FPGA times are of a node by itself, unfused"


def _assumed(plan: Plan) -> Iterator[str]:
    """The fields of the device that nobody published, but for those that the plan overrides."""
    rows = [row for row in device_rows(plan.device) if row.source == "assumed"]
    rows = [row for row in rows if getattr(plan.numbers, row.field, row.value) == row.value]
    assumed = [f"{r.field}={f'{r.value:g}' if isinstance(r.value, float) else r.value} {r.unit}".rstrip() for r in rows]
    if assumed:
        yield from _folded(f"assumed of {plan.device.name}, not published: {', '.join(assumed)}")


def _summary(said: Explanation) -> Iterator[str]:
    """Where the time goes, what is compared with, and what would help."""
    yield "where the time goes"
    for line in _times(said):
        yield from _folded(line, 2)
    if said.obstacles or said.advice:
        assumed = " (supported: in one pass of the pointwise unit over the output)"
        yield "what is in the way" + assumed * any(obstacle.saves_s is not None for obstacle in said.obstacles)
        for obstacle in said.obstacles:
            yield from _folded(_obstacle(obstacle, said.objective_s), 2)
        for advice in said.advice:
            yield from _folded(f"{advice.text}: {_less(advice.saves_s, advice.exact)}", 2)
    yield ""


def _times(said: Explanation) -> Iterator[str]:
    parts = []
    for kind, what, overhead in (("fpga", "FPGA segment", "launches"), ("cpu", "CPU piece", "calls")):
        steps = [step for step in said.steps if step.kind == kind]
        if steps:
            spent = milliseconds(sum(step.seconds for step in steps))
            parts.append(f"{plural(len(steps), what)} {spent} with the {overhead}")
    if said.transfers:
        up = sum(t.payload_bytes for t in said.transfers if t.direction == "to_fpga")
        down = sum(t.payload_bytes for t in said.transfers if t.direction == "to_cpu")
        hops = [t for t in said.transfers if t.direction == "hop"]
        spent = milliseconds(sum(t.seconds for t in said.transfers if t.direction != "hop"))
        number = plural(len(said.transfers) - len(hops), "transfer")
        parts.append(f"{number} {spent}, {up:,} bytes to the FPGA and {down:,} bytes to the CPU")
        if hops:
            between = f"{plural(len(hops), 'hop')} from device to device {milliseconds(sum(t.seconds for t in hops))}"
            parts.append(f"{between}, {sum(t.payload_bytes for t in hops):,} bytes")
    yield "; ".join(parts)
    if said.greedy is not None:
        where = f"in {plural(said.greedy.segments, 'FPGA segment')}"
        if said.pipeline is not None:
            where = "with each device filled before the next"
        yield (
            "all that the engine can compute, costs not looked at (what others do): "
            f"{milliseconds(said.greedy.seconds)} {where}"
        )
    event = said.event_model_s
    more = round(event / said.objective_s - 1, 3) + 0.0 if said.objective_s else 0.0  # + 0.0 makes no -0.0%
    yield f"by the event model, which was not what was minimised, a run takes {milliseconds(event)} ({more:+.1%})"
    pinned = [node for node in said.nodes if node.pinned]
    if pinned:
        size = f"{sum(node.weight_bytes for node in pinned):,.0f} bytes"
        yield f"weights of {plural(len(pinned), 'node')}, {size}, stay on the chip, loaded before the first run"


def _pipeline(plan: Plan, said: PipelineExplanation) -> Iterator[str]:
    """The devices, what each holds and why it begins there, latency and throughput apart."""
    yield f"split over {plural(len(said.stages), 'device')} of {plan.device.name}, for {said.split_for}"
    slowest = f"device {said.slowest}" if said.slowest else "the host"
    for line in (
        f"latency of one batch: {milliseconds(said.latency_s)}, all devices, hops and the host in turn",
        f"throughput: {said.batches_per_s:,.0f} batches/s, set by {slowest}, where each works on a batch of its own",
        f"by the event model {milliseconds(said.event_latency_s)} and {said.event_batches_per_s:,.0f} batches/s",
        f"{plural(said.needed, 'device')} at least for these weights; by dynamic programming no split of this order of "
        f"the nodes into contiguous stages has {'less latency' if said.split_for == 'latency' else 'more throughput'}; "
        "the bound above is that of a device that holds everything",
        f"a hop is {said.hop_s * 1e6:g} µs + bytes at {said.link_bytes_per_s / 1e9:g} GB/s (assumed), directly to the "
        "next device; it is in the time of the device that it goes to",
    ):
        yield from _folded(line, 2)
    rows: list[tuple[str, ...]] = [
        ("device", "nodes", "first", "weights", "of", "streamed", "hops", "time", "1 earlier", "1 later", "why")
    ]
    for stage in said.stages:
        kept, there = f"{stage.weight_bytes:,.0f}", f"{stage.capacity_bytes:,.0f}"
        moved = (milliseconds(stage.seconds), _moved(stage.earlier_s), _moved(stage.later_s))
        counts = (f"{len(stage.streamed)}", f"{len(stage.receives)}")
        first = (f"{stage.device}", f"{len(stage.nodes)}", stage.nodes[0])
        rows.append((*first, kept, there, *counts, *moved, stage.reason))
    yield from _table(rows)
    yield "  (1 earlier, 1 later: ms of latency more if it began one node earlier or later; - where that would not fit)"
    for other in said.alternatives:
        yield from _folded(
            f"{other.text}: {plural(other.devices, 'device')}, {milliseconds(other.latency_s)}, "
            f"{other.batches_per_s:,.0f} batches/s",
            2,
        )


def _moved(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:+.3g}"


def _obstacle(obstacle: Obstacle, objective_s: float) -> str:
    where = few(obstacle.nodes)
    if obstacle.round_trips:
        head = f"{plural(obstacle.round_trips, 'round trip')} caused by {obstacle.operator} at {where}"
    else:
        head = f"{obstacle.operator} on the CPU at {where}"
    head = f"{head} ({obstacle.code}: {obstacle.message})"
    if obstacle.saves_s is None:
        return head
    if obstacle.saves_s <= WORTH * objective_s:
        return f"{head}; supporting it would save nothing"
    more = f" and bring {plural(len(obstacle.frees), 'other node')} to the FPGA" if obstacle.frees else ""
    least = "" if obstacle.exact else "at least "
    return (
        f"{head}; supporting it would save {least}{milliseconds(obstacle.saves_s)}{more}, "
        f"in {plural(obstacle.segments or 0, 'FPGA segment')}"
    )


def _less(saves_s: float, exact: bool) -> str:
    return f"{'' if exact else 'at least '}{milliseconds(saves_s)} less"


def _nodes(said: Explanation, side: Side) -> Iterator[str]:
    """The nodes on one side, each with its reason."""
    nodes = [node for node in said.nodes if node.device == side]
    if not nodes:
        return
    yield f"{plural(len(nodes), 'node')} on the {side.upper()}"
    header = ("node", "operator", "CPU", "FPGA", "reason")
    rows: list[tuple[str, ...]] = [header]
    for node in nodes:
        fpga = "-" if node.fpga_s is None else milliseconds(node.fpga_s)
        rows.append((node.name, node.operator, milliseconds(node.cpu_s), fpga, f"{node.code}: {node.message}"))
    if any(node.other_side is not None for node in nodes):
        other: Side = "cpu" if side == "fpga" else "fpga"
        column = [f"whole with it on the {other.upper()}", *(_whole(node, said.objective_s) for node in nodes)]
        rows = [(*row[:4], cell, row[4]) for row, cell in zip(rows, column, strict=True)]
    if side == "fpga" and any(node.on_device for node in nodes):
        numbers = ["device", *(f"{node.on_device}" for node in nodes)]
        rows = [(*row[:2], number, *row[2:]) for row, number in zip(rows, numbers, strict=True)]
    yield from _table(rows)
    yield ""


def _whole(node: NodeExplanation, objective_s: float) -> str:
    """What the whole takes at best with `node` on its other side, and how much more that is."""
    there = node.other_side
    if there is None or there.objective is None:
        return "-"
    more = there.objective - objective_s
    return f"{'' if there.exact else '≤ '}{milliseconds(there.objective)} ({more * 1e3:+.3g})"


def _steps(said: Explanation) -> Iterator[str]:
    """Segments and CPU pieces in order, and what each FPGA segment moves; what was moved once stays."""
    size = {transfer.tensor: transfer.payload_bytes for transfer in said.transfers}

    def moved(names: Sequence[str]) -> str:
        return ", ".join(f"{name} {size[name]:,} bytes" for name in names) or "-"

    several = any(step.on_device for step in said.steps)
    rows = [("step", "nodes", "time", "to the FPGA", *(["from another FPGA"] if several else []), "to the CPU")]
    for i, step in enumerate(said.steps, 1):
        name = f"{i} {step.kind} {step.on_device or ''}".rstrip()
        hops = [moved(step.hops)] if several else []
        cells = (name, str(len(step.nodes)), milliseconds(step.seconds), moved(step.to_fpga), *hops, moved(step.to_cpu))
        rows.append(cells)
    yield "steps in order"
    yield from _table(rows)


def _folded(text: str, indent: int = 0) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2))


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """`rows` in columns; the last column is not padded."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
