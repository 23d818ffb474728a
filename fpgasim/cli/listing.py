"""`fpgasim devices`, `formats`, `kernels` and `doctor`: what is there."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from fpgasim.errors import UnknownNameError
from fpgasim.report.provenance import to_json
from fpgasim.report.text import count, scaled, show, table

if TYPE_CHECKING:
    from fpgasim.npu import Device

as_json = click.option("--json", "json_", is_flag=True, help="Print one JSON object.")


@click.command()
@click.argument("name", required=False)
@click.option("--resources", is_flag=True, help="Estimate the logic and memory that NAME takes of an FPGA.")
@click.option("--format", "format_", default="bw_1s5e2m", show_default=True, help="Number format of the estimate.")
@as_json
def devices(name: str | None, resources: bool, format_: str, json_: bool) -> None:
    """List the FPGA engines, or every value of the one called NAME (or described in NAME.yaml)."""
    from fpgasim.npu import DEVICES, device_rows, get_device

    if name is None and resources:
        raise click.UsageError("--resources needs the NAME of a device.")
    if name is not None:
        device = get_device(name)
        rows = device_rows(device)
        if resources:
            _resources(device, format_, json_)
        elif json_:
            click.echo(to_json({"name": device.name, "fields": [row._asdict() for row in rows]}))
        else:
            values = (row._replace(value=f"{v:g}" if isinstance(v := row.value, float) else v) for row in rows)
            show(table(("field", ">value", "unit", "source", "meaning"), values))
        return
    if json_:
        click.echo(to_json({d.name: dataclasses.asdict(d) | {"peak_flops": d.peak_flops} for d in DEVICES.values()}))
        return
    show(
        table(
            ("device", ">native dim", ">lanes", ">tiles", ">weights on chip", ">clock", ">peak", ">assumed"),
            (
                (
                    d.name,
                    d.native_dim,
                    d.lanes,
                    d.tiles,
                    count(d.weights_on_chip),
                    scaled(d.clock_hz, "Hz"),
                    scaled(d.peak_flops, "FLOPS"),
                    f"{len(d.assumed)} values",
                )
                for d in DEVICES.values()
            ),
        ),
        "\n`fpgasim devices NAME` shows every value; what nobody published is marked assumed.",
    )


def _resources(device: Device, format_: str, json_: bool) -> None:
    from fpgasim.npu.resources import estimate_resources

    estimate = estimate_resources(device, format_)
    if json_:
        click.echo(to_json({"name": device.name, "format": format_, **dataclasses.asdict(estimate)}))
        return
    show(
        f"{device.name} in {format_}, by coefficients fitted to three published engines (see `fpgasim validate`)",
        table(
            ("", ""),
            (
                ("ALMs", count(estimate.alms)),
                ("M20Ks", count(estimate.m20ks)),
                ("DSPs", count(estimate.dsps)),
                ("bits of register files", count(estimate.memory_bits)),
            ),
        ),
    )


@click.command()
@as_json
def formats(json_: bool) -> None:
    """List the number formats and their bits."""
    from fpgasim.numerics import CATALOGUE

    if json_:
        listed = {
            f.name: dataclasses.asdict(f) | {"bits_per_element": f.bits_per_element, "element_bits": f.element_bits}
            for f in CATALOGUE.values()
        }
        click.echo(to_json(listed))
        return
    rows = []
    for f in CATALOGUE.values():
        if f.is_fp32:
            element = "float32, nothing is quantized"
        elif f.is_float:
            element = f"float: sign, {f.element_exponent_bits} exponent, {f.mantissa_bits} fraction"
        else:
            sign = "sign" if f.encoding == "sign_magnitude" else "two's complement"
            element = f"integer: {sign}, {f.mantissa_bits} magnitude"
        block = "the device's native dim" if f.follows_device else f.block
        rows.append((f.name, element, f.element_bits, f.exponent_bits, block, f"{f.bits_per_element:g}"))
    show(
        table(("format", "element", ">bits", ">shared exponent", ">block", ">bits per element"), rows),
        f"\nWhere the block is the device's, bits per element count blocks of {CATALOGUE['bw_1s5e5m'].block}.",
    )


def _default_kernels() -> str | None:
    """The backend that is used unless told; None, after a warning, where $FPGASIM_KERNELS names none."""
    from fpgasim.kernels import backend

    try:
        return backend().name
    except UnknownNameError as error:
        click.echo(f"fpgasim: warning: FPGASIM_KERNELS: {error}", err=True)
        return None


@click.command()
@as_json
def kernels(json_: bool) -> None:
    """List the kernel backends that run here; all compute the same bits."""
    from fpgasim.kernels import available

    found, chosen = list(available()), _default_kernels()
    if json_:
        click.echo(to_json({"available": found, "default": chosen}))
        return
    show(table(("backend", ""), ((name, "default" if name == chosen else "") for name in found)))
    show("\nSlowest first. FPGASIM_KERNELS=NAME chooses another default.")


@click.command()
@as_json
def doctor(json_: bool) -> None:
    """Tell what this machine offers, what is missing and how to get it."""
    import os

    import fpgasim
    from fpgasim.kernels import available
    from fpgasim.machine import cache_dir
    from fpgasim.report import machine

    cpu, cc, known, backends = machine.processor(), machine.compiler(), machine.packages(), list(available())
    environment = {name: os.environ[name] for name in machine.VARIABLES if name in os.environ}
    absent, chosen = machine.missing(cc, backends, known), _default_kernels()
    if json_:
        report = {
            "fpgasim": fpgasim.__version__,
            "python": machine.python(),
            "processor": dataclasses.asdict(cpu),
            "compiler": cc,
            "kernels": {"available": backends, "default": chosen},
            "cache_dir": str(cache_dir()),
            "environment": environment,
            "packages": [dataclasses.asdict(p) for p in known],
            "missing": absent,
        }
        click.echo(to_json(report))
        return
    show(
        table(
            ("", ""),
            (
                ("fpgasim", fpgasim.__version__),
                ("Python", machine.python()),
                ("processor", f"{cpu.model}, {cpu.cores} usable cores"),
                ("level", " ".join((cpu.level, *(f"+{name}" for name in cpu.extensions)))),
                ("C compiler", cc or "none"),
                ("kernels", f"{', '.join(backends)}; default {chosen or 'none'}"),
                ("cache", cache_dir()),
                *environment.items(),
            ),
        ),
        "",
        table(
            ("package", "required", "installed", "for"),
            ((p.name, p.required, p.installed or "none", p.extra or "fpgasim") for p in known),
        ),
        "",
        "Nothing is missing." if not absent else "Missing:\n" + "\n".join(f"  {line}" for line in absent),
    )
