"""Programs of dense layers and recurrent cells for the matrix-vector engine, weights on the chip.

The LSTM is the listing of Fowers et al., ISCA 2018, section V; the others are written alike. They have no contents:
their cycles do not depend on values. A vector of `length` takes ⌈length/N⌉ native vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fpgasim.errors import DeviceError
from fpgasim.npu.device import Device
from fpgasim.npu.isa import (
    EndChain,
    Instruction,
    Mem,
    MvMul,
    Register,
    SWr,
    VRd,
    VRelu,
    VSigm,
    VTanh,
    VvAdd,
    VvASubB,
    VvMul,
    VWr,
    encode,
)
from fpgasim.npu.numbers import resolve_numbers
from fpgasim.npu.programs import Block, Program

_X, _H, _CELL = 0, 1, 2  # vectors of the initial VRF, in units of a state's length


def dense_program(widths: Sequence[int], device: Device, batch: int = 1) -> Program:
    """Layers of the given `widths` (inputs first), each but the last with a relu, for `batch` inputs one by one."""
    native, words, tile = device.native_dim, [], 0
    sizes = [-(-width // native) for width in widths]
    _check_room("dense", device, sum(a * b for a, b in pairwise(sizes)))
    longest = max(sizes)
    words += [_set(Register.COLUMNS, sizes[0]), VRd(Mem.NET_QUEUE, 0), VWr(Mem.INITIAL_VRF, 0), EndChain()]
    for i, (columns, rows) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        words += [_set(Register.ROWS, rows), _set(Register.COLUMNS, columns)]
        words += [VRd(Mem.INITIAL_VRF, i * longest), MvMul(tile), VvAdd(Mem.ADDSUB_VRF_0, i * longest)]
        words += [VWr(Mem.NET_QUEUE, 0)] if last else [VRelu(), VWr(Mem.INITIAL_VRF, (i + 1) * longest)]
        words += [EndChain()]
        tile += rows * columns
    macs = sum(a * b for a, b in pairwise(widths))
    return _program("dense", device, [Block(_encoded(words), batch, "dense", macs)])


def cell_program(kind: str, hidden: int, time: int, device: Device) -> Program:
    """`time` steps of an `rnn`, `gru` or `lstm` cell whose input is as wide as its state.

    Where the padded matrices do not fit on the chip but the bare ones do, a state less than N/16 above a multiple of N
    is cut to that multiple (see `_packed`). Raises DeviceError for a cell that does not fit.
    """
    cell, products = {"rnn": (_rnn, 2), "gru": (_gru, 6), "lstm": (_lstm, 8)}[kind]
    size = -(-hidden // device.native_dim)
    if products * size * size > device.mrf_tiles and _packed(hidden, products, device):
        size = hidden // device.native_dim
    _check_room(kind, device, products * size * size)
    words = [_set(Register.ROWS, size), _set(Register.COLUMNS, size), *cell(size)]
    return _program(kind, device, [Block(_encoded(words), time, kind, products * hidden * hidden)])


def _packed(hidden: int, products: int, device: Device) -> bool:
    """Whether a cell runs on the whole tiles of its matrices, the little that is beyond them being packed elsewhere.

    GRU 2816 ran on 306 tiles of 400×400 (ISCA 2018, Table V), where padded it needs 384. How is not published; what is
    beyond is assumed to lie in the tiles that are left and to be worked on by the tile engines that idle in the last
    step of a matrix. So there must be as much room in both.
    """
    native = device.native_dim
    whole, rest = divmod(hidden, native)
    steps = -(-whole * whole // device.tiles)
    fits = products * hidden**2 <= device.mrf_tiles * native**2
    return whole > 0 and 16 * rest < native and fits and hidden**2 <= steps * device.tiles * native**2


def _rnn(n: int) -> list[Instruction]:
    """h = tanh(W·x + b + U·h); two buffers for h would make two steps a block, so h is copied."""
    words = [*_take(), *_product(_X, 0, n, [VvAdd(Mem.ADDSUB_VRF_0, 0)], [VWr(Mem.ADDSUB_VRF_0, n)])]
    state = [VvAdd(Mem.ADDSUB_VRF_0, n), VTanh()]
    words += _product(_H, 1, n, state, [VWr(Mem.INITIAL_VRF, _CELL * n), VWr(Mem.NET_QUEUE, 0)])
    return [*words, VRd(Mem.INITIAL_VRF, _CELL * n), VWr(Mem.INITIAL_VRF, _H * n), EndChain()]


def _gru(n: int) -> list[Instruction]:
    """r, z = σ(W·x + b + U·h), c = tanh(W·x + b + r∘(U·h)), h = c + z∘(h − c), as in DeepBench's cell."""
    add0, add1, mul0, mul1 = Mem.ADDSUB_VRF_0, Mem.ADDSUB_VRF_1, Mem.MULTIPLY_VRF_0, Mem.MULTIPLY_VRF_1
    words = _take()
    for gate, file in enumerate((add0, add0, add1)):
        words += _product(_X, gate, n, [VvAdd(add0, gate * n)], [VWr(file, (3 + gate) * n)])
    words += _product(_H, 3, n, [VvAdd(add0, 3 * n), VSigm()], [VWr(mul0, 0)])
    words += _product(_H, 4, n, [VvAdd(add0, 4 * n), VSigm()], [VWr(mul1, 0)])
    words += _product(_H, 5, n, [VvMul(mul0, 0), VvAdd(add1, 5 * n), VTanh()], [VWr(add0, 6 * n), VWr(add1, 6 * n)])
    update = [VvASubB(add0, 6 * n), VvMul(mul1, 0), VvAdd(add1, 6 * n)]
    writes = [VWr(Mem.INITIAL_VRF, _H * n), VWr(Mem.NET_QUEUE, 0)]
    return [*words, VRd(Mem.INITIAL_VRF, _H * n), *update, *writes, EndChain()]


