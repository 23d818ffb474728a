"""The engine: what a layer is, what a device is, and how many cycles the one takes on the other."""

from fpgasim.npu.device import DEVICES, Device, DeviceRow, device_rows, get_device
from fpgasim.npu.layers import Layer, Stage
from fpgasim.npu.numbers import Numbers, resolve_numbers
from fpgasim.npu.simulation import ProgramTiming, simulate
from fpgasim.npu.systolic import systolic_cycles
from fpgasim.npu.timing import LayerTiming, SegmentTiming, layer_timing, segment_timing, transfer_seconds, wire_bytes

__all__ = [
    "DEVICES",
    "Device",
    "DeviceRow",
    "Layer",
    "LayerTiming",
    "Numbers",
    "ProgramTiming",
    "SegmentTiming",
    "Stage",
    "device_rows",
    "get_device",
    "layer_timing",
    "resolve_numbers",
    "segment_timing",
    "simulate",
    "systolic_cycles",
    "transfer_seconds",
    "wire_bytes",
]
