"""`fpgasim run` and `demo`, and the options of every command that makes a plan."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fpgasim.cli.inputs import PRETRAINED, open_model, open_plan, parse_feeds, preprocessing_of
from fpgasim.cli.pictures import check_picture, write_picture
from fpgasim.errors import InputError
from fpgasim.report.provenance import provenance, to_json
from fpgasim.report.text import show

if TYPE_CHECKING:
    from fpgasim.graph import Graph
    from fpgasim.placement import Plan

Command = Callable[..., Any]


def _devices(context: click.Context, parameter: click.Parameter, value: str) -> int | str:
    if value == "auto":
        return value
    if not value.isdecimal() or not int(value):
        raise click.BadParameter(f"{value!r} is no whole number from 1 up, and not auto")
    return int(value)


def plan_options(command: Command) -> Command:
    """The options of every command that makes a plan."""
    for decorate in (
        click.option("--json", "json_", is_flag=True, help="Print one JSON object."),
        click.option(
            "--devices",
            default="1",
            callback=_devices,
            show_default=True,
            help="FPGAs in a row that keep all weights together, at most so many; auto: the fewest that do.",
        ),
        click.option(
            "--residency",
            help="Weights: streamed in every run; pinned on the chip before the first; auto: the best ones pinned. "
            "Default: streamed, on several devices pinned.",
        ),
        click.option(
            "--objective",
            default="latency",
            show_default=True,
            help="latency: the shortest time; coverage: all that the FPGA can compute.",
        ),
        click.option("--format", "format_", default="bw_1s5e5m", show_default=True, help="See `fpgasim formats`."),
        click.option("--device", default="bw_a10", show_default=True, help="See `fpgasim devices`; or a .yaml file."),
        click.option(
            "--weights",
            help=f"Checkpoint for a zoo network (ONNX, safetensors, npz, PyTorch), or `{PRETRAINED}` for trained ones "
            "that are installed or fetched. Default: random ones.",
        ),
    ):
        command = decorate(command)
    return command


def planned(command: Command) -> Command:
    """The argument and options of every command on one network."""
    return click.argument("model")(plan_options(command))


def plan_of(graph: Graph, device: str, format_: str, objective: str, residency: str | None, devices: int | str) -> Plan:
    """The plan of `graph` by the options of every command."""
    import fpgasim

    return fpgasim.partition(
        graph,
        device,
        format_,
        objective=objective,  # type: ignore[arg-type]
        weights=residency,  # type: ignore[arg-type]
        devices=devices,  # type: ignore[arg-type]
    )


def make_plan(
    model: str,
    weights: str | None,
    device: str,
    format_: str,
    objective: str,
    residency: str | None,
    devices: int | str,
) -> Plan:
    """The plan saved in the file `model`, else the one of that model."""
    return open_plan(model) or plan_of(open_model(model, weights), device, format_, objective, residency, devices)


def plan_provenance(model: str, weights: str | None, plan: Plan) -> dict[str, Any]:
    return provenance(
        model=model,
        weights=weights,
        graph=plan.graph.fingerprint(),
        device=plan.device.name,
        numbers=dataclasses.asdict(plan.numbers),
    )


@click.command()
@planned
@click.option("--image", metavar="FILE", help="The picture to classify: JPEG, PNG, …")
@click.option("--input", "inputs", metavar="NAME=FILE.npy", multiple=True, help="An input as an array; for any model.")
@click.option(
    "--preprocess",
    metavar="SPEC",
    help="How the picture becomes the input: a zoo network's name, one such as keras, timm_bicubic or azure, or as in "
    "size=224,mean=127,std=128.",
)
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes to print.")
@click.option(
    "--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="A detector's boxes are likelier."
)
@click.option("--picture", metavar="FILE", help="Write the picture with the boxes that a detector found on the FPGA.")
@click.option("--all", "all_", is_flag=True, help="Print every node with its reason instead of the summary.")
@click.option("--layers", is_flag=True, help="Print the cycles of every layer.")
@click.option("--kernels", metavar="NAME", help="Kernel backend; see `fpgasim kernels`.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of the emulation and of ONNX Runtime.")
def run(
    model: str,
    weights: str | None,
    device: str,
    format_: str,
    objective: str,
    residency: str | None,
    devices: int | str,
    json_: bool,
    image: str | None,
    inputs: tuple[str, ...],
    preprocess: str | None,
    top: int,
    threshold: float,
    picture: str | None,
    all_: bool,
    layers: bool,
    kernels: str | None,
    threads: int | None,
) -> None:
    """Run MODEL on a picture: the likeliest classes in fp32 and on the FPGA, the placement, the cycles.

    MODEL is an ONNX file, a network of the zoo (`fpgasim zoo list`) or a plan that `fpgasim partition --save` wrote. A
    model that takes no picture is fed with --input, and its outputs are compared with fp32.
    """
    import fpgasim
    from fpgasim import zoo
    from fpgasim.report import comparison, detections, runs
    from fpgasim.runtime.feeds import check_feeds
    from fpgasim.zoo.boxes import draw_boxes, is_detection
    from fpgasim.zoo.decoding import to_pillow

    if (image is None) == (not inputs):
        raise click.UsageError("Give either --image FILE or --input NAME=FILE.npy.")
    if threads is not None:
        os.environ["FPGASIM_NUM_THREADS"] = str(threads)
    saved = open_plan(model)
    graph = open_model(model, weights) if saved is None else saved.source_graph
    if image is not None:
        spec = preprocessing_of(model if saved is None else graph.name, preprocess, graph)
        feeds = {graph.inputs[0].name: zoo.preprocess(spec, image)}
    elif preprocess is not None:
        raise InputError(f"--preprocess {preprocess} is for pictures; arrays from --input are taken as they are")
    else:
        feeds = dict(parse_feeds(inputs))
    feeds = check_feeds(graph.inputs, feeds)
    shapes = {name: array.shape for name, array in feeds.items()}
    if saved is None:
        plan = plan_of(graph.with_input_shapes(shapes), device, format_, objective, residency, devices)
    else:
        plan = saved if shapes == {t.name: t.shape for t in saved.graph.inputs} else saved.replan(shapes)
    detects = image is not None and is_detection(t.shape or () for t in plan.graph.outputs)
    if picture is not None:
        check_picture(picture)
        if not detects:
            raise InputError(
                f"--picture {picture}: {plan.graph.name!r} finds no boxes that could be drawn in a picture"
            )
    started = time.perf_counter()
    session = fpgasim.compile(plan, kernels)
    compiled = time.perf_counter()
    outputs = session.run(feeds)
    ended = time.perf_counter()
    fp32 = comparison.run_fp32(plan.graph, feeds)
    timing = session.timing()

    differences = {
        name: comparison.difference(fp32[name], got) for name, got in outputs.items() if got.dtype.kind in "fiu"
    }
    ranked = {
        name: comparison.rank(fp32[name], got, top)
        for name, got in outputs.items()
        if image is not None and comparison.classes(got)
    }
    boxes = zoo.detect(outputs, threshold) if detects else None
    found = detections.pair(zoo.detect(fp32, threshold), boxes) if boxes is not None else []
    photo = to_pillow(image) if image is not None and boxes is not None else None
    if photo is not None and boxes is not None and picture is not None:
        write_picture(draw_boxes(photo, boxes), picture)
    saturations = dict(session.report().saturations)
    host = {"compile_s": compiled - started, "run_s": ended - compiled}
    if json_:
        result = {
            "provenance": plan_provenance(model, weights, plan) | {"kernels": session.kernels.name},
            "outputs": {
                name: {
                    "shape": got.shape,
                    "dtype": str(got.dtype),
                    "against_fp32": dataclasses.asdict(differences[name]) if name in differences else None,
                    "classes": [dataclasses.asdict(row) for row in ranked.get(name, ())],
                }
                for name, got in outputs.items()
            },
            "detections": {"threshold": threshold, "objects": list(map(dataclasses.asdict, found))} if photo else None,
            "plan": runs.plan_json(plan),
            "timing": runs.timing_json(timing),
            "saturations": saturations,
            "host": host,
        }
        click.echo(to_json(result))
        return
    show(runs.title(plan))
    if model in zoo.names() and weights is None:
        show(f"The weights are random, so the classes mean nothing; --weights gives others (--weights {PRETRAINED}).")
    if photo is not None:
        if found:
            show("", detections.found_table(found, photo.size, plan.numbers.format.name))
        show("", detections.agreement(found, threshold), *([f"wrote {picture}"] if picture is not None else []))
        worst = max(differences, key=lambda name: differences[name].relative_error)
        show(f"{worst}, the worst of {len(outputs)} outputs: {runs.difference_text(differences[worst])}")
    for name, got in outputs.items() if photo is None else ():
        show("")
        if name in ranked:
            show(runs.classes_table(ranked[name], plan.numbers.format.name), "")
            show(f"{name}: {runs.agreement(ranked[name], min(top, comparison.classes(got)))}")
        else:
            show(f"{name}: {got.dtype} {got.shape}{runs.value_range(got)}")
        if name in differences:
            show(f"{name}: {runs.difference_text(differences[name])}")
    if saturations:
        show(runs.saturation_text(saturations, plan.numbers.pointwise))
    show("", plan.explain() if all_ else runs.placement_line(plan))
    if not all_:
        show("", runs.placement_table(plan))
    if layers:
        show("", runs.layers_table(timing))
    show("", *runs.timing_parts(plan, timing))
    times = f"{host['run_s']:.2f} s, and {host['compile_s']:.2f} s to pack the weights"
    show(f"\nThe emulation itself took {times}, on this machine with the {session.kernels.name} kernels.")


@click.command()
def demo() -> None:
    """Classify a real photograph with a trained network on the emulated FPGA, then time ResNet-50."""
    from fpgasim.demo import main

    main()
