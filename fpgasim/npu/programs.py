"""`Program`: what one run of the engine is: instruction words in blocks, and what its memories hold before them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fpgasim.errors import ProgramError
from fpgasim.kernels.contract import Float32Array, Operand
from fpgasim.kernels.pointwise import round_to
from fpgasim.npu.device import Device
from fpgasim.npu.isa import WORD_BITS, Mem
from fpgasim.npu.numbers import Numbers

#: Vectors and tiles that DRAM has addresses for (each kind has its own).
DRAM_DEPTH = 1 << 24


@dataclass(frozen=True)
class Block:
    """A run of instruction words and how often the control processor issues it.

    For reports: `name`, and `macs`, the useful multiply-accumulates of one turn (None: all that its tiles do).
    """

    words: tuple[int, ...]
    repeat: int = 1
    name: str = ""
    macs: int | None = None


@dataclass(frozen=True)
class Port:
    """A tensor that comes from the network queue or goes to it, as vectors of N elements of the pointwise type.

    `shape` is the ONNX shape: (N, C, H, W), or any other rank with the channels last. By pixels (the default) every
    pixel's channels are filled up with zeros to whole vectors; `packed` fills up only each image (each index of the
    first dimension), flattened with the channels fastest. An image (N, C, H, W) has `halo` rows and columns of zeros
    around it (top, left, bottom, right).
    """

    name: str
    shape: tuple[int, ...]
    packed: bool = False
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)

    def vectors(self, native_dim: int) -> int:
        """How many vectors the tensor is."""
        rows, length = self._rows()
        return rows * -(-length // native_dim)

    def to_vectors(self, tensor: Float32Array, native_dim: int) -> Float32Array:
        """`tensor` (of `shape`) as (vectors, N)."""
        rows, length = self._rows()
        image = tensor
        if tensor.ndim == 4:
            top, left, bottom, right = self.halo
            image = np.pad(np.moveaxis(tensor, 1, -1), ((0, 0), (top, bottom), (left, right), (0, 0)))
        padded = np.zeros((rows, -(-length // native_dim) * native_dim), np.float32)
        padded[:, :length] = image.reshape(rows, length)
        return padded.reshape(-1, native_dim)

    def from_vectors(self, vectors: Float32Array) -> Float32Array:
        """The tensor (of `shape`) that (vectors, N) hold."""
        rows, length = self._rows()
        values = vectors.reshape(rows, -1)[:, :length]
        if len(self.shape) != 4:
            return values.reshape(self.shape).copy()
        n, c, h, w = self.shape
        top, left, bottom, right = self.halo
        image = values.reshape(n, top + h + bottom, left + w + right, c)[:, top : top + h, left : left + w]
        return np.ascontiguousarray(image.transpose(0, 3, 1, 2))

    def _rows(self) -> tuple[int, int]:
        """How many runs of elements are filled up, and the length of one."""
        if len(self.shape) == 4:
            n, c, h, w = self.shape
            top, left, bottom, right = self.halo
            pixels = (top + h + bottom) * (left + w + right)
            return (n, pixels * c) if self.packed else (n * pixels, c)
        if self.packed:
            return self.shape[0], math.prod(self.shape[1:])
        return math.prod(self.shape[:-1]), self.shape[-1]


@dataclass(frozen=True, eq=False)
class Program:
    """Instructions for `device` in `numbers`.

    What memories hold when it is loaded, from address 0: `vectors`, by memory, (n, N) float32 values of the pointwise
    type; `tiles`, for DRAM and MATRIX_RF, an operand with mantissas (n, N, N), one row of a tile an output. `inputs`
    come from the network queue in this order, `outputs` go to it.
    Raises ProgramError for contents that the device cannot hold.
    """

    name: str
    device: Device
    numbers: Numbers
    blocks: tuple[Block, ...]
    vectors: Mapping[Mem, Float32Array] = field(default_factory=dict)
    tiles: Mapping[Mem, Operand] = field(default_factory=dict)
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()

    def __post_init__(self) -> None:
        n, block = self.device.native_dim, self.numbers.format.block
        if not isinstance(self.name, str):
            raise ProgramError(f"program name {self.name!r} must be a text")
        if not block or n % block:
            self._refuse(f"format {self.numbers.format.name} has blocks of {block}, which do not divide the native "
                         f"dimension {n}")  # fmt: skip
        for i, run in enumerate(self.blocks):
            if not isinstance(run.name, str):
                self._refuse(f"block {i}: name={run.name!r} must be a text")
            if not _is_whole(run.repeat, 1):
                self._refuse(f"block {i}: repeat={run.repeat!r} must be a whole number from 1 up")
            if run.macs is not None and not _is_whole(run.macs, 0):
                self._refuse(f"block {i}: macs={run.macs!r} must be a whole number from 0 up, or None")
            if not all(0 <= word < 1 << WORD_BITS for word in run.words):
                self._refuse(f"block {i}: a word does not fit in {WORD_BITS} bits")
        for port in (*self.inputs, *self.outputs):
            if not isinstance(port.name, str):
                self._refuse(f"port name {port.name!r} must be a text")
            if not isinstance(port.packed, bool):
                self._refuse(f"port {port.name!r}: packed={port.packed!r} must be true or false")
            if not port.shape or not all(_is_whole(size, 1) for size in port.shape):
                self._refuse(f"port {port.name!r}: shape {port.shape} has a size that is no whole number from 1 up, or "
                             "none")  # fmt: skip
            if (
                len(port.halo) != 4
                or not all(_is_whole(width, 0) for width in port.halo)
                or (any(port.halo) and len(port.shape) != 4)
            ):
                self._refuse(f"port {port.name!r}: halo {port.halo} does not go with shape {port.shape}; four widths "
                             "from 0 up around (N, C, H, W) would")  # fmt: skip
        for mem, vectors in self.vectors.items():
            self._check_vectors(mem, vectors)
        for mem, tiles in self.tiles.items():
            self._check_tiles(mem, tiles)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the program to the file `path`: see `program_files.save`."""
        from fpgasim.npu import program_files  # which makes programs itself

        program_files.save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Program:
        """The program in the file `path`: see `program_files.load`."""
        from fpgasim.npu import program_files

        return program_files.load(path)

    def _check_vectors(self, mem: Mem, vectors: Float32Array) -> None:
        n = self.device.native_dim
        if mem in (Mem.NET_QUEUE, Mem.MATRIX_RF):
            self._refuse(f"{mem.name.lower()} holds no vectors")
        if vectors.dtype != np.float32 or vectors.ndim != 2 or vectors.shape[1] != n:
            self._refuse(f"{mem.name.lower()}: {vectors.dtype} of shape {vectors.shape}; float32 of (n, {n}) would do")
        if len(vectors) > (room := depth(self.device, mem)):
            self._refuse(f"{mem.name.lower()}: {len(vectors)} vectors do not fit; there is room for {room}")
        if not np.array_equal(round_to(vectors, self.numbers.pointwise), vectors, equal_nan=True):
            self._refuse(f"{mem.name.lower()}: values are not all of the pointwise type {self.numbers.pointwise}")

    def _check_tiles(self, mem: Mem, tiles: Operand) -> None:
        n, fmt, found = self.device.native_dim, self.numbers.format, tiles.mantissas.shape
        if mem not in (Mem.DRAM, Mem.MATRIX_RF):
            self._refuse(f"{mem.name.lower()} holds no tiles")
        blocks = None if tiles.exponents is None else tiles.exponents.shape
        if found[1:] != (n, n) or tiles.block != fmt.block or blocks not in (None, (found[0], n, n // fmt.block)):
            self._refuse(f"{mem.name.lower()}: tiles of shape {found}; (n, {n}, {n}) in blocks of {fmt.block} would do")
        if found[0] > (room := depth(self.device, mem)):
            self._refuse(f"{mem.name.lower()}: {found[0]} tiles do not fit; there is room for {room}")

    def _refuse(self, what: str) -> None:
        raise ProgramError(f"program {self.name!r}: {what}")


def _is_whole(value: object, low: int) -> bool:
    """Whether `value` is an int from `low` up."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def depth(device: Device, mem: Mem) -> int:
    """How many vectors, or for MATRIX_RF tiles, `mem` has room for on `device`; 0 where there is no such memory.

    DRAM has room for `DRAM_DEPTH` of each.
    """
    if mem.mfu is not None and mem.mfu >= device.mfus:
        return 0
    if mem.is_addsub:
        return device.addsub_vrf
    if mem.is_multiply:
        return device.multiply_vrf
    return {Mem.INITIAL_VRF: device.initial_vrf, Mem.MATRIX_RF: device.mrf_tiles, Mem.DRAM: DRAM_DEPTH}.get(mem, 0)


def native_tiles(matrix: Operand, native_dim: int) -> Operand:
    """The weights `matrix` (rows, columns) as native tiles (n, N, N), row of tiles by row of tiles, zeros beyond it."""
    n = native_dim
    rows, columns = -(-matrix.mantissas.shape[0] // n), -(-matrix.mantissas.shape[1] // n)

    def cut(array: npt.NDArray[np.generic], width: int) -> npt.NDArray[np.generic]:
        padded = np.zeros((rows * n, columns * width), array.dtype)
        padded[: array.shape[0], : array.shape[1]] = array
        tiles = padded.reshape(rows, n, columns, width).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(tiles.reshape(rows * columns, n, width))

    exponents = None if matrix.exponents is None else cut(matrix.exponents, n // matrix.block)
    return Operand(cut(matrix.mantissas, n), exponents, matrix.block, matrix.fraction_bits, n)  # type: ignore[arg-type]
