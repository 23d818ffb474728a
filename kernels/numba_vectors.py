"""Vector code for the Numba backend, emitted as LLVM IR: what its compiler does not find in a loop by itself.

Each of these is inlined where a compiled function calls it. Memory is given by its address.
"""

# mypy: disable-error-code="no-untyped-call, no-untyped-def, misc, untyped-decorator"

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32, _F64 = ir.FloatType(), ir.DoubleType()

#: The elements that `largest`, `encode_integers` and `encode_floats` take at once, on any CPU.
CHUNK = 16
#: Where |d| < 2^22, the bits of this float plus d are the float plus d.
MAGIC, MAGIC_BITS = 1.5 * 2**23, 0x4B400000


@dataclass(frozen=True)
class Dot:
    """Which instruction multiplies 4 bytes by 4 bytes in each of `lanes` lanes, and what it takes and returns.

    `code_bytes` 1: four unsigned bytes, codes plus 128, by four signed ones. 2: two signed 16-bit numbers by two.
    The sum of the products is added to a third operand where the instruction `adds`.
    """

    name: str
    features: frozenset[str]
    lanes: int
    pixels: int  # the largest tile whose sums stay in the registers: 32 of 512 bits, 16 of 256
    code_bytes: int
    adds: bool

    @property
    def outputs(self) -> int:
        """The outputs of a tile, two vectors."""
        return 2 * self.lanes

    @property
    def bias(self) -> int:
        """What activations carry."""
        return 128 if self.code_bytes == 1 else 0


#: Fastest first. An int16 mantissa needs two bytes.
DOTS = (
    Dot("llvm.x86.avx512.vpdpbusd.512", frozenset({"avx512vnni"}), 16, 7, 1, True),
    Dot("llvm.x86.avx512.vpdpbusd.256", frozenset({"avxvnni", "fma"}), 8, 4, 1, True),
    Dot("llvm.x86.avx512.vpdpwssd.512", frozenset({"avx512vnni"}), 16, 7, 2, True),
    Dot("llvm.x86.avx512.pmaddw.d.512", frozenset({"avx512bw"}), 16, 7, 2, False),
    Dot("llvm.x86.avx2.pmadd.wd", frozenset({"avx2", "fma"}), 8, 4, 2, False),
)


def dots_of(features: str) -> list[Dot]:
    """Those that a CPU has, `features` as LLVM writes them: "+avx2,-avx512vnni,…"."""
    there = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    return [dot for dot in DOTS if dot.features <= there]


def dots_here() -> list[Dot]:
    """Those of the CPU that Numba compiles for: this one, or what NUMBA_CPU_FEATURES says."""
    return dots_of(cpu_target.target_context.codegen().magic_tuple()[2])


