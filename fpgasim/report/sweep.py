"""A network on many engines: one tidy row each, and which of them no other beats."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fpgasim
from fpgasim.errors import FpgasimError, InputError
from fpgasim.graph import Graph
from fpgasim.npu import Device, get_device
from fpgasim.npu.resources import estimate_resources
from fpgasim.report.roofline import check_picture
from fpgasim.runtime import plan_timing

#: What can be swept, by the option that names it: the field of the device.
AXES = {
    "native_dim": "native_dim",
    "lanes": "lanes",
    "tiles": "tiles",
    "bandwidth": "dram_bytes_per_s",
    "clock": "clock_hz",
}


@dataclasses.dataclass(frozen=True)
class SweepRow:
    """One engine in one format. `note` says why there are no figures, if there are none.

    `pareto` marks the rows that no other beats in both milliseconds and area (ALMs plus those that M20Ks and DSPs stand
    for), among those with figures.
    """

    device: str
    format: str
    native_dim: int
    lanes: int
    tiles: int
    dram_gb_per_s: float
    clock_mhz: float
    peak_tflops: float
    fpga_mac_share: float | None
    cycles: int | None
    ms: float | None
    total_ms: float | None
    utilization: float | None
    alms: int | None
    m20ks: int | None
    dsps: int | None
    pareto: bool
    note: str

    @property
    def time(self) -> float:
        """`total_ms`; infinite without figures."""
        return float("inf") if self.total_ms is None else self.total_ms

    @property
    def area(self) -> float:
        """ALMs, with a block of memory and a DSP counted as the logic that takes their place on a Stratix 10."""
        return (self.alms or 0) + 40 * (self.m20ks or 0) + 30 * (self.dsps or 0)


def sweep(
    graph: Graph, device: str | Device, formats: Sequence[str], axes: Mapping[str, Sequence[float]]
) -> list[SweepRow]:
    """`graph` on every combination of `axes` (names as in `AXES`) from `device`, in each of `formats`.

    A combination that is no device, or in which a format does not fit, keeps its row, with the reason in `note`.
    Raises InputError for an axis that is none, UnknownNameError for a device.
    """
    for name in axes:
        if name not in AXES:
            raise InputError(f"no axis {name!r}; there are {', '.join(AXES)}")
    base = get_device(device)
    rows = [_row(graph, base, fmt, point) for fmt, point in itertools.product(formats, _points(axes))]
    return mark_pareto(rows)


def mark_pareto(rows: Iterable[SweepRow]) -> list[SweepRow]:
    """The rows with `pareto` set: no other is as quick and as small, and better in one of the two."""
    given = list(rows)
    with_figures = [row for row in given if row.total_ms is not None]

    def beaten(row: SweepRow) -> bool:
        mine = (row.time, row.area)
        others = ((other.time, other.area) for other in with_figures)
        return any(time <= mine[0] and area <= mine[1] and (time, area) != mine for time, area in others)

    return [dataclasses.replace(row, pareto=row.total_ms is not None and not beaten(row)) for row in given]


def _points(axes: Mapping[str, Sequence[float]]) -> Iterator[dict[str, float]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _row(graph: Graph, base: Device, fmt: str, point: dict[str, float]) -> SweepRow:
    fields: dict[str, Any] = {AXES[name]: value if name == "bandwidth" else int(value) for name, value in point.items()}
    name = "-".join([base.name, *(f"{key}={value:g}" for key, value in point.items())])
    shown = {name: fields.get(name, getattr(base, name)) for name in AXES.values()}
    row = SweepRow(
        device=name,
        format=fmt,
        native_dim=int(shown["native_dim"]),
        lanes=int(shown["lanes"]),
        tiles=int(shown["tiles"]),
        dram_gb_per_s=shown["dram_bytes_per_s"] / 1e9,
        clock_mhz=shown["clock_hz"] / 1e6,
        peak_tflops=2 * shown["native_dim"] * shown["lanes"] * shown["tiles"] * shown["clock_hz"] / 1e12,
        **dict.fromkeys(("fpga_mac_share", "cycles", "ms", "total_ms", "utilization", "alms", "m20ks", "dsps")),
        pareto=False,
        note="",
    )
    try:
        device = dataclasses.replace(base, name=name, **fields)
        plan = fpgasim.partition(graph, device, fmt, objective="coverage")
        timing = plan_timing(plan)
        area = estimate_resources(device, plan.numbers.format)
    except FpgasimError as error:
        return dataclasses.replace(row, note=str(error))
    return dataclasses.replace(
        row,
        fpga_mac_share=plan.fpga_mac_share,
        cycles=timing.cycles,
        ms=timing.milliseconds,
        total_ms=timing.total_ms,
        utilization=timing.utilization,
        alms=area.alms,
        m20ks=area.m20ks,
        dsps=area.dsps,
    )


def draw_pareto(rows: list[SweepRow], title: str, path: str | Path) -> None:
    """Writes a picture of milliseconds over area, a dot for each row and a line through those that none beats.

    Raises InputError for a file name that is no picture's, or where no row has figures.
    """
    check_picture(path)
    shown = [row for row in rows if row.total_ms is not None]
    if not shown:
        raise InputError(f"none of the {len(rows)} combinations has figures; the first says: {rows[0].note}")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import StrMethodFormatter

    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), layout="constrained")
    for fmt in dict.fromkeys(row.format for row in shown):
        dots = [row for row in shown if row.format == fmt]
        axes.scatter([row.area / 1e3 for row in dots], [row.time for row in dots], s=22, alpha=0.7, label=fmt)
    front = sorted((row for row in shown if row.pareto), key=lambda row: row.area)
    axes.step([row.area / 1e3 for row in front], [row.time for row in front], where="post", color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("area, 10³ ALMs (a memory block counts 40, a DSP 30)")
    axes.set_ylabel("milliseconds of a run")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
