"""Twins of PyTorch's layers. They hold the same parameters under the same names and compute as the engine does.

A batch norm behind a convolution or a linear layer is folded into its weights, as loading a graph does, so what is
quantized is what the engine will hold:

- evaluating, the layer computes with folded weights and bias, and its batch norm passes on what it gets;
- training, the layer computes with weights scaled by the running variance and divides the scale out again, and its
  batch norm normalises by the statistics of the batch and updates the running ones (Jacob et al., CVPR 2018, 3.2).

A batch norm with no such layer before it is scale and shift in the pointwise unit, each step rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fpgasim.errors import InputError
from fpgasim.kernels import Window
from fpgasim.kernels.contract import Pointwise
from fpgasim.torch.straight_through import Matrix, convolve, rounded


class _Layer(nn.Module):
    """What both layers with weights have in common: `matrix`, and in `norm` the batch norm behind, if there is one."""

    matrix: Matrix
    norm: tuple[nn.Module, ...]  # a tuple, so that its parameters keep the one name they have

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, format={self.matrix.numbers.format.name}"

    def _computed(self, x: torch.Tensor, window: Window, groups: int) -> torch.Tensor:
        """The layer's result for images `x`."""
        weight = self.weight if self.weight.ndim == 4 else self.weight[:, :, None, None]
        if not (self.norm and self.norm[0].training):
            w, bias = folded(weight, self.bias, self.norm)
            return convolve(x, w, bias, self.matrix, window, groups)
        scale = scale_and_shift(self.norm[0])[0].detach()
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        result = convolve(x, (weight * _along(scale)).float(), None, self.matrix, window, groups)
        bias = torch.zeros(()) if self.bias is None else self.bias[:, None, None]
        return torch.addcdiv(bias, result, scale.float()[:, None, None])


class QuantizedConv2d(_Layer, nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if self.padding_mode != "zeros":  # moves pixels, computes nothing
            x = F.pad(x, (left, right, top, bottom), mode=self.padding_mode)
            left = right = top = bottom = 0
        window = Window(self.kernel_size, self.stride, (top, left, bottom, right), self.dilation)
        return self._computed(x, window, self.groups)


class QuantizedLinear(_Layer, nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 2:
            raise InputError(f"a linear layer gets {tuple(x.shape)}; rows (N, {self.in_features}) are what it computes")
        return self._computed(x[:, :, None, None], Window((1, 1)), 1)[:, :, 0, 0]


class _Norm(nn.Module):
    """A batch norm; `folded` says that the layer before it does its work outside training."""

    folded: bool
    pointwise: Pointwise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            trained: torch.Tensor = super().forward(x)
            return trained
        if self.folded:
            return x
        kind: Pointwise = self.pointwise if x.ndim in (2, 4) else "fp32"  # (N, C, L) is no tensor of the engine
        scale, shift = (rounded(v.float(), kind) for v in scale_and_shift(self))
        shape = (-1, *(1,) * (x.ndim - 2))
        product = rounded(rounded(x, kind).double() * scale.view(shape), kind)
        return rounded(product + shift.view(shape), kind)


class QuantizedBatchNorm1d(_Norm, nn.BatchNorm1d):
    pass


class QuantizedBatchNorm2d(_Norm, nn.BatchNorm2d):
    pass


class ScaleAndShift(nn.Module):
    """What a batch norm that no layer takes in does outside training, for export."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (-1, *(1,) * (x.ndim - 2))
        return x * self.scale.view(shape) + self.shift.view(shape)


#: Exact types only: a subclass may compute something else.
TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
    nn.BatchNorm1d: QuantizedBatchNorm1d,
    nn.BatchNorm2d: QuantizedBatchNorm2d,
}


def scale_and_shift(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The float64 s and t of a batch norm s·x + t by its running statistics, ε as ONNX holds it."""
    gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    scale = gamma.double() / torch.sqrt(norm.running_var.double() + float(np.float32(norm.eps)))
    return scale, beta.double() - norm.running_mean.double() * scale


def folded(
    weight: torch.Tensor, bias: torch.Tensor | None, norm: tuple[nn.Module, ...]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights and bias that have taken in the batch norm, computed in float64 and rounded once."""
    if not norm:
        return weight, bias
    scale, shift = scale_and_shift(norm[0])
    moved = shift if bias is None else bias.double() * scale + shift
    return (weight * _along(scale.view(-1, *(1,) * (weight.ndim - 1)))).float(), moved.float()


def _along(scale: torch.Tensor) -> torch.Tensor:
    """`scale` shaped to multiply weights (O, C, KH, KW)."""
    return scale if scale.ndim > 1 else scale[:, None, None, None]
