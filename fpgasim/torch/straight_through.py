"""Forward the engine's kernels, backward as if nothing had been rounded (Bengio et al., 2013, arXiv:1308.3432).

Rounding has a derivative of zero nearly everywhere, so gradients pass through it as through the identity. They stop
where a number is beyond the largest that the format holds under its largest shared exponent: there no larger number
gives a larger result. The largest element of a block may be cut by less than one unit of its last place; that is a
rounding, for a larger one would raise the block's exponent, and its gradient passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from fpgasim.compiler.nodes import choose_packing
from fpgasim.errors import InputError
from fpgasim.kernels import Window, backend, pointwise as unit
from fpgasim.kernels.contract import Pointwise
from fpgasim.npu import Numbers
from fpgasim.numerics import BlockFormat, get_format
from fpgasim.ops import conv2d, expand_groups, num_threads, quantize

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Matrix:
    """What the matrix unit computes in; `weights` is the format of weights, on every device that of `numbers`."""

    numbers: Numbers
    weights: BlockFormat


def fake_quantize(
    x: torch.Tensor, format: str | BlockFormat, axis: int = -1, rounding: str = "even", *, seed: int = 0
) -> torch.Tensor:
    """The values of `x` in blocks of `format` along `axis`, those of `fpgasim.quantize(...).dequantize()`.

    The gradient is that of the identity, and 0 where `x` is beyond the largest number of the format, or not a number.
    Raises what `fpgasim.quantize` raises, and InputError where `x` is not float32 on the CPU.
    """
    result: torch.Tensor = _FakeQuantize.apply(x, get_format(format), axis, rounding, seed)
    return result


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, fmt: BlockFormat, axis: int, rounding: str, seed: int) -> torch.Tensor:
        ctx.save_for_backward(held(x, fmt))
        return torch.from_numpy(quantize(array(x), fmt, axis, rounding, seed=seed).dequantize())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        return _where(ctx.saved_tensors[0], gradient), None, None, None, None


def rounded(x: torch.Tensor, pointwise: Pointwise) -> torch.Tensor:
    """`x`, float32 or float64, rounded once to `pointwise`; the gradient is that of the identity."""
    result: torch.Tensor = _Rounded.apply(x, pointwise)
    return result


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, pointwise: Pointwise) -> torch.Tensor:
        ctx.dtype = x.dtype
        return torch.from_numpy(unit.round_to(x.detach().numpy(), pointwise).copy())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.to(ctx.dtype), None


def convolve(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, matrix: Matrix, window: Window, groups: int = 1
) -> torch.Tensor:
    """The layer of the engine for `x` (N, C, H, W) and `w` (O, C / groups, KH, KW): `fpgasim.conv2d` of rounded `x`.

    The packing is the compiler's. Gradients are PyTorch's in fp32, at the operands as quantized, through both
    quantizations as `fake_quantize` says. Raises what `fpgasim.conv2d` raises.
    """
    result: torch.Tensor = _Convolution.apply(x, w, bias, matrix, window, groups)
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        w: torch.Tensor,
        bias: torch.Tensor | None,
        matrix: Matrix,
        window: Window,
        groups: int,
    ) -> torch.Tensor:
        numbers = matrix.numbers
        if x.ndim != 4 or w.ndim != 4:
            raise InputError(f"x has shape {tuple(x.shape)}; a batch of images (N, C, H, W) would do")
        entered = unit.round_to(array(x), numbers.pointwise)
        packing = choose_packing(x.shape[1], window.kernel, groups)
        ctx.settings, ctx.has_bias = (matrix, window, groups, packing == "window"), bias is not None
        ctx.save_for_backward(x, w)
        result = conv2d(
            entered,
            array(w),
            format=numbers.format,
            weight_format=matrix.weights,
            stride=window.stride,
            padding=window.pads,
            dilation=window.dilation,
            groups=groups,
            bias=None if bias is None else array(bias),
            packing=packing,
            accumulator=numbers.accumulator,
            order=numbers.order,
            pointwise=numbers.pointwise,
        )
        return torch.from_numpy(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        given, w = ctx.saved_tensors
        matrix, window, groups, unrolled = ctx.settings
        x = torch.from_numpy(unit.round_to(array(given), matrix.numbers.pointwise))
        fmt, depthwise = matrix.numbers.format, groups == x.shape[1] > 1
        if depthwise:  # the pointwise unit, no blocks
            x_used, w_used = x, torch.from_numpy(unit.round_to(array(w), matrix.numbers.pointwise))
        else:
            x_used = x if unrolled else torch.from_numpy(quantize(array(x), fmt, 1).dequantize())
            w_used = torch.from_numpy(_quantized_weights(array(w), matrix.weights, groups, x.shape[1], unrolled))
        top, left, bottom, right = window.pads
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (x_used, w_used)]
            padded = F.pad(leaves[0], (left, right, top, bottom))
            result = F.conv2d(padded, leaves[1], None, window.stride, 0, window.dilation, groups)
        wanted = [leaf for leaf, needs in zip(leaves, ctx.needs_input_grad, strict=False) if needs]
        found = iter(torch.autograd.grad(result, wanted, gradient) if wanted else ())
        x_gradient, w_gradient = (next(found) if needs else None for needs in ctx.needs_input_grad[:2])
        if unrolled and w_gradient is not None:  # each window has blocks of its own
            columns = backend().unfold(np.ascontiguousarray(array(x).transpose(0, 2, 3, 1)), window, num_threads())
            used = torch.from_numpy(quantize(columns, fmt).dequantize())
            by_window = torch.einsum("nohw,nhwk->ok", gradient, used)
            w_gradient = by_window.view(len(w), *window.kernel, -1).permute(0, 3, 1, 2)
        if not depthwise:
            x_gradient = None if x_gradient is None else _where(held(x, fmt), x_gradient)
            w_gradient = None if w_gradient is None else _where(held(w, matrix.weights), w_gradient)
        bias_gradient = gradient.sum((0, 2, 3)) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return x_gradient, w_gradient, bias_gradient, None, None, None


def _quantized_weights(w: Array, fmt: BlockFormat, groups: int, channels: int, unrolled: bool) -> Array:
    """The values that `conv2d` multiplies by for `w` (O, C / groups, KH, KW)."""
    outputs, per_group, kh, kw = w.shape
    if unrolled:
        flat = quantize(w.transpose(0, 2, 3, 1).reshape(outputs, -1), fmt).dequantize()
        return np.ascontiguousarray(flat.reshape(outputs, kh, kw, per_group).transpose(0, 3, 1, 2))
    full = quantize(expand_groups(w, groups, channels), fmt).dequantize()  # (O, KH, KW, C)
    first = np.arange(outputs) // (outputs // groups) * per_group
    own = first[:, None, None, None] + np.arange(per_group)
    return np.ascontiguousarray(np.take_along_axis(full, own, axis=3).transpose(0, 3, 1, 2))


def held(x: torch.Tensor, fmt: BlockFormat) -> torch.Tensor:
    """Where `x` is a number that `fmt` need not cut: its magnitude is at most that of the largest number there is."""
    largest = float(np.finfo(np.float32).max)
    if not fmt.is_fp32:
        top = fmt.element_max if fmt.is_float else math.ldexp(fmt.max_code, -fmt.fraction_bits)
        largest = min(largest, math.ldexp(top, fmt.exponent_range[1]))
    return x.detach().abs() <= largest


def array(x: torch.Tensor) -> Array:
    """`x` as NumPy sees it, without a copy. Raises InputError where it is not float32 on the CPU."""
    if not isinstance(x, torch.Tensor):
        raise InputError(f"x is a {type(x).__name__}; a torch.Tensor would do")
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise InputError(
            f"a tensor is {x.dtype} on {x.device}; torch.float32 on the CPU, as the kernels take, would do"
        )
    values: Array = x.detach().numpy()
    return values


def _where(inside: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return torch.where(inside, gradient, torch.zeros((), dtype=gradient.dtype))
