"""Writing chains: registers are set where they change, and what the fields of a word cannot say is done in parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fpgasim.compiler.memory import At
from fpgasim.npu.isa import (
    START,
    EndChain,
    Instruction,
    Mem,
    MRd,
    MvMul,
    MWr,
    Operation,
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
    encode,
    fields,
    float_bits,
)
from fpgasim.npu.layers import StageKind
from fpgasim.npu.programs import Block

_OPERATIONS: dict[StageKind, type[Operation]] = {"bias": VvAdd, "add": VvAdd, "max": VvMax, "mul": VvMul}
_ACTIVATIONS: dict[StageKind, Instruction] = {"relu": VRelu(), "clip": VClip(), "sigmoid": VSigm(), "tanh": VTanh()}
_WIDTH = {field.name: field.width for field in fields(VRd)}


@dataclass(frozen=True)
class Source:
    """What a chain reads in an iteration: `outer` × `middle` runs of `inner` vectors, or elements if `gather`.

    The pitches are in elements; vectors of a run follow each other.
    """

    at: At
    inner: int
    middle: int = 1
    outer: int = 1
    pitch_middle: int = 0
    pitch_outer: int = 0
    pitch_inner: int = 1
    gather: bool = False

    def columns(self, native: int) -> int:
        """How many vectors that is."""
        count = self.outer * self.middle * self.inner
        return -(-count // native) if self.gather else count


class Do(NamedTuple):
    """One pointwise instruction of a chain; `at` is its operand."""

    kind: StageKind
    at: At | None = None
    swapped: bool = False
    low: float = 0.0
    high: float = 0.0


class Product(NamedTuple):
    """The tiles that a chain multiplies by, from `tile` on, and the positions that are worked on at once."""

    tile: int
    rows: int
    pixels: int


class Writer:
    """Collects the words of a program for vectors of `native` elements."""

    def __init__(self, native: int) -> None:
        self.native = native
        self.blocks: list[Block] = []
        self._words: list[int] = []
        self._registers = dict(START)

    def end_block(self, name: str, macs: int = 0, repeat: int = 1) -> None:
        """Makes a block of the words since the last one, if there are any."""
        if self._words:
            self.blocks.append(Block(tuple(self._words), repeat, name, macs))
            self._words = []

    def forget(self) -> None:
        """Sets every register anew from here on, for a block that is to repeat."""
        self._registers = {}

    def load(self, source: int, target: int, tiles: int) -> None:
        """A matrix chain of `tiles` from DRAM to MatrixRf."""
        self._set(Register.ROWS, 1)
        self._set(Register.COLUMNS, tiles)
        self._emit(MRd(Mem.DRAM, source), MWr(Mem.MATRIX_RF, target), EndChain())

    def chain(
        self,
        source: Source,
        writes: Sequence[At],
        nx: int = 1,
        ny: int = 1,
        ops: Sequence[Do] = (),
        product: Product | None = None,
        width: int | None = None,
    ) -> None:
        """A vector chain of nx · ny iterations; with `width`, only so many elements are written each time.

        Where a step does not fit its field, rows or positions become chains of their own.
        """
        if not nx * ny:
            return
        operands = [op.at for op in ops if op.at is not None]
        accesses = [source.at, *writes, *operands]
        by_element = [source.gather, *[width is not None] * len(writes), *[False] * len(operands)]

        def longest(step: str) -> int:
            pairs = zip(accesses, by_element, strict=True)
            return max(int(getattr(at, step)) // (1 if elements else self.native) for at, elements in pairs)

        wide_x, wide_y = (longest(f"step_{axis}") >> _WIDTH[f"step_{axis}"] > 0 for axis in "xy")
        if nx > 1 and wide_x and ny == 1 and not longest("step_x") >> _WIDTH["step_y"]:
            turned = [at._replace(step_x=0, step_y=at.step_x) for at in accesses]
            self._again(source, writes, ops, turned, 1, nx, product, width)
        elif ny > 1 and (wide_y or (nx > 1 and wide_x)):
            for y in range(ny):
                moved = [at._replace(address=at.address + y * at.step_y, step_y=0) for at in accesses]
                self._again(source, writes, ops, moved, nx, 1, product, width)
        elif nx > 1 and wide_x:
            for x in range(nx):
                moved = [at._replace(address=at.address + x * at.step_x, step_x=0) for at in accesses]
                self._again(source, writes, ops, moved, 1, ny, product, width)
        else:
            self._one(source, writes, nx, ny, ops, product, width)

    def _again(
        self,
        source: Source,
        writes: Sequence[At],
        ops: Sequence[Do],
        accesses: Sequence[At],
        nx: int,
        ny: int,
        product: Product | None,
        width: int | None,
    ) -> None:
        """`chain` with other `accesses`, in the order source, writes, operands."""
        rest = iter(accesses)
        source = dataclasses.replace(source, at=next(rest))
        writes = [next(rest) for _ in writes]
        ops = [op if op.at is None else op._replace(at=next(rest)) for op in ops]
        self.chain(source, writes, nx, ny, ops, product, width)

    def _one(
        self,
        source: Source,
        writes: Sequence[At],
        nx: int,
        ny: int,
        ops: Sequence[Do],
        product: Product | None,
        width: int | None,
    ) -> None:
        read = self._source(source)
        self._set(Register.ITERATIONS_X, nx)
        self._set(Register.ITERATIONS_Y, ny)
        if product is not None:
            self._set(Register.ROWS, product.rows)
            self._set(Register.PIXELS, product.pixels)
        if width is not None:
            self._set(Register.WIDTH, width)
        for op in ops:
            if op.kind == "clip":
                self._set(Register.CLIP_LOW, float_bits(op.low))
                self._set(Register.CLIP_HIGH, float_bits(op.high))
        steps = (nx > 1, ny > 1)
        self._emit(
            self._access(read, source.at, steps, source.gather),
            *([MvMul(product.tile)] if product is not None else []),
            *(self._operation(op, steps) for op in ops),
            *(
                self._access(VWr if width is None or at.mem == Mem.NET_QUEUE else VPack, at, steps, width is not None)
                for at in writes
            ),
            EndChain(),
        )

    def _source(self, source: Source) -> type[Read]:
        """Sets the registers of the window and returns the instruction that reads it."""
        self._set(Register.COLUMNS, source.columns(self.native))
        if source.outer == source.middle == 1 and not source.gather:
            return VRd
        unit = 1 if source.gather else self.native
        self._set(Register.WINDOW_INNER, source.inner)
        self._set(Register.WINDOW_MIDDLE, source.middle)
        self._set(Register.PITCH_MIDDLE, source.pitch_middle // unit)
        if source.outer == 1 and not source.gather:
            return VRd2
        self._set(Register.PITCH_INNER, source.pitch_inner)
        self._set(Register.WINDOW_OUTER, source.outer)
        self._set(Register.PITCH_OUTER, source.pitch_outer // unit)
        return VUnroll if source.gather else VRd3

    def _operation(self, op: Do, steps: tuple[bool, bool]) -> Instruction:
        if op.at is None:
            return _ACTIVATIONS[op.kind]
        kind = (VvBSubA if op.swapped else VvASubB) if op.kind == "sub" else _OPERATIONS[op.kind]
        return self._access(kind, op.at, steps, False)

    def _access(
        self, kind: type[Read | Operation | VWr | VPack], at: At, steps: tuple[bool, bool], elements: bool
    ) -> Instruction:
        unit = 1 if elements else self.native
        address, step_x, step_y = at.address, at.step_x * steps[0], at.step_y * steps[1]
        assert address % unit == step_x % unit == step_y % unit == 0, f"{at} is not whole vectors"
        return kind(at.mem, address // unit, step_x // unit, step_y // unit)

    def _set(self, register: Register, value: int) -> None:
        if self._registers.get(register) != value:
            self._registers[register] = value
            self._emit(SWr(register, value))

    def _emit(self, *instructions: Instruction) -> None:
        self._words.extend(encode(insn) for insn in instructions)
