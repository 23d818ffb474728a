"""Random chains, against an interpreter that does one iteration after another, element by element."""

from typing import Any

import numpy as np
from hypothesis import assume, given, settings, strategies as st

from fpgasim.errors import ProgramError
from fpgasim.kernels import backend, pointwise as unit
from fpgasim.kernels.contract import Operand
from fpgasim.npu import execute, initial_state, resolve_numbers
from fpgasim.npu.isa import (
    Instruction,
    Mem,
    MvMul,
    Operation,
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
    bits_float,
)
from fpgasim.npu.programs import Port, Program

from .engine import DEVICE, block, blocked, chain, numbers_like

N = DEVICE.native_dim
SIZE = 24  # vectors that each file holds at the beginning
FILES = [Mem.INITIAL_VRF, Mem.ADDSUB_VRF_0, Mem.ADDSUB_VRF_1, Mem.MULTIPLY_VRF_0, Mem.MULTIPLY_VRF_1]
NUMBERS = resolve_numbers(DEVICE, "msfp13", "fp16", "chwk", "fp16")

Elements = dict[Mem, list[float]]


def naive(instructions: list[Instruction], memory: Elements, queue: list[list[float]], tiles: Operand) -> list[float]:
    """What is sent to the network queue; `memory` changes. Every read sees what was there before the chain."""
    register = {s.register: s.value for s in instructions if isinstance(s, SWr)}
    read, *rest = [insn for insn in instructions if not isinstance(insn, SWr)][:-1]
    before = {mem: list(values) for mem, values in memory.items()}
    sent: list[float] = []
    r = {name.name.lower(): register.get(name, 0) for name in Register}
    for y in range(r["iterations_y"]):
        for x in range(r["iterations_x"]):
            v, tap = fetch(read, x, y, r, before, queue)
            for insn in rest:
                if isinstance(insn, MvMul):
                    v = multiply(v, tap, insn.address, r["rows"], r["columns"], tiles)
                elif isinstance(insn, Write):
                    store(insn, x, y, r["width"], v, memory, sent)
                else:
                    other = []
                    if isinstance(insn, Operation):
                        first = (insn.address + x * insn.step_x + y * insn.step_y) * N
                        other = before[insn.mem][first : first + len(v)]
                    v = stage(insn, v, other, bits_float(r["clip_low"]), bits_float(r["clip_high"]))
    return sent


def fetch(
    read: Instruction, x: int, y: int, r: dict[str, int], memory: Elements, queue: list[list[float]]
) -> tuple[list[float], int]:
    """The elements that one iteration reads, and how many of them are a tap."""
    assert isinstance(read, VRd | VRd2 | VRd3 | VUnroll)
    if read.mem == Mem.NET_QUEUE:
        return [e for _ in range(r["columns"]) for e in queue.pop(0)], r["columns"] * N
    base = read.address + x * read.step_x + y * read.step_y
    if isinstance(read, VRd):
        places = [base + i for i in range(r["columns"])]
        inner = r["columns"]
    else:
        outer, pitch = (1, 1) if isinstance(read, VRd2) else (r["window_outer"], r["pitch_inner"])
        inner = r["window_inner"]
        places = [
            base + o * r["pitch_outer"] + m * r["pitch_middle"] + i * pitch
            for o in range(outer)
            for m in range(r["window_middle"])
            for i in range(inner)
        ]
    source = memory[read.mem]
    if isinstance(read, VUnroll):
        elements = [source[place] for place in places]
        elements += [0.0] * (-len(elements) % N)
        return elements, len(elements)
    return [source[place * N + i] for place in places for i in range(N)], inner * N


