"""What every kernel computes: the one contract of all backends, and the operands they take.

Layouts: activations NHWC, weights (O, KH, KW, C), everything C-contiguous with the block axis last and padded to
whole blocks. A backend trusts its caller: shapes, dtypes and ranges were checked at the door (`fpgasim.ops`, the
compiler). NaNs may have any payload; every other result is the same bits on every backend.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import numpy.typing as npt

from fpgasim.errors import FormatError, InputError, UnknownNameError
from fpgasim.numerics import BlockFormat, BlockTensor, Rounding
from fpgasim.numerics.tensors import element_values

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]
Int16Array = npt.NDArray[np.int16]

#: How terms add up, as canonical text: one of `ACCUMULATORS` or `fixed(bits,frac,wrap|saturate)`.
Accumulator = str
#: In which order, as canonical text: one of `ORDERS` or `tree(T)`.
Order = str
Overflow = Literal["wrap", "saturate"]
Pointwise = Literal["fp16", "bf16", "fp32"]
StepKind = Literal["add", "sub", "mul", "max", "relu", "clip", "sigmoid", "tanh"]
ACCUMULATORS = ("fp32", "fp16", "bf16", "exact")
ORDERS = ("khwc", "chwk")
OVERFLOWS: tuple[Overflow, ...] = get_args(Overflow)
POINTWISE: tuple[Pointwise, ...] = get_args(Pointwise)


@dataclass(frozen=True)
class Fixed:
    """A two's complement accumulator of `bits` bits, the lowest `fraction` of them behind the point."""

    bits: int
    fraction: int
    overflow: Overflow

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 64:
            raise InputError(f"accumulator {self}: {self.bits} bits will not do; 2 to 64 would")
        if not self.fraction < self.bits:
            raise InputError(f"accumulator {self}: {self.fraction} of {self.bits} bits behind the point will not do; "
                             f"0 to {self.bits - 1} would")  # fmt: skip

    def __str__(self) -> str:
        return f"fixed({self.bits},{self.fraction},{self.overflow})"


_FIXED = re.compile(rf"fixed\(\s*(\d{{1,9}})\s*,\s*(\d{{1,9}})\s*,\s*({'|'.join(OVERFLOWS)})\s*\)")
_TREE = re.compile(r"tree\(\s*(\d{1,9})\s*\)")


@functools.cache
def fixed_of(accumulator: Accumulator) -> Fixed | None:
    """The numbers in `fixed(bits,frac,overflow)`; None for any other accumulator. Raises InputError out of range."""
    found = _FIXED.fullmatch(accumulator)
    return Fixed(int(found[1]), int(found[2]), cast(Overflow, found[3])) if found else None


@functools.cache
def engines_of(order: Order) -> int:
    """T of `tree(T)`; 1 for the other orders, in which one engine adds all terms. Raises InputError out of range."""
    found = _TREE.fullmatch(order)
    engines = int(found[1]) if found else 1
    if not 1 <= engines <= 1024:
        raise InputError(f"order {order}: {engines} engines will not do; 1 to 1024 would")
    return engines


def get_accumulator(name: str) -> Accumulator:
    """`name`, checked and in canonical form; `Backend.conv2d` says what each accumulator does.

    Raises UnknownNameError for a name that is none, InputError for a number in it that is out of range.
    """
    fixed = fixed_of(name) if isinstance(name, str) else None
    if fixed is None and name not in ACCUMULATORS:
        raise UnknownNameError("accumulator", name, (*ACCUMULATORS, "fixed(bits,frac,wrap|saturate)"))
    return name if fixed is None else str(fixed)


def get_order(name: str) -> Order:
    """`name`, checked and in canonical form; `Backend.conv2d` says what each order is. Raises as `get_accumulator`."""
    tree = isinstance(name, str) and _TREE.fullmatch(name)
    if not tree and name not in ORDERS:
        raise UnknownNameError("order", name, (*ORDERS, "tree(T)"))
    return f"tree({engines_of(name)})" if tree else name


