"""The RTL beside the package: the interpreter's bits, the simulator's cycles, the formulae of the array."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fpgasim.kernels.contract import Float32Array
from fpgasim.npu import execute, initial_state, simulate, systolic_cycles
from fpgasim.npu.programs import Program
from fpgasim.npu.systolic import Array, array_timing

from .running import run
from .verilating import build


def same_bits(a: Float32Array, b: Float32Array) -> npt.NDArray[np.bool_]:
    """Where a and b are the same number with the same sign of zero, or both NaN."""
    found: npt.NDArray[np.bool_] = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
    return found


@dataclass(frozen=True)
class Comparison:
    """Cycles of one program or product, by the RTL and by the model; and of its chains: issued, ended."""

    name: str
    rtl: int
    model: int
    rtl_chains: tuple[tuple[int, int], ...] = ()
    model_chains: tuple[tuple[int, int], ...] = ()

    @property
    def equal(self) -> bool:
        return self.rtl == self.model and self.rtl_chains == self.model_chains


def compare_program(program: Program, feeds: Mapping[str, npt.ArrayLike]) -> Comparison:
    """The cycles of `program` on the core and by the model. Asserts that every bit it leaves is the interpreter's."""
    state = initial_state(program, feeds)
    execute(program, state)
    timing = simulate(program)
    core = run(program, feeds)
    for mem, memory in state.vectors.items():
        same = same_bits(core.memories[mem][: len(memory.values)], memory.values) | ~memory.written
        assert same.all(), f"{program.name}: {mem.name} differs first at {np.argwhere(~same)[0]}"
    given = np.concatenate([np.zeros((0, program.device.native_dim), np.float32), *state.given])
    assert same_bits(core.given, given).all(), f"{program.name}: what is sent differs"
    if timing.stepped_cycles < timing.cycles:  # the model added turns of a block without stepping through them
        return Comparison(program.name, core.cycles, timing.cycles)
    return Comparison(
        program.name,
        core.cycles,
        timing.cycles,
        tuple((c.issued, c.ended) for c in core.chains),
        tuple((c.issue, c.end) for c in timing.chains),
    )


Product = tuple[str, int, int, int]


def compare_array(rows: int, cols: int, cases: Sequence[Product]) -> list[Comparison]:
    """Cycles of products (dataflow, m, n, k) on a `rows` × `cols` array in serial folds. Asserts the results."""
    return [
        Comparison(f"{rows}x{cols} {flow} {m}x{n}x{k}", cycles, systolic_cycles(m, n, k, rows, cols, flow))
        for (flow, m, n, k), cycles in zip(cases, _products("systolic", rows, cols, cases), strict=True)
    ]


def compare_overlapping_array(rows: int, cols: int, cases: Sequence[Product]) -> list[Comparison]:
    """The same in the array's own mode, when its memories hold everything and DRAM brings it in no time.

    No time is less than a cycle, which the model rounds up.
    """
    big, found = 1 << 40, []
    for (flow, m, n, k), cycles in zip(cases, _products("systolic_overlapped", rows, cols, cases), strict=True):
        assert flow in ("os", "ws", "is")
        array = Array(rows, cols, flow, big, big, big, Fraction(1 << 100))
        model = array_timing(m, n, k, array, 8, 8, 32).cycles - 1
        found.append(Comparison(f"{rows}x{cols} {flow} {m}x{n}x{k} overlapped", cycles, model))
    return found


def _products(top: str, rows: int, cols: int, cases: Sequence[Product]) -> list[int]:
    """The cycles of products of random numbers, after a look at the results."""
    random = np.random.default_rng(0)
    products: list[npt.NDArray[np.int64]] = []
    lines = []
    for flow, m, n, k in cases:
        a, b = random.integers(-128, 128, (m, k)), random.integers(-128, 128, (k, n))
        products.append(a @ b)
        lines.append(" ".join(map(str, [("os", "ws", "is").index(flow), m, n, k, *a.reshape(-1), *b.reshape(-1)])))
    bench = build(top, (f"{top}.sv", "systolic_bench.cpp"), {"ROWS": rows, "COLS": cols, "DEPTH": 1 << 18})
    done = subprocess.run([bench], input="\n".join(lines), capture_output=True, text=True, check=True, timeout=600)
    counts = []
    for case, product, line in zip(cases, products, done.stdout.splitlines(), strict=True):
        cycles, _, *result = map(int, line.split())
        assert np.array_equal(np.array(result).reshape(product.shape), product), case
        counts.append(cycles)
    return counts