def _lstm(n: int) -> list[Instruction]:
    """The published listing: f, i, o, then the cell, then h."""
    add0, add1, mul0 = Mem.ADDSUB_VRF_0, Mem.ADDSUB_VRF_1, Mem.MULTIPLY_VRF_0
    words = _take()
    for gate in range(4):
        words += _product(_X, gate, n, [VvAdd(add0, gate * n)], [VWr(add0, (4 + gate) * n)])
    words += _product(_H, 4, n, [VvAdd(add0, 4 * n), VSigm(), VvMul(mul0, 0)], [VWr(add1, 0)])
    words += _product(_H, 5, n, [VvAdd(add0, 5 * n), VSigm()], [VWr(mul0, n)])
    words += _product(_H, 6, n, [VvAdd(add0, 6 * n), VSigm()], [VWr(mul0, 2 * n)])
    cell = [VvAdd(add0, 7 * n), VTanh(), VvMul(mul0, n), VvAdd(add1, 0)]
    words += _product(_H, 7, n, cell, [VWr(mul0, 0), VWr(Mem.INITIAL_VRF, _CELL * n)])
    writes = [VWr(Mem.INITIAL_VRF, _H * n), VWr(Mem.NET_QUEUE, 0)]
    return [*words, VRd(Mem.INITIAL_VRF, _CELL * n), VTanh(), VvMul(mul0, 2 * n), *writes, EndChain()]


def _take() -> list[Instruction]:
    return [VRd(Mem.NET_QUEUE, 0), VWr(Mem.INITIAL_VRF, _X), EndChain()]


def _product(
    source: int, matrix: int, n: int, stages: Sequence[Instruction], writes: Sequence[Instruction]
) -> list[Instruction]:
    return [VRd(Mem.INITIAL_VRF, source * n), MvMul(matrix * n * n), *stages, *writes, EndChain()]


def _set(register: Register, value: int) -> Instruction:
    return SWr(register, value)


def _encoded(words: Sequence[Instruction]) -> tuple[int, ...]:
    return tuple(encode(word) for word in words)


def _check_room(name: str, device: Device, tiles: int) -> None:
    if tiles > device.mrf_tiles:
        raise DeviceError(
            f"the {name} does not fit on the chip: device {device.name!r} holds {device.mrf_tiles} native tiles of "
            f"{device.native_dim}x{device.native_dim} weights, the {name} needs {tiles}; a smaller one would do"
        )


def _program(name: str, device: Device, blocks: list[Block]) -> Program:
    return Program(name, device, resolve_numbers(device, "bw_1s5e5m"), tuple(blocks))
