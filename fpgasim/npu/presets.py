"""The devices with names, and where each of their values comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from fpgasim.errors import UnknownNameError
from fpgasim.npu.device import Device, Hazard, described
from fpgasim.npu.systolic import DATAFLOWS, Dataflow

_NPU = "github.com/intel/fpga-npu"
_DEFINES = f"{_NPU}, simulator/inc/defines.h"


def _device(name: str, sources: Mapping[str, str], **fields: Any) -> Device:
    """A preset: what is in `sources` is published or fitted, every other field of its engine is assumed."""
    known = {f.name for f in described(fields.get("engine", "matvec"))}
    _SOURCES[name] = dict(sources)
    return Device(name, assumed=frozenset(known - sources.keys()), **fields)


_SOURCES: dict[str, dict[str, str]] = {}
_SHAPE = ("native_dim", "lanes", "tiles", "clock_hz")


def _mvm_stages(lanes: int, tiles: int) -> int:
    """Stages of the matrix unit in the cycle model of Intel's open NPU: register read 1, way to the engines 8, multiply
    2, adder tree 1 a level, accumulate 4, reduction log2 T + 5, register write 1."""
    return 21 + (lanes - 1).bit_length() + (tiles - 1).bit_length()


def _brainwave(
    name: str,
    native_dim: int,
    lanes: int,
    tiles: int,
    mrf_tiles: int,
    mhz: int,
    hazard: Hazard = "in_order",
    **fitted: int,
) -> Device:
    """A preset of Fowers et al., ISCA 2018, Table III; what the table leaves out is in docs/devices.md."""
    return _device(
        name,
        dict.fromkeys((*_SHAPE, "mrf_tiles", "mfus"), "ISCA 2018, Table III")
        | dict.fromkeys(("pointwise", "engine"), "ISCA 2018, IV")
        | dict.fromkeys(fitted, "fitted to ISCA 2018, Table V"),
        native_dim=native_dim,
        lanes=lanes,
        tiles=tiles,
        mrf_tiles=mrf_tiles,
        mfus=2,
        clock_hz=mhz * 1_000_000,
        mvm_latency=_mvm_stages(lanes, tiles),
        hazard=hazard,
        **fitted,
    )


def _convolutional() -> Device:
    """The instance that ran ResNet-50 (ISCA 2018, Table VI; IEEE Micro 39(3), 2019), as far as its firmware tells.

    The BrainSlice provider in github.com/microsoft/onnxruntime asks for N = 128 and for register files of at least
    these sizes. How many tile engines and lanes it had was not published: those of bw_a10 are assumed.
    """
    at_least = ("mrf_tiles", "mfus", "initial_vrf", "addsub_vrf", "multiply_vrf")
    return _device(
        "bw_cnn_a10",
        {"native_dim": "BrainSlice firmware"}
        | dict.fromkeys(at_least, "BrainSlice firmware, at least")
        | dict.fromkeys(("pointwise", "engine"), "ISCA 2018, IV"),
        native_dim=128,
        lanes=16,
        tiles=8,
        mrf_tiles=128,
        mfus=2,
        clock_hz=300_000_000,
        mvm_latency=28,
        initial_vrf=12_100,
        addsub_vrf=12_100,
        multiply_vrf=16,
    )


def _overlay(name: str, shape: str, native_dim: int, lanes: int, tiles: int, mhz: int, **fields: Any) -> Device:
    """A preset of Intel's open NPU, whose shape is published in `shape`.

    The stages behind the matrix unit are counted in its register transfer code; `mvm_latency` and `start_cycles` are
    fitted to ten of its published cycle counts (docs/microarchitecture.md, section 6).
    """
    code = ("mfu_latency", "external_latency", "loader_latency", "pass_rows")
    fitted = "fitted to 10 rows of its RTL" if name == "intel_npu_7t40d40l" else "as fitted to intel_npu_7t40d40l"
    latencies = dict.fromkeys(code, _NPU) | dict.fromkeys(("mvm_latency", "start_cycles"), fitted)
    stages = {"mvm_latency": 73, "mfu_latency": 21, "start_cycles": 29}
    return _of_overlay(name, shape, latencies, native_dim, lanes, tiles, mhz, **stages, **fields)


def _overlay_of_the_cycle_model(
    name: str, shape: str, native_dim: int, lanes: int, tiles: int, mhz: int, **fields: Any
) -> Device:
    """Such an engine, known only by its authors' cycle model, with that model's latencies: a register read, three
    function units in a row, a write back. Nothing is fitted."""
    stages = {"mvm_latency": _mvm_stages(lanes, tiles), "mfu_latency": 9, "external_latency": 1, "loader_latency": 5}
    latencies = dict.fromkeys((*stages, "pass_rows"), _DEFINES)
    return _of_overlay(name, shape, latencies, native_dim, lanes, tiles, mhz, **stages, **fields)


def _of_overlay(
    name: str,
    shape: str,
    latencies: dict[str, str],
    native_dim: int,
    lanes: int,
    tiles: int,
    mhz: int,
    **fields: Any,
) -> Device:
    given = [field for field in fields if field not in latencies]
    return _device(
        name,
        dict.fromkeys((*_SHAPE, *given), shape) | latencies | dict.fromkeys(("mfus", "engine", "hazard"), _NPU),
        native_dim=native_dim,
        lanes=lanes,
        tiles=tiles,
        mrf_tiles=1024,
        mfus=2,
        clock_hz=mhz * 1_000_000,
        hazard="data",
        engine="overlay",
        **fields,
    )


def _systolic(name: str, rows: int, cols: int, dataflow: Dataflow) -> Device:
    """An array by its key. Only what the key says is given: the clock, the memories and the latencies are assumed."""
    return _device(
        name,
        dict.fromkeys(("native_dim", "engine", "array_rows", "dataflow"), "given"),
        native_dim=cols,
        lanes=1,
        tiles=1,
        mrf_tiles=1,
        mfus=2,
        clock_hz=300_000_000,
        mvm_latency=0,
        engine="systolic",
        array_rows=rows,
        dataflow=dataflow,
    )


#: Steps of GRU 1024 and LSTM 256; the matrix work of these two is a fraction of them.
_FLOORS = {"gru_floor": 632, "lstm_floor": 708}
#: Every device with a name but the arrays, which are `systolic_RxC_(os|ws|is)`. A new one is one line here.
DEVICES: dict[str, Device] = {
    d.name: d
    for d in (
        _brainwave("bw_s5", native_dim=100, lanes=10, tiles=6, mrf_tiles=306, mhz=200),
        _brainwave("bw_a10", native_dim=128, lanes=16, tiles=8, mrf_tiles=512, mhz=300),
        _brainwave("bw_s10", native_dim=400, lanes=40, tiles=6, mrf_tiles=306, mhz=250, hazard="data", **_FLOORS),
        _convolutional(),
        _overlay("intel_npu_7t40d40l", "FPT 2020, Table I", 40, 40, 7, 300, cores=2, interleave=3, pass_rows=12),
        _overlay("intel_4t120d40l", "FCCM 2019, Table III", 120, 40, 4, 275),
        _overlay_of_the_cycle_model("bw_6t400d40l", "FCCM 2019, Table I", 400, 40, 6, 250),
    )
}
_SYSTOLIC = re.compile(rf"systolic_([0-9]{{1,4}})x([0-9]{{1,4}})_({'|'.join(DATAFLOWS)})")


def get_device(device: str | Device) -> Device:
    """The device called `device`, or `device` itself when it already is one.

    `systolic_32x16_ws` is an array of 32 rows and 16 columns; a name that ends in .yaml or .yml is a file (see
    `load_device`). Raises UnknownNameError for a name that is not among `DEVICES` and nothing of the kind, DeviceError
    for an array without cells and for a file that describes no device.
    """
    if isinstance(device, Device):
        return device
    if isinstance(device, str) and device.endswith((".yaml", ".yml")):
        from fpgasim.npu.device_files import load_device

        return load_device(device)
    array = _SYSTOLIC.fullmatch(device) if isinstance(device, str) else None
    if array:
        return _systolic(array[0], int(array[1]), int(array[2]), cast(Dataflow, array[3]))
    if not isinstance(device, str) or device not in DEVICES:
        raise UnknownNameError("device", device, (*DEVICES, "systolic_RxC_(os|ws|is)", "FILE.yaml"))
    return DEVICES[device]


class DeviceRow(NamedTuple):
    """One field of a device for printing: `source` is where it was published, how it was fitted, "assumed", or "given"
    by the user."""

    field: str
    value: int | float | str
    unit: str
    source: str
    meaning: str


def device_rows(device: str | Device) -> list[DeviceRow]:
    """Every field of `device` in order, with its unit and whether it is published, assumed or given."""
    d = get_device(device)
    rows = []
    for f in described(d.engine):
        value, preset = getattr(d, f.name), DEVICES.get(d.name)
        published = preset is not None and getattr(preset, f.name) == value
        source = "assumed" if f.name in d.assumed else _SOURCES[d.name].get(f.name, "given") if published else "given"
        rows.append(DeviceRow(f.name, value, f.metadata["unit"], source, f.metadata["meaning"]))
    return rows
