"""The definition to compare with: a plan evaluated node by node in NCHW, nothing fused.

Written from docs/numbers.md alone. Of fpgasim it uses the graph, the plan's segments, `quantize` of the reference
backend (which has tests of its own) and the scalar rounding of exact sums.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime

from fpgasim.graph import Graph, Node
from fpgasim.kernels.reference import Reference
from fpgasim.npu import Numbers
from fpgasim.numerics import BlockFormat
from fpgasim.numerics.scalar import round_to_float32
from fpgasim.numerics.tensors import element_values
from fpgasim.placement import Plan

Array = np.ndarray


def evaluate(plan: Plan, feeds: dict[str, Array]) -> dict[str, Array]:
    """Every tensor of the plan's graph, by name."""
    values = dict(feeds)
    for segment in plan.segments:
        if segment.kind == "cpu":
            part = plan.graph.extract(segment.inputs, segment.outputs).to_proto().SerializeToString()
            session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
            results = session.run(list(segment.outputs), {name: values[name] for name in segment.inputs})
            values.update(zip(segment.outputs, results, strict=True))
            continue
        local = {name: r(values[name], plan.numbers.pointwise) for name in segment.inputs}
        for name in segment.nodes:
            node = plan.graph.node(name)
            local[node.outputs[0]] = OPERATORS[node.op_type](Step(plan.graph, node, plan.numbers, local))
        values.update({name: value for name, value in local.items() if name not in segment.inputs})
    return values


def r(x: Any, pointwise: str) -> Array:
    """One rounding to the pointwise type; fp16 saturates."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if pointwise == "fp16":
            return np.clip(np.asarray(x), -65504, 65504).astype(np.float16).astype(np.float32)
        if pointwise == "bf16":
            return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32)
        return np.asarray(x).astype(np.float32)


class Step:
    """A node at work: its inputs as arrays, its attributes, its rounding."""

    def __init__(self, graph: Graph, node: Node, numbers: Numbers, values: dict[str, Array]) -> None:
        self.graph, self.node, self.numbers, self.values = graph, node, numbers, values

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] != ""

    def weight(self, index: int) -> Array:
        value = self.graph.constant(self.node.inputs[index])
        assert value is not None
        return value

    def read(self, index: int) -> Array:
        """A tensor, or a constant rounded to the pointwise type."""
        name = self.node.inputs[index]
        return self.values[name] if name in self.values else self.r(self.weight(index))

    def get(self, name: str, default: Any) -> Any:
        return self.node.attributes.get(name, default)

    def r(self, x: Any) -> Array:
        return r(x, self.numbers.pointwise)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.graph.tensor(self.node.outputs[0]).shape)


def positions(step: Step, x: Array, kernel: tuple[int, int]) -> Iterator[tuple[Array, Array, Array]]:
    """For each (kh, kw) the value under it for each output (N, C, OH, OW), inside the image?, inside the padding?"""
    stride, dilation = step.get("strides", [1, 1]), step.get("dilations", [1, 1])
    out, begin, end = step.shape[2:], [0, 0], [0, 0]
    auto = step.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = step.get("pads", [0, 0, 0, 0])
        begin, end = list(pads[:2]), list(pads[2:])
    elif auto != "VALID":
        for i in range(2):
            total = max((out[i] - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1 - x.shape[2 + i], 0)
            begin[i] = total // 2 if auto == "SAME_UPPER" else total - total // 2
            end[i] = total - begin[i]
    for kh, kw in np.ndindex(*kernel):
        index = [np.arange(out[i]) * stride[i] + (kh, kw)[i] * dilation[i] - begin[i] for i in range(2)]
        inside = [(index[i] >= 0) & (index[i] < x.shape[2 + i]) for i in range(2)]
        padded = [index[i] < x.shape[2 + i] + end[i] for i in range(2)]
        rows, columns = (np.where(inside[i], index[i], 0) for i in range(2))
        taps = x[:, :, rows][:, :, :, columns]
        yield taps, inside[0][:, None] & inside[1], padded[0][:, None] & padded[1]


class Blocks:
    """(…, C) numbers quantized along the last axis: each block's elements and its power of two."""

    def __init__(self, x: Array, fmt: BlockFormat) -> None:
        rows = np.ascontiguousarray(x, np.float32).reshape(-1, x.shape[-1])
        codes, exponents = Reference().quantize(rows, fmt, "even", 0)
        self.elements = (element_values(fmt)[codes] if fmt.is_float else codes).reshape(*x.shape[:-1], -1, fmt.block)
        self.scales = np.ldexp(1.0, exponents.astype(int) - fmt.fraction_bits).reshape(self.elements.shape[:-1])
        self.scales[exponents.reshape(self.scales.shape) == 128] = np.nan


