"""Plans and their timing as tables and as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy.typing as npt

from fpgasim.npu.timing import LayerTiming
from fpgasim.placement import Decision, Plan
from fpgasim.report.comparison import Difference, Ranked
from fpgasim.report.text import count, milliseconds, paragraphs, plural, scaled, share, table
from fpgasim.runtime import Timing


def title(plan: Plan) -> str:
    """One line: network, device, numbers, objective."""
    n = plan.numbers
    how = f"{n.accumulator} sums in {n.order} order, {n.pointwise} between layers"
    return f"{plan.graph.name} on {plan.device.name} in {n.format.name} ({how}), objective {plan.objective_name}"


def classes_table(rows: list[Ranked], format_name: str) -> Any:
    """The likeliest classes, fp32 beside the engine's format."""
    cells = ((r.fp32_rank, f"{r.fp32_probability:.2%}", r.rank, f"{r.probability:.2%}", r.index, r.label) for r in rows)
    headers = (">ONNX Runtime fp32", ">probability", f">FPGA {format_name}", ">probability", ">class", "label")
    return table(headers, cells)


def agreement(rows: list[Ranked], top: int) -> str:
    """How far the two rankings agree, in words."""
    first = next(r for r in rows if r.fp32_rank == 1)
    same = sum(r.fp32_rank <= top and r.rank <= top for r in rows)
    likeliest = "the same class is likeliest" if first.rank == 1 else "another class is likeliest"
    return f"{likeliest}; {same} of the {top} likeliest are the same"


def difference_text(d: Difference) -> str:
    """The error against fp32 in words."""
    return f"error against fp32 at most {d.relative_error * 100:.3g} % of the largest value, SQNR {d.sqnr_db:.1f} dB"


def value_range(values: npt.NDArray[Any]) -> str:
    """The least, mean and greatest of an array of numbers, in words; '' for anything else."""
    if values.dtype.kind not in "fiu" or not values.size:
        return ""
    return f", from {values.min():.6g} to {values.max():.6g}, mean {values.mean():.6g}"


def saturation_text(saturations: Mapping[str, int], pointwise: str) -> str:
    """How many values saturated, and in which layers most."""
    most = sorted(saturations.items(), key=lambda item: -item[1])[:3]
    layers = plural(len(saturations), "layer")
    worst = ", ".join(f"{name} {number:,}" for name, number in most)
    return f"{plural(sum(saturations.values()), 'value')} saturated in {pointwise}, in {layers}; most in {worst}"


def placement_line(plan: Plan) -> str:
    """One line: how much of the network is on the FPGA, and in how many segments."""
    on_fpga = sum(d.device == "fpga" for d in plan.decisions)
    segments = sum(s.kind == "fpga" for s in plan.segments)
    devices = f" on {plural(len(plan.stages), 'device')}" if plan.stages else ""
    return (
        f"{share(plan.fpga_mac_share)} of the multiply-accumulates and {on_fpga} of {len(plan.decisions)} nodes on the "
        f"FPGA, in {plural(segments, 'segment')}{devices}"
    )


def placement_table(plan: Plan) -> Any:
    """The nodes summed by side, reason and operator, with the sentence given for the first of them."""
    macs = {node.name: plan.graph.macs(node) for node in plan.graph.nodes}
    total = sum(macs.values())
    groups: dict[tuple[str, str, str], list[Decision]] = {}
    for d in plan.decisions:
        groups.setdefault((d.device, d.code, plan.graph.node(d.node).op_type), []).append(d)
    rows = []
    for (side, code, op_type), members in sorted(groups.items(), key=lambda item: (item[0][0] != "cpu", item[0])):
        part = sum(macs[d.node] for d in members)
        rows.append((side, op_type, len(members), share(part / total) if part else "-", code, members[0].message))
    return table(("side", "operator", ">nodes", ">MACs", "reason", "in words (of the first)"), rows)


