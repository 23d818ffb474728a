"""What a matrix-vector engine takes of an FPGA, by formulas whose few coefficients are fitted to published instances.

What the formulas count is physical: bits of register files in memories of 512 words of 40 bits, with ports as wide as
the multipliers need; multipliers packed into DSPs by the width of a mantissa; the bits of adder trees. What cannot be
counted from the publication is five coefficients, fitted to the three instances of Fowers et al., ISCA 2018, Table III
(least squares of relative errors): two of the ALMs, two of the DSPs and one of the M20Ks. The shape of the formulas was
chosen with the three instances in view, so leaving one out of the fit tests the coefficients, not that choice.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from fpgasim.errors import DeviceError
from fpgasim.npu.device import Device
from fpgasim.npu.presets import DEVICES, get_device
from fpgasim.npu.timing import POINTWISE_BYTES
from fpgasim.numerics import BlockFormat

#: An M20K as the widest memory that it can be (Intel, Stratix V and later).
M20K_WORDS, M20K_BITS = 512, 40
#: Vectors of a register file whose depth nobody published; as in Intel's open NPU (github.com/intel/fpga-npu).
VRF_VECTORS = 512
#: A DSP is two multipliers of 18 bits (Stratix V, Arria 10, Stratix 10).
DSP_MULTIPLIERS, DSP_BITS = 2, 18


@dataclass(frozen=True)
class Resources:
    """What an engine takes. `memory_bits` are those of its register files alone, as they are used."""

    alms: int
    m20ks: int
    dsps: int
    memory_bits: int = 0


#: Fowers et al., ISCA 2018, Table III. The format of bw_s10 is published, that of the other two taken to be the same.
PUBLISHED: dict[str, Resources] = {
    "bw_s5": Resources(149_641, 1_192, 1_047),
    "bw_a10": Resources(216_602, 2_171, 1_518),
    "bw_s10": Resources(845_719, 8_192, 5_245),
}
FORMAT = "bw_1s5e2m"


@dataclass(frozen=True)
class Coefficients:
    """What is fitted.

    `alms` of the shell, control and multifunction units; `alms_per_bit`, the ALMs of multipliers and adder trees over
    those counted; `dsps` of everything but the matrix unit; `share` of the multipliers in DSPs; `m20ks_per_tile`, of
    the vectors, sums and queues of a tile engine.
    """

    alms: float
    alms_per_bit: float
    dsps: float
    share: float
    m20ks_per_tile: float


def estimate_resources(
    device: str | Device, format: str | BlockFormat = FORMAT, coefficients: Coefficients | None = None
) -> Resources:
    """The resources of a matrix-vector engine that computes in `format`, by default with all that was published fitted.

    Raises DeviceError for an engine of another kind and for formats whose elements are no integers.
    """
    d = get_device(device)
    c = fit() if coefficients is None else coefficients
    bits = _magnitude_bits(d, d.resolve_format(format))
    return Resources(
        alms=round(c.alms + c.alms_per_bit * _logic(d, bits)),
        m20ks=round(_register_files(d, bits) + c.m20ks_per_tile * d.tiles),
        dsps=round(c.dsps + c.share * _packed(d, bits)),
        memory_bits=d.mrf_tiles * d.native_dim**2 * (bits + 1) + sum(_depths(d)) * d.native_dim * _pointwise_bits(d),
    )


@functools.cache
def fit(names: tuple[str, ...] = tuple(PUBLISHED)) -> Coefficients:
    """The coefficients that fit the published instances called `names` best; two or more."""
    rows = [(DEVICES[name], PUBLISHED[name]) for name in names]
    bits = _magnitude_bits(rows[0][0], rows[0][0].resolve_format(FORMAT))
    alms, per_bit = _line([(_logic(d, bits), r.alms) for d, r in rows])
    dsps, share = _line([(_packed(d, bits), r.dsps) for d, r in rows])
    rests = [(d.tiles / r.m20ks, (r.m20ks - _register_files(d, bits)) / r.m20ks) for d, r in rows]
    per_tile = sum(x * y for x, y in rests) / sum(x * x for x, _ in rests)
    return Coefficients(alms, per_bit, dsps, share, per_tile)


def left_out(name: str) -> Resources:
    """The estimate of a published instance by coefficients that were fitted to the other two."""
    return estimate_resources(name, FORMAT, fit(tuple(other for other in PUBLISHED if other != name)))


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The constant and the slope with the least squares of relative errors."""
    w = [1 / y**2 for _, y in points]
    mean_x = sum(k * x for k, (x, _) in zip(w, points, strict=True)) / sum(w)
    mean_y = sum(k * y for k, (_, y) in zip(w, points, strict=True)) / sum(w)
    covered = sum(k * (x - mean_x) * (y - mean_y) for k, (x, y) in zip(w, points, strict=True))
    slope = covered / sum(k * (x - mean_x) ** 2 for k, (x, _) in zip(w, points, strict=True))
    return mean_y - slope * mean_x, slope


def _magnitude_bits(device: Device, fmt: BlockFormat) -> int:
    if device.engine != "matvec":
        raise DeviceError(
            f"device {device.name!r} is of the kind {device.engine}; resources are estimated of matvec engines only"
        )
    if fmt.is_float or fmt.is_fp32:
        raise DeviceError(f"format {fmt.name!r} has no integer elements; resources are estimated of formats that have")
    return fmt.mantissa_bits


def _multipliers(device: Device) -> int:
    return device.tiles * device.native_dim * device.lanes


def _packed(device: Device, bits: int) -> float:
    """DSPs that would hold all multipliers: products of two `bits` side by side, a guard bit between them."""
    return _multipliers(device) / (DSP_MULTIPLIERS * max(1, DSP_BITS // (2 * bits + 1)))


def _logic(device: Device, bits: int) -> float:
    """ALMs of the dot products if all were in logic: half a bit of partial product each, two bits of a sum each."""
    multiplier = (bits * bits + 1) / 2
    return device.tiles * device.native_dim * (device.lanes * multiplier + _tree_bits(device.lanes, 2 * bits + 1) / 2)


def _tree_bits(lanes: int, width: int) -> int:
    """Bits of all sums of a binary adder tree over `lanes` products of `width` bits; each level is a bit wider."""
    total = 0
    while lanes > 1:
        width += 1
        total += lanes // 2 * width
        lanes -= lanes // 2
    return total


def _register_files(device: Device, bits: int) -> int:
    """M20Ks of the matrix register file, read at N·L elements a cycle in each tile engine, and of the vector files."""
    words = -(-device.mrf_tiles // device.tiles) * device.cycles_per_mvm
    matrix = device.tiles * _blocks(device.native_dim * device.lanes * (bits + 1), words)
    width = device.native_dim * _pointwise_bits(device)
    return matrix + sum(_blocks(width, depth) for depth in _depths(device))


def _blocks(width: int, words: int) -> int:
    return -(-width // M20K_BITS) * -(-words // M20K_WORDS)


def _depths(device: Device) -> list[int]:
    """Vectors of each vector register file: one before the matrix unit, two for each multifunction unit."""
    files = ["initial_vrf", *["addsub_vrf", "multiply_vrf"] * device.mfus]
    return [VRF_VECTORS if name in device.assumed else int(getattr(device, name)) for name in files]


def _pointwise_bits(device: Device) -> int:
    return 8 * POINTWISE_BYTES[device.pointwise]
