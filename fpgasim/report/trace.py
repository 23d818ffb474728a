"""Timelines in the Chrome trace format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

One microsecond of the file is one of the engine; every slice carries its cycles. The format: "Trace Event Format", by
the Chromium project.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fpgasim.npu import Program, ProgramTiming
from fpgasim.npu.chains import MatrixChain, VectorChain
from fpgasim.placement import Plan
from fpgasim.runtime import FpgaSegment, Timing

TRACKS = ("DMA in", "weights", "MVM", "MFU", "DMA out", "CPU")
Event = dict[str, Any]


def plan_trace(plan: Plan, timing: Timing, provenance: dict[str, Any]) -> dict[str, Any]:
    """One run of `plan` as a trace: its steps one after another, the layers of the FPGA segments inside them."""
    events = _tracks(plan.device.name, TRACKS)
    segments = {segment.phase: segment for segment in timing.segments}
    pieces = {piece.phase: piece for piece in timing.cpu_pieces}
    waiting = {t.tensor: t for t in timing.transfers}
    clock = 0.0

    def move(names: tuple[str, ...], direction: str) -> None:
        """Each tensor crosses once, when it is first needed."""
        nonlocal clock
        for name in names:
            if name in waiting and waiting[name].direction == direction:
                t, track = waiting.pop(name), "DMA in" if direction == "to_fpga" else "DMA out"
                events.append(_slice(track, name, clock, t.seconds * 1e6, bytes=t.payload_bytes))
                clock += t.seconds * 1e6

    for step in plan.segments:
        if step.kind == "cpu":
            piece = pieces[step.phase]
            events.append(_slice("CPU", f"CPU piece {step.phase}", clock, piece.seconds * 1e6, nodes=len(piece.nodes)))
            clock += piece.seconds * 1e6
            continue
        move(step.inputs, "to_fpga")
        events.append(_slice("CPU", "launch", clock, plan.device.launch_s * 1e6))
        clock += plan.device.launch_s * 1e6
        segment = segments[step.phase]
        events += _segment(segment, clock, plan.device.clock_hz)
        clock += segment.timing.seconds * 1e6
        move(step.outputs, "to_cpu")
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
            yield _slice("weights", layer.name, load_at, t.load_cycles * us, cycles=t.load_cycles, bytes=t.load_bytes)
        load_at = at
        args = {"cycles": end - begin, "macs": t.macs, "utilization": round(t.utilization, 4)}
        if t.mvm_cycles:
            yield _slice("MVM", layer.name, at, t.mvm_cycles * us, native_tiles=t.native_tiles, **args)
        if end - begin > t.mvm_cycles:
            yield _slice("MFU", layer.name, at + t.mvm_cycles * us, (end - begin - t.mvm_cycles) * us, **args)


def _tracks(process: str, names: tuple[str, ...]) -> list[Event]:
    events: list[Event] = [{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": process}}]
    for i, name in enumerate(names):
        events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": i + 1, "args": {"name": name}})
        events.append({"name": "thread_sort_index", "ph": "M", "pid": 1, "tid": i + 1, "args": {"sort_index": i}})
    return events


def _slice(track: str, name: str, begin: float, duration: float, **args: Any) -> Event:
    at = TRACKS.index(track) + 1
    return {"name": name, "ph": "X", "pid": 1, "tid": at, "ts": begin, "dur": duration, "args": args}


def _trace(events: list[Event], provenance: dict[str, Any]) -> dict[str, Any]:
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": provenance}
