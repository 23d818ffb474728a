"""Every published figure beside what the models say."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fpgasim.npu import Device, Layer, get_device, resolve_numbers, segment_timing, systolic_cycles
from fpgasim.npu.prefetch import prefetched_cycles
from fpgasim.npu.references import REFERENCES, Reference, Unit
from fpgasim.npu.resources import left_out
from fpgasim.npu.systolic import DATAFLOWS
from fpgasim.npu.workloads import parse_workload, workload_timing

#: Peak rates of the memory between which the engine for convolutions must have had its own: a DDR4-2133 channel to two.
BANDWIDTHS = (34e9, 17e9)
ARRAYS = ((8, 8), (16, 16), (32, 32), (128, 128), (64, 16))


@dataclass(frozen=True)
class Result:
    """A reference row and what came out: one figure, or the least and the greatest of a range.

    `error` is relative to the expected figure: of a range, that of its nearer end, 0 inside; absolute where 0 is
    expected. `holds` says whether it is within the row's bound; it is None for a row without one.
    """

    reference: Reference
    low: float
    high: float

    @property
    def error(self) -> float:
        expected = self.reference.expected
        if self.reference.unit == "ms, compute alone":
            return max(0.0, self.low / expected - 1)
        nearest = min(max(expected, self.low), self.high)
        return nearest / expected - 1 if expected else nearest

    @property
    def holds(self) -> bool | None:
        bound = self.reference.bound
        return None if bound is None else abs(self.error) <= bound


def validate(references: Sequence[Reference] = REFERENCES) -> list[Result]:
    """What the models say for every row of `references`."""
    return [_result(row) for row in references]


def _result(row: Reference) -> Result:
    got = MEASURES[row.unit](row)
    low, high = got if isinstance(got, tuple) else (got, got)
    return Result(row, low, high)


def result_json(result: Result) -> dict[str, Any]:
    """A row as JSON values."""
    got = result.low if result.low == result.high else [result.low, result.high]
    figures = {"got": got, "error": result.error, "holds": result.holds}
    return dataclasses.asdict(result.reference) | figures


def _cycles(row: Reference) -> float:
    device = get_device(row.device)
    if row.workload.startswith("conv"):
        device = dataclasses.replace(device, dram_bytes_per_s=1e18)  # weights there from the start, as published
    return workload_timing(parse_workload(row.workload), device).cycles * row.scale


def _milliseconds(row: Reference) -> float:
    return _cycles(row) / get_device(row.device).clock_hz * 1e3


def _cycles_a_step(row: Reference) -> float:
    return _cycles(row) / parse_workload(row.workload).sizes[1]


def _tops(row: Reference) -> float:
    device, workload = get_device(row.device), parse_workload(row.workload)
    return 2 * workload.macs * device.batch / (_cycles(row) / device.clock_hz) / 1e12


def _sdm_cycles(row: Reference) -> float:
    """Structurally constrained critical path: the work on all multipliers behind the unconstrained path."""
    return round(parse_workload(row.workload).macs / get_device(row.device).macs_per_cycle) + row.added


def _peak(row: Reference) -> float:
    return get_device(row.device).peak_flops / 1e12


def _tiles(row: Reference) -> float:
    """Native tiles of all convolutions, and one with ones on its diagonal that the firmware pools with."""
    device = get_device(row.device)
    timing = segment_timing(resnet50_features(device), device, resolve_numbers(device, "bw_1s5e5m"))
    return sum(layer.native_tiles for layer in timing.layers) + 1


def _over_bandwidths(row: Reference) -> tuple[float, float]:
    device = get_device(row.device)
    numbers = resolve_numbers(device, "bw_1s5e5m")
    low, high = (
        prefetched_cycles(resnet50_features(device), dataclasses.replace(device, dram_bytes_per_s=rate), numbers)
        for rate in BANDWIDTHS
    )
    return low / device.clock_hz * 1e3, high / device.clock_hz * 1e3


def _compute_bound(row: Reference) -> float:
    device = get_device(row.device)
    timing = segment_timing(resnet50_features(device), device, resolve_numbers(device, "bw_1s5e5m"))
    return timing.compute_cycles / device.clock_hz * 1e3


@functools.cache
def resnet50_features(device: Device) -> tuple[Layer, ...]:
    """The layers of ResNet-50 up to its last convolution, the network as the onnx package has it."""
    import fpgasim
    from fpgasim.compiler import segment_layers

    graph = fpgasim.load(light_model("resnet50"))
    names = [node.name for node in graph.nodes]
    last = max(i for i, node in enumerate(graph.nodes) if node.op_type == "Relu")
    return segment_layers(graph, names[: last + 1], device, resolve_numbers(device, "bw_1s5e5m"))


def _cycles_off(row: Reference) -> float:
    """Cycles by which `systolic_cycles` differs from serial folds counted from their first cell to their last."""
    return sum(
        abs(systolic_cycles(m, n, k, rows, cols, dataflow) - _serial_folds(m, n, k, rows, cols, dataflow))
        for m, n, k in _products(row.workload)
        for rows, cols in ARRAYS
        for dataflow in DATAFLOWS
    )


def _serial_folds(m: int, n: int, k: int, rows: int, cols: int, dataflow: str) -> int:
    """Cycles of an m×k by k×n product, written from what a cell does and not from the closed form.

    The cell in the last row and column begins rows − 1 + cols − 1 cycles after the first, works for as many cycles as
    elements stream by, and the operand that lies still has come in before, a row in a cycle.
    """
    streaming, along_rows, along_cols = {"os": (k, m, n), "ws": (m, k, n), "is": (n, k, m)}[dataflow]
    last_cell_begins = (rows - 1) + (cols - 1)
    standing = 0 if dataflow == "os" else rows
    folds = len(range(0, along_rows, rows)) * len(range(0, along_cols, cols))
    return folds * (standing + last_cell_begins + streaming)


def _products(network: str) -> Iterator[tuple[int, int, int]]:
    """Pixels, filters and reductions of every convolution and dense layer, by the shapes that onnx infers."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(light_model(network)))
    graph = model.graph
    known = itertools.chain(graph.value_info, graph.input, graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in known}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            filters, channels, *kernel = shapes[node.input[1]]
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            pixels = math.prod(shapes[node.output[0]][2:])
            yield from [(pixels, filters // groups, channels * math.prod(kernel))] * groups
        elif node.op_type == "Gemm":
            outputs, inputs = shapes[node.input[1]]  # the light models transpose it
            yield shapes[node.output[0]][0], outputs, inputs


def _resources(row: Reference) -> float:
    return float(getattr(left_out(row.device), row.unit.lower()))


def light_model(network: str) -> Path:
    """The file of `network` without its weights, as the onnx package has it."""
    import onnx

    return Path(onnx.__file__).parent / f"backend/test/data/light/light_{network}.onnx"


class Steps(NamedTuple):
    """How far the published steps of cells on one device are from something that would stand for them."""

    by: str
    mean_error: float
    largest_error: float


def steps_of_cells(results: Sequence[Result], device: str = "bw_s10") -> tuple[int, list[Steps]]:
    """How many rows with a bound `device` has whose cycles a step of a cell are published, and their errors by the
    model, by the one number of cycles with the least mean error, and by one such number for each kind of cell."""
    steps: dict[str, list[float]] = {}
    errors: list[float] = []
    for result in results:
        row = result.reference
        if row.device != device or row.bound is None or row.unit not in ("ms", "cycles a step"):
            continue
        workload = parse_workload(row.workload)
        cycles = row.expected * (get_device(device).clock_hz / 1e3 / workload.sizes[1] if row.unit == "ms" else 1)
        steps.setdefault(workload.kind, []).append(cycles)
        errors.append(abs(result.error))
    if not errors:
        return 0, []
    constant = _best_constant([cycles for kind in steps.values() for cycles in kind])
    each = {kind: _best_constant(cycles) for kind, cycles in steps.items()}
    by_one = [abs(constant / cycles - 1) for kind in steps.values() for cycles in kind]
    by_kind = [abs(each[kind] / cycles - 1) for kind in steps for cycles in steps[kind]]
    return len(errors), [
        Steps("the model", _mean(errors), max(errors)),
        Steps(f"the best constant, {constant:.0f}", _mean(by_one), max(by_one)),
        Steps(
            "the best one for each kind of cell, " + " and ".join(f"{c:.0f}" for c in each.values()),
            _mean(by_kind),
            max(by_kind),
        ),
    ]


def _best_constant(values: Sequence[float]) -> float:
    """The constant with the least mean relative error, which is always one of `values` (a weighted median)."""
    return min(sorted(values), key=lambda constant: _mean([abs(constant / value - 1) for value in values]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


MEASURES: dict[Unit, Callable[[Reference], float | tuple[float, float]]] = {
    "cycles": _cycles,
    "cycles a step": _cycles_a_step,
    "SDM cycles": _sdm_cycles,
    "ms": _milliseconds,
    "ms, 34-17 GB/s": _over_bandwidths,
    "ms, compute alone": _compute_bound,
    "TOPS": _tops,
    "peak TFLOPS": _peak,
    "tiles": _tiles,
    "cycles off": _cycles_off,
    "ALMs": _resources,
    "M20Ks": _resources,
    "DSPs": _resources,
}
