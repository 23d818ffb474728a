"""The engine: devices and layers, instruction programs, what these compute, and how many cycles they take."""

from fpgasim.npu.assembly import assemble, disassemble
from fpgasim.npu.device import Device
from fpgasim.npu.device_files import load_device
from fpgasim.npu.interpreter import State, execute, initial_state
from fpgasim.npu.layers import Layer, Stage
from fpgasim.npu.numbers import Numbers, resolve_numbers
from fpgasim.npu.presets import DEVICES, DeviceRow, device_rows, get_device
from fpgasim.npu.programs import Block, Port, Program
from fpgasim.npu.simulation import ProgramTiming, simulate
from fpgasim.npu.systolic import systolic_cycles
from fpgasim.npu.timing import LayerTiming, SegmentTiming, layer_timing, segment_timing, transfer_seconds, wire_bytes

__all__ = [
    "DEVICES",
    "Block",
    "Device",
    "DeviceRow",
    "Layer",
    "LayerTiming",
    "Numbers",
    "Port",
    "Program",
    "ProgramTiming",
    "SegmentTiming",
    "Stage",
    "State",
    "assemble",
    "device_rows",
    "disassemble",
    "execute",
    "get_device",
    "initial_state",
    "layer_timing",
    "load_device",
    "resolve_numbers",
    "segment_timing",
    "simulate",
    "systolic_cycles",
    "transfer_seconds",
    "wire_bytes",
]