def timing_table(plan: Plan, timing: Timing) -> Any:
    """The steps of a run in order with cycles and milliseconds, what lies between them, and the sum."""
    fpga, cpu = iter(timing.segments), iter(timing.cpu_pieces)
    rows: list[tuple[object, ...]] = []
    for i, segment in enumerate(plan.segments, 1):
        if segment.kind == "fpga":
            t = next(fpga).timing
            side = f"fpga {segment.stage + 1}" if plan.stages else "fpga"
            what = f"{plural(len(t.layers), 'layer')}, {scaled(t.load_bytes, 'B')} of weights"
            rows.append((i, side, what, count(t.cycles), milliseconds(t.seconds), share(t.utilization)))
        else:
            what = f"{plural(len(segment.nodes), 'node')} (estimate)"
            rows.append((i, "cpu", what, "", milliseconds(next(cpu).seconds), ""))
    ways = (("to_fpga", "to the FPGA"), ("hop", "from device to device"), ("to_cpu", "to the host"))
    for direction, words in ways:
        moved = [t for t in timing.transfers if t.direction == direction]
        if direction == "hop" and not moved:
            continue
        what = f"{len(moved)} {words}, {scaled(sum(t.payload_bytes for t in moved), 'B')}"
        rows.append(("", "transfer", what, "", milliseconds(sum(t.seconds for t in moved)), ""))
    rows.append(("", "launch", f"{len(timing.segments)}", "", milliseconds(timing.launch_ms / 1e3), ""))
    rows.append(("", "total", "", count(timing.cycles), milliseconds(timing.total_ms / 1e3), share(timing.utilization)))
    return table((">step", "side", "what", ">cycles", ">ms", ">utilization"), rows)


def timing_parts(plan: Plan, timing: Timing) -> list[Any]:
    """The steps of a run, of several devices what each of them takes and the throughput, and notes."""
    parts = [timing_table(plan, timing), ""]
    if plan.stages:
        parts += [pipeline_table(plan, timing), "", pipeline_line(plan, timing), ""]
    return [*parts, timing_notes(plan, timing)]


def pipeline_table(plan: Plan, timing: Timing) -> Any:
    """What a batch takes on each of several devices and on the host, and where that goes."""
    rows = []
    for i, (names, stage) in enumerate(zip(plan.stages, timing.stages, strict=True), 1):
        kept = sum(plan.cost_graph.node_of[name].weight for name in names if name in plan.pinned)
        parts = (stage.compute_s, stage.launch_s, stage.hop_s, stage.transfer_s, stage.seconds)
        rows.append((f"device {i}", len(names), scaled(kept, "B"), *map(milliseconds, parts)))
    on_host = len(plan.decisions) - len(plan.stage_of)
    rows.append(("host", on_host, "", *[""] * 4, milliseconds(timing.cpu_ms / 1e3)))
    headers = ("", ">nodes", ">weights kept", ">layers ms", ">launches", ">hops in", ">to and from host", ">ms a batch")
    return table(headers, rows)


def pipeline_line(plan: Plan, timing: Timing) -> str:
    """Latency and throughput of several devices, in words."""
    busy = {"the host": timing.cpu_ms} | {f"device {i}": s.seconds * 1e3 for i, s in enumerate(timing.stages, 1)}
    slowest = max(busy, key=busy.__getitem__)
    return (
        f"latency {milliseconds(timing.total_ms / 1e3)} ms for a batch alone; throughput {timing.batches_per_s:,.0f} "
        f"batches/s, one every {milliseconds(timing.interval_ms / 1e3)} ms, set by {slowest}"
    )


def timing_notes(plan: Plan, timing: Timing) -> Any:
    """What the figures of `timing_table` cover, and which of the device's values are assumed."""
    inputs = ", ".join(f"{t.name} {t.shape}" for t in plan.graph.inputs)
    device = timing.device
    weights = "weights stream from DRAM"
    if timing.pinned_bytes:
        pinned = f"{scaled(timing.pinned_bytes, 'B')} of weights are on the chip before the first run"
        streamed = any(segment.timing.load_bytes for segment in timing.segments)
        weights = f"{pinned}, the others stream from DRAM" if streamed else pinned
    elif all(segment.timing.fits_on_chip for segment in timing.segments):
        weights = "the weights fit on the chip but are streamed all the same"
    lines = [
        f"Cycles of {device.name} at {scaled(device.clock_hz, 'Hz')}: from the first weight load to the last write, "
        f"for {inputs}; {weights}.",
        "Utilization counts multiply-accumulates over what the tile engines could do. Milliseconds of the CPU are "
        "estimates.",
    ]
    if plan.stages:
        lines.append(
            "Devices work one after another on a batch, each on another batch at a time. A device's transfers do not "
            f"overlap its layers. A hop takes {plan.options.hop_s * 1e6:g} us and its bytes at "
            f"{scaled(plan.options.link_bytes_per_s, 'B/s')} (assumed)."
        )
    if device.assumed:
        lines.append(f"Assumed, since nobody published them: {', '.join(sorted(device.assumed))}.")
    return paragraphs(*lines)


