"""What of a segment needs no memory of its own: pointwise layers done on the way, and concats that only grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from fpgasim.compiler.fusion import reads
from fpgasim.npu import Layer
from fpgasim.npu.segment import Segment


def quantizes(layer: Layer) -> bool:
    """Whether `layer` runs on the matrix unit, which quantizes what it reads."""
    return layer.head in ("conv", "matmul")


def folded_layers(segment: Segment, wanted: Collection[str]) -> dict[str, Layer]:
    """The pointwise layers, by output, that are done while the one layer that reads them quantizes its input.

    Their operands are constants, and nobody asked for what they make.
    """
    readers = Counter(name for layer in segment.layers for name in reads(layer))
    by_matrix = {layer.inputs[0] for layer in segment.layers if quantizes(layer) and _takes_steps(layer)}
    return {
        layer.output: layer
        for layer in segment.layers
        if layer.head == "pointwise"
        and layer.output in by_matrix
        and readers[layer.output] == 1
        and not any(stage.output in wanted for stage in layer.stages)
        and all(stage.operand is None or stage.operand in segment.constants for stage in layer.stages)
    }


def _takes_steps(layer: Layer) -> bool:
    """Zeros around the image must not go through steps, and every pixel must: what saturates is counted."""
    return layer.packing != "window" and (layer.window is None or layer.window.stride == (1, 1))


def grown_concats(segment: Segment, wanted: Collection[str], folded: Mapping[str, Layer]) -> dict[str, str]:
    """For each concat that is kept as the first channels of the next one, which begins with it, that next one.

    Behind the last of a row there may be stages, which then do not work in place.
    Whoever else reads it must take pixels that lie further apart: layers that quantize it alone, or other concats.
    """
    readers: dict[str, list[Layer]] = {}
    for layer in segment.layers:
        for name in reads(layer):
            readers.setdefault(name, []).append(layer)

    def may_be_apart(name: str, layer: Layer) -> bool:
        if layer.head == "concat":
            return name in layer.inputs
        if layer.output in folded:
            return layer.inputs[0] == name
        return quantizes(layer) and layer.packing != "window" and layer.inputs[0] == name and alone(name)

    def alone(name: str) -> bool:
        return sum(quantizes(layer) for layer in readers[name]) == 1

    grown: dict[str, str] = {}
    for layer in segment.layers:
        name = layer.output
        if layer.head != "concat" or layer.stages or name in wanted:
            continue
        nexts = [r.output for r in readers.get(name, ()) if r.head == "concat" and r.inputs[0] == name]
        if nexts and all(may_be_apart(name, reader) for reader in readers[name]):
            grown[name] = nexts[0]
    return grown
