"""A small engine, and programs for it written by hand."""

import dataclasses
from typing import Any

import numpy as np

from fpgasim.kernels import backend
from fpgasim.kernels.contract import Float32Array, Operand, rows_operand
from fpgasim.kernels.pointwise import round_to
from fpgasim.npu import Device, Numbers, resolve_numbers
from fpgasim.npu.isa import EndChain, Instruction, Register, SWr, encode, float_bits
from fpgasim.npu.programs import Block, Program

#: N of `DEVICE`: every format of blocks of 16 and 32 fits, some with several blocks a vector.
N = 32
DEVICE = Device(
    "small",
    native_dim=N,
    lanes=8,
    tiles=4,
    mrf_tiles=80,
    mfus=2,
    clock_hz=100_000_000,
    mvm_latency=20,
    initial_vrf=600,
    addsub_vrf=300,
    multiply_vrf=40,
)

#: Format, accumulator, order and pointwise type: what programs are compared in.
NUMBERS = {
    "brainwave": resolve_numbers(DEVICE, "bw_1s5e5m", "exact", "khwc", "fp16"),
    "msfp16-fp32-sums": resolve_numbers(DEVICE, "msfp16", "fp32", "khwc", "fp32"),
    "msfp12-tree": resolve_numbers(DEVICE, "msfp12", "fp16", "tree(3)", "fp16"),
    "msfp16-bf16": resolve_numbers(DEVICE, "msfp16", "bf16", "khwc", "bf16"),
    "msfp14-chwk": resolve_numbers(DEVICE, "msfp14", "fp16", "chwk", "bf16"),
    "fixed": resolve_numbers(DEVICE, "msfp13", "fixed(16,6,saturate)", "khwc", "fp16"),
    "mxfp8": resolve_numbers(DEVICE, "mxfp8_e4m3", "fp32", "tree(2)", "fp32"),
    "fp32": resolve_numbers(DEVICE, "fp32"),
}


def sets(**registers: float) -> list[SWr]:
    """`s_wr` for each register, by its name; the bounds of a clip as numbers."""
    return [
        SWr(Register[name.upper()], float_bits(value) if name.startswith("clip") else int(value))
        for name, value in registers.items()
    ]


def chain(*instructions: Instruction, **registers: float) -> list[Instruction]:
    """The instructions with `end_chain` behind them and the registers, all others at 1, set before."""
    fresh = {r.name.lower(): 1.0 for r in Register if r not in (Register.CLIP_LOW, Register.CLIP_HIGH)}
    return [*sets(**{**fresh, **registers}), *instructions, EndChain()]


def block(*instructions: Instruction, repeat: int = 1) -> Block:
    return Block(tuple(map(encode, instructions)), repeat)


def program(numbers: Numbers, *instructions: Instruction, **others: Any) -> Program:
    """A program of one block on `DEVICE`."""
    return Program("by hand", DEVICE, numbers, (block(*instructions),), **others)


def blocked(values: Float32Array, numbers: Numbers) -> Operand:
    """`values` (…, whole vectors) in blocks of the format."""
    rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]))
    codes, exponents = backend("reference").quantize(rows, numbers.format, "even", 0)
    shape = values.shape[:-1]
    return rows_operand(codes.reshape(*shape, -1), exponents.reshape(*shape, -1), numbers.format, values.shape[-1])


def numbers_like(shape: tuple[int, ...], numbers: Numbers, seed: int = 0, scale: float = 1.0) -> Float32Array:
    """Random values of the pointwise type."""
    return round_to(np.random.default_rng(seed).standard_normal(shape) * scale, numbers.pointwise)


def on(device: Device, found: Program) -> Program:
    return dataclasses.replace(found, device=device)
