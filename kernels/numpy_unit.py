"""`PointwiseUnit`: the pointwise part of a backend by NumPy, for backends that have no kernels of their own for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from fpgasim.kernels import pointwise as unit
from fpgasim.kernels.contract import (
    Accumulator,
    Array,
    Codes,
    Float32Array,
    Int16Array,
    Operand,
    Order,
    Pointwise,
    Reader,
    Room,
    Step,
    Unquantized,
    Window,
    element_table,
    look_up,
)
from fpgasim.kernels.parallel import split
from fpgasim.numerics import BlockFormat, Rounding
from fpgasim.numerics.tensors import code_dtype

ArrayT = TypeVar("ArrayT", bound=Array)

#: Elements of a piece: it goes through the whole chain while it stays in the processor's second-level cache.
PIECE = 1 << 15


class PointwiseUnit(ABC):
    """`contract.Backend` says what each method computes; pools and layouts are those of `pointwise.py`."""

    @abstractmethod
    def quantize(
        self,
        x: Float32Array,
        fmt: BlockFormat,
        rounding: Rounding,
        seed: int,
        /,
        out: tuple[Array, Int16Array] | None = None,
    ) -> tuple[Array, Int16Array]: ...

    def quantize_across(
        self, x: Float32Array, fmt: BlockFormat, rounding: Rounding, seed: int, as_rows: bool, /
    ) -> tuple[Array, Int16Array]:
        images, n, pixels = x.shape
        rows = np.ascontiguousarray(x.transpose(0, 2, 1)).reshape(images * pixels, n)
        codes, exponents = self.quantize(rows, fmt, rounding, seed)
        if as_rows:
            return codes, exponents
        codes, exponents = (a.reshape(images, pixels, a.shape[1]) for a in (codes[:, :n], exponents))
        return np.ascontiguousarray(codes.transpose(0, 2, 1)), np.ascontiguousarray(exponents.transpose(0, 2, 1))

    @abstractmethod
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
    ) -> Float32Array: ...

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
        blocks, before = self._quantized(x, pointwise, threads) if isinstance(x, Unquantized) else (x, 0)
        result = self._product(blocks, w, window, groups, accumulator, order, threads)
        return before, self.chain(result.reshape(-1, result.shape[3]), steps, results, pointwise, True, threads)

    def _product(
        self,
        x: Operand,
        w: Operand,
        window: Window,
        groups: int,
        accumulator: Accumulator,
        order: Order,
        threads: int,
    ) -> Float32Array:
        """As conv2d; the result is only good until the next."""
        return self.conv2d(x, w, window, groups, accumulator, order, threads)

    def _room(self, purpose: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array for what a layer makes on the way; a backend may keep its memory for the next layer."""
        return np.empty(shape, dtype)

    def _quantized(self, x: Unquantized, pointwise: Pointwise, threads: int) -> tuple[Operand, int]:
        plain, saturated = self.plain(x, pointwise, threads)
        return self._blocks(plain), saturated

    def code_room(
        self, shape: tuple[int, int, int, int], fmt: BlockFormat, readers: Sequence[Reader], /
    ) -> Room | None:
        return None

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
        assert codes is None and not isinstance(x, Codes)  # noqa: PT018
        args = (x, w, window, groups, accumulator, order, steps, results, pointwise, threads)
        return lambda: self.layer(*args)

    @abstractmethod
    def depthwise(
        self,
        x: Float32Array,
        w: Float32Array,
        window: Window,
        pointwise: Pointwise,
        threads: int,
        /,
        out: Float32Array | None = None,
    ) -> Float32Array: ...

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
        def work() -> int:
            made = self.depthwise(x, w, window, pointwise, threads)
            saturated = unit.count_at_limit(made, pointwise)
            return saturated + self.chain(
                made.reshape(-1, made.shape[3]), steps, results, pointwise, False, threads
            )

        return work

    def plain(self, x: Unquantized, pointwise: Pointwise, threads: int) -> tuple[Unquantized, int]:
        """`x` with its windows laid out and its steps done, C-contiguous, and how many values saturated in them."""
        values = x.values
        if not values.flags.c_contiguous:
            values = self._room("rows", x.values.shape, np.float32)
            values[:] = x.values
        if x.window is not None:
            values = self.unfold(values, x.window, threads, self._room("windows", x.shape, np.float32))
        if not x.steps:
            return Unquantized(values, x.format), 0
        done = self._room("values", values.shape, np.float32)
        rows = values.reshape(-1, values.shape[-1]), done.reshape(-1, values.shape[-1])
        saturated = self.chain(rows[0], x.steps, {len(x.steps) - 1: rows[1]}, pointwise, False, threads)
        return Unquantized(done, x.format), saturated

    def _blocks(self, x: Unquantized) -> Operand:
        *image, channels = x.values.shape
        if x.format.is_fp32:
            return Operand(x.values, None, 1, 0, channels)
        blocks = -(-channels // x.format.block)
        codes = self._room("codes", (*image, blocks * x.format.block), code_dtype(x.format))
        exponents = self._room("exponents", (*image, blocks), np.int16)
        out = codes.reshape(-1, codes.shape[-1]), exponents.reshape(-1, blocks)
        self.quantize(x.values.reshape(-1, channels), x.format, "even", 0, out)
        table, fraction_bits = element_table(x.format)
        if table is not None:
            codes = look_up(table, codes, self._room("mantissas", codes.shape, table.dtype))
        return Operand(codes, exponents, x.format.block, fraction_bits, channels)

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
        """Piece by piece and in place; the bits are those of `pointwise.py`, only the passes over memory are fewer."""
        pixels, channels = source.shape
        step = max(1, PIECE // channels)
        counts: list[int] = []

        def work(first_piece: int, last_piece: int) -> None:
            buffer = np.empty((3, min(step, pixels), channels), np.float32)
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                for first in range(first_piece * step, min(last_piece * step, pixels), step):
                    piece = slice(first, min(first + step, pixels))
                    v, *scratch = buffer[:, : piece.stop - first]
                    v[:] = source[piece]
                    if unrounded:
                        counts.append(round_in_place(v, pointwise, scratch))
                    if -1 in results:
                        results[-1][piece] = v
                    for i, stage in enumerate(steps):
                        values = stage.operand
                        other = values[piece] if values is not None and values.ndim == 2 else values
                        counts.append(_apply(stage, v, other, pointwise, scratch))
                        if i in results:
                            results[i][piece] = v

        split(-(-pixels // step), threads, work)
        return sum(counts)

    def max_pool(
        self, x: Float32Array, window: Window, threads: int, /, out: Float32Array | None = None
    ) -> Float32Array:
        return given(unit.max_pool(x, window), out)

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
        return given(unit.average_pool(x, window, pointwise, count_padding), out)

    def unfold(self, x: Float32Array, window: Window, threads: int, /, out: Float32Array | None = None) -> Float32Array:
        windows = unit.unfold(x, window)
        if out is None:
            return windows
        out[..., : windows.shape[3]] = windows
        out[..., windows.shape[3] :] = 0
        return out

    def enter(
        self, x: Float32Array, pointwise: Pointwise, threads: int, /, out: Float32Array | None = None
    ) -> tuple[Float32Array, int]:
        image = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        return given(unit.round_to(image, pointwise), out), unit.count_overflows(image, pointwise)

    def leave(self, x: Float32Array, threads: int, /, out: Float32Array | None = None) -> Float32Array:
        return given(np.array(x.transpose(0, 3, 1, 2), order="C"), out)  # a copy also where the order stays


def given(result: ArrayT, out: ArrayT | None) -> ArrayT:
    """`result`, written into `out` if there is one."""
    if out is None:
        return result
    out[...] = result
    return out


def given_pair(codes: Array, exponents: Int16Array, out: tuple[Array, Int16Array] | None) -> tuple[Array, Int16Array]:
    """What `quantize` returns, written into `out` if there is one."""
    return (codes, exponents) if out is None else (given(codes, out[0]), given(exponents, out[1]))


def _apply(
    step: Step, v: Float32Array, operand: Float32Array | None, pointwise: Pointwise, scratch: Sequence[Float32Array]
) -> int:
    """`step` on `v` in place; returns how many values saturated."""
    kind = step.kind
    if operand is None:
        if kind == "relu":
            np.maximum(v, np.float32(0.0), out=v)
            v += np.float32(0.0)  # -0 becomes +0
        elif kind == "clip":
            np.clip(v, np.float32(step.low), np.float32(step.high), out=v)
            v += np.float32(0.0)
        elif kind == "sigmoid":
            v[:] = unit.sigmoid(v, pointwise)
        else:
            assert kind == "tanh"
            v[:] = unit.tanh(v, pointwise)
        return 0
    if kind == "max":
        np.maximum(v, operand, out=v)
        v += np.float32(0.0)
        return 0
    if kind == "mul":
        if pointwise == "bf16":
            v[:] = unit.mul(v, operand, pointwise)
            return 0
        v *= operand
    elif kind == "sub":
        np.subtract(*((operand, v) if step.swapped else (v, operand)), out=v)
    else:
        assert kind == "add"
        v += operand
    return round_in_place(v, pointwise, scratch)


def round_in_place(v: Float32Array, pointwise: Pointwise, scratch: Sequence[Float32Array]) -> int:
    """`unit.round_to` on contiguous `v`, with two arrays of its shape to work in; returns how many values saturated."""
    if pointwise == "fp32":
        return 0
    a, b = scratch
    bits, work = v.view(np.uint32), a.view(np.uint32)
    if pointwise == "bf16":
        if np.isnan(v.max(initial=0.0)):
            v[:] = unit.round_to(v, pointwise)
            return 0
        np.right_shift(bits, np.uint32(16), out=work)
        work &= np.uint32(1)
        work += np.uint32(0x7FFF)
        bits += work
        bits &= np.uint32(0xFFFF0000)
        return 0
    saturated = 0
    np.abs(v, out=a)
    if not a.max(initial=0.0) < unit.FP16_OVERFLOW:
        saturated = unit.count_overflows(v, pointwise)
        np.clip(v, np.float32(-unit.FP16_MAX), np.float32(unit.FP16_MAX), out=v)
    # Adding 1.5·2^13·2^e to x, e its exponent but at least fp16's lowest, -14, leaves x's multiples of fp16's last
    # place, 2^(e-10), as float32's last place: the sum is rounded there, to even, and the difference is exact.
    np.bitwise_and(bits, np.uint32(0x7F800000), out=work)
    np.maximum(a, np.float32(2.0**-14), out=a)
    a *= np.float32(1.5 * 2**13)
    np.add(v, a, out=b)
    b -= a
    bits &= np.uint32(0x80000000)  # the sign, also of what became zero
    bits |= b.view(np.uint32)
    return saturated