def get_pointwise(name: str) -> Pointwise:
    """`name`, checked: the type between layers, `fp16`, `bf16` or `fp32`."""
    if name not in POINTWISE:
        raise UnknownNameError("pointwise type", name, POINTWISE)
    return name


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor of blocks as the matrix unit takes it.

    `mantissas` (…, blocks·block): int8 or int16, or float32 where elements are no integers (MXFP8, fp32).
    `exponents` (…, blocks) int16, or None for all zero (fp32). An element is worth mantissa·2^(exponent −
    fraction_bits); a block with exponent `NAN_EXPONENT` is NaN. `channels` counts the elements before padding.
    """

    mantissas: Array
    exponents: Int16Array | None
    block: int
    fraction_bits: int
    channels: int

    @property
    def blocks(self) -> int:
        return int(self.mantissas.shape[-1]) // self.block


@dataclass(frozen=True)
class Window:
    """Where a convolution or a pool looks: sizes as (height, width), pads as (top, left, bottom, right)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(OH, OW) for an input of `height` × `width`. Raises InputError where the window does not fit."""
        top, left, bottom, right = self.pads
        spans = (height + top + bottom, width + left + right)
        reach = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        if spans[0] < reach[0] or spans[1] < reach[1]:
            raise InputError(
                f"a window of {reach[0]}x{reach[1]} does not fit into the padded input of {spans[0]}x{spans[1]}"
            )
        oh, ow = ((span - r) // s + 1 for span, r, s in zip(spans, reach, self.stride, strict=True))
        return oh, ow


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the pointwise unit on the value v in its pipeline, rounded once to the pointwise type.

    v + o, v − o (o − v if `swapped`), v·o, max(v, o), relu(v), min(max(v, low), high), sigmoid(v) or tanh(v), as
    `pointwise.py` defines them. The operand o is (pixels, C), (C,) or (1,), of the pointwise type like the bounds.
    """

    kind: StepKind
    operand: Float32Array | None = None
    swapped: bool = False
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, eq=False)
class Unquantized:
    """Numbers (N, H, W, C) that are still to be quantized to `format`, rounding ties to even.

    Of `values` with a `window`, its windows laid out as `Backend.unfold` does are meant, each in whole blocks. Then
    they go through `steps`, whose operands are (C,) or (1,); then every pixel must be read, since what saturates is
    counted. Pixels of `values` may lie further apart than C numbers.
    """

    values: Float32Array
    format: BlockFormat
    window: Window | None = None
    steps: Sequence[Step] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is quantized; with a window the last is a multiple of the block."""
        if self.window is None:
            return self.values.shape
        n, height, width, channels = self.values.shape
        blocks = -(-math.prod(self.window.kernel) * channels // self.format.block)
        return (n, *self.window.output_size(height, width), blocks * self.format.block)


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads a tensor in blocks, as `Backend.layer` names its parts."""

    w: Operand
    window: Window
    groups: int
    accumulator: Accumulator
    order: Order


