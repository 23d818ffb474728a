"""The roofline of a device with a dot for each layer (Williams et al., Communications of the ACM 52(4), 2009)."""

from __future__ import annotations

from pathlib import Path

from fpgasim.errors import InputError
from fpgasim.npu import Device
from fpgasim.report.layers import LayerRow
from fpgasim.report.text import plural

SUFFIXES = (".png", ".svg")


def attainable(device: Device, intensity: float) -> float:
    """Multiply-accumulates a second at `intensity` of them per byte of DRAM: the lower of peak and bandwidth."""
    peak = device.macs_per_cycle * device.clock_hz
    return min(peak, intensity * device.dram_bytes_per_s * device.dram_efficiency)


def draw_roofline(rows: list[LayerRow], device: Device, path: str | Path) -> None:
    """Writes the picture to `path` (.png or .svg): a dot for each layer with a product.

    Its time is that of its work or of its weights' transfer, whichever is longer.

    Raises InputError for another suffix, or where there is no such layer.
    """
    check_picture(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dots = [
        (row.macs / row.dram_bytes, row.macs * device.clock_hz / max(row.compute_cycles, row.load_cycles))
        for row in rows
        if row.macs and row.dram_bytes
    ]
    if not dots:
        raise InputError(
            "no layer of the FPGA has products and weights, so there is no roofline; another plan would do"
        )
    intensities = [x for x, _ in dots]
    low, high = min(intensities) / 3, max(*intensities, attainable_corner(device)) * 3
    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), layout="constrained")
    line = [low * (high / low) ** (i / 200) for i in range(201)]
    axes.loglog(line, [attainable(device, x) / 1e9 for x in line], color="black", linewidth=1.5)
    axes.scatter(intensities, [y / 1e9 for _, y in dots], s=18, alpha=0.7, color="tab:blue", zorder=3)
    axes.set_xlabel("multiply-accumulates per byte of DRAM")
    axes.set_ylabel("10⁹ multiply-accumulates per second\n(of work or weight transfer, whichever takes a layer longer)")
    rate = device.dram_bytes_per_s * device.dram_efficiency / 1e9
    peak = device.macs_per_cycle * device.clock_hz / 1e9
    axes.set_title(f"{device.name}: {peak:,.0f} GMAC/s, {rate:.1f} GB/s, {plural(len(dots), 'layer')}", fontsize=10)
    axes.grid(True, which="both", linewidth=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def attainable_corner(device: Device) -> float:
    """Multiply-accumulates per byte from which on the peak, not the bandwidth, is the roof."""
    return device.macs_per_cycle * device.clock_hz / (device.dram_bytes_per_s * device.dram_efficiency)


def check_picture(path: str | Path) -> None:
    """Raises InputError for a file name that is no picture's."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise InputError(f"picture {str(path)!r}: {' or '.join(SUFFIXES)} would do")
