"""Instruction words as chains: what the interpreter executes and the timing model times.

The rules are those of docs/microarchitecture.md, section 2. A chain that is returned can be executed: what it reads,
writes and multiplies by lies inside the device's memories, its pointwise instructions fit the MFUs, and it writes
nothing twice and nothing that it reads, except in place. (Only what depends on other chains is left to the interpreter:
whether a vector was ever written, and whether the network queue still has one.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from fpgasim.errors import ProgramError
from fpgasim.npu.device import Device
from fpgasim.npu.isa import (
    START,
    Access,
    EndChain,
    Instruction,
    Mem,
    MRd,
    MvMul,
    MWr,
    Operation,
    Pointwise,
    Read,
    Register,
    SWr,
    VClip,
    VPack,
    VRd,
    VRd2,
    VRd3,
    VUnroll,
    VvMul,
    VWr,
    Write,
    bits_float,
    decode,
)
from fpgasim.npu.programs import Program, depth

#: The most vectors that one chain reads or makes in all its iterations.
MAX_CHAIN_VECTORS = 1 << 24

Registers = Mapping[Register, int]
Addresses = npt.NDArray[np.int64]


class Span(NamedTuple):
    """The vectors (in MATRIX_RF the tiles) `low` … `high` − 1 of a memory."""

    mem: Mem
    low: int
    high: int

    def overlaps(self, other: Span) -> bool:
        return self.mem == other.mem and self.low < other.high and other.low < self.high


class Tiles(NamedTuple):
    """`rows` × `columns` consecutive tiles of MatrixRf from `address` on."""

    address: int
    rows: int
    columns: int

    @property
    def span(self) -> Span:
        return Span(Mem.MATRIX_RF, self.address, self.address + self.rows * self.columns)


class Dimension(NamedTuple):
    """`size` addresses, `pitch` from one to the next."""

    size: int
    pitch: int


class Op(NamedTuple):
    """A pointwise instruction and the MFU that does it."""

    insn: Pointwise
    mfu: int


@dataclass(frozen=True)
class VectorChain:
    """One vector chain: words `at` … `at` + `words` − 1 of its block.

    Done `iterations` (x, y) times, x faster, it reads `columns` vectors, in a `window` (outer, middle, inner) of
    vectors (of elements for `v_unroll`), and makes `rows` of them, the same number without `tiles`. `width` is that of
    `v_pack` (0 without one), `pixels` the register (1 without `tiles`), `clip` the bounds of `v_clip`. `reads`,
    `operands` and `written` are ranges of vectors, one a memory, DRAM included; `taken` and `given` count vectors from
    and to the network queue, `dram_read` and `dram_written` those of DRAM, over all iterations.
    """

    at: int
    words: int
    read: Read
    tiles: Tiles | None
    ops: tuple[Op, ...]
    writes: tuple[Write, ...]
    iterations: tuple[int, int]
    columns: int
    rows: int
    window: tuple[Dimension, Dimension, Dimension]
    width: int
    pixels: int
    clip: tuple[float, float]
    reads: tuple[Span, ...]
    operands: tuple[Span, ...]
    written: tuple[Span, ...]
    taken: int
    given: int
    dram_read: int
    dram_written: int

    @property
    def positions(self) -> int:
        """How often the chain is done: iterations_x · iterations_y."""
        return self.iterations[0] * self.iterations[1]


@dataclass(frozen=True)
class MatrixChain:
    """One matrix chain: `tiles` tiles from `source` on of DRAM to `mem` from `target` on."""

    at: int
    words: int
    source: int
    mem: Mem
    target: int
    tiles: int

    @property
    def written(self) -> Span | None:
        """The tiles of MatrixRf that it writes; None where it writes to DRAM."""
        return Span(self.mem, self.target, self.target + self.tiles) if self.mem == Mem.MATRIX_RF else None


Chain = VectorChain | MatrixChain


def program_chains(program: Program) -> tuple[tuple[Chain, ...], ...]:
    """The chains of each block of `program`.

    Raises ProgramError as `decode_chains`, and where the turns of a repeated block would differ because it does not set
    a register that it changes or uses.
    """
    registers: Registers = START
    found = []
    for i, block in enumerate(program.blocks):
        chains, after = decode_chains(block.words, program.device, registers, i)
        if block.repeat > 1 and after != registers:
            again, _ = decode_chains(block.words, program.device, after, i)
            for first, second in zip(chains, again, strict=True):
                if first != second:
                    changed = ", ".join(
                        f"{r.name.lower()} {registers[r]} -> {after[r]}" for r in Register if registers[r] != after[r]
                    )
                    _refuse(i, first.at, decode(block.words[first.at]), f"the chain is another one in the block's "
                            f"second turn ({changed}); set its registers in the block")  # fmt: skip
        found.append(chains)
        registers = after
    return tuple(found)


def decode_chains(
    words: Sequence[int], device: Device, registers: Registers = START, block: int = 0
) -> tuple[tuple[Chain, ...], Registers]:
    """The chains in `words` and what the registers hold behind them, `registers` being what they hold before.

    Raises ProgramError naming block, word and instruction: for a word that is no instruction, a chain that has not the
    form of one, one that the MFUs cannot do, an address beyond its memory, a register whose value will not do, and a
    chain that writes an element twice, or what it reads other than in place.
    """
    state = dict(registers)
    chains: list[Chain] = []
    pending: list[Instruction] = []
    for at, word in enumerate(words):
        try:
            insn = decode(word)
        except ProgramError as error:
            raise ProgramError(f"block {block}, word {at}: {error}") from None
        if isinstance(insn, SWr):
            if pending:
                _refuse(block, at, insn, "stands inside a chain; end_chain must come first")
            state[insn.register] = insn.value
            continue
        pending.append(insn)
        if isinstance(insn, EndChain):
            chains.append(_Decoder(device, state, block, at + 1 - len(pending), pending).chain())
            pending = []
    if pending:
        _refuse(block, len(words) - 1, pending[-1], "the block ends inside a chain; end_chain is missing")
    return tuple(chains), state


def _refuse(block: int, at: int, insn: Instruction, what: str) -> NoReturn:
    raise ProgramError(f"block {block}, word {at} ({insn}): {what}")


class _Decoder:
    """One chain on its way from instructions to a value."""

    def __init__(
        self, device: Device, registers: Registers, block: int, at: int, instructions: list[Instruction]
    ) -> None:
        self.device, self.registers, self.block, self.at, self.instructions = device, registers, block, at, instructions

    def refuse(self, index: int, what: str) -> NoReturn:
        _refuse(self.block, self.at + index, self.instructions[index], what)

    def register(self, index: int, register: Register, high: int = MAX_CHAIN_VECTORS) -> int:
        value = self.registers[register]
        if not 1 <= value <= high:
            self.refuse(index, f"register {register.name.lower()} is {value}; 1 to {high} would do")
        return value

    def chain(self) -> Chain:
        return self.matrix_chain() if isinstance(self.instructions[0], MRd) else self.vector_chain()

    def matrix_chain(self) -> MatrixChain:
        if len(self.instructions) != 3 or not isinstance(self.instructions[1], MWr):
            self.refuse(min(1, len(self.instructions) - 1), "a matrix chain is m_rd, m_wr, end_chain")
        source, target = self.instructions[:2]
        assert isinstance(source, MRd)
        assert isinstance(target, MWr)
        tiles = self.register(0, Register.ROWS) * self.register(0, Register.COLUMNS)
        for index, mem, address in ((0, source.mem, source.address), (1, target.mem, target.address)):
            if mem != Mem.DRAM and (index == 0 or mem != Mem.MATRIX_RF):
                self.refuse(index, "dram would do" if index == 0 else "matrix_rf or dram would do")
            if address + tiles > (room := depth(self.device, mem)):
                self.refuse(index, f"tiles {address} to {address + tiles - 1} do not fit into the {room} of "
                            f"{mem.name.lower()}")  # fmt: skip
        return MatrixChain(self.at, len(self.instructions), source.address, target.mem, target.address, tiles)

    def vector_chain(self) -> VectorChain:
        read, rest = self.instructions[0], list(enumerate(self.instructions))[1:-1]
        if not isinstance(read, Read):
            self.refuse(0, "a chain begins with a v_rd or m_rd")
        product = rest.pop(0)[1] if rest and isinstance(rest[0][1], MvMul) else None
        stages = [(i, insn) for i, insn in rest if isinstance(insn, Pointwise)]
        writes = [(i, insn) for i, insn in rest if isinstance(insn, Write)]
        for i, insn in rest:
            if isinstance(insn, MvMul):
                self.refuse(i, "a chain has at most one mv_mul, and it comes right behind the read")
            if not isinstance(insn, Pointwise | Write) or (isinstance(insn, Pointwise) and writes and i > writes[0][0]):
                self.refuse(i, "cannot stand here; a vector chain is one read, at most one mv_mul, pointwise "
                            "instructions, writes, end_chain")  # fmt: skip
        if not writes:
            self.refuse(len(self.instructions) - 1, "the chain writes nothing; v_wr must come before")
        x, y = self.register(0, Register.ITERATIONS_X), self.register(0, Register.ITERATIONS_Y)
        columns, window = self._window(read)
        rows, tiles = columns, None
        if product is not None:
            assert isinstance(product, MvMul)
            rows = self.register(1, Register.ROWS)
            tiles = Tiles(product.address, rows, columns)
            if tiles.span.high > self.device.mrf_tiles:
                self.refuse(1, f"tiles {tiles.span.low} to {tiles.span.high - 1} do not fit into the "
                            f"{self.device.mrf_tiles} of matrix_rf")  # fmt: skip
        if x * y * max(rows, columns) > MAX_CHAIN_VECTORS:
            self.refuse(0, f"{x}·{y} iterations of {max(rows, columns)} vectors are more than {MAX_CHAIN_VECTORS}")
        ops = self._mfus(stages)
        operands = [(i, insn) for i, insn in stages if isinstance(insn, Operation)]
        inner = (Dimension(1, 1), Dimension(1, 1), Dimension(rows, 1))
        packs = [i for i, insn in writes if isinstance(insn, VPack)]
        width = self.register(packs[0], Register.WIDTH, rows * self.device.native_dim) if packs else 0
        pixels = 1 if tiles is None else self.register(1, Register.PIXELS, self.device.tiles)
        chain = VectorChain(
            self.at,
            len(self.instructions),
            read,
            tiles,
            ops,
            tuple(insn for _, insn in writes),
            (x, y),
            columns,
            rows,
            window,
            width,
            pixels,
            self._clip(stages),
            _merged([self._span(0, read, (x, y), window)]),
            _merged([self._span(i, insn, (x, y), inner) for i, insn in operands]),
            _merged(
                [
                    self._span(i, insn, (x, y), (*inner[:2], Dimension(width, 1)) if isinstance(insn, VPack) else inner)
                    for i, insn in writes
                ]
            ),
            x * y * columns * (read.mem == Mem.NET_QUEUE),
            x * y * rows * sum(insn.mem == Mem.NET_QUEUE for _, insn in writes),
            x * y * columns * (read.mem == Mem.DRAM),
            x * y * rows * sum(insn.mem == Mem.DRAM for _, insn in writes),
        )
        self._check_order(chain)
        return chain

    def _clip(self, stages: Sequence[tuple[int, Pointwise]]) -> tuple[float, float]:
        """The bounds of the chain's clips; infinite where it has none."""
        for index in (i for i, insn in stages if isinstance(insn, VClip)):
            low, high = (bits_float(self.registers[r]) for r in (Register.CLIP_LOW, Register.CLIP_HIGH))
            if math.isnan(low) or math.isnan(high):
                self.refuse(index, f"its bounds are {low} and {high}; numbers would do")
            return low, high
        return -math.inf, math.inf

    def _window(self, read: Read) -> tuple[int, tuple[Dimension, Dimension, Dimension]]:
        """How many vectors `read` reads in an iteration, and where."""
        columns = self.register(0, Register.COLUMNS)
        if isinstance(read, VRd):
            return columns, (Dimension(1, 1), Dimension(1, 1), Dimension(columns, 1))
        outer, middle, inner = (
            Dimension(self.register(0, count), self.registers[pitch])
            for count, pitch in (
                (Register.WINDOW_OUTER, Register.PITCH_OUTER),
                (Register.WINDOW_MIDDLE, Register.PITCH_MIDDLE),
                (Register.WINDOW_INNER, Register.PITCH_INNER),
            )
        )
        if isinstance(read, VRd2):
            outer, inner = Dimension(1, 1), Dimension(inner.size, 1)
        assert isinstance(read, VRd2 | VRd3 | VUnroll)
        count = outer.size * middle.size * inner.size
        vectors = -(-count // self.device.native_dim) if isinstance(read, VUnroll) else count
        if vectors != columns:
            self.refuse(0, f"the window is {vectors} vectors and register columns {columns}; they must be equal")
        return columns, (outer, middle, inner)

    def _mfus(self, stages: Sequence[tuple[int, Pointwise]]) -> tuple[Op, ...]:
        """Which MFU does which instruction."""
        ops: list[Op] = []
        used: set[tuple[str, int]] = set()
        mfu = 0
        for i, insn in stages:
            if isinstance(insn, Operation):
                unit = "multiply" if isinstance(insn, VvMul) else "add"
                fits = insn.mem.is_multiply if isinstance(insn, VvMul) else insn.mem.is_addsub
                at = insn.mem.mfu
                if not fits or at is None or at >= self.device.mfus:
                    files = [
                        f"{'multiply' if unit == 'multiply' else 'addsub'}_vrf_{m}" for m in range(self.device.mfus)
                    ]
                    self.refuse(i, f"its operand must be in {' or '.join(files)}")
                if at < mfu:
                    self.refuse(i, f"MFU {at} comes before MFU {mfu}, which the chain has reached")
                if (unit, at) in used:
                    self.refuse(i, f"the {unit} unit of MFU {at} has done an instruction of this chain already")
            else:
                unit, at = "activation", mfu
                while (unit, at) in used:
                    at += 1
                if at >= self.device.mfus:
                    self.refuse(i, f"none of the {self.device.mfus} MFUs has an activation unit left for it")
            used.add((unit, at))
            ops.append(Op(insn, at))
            mfu = at
        return tuple(ops)

    def _span(
        self,
        index: int,
        access: Access,
        iterations: tuple[int, int],
        window: tuple[Dimension, Dimension, Dimension],
    ) -> Span:
        """The vectors that `access` touches. Raises ProgramError where one is beyond its memory."""
        elements = isinstance(access, VUnroll | VPack)
        name = access.mem.name.lower()
        if access.mem == Mem.NET_QUEUE:
            if not isinstance(access, VRd | VWr) or (access.address, access.step_x, access.step_y) != (0, 0, 0):
                self.refuse(index, "net_queue goes with v_rd and v_wr alone, and has no address and no steps")
            return Span(access.mem, 0, 0)
        scale = self.device.native_dim if elements else 1
        room = 0 if access.mem == Mem.MATRIX_RF else depth(self.device, access.mem)
        last = access.address + (iterations[0] - 1) * access.step_x + (iterations[1] - 1) * access.step_y
        last += sum((d.size - 1) * d.pitch for d in window)
        if last >= room * scale:
            unit = "elements" if elements else "vectors"
            self.refuse(index, f"{unit} {access.address} to {last} do not fit into the {room * scale} of {name}")
        return Span(access.mem, access.address // scale, last // scale + 1)

    def _check_order(self, chain: VectorChain) -> None:
        """Raises ProgramError where an element is written twice, or what is read is written other than in place."""
        for span in chain.written:
            writes = [(i, w) for i, w in enumerate(self.instructions) if isinstance(w, Write) and w.mem == span.mem]
            self._check_writes(chain, span, writes)
            if not any(span.overlaps(other) for other in (*chain.reads, *chain.operands)):
                continue
            # For each vector of the span the first and the last of the chain's vectors that is written there.
            never = chain.positions * chain.rows
            first, last = np.full(span.high - span.low, never), np.full(span.high - span.low, -1)
            for _, write in writes:
                vectors, order = self._order(chain, write, written_addresses(chain, write), chain.rows)
                np.minimum.at(first, vectors - span.low, order)
                np.maximum.at(last, vectors - span.low, order)
            for index, access in enumerate(self.instructions):
                if not isinstance(access, Read | Operation) or access.mem != span.mem:
                    continue
                is_read = isinstance(access, Read)
                addresses = read_addresses(chain) if is_read else operand_addresses(chain, access)
                vectors, order = self._order(chain, access, addresses, chain.columns if is_read else chain.rows)
                inside = (vectors >= span.low) & (vectors < span.high)
                at = np.where(inside, vectors - span.low, 0)
                clash = inside & (last[at] >= 0)
                if not is_read or chain.tiles is None:
                    clash &= (first[at] != order) | (last[at] != order)
                if clash.any():
                    self.refuse(
                        index,
                        f"vector {vectors[np.argmax(clash)]} of {span.mem.name.lower()} is also written by the chain; "
                        "only in place may it be, its i-th vector over the i-th of an operand or, without mv_mul, of "
                        "the read",
                    )

    def _check_writes(self, chain: VectorChain, span: Span, writes: Sequence[tuple[int, Write]]) -> None:
        """Raises ProgramError where an element of `span` is written twice."""
        scale = self.device.native_dim if any(isinstance(write, VPack) for _, write in writes) else 1
        done = np.zeros((span.high - span.low) * scale, bool)
        total = 0
        for index, write in writes:
            addresses = written_addresses(chain, write)
            if scale > 1 and not isinstance(write, VPack):
                addresses = addresses[..., None] * scale + np.arange(scale)
            done[addresses - span.low * scale] = True
            total += addresses.size
            if np.count_nonzero(done) != total:
                unit = "a vector" if scale == 1 else "an element"
                self.refuse(index, f"the chain writes {unit} of {span.mem.name.lower()} twice")

    def _order(
        self, chain: VectorChain, access: Access, addresses: Addresses, vectors: int
    ) -> tuple[Addresses, Addresses]:
        """The vectors behind `addresses` (positions, …), and to which of the chain's vectors each belongs."""
        scale = self.device.native_dim if isinstance(access, VUnroll | VPack) else 1
        order = np.arange(chain.positions)[:, None] * vectors + np.arange(addresses.shape[1]) // scale
        return (addresses // scale).reshape(-1), order.reshape(-1)


def _merged(spans: list[Span]) -> tuple[Span, ...]:
    """One range a memory, from the lowest vector to the highest; the network queue has none."""
    mems = dict.fromkeys(span.mem for span in spans if span.mem != Mem.NET_QUEUE)
    return tuple(
        Span(mem, min(s.low for s in spans if s.mem == mem), max(s.high for s in spans if s.mem == mem)) for mem in mems
    )


def read_addresses(chain: VectorChain) -> Addresses:
    """The vectors (positions, columns) that `chain` reads in each iteration; elements (positions, …) for `v_unroll`."""
    outer, middle, inner = (np.arange(d.size, dtype=np.int64) * d.pitch for d in chain.window)
    window = outer[:, None, None] + middle[:, None] + inner
    return _bases(chain, chain.read)[:, None] + window.reshape(-1)


def operand_addresses(chain: VectorChain, operand: Access) -> Addresses:
    """The vectors (positions, rows) that `operand` takes, or a `v_wr` writes, in each iteration of `chain`."""
    return _bases(chain, operand)[:, None] + np.arange(chain.rows)


def written_addresses(chain: VectorChain, write: Write) -> Addresses:
    """The vectors (positions, rows) that `write` writes in each iteration; elements (positions, width) for `v_pack`."""
    if isinstance(write, VPack):
        return _bases(chain, write)[:, None] + np.arange(chain.width)
    return operand_addresses(chain, write)


def _bases(chain: VectorChain, access: Access) -> Addresses:
    x, y = chain.iterations
    steps = np.arange(y, dtype=np.int64)[:, None] * access.step_y + np.arange(x, dtype=np.int64) * access.step_x
    return access.address + steps.reshape(-1)
