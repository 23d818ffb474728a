"""The layers of a plan as rows: when each ran and where its cycles went. CSV for tables, JSON with provenance."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

from fpgasim.npu.timing import LayerTiming
from fpgasim.runtime import FpgaSegment, Timing


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer of one FPGA segment, on a device of several by its number from 1.

    `start` and `end` are cycles from the segment's first weight load; `stall_cycles` is how long the layer after it had
    to wait for its weights once it was done. m, n and k are the product's output positions, filters and reductions (a
    group's), 0 for layers without one. Bytes are those that cross the DRAM interface.
    """

    segment: int
    device: int
    layer: str
    head: str
    nodes: str
    in_shape: str
    out_shape: str
    m: int
    n: int
    k: int
    mapping: str
    macs: int
    native_tiles: int
    start: int
    end: int
    mvm_cycles: int
    pointwise_cycles: int
    fill_cycles: int
    compute_cycles: int
    load_cycles: int
    stall_cycles: int
    utilization: float
    weight_bytes: int
    dram_bytes: int


def layer_rows(timing: Timing) -> list[LayerRow]:
    """The rows of `timing`, segment by segment, in order."""
    return [row for segment in timing.segments for row in _rows(segment)]


def _rows(segment: FpgaSegment) -> Iterator[LayerRow]:
    spans = segment.timing.spans
    begins = [begin for begin, _ in spans[1:]] + [segment.timing.cycles]
    for (layer, t), (begin, end), following in zip(segment.rows, spans, begins, strict=True):
        product = layer.head in ("conv", "matmul")
        taps = layer.window.kernel[0] * layer.window.kernel[1] if layer.head == "conv" and layer.window else 1
        batch, height, width, outputs = layer.out_shape
        yield LayerRow(
            segment=segment.phase,
            device=segment.stage + 1,
            layer=layer.name,
            head=layer.head,
            nodes=" ".join(layer.nodes),
            in_shape="x".join(map(str, layer.in_shape)),
            out_shape="x".join(map(str, layer.out_shape)),
            m=batch * height * width if product else 0,
            n=outputs // layer.groups if product else 0,
            k=taps * layer.in_shape[3] // layer.groups if product else 0,
            mapping=_mapping(t),
            macs=t.macs,
            native_tiles=t.native_tiles,
            start=begin,
            end=end,
            mvm_cycles=t.mvm_cycles,
            pointwise_cycles=t.pointwise_cycles,
            fill_cycles=t.fill_cycles,
            compute_cycles=t.compute_cycles,
            load_cycles=t.load_cycles,
            stall_cycles=following - end,
            utilization=t.utilization,
            weight_bytes=t.weight_bytes,
            dram_bytes=t.load_bytes,
        )


def _mapping(t: LayerTiming) -> str:
    return "" if t.mapping is None else f"{t.mapping.lowering} {t.mapping.kind} {t.mapping.pixels}x{t.mapping.tiles}"


def to_csv(rows: list[Any]) -> str:
    """Dataclasses of one kind as CSV with a header line."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, [f.name for f in dataclasses.fields(rows[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
    return out.getvalue()


def layers_json(rows: list[LayerRow], timing: Timing, provenance: dict[str, Any]) -> dict[str, Any]:
    """The rows as JSON values, with where they come from and the sums that they add up to."""
    return {
        "provenance": provenance,
        "clock_hz": timing.device.clock_hz,
        "assumed": timing.device.assumed,
        "cycles": timing.cycles,
        "layers": [dataclasses.asdict(row) for row in rows],
    }
