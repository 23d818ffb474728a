"""Programs of random chains: every instruction, addressing mode and hazard, for cores without DRAM."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fpgasim.errors import ProgramError
from fpgasim.kernels import backend
from fpgasim.kernels.contract import rows_operand
from fpgasim.kernels.pointwise import round_to
from fpgasim.npu import Device, Numbers
from fpgasim.npu.chains import VectorChain, decode_chains
from fpgasim.npu.isa import (
    EndChain,
    Instruction,
    Mem,
    MvMul,
    Pointwise,
    Read,
    Register,
    SWr,
    VClip,
    VPack,
    VRd,
    VRd2,
    VRd3,
    VRelu,
    VSigm,
    VTanh,
    VUnroll,
    VvAdd,
    VvASubB,
    VvBSubA,
    VvMax,
    VvMul,
    VWr,
    Write,
    addsub_vrf,
    encode,
    float_bits,
    multiply_vrf,
)
from fpgasim.npu.programs import Block, Port, Program


class _Maker:
    def __init__(self, device: Device, seed: int) -> None:
        self.device, self.random = device, np.random.default_rng(seed)

    def below(self, high: int, low: int = 0) -> int:
        return int(self.random.integers(low, max(high, low + 1)))

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def depth(self, mem: Mem) -> int:
        d = self.device
        return d.addsub_vrf if mem.is_addsub else d.multiply_vrf if mem.is_multiply else d.initial_vrf

    def place(self, mem: Mem, vectors: int, elements: bool = False) -> dict[str, Any]:
        """An access, often near the beginning of its memory, so that chains meet."""
        scale = self.device.native_dim if elements else 1
        address = self.below(min(self.depth(mem) * scale, 12 * scale) if self.chance(0.7) else self.depth(mem) * scale)
        steps = [0, 1, vectors, vectors + 1, 2 * vectors]
        return {
            "mem": mem,
            "address": address,
            "step_x": int(self.random.choice(steps)) * (scale if self.chance(0.5) else 1),
            "step_y": int(self.random.choice([*steps, 5])),
        }

    def files(self) -> list[Mem]:
        units = range(self.device.mfus)
        return [Mem.INITIAL_VRF] * 3 + [addsub_vrf(m) for m in units] + [multiply_vrf(m) for m in units]

    def file(self) -> Mem:
        return Mem(int(self.random.choice(self.files())))

    def chain(self) -> list[Instruction]:
        """One chain with its registers, or one that the device refuses."""
        d, n = self.device, self.device.native_dim
        values = {Register.ITERATIONS_X: self.below(5, 1), Register.ITERATIONS_Y: self.below(3, 1)}
        if self.chance(0.1):
            values[Register.ITERATIONS_X] = self.below(30, 5)
        matrix = self.chance(0.55)
        columns, kind = self.below(5, 1), self.below(5)
        read: Read = VRd(Mem.NET_QUEUE) if kind == 0 else VRd(**self.place(self.file(), columns))
        if kind in (2, 3, 4):
            outer, middle, inner = self.below(3, 1), self.below(4, 1), self.below(4, 1)
            values |= {Register.WINDOW_OUTER: outer, Register.WINDOW_MIDDLE: middle, Register.WINDOW_INNER: inner}
            values |= {r: self.below(7) for r in (Register.PITCH_OUTER, Register.PITCH_MIDDLE, Register.PITCH_INNER)}
            columns = outer * middle * inner
            read = VRd3(**self.place(self.file(), columns))
            if kind == 2:
                columns = middle * inner
                read = VRd2(**self.place(self.file(), columns))
            if kind == 4:
                values[Register.WINDOW_INNER] = inner = self.below(2 * n, 1)
                values |= {Register.PITCH_MIDDLE: self.below(3 * n), Register.PITCH_OUTER: self.below(5 * n)}
                values[Register.PITCH_INNER] = self.below(3, 1)
                columns = -(-outer * middle * inner // n)
                read = VUnroll(**self.place(self.file(), 1, elements=True))
        values[Register.COLUMNS] = columns
        rows = columns
        body: list[Instruction] = [read]
        if matrix:
            rows = self.below(5, 1)
            values |= {Register.ROWS: rows, Register.PIXELS: self.below(d.tiles + 1, 1)}
            body.append(MvMul(self.below(d.mrf_tiles - rows * columns + 1)))
        body += self.pointwise(rows, values)
        body += self.writes(rows, values)
        return [*(SWr(register, value) for register, value in values.items()), *body, EndChain()]

    def pointwise(self, rows: int, values: dict[Register, int]) -> list[Pointwise]:
        found: list[Pointwise] = []
        for m in range(self.device.mfus):
            units = [kind for kind in ("add", "multiply", "activation") if self.chance(0.4)]
            self.random.shuffle(units)
            for unit in units:
                if unit == "add":
                    kind = [VvAdd, VvASubB, VvBSubA, VvMax][self.below(4)]
                    found.append(kind(**self.place(addsub_vrf(m), rows)))
                elif unit == "multiply":
                    found.append(VvMul(**self.place(multiply_vrf(m), rows)))
                else:
                    found.append([VRelu, VSigm, VTanh, VClip][self.below(4)]())
        if any(isinstance(insn, VClip) for insn in found):
            low, high = sorted(round_to(self.random.standard_normal(2) * 2, "fp16").tolist())
            values |= {Register.CLIP_LOW: float_bits(low), Register.CLIP_HIGH: float_bits(high)}
        return found

    def writes(self, rows: int, values: dict[Register, int]) -> list[Write]:
        found: list[Write] = []
        if self.chance(0.2):
            found.append(VWr(Mem.NET_QUEUE))
        if self.chance(0.2):
            values[Register.WIDTH] = self.below(rows * self.device.native_dim + 1, 1)
            found.append(VPack(**self.place(self.file(), values[Register.WIDTH], elements=True)))
        while not found or (len(found) < 5 and self.chance(0.4)):
            found.append(VWr(**self.place(self.file(), rows)))
        return found


def random_program(device: Device, numbers: Numbers, chains: int, seed: int) -> tuple[Program, dict[str, Any]]:
    """A program of about `chains` chains, every vector and tile of the device filled, and its feeds."""
    maker, n = _Maker(device, seed), device.native_dim
    rng = maker.random
    blocks: list[Block] = []
    taken = given = 0
    while sum(len(b.words) for b in blocks) < 12 * chains:
        words: list[int] = []
        for _ in range(maker.below(6, 1)):
            try:
                candidate = [encode(insn) for insn in maker.chain()]
                decode_chains([*_fresh(), *candidate], device)
            except ProgramError:
                continue
            words += _fresh() if maker.chance(0.1) or not words else []
            try:
                decode_chains([*words, *candidate], device)
            except ProgramError:
                words += _fresh()
            words += candidate
        repeat = maker.below(4, 2) if maker.chance(0.2) else 1
        if words:
            blocks.append(Block(tuple(words), repeat))
            for chain in decode_chains(words, device)[0]:
                assert isinstance(chain, VectorChain)
                taken, given = taken + repeat * chain.taken, given + repeat * chain.given
    # Rows of tiles of all sizes: sums that cancel, saturate or vanish.
    scales = 2.0 ** rng.integers(-3, 3, (device.mrf_tiles, n, 1))
    odd = rng.random(scales.shape) < 0.05
    scales[odd] = 2.0 ** rng.choice([-120, -30, -20, 8, 20, 110], odd.sum())
    matrix = (rng.standard_normal((device.mrf_tiles, n, n)) * scales / n).astype(np.float32)
    codes, exponents = backend("reference").quantize(matrix.reshape(-1, n), numbers.format, "even", 0)
    operand = rows_operand(codes, exponents, numbers.format, n)
    assert operand.exponents is not None
    tiles = dataclasses.replace(
        operand,
        mantissas=operand.mantissas.reshape(device.mrf_tiles, n, n),
        exponents=operand.exponents.reshape(device.mrf_tiles, n, -1),
    )

    def vectors(count: int) -> Any:
        values = rng.standard_normal((count, n)) * 2.0 ** rng.integers(-8, 4, (count, 1))
        values[rng.random((count, n)) < 0.1] = 0.0
        values[rng.random((count, n)) < 0.02] = -0.0
        odd = rng.random((count, n)) < 0.004
        values[odd] = rng.choice([np.nan, 65504.0, -65504.0, 2.0**-24, -(2.0**-15)], odd.sum())
        return round_to(values.astype(np.float32), "fp16")

    program = Program(
        f"random {seed}",
        device,
        numbers,
        tuple(blocks),
        vectors={mem: vectors(maker.depth(mem)) for mem in dict.fromkeys(maker.files())},
        tiles={Mem.MATRIX_RF: tiles},
        inputs=(Port("x", (taken, n)),) if taken else (),
        outputs=(Port("y", (given, n)),) if given else (),
    )
    return program, {"x": vectors(taken)} if taken else {}


def _fresh() -> list[int]:
    """Registers that a block must set, because its turns would differ without."""
    registers = (r for r in Register if r not in (Register.CLIP_LOW, Register.CLIP_HIGH))
    return [encode(SWr(register, 1)) for register in registers]


def arithmetic(device: Device, numbers: Numbers) -> Program:
    """Every pointwise instruction on random codes: numbers of all sizes, subnormal ones and NaNs among them."""
    n, rng = device.native_dim, np.random.default_rng(0)
    count = min(device.initial_vrf // 4, device.multiply_vrf, device.addsub_vrf)

    def codes() -> Any:
        values = rng.integers(0, 1 << 16, (count, n)).astype(np.uint16).view(np.float16).astype(np.float32)
        return np.where(np.isinf(values), np.float32(-0.0), values)

    operations = [kind(addsub_vrf(0), 0, 1) for kind in (VvAdd, VvASubB, VvBSubA, VvMax)]
    steps = [*operations, VvMul(multiply_vrf(0), 0, 1), VRelu(), VSigm(), VTanh(), VClip()]
    words = [SWr(Register.CLIP_LOW, float_bits(-0.5)), SWr(Register.CLIP_HIGH, float_bits(3.0))]
    words.append(SWr(Register.ITERATIONS_X, count))
    body: list[Instruction] = [*words]
    for step in steps:
        body += [VRd(Mem.INITIAL_VRF, 0, 1), step, VWr(Mem.NET_QUEUE), EndChain()]
    vectors = {mem: codes() for mem in (Mem.INITIAL_VRF, addsub_vrf(0), multiply_vrf(0))}
    # Neighbours of every code, so that sums cancel and ties happen.
    near = vectors[Mem.INITIAL_VRF].astype(np.float16).view(np.uint16) ^ np.uint16(0x8001)
    vectors[addsub_vrf(0)][::2] = np.where(np.isfinite(near.view(np.float16)), near.view(np.float16), 0)[::2]
    outputs = (Port("y", (len(steps) * count, n)),)
    return Program("arithmetic", device, numbers, (Block(tuple(map(encode, body))),), vectors, outputs=outputs)
