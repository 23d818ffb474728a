"""`Numbers`: everything that decides the bits of a plan, apart from the network."""

from __future__ import annotations

from dataclasses import dataclass

from fpgasim.errors import InputError
from fpgasim.kernels.contract import Accumulator, Order, Pointwise, get_accumulator, get_order, get_pointwise
from fpgasim.npu.device import Device
from fpgasim.npu.presets import get_device
from fpgasim.numerics import BlockFormat


@dataclass(frozen=True)
class Numbers:
    """The block format of the matrix unit, how its terms add up, and the type between layers.

    Names are kept in canonical form. Raises UnknownNameError for an unknown one, InputError for a number in one that
    is out of range.
    """

    format: BlockFormat
    accumulator: Accumulator
    order: Order
    pointwise: Pointwise

    def __post_init__(self) -> None:
        if not isinstance(self.format, BlockFormat):
            raise InputError(f"numbers: format={self.format!r} is no BlockFormat; get_format gives one by name")
        for name, get in (("accumulator", get_accumulator), ("order", get_order), ("pointwise", get_pointwise)):
            object.__setattr__(self, name, get(getattr(self, name)))


def resolve_numbers(
    device: str | Device,
    format: str | BlockFormat,
    accumulator: str | None = None,
    order: str | None = None,
    pointwise: str | None = None,
) -> Numbers:
    """The numbers of `format` on `device`; what is not given is the device's.

    The format `fp32` is an emulation in fp32 all through, so there the rest defaults to fp32 sums in `khwc` order
    and fp32 between layers, whatever the device. Raises UnknownNameError for an unknown name, DeviceError where the
    format's block does not divide the native dimension.
    """
    d = get_device(device)
    fmt = d.resolve_format(format)
    defaults = ("fp32", "khwc", "fp32") if fmt.is_fp32 else (d.accumulator, d.order, d.pointwise)
    return Numbers(
        fmt,
        defaults[0] if accumulator is None else accumulator,
        defaults[1] if order is None else order,
        get_pointwise(defaults[2] if pointwise is None else pointwise),
    )
