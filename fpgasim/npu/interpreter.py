"""What a program computes: its chains one after another on the memories of an engine, without time.

Numbers are those of docs/microarchitecture.md, section 3: matrix products and pointwise steps are the kernels' own, so
that every accumulator and order has the bits of the fused path. The iterations of a chain are done together, which
is the same: a chain reads what was there before it, and `chains` refuses one in which that would make a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from fpgasim.errors import InputError, ProgramError
from fpgasim.kernels import Backend, Window, backend
from fpgasim.kernels.contract import Array, Float32Array, Operand, Step, StepKind, rows_operand
from fpgasim.kernels.pointwise import count_overflows, round_to
from fpgasim.npu.chains import (
    Addresses,
    Chain,
    MatrixChain,
    Op,
    Tiles,
    VectorChain,
    operand_addresses,
    program_chains,
    read_addresses,
    written_addresses,
)
from fpgasim.npu.isa import (
    Instruction,
    Mem,
    MRd,
    MvMul,
    Operation,
    VClip,
    VPack,
    VRelu,
    VSigm,
    VTanh,
    VUnroll,
    VvAdd,
    VvASubB,
    VvBSubA,
    VvMax,
    VvMul,
    encode,
)
from fpgasim.npu.programs import Program

#: Elements that a chain's vectors may have before its iterations are done in several pieces.
PIECE = 1 << 22

_STEPS: dict[type[Instruction], StepKind] = {
    VvAdd: "add",
    VvASubB: "sub",
    VvBSubA: "sub",
    VvMax: "max",
    VvMul: "mul",
    VRelu: "relu",
    VSigm: "sigmoid",
    VTanh: "tanh",
    VClip: "clip",
}


class VectorMemory:
    """A memory of vectors: `values` (n, N), and which elements were `written`. It grows to what is written."""

    def __init__(self, contents: Float32Array) -> None:
        self.values = contents.copy()
        self.written = np.ones(contents.shape, bool)
        self.whole = np.ones(len(contents), bool)  # vectors of which all elements were

    def missing(self, addresses: Addresses, elements: bool) -> int | None:
        """The first of the `addresses`, of vectors or of elements, that was not wholly written; None if all were."""
        known = self.written.reshape(-1) if elements else self.whole
        flat = addresses.reshape(-1)
        there = flat < len(known)
        there[there] = known[flat[there]]
        return None if there.all() else int(flat[np.argmin(there)])

    def write(self, addresses: Addresses, values: Float32Array) -> None:
        """Vectors (…, N) to `addresses` (…)."""
        self._grow(int(addresses.max()) + 1)
        self.values[addresses] = values
        self.written[addresses] = True
        self.whole[addresses] = True

    def write_elements(self, addresses: Addresses, values: Float32Array) -> None:
        """The same with elements."""
        touched = np.unique(addresses // self.values.shape[1])
        self._grow(int(touched[-1]) + 1)
        self.values.reshape(-1)[addresses] = values
        self.written.reshape(-1)[addresses] = True
        self.whole[touched] = self.written[touched].all(axis=1)

    def _grow(self, vectors: int) -> None:
        more = max(vectors, len(self.values) * 3 // 2) - len(self.values)
        if vectors > len(self.values):
            self.values = np.pad(self.values, ((0, more), (0, 0)))
            self.written = np.pad(self.written, ((0, more), (0, 0)))
            self.whole = np.pad(self.whole, (0, more))


class TileMemory:
    """A memory of tiles: for each address the tile of the `State.store` that it holds, -1 for none."""

    def __init__(self, tiles: npt.NDArray[np.int64]) -> None:
        self.tiles = tiles

    def read(self, low: int, high: int) -> npt.NDArray[np.int64]:
        """The tiles `low` … `high` − 1."""
        found = self.tiles[low:high]
        return np.pad(found, (0, high - low - len(found)), constant_values=-1)

    def write(self, low: int, tiles: npt.NDArray[np.int64]) -> None:
        missing = low + len(tiles) - len(self.tiles)
        self.tiles = np.pad(self.tiles, (0, max(missing, 0)), constant_values=-1)
        self.tiles[low : low + len(tiles)] = tiles


@dataclass(eq=False)
class State:
    """The memories of a running engine.

    `store` holds every tile that the program was loaded with. `queued` are the vectors (n, N) that wait in the network
    queue, from `taken` on; `given` those sent to it. `saturated` counts fp16 values that did, by (block, word) of the
    chain that made them, `saturated_feeds` by input.
    """

    vectors: dict[Mem, VectorMemory]
    tiles: dict[Mem, TileMemory]
    store: Operand | None
    queued: Float32Array
    taken: int = 0
    given: list[Float32Array] = field(default_factory=list)
    saturated: dict[tuple[int, int], int] = field(default_factory=dict)
    saturated_feeds: dict[str, int] = field(default_factory=dict)
    # The matrices of tiles that mv_mul used, until one of their tiles changes.
    _matrices: dict[tuple[Tiles, int], Operand] = field(default_factory=dict)

    def memory(self, mem: Mem, native_dim: int) -> VectorMemory:
        """The memory `mem`, which is empty until something is written."""
        if mem not in self.vectors:
            self.vectors[mem] = VectorMemory(np.zeros((0, native_dim), np.float32))
        return self.vectors[mem]


def initial_state(program: Program, feeds: Mapping[str, npt.ArrayLike]) -> State:
    """The engine with `program` loaded and the tensors `feeds` waiting in its network queue.

    Raises InputError for a feed that is missing, is not among the inputs or has another shape.
    """
    if not isinstance(feeds, Mapping):
        raise InputError(f"feeds is a {type(feeds).__name__}; a mapping from input name to array would do")
    n, pointwise = program.device.native_dim, program.numbers.pointwise
    names = [port.name for port in program.inputs]
    for wrong in sorted(set(feeds) ^ set(names), key=str):
        what = "is missing" if wrong in names else "is no input"
        raise InputError(f"feed {wrong!r} {what}; program {program.name!r} takes {', '.join(names) or 'none'}")
    queued, saturated = [np.zeros((0, n), np.float32)], {}
    for port in program.inputs:
        try:
            tensor = np.asarray(feeds[port.name])
        except ValueError as error:
            raise InputError(f"feed {port.name!r} is no array ({error}); numbers of {port.shape} would do") from error
        if tensor.shape != port.shape or tensor.dtype.kind not in "fiu":
            raise InputError(f"feed {port.name!r} is {tensor.dtype} of shape {tensor.shape}; numbers of {port.shape} "
                             "would do")  # fmt: skip
        values = tensor.astype(np.float32)
        saturated[port.name] = count_overflows(values, pointwise)
        queued.append(port.to_vectors(round_to(values, pointwise), n))
    tiles, operands, first = {}, [], 0
    for mem, operand in program.tiles.items():
        tiles[mem] = TileMemory(np.arange(first, first + len(operand.mantissas)))
        operands.append(operand)
        first += len(operand.mantissas)
    return State(
        vectors={mem: VectorMemory(vectors) for mem, vectors in program.vectors.items()},
        tiles={mem: tiles.get(mem, TileMemory(np.zeros(0, np.int64))) for mem in (Mem.DRAM, Mem.MATRIX_RF)},
        store=_joined(operands),
        queued=np.concatenate(queued),
        saturated_feeds=saturated,
    )


def _joined(operands: list[Operand]) -> Operand | None:
    if len(operands) < 2:
        return operands[0] if operands else None
    exponents = [o.exponents for o in operands if o.exponents is not None]
    first = operands[0]
    return Operand(
        np.concatenate([o.mantissas for o in operands]),
        np.concatenate(exponents) if exponents else None,
        first.block,
        first.fraction_bits,
        first.channels,
    )


def execute(
    program: Program, state: State, kernels: str | None = "reference", threads: int = 1
) -> dict[str, Float32Array]:
    """The outputs of `program`, by name, after it ran on `state`, which it changes.

    `kernels` names the backend of the arithmetic (None: the fastest); every one has the same bits. Raises ProgramError
    as `chains.program_chains`, and naming block, word and instruction for a vector or a tile that is read and was never
    written, a network queue that is empty, and a bound of a clip that is no number of the pointwise type; also where
    the network queue is not used up, or not given as many vectors as the outputs are.
    """
    chosen = backend(kernels)
    for i, (block, chains) in enumerate(zip(program.blocks, program_chains(program), strict=True)):
        for _ in range(block.repeat):
            for chain in chains:
                execute_chain(program, state, chain, i, chosen, threads)
    left = len(state.queued) - state.taken
    if left:
        raise ProgramError(f"program {program.name!r} has ended and {left} vectors of its inputs are still in the "
                           "network queue")  # fmt: skip
    return outputs(program, state)


def outputs(program: Program, state: State) -> dict[str, Float32Array]:
    """The outputs of `program`, by name, from what `state` says was given to the network queue.

    Raises ProgramError where that is not as many vectors as the outputs are.
    """
    n = program.device.native_dim
    given = np.concatenate([np.zeros((0, n), np.float32), *state.given])
    wanted = sum(port.vectors(n) for port in program.outputs)
    if len(given) != wanted:
        raise ProgramError(f"program {program.name!r} has given {len(given)} vectors to the network queue; its outputs "
                           f"are {wanted}")  # fmt: skip
    found, at = {}, 0
    for port in program.outputs:
        found[port.name] = port.from_vectors(given[at : at + port.vectors(n)])
        at += port.vectors(n)
    return found


def execute_chain(program: Program, state: State, chain: Chain, block: int, kernels: Backend, threads: int = 1) -> None:
    """Does `chain` of block `block` of `program` on `state`. Raises ProgramError as `execute`."""
    if isinstance(chain, MatrixChain):
        _move_tiles(state, chain, block)
    else:
        _Run(program, state, chain, block, kernels, threads).run()


def _refuse(block: int, at: int, insn: Instruction, what: str) -> NoReturn:
    raise ProgramError(f"block {block}, word {at} ({insn}): {what}")


def _move_tiles(state: State, chain: MatrixChain, block: int) -> None:
    tiles = state.tiles[Mem.DRAM].read(chain.source, chain.source + chain.tiles)
    if (tiles < 0).any():
        missing = chain.source + int(np.argmax(tiles < 0))
        _refuse(block, chain.at, MRd(Mem.DRAM, chain.source), f"tile {missing} of dram was never written")
    state.tiles[chain.mem].write(chain.target, tiles)
    written = chain.written
    if written is not None:
        for key in [key for key in state._matrices if key[0].span.overlaps(written)]:
            del state._matrices[key]


class _Run:
    """One vector chain at work."""

    def __init__(
        self, program: Program, state: State, chain: VectorChain, block: int, kernels: Backend, threads: int
    ) -> None:
        self.program, self.state, self.chain, self.block = program, state, chain, block
        self.kernels, self.threads = kernels, threads
        self.n, self.numbers = program.device.native_dim, program.numbers

    def refuse(self, insn: Instruction, what: str) -> NoReturn:
        words = self.program.blocks[self.block].words[self.chain.at : self.chain.at + self.chain.words]
        _refuse(self.block, self.chain.at + words.index(encode(insn)), insn, what)

    def run(self) -> None:
        chain, state = self.chain, self.state
        sources = read_addresses(chain) if chain.read.mem != Mem.NET_QUEUE else None
        operands = {op: operand_addresses(chain, op.insn) for op in chain.ops if isinstance(op.insn, Operation)}
        targets = {write: written_addresses(chain, write) for write in chain.writes if write.mem != Mem.NET_QUEUE}
        sent = sum(write.mem == Mem.NET_QUEUE for write in chain.writes)
        self._check(sources, operands)
        steps_of = self._steps(operands)
        saturated = 0
        for piece in self._pieces():
            made, unrounded = self._source(sources, piece)
            steps = steps_of(piece)
            result = np.empty_like(made)
            saturated += self.kernels.chain(
                made, steps, {len(steps) - 1: result}, self.numbers.pointwise, unrounded, self.threads
            )
            for write, addresses in targets.items():
                memory, at = state.memory(write.mem, self.n), addresses[piece]
                if isinstance(write, VPack):
                    memory.write_elements(at, result[:, : chain.width])
                else:
                    memory.write(at, result.reshape(*at.shape, self.n))
            if sent:
                state.given.append(np.repeat(result[:, None], sent, axis=1).reshape(-1, self.n))
        if saturated:
            key = (self.block, chain.at)
            state.saturated[key] = state.saturated.get(key, 0) + saturated

    def _pieces(self) -> Iterator[slice]:
        """The iterations, as many at a time as `PIECE` elements allow."""
        step = max(1, PIECE // (max(self.chain.columns, self.chain.rows) * self.n))
        for first in range(0, self.chain.positions, step):
            yield slice(first, min(first + step, self.chain.positions))

    def _check(self, sources: Addresses | None, operands: Mapping[Op, Addresses]) -> None:
        """Raises ProgramError unless everything is there that the chain reads."""
        chain, state = self.chain, self.state
        if sources is None:
            there = len(state.queued) - state.taken
            if chain.taken > there:
                self.refuse(chain.read, f"the network queue has {there} vectors and {chain.taken} are read")
        else:
            elements = isinstance(chain.read, VUnroll)
            missing = state.memory(chain.read.mem, self.n).missing(sources, elements)
            if missing is not None:
                unit = "element" if elements else "vector"
                self.refuse(chain.read, f"{unit} {missing} of {chain.read.mem.name.lower()} was never written")
        for op, addresses in operands.items():
            assert isinstance(op.insn, Operation)
            missing = state.memory(op.insn.mem, self.n).missing(addresses, False)
            if missing is not None:
                self.refuse(op.insn, f"vector {missing} of {op.insn.mem.name.lower()} was never written")
        for bound in chain.clip:
            if math.isfinite(bound) and round_to(np.array([bound]), self.numbers.pointwise)[0] != bound:
                insn = next(op.insn for op in chain.ops if isinstance(op.insn, VClip))
                self.refuse(insn, f"its bound {bound:.9g} is no number of the pointwise type {self.numbers.pointwise}")

    def _steps(self, operands: Mapping[Op, Addresses]) -> Callable[[slice], list[Step]]:
        """A function that gives the steps of the pointwise unit for a piece of the iterations."""

        def steps(piece: slice) -> list[Step]:
            found = []
            for op in self.chain.ops:
                values = None
                if isinstance(op.insn, Operation):
                    addresses = operands[op][piece]
                    same = op.insn.step_x == 0 and op.insn.step_y == 0
                    memory = self.state.memory(op.insn.mem, self.n).values
                    values = memory[addresses[0]].reshape(-1) if same else memory[addresses].reshape(len(addresses), -1)
                low, high = self.chain.clip
                found.append(Step(_STEPS[type(op.insn)], values, isinstance(op.insn, VvBSubA), low, high))
            return found

        return steps

    def _source(self, sources: Addresses | None, piece: slice) -> tuple[Float32Array, bool]:
        """What enters MFU 0 in the iterations `piece`: (positions, rows·N), and whether it is still to be rounded."""
        chain, state = self.chain, self.state
        count = piece.stop - piece.start
        if sources is None:
            first = state.taken
            state.taken += count * chain.columns
            vectors = state.queued[first : state.taken].reshape(count, -1)
        else:
            memory = state.memory(chain.read.mem, self.n)
            addresses = sources[piece]
            if isinstance(chain.read, VUnroll):
                vectors = np.zeros((count, chain.columns * self.n), np.float32)
                vectors[:, : addresses.shape[1]] = memory.values.reshape(-1)[addresses]
            elif chain.tiles is not None:
                return self._product(self._gathered(memory, addresses)), True
            else:
                vectors = memory.values[addresses].reshape(count, -1)
        if chain.tiles is None:
            return vectors, False
        return self._product(self._quantized(vectors)), True

    def _gathered(self, memory: VectorMemory, addresses: Addresses) -> Operand:
        """The vectors at `addresses` (positions, columns), quantized, as (positions, columns·N).

        A vector that is read more often than once is quantized once.
        """
        low, high = int(addresses.min()), int(addresses.max()) + 1
        if high - low > addresses.size:
            return self._quantized(memory.values[addresses].reshape(len(addresses), -1))
        blocks, at = self._quantized(memory.values[low:high]), addresses - low

        def gather(array: Array) -> Array:
            return array[at].reshape(len(at), -1)

        exponents = None if blocks.exponents is None else gather(blocks.exponents)
        return Operand(
            gather(blocks.mantissas), exponents, blocks.block, blocks.fraction_bits, self.chain.columns * self.n
        )

    def _quantized(self, vectors: Float32Array) -> Operand:
        """(rows, whole vectors) in blocks of the format."""
        fmt = self.numbers.format
        codes, exponents = self.kernels.quantize(np.ascontiguousarray(vectors), fmt, "even", 0)
        return rows_operand(codes, exponents, fmt, vectors.shape[1])

    def _product(self, x: Operand) -> Float32Array:
        """The sums (positions, rows·N), not yet rounded to the pointwise type."""
        accumulator, order, taps = self.numbers.accumulator, self.numbers.order, self._taps()
        w = self._matrix(taps)
        if taps == 1:
            return self.kernels.matmul(x, w, accumulator, order, self.threads)
        tap = Operand(
            x.mantissas.reshape(len(x.mantissas), taps, 1, -1),
            None if x.exponents is None else x.exponents.reshape(len(x.mantissas), taps, 1, -1),
            x.block,
            x.fraction_bits,
            x.channels // taps,
        )
        result = self.kernels.conv2d(tap, w, Window((taps, 1)), 1, accumulator, order, self.threads)
        return result.reshape(len(result), -1)

    def _taps(self) -> int:
        """How many taps the sum is made of: where the order puts channel blocks first, those of the window."""
        if self.numbers.order != "chwk" or isinstance(self.chain.read, VUnroll):
            return 1
        return self.chain.columns // self.chain.window[2].size

    def _matrix(self, taps: int) -> Operand:
        """The chain's tiles as one matrix (rows·N, columns·N), or (rows·N, taps, 1, columns·N / taps)."""
        tiles, state, n = self.chain.tiles, self.state, self.n
        assert tiles is not None
        if (tiles, taps) in state._matrices:
            return state._matrices[tiles, taps]
        at = state.tiles[Mem.MATRIX_RF].read(tiles.span.low, tiles.span.high)
        if (at < 0).any():
            missing = tiles.address + int(np.argmax(at < 0))
            self.refuse(MvMul(tiles.address), f"tile {missing} of matrix_rf was never written")
        assert state.store is not None
        store = state.store

        def matrix(array: Array) -> Array:
            rows = array[at].reshape(tiles.rows, tiles.columns, n, -1).transpose(0, 2, 1, 3)
            return np.ascontiguousarray(rows).reshape(tiles.rows * n, *((-1,) if taps == 1 else (taps, 1, -1)))

        exponents = None if store.exponents is None else matrix(store.exponents)
        channels = tiles.columns * n // taps
        made = Operand(matrix(store.mantissas), exponents, store.block, store.fraction_bits, channels)
        state._matrices[tiles, taps] = made
        return made
