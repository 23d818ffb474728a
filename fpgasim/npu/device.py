"""`Device`: what an engine is made of, as a value. The presets are in `presets.py`.

A matrix-vector engine (Fowers et al., ISCA 2018, IV–V) has T tile engines of N dot-product engines with L lanes each:
one native N×N matrix times one vector takes N/L cycles of one tile engine. Behind it, MFUs with three function units
each (activation, multiply, add) work on the vectors that leave it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fpgasim.errors import DeviceError, UnknownNameError
from fpgasim.kernels.contract import Accumulator, Order, Pointwise, get_accumulator, get_order, get_pointwise
from fpgasim.npu.isa import MAX_MFUS
from fpgasim.npu.systolic import DATAFLOWS, Dataflow
from fpgasim.numerics import WHOLE, BlockFormat, get_format

Engine = Literal["matvec", "systolic", "overlay"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
Hazard = Literal["in_order", "data"]
HAZARDS: tuple[Hazard, ...] = get_args(Hazard)


def _is(unit: str, meaning: str, *engines: Engine) -> dict[str, Any]:
    """What a field is; `engines` are those that have it, none for all."""
    return {"unit": unit, "meaning": meaning, "engines": engines or ENGINES}


@dataclass(frozen=True)
class Device:
    """One engine, its memory, its link to the host and the numbers it computes in.

    `assumed` names the fields whose values nobody published; wherever they are printed, that is said.
    Raises DeviceError naming a field that is out of range, UnknownNameError for an unknown name in one, InputError for
    a number in such a name that is out of range.
    """

    name: str
    native_dim: int = field(metadata=_is("elements", "N, side of a native matrix tile and length of a vector"))
    lanes: int = field(
        metadata=_is(
            "per dot-product engine", "L, multipliers of one dot-product engine; divides N", "matvec", "overlay"
        )
    )
    tiles: int = field(metadata=_is("tile engines", "T, tile engines that work at once", "matvec", "overlay"))
    mrf_tiles: int = field(
        metadata=_is("native tiles", "matrix register file, all tile engines together", "matvec", "overlay")
    )
    mfus: int = field(metadata=_is("units", "multifunction units behind the matrix unit"))
    clock_hz: int = field(metadata=_is("Hz", "clock of the engine"))
    mvm_latency: int = field(
        metadata=_is("cycles", "from the read of a vector to its product leaving the matrix unit", "matvec", "overlay")
    )
    mfu_latency: int = field(default=9, metadata=_is("cycles", "through one multifunction unit"))
    dispatch_cycles: int = field(
        default=14, metadata=_is("cycles", "from a layer's first instruction to its first vector")
    )
    instruction_cycles: int = field(
        default=4, metadata=_is("cycles", "between the fetches of two instruction words", "matvec")
    )
    queue_chains: int = field(default=8, metadata=_is("chains", "decoded ones that wait to be issued", "matvec"))
    in_flight: int = field(default=16, metadata=_is("chains", "issued ones that have not ended", "matvec"))
    hazard: Hazard = field(
        default="in_order",
        metadata=_is("", "in_order: a layer waits for all older ones; data: only for those it reads"),
    )
    initial_vrf: int = field(
        default=12_100, metadata=_is("vectors", "register file that feeds the matrix unit", "matvec")
    )
    addsub_vrf: int = field(default=12_100, metadata=_is("vectors", "register file of the add units", "matvec"))
    multiply_vrf: int = field(default=512, metadata=_is("vectors", "register file of the multiply units", "matvec"))
    dram_bytes_per_s: float = field(
        default=19.2e9, metadata=_is("bytes/s", "peak of the memory the weights stream from")
    )
    dram_efficiency: float = field(default=0.885, metadata=_is("", "share of that peak that a long stream reaches"))
    dram_burst_bytes: int = field(default=64, metadata=_is("bytes", "a load is whole bursts"))
    pcie_bytes_per_s: float = field(default=6.5e9, metadata=_is("bytes/s", "rate of a transfer to or from the host"))
    pcie_latency_s: float = field(default=5e-6, metadata=_is("s", "start of a transfer"))
    launch_s: float = field(default=20e-6, metadata=_is("s", "start of a segment"))
    cpu_call_s: float = field(default=1e-4, metadata=_is("s", "start of a CPU piece"))
    engine: Engine = field(
        default="matvec",
        metadata=_is("", "matvec: tile engines; systolic: an array of cells; overlay: weights on chip"),
    )
    array_rows: int = field(default=1, metadata=_is("cells", "R, rows of the array; it has N columns", "systolic"))
    dataflow: Dataflow = field(default="ws", metadata=_is("", "what lies still: os, ws or is", "systolic"))
    input_sram_bytes: int = field(default=1 << 20, metadata=_is("bytes", "memory of inputs, both halves", "systolic"))
    weight_sram_bytes: int = field(default=1 << 20, metadata=_is("bytes", "memory of weights, both halves", "systolic"))
    output_sram_bytes: int = field(default=1 << 20, metadata=_is("bytes", "memory of sums, both halves", "systolic"))
    gru_floor: int = field(default=0, metadata=_is("cycles", "that a step of a GRU takes at least", "matvec"))
    lstm_floor: int = field(default=0, metadata=_is("cycles", "that a step of an LSTM takes at least", "matvec"))
    cores: int = field(default=1, metadata=_is("cores", "in lockstep, each with its own vectors", "overlay"))
    interleave: int = field(default=1, metadata=_is("vectors", "that share each weight read", "overlay"))
    pass_rows: int = field(
        default=1, metadata=_is("rows", "of output vectors that a pass over the inputs makes", "overlay")
    )
    external_latency: int = field(default=11, metadata=_is("cycles", "from the external file to the MFUs", "overlay"))
    loader_latency: int = field(default=5, metadata=_is("cycles", "from the last unit to a register file", "overlay"))
    start_cycles: int = field(default=0, metadata=_is("cycles", "from the start to the first load", "overlay"))
    accumulator: Accumulator = field(default="exact", metadata=_is("", "how the terms of a dot product add up"))
    order: Order = field(default="khwc", metadata=_is("", "order in which they do"))
    pointwise: Pointwise = field(default="fp16", metadata=_is("", "type of the values between layers"))
    assumed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise DeviceError(f"device name {self.name!r} must be a text")
        for name in ("native_dim", "lanes", "tiles", "mrf_tiles", "mfus", "clock_hz", "dram_burst_bytes"):
            self._whole(name, 1)
        for name in (
            "instruction_cycles",
            "queue_chains",
            "in_flight",
            "array_rows",
            "cores",
            "interleave",
            "pass_rows",
        ):
            self._whole(name, 1)
        for name in (
            "mvm_latency",
            "mfu_latency",
            "dispatch_cycles",
            "external_latency",
            "loader_latency",
            "start_cycles",
            "gru_floor",
            "lstm_floor",
        ):
            self._whole(name, 0)
        for name in ("initial_vrf", "addsub_vrf", "multiply_vrf"):
            self._whole(name, 0)
        if self.native_dim > 1 << 16:
            self._refuse("native_dim", "at most 65536")
        if self.native_dim % self.lanes:
            self._refuse("lanes", f"a divisor of native_dim={self.native_dim}")
        for name in ("dram_bytes_per_s", "pcie_bytes_per_s"):
            self._number(name, "a finite rate above 0", lambda v: v > 0)
        for name in ("pcie_latency_s", "launch_s", "cpu_call_s"):
            self._number(name, "a finite time, 0 or more", lambda v: v >= 0)
        self._number("dram_efficiency", "above 0 and at most 1", lambda v: 0 < v <= 1)
        for name in ("input_sram_bytes", "weight_sram_bytes", "output_sram_bytes"):
            self._whole(name, 1)
        for kind, value, known in (
            ("engine", self.engine, ENGINES),
            ("dataflow", self.dataflow, DATAFLOWS),
            ("hazard rule", self.hazard, HAZARDS),
        ):
            if value not in known:
                raise UnknownNameError(kind, value, known)
        if self.engine == "matvec" and self.mfus > MAX_MFUS:
            self._refuse("mfus", f"from 1 to {MAX_MFUS}, for which the instructions have register files")
        get_accumulator(self.accumulator), get_order(self.order), get_pointwise(self.pointwise)
        unknown = self.assumed - {f.name for f in described()}
        if unknown:
            self._refuse("assumed", f"names of fields, unlike {min(unknown)!r}")

    def _refuse(self, name: str, wanted: str) -> None:
        raise DeviceError(f"device {self.name!r}: {name}={getattr(self, name)!r} must be {wanted}")

    def _whole(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            self._refuse(name, f"a whole number from {low} up")

    def _number(self, name: str, wanted: str, fits: Any) -> None:
        value = getattr(self, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or not fits(value):
            self._refuse(name, wanted)

    @property
    def cycles_per_mvm(self) -> int:
        """Cycles of a native matrix times a vector on one tile engine: N/L; of an array for a row of results: 1."""
        return 1 if self.engine == "systolic" else self.native_dim // self.lanes

    @property
    def macs_per_cycle(self) -> int:
        """Multiply-accumulates in a cycle: T·N·L of the tile engines (for each vector at once), R·N of an array."""
        if self.engine == "systolic":
            return self.native_dim * self.array_rows
        return self.native_dim * self.tiles * self.lanes * self.interleave * self.cores

    @property
    def weights_on_chip(self) -> int:
        """Elements of matrices that the chip holds: whole tiles, of an array what its weight memory holds in bytes."""
        if self.engine == "systolic":
            return self.weight_sram_bytes
        return (
            self.mrf_tiles * self.native_dim * (self.native_dim if self.engine == "matvec" else self.tiles * self.lanes)
        )

    @property
    def batch(self) -> int:
        """Vectors that the engine works on at once: its native batch."""
        return self.interleave * self.cores

    @property
    def peak_flops(self) -> int:
        """Operations in a second, a multiply-accumulate counting two."""
        return 2 * self.macs_per_cycle * self.clock_hz

    def resolve_format(self, format: str | BlockFormat) -> BlockFormat:
        """`format` as this device computes in it: formats that follow the device get blocks of N.

        Raises UnknownNameError for an unknown key, DeviceError where N is no multiple of the block; fp32 always fits.
        """
        fmt = get_format(format)
        if fmt.follows_device:
            fmt = fmt.with_block(self.native_dim)
        if fmt.block == WHOLE:
            raise DeviceError(
                f"format {fmt.name!r} has one block for a whole vector, device {self.name!r} vectors of "
                f"{self.native_dim}; with_block({self.native_dim}) would do"
            )
        if self.native_dim % fmt.block:
            raise DeviceError(
                f"format {fmt.name!r} has blocks of {fmt.block}, which do not divide the native dimension "
                f"{self.native_dim} of device {self.name!r}; a block that divides it, bw_1s5e5m or fp32 would do"
            )
        return fmt


def described(engine: Engine | None = None) -> list[dataclasses.Field[Any]]:
    """The fields with a unit (all but `name` and `assumed`), or those of them that `engine` has."""
    fields = [f for f in dataclasses.fields(Device) if f.metadata]
    return [f for f in fields if engine is None or engine in f.metadata["engines"]]
