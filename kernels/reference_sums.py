"""The definition of every accumulator on arrays of running sums: plain NumPy and Python's integers."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fpgasim.kernels.contract import (
    Accumulator,
    Array,
    Fixed,
    Float32Array,
    Order,
    Pointwise,
    engines_of,
    fixed_of,
    get_pointwise,
)
from fpgasim.kernels.pointwise import round_to
from fpgasim.numerics.scalar import round_to_float32

Float64Array = npt.NDArray[np.float64]


class Products(NamedTuple):
    """The products d·2^s of one block, NaN where `nan`; only those that are `inside` are added."""

    d: Float64Array
    s: npt.NDArray[np.int64]
    nan: npt.NDArray[np.bool_]
    inside: npt.NDArray[np.bool_]

    def terms(self) -> Float32Array:
        """The products rounded once to fp32; +0, which changes no sum, where they are outside."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            terms = np.where(self.nan, np.nan, np.ldexp(self.d, self.s)).astype(np.float32)
        return np.where(self.inside, terms, np.float32(0.0))


class Sum(Protocol):
    """Running sums, from +0: of terms, and of other such sums where a tree joins them."""

    def add(self, products: Products) -> None: ...

    def join(self, other: Sum) -> None: ...

    def result(self) -> Float32Array: ...


class FloatSum:
    """Sums of a float type, every addition rounded once."""

    def __init__(self, shape: tuple[int, ...], kind: Pointwise) -> None:
        self.kind = kind
        self.acc = np.zeros(shape, np.float32)

    def add(self, products: Products) -> None:
        self.acc = _add(self.acc, products.terms(), self.kind)

    def join(self, other: Sum) -> None:
        assert isinstance(other, FloatSum)
        self.acc = _add(self.acc, other.acc, self.kind)

    def result(self) -> Float32Array:
        return self.acc + np.float32(0.0)


def _add(a: Float32Array, b: Float32Array, kind: Pointwise) -> Float32Array:
    """The exact a + b rounded once to `kind`.

    The double sum is rounded to odd first: where it is not exact, its last bit is made 1. A number that is then
    rounded to at least two bits less comes out as if it had been rounded once (Boldo and Melquiond, 2008).
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        total = a + b
        other = total - a
        error = (a - (total - other)) + (b - other)  # exact (Knuth's 2Sum)
    bits = total.view(np.int64)
    even = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
    return round_to((bits + even * np.where((error > 0) == (total > 0), 1, -1)).view(np.float64), kind)


class FixedSum:
    """Sums in two's complement, as Python's integers of any size."""

    def __init__(self, shape: tuple[int, ...], fixed: Fixed) -> None:
        self.fixed = fixed
        self.acc = np.zeros(shape, object)
        self.nan = np.zeros(shape, bool)

    def add(self, products: Products) -> None:
        terms = products.terms().astype(np.float64)
        self.nan |= np.isnan(terms) if self.fixed.overflow == "saturate" else ~np.isfinite(terms)
        terms = np.where(self.nan, 0.0, np.clip(terms, -(2.0**200), 2.0**200))  # beyond the range in any case
        integers = np.rint(np.ldexp(terms, self.fixed.fraction))
        self._add(np.vectorize(int, otypes=[object])(integers))

    def join(self, other: Sum) -> None:
        assert isinstance(other, FixedSum)
        self.nan |= other.nan
        self._add(other.acc)

    def _add(self, integers: Array) -> None:
        half = 1 << self.fixed.bits - 1
        total = self.acc + integers
        if self.fixed.overflow == "wrap":
            self.acc = (total + half) % (2 * half) - half
        else:
            self.acc = np.minimum(np.maximum(total, -half), half - 1)

    def result(self) -> Float32Array:
        values = np.frompyfunc(lambda digits: round_to_float32(digits, -self.fixed.fraction), 1, 1)(self.acc)
        return np.where(self.nan, np.float32(np.nan), values.astype(np.float32))


class ExactSum:
    """Sums that round nothing before the end."""

    BASE = -700  # below every last bit: a float32 d is a multiple of 2^-149 and s is at least -2·127 - 2·14

    def __init__(self, shape: tuple[int, ...]) -> None:
        # A finite sum is the Python integer `digits` times 2^BASE; infinities and NaNs add up in `special`.
        self.digits = np.zeros(shape, object)
        self.special = np.zeros(shape, np.float32)

    def add(self, products: Products) -> None:
        special = products.inside & (products.nan | ~np.isfinite(products.d))
        with np.errstate(invalid="ignore"):
            self.special = np.where(special, self.special + products.terms(), self.special)
        mantissa, exponent = np.frexp(np.where(special | ~products.inside, 0.0, products.d))
        digits = np.ldexp(mantissa, 53).astype(np.int64).astype(object)
        self.digits = self.digits + (digits << (exponent - 53 + products.s - self.BASE).astype(object))

    def join(self, other: Sum) -> None:
        assert isinstance(other, ExactSum)
        self.digits = self.digits + other.digits
        with np.errstate(invalid="ignore"):
            self.special = self.special + other.special

    def result(self) -> Float32Array:
        finite = np.frompyfunc(lambda digits: round_to_float32(digits, self.BASE), 1, 1)(self.digits)
        return np.where(self.special == 0, finite.astype(np.float32), self.special)


class OrderedSum:
    """A sum whose terms come in the sequence of `order`, added by one engine or by a tree of several."""

    def __init__(self, shape: tuple[int, ...], accumulator: Accumulator, order: Order, steps: int) -> None:
        # Engines beyond the number of terms have none.
        self.engines = [_zero(shape, accumulator) for _ in range(max(1, min(engines_of(order), steps)))]
        self.step = 0

    def add(self, products: Products) -> None:
        self.engines[self.step % len(self.engines)].add(products)
        self.step += 1

    def result(self) -> Float32Array:
        level = self.engines
        while len(level) > 1:
            for left, right in zip(level[::2], level[1::2], strict=False):
                left.join(right)
            level = level[::2]
        return level[0].result()


def _zero(shape: tuple[int, ...], accumulator: Accumulator) -> Sum:
    fixed = fixed_of(accumulator)
    if fixed is not None:
        return FixedSum(shape, fixed)
    if accumulator == "exact":
        return ExactSum(shape)
    return FloatSum(shape, get_pointwise(accumulator))
