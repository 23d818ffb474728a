"""`fpgasim bench`: the emulation beside ONNX Runtime."""

from __future__ import annotations

import dataclasses
from typing import Any

import click


@click.command()
@click.argument("models", nargs=-1)
@click.option("--device", default="bw_a10", show_default=True, help="See `fpgasim devices`; or a .yaml file.")
@click.option("--format", "format_", default="msfp16", show_default=True, help="See `fpgasim formats`.")
@click.option("--accumulator", help="How terms add up; default: as the device does.")
@click.option("--kernels", metavar="NAME", help="Kernel backend; see `fpgasim kernels`.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024), help="Threads of both sides.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Runs; the median counts.")
@click.option("--layers/--no-layers", default=True, show_default=True, help="Time every shape of layer too.")
@click.option("--int8/--no-int8", default=True, show_default=True, help="Time ONNX Runtime's int8 too.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def bench(
    models: tuple[str, ...],
    device: str,
    format_: str,
    accumulator: str | None,
    kernels: str | None,
    threads: int,
    rounds: int,
    layers: bool,
    int8: bool,
    json_: bool,
) -> None:
    """Time MODELS (default: resnet50) and their layers in turns with ONNX Runtime, in this process, bits checked first.

    Processor time on one thread, elapsed time on several. A model is an ONNX file or a network of the zoo.
    """
    import fpgasim
    from fpgasim.bench import measure_layers, measure_network, peak_rate
    from fpgasim.cli.inputs import open_model
    from fpgasim.kernels import backend
    from fpgasim.report.provenance import provenance, to_json
    from fpgasim.report.text import show

    chosen = backend(kernels)
    peak = peak_rate(chosen, threads)
    report: dict[str, Any] = {}
    for model in models or ("resnet50",):
        graph = open_model(model, None)
        plan = fpgasim.partition(graph, device, format_, objective="coverage", accumulator=accumulator)
        rows = []
        if layers:
            rows = list(measure_layers(plan.graph, plan.device, plan.numbers, chosen, threads, rounds, int8))
        network = measure_network(plan, kernels, threads, rounds, int8)
        report[model] = {"network": dataclasses.asdict(network), "layers": [dataclasses.asdict(row) for row in rows]}
        if not json_:
            show(*_text(model, plan.numbers, chosen.name, threads, peak, network, rows))
    if json_:
        made = provenance(device=device, format=format_, accumulator=accumulator, threads=threads, peak=peak)
        click.echo(to_json({"provenance": made | {"kernels": chosen.name}, **report}))


def _text(
    model: str, numbers: Any, kernels: str, threads: int, peak: float | None, network: Any, rows: list[Any]
) -> list[Any]:
    from fpgasim.report.text import milliseconds, plural, scaled, share, table

    def of_peak(rate: float) -> str:
        return "-" if peak is None else share(min(rate / peak, 1.0))

    seconds, fp32, int8 = network.seconds, network.seconds_fp32, network.seconds_int8
    rate = network.macs / seconds
    parts: list[Any] = [
        f"{model}: {numbers.format.name}, {numbers.accumulator} sums, {kernels}, {plural(threads, 'thread')}"
        + ("" if peak is None else f", peak {scaled(peak, 'MAC/s')}")
        + "; bits checked",
        table(
            ("", ">ms", ">MAC/s", ">of peak", ">its time / ours"),
            [
                ("fpgasim", milliseconds(seconds), scaled(rate, ""), of_peak(rate), ""),
                *(
                    (name, milliseconds(s), scaled(network.macs / s, ""), "", f"{s / seconds:.2f}")
                    for name, s in (("onnxruntime fp32", fp32), ("onnxruntime int8", int8))
                    if s is not None
                ),
            ],
        ),
        f"{share(network.fpga_mac_share)} of the multiply-accumulates on the emulated FPGA; time by kind of work: "
        + ", ".join(f"{kind} {milliseconds(s)} ms" for kind, s in sorted(network.profile.items(), key=lambda i: -i[1])),
    ]
    if rows:
        peers = ("fp32",) if int8 is None else ("fp32", "int8")
        parts += [
            "",
            table(
                ("layer", ">count", ">MAC/s", ">of peak", *(f">times {name}" for name in peers)),
                [
                    (
                        row.shape,
                        row.count,
                        scaled(row.rate, ""),
                        of_peak(row.rate),
                        *(f"{row.rate / getattr(row, f'rate_{name}'):.2f}" for name in peers),
                    )
                    for row in rows
                ],
            ),
        ]
    return [*parts, ""]
