"""Runs programs on the RTL core."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fpgasim.kernels import pointwise
from fpgasim.kernels.contract import Float32Array
from fpgasim.npu.interpreter import initial_state
from fpgasim.npu.isa import Mem
from fpgasim.npu.programs import Program

from .verilating import build

SOURCES = ("npu.sv", "half.sv", "fetch.sv", "issue.sv", "reader.sv", "vrf.sv", "tile_engine.sv", "mvm.sv", "mfu.sv",
           "core.sv", "bench.cpp")  # fmt: skip
#: Memories of the bench that no instruction names.
WORDS, BLOCKS, EXPONENTS, GIVEN = 16, 17, 18, 19
#: What the core has of them: vectors in the network queue (either way), words, blocks.
DEPTHS = {"NET_QUEUE": 4096, "WORDS": 1 << 14, "BLOCKS": 256}
#: A program that takes longer hangs.
LIMIT = 1_000_000


@dataclass(frozen=True)
class ChainRun:
    """Cycles: when the chain's end_chain was decoded, when it was issued, when its last vector can be read."""

    decoded: int
    issued: int
    ended: int


@dataclass(frozen=True, eq=False)
class CoreRun:
    """What the core did. `memories` are whole vector register files, `given` what is in the network queue out."""

    cycles: int
    chains: tuple[ChainRun, ...]
    memories: dict[Mem, Float32Array]
    given: Float32Array


def configuration(program: Program) -> dict[str, int]:
    """The core's parameters for the device and numbers of `program`."""
    d, numbers = program.device, program.numbers
    fmt = numbers.format
    assert (numbers.accumulator, numbers.pointwise) == ("exact", "fp16"), "this core has no other sums and values"
    assert fmt.fraction_bits == fmt.mantissa_bits - 1, "this core has integer mantissas"
    return {
        "N": d.native_dim, "L": d.lanes, "T": d.tiles, "MFUS": d.mfus,
        "MVM_LATENCY": d.mvm_latency, "MFU_LATENCY": d.mfu_latency, "DISPATCH_CYCLES": d.dispatch_cycles,
        "INSTRUCTION_CYCLES": d.instruction_cycles, "QUEUE_CHAINS": d.queue_chains, "IN_FLIGHT": d.in_flight,
        "IN_ORDER": int(d.hazard == "in_order"),
        "INITIAL_VRF": d.initial_vrf, "ADDSUB_VRF": d.addsub_vrf, "MULTIPLY_VRF": d.multiply_vrf,
        "MRF_TILES": d.mrf_tiles,
        "MANTISSA": fmt.mantissa_bits, "EXPONENT": fmt.exponent_bits, "BLOCK": fmt.block,
        **DEPTHS,
    }  # fmt: skip


def bench(program: Program) -> Path:
    """The core built for `program`, with the tables of its activation units beside it."""
    built = build("core", SOURCES, macros=configuration(program))
    for name in ("sigmoid", "tanh"):
        path = built.parent / f"{name}.hex"
        if not path.exists():
            codes = pointwise.table(name, "fp16").astype(np.float16).view(np.uint16)
            path.write_text("\n".join(f"{code:04x}" for code in codes))
    return built


def run(program: Program, feeds: Mapping[str, npt.ArrayLike]) -> CoreRun:
    """`program` on the core. Raises RuntimeError with what the core says where it stops."""
    d = program.device
    commands: list[str] = []

    def load(memory: int, values: npt.NDArray[np.integer] | list[int], bits: int = 64) -> None:
        flat = values if isinstance(values, list) else values.reshape(-1).tolist()
        commands.append(f"load {memory} 0 {len(flat)} " + " ".join(f"{v & (1 << bits) - 1:x}" for v in flat))

    words = [word for block in program.blocks for word in block.words]
    assert len(words) <= DEPTHS["WORDS"]
    assert len(program.blocks) <= DEPTHS["BLOCKS"]
    load(WORDS, words)
    load(BLOCKS, [block.repeat << 32 | len(block.words) for block in program.blocks if block.words])
    queued = initial_state(program, feeds).queued
    outputs = sum(port.vectors(d.native_dim) for port in program.outputs)
    assert max(len(queued), outputs) <= DEPTHS["NET_QUEUE"]
    load(Mem.NET_QUEUE, _codes(queued))
    for mem, vectors in program.vectors.items():
        load(mem, _codes(vectors))
    assert set(program.tiles) <= {Mem.MATRIX_RF}, "this core has no DRAM"
    for tiles in program.tiles.values():
        assert tiles.exponents is not None
        load(Mem.MATRIX_RF, tiles.mantissas.astype(np.int64), 16)
        load(EXPONENTS, tiles.exponents.astype(np.int64), 9)
    files = {Mem.INITIAL_VRF: d.initial_vrf}
    for m in range(d.mfus):
        files |= {Mem(Mem.ADDSUB_VRF_0 + m): d.addsub_vrf, Mem(Mem.MULTIPLY_VRF_0 + m): d.multiply_vrf}
    commands.append(f"run {LIMIT}")
    commands += [f"show {mem} 0 {depth * d.native_dim}" for mem, depth in files.items()]
    commands.append(f"show {GIVEN} 0 {outputs * d.native_dim}")

    built = bench(program)
    done = subprocess.run(
        [built], cwd=built.parent, input="\n".join(commands) + "\n", capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise RuntimeError(f"program {program.name!r}: {done.stdout[-500:]} {done.stderr[-500:]}")
    lines = done.stdout.splitlines()
    end = next(i for i, line in enumerate(lines) if line.startswith("cycles"))
    chains = tuple(ChainRun(*map(int, line.split()[1:])) for line in lines[:end])
    shown = [
        np.array([int(code, 16) for code in line.split()], np.uint16).view(np.float16).astype(np.float32)
        for line in lines[end + 1 :]
    ]
    vectors = [values.reshape(-1, d.native_dim) for values in shown]
    return CoreRun(int(lines[end].split()[1]), chains, dict(zip(files, vectors, strict=False)), vectors[-1])


def _codes(vectors: Float32Array) -> npt.NDArray[np.uint16]:
    return vectors.astype(np.float16).view(np.uint16)
