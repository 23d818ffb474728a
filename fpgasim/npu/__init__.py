"""The engine: what a layer is, what a device is, and how many cycles the one takes on the other."""

from fpgasim.npu.device import DEVICES, Device, DeviceRow, device_rows, get_device
from fpgasim.npu.layers import Layer, Stage
from fpgasim.npu.numbers import Numbers, resolve_numbers

__all__ = [
    "DEVICES",
    "Device",
    "DeviceRow",
    "Layer",
    "Numbers",
    "Stage",
    "device_rows",
    "get_device",
    "resolve_numbers",
]