def layers_table(timing: Timing) -> Any:
    """Every layer of every segment with its cycles, how it maps to the tile engines, and its weights."""
    rows = []
    for segment in timing.segments:
        for layer, t in segment.rows:
            shape = "x".join(map(str, layer.out_shape))
            rows.append(
                (
                    layer.name,
                    t.head,
                    shape,
                    _mapping(t),
                    count(t.macs),
                    count(t.compute_cycles),
                    count(t.load_cycles),
                    share(t.utilization),
                )
            )
    headers = ("layer", "head", "output (NHWC)", "mapping", ">MACs", ">compute cycles", ">load cycles", ">utilization")
    return table(headers, rows)


def _mapping(t: LayerTiming) -> str:
    return f"{t.mapping.lowering}, {t.mapping.kind}" if t.mapping else "-"


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values."""
    return {
        "objective": plan.objective_name,
        "algorithm": plan.algorithm,
        "note": plan.note,
        "options": dataclasses.asdict(plan.options),
        "pinned": plan.pinned,
        "stages": plan.stages,
        "fpga_mac_share": plan.fpga_mac_share,
        "objective_s": plan.objective_s,
        "lower_bound_s": plan.lower_bound_s,
        "all_cpu_s": plan.all_cpu_s,
        "gap": plan.gap,
        "reasons": Counter(f"{d.device}: {d.code}" for d in plan.decisions),
        "nodes": [
            dataclasses.asdict(d) | {"op_type": n.op_type, "macs": plan.graph.macs(n)}
            for d, n in zip(plan.decisions, plan.graph.nodes, strict=True)
        ],
        "segments": [dataclasses.asdict(s) for s in plan.segments],
    }


def timing_json(timing: Timing) -> dict[str, Any]:
    """The timing as JSON values, layers included."""
    return {
        "cycles": timing.cycles,
        "fpga_ms": timing.milliseconds,
        "transfer_ms": timing.transfer_ms,
        "launch_ms": timing.launch_ms,
        "cpu_ms": timing.cpu_ms,
        "total_ms": timing.total_ms,
        "hop_ms": timing.hop_ms,
        "interval_ms": timing.interval_ms,
        "batches_per_s": timing.batches_per_s,
        "stages": [dataclasses.asdict(stage) | {"seconds": stage.seconds} for stage in timing.stages],
        "pinned_bytes": timing.pinned_bytes,
        "utilization": timing.utilization,
        "clock_hz": timing.device.clock_hz,
        "assumed": timing.device.assumed,
        "segments": [
            {
                "phase": s.phase,
                "stage": s.stage,
                "cycles": s.timing.cycles,
                "ms": s.timing.seconds * 1e3,
                "utilization": s.timing.utilization,
                "layers": list(_layers_json(s.rows)),
            }
            for s in timing.segments
        ],
        "cpu_pieces": [dataclasses.asdict(p) for p in timing.cpu_pieces],
        "transfers": [dataclasses.asdict(t) for t in timing.transfers],
    }


def _layers_json(rows: Iterator[tuple[Any, LayerTiming]]) -> Iterator[dict[str, Any]]:
    for layer, t in rows:
        mapping = None if t.mapping is None else t.mapping._asdict()
        shapes = {"nodes": layer.nodes, "in_shape": layer.in_shape, "out_shape": layer.out_shape}
        yield dataclasses.asdict(t) | {"mapping": mapping, "compute_cycles": t.compute_cycles} | shapes
