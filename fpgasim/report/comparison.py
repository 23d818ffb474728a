"""The engine's outputs beside those of fp32 on ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fpgasim.graph import Graph
from fpgasim.ops import num_threads
from fpgasim.placement import Segment
from fpgasim.runtime.cpu import CpuRunner

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Difference:
    """How far an output is from its fp32 counterpart.

    `relative_error` is max |fp32 − got| over max |fp32|; `sqnr_db` is 10·log10(Σfp32² / Σ(fp32 − got)²).
    """

    max_error: float
    relative_error: float
    sqnr_db: float


@dataclass(frozen=True)
class Ranked:
    """One class as fp32 and the engine see it; a rank is 1 for the likeliest."""

    index: int
    label: str
    fp32_rank: int
    fp32_probability: float
    rank: int
    probability: float


def run_fp32(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs of `graph` as ONNX Runtime computes them, nothing quantized. `feeds` have the inputs' dtypes."""
    fed, made = (tuple(tensor.name for tensor in tensors) for tensors in (graph.inputs, graph.outputs))
    everything = Segment("cpu", 0, tuple(node.name for node in graph.nodes), fed, made)
    return CpuRunner(graph, everything, num_threads()).run(feeds, made)


def difference(fp32: Array, got: Array) -> Difference:
    """The figures of `got` against `fp32`, taken in float64."""
    a, b = np.asarray(fp32, np.float64), np.asarray(got, np.float64)
    error = np.abs(a - b)
    largest, peak = float(error.max(initial=0)), float(np.abs(a).max(initial=0))
    signal, noise = float(np.sum(a**2)), float(np.sum(error**2))
    sqnr = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf
    return Difference(largest, largest / peak if peak else math.inf if largest else 0.0, sqnr)


def classes(output: Array) -> int:
    """How many classes an output of one picture ranks: n for (1, n) and (1, n, 1, 1), 0 for another shape."""
    ranks = output.ndim >= 2 and output.shape[1] > 1 and output.size == output.shape[1] and output.dtype.kind == "f"
    return output.size if ranks else 0


def probabilities(output: Array) -> Array:
    """The softmax of `output` in float64, flat; `output` itself where it is a distribution already."""
    values = np.asarray(output, np.float64).reshape(-1)
    if values.min() >= 0 and abs(values.sum() - 1) < 1e-2:
        return values
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())


def rank(fp32: Array, got: Array, top: int) -> list[Ranked]:
    """The classes among the `top` likeliest of either side, in the order of fp32; equal ones by index."""
    from fpgasim import zoo

    labels = zoo.labels() if fp32.size == len(zoo.labels()) else [""] * fp32.size
    sides = [probabilities(side) for side in (fp32, got)]
    places = []
    for side in sides:
        place = np.empty(side.size, int)
        place[np.argsort(-side, kind="stable")] = np.arange(1, side.size + 1)
        places.append(place)
    chosen = np.flatnonzero((places[0] <= top) | (places[1] <= top))
    rows = [
        Ranked(int(i), labels[i], int(places[0][i]), float(sides[0][i]), int(places[1][i]), float(sides[1][i]))
        for i in chosen
    ]
    return sorted(rows, key=lambda row: row.fp32_rank)
