"""`fpgasim quantize`: an array in a block format."""

from __future__ import annotations

import dataclasses

import click


@click.command()
@click.argument("file", metavar="FILE.npy")
@click.option("--format", "format_", default="msfp16", show_default=True, help="Number format; see `fpgasim formats`.")
@click.option("--axis", default=-1, show_default=True, help="Axis along which blocks are made.")
@click.option("--rounding", default="even", show_default=True, help="even, nearest, floor or stochastic.")
@click.option("--seed", default=0, show_default=True, help="Seed of stochastic rounding.")
@click.option("--out", metavar="FILE.npz", help="Write codes, exponents and the numbers they stand for.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def quantize(file: str, format_: str, axis: int, rounding: str, seed: int, out: str | None, json_: bool) -> None:
    """Quantize the array in FILE.npy and print what it costs."""
    import numpy as np

    import fpgasim
    from fpgasim.cli.arrays import read_array
    from fpgasim.report.provenance import provenance, to_json
    from fpgasim.report.quantization import quantization_error
    from fpgasim.report.text import count, show, table

    x = read_array(file)
    tensor = fpgasim.quantize(x, format_, axis, rounding, seed=seed)
    error = quantization_error(x, tensor)
    if out is not None:
        with open(out, "wb") as stream:
            np.savez(stream, codes=tensor.codes, exponents=tensor.exponents, values=tensor.dequantize())
    if json_:
        made = provenance(format=tensor.format.name, axis=tensor.axis, rounding=rounding, shape=x.shape)
        click.echo(to_json({"provenance": made, **dataclasses.asdict(error)}))
        return
    rows = [
        ("format", f"{tensor.format.name}, {tensor.format.bits_per_element:g} bits per element"),
        ("shape", f"{x.shape}, blocks of {tensor.format.block} along axis {tensor.axis}"),
        ("QSNR", f"{error.qsnr_db:.2f} dB"),
        ("largest error", f"{error.max_error:.6g}"),
        ("rms error", f"{error.rms_error:.6g}"),
        ("became zero", f"{count(error.zeros)} of {count(x.size)}"),
        ("size", f"{count(error.packed_bytes)} bytes packed, {count(error.fp32_bytes)} as fp32"),
    ]
    if error.nan_blocks:
        rows.insert(-1, ("NaN blocks", f"{count(error.nan_blocks)} of {count(error.blocks)}, left out above"))
    show(table(("", ""), rows), *([f"wrote {out}"] if out else []))
