"""Timelines in the Chrome trace format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

One microsecond of the file is one of the engine; every slice carries its cycles. The format: "Trace Event Format", by
the Chromium project.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from fpgasim.npu import Program, ProgramTiming
from fpgasim.npu.chains import MatrixChain, VectorChain
from fpgasim.placement import Plan
from fpgasim.placement.timing import Direction
from fpgasim.runtime import FpgaSegment, Timing

TRACKS = ("DMA in", "weights", "MVM", "MFU", "DMA out", "CPU")
Event = dict[str, Any]


def plan_trace(plan: Plan, timing: Timing, provenance: dict[str, Any]) -> dict[str, Any]:
    """One run of `plan` as a trace: its steps one after another, the layers of the FPGA segments inside them."""
    events = _tracks(plan.device.name, TRACKS)
    for stage in range(1, len(plan.stages)):
        events += _tracks(f"{plan.device.name}, device {stage + 1}", TRACKS[:5], stage)
    segments, pieces = iter(timing.segments), iter(timing.cpu_pieces)
    waiting = {(t.tensor, t.direction, t.stage): t for t in timing.transfers}
    clock = 0.0

    def move(names: tuple[str, ...], directions: tuple[Direction, ...], stage: int) -> None:
        """Each tensor crosses once, when it is first needed."""
        nonlocal clock
        for name, direction in product(names, directions):
            if (name, direction, stage) in waiting:
                t, track = waiting.pop((name, direction, stage)), "DMA out" if direction == "to_cpu" else "DMA in"
                events.append(_slice(track, name, clock, t.seconds * 1e6, stage, bytes=t.payload_bytes))
                clock += t.seconds * 1e6

    for step in plan.segments:
        if step.kind == "cpu":
            piece = next(pieces)
            events.append(_slice("CPU", f"CPU piece {step.phase}", clock, piece.seconds * 1e6, nodes=len(piece.nodes)))
            clock += piece.seconds * 1e6
            continue
        move(step.inputs, ("to_fpga", "hop"), step.stage)
        events.append(_slice("CPU", "launch", clock, plan.device.launch_s * 1e6))
        clock += plan.device.launch_s * 1e6
        segment = next(segments)
        events += _segment(segment, clock, plan.device.clock_hz)
        clock += segment.timing.seconds * 1e6
        move(step.outputs, ("to_cpu",), step.stage)
    return _trace(events, provenance)


def program_trace(program: Program, timing: ProgramTiming, provenance: dict[str, Any]) -> dict[str, Any]:
    """The chains of `program` that were stepped, on the units that they used."""
    events = _tracks(program.device.name, TRACKS[:5])
    us = 1e6 / program.device.clock_hz
    for row in timing.chains:
        name = f"{program.blocks[row.block].name or f'block {row.block}'}: word {row.chain.at}"
        cycles = {"issue": row.issue, "end": row.end}
        if row.transfer is not None:
            begin, end = row.transfer
            moved = (
                row.chain.tiles if isinstance(row.chain, MatrixChain) else row.chain.dram_read + row.chain.dram_written
            )
            out = isinstance(row.chain, VectorChain) and row.chain.dram_written
            track = "weights" if isinstance(row.chain, MatrixChain) else "DMA out" if out else "DMA in"
            events.append(_slice(track, name, begin * us, (end - begin) * us, moved=moved, **cycles))
        if isinstance(row.chain, VectorChain):
            track = "MVM" if row.chain.tiles else "MFU"
            length = (row.stop - row.begin) * us
            events.append(_slice(track, name, row.begin * us, length, waited_for=row.wait, **cycles))
    return _trace(events, provenance)


def _segment(segment: FpgaSegment, start: float, clock_hz: int) -> Iterator[Event]:
    """A layer's weights load while the layer before it works; its MFUs work behind its products."""
    us = 1e6 / clock_hz
    load_at = start
    for (layer, t), (begin, end) in zip(segment.rows, segment.timing.spans, strict=True):
        at = start + begin * us
        if t.load_cycles:
            loads = {"cycles": t.load_cycles, "bytes": t.load_bytes}
            yield _slice("weights", layer.name, load_at, t.load_cycles * us, segment.stage, **loads)
        load_at = at
        args = {"cycles": end - begin, "macs": t.macs, "utilization": round(t.utilization, 4)}
        if t.mvm_cycles:
            yield _slice("MVM", layer.name, at, t.mvm_cycles * us, segment.stage, native_tiles=t.native_tiles, **args)
        if end - begin > t.mvm_cycles:
            rest = end - begin - t.mvm_cycles
            yield _slice("MFU", layer.name, at + t.mvm_cycles * us, rest * us, segment.stage, **args)


def _tracks(process: str, names: tuple[str, ...], stage: int = 0) -> list[Event]:
    pid = stage + 1
    events: list[Event] = [{"name": "process_name", "ph": "M", "pid": pid, "args": {"name": process}}]
    for i, name in enumerate(names):
        events.append({"name": "thread_name", "ph": "M", "pid": pid, "tid": i + 1, "args": {"name": name}})
        events.append({"name": "thread_sort_index", "ph": "M", "pid": pid, "tid": i + 1, "args": {"sort_index": i}})
    return events


def _slice(track: str, name: str, begin: float, duration: float, stage: int = 0, **args: Any) -> Event:
    at = TRACKS.index(track) + 1
    return {"name": name, "ph": "X", "pid": stage + 1, "tid": at, "ts": begin, "dur": duration, "args": args}


def _trace(events: list[Event], provenance: dict[str, Any]) -> dict[str, Any]:
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": provenance}
