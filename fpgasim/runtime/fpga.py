"""Running a Program: every layer through the kernels; between layers NHWC values of the pointwise type."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fpgasim.compiler.fusion import reads
from fpgasim.kernels.contract import Backend, Float32Array, Operand, Window, rows_operand
from fpgasim.npu import Layer
from fpgasim.npu.program import Program, nhwc_shape
from fpgasim.ops import quantize_rows
from fpgasim.runtime.stages import count_limits, step_of


def run_program(
    program: Program,
    feeds: Mapping[str, npt.NDArray[Any]],
    wanted: Collection[str],
    kernels: Backend,
    threads: int,
    saturations: Counter[str],
) -> dict[str, Float32Array]:
    """The tensors `wanted`, float32 in their ONNX shapes, from `feeds`, which are so too.

    How many values saturated in fp16 is added to `saturations` under the layer's name or the fed tensor's. All state
    is the run's own: several runs of one Program may go on at once.
    """
    run = _Run(program, frozenset(wanted), kernels, threads, saturations)
    for name in program.inputs:
        run.enter(name, feeds[name])
    for layer in program.layers:
        run.execute(layer)
    return {name: _leave(run.values[name], program.shapes[name]) for name in wanted}


def _leave(value: Float32Array, shape: tuple[int, ...]) -> Float32Array:
    # A copy even where the order of the elements stays: what a caller gets is the caller's alone.
    return np.array(value.transpose(0, 3, 1, 2), order="C").reshape(shape)


@dataclass(eq=False)
class _Run:
    """The live tensors of one run, by name, NHWC; each is dropped after its last reader unless it is wanted."""

    program: Program
    wanted: frozenset[str]
    kernels: Backend
    threads: int
    saturations: Counter[str]
    values: dict[str, Float32Array] = field(default_factory=dict)
    #: What the matrix unit read: a tensor, or its unrolled windows, quantized once for all layers that read it.
    operands: dict[tuple[str, Window | None], Operand] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.readers = Counter(name for layer in self.program.layers for name in reads(layer))

    def enter(self, name: str, value: npt.NDArray[Any]) -> None:
        n, h, w, c = nhwc_shape(self.program.shapes[name])
        image = np.ascontiguousarray(value).reshape(n, c, h, w)
        self.values[name], saturated = self.kernels.enter(image, self.program.numbers.pointwise, self.threads)
        self._count(name, saturated)

    def execute(self, layer: Layer) -> None:
        """Runs `layer`: its head, then its stages; keeps what is read later or wanted."""
        pointwise = self.program.numbers.pointwise
        result = self._head(layer)
        unrounded = layer.head in ("conv", "matmul")
        if layer.head in ("depthwise", "average_pool"):  # these round at every step, inside
            self._count(layer.name, count_limits(result, pointwise))
        names = [layer.head_output, *(stage.output for stage in layer.stages)]
        last = {name: i - 1 for i, name in enumerate(names)}
        kept = {i: name for name, i in last.items() if name in self.wanted or name == layer.output}
        if unrounded or layer.stages:
            # The last result may overwrite the head's, which nobody else reads unless the head is only a tensor's name.
            reuse = layer.head != "pointwise"
            flat = result.reshape(-1, result.shape[3])
            rows = {
                i: flat if reuse and name == layer.output else np.empty_like(flat)
                for i, name in kept.items()
                if layer.head != "pointwise" or i >= 0
            }
            operands = [None if stage.operand is None else self._rows(stage.operand) for stage in layer.stages]
            steps = [step_of(stage, operand) for stage, operand in zip(layer.stages, operands, strict=True)]
            saturated = self.kernels.chain(flat, steps, rows, pointwise, unrounded, self.threads)
            self._count(layer.name, saturated)
            self.values.update((kept[i], array.reshape(result.shape)) for i, array in rows.items())
        else:
            self.values[layer.output] = result
        self._release(layer)

    def _rows(self, name: str) -> Float32Array:
        """An operand of a stage: a constant, or a tensor as (pixels, C)."""
        if name in self.program.constants:
            return self.program.vector(name)
        value = self.values[name]
        return value.reshape(-1, value.shape[3])

    def _head(self, layer: Layer) -> Float32Array:
        numbers = self.program.numbers
        first = layer.inputs[0]
        match layer.head:
            case "conv":
                x, window = self._quantized(layer)
                weight = self.program.operand(layer.weight or "")
                return self.kernels.conv2d(
                    x, weight, window, layer.groups, numbers.accumulator, numbers.order, self.threads
                )
            case "matmul":
                x, _ = self._quantized(layer)
                rows = Operand(x.mantissas[:, 0, 0], _first_pixel(x.exponents), x.block, x.fraction_bits, x.channels)
                weight = self.program.operand(layer.weight or "")
                product = self.kernels.matmul(rows, weight, numbers.accumulator, numbers.order, self.threads)
                return product[:, None, None, :]
            case "depthwise":
                taps = self.program.vector(layer.weight or "")
                return self.kernels.depthwise(self.values[first], taps, _window(layer), numbers.pointwise, self.threads)
            case "max_pool":
                return self.kernels.max_pool(self.values[first], _window(layer), self.threads)
            case "average_pool":
                return self.kernels.average_pool(
                    self.values[first], _window(layer), numbers.pointwise, layer.count_padding, self.threads
                )
            case "concat":
                return np.concatenate([self.values[name] for name in layer.inputs], axis=3)
            case "reshape":  # ONNX's order of the elements: channel, row, column
                rows4 = self.values[first].transpose(0, 3, 1, 2)
                # A copy even where the order stays the same: the layer's stages may overwrite it.
                return np.array(rows4, order="C").reshape(rows4.shape[0], 1, 1, math.prod(rows4.shape[1:]))
            case "pointwise":
                return self.values[first]

    def _quantized(self, layer: Layer) -> tuple[Operand, Window]:
        """The layer's input as blocks, and the window to read it through."""
        name, window = layer.inputs[0], layer.window or Window((1, 1))
        unrolled = window if layer.packing == "window" else None
        if (name, unrolled) not in self.operands:
            image = self.values[name]
            rows = image if unrolled is None else self.kernels.unfold(image, unrolled, self.threads)
            codes, exponents = quantize_rows(rows, self.program.numbers.format, kernels=self.kernels)
            self.operands[name, unrolled] = rows_operand(codes, exponents, self.program.numbers.format, rows.shape[3])
        return self.operands[name, unrolled], window if unrolled is None else Window((1, 1))

    def _release(self, layer: Layer) -> None:
        for name in reads(layer):
            self.readers[name] -= 1
            if self.readers[name] == 0:
                if name not in self.wanted:
                    self.values.pop(name, None)
                for key in [key for key in self.operands if key[0] == name]:
                    del self.operands[key]

    def _count(self, name: str, saturated: int) -> None:
        if saturated:
            self.saturations[name] += saturated


def _window(layer: Layer) -> Window:
    assert layer.window is not None
    return layer.window


def _first_pixel(exponents: npt.NDArray[np.int16] | None) -> npt.NDArray[np.int16] | None:
    return None if exponents is None else exponents[:, 0, 0]
