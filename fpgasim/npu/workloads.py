"""Dense, recurrent and convolutional work by a short text, such as `gru:1024:8`, and its cycles on any device."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from fpgasim.errors import DeviceError, InputError
from fpgasim.kernels.contract import Window
from fpgasim.npu.cells import cell_program, dense_program
from fpgasim.npu.device import Device
from fpgasim.npu.layers import Layer, Stage
from fpgasim.npu.numbers import resolve_numbers
from fpgasim.npu.overlay import Overlay, WorkTiming
from fpgasim.npu.simulation import simulate
from fpgasim.npu.steady import repeat
from fpgasim.npu.timing import SegmentTiming, segment_timing

Kind = Literal["gemv", "rnn", "gru", "lstm", "mlp", "conv"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: What each kind's numbers are, for messages and the manual.
FORMS: dict[Kind, str] = {
    "gemv": "gemv:IN:OUT",
    "rnn": "rnn:H:T",
    "gru": "gru:H:T",
    "lstm": "lstm:H:T",
    "mlp": "mlp:A-B-C...",
    "conv": "conv:H:W:C:K:KH:KW:S:P",
}
_COUNTS = {"gemv": 2, "rnn": 2, "gru": 2, "lstm": 2, "conv": 8}


@dataclass(frozen=True)
class Workload:
    """What `text` says. `sizes` are gemv's IN, OUT; H, T of a cell with inputs as wide as its state; the widths of an
    MLP's layers, input first; H, W, C (input), K (filters), KH, KW, S (stride), P (padding) of a convolution."""

    text: str
    kind: Kind
    sizes: tuple[int, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input (one sequence, one image)."""
        if self.kind == "gemv":
            return self.sizes[0] * self.sizes[1]
        if self.kind == "mlp":
            return sum(a * b for a, b in pairwise(self.sizes))
        if self.kind == "conv":
            height, width, channels, filters, kh, kw, stride, pad = self.sizes
            rows, columns = (height + 2 * pad - kh) // stride + 1, (width + 2 * pad - kw) // stride + 1
            return rows * columns * channels * filters * kh * kw
        hidden, time = self.sizes
        return {"rnn": 2, "gru": 6, "lstm": 8}[self.kind] * hidden * hidden * time


def parse_workload(text: str) -> Workload:
    """The workload `text`, one of `FORMS`. Raises InputError for anything else."""
    kind, *rest = text.split(":")
    numbers = rest[0].split("-") if kind == "mlp" and len(rest) == 1 else rest
    wanted = f"one of {', '.join(FORMS.values())} with numbers of up to 6 digits would do"
    if kind not in KINDS or not all(re.fullmatch("[0-9]{1,6}", number) for number in numbers):
        raise InputError(f"workload {text!r}: {wanted}")
    sizes = tuple(int(number) for number in numbers)
    if len(sizes) < 2 or len(sizes) != _COUNTS.get(kind, len(sizes)):
        raise InputError(f"workload {text!r} has {len(sizes)} numbers; {FORMS[kind]} would do")
    if min(sizes[:-1]) < 1 or (kind != "conv" and sizes[-1] < 1):
        raise InputError(f"workload {text!r}: every number but a padding must be 1 or more")
    workload = Workload(text, kind, sizes)
    if kind == "conv" and workload.macs < 1:
        raise InputError(f"workload {text!r}: the window does not fit into the padded input")
    return workload


def workload_timing(workload: Workload, device: Device, batch: int | None = None) -> WorkTiming:
    """What `workload` costs on `device` for `batch` inputs (the device's native batch by default).

    On an overlay by its own rules; on a matrix-vector engine dense and recurrent work is a program with its weights on
    the chip, a convolution and anything on an array a layer whose weights come from DRAM. A step of a GRU or LSTM
    takes at least the device's floor: it and the matrix work do not add. Raises DeviceError for what it does not run.
    """
    count = device.batch if batch is None else batch
    if count < 1:
        raise InputError(f"batch={batch} will not do; 1 or more would")
    if device.engine == "overlay":
        return overlay_timing(workload, device, count)
    if workload.kind == "conv" or device.engine == "systolic":
        return _layer_timing(workload, device, count)
    if workload.kind in ("gemv", "mlp"):
        timing = simulate(dense_program(workload.sizes, device, count))
        return WorkTiming(timing.cycles, timing.seconds, timing.utilization, timing.macs, timing.losses)
    hidden, time = workload.sizes
    timing = simulate(cell_program(workload.kind, hidden, time * count, device))
    floor = {"gru": device.gru_floor, "lstm": device.lstm_floor}.get(workload.kind, 0)
    cycles = max(timing.cycles, floor * time * count)
    losses = timing.losses | {"dependency": timing.losses["dependency"] + cycles - timing.cycles}
    utilization = timing.macs / (cycles * device.macs_per_cycle)
    return WorkTiming(cycles, cycles / device.clock_hz, utilization, timing.macs, losses)


def _layer_timing(workload: Workload, device: Device, batch: int) -> WorkTiming:
    """The workload as layers, weights loaded from DRAM. Raises DeviceError for recurrent work."""
    numbers = resolve_numbers(device, "bw_1s5e5m")
    if workload.kind == "conv":
        layers = [_conv_layer(workload.sizes, batch)]
    elif workload.kind in ("gemv", "mlp"):
        layers = [_matmul_layer(a, b, batch) for a, b in pairwise(workload.sizes)]
    else:
        raise DeviceError(f"device {device.name!r} runs no recurrent cells; gemv, mlp and conv would do")
    timing = segment_timing(layers, device, numbers)
    return WorkTiming(timing.cycles, timing.seconds, timing.utilization, timing.macs, segment_losses(timing))


def segment_losses(timing: SegmentTiming) -> dict[str, int]:
    """Where the cycles of a segment go, by the names that `simulation.CYCLES` has; they add up to its cycles.

    `useful` are the multiply-accumulates at the engine's peak rate, `fill` what no layer before hides, `weight load`
    the cycles in which no layer works; a systolic array names the cycles of its products itself (`array_cycles`).
    """
    busy = sum(stop - start for start, stop in timing.spans)
    mvm = sum(row.mvm_cycles for row in timing.layers)
    pointwise = sum(row.pointwise_cycles for row in timing.layers)
    products: Counter[str] = Counter()
    for row in timing.layers:
        products.update(row.array_cycles)
    if not products:
        useful = min(mvm, round(timing.utilization * timing.cycles))
        products.update({"useful": useful, "padding": mvm - useful})
    return {
        "useful": products["useful"],
        "padding": products["padding"],
        "pointwise": pointwise,
        "fill": products["fill"] + busy - mvm - pointwise,
        "drain": products["drain"],
        "weight load": products["weight load"] + timing.cycles - busy,
        "dram": products["dram"],
    }


def covers(workload: Workload, device: Device) -> str:
    """What the cycles of `workload_timing` cover, in words."""
    if device.engine == "overlay":
        return "from the start to the last write, the load of the inputs with it; weights are on the chip"
    if workload.kind == "conv" or device.engine == "systolic":
        return "from the first weight load to the last write; weights come from DRAM"
    return "from the first fetch to the last write; weights are on the chip"


def _conv_layer(sizes: tuple[int, ...], batch: int) -> Layer:
    height, width, channels, filters, kh, kw, stride, pad = sizes
    window = Window((kh, kw), (stride, stride), (pad, pad, pad, pad))
    oh, ow = window.output_size(height, width)
    return Layer(
        "conv",
        "conv",
        ("conv",),
        ("x",),
        "y",
        (batch, height, width, channels),
        (batch, oh, ow, filters),
        (Stage("bias", "y", "b"),),
        window,
        weight="w",
        packing="window" if channels < 16 and (kh, kw) != (1, 1) else "channel",
    )


def _matmul_layer(inputs: int, outputs: int, batch: int) -> Layer:
    shape = (batch, 1, 1, inputs), (batch, 1, 1, outputs)
    return Layer("dense", "matmul", ("dense",), ("x",), "y", *shape, (Stage("bias", "y", "b"),), weight="w")


def overlay_timing(workload: Workload, device: Device, batch: int | None = None) -> WorkTiming:
    """What `workload` costs on a device of the kind `overlay`, for `batch` inputs (the device's own by default).

    The chains are those of the engine's published compiler (github.com/intel/fpga-npu, compiler/npu_layers.py), group
    of inputs after group. Raises DeviceError for a convolution, which such an engine does not run.
    """
    if workload.kind == "conv":
        raise DeviceError(
            f"device {device.name!r} runs no convolutions; {', '.join(FORMS[k] for k in KINDS[:5])} would do"
        )
    engine, inputs = Overlay(device), batch or device.batch

    def group() -> None:
        if workload.kind in ("gemv", "mlp"):
            _dense(engine, workload.sizes)
        else:
            begin, step = {"rnn": (_begin_rnn, _rnn), "gru": (_begin_gru, _gru), "lstm": (_begin_lstm, _lstm)}[
                workload.kind
            ]
            hidden, time = workload.sizes
            begin(engine, hidden)
            engine.load("x", hidden)
            repeat(engine, lambda: step(engine, hidden, True), time - 1)
            step(engine, hidden, False)

    group()  # before it there are no vectors
    repeat(engine, group, -(-inputs // device.batch) - 1)
    return engine.timing(workload.macs * inputs)


def _dense(engine: Overlay, widths: tuple[int, ...]) -> None:
    engine.load("0", widths[0])
    for i, (length, outputs) in enumerate(pairwise(widths)):
        engine.product(str(i), length, outputs, [str(i + 1)])


def _begin_rnn(engine: Overlay, hidden: int) -> None:
    engine.constant("h")


def _rnn(engine: Overlay, hidden: int, goes_on: bool) -> None:
    """h = tanh(W·x + U·h), the next x loaded behind W·x."""
    engine.product("x", hidden, hidden, ["wx"])
    if goes_on:
        engine.load("x", hidden)
    engine.product("h", hidden, hidden, ["h"], ["wx"])


def _begin_gru(engine: Overlay, hidden: int) -> None:
    for name in ("h", "h_mfu"):
        engine.constant(name)
    engine.load_external("ones", hidden)


def _gru(engine: Overlay, hidden: int, goes_on: bool) -> None:
    for gate in "zrc":
        engine.product("x", hidden, hidden, [f"x{gate}"])
    if goes_on:
        engine.load("x", hidden)
    engine.product("h", hidden, hidden, ["z"], ["xz"])
    engine.pointwise("ones", hidden, ["kept"], ["z", "h_mfu"])
    engine.product("h", hidden, hidden, ["rh"], ["xr", "h_mfu"])
    engine.product("rh", hidden, hidden, ["c"], ["xc"])
    engine.pointwise("c", hidden, ["h", "h_mfu"], ["z", "kept"])


def _begin_lstm(engine: Overlay, hidden: int) -> None:
    for name in ("h", "cell"):
        engine.constant(name)


def _lstm(engine: Overlay, hidden: int, goes_on: bool) -> None:
    for gate in "fcio":
        engine.product("x", hidden, hidden, [f"x{gate}"])
    if goes_on:
        engine.load("x", hidden)
    for gate in "fio":
        engine.product("h", hidden, hidden, [gate], [f"x{gate}"])
    engine.product("h", hidden, hidden, ["new"], ["xc", "i"])
    engine.pointwise("cell", hidden, ["cell"], ["f", "new"])
    engine.pointwise("cell", hidden, ["h"], ["o"])
