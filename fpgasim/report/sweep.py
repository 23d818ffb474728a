"""A network on many engines: one tidy row each, and which of them no other beats."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fpgasim
from fpgasim.errors import DeviceError, FpgasimError, InputError
from fpgasim.graph import Graph
from fpgasim.npu import Device, get_device
from fpgasim.npu.resources import estimate_resources
from fpgasim.numerics import get_format
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
    """One engine in one format. `note` says why there are no figures, or no area, if there are none.

    `pareto` marks the rows that no other beats in both milliseconds and area (ALMs plus those that M20Ks and DSPs stand
    for), among those with both.
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
        """ALMs, with a block of memory and a DSP counted as the logic that takes their place on a Stratix 10; infinite
        without figures."""
        if self.alms is None or self.m20ks is None or self.dsps is None:
            return float("inf")
        return self.alms + 40 * self.m20ks + 30 * self.dsps

    @property
    def complete(self) -> bool:
        """Whether there are both a time and an area."""
        return self.total_ms is not None and self.alms is not None


def sweep(
    graph: Graph, device: str | Device, formats: Sequence[str], axes: Mapping[str, Sequence[float]]
) -> list[SweepRow]:
    """`graph` on every combination of `axes` (names as in `AXES`) from `device`, in each of `formats`.

    A combination that is no device, or in which a format does not fit, keeps its row, with the reason in `note`; one
    whose area cannot be estimated keeps its time. Raises InputError for an axis that is none, and as `swept` does.
    """
    for name in axes:
        if name not in AXES:
            raise InputError(f"no axis {name!r}; there are {', '.join(AXES)}")
    base = swept(device, formats)
    rows = [_row(graph, base, fmt, point) for fmt, point in itertools.product(formats, _points(axes))]
    return mark_pareto(rows)


def swept(device: str | Device, formats: Sequence[str]) -> Device:
    """The device to start from. Raises UnknownNameError for an unknown device or format, DeviceError for an engine that
    is not of the kind matvec, whose sizes these are."""
    base = get_device(device)
    if base.engine != "matvec":
        raise DeviceError(
            f"device {base.name!r} is of the kind {base.engine}; a sweep starts from a matvec engine, such as bw_a10"
        )
    for fmt in formats:
        get_format(fmt)
    return base


def mark_pareto(rows: Iterable[SweepRow]) -> list[SweepRow]:
    """The rows with `pareto` set: no other is as quick and as small, and better in one of the two."""
    given = list(rows)
    complete = [row for row in given if row.complete]

    def beaten(row: SweepRow) -> bool:
        mine = (row.time, row.area)
        others = ((other.time, other.area) for other in complete)
        return any(time <= mine[0] and area <= mine[1] and (time, area) != mine for time, area in others)

    return [dataclasses.replace(row, pareto=row.complete and not beaten(row)) for row in given]


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
    except FpgasimError as error:
        return dataclasses.replace(row, note=str(error))
    row = dataclasses.replace(
        row,
        fpga_mac_share=plan.fpga_mac_share,
        cycles=timing.cycles,
        ms=timing.milliseconds,
        total_ms=timing.total_ms,
        utilization=timing.utilization,
    )
    try:
        area = estimate_resources(device, plan.numbers.format)
    except FpgasimError as error:
        return dataclasses.replace(row, note=str(error))
    return dataclasses.replace(row, alms=area.alms, m20ks=area.m20ks, dsps=area.dsps)


def draw_pareto(rows: list[SweepRow], title: str, path: str | Path) -> None:
    """Writes a picture of milliseconds over area, a dot for each row and a line through those that none beats.

    Raises InputError for a file name that is no picture's, or where no row has both a time and an area.
    """
    check_picture(path)
    shown = [row for row in rows if row.complete]
    if not shown:
        raise InputError(f"none of the {len(rows)} combinations has a time and an area; the first says: {rows[0].note}")
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