def block_terms(x: Blocks, w: Blocks, block: int, fmt: BlockFormat) -> Array:
    """The term, before its rounding to fp32, of one block of x (P, blocks, B) with w (O, blocks, B): (P, O) float64."""
    a, b = x.elements[:, block], w.elements[:, block]
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        if fmt.is_fp32 or fmt.is_float:
            d = np.zeros((len(a), len(b)), np.float32)
            for i in range(fmt.block):
                d += a[:, i, None].astype(np.float32) * b[None, :, i].astype(np.float32)
        else:
            d = a.astype(np.float64) @ b.T.astype(np.float64)  # integers below 2^53
        return d.astype(np.float64) * (x.scales[:, block, None] * w.scales[None, :, block])


class Accumulator:
    """The sums of one layer: terms in, outside positions as zeros, the result rounded as the accumulator says."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers, self.terms = numbers, []

    def add(self, term: Array, inside: Array) -> None:
        self.terms.append(np.where(inside[:, None], term, 0.0))

    def result(self) -> Array:
        terms = np.stack(self.terms, axis=-1)  # (P, O, blocks)
        if self.numbers.accumulator == "exact":
            return np.array([[exact_sum(output) for output in pixel] for pixel in terms], np.float32)
        tree = re.fullmatch(r"tree\((\d+)\)", self.numbers.order)
        engines = int(tree[1]) if tree else 1
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            terms = terms.astype(np.float32)
            sums = [self.running_sum(terms[..., engine::engines]) for engine in range(engines)]
            while len(sums) > 1:
                sums = [self.running_sum(np.stack(sums[i : i + 2], axis=-1)) for i in range(0, len(sums), 2)]
            return sums[0].astype(np.float32) + np.float32(0)

    def running_sum(self, terms: Array) -> Array:
        """No term of the test networks is further than 53 bits from its sum, so the doubles are exact."""
        acc, fixed = np.zeros(terms.shape[:-1]), re.fullmatch(r"fixed\((\d+),(\d+),(\w+)\)", self.numbers.accumulator)
        for t in np.moveaxis(terms.astype(np.float64), -1, 0):
            if fixed is None:
                acc = r(acc + t, self.numbers.accumulator).astype(np.float64)
                continue
            half, unit = 2.0 ** (int(fixed[1]) - 1), 2.0 ** -int(fixed[2])
            acc = acc / unit + np.rint(t / unit)
            acc = ((acc + half) % (2 * half) - half if fixed[3] == "wrap" else np.clip(acc, -half, half - 1)) * unit
        return acc


def exact_sum(terms: Array) -> float:
    if not np.isfinite(terms).all():
        return float(terms.sum())
    return round_to_float32(sum(int(math.ldexp(t, 400)) for t in terms.tolist()), -400)


def conv(step: Step) -> Array:
    x, w = step.read(0), step.weight(1)
    groups, kernel = step.get("group", 1), w.shape[2:]
    bias = step.r(step.weight(2)) if step.has(2) else None
    result = depthwise(step, x, w) if groups == x.shape[1] > 1 else blocked_conv(step, x, w, groups, kernel)
    return result if bias is None else step.r(result + bias[:, None, None])


def depthwise(step: Step, x: Array, w: Array) -> Array:
    multiplier = len(w) // x.shape[1]
    taps = step.r(w)
    acc, started = np.zeros(step.shape, np.float32), np.zeros(step.shape[2:], bool)
    for (kh, kw), (value, inside, _) in zip(np.ndindex(*w.shape[2:]), positions(step, x, w.shape[2:]), strict=True):
        product = step.r(np.repeat(value, multiplier, axis=1) * taps[:, 0, kh, kw, None, None])
        acc = np.where(inside, np.where(started, step.r(acc + product), product), acc)
        started |= inside
    return acc


def blocked_conv(step: Step, x: Array, w: Array, groups: int, kernel: tuple[int, int]) -> Array:
    fmt, n, channels, outputs = step.numbers.format, len(x), x.shape[1], len(w)
    taps = list(positions(step, x, kernel))
    if channels < 16 and groups == 1 and kernel != (1, 1):  # window packing
        window = np.stack([np.where(inside, value, 0) for value, inside, _ in taps], axis=1)  # n, taps, c, oh, ow
        rows = window.transpose(0, 3, 4, 1, 2).reshape(-1, len(taps) * channels)
        result = dot(rows, w.transpose(0, 2, 3, 1).reshape(outputs, -1), step.numbers)
        return step.r(result.reshape(n, *step.shape[2:], outputs).transpose(0, 3, 1, 2))
    pixels = Blocks(x.transpose(0, 2, 3, 1), fmt)  # every pixel is quantized once, blocks of absolute channels
    weights = np.zeros((outputs, *kernel, channels), np.float32)
    per, each = channels // groups, outputs // groups
    for g in range(groups):
        o = slice(g * each, (g + 1) * each)
        weights[o, :, :, g * per : (g + 1) * per] = w[o].transpose(0, 2, 3, 1)
    filters = Blocks(weights, fmt)
    index = np.arange(x.shape[2] * x.shape[3]).reshape(1, 1, *x.shape[2:])
    places = [
        (np.add.outer(np.arange(n) * index.size, at[0, 0]).reshape(-1), np.tile(inside.reshape(-1), n))
        for at, inside, _ in positions(step, index, kernel)
    ]
    blocks = pixels.scales.shape[-1]
    steps = [(t, b) for t in range(len(places)) for b in range(blocks)]
    if step.numbers.order == "chwk":
        steps = [(t, b) for b in range(blocks) for t in range(len(places))]
    result = np.empty((n * math.prod(step.shape[2:]), outputs), np.float32)
    flat = Flat(pixels)
    for g in range(groups):
        o = slice(g * each, (g + 1) * each)
        sums = Accumulator(step.numbers)
        for t, b in steps:
            if (b + 1) * fmt.block <= g * per or b * fmt.block >= (g + 1) * per:
                continue
            at, inside = places[t]
            sums.add(block_terms(flat.take(at), Flat(filters, (o, *divmod(t, kernel[1]))), b, fmt), inside)
        result[:, o] = sums.result()
    return step.r(result.reshape(n, *step.shape[2:], outputs).transpose(0, 3, 1, 2))


class Flat:
    """Blocks as (P, blocks, B)."""

    def __init__(self, blocks: Any, index: Any = ...) -> None:
        elements, scales = blocks.elements[index], blocks.scales[index]
        self.elements = elements.reshape(-1, *elements.shape[-2:])
        self.scales = scales.reshape(-1, scales.shape[-1])

    def take(self, rows: Array) -> "Flat":
        return Flat(self, rows)


def dot(x: Array, w: Array, numbers: Numbers) -> Array:
    a, b = Blocks(x, numbers.format), Blocks(w, numbers.format)
    sums = Accumulator(numbers)
    for block in range(a.scales.shape[-1]):
        sums.add(block_terms(a, b, block, numbers.format), np.ones(len(x), bool))
    return sums.result()


def gemm(step: Step) -> Array:
    w = step.weight(1) * np.float32(step.get("alpha", 1.0))
    result = step.r(dot(step.read(0), w if step.get("transB", 0) else w.T, step.numbers))
    if not step.has(2):
        return result
    return step.r(result + step.r(step.weight(2) * np.float32(step.get("beta", 1.0))).reshape(-1))


def max_pool(step: Step) -> Array:
    taps = [np.where(inside, v, -np.inf) for v, inside, _ in positions(step, step.read(0), kernel_of(step))]
    return no_negative_zero(np.max(taps, axis=0).astype(np.float32))


def average_pool(step: Step) -> Array:
    acc, count = np.zeros(step.shape, np.float32), np.zeros(step.shape[2:])
    for value, inside, padded in positions(step, step.read(0), kernel_of(step)):
        acc = np.where(inside, step.r(acc + value), acc)
        count += padded if step.get("count_include_pad", 0) else inside
    return step.r(acc * step.r(1 / count))


def kernel_of(step: Step) -> tuple[int, int]:
    return tuple(step.get("kernel_shape", step.read(0).shape[2:]))


def global_average_pool(step: Step) -> Array:
    x = step.read(0)
    acc = np.zeros(x.shape[:2], np.float32)
    for h, w in np.ndindex(*x.shape[2:]):
        acc = step.r(acc + x[:, :, h, w])
    return step.r(acc * step.r(1 / math.prod(x.shape[2:]))).reshape(step.shape)


def batch_normalization(step: Step) -> Array:
    x = step.read(0)
    gamma, beta, mean, variance = (step.weight(i).astype(np.float64) for i in range(1, 5))
    scale = gamma / np.sqrt(variance + step.get("epsilon", 1e-5))
    shape = (-1,) + (1,) * (x.ndim - 2)
    product = step.r(x * step.r(scale).reshape(shape))
    return step.r(product + step.r(beta - mean * scale).reshape(shape))


def upsample(step: Step) -> Array:
    x = step.read(0)
    return x.repeat(step.shape[2] // x.shape[2], axis=2).repeat(step.shape[3] // x.shape[3], axis=3)


def clip(step: Step) -> Array:
    low, high = (step.r(step.weight(i)) if step.has(i) else sign * np.inf for i, sign in ((1, -1), (2, 1)))
    return np.minimum(np.maximum(step.read(0), low), high).astype(np.float32) + np.float32(0)


def sigmoid(step: Step) -> Array:
    return step.r(1 / (1 + np.exp(-step.read(0).astype(np.float64))))


def no_negative_zero(x: Array) -> Array:
    return x + np.float32(0)


OPERATORS: dict[str, Callable[[Step], Array]] = {
    "Conv": conv,
    "Gemm": gemm,
    "MatMul": lambda s: s.r(dot(s.read(0), s.weight(1).T, s.numbers)),
    "MaxPool": max_pool,
    "GlobalMaxPool": lambda s: no_negative_zero(s.read(0).max(axis=(2, 3), keepdims=True)),
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "ReduceMean": global_average_pool,
    "BatchNormalization": batch_normalization,
    "Concat": lambda s: np.concatenate([s.read(i) for i in range(len(s.node.inputs))], axis=1),
    "Resize": upsample,
    "Flatten": lambda s: s.read(0).reshape(s.shape),
    "Squeeze": lambda s: s.read(0).reshape(s.shape),
    "Add": lambda s: s.r(s.read(0) + s.read(1)),
    "Sum": lambda s: s.r(s.read(0) + s.read(1)),
    "Sub": lambda s: s.r(s.read(0) - s.read(1)),
    "Mul": lambda s: s.r(s.read(0) * s.read(1)),
    "Max": lambda s: no_negative_zero(np.maximum(s.read(0), s.read(1))),
    "Relu": lambda s: no_negative_zero(np.maximum(s.read(0), 0)),
    "Clip": clip,
    "Sigmoid": sigmoid,
    "Tanh": lambda s: s.r(np.tanh(s.read(0).astype(np.float64))),
}


def same_bits(a: Array, b: Array) -> bool:
    """Whether two float32 arrays are equal bit for bit, NaNs of any payload alike."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())
