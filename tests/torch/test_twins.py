"""Each twin computes what `fpgasim.conv2d` does, and its gradients are those at the quantized operands."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fpgasim as fs
from fpgasim.torch import fake_quantize, prepare

from .networks import batch, seeded

NUMBERS: list[dict[str, Any]] = [
    {"format": "msfp12"},
    {"format": "mxint8", "weight_format": "mxfp4_e2m1", "accumulator": "bf16", "order": "tree(3)", "pointwise": "bf16"},
    {"format": "bw_1s5e2m", "device": "bw_a10"},
    {"format": "mxfp8_e4m3", "accumulator": "fixed(32,12,saturate)", "order": "chwk", "pointwise": "fp16"},
    {"format": "fp32"},
]
LAYERS = {
    "dense": (nn.Conv2d(40, 12, 3, padding=1), {"padding": 1}),
    "strided": (nn.Conv2d(40, 12, (3, 2), (2, 1), dilation=(1, 2), bias=False), {"stride": (2, 1), "dilation": (1, 2)}),
    "same": (nn.Conv2d(40, 12, (2, 4), padding="same"), {"padding": (0, 1, 1, 2)}),
    "grouped": (nn.Conv2d(40, 12, 3, groups=4), {"groups": 4}),
    "depthwise": (nn.Conv2d(40, 80, 3, padding=2, groups=40), {"padding": 2, "groups": 40}),
    "stem": (nn.Conv2d(3, 12, 5, stride=2, padding=2), {"padding": 2, "stride": 2, "packing": "window"}),
    "pointwise": (nn.Conv2d(3, 12, 1), {}),
}


def twin(layer: nn.Module, numbers: dict[str, Any]) -> Any:
    return prepare(seeded(layer), **numbers)


@pytest.mark.parametrize("numbers", NUMBERS, ids=lambda numbers: numbers["format"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_convolution_has_the_bits_of_conv2d(name: str, numbers: dict[str, Any]) -> None:
    layer, settings = LAYERS[name]
    quantized = twin(layer, numbers)
    inner = quantized.matrix.numbers
    x = batch(2, layer.in_channels, 9, 8)
    expected = fs.conv2d(
        torch.empty_like(x).copy_(_entered(x, inner.pointwise)).numpy(),
        layer.weight.detach().numpy(),
        format=inner.format,
        weight_format=quantized.matrix.weights,
        bias=None if layer.bias is None else layer.bias.detach().numpy(),
        accumulator=inner.accumulator,
        order=inner.order,
        pointwise=inner.pointwise,
        **settings,
    )
    assert np.array_equal(quantized(x).detach().numpy(), expected)
    assert list(quantized.state_dict()) == list(layer.state_dict())


@pytest.mark.parametrize("numbers", NUMBERS, ids=lambda numbers: numbers["format"])
def test_a_linear_layer_has_the_bits_of_conv2d_on_images_of_one_pixel(numbers: dict[str, Any]) -> None:
    layer = nn.Linear(70, 9)
    quantized = twin(layer, numbers)
    inner, x = quantized.matrix.numbers, batch(5, 70)
    expected = fs.conv2d(
        _entered(x, inner.pointwise).numpy()[:, :, None, None],
        layer.weight.detach().numpy()[:, :, None, None],
        format=inner.format,
        weight_format=quantized.matrix.weights,
        bias=layer.bias.detach().numpy(),
        accumulator=inner.accumulator,
        order=inner.order,
        pointwise=inner.pointwise,
    )
    assert np.array_equal(quantized(x).detach().numpy(), expected[:, :, 0, 0])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
def test_in_fp32_gradients_are_those_of_pytorch(name: str) -> None:
    layer, _ = LAYERS[name]
    quantized = twin(layer, {"format": "fp32"})
    x, again = (batch(2, layer.in_channels, 9, 8).requires_grad_() for _ in range(2))
    y = quantized(x)
    upstream = batch(*y.shape, seed=5)
    y.backward(upstream)
    layer.zero_grad()
    layer(again).backward(upstream)
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(quantized.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dense", "same", "strided"])
def test_gradients_are_those_at_the_quantized_operands(name: str) -> None:
    layer, settings = LAYERS[name]
    quantized = twin(layer, {"format": "msfp11"})
    x = batch(2, 40, 9, 8).requires_grad_()
    y = quantized(x)
    upstream = batch(*y.shape, seed=5)
    y.backward(upstream)
    x_used, w_used = (fake_quantize(t.detach(), "msfp11", 1).requires_grad_() for t in (x, layer.weight))
    top, left, bottom, right = np.broadcast_to(settings.get("padding", 0), 4)
    pads = [int(n) for n in (left, right, top, bottom)]
    window = {key: settings.get(key, 1) for key in ("stride", "dilation")}
    F.conv2d(F.pad(x_used, pads), w_used, **window).backward(upstream)
    torch.testing.assert_close(x.grad, x_used.grad)
    torch.testing.assert_close(quantized.weight.grad, w_used.grad)


def test_gradients_of_a_stem_are_those_of_its_quantized_windows() -> None:
    layer = nn.Conv2d(3, 6, 3, padding=1, bias=False)
    quantized = twin(layer, {"format": "msfp11"})
    x = batch(2, 3, 5, 6).requires_grad_()
    upstream = batch(2, 6, 5, 6, seed=5)
    quantized(x).backward(upstream)
    windows = F.unfold(x.detach(), 3, padding=1).view(2, 3, 9, 30).transpose(1, 2).reshape(2, 27, 30)  # (kh, kw, c)
    used = fake_quantize(windows, "msfp11", 1)
    w_used = fake_quantize(layer.weight.detach().permute(0, 2, 3, 1).reshape(6, 27), "msfp11")
    w_gradient = torch.einsum("nop,nkp->ok", upstream.reshape(2, 6, 30), used)
    torch.testing.assert_close(quantized.weight.grad, w_gradient.view(6, 3, 3, 3).permute(0, 3, 1, 2))
    per_window = torch.einsum("nop,ok->nkp", upstream.reshape(2, 6, 30), w_used)
    folded = F.fold(per_window.view(2, 9, 3, 30).transpose(1, 2).reshape(2, 27, 30), (5, 6), 3, padding=1)
    torch.testing.assert_close(x.grad, folded)


def test_gradients_of_grouped_weights_stay_in_their_group() -> None:
    layer, _ = LAYERS["grouped"]  # 10 channels a group, so that groups share blocks of 16
    quantized = twin(layer, {"format": "msfp11"})
    x = batch(2, 40, 4, 4).requires_grad_()
    quantized(x)[:, :3].sum().backward()  # the filters of the first group
    assert x.grad is not None
    assert x.grad[:, :10].any()
    assert not x.grad[:, 10:].any()
    assert quantized.weight.grad is not None
    assert quantized.weight.grad[:3].any()
    assert not quantized.weight.grad[3:].any()


def test_a_batch_norm_in_training_uses_the_statistics_of_the_batch_and_updates_the_running_ones() -> None:
    plain = seeded(nn.Sequential(nn.Conv2d(20, 6, 3), nn.BatchNorm2d(6))).train()
    quantized = prepare(plain, "fp32").train()
    x = batch(4, 20, 6, 6)
    expected = plain(x)
    torch.testing.assert_close(quantized(x), expected, rtol=1e-4, atol=1e-4)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(quantized.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_frozen_batch_norm_is_folded_while_the_rest_trains() -> None:
    quantized = prepare(seeded(nn.Sequential(nn.Conv2d(20, 6, 3), nn.BatchNorm2d(6))), "msfp13").train()
    x = batch(4, 20, 6, 6)
    quantized[1].eval()
    frozen = quantized(x)
    assert torch.equal(frozen, quantized.eval()(x))
    frozen.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in quantized.parameters())


def _entered(x: torch.Tensor, pointwise: str) -> torch.Tensor:
    return {"fp32": x, "fp16": x.half().float(), "bf16": x.bfloat16().float()}[pointwise]