def multiply(v: list[float], tap: int, first: int, rows: int, columns: int, tiles: Operand) -> list[float]:
    """For `chwk`: blocks by their place in a tap, then by tap; the kernels' own khwc sum of blocks in that sequence."""
    width = NUMBERS.format.block
    places = [t + b for b in range(0, tap, width) for t in range(0, len(v), tap)]
    x = blocked(np.array([[v[p + i] for p in places for i in range(width)]], np.float32), NUMBERS)
    assert tiles.exponents is not None
    result: list[float] = []
    for row in range(rows):
        mantissas = [tiles.mantissas[first + row * columns + c] for c in range(columns)]
        exponents = [tiles.exponents[first + row * columns + c] for c in range(columns)]
        m, e = np.concatenate(mantissas, axis=1), np.concatenate(exponents, axis=1)
        m = np.concatenate([m[:, p : p + width] for p in places], axis=1)
        e = e[:, [p // width for p in places]]
        w = Operand(m, np.ascontiguousarray(e), width, tiles.fraction_bits, len(v))
        sums = backend("reference").matmul(x, w, NUMBERS.accumulator, "khwc", 1)
        result += unit.round_to(sums, NUMBERS.pointwise)[0].tolist()
    return result


def stage(insn: Instruction, v: list[float], o: list[float], low: float, high: float) -> list[float]:
    """One pointwise instruction, element by element, rounded by NumPy's own fp16."""

    def r(value: float) -> float:
        return float(np.float16(min(max(value, -65504.0), 65504.0)))

    if isinstance(insn, VvAdd):
        return [r(a + b) for a, b in zip(v, o, strict=True)]
    if isinstance(insn, VvASubB):
        return [r(a - b) for a, b in zip(v, o, strict=True)]
    if isinstance(insn, VvBSubA):
        return [r(b - a) for a, b in zip(v, o, strict=True)]
    if isinstance(insn, VvMul):
        return [r(a * b) for a, b in zip(v, o, strict=True)]
    if isinstance(insn, VvMax):
        return [max(a, b) + 0.0 for a, b in zip(v, o, strict=True)]
    if isinstance(insn, VRelu):
        return [max(a, 0.0) + 0.0 for a in v]
    if isinstance(insn, VClip):
        return [min(max(a, low), high) + 0.0 for a in v]
    function = unit.sigmoid if isinstance(insn, VSigm) else unit.tanh
    found: list[float] = function(np.array(v, np.float32), "fp16").tolist()
    return found


def store(write: Write, x: int, y: int, width: int, v: list[float], memory: Elements, sent: list[float]) -> None:
    base = write.address + x * write.step_x + y * write.step_y
    if write.mem == Mem.NET_QUEUE:
        sent += v
    elif isinstance(write, VPack):
        memory[write.mem][base : base + width] = v[:width]
    else:
        memory[write.mem][base * N : base * N + len(v)] = v


small, step = st.integers(1, 3), st.integers(0, 3)


@st.composite
def chains(draw: st.DrawFn) -> list[Instruction]:
    """A chain that mostly is one: it reads the first vectors of each file and writes behind them, or in place."""
    registers: dict[str, float] = {"iterations_x": draw(small), "iterations_y": draw(small), "rows": draw(small)}
    kind = draw(st.sampled_from([VRd, VRd2, VRd3, VUnroll]))
    scale = N // 4 if kind is VUnroll else 1
    for name in ("inner", "middle", "outer"):
        registers[f"window_{name}"] = draw(small) * (scale if name == "inner" else 1)
        registers[f"pitch_{name}"] = draw(step) * (scale if name != "inner" else 1)
    inner, middle, outer = (int(registers[f"window_{name}"]) for name in ("inner", "middle", "outer"))
    counts = {VRd: draw(small), VRd2: inner * middle, VRd3: inner * middle * outer}
    registers["columns"] = counts.get(kind) or -(-inner * middle * outer // N)
    if kind is VRd and draw(st.booleans()):
        read: Instruction = VRd(Mem.NET_QUEUE)
    else:
        read = kind(Mem.INITIAL_VRF, draw(st.integers(0, 5)) * scale, draw(step) * scale, draw(step) * scale)
    found = [read, *([MvMul(draw(st.integers(0, 9)))] if draw(st.integers(0, 2)) else [])]
    for m in (0, 1):
        units = [
            draw(st.sampled_from([VvAdd, VvASubB, VvBSubA, VvMax]))(
                Mem(Mem.ADDSUB_VRF_0 + m), draw(st.integers(0, 5)), draw(step), draw(step)
            ),
            VvMul(Mem(Mem.MULTIPLY_VRF_0 + m), draw(st.integers(0, 5)), draw(step), draw(step)),
            draw(st.sampled_from([VRelu(), VSigm(), VTanh(), VClip()])),
        ]
        found += draw(st.permutations(units))[: draw(st.integers(0, 3))]
    registers["width"] = draw(st.integers(1, 2 * N))
    products = any(isinstance(insn, MvMul) for insn in found)
    turns = int(registers["iterations_x"])
    for mem in draw(st.lists(st.sampled_from([*FILES, Mem.NET_QUEUE]), min_size=1, max_size=3, unique=True)):
        operands = [insn for insn in found if isinstance(insn, Operation) and insn.mem == mem]
        gap = int(registers["width"]) + draw(step)
        made = int(registers["rows" if products else "columns"])
        choices: list[Instruction] = [
            VWr(mem, 24 + draw(st.integers(0, 3)), made, made * turns),
            VPack(mem, 24 * N + draw(st.integers(0, 2 * N)), gap, gap * turns),
            VWr(mem, draw(st.integers(0, 24)), draw(step), draw(step)),
            *(VWr(mem, o.address, o.step_x, o.step_y) for o in operands),
        ]
        found.append(VWr(mem) if mem == Mem.NET_QUEUE else draw(st.sampled_from(choices)))
    return chain(*found, **registers, clip_low=-0.5, clip_high=0.75)


def both(instructions: list[Instruction]) -> tuple[bytes, bytes, Any, Any]:
    """What is sent and the memories afterwards, from the interpreter and from `naive`."""
    contents = {mem: numbers_like((SIZE, N), NUMBERS, mem, 2.0) for mem in FILES}
    weights = blocked(numbers_like((40, N, N), NUMBERS, 99), NUMBERS)
    registers = {s.register: s.value for s in instructions if isinstance(s, SWr)}
    count = registers[Register.ITERATIONS_X] * registers[Register.ITERATIONS_Y]
    read = next(insn for insn in instructions if isinstance(insn, VRd | VRd2 | VRd3 | VUnroll))
    made_vectors = registers[Register.ROWS if any(isinstance(i, MvMul) for i in instructions) else Register.COLUMNS]
    sends = sum(isinstance(insn, VWr) and insn.mem == Mem.NET_QUEUE for insn in instructions)
    taken = count * registers[Register.COLUMNS] if read.mem == Mem.NET_QUEUE else 0
    given = count * made_vectors * sends
    program = Program(
        "random",
        DEVICE,
        NUMBERS,
        (block(*instructions),),
        contents,
        {Mem.MATRIX_RF: weights},
        (Port("x", (taken, N)),) if taken else (),
        (Port("y", (given, N)),) if given else (),
    )
    x = numbers_like((taken, N), NUMBERS, 7, 2.0)
    state = initial_state(program, {"x": x} if taken else {})
    try:
        got = execute(program, state)
    except ProgramError:
        assume(False)
    memory = {mem: values.reshape(-1).tolist() + [0.0] * 600 * N for mem, values in contents.items()}
    sent = naive(instructions, memory, x.tolist(), weights)
    after = {mem: state.vectors[mem].values.reshape(-1) for mem in FILES}
    expected = {mem: np.array(memory[mem][: after[mem].size], np.float32) for mem in FILES}
    y = got["y"].reshape(-1) if given else np.zeros(0, np.float32)
    return y.tobytes(), np.array(sent, np.float32).tobytes(), after, expected


@settings(max_examples=80, deadline=None)
@given(chains())
def test_a_random_chain_does_what_its_iterations_do_one_after_another(instructions: list[Instruction]) -> None:
    got, expected, after, memory = both(instructions)
    assert got == expected
    for mem in FILES:
        assert after[mem].tobytes() == memory[mem].tobytes(), mem