@dataclass(frozen=True)
class _Emitter:
    """Short words for IR on vectors."""

    builder: Any

    def at(self, address: Any, offset: Any) -> Any:
        return self.builder.add(address, _I64(offset) if isinstance(offset, int) else offset)

    def element(self, address: Any, index: Any, kind: Any) -> Any:
        return self.at(address, self.builder.mul(index, _I64(kind.width // 8)))

    def load(self, address: Any, kind: Any, offset: Any = 0) -> Any:
        value = self.builder.load(self.builder.inttoptr(self.at(address, offset), kind.as_pointer()))
        value.align = 1
        return value

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer())).align = 1

    def splat(self, value: Any, lanes: int) -> Any:
        kind = ir.VectorType(value.type, lanes)
        nothing, zero = ir.Constant(kind, ir.Undefined), ir.VectorType(_I32, lanes)([0] * lanes)
        return self.builder.shuffle_vector(self.builder.insert_element(nothing, value, _I32(0)), nothing, zero)

    def call(self, name: str, result: Any, *args: Any) -> Any:
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), args)

    def first(self, count: Any, lanes: int) -> Any:
        """Which of `lanes` lanes are among the first `count`."""
        kind = ir.VectorType(_I32, lanes)
        count = self.splat(self.builder.trunc(count, _I32), lanes)
        return self.builder.icmp_signed("<", kind(list(range(lanes))), count)

    def floats(self, source: Any, count: Any) -> Any:
        """CHUNK floats, those from `count` on zero."""
        address = self.builder.inttoptr(source, _FLOATS.as_pointer())
        name, mask = f"llvm.masked.load.v{CHUNK}f32.p0", self.first(count, CHUNK)
        return self.call(name, _FLOATS, address, _I32(4), mask, _FLOATS(None))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a·b + c, rounded once."""
        width = 32 if a.type.element == _F32 else 64
        return self.call(f"llvm.fma.v{a.type.count}f{width}", a.type, a, b, c)

    def clamp(self, v: Any, low: Any, high: Any) -> Any:
        v = self.builder.select(self.builder.icmp_signed(">", v, high), high, v)
        return self.builder.select(self.builder.icmp_signed("<", v, low), low, v)


def _all(value: float, kind: Any) -> Any:
    return kind([value] * kind.count)


_WORDS, _FLOATS = ir.VectorType(_I32, CHUNK), ir.VectorType(_F32, CHUNK)


@intrinsic
def read(typing, source, like):
    """The number at `source`, of the type of `like`."""

    def emit(context, builder, signature, args):
        return _Emitter(builder).load(args[0], args[1].type)

    return like(types.int64, like), emit


@intrinsic
def write(typing, value, bias, target, at):
    """Stores `value` + `bias` as element `at` of an array of the type of `bias`, modulo what that holds."""

    def emit(context, builder, signature, args):
        e = _Emitter(builder)
        value, bias, target, at = args
        e.store(builder.add(builder.trunc(value, bias.type), bias), e.element(target, at, bias.type))
        return context.get_dummy_value()

    return types.void(types.int64, bias, types.int64, types.int64), emit


@intrinsic
def put(typing, value, target):
    """Stores `value` as it is."""

    def emit(context, builder, signature, args):
        _Emitter(builder).store(*args)
        return context.get_dummy_value()

    return types.void(value, types.int64), emit


@intrinsic
def copy(typing, source, like, bias, target, at):
    """Writes CHUNK integers of the type of `like`, as `write` does."""

    def emit(context, builder, signature, args):
        e = _Emitter(builder)
        source, like, bias, target, at = args
        codes, kind = e.load(source, ir.VectorType(like.type, CHUNK)), ir.VectorType(bias.type, CHUNK)
        codes = builder.sext(codes, kind) if like.type.width < bias.type.width else codes
        e.store(builder.add(codes, e.splat(bias, CHUNK)), e.element(target, at, bias.type))
        return context.get_dummy_value()

    return types.void(types.int64, like, bias, types.int64, types.int64), emit


@intrinsic
def largest(typing, source, count):
    """The largest magnitude of up to CHUNK floats as bits: they order like those, infinities and NaNs come last."""

    def emit(context, builder, signature, args):
        e = _Emitter(builder)
        bits = builder.and_(builder.bitcast(e.floats(*args), _WORDS), _all(0x7FFFFFFF, _WORDS))
        return e.call(f"llvm.vector.reduce.umax.v{CHUNK}i32", _I32, bits)

    return types.int32(types.int64, types.int64), emit


@intrinsic
def encode_integers(typing, source, count, scale, high, bias, target, at):
    """Writes CHUNK floats, as `floats` reads them, times `scale`, rounded to even and clamped to ±high, plus `bias`."""

    def emit(context, builder, signature, args):
        e = _Emitter(builder)
        source, count, scale, high, bias, target, at = args
        v = builder.fmul(e.floats(source, count), e.splat(scale, CHUNK))
        v = builder.bitcast(builder.fadd(v, _all(MAGIC, _FLOATS)), _WORDS)
        magic = _I32(MAGIC_BITS)  # its low half is zero
        v = e.clamp(v, e.splat(builder.sub(magic, high), CHUNK), e.splat(builder.add(magic, high), CHUNK))
        codes = builder.trunc(v, ir.VectorType(bias.type, CHUNK))
        e.store(builder.add(codes, e.splat(bias, CHUNK)), e.element(target, at, bias.type))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int32, bias, types.int64, types.int64), emit


@intrinsic
def encode_floats(typing, source, count, scale, drop, smallest, magic, offset, highest, sign, target, at):
    """Stores the codes of CHUNK floats times `scale` as small floats, rounded to even, as bytes.

    Normal ones lose their last `drop` bits and `offset`; those below `smallest` are rounded by adding `magic`, whose
    last place is theirs. Codes are at most `highest`, and have their sign at bit `sign`.
    """

    def emit(context, builder, signature, args):
        e = _Emitter(builder)
        source, count, scale, *rest, target, at = args
        drop, smallest, magic, offset, highest, sign = (e.splat(value, CHUNK) for value in rest)
        one = _all(1, _WORDS)
        bits = builder.bitcast(builder.fmul(e.floats(source, count), e.splat(scale, CHUNK)), _WORDS)
        v = builder.and_(bits, _all(0x7FFFFFFF, _WORDS))
        half = builder.sub(builder.shl(one, builder.sub(drop, one)), one)
        odd = builder.and_(builder.lshr(v, drop), one)
        normal = builder.sub(builder.lshr(builder.add(builder.add(v, half), odd), drop), offset)
        magnitude = builder.bitcast(v, _FLOATS)
        moved = builder.bitcast(builder.fadd(magnitude, magic), _WORDS)
        subnormal = builder.sub(moved, builder.bitcast(magic, _WORDS))
        code = builder.select(builder.fcmp_ordered("<", magnitude, smallest), subnormal, normal)
        code = builder.select(builder.icmp_signed(">", code, highest), highest, code)
        code = builder.or_(code, builder.shl(builder.lshr(bits, _all(31, _WORDS)), sign))
        e.store(builder.trunc(code, ir.VectorType(_I8, CHUNK)), e.element(target, at, _I8))
        return context.get_dummy_value()

    i32, f32 = types.int32, types.float32
    return types.void(types.int64, types.int64, f32, i32, f32, f32, i32, i32, i32, types.int64, types.int64), emit


#: How a tile makes terms of dot products d: as MAGIC + d, as float(d), or as float64(d) for sums in float64.
FOLDS = ("magic", "convert", "exact")


@functools.cache
def tile_of(dot: Dot, fold: str) -> Any:
    """`tile(pixels, offsets, terms, words, weights, outs, targets)`: the sums of `dot.pixels` by `dot.outputs`.

    pixels: int64 addresses, one for each pixel, where its blocks lie: `words`·4 bytes of codes and a float32 scale.
    offsets: int32 for each of `terms` terms, in bytes from there. weights: for each term what dot products start from
    (outputs int32), scales (outputs float32) and mantissas (words, outputs, 4 bytes). targets: int64 addresses, for
    each pixel where to write the first `outs` outputs as float32.

    The scales are powers of two and every product here is exact, so each term is rounded once, when it is added.
    """
    lanes, span = dot.lanes, 4 * dot.lanes
    words_kind, floats = ir.VectorType(_I32, lanes), ir.VectorType(_F32, lanes)
    sums = ir.VectorType(_F64 if fold == "exact" else _F32, lanes)
    pairs = [(i, j) for i in range(dot.pixels) for j in range(2)]

    def emit(context, builder, signature, args):
        e = _Emitter(builder)
        pixels, offsets, terms, words, weights, outs, targets = args

        def slots(kind):  # registers, once LLVM has promoted them
            return {at: cgutils.alloca_once_value(builder, kind(None)) for at in pairs}

        def product(d, x, w):
            if dot.adds:
                return e.call(dot.name, words_kind, d, x, w)
            narrow = ir.VectorType(_I16, 2 * lanes)
            x, w = builder.bitcast(x, narrow), builder.bitcast(w, narrow)
            return builder.add(d, e.call(dot.name, words_kind, x, w))

        def scaled(d, w):
            if fold == "magic":  # (MAGIC + d)·w − MAGIC·w
                return e.fma(builder.bitcast(d, floats), w, builder.fneg(builder.fmul(w, _all(MAGIC, floats))))
            return builder.fmul(builder.sitofp(d, sums), wide(w))

        def wide(v):
            return builder.fpext(v, sums) if fold == "exact" else v

        bases = [e.load(pixels, _I64, 8 * i) for i in range(dot.pixels)]
        total, d = slots(sums), slots(words_kind)
        code_bytes = builder.mul(words, _I64(4))
        panel_bytes = builder.mul(builder.add(words, _I64(2)), _I64(2 * span))
        with cgutils.for_range(builder, terms) as term:
            w = e.at(weights, builder.mul(term.index, panel_bytes))
            offset = builder.sext(e.load(offsets, _I32, builder.mul(term.index, _I64(4))), _I64)
            blocks = [e.at(base, offset) for base in bases]
            starts = [e.load(w, words_kind, span * j) for j in range(2)]
            for i, j in pairs:
                builder.store(starts[j], d[i, j])
            with cgutils.for_range(builder, words) as word:
                at = e.at(w, builder.mul(builder.add(word.index, _I64(2)), _I64(2 * span)))
                row = [e.load(at, words_kind, span * j) for j in range(2)]
                for i, j in pairs:
                    x = e.splat(e.load(blocks[i], _I32, builder.mul(word.index, _I64(4))), lanes)
                    builder.store(product(builder.load(d[i, j]), x, row[j]), d[i, j])
            scales = [e.load(w, floats, span * (2 + j)) for j in range(2)]
            for i, j in pairs:
                x = wide(e.splat(e.load(blocks[i], _F32, code_bytes), lanes))
                t = scaled(builder.load(d[i, j]), scales[j])
                builder.store(e.fma(t, x, builder.load(total[i, j])), total[i, j])
        masks = [e.first(builder.sub(outs, _I64(lanes * j)), lanes) for j in range(2)]
        for i, j in pairs:
            value = builder.load(total[i, j])
            value = builder.fptrunc(value, floats) if fold == "exact" else value
            to = builder.inttoptr(e.at(e.load(targets, _I64, 8 * i), span * j), floats.as_pointer())
            e.call(f"llvm.masked.store.v{lanes}f32.p0", ir.VoidType(), value, to, _I32(4), masks[j])
        return context.get_dummy_value()

    @intrinsic
    def tile(typing, pixels, offsets, terms, words, weights, outs, targets):
        i64 = types.int64
        return types.void(i64, i64, i64, i64, i64, i64, i64), emit

    return tile