class Room(Protocol):
    """How a backend lays out blocks for the layers that read them: in `size` bytes."""

    @property
    def size(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Codes:
    """A tensor in blocks that one layer leaves and others read: in `memory`, uint8, from a line of the cache on."""

    room: Room
    memory: Array


class Backend(Protocol):
    """The kernels. `name` is what FPGASIM_KERNELS selects. `out` takes the result, if given, and is returned."""

    @property
    def name(self) -> str: ...

    def quantize(
        self,
        x: Float32Array,
        fmt: BlockFormat,
        rounding: Rounding,
        seed: int,
        /,
        out: tuple[Array, Int16Array] | None = None,
    ) -> tuple[Array, Int16Array]:
        """Codes (rows, blocks·block) and shared exponents (rows, blocks) of `x` (rows, n), by `numerics/scalar.py`.

        The tail's codes are zero. Element j of row i draws its random bits from index i·n + j.
        """
        ...

    def quantize_across(
        self, x: Float32Array, fmt: BlockFormat, rounding: Rounding, seed: int, as_rows: bool, /
    ) -> tuple[Array, Int16Array]:
        """As `quantize` for `x` (images, n, pixels), of which row image·pixels + p is the n numbers of pixel p.

        `as_rows` the results are laid out as there, else like x: codes (images, n, pixels), without a tail's padding,
        and exponents (images, blocks, pixels).
        """
        ...

    def conv2d(
        self,
        x: Operand,
        w: Operand,
        window: Window,
        groups: int,
        accumulator: Accumulator,
        order: Order,
        threads: int,
        /,
    ) -> Float32Array:
        """The convolution (N, OH, OW, O) of `x` (N, H, W, ·) with `w` (O, KH, KW, ·), both blocked alike.

        For each output the blocks under the window are summed in `order`; blocks outside the image, and for
        groups > 1 blocks without a channel of the output's group, are skipped. A block's dot product d is an exact
        integer, its term t = d·2^s rounded once to fp32, s the sum of both exponents. Where an operand is float32,
        d is the fp32 sum of the fp32 products in ascending element order, from +0.

        Accumulators, from +0:
        `fp32`, `fp16`, `bf16`: acc = r(acc + t), the exact sum rounded once to the type, ties to even. fp16
        saturates at ±65504, the others overflow to infinity. A result of zero is +0.
        `fixed(bits,frac,overflow)`: acc is an integer of `bits` bits in two's complement; acc += t·2^frac rounded to
        an integer, ties to even, modulo 2^bits or clamped to the range. An infinite t is beyond the range when
        clamped, NaN when not. A NaN makes the result NaN. The result is acc·2^-frac rounded once to fp32.
        `exact`: the sum of all d·2^s, rounded once to fp32; infinities and NaNs among the d·2^s add as in IEEE 754.

        Orders: `khwc` (kh, kw, channel block) and `chwk` (channel block, kh, kw), one term after the other.
        `tree(T)`: of the sequence `khwc`, positions outside the image included, engine j of T adds blocks j, j + T,
        …; then neighbours are added in pairs, the sums of pairs again, and so on, each sum as above. One that has no
        neighbour goes up as it is.
        """
        ...

    def matmul(self, a: Operand, b: Operand, accumulator: Accumulator, order: Order, threads: int, /) -> Float32Array:
        """The product (M, N) of `a` (M, ·) and the transpose of `b` (N, ·); sums as in a `conv2d` of one tap."""
        ...

    def depthwise(
        self,
        x: Float32Array,
        w: Float32Array,
        window: Window,
        pointwise: Pointwise,
        threads: int,
        /,
        out: Float32Array | None = None,
    ) -> Float32Array:
        """The depthwise convolution (N, OH, OW, C·m) of `x` (N, H, W, C) with `w` (KH, KW, C·m), without blocks.

        Values are of the type `pointwise`, kept in float32. Output channel o reads input channel o // m:
        acc = r(x·w) at the first position inside the image, then acc = r(acc + r(x·w)) in (kh, kw) order, r one
        rounding to `pointwise`; 0 where no position is inside.
        """
        ...

    def bind_depthwise(
        self,
        x: Float32Array,
        w: Float32Array,
        window: Window,
        steps: Sequence[Step],
        results: Mapping[int, Float32Array],
        pointwise: Pointwise,
        threads: int,
        /,
    ) -> Callable[[], int]:
        """`depthwise` and then `chain` on these very arrays, made ready, as `bind_layer` does.

        A call returns how many values saturated in `steps`, and how many before them lie at the limits of fp16.
        """
        ...

    def layer(
        self,
        x: Operand | Unquantized,
        w: Operand,
        window: Window,
        groups: int,
        accumulator: Accumulator,
        order: Order,
        steps: Sequence[Step],
        results: Mapping[int, Float32Array],
        pointwise: Pointwise,
        threads: int,
        /,
    ) -> tuple[int, int]:
        """A `conv2d` of `x`, quantized first if need be, whose unrounded result goes through `chain`.

        Fills `results` as `chain` does. Returns how many values saturated before, in the steps of `x`, and in `steps`.
        """
        ...

    def code_room(
        self, shape: tuple[int, int, int, int], fmt: BlockFormat, readers: Sequence[Reader], /
    ) -> Room | None:
        """Room for a tensor (N, H, W, C) in blocks of `fmt` that all `readers` take as they lie there.

        None where this backend has none for these, or where numbers serve them better.
        """
        ...

    def bind_layer(
        self,
        x: Operand | Unquantized | Codes,
        w: Operand,
        window: Window,
        groups: int,
        accumulator: Accumulator,
        order: Order,
        steps: Sequence[Step],
        results: Mapping[int, Float32Array],
        pointwise: Pointwise,
        threads: int,
        /,
        codes: Codes | None = None,
    ) -> Callable[[], tuple[int, int]]:
        """`layer` on these very arrays, made ready: a call computes it from what they hold by then.

        `codes` takes what the last step makes, quantized with ties to even; then `results` need not. Rooms are those
        of `code_room`. One thread at a time may call it.
        """
        ...

    def chain(
        self,
        source: Float32Array,
        steps: Sequence[Step],
        results: Mapping[int, Float32Array],
        pointwise: Pointwise,
        unrounded: bool,
        threads: int,
        /,
    ) -> int:
        """Fills `results` from `source` (pixels, C) by `steps` and returns how many values saturated.

        `results[i]` takes what step i makes, `results[-1]` the source, which is rounded first if `unrounded`; the
        last of them must be there and may be `source` itself.
        """
        ...

    def max_pool(
        self, x: Float32Array, window: Window, threads: int, /, out: Float32Array | None = None
    ) -> Float32Array:
        """The largest value under each window of `x` (N, H, W, C): padding never counts, NaN wins, a zero is +0."""
        ...

    def average_pool(
        self,
        x: Float32Array,
        window: Window,
        pointwise: Pointwise,
        count_padding: bool,
        threads: int,
        /,
        out: Float32Array | None = None,
    ) -> Float32Array:
        """The mean under each window of `x` (N, H, W, C), rounded as `pointwise.average_pool` says."""
        ...

    def unfold(
        self, x: Float32Array, window: Window, threads: int, /, out: Float32Array | None = None
    ) -> Float32Array:
        """The windows of `x` as (N, OH, OW, KH·KW·C) in (kh, kw, c) order, zero outside the image.

        A longer row of `out` is filled up with zeros.
        """
        ...

    def enter(
        self, x: Float32Array, pointwise: Pointwise, threads: int, /, out: Float32Array | None = None
    ) -> tuple[Float32Array, int]:
        """`x` (N, C, H, W) rounded to `pointwise`, as (N, H, W, C), and how many values saturated."""
        ...

    def leave(self, x: Float32Array, threads: int, /, out: Float32Array | None = None) -> Float32Array:
        """`x` (N, H, W, C) as (N, C, H, W)."""
        ...


def operand(tensor: BlockTensor) -> Operand:
    """`tensor` as the matrix unit takes it: block axis last, float elements as integers where they fit into 16 bits.

    FP4 and FP6 elements are multiples of 2^(emin − m) and become integer mantissas; FP8 elements stay floats.
    """
    codes, exponents = tensor.rows()
    return rows_operand(codes, exponents, tensor.format, tensor.shape[tensor.axis])


def rows_operand(codes: Array, exponents: Int16Array, fmt: BlockFormat, channels: int) -> Operand:
    """What a backend's `quantize` returned, reshaped to (…, blocks·block) and (…, blocks), as an operand."""
    if fmt.is_fp32:
        return Operand(codes, None, 1, 0, channels)
    table, fraction_bits = element_table(fmt)
    return Operand(codes if table is None else table[codes], exponents, fmt.block, fraction_bits, channels)


@functools.cache
def element_table(fmt: BlockFormat) -> tuple[Array | None, int]:
    """The mantissa of each code of small floats, None where codes are mantissas; and the fraction bits of mantissas.

    Codes beyond the largest element, which no tensor holds, have its mantissa.
    """
    if not fmt.is_float:
        return None, 0 if fmt.is_fp32 else fmt.fraction_bits
    values = np.clip(element_values(fmt), -fmt.element_max, fmt.element_max)
    fraction_bits = fmt.mantissa_bits - fmt.element_emin
    largest = fmt.element_max * 2.0**fraction_bits
    if largest >= 1 << 15:
        return values, 0
    return (values * 2.0**fraction_bits).astype(np.int8 if largest < 1 << 7 else np.int16), fraction_bits


def look_up(table: Array, codes: Array, out: Array) -> Array:
    """`out`, filled with the entries of `table` for `codes`; in pieces: NumPy makes indices of eight bytes of codes."""
    flat, to, piece = codes.reshape(-1), out.reshape(-1), 1 << 12
    for i in range(0, flat.size, piece):
        np.take(table, flat[i : i + piece], out=to[i : i + piece], mode="clip")
    return out


def check_alike(x: BlockFormat, w: BlockFormat) -> None:
    """Raises FormatError where two formats cannot meet in one dot product: their blocks must be of one size."""
    if x.block != w.block:
        raise FormatError(
            f"{x.name} has blocks of {x.block} and {w.name} of {w.block}; both operands need one block size"
        )
    if x.is_fp32 != w.is_fp32:
        raise FormatError(f"{x.name} and {w.name} do not mix: fp32 goes with fp32 alone")
