"""Small networks, with statistics as if they had been trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """Convolution, batch norm, relu, residual, pool, linear."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(channels * 16, 8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem_norm(self.stem(image)))
        x = self.pool(F.relu(self.norm(self.conv(x)) + x))
        return self.fc(x.flatten(1))


class Block(nn.Module):
    """Depthwise and grouped convolutions, a batch norm behind a convolution and one behind none."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.before = nn.BatchNorm2d(channels)
        self.grouped = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x)).sigmoid()
        y = self.grouped(F.relu(self.before(y)))
        y += x
        return self.act(y)


class Everything(nn.Module):
    """Every operator of PyTorch that the engine has one for, and two inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Block(24), Block(24))
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.mean = nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False)
        self.shift = nn.Parameter(torch.linspace(-1, 1, 24).view(24, 1, 1))
        self.fc = nn.Linear(48, 10)
        self.fc_norm = nn.BatchNorm1d(10)

    def forward(self, image: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.silu(self.layer1(F.relu(self.stem(image)))) * other + 0.3
        x = self.mean(self.shift + self.pool(x).clamp(min=-4.0))
        x = torch.maximum(x.clamp(-0.5, 3.0), torch.sigmoid(x))
        x = F.interpolate(x, scale_factor=2.0) - 1.25
        y = torch.cat([F.adaptive_avg_pool2d(x, 1).flatten(1), x.mean((2, 3))], 1)
        return self.fc_norm(self.fc(y)), torch.tanh(1.0 - F.adaptive_avg_pool2d(x, (2, 2)))


class Shared(nn.Module):
    """Parts that no engine has: a leaky relu and a product with one number an image and channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 20, 3, padding=1)
        self.squeeze = nn.Conv2d(20, 20, 1)
        self.last = nn.Conv2d(20, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.conv(x), 0.25)
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        return self.last(x)


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` with parameters and statistics by `seed`, some scales negative, one zero."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if isinstance(child, nn.Conv2d | nn.Linear):
            child.weight.data = torch.randn(child.weight.shape, generator=generator) / child.weight[0].numel() ** 0.5
            if child.bias is not None:
                child.bias.data = torch.randn(child.bias.shape, generator=generator)
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            n = child.num_features
            child.weight.data = torch.randn(n, generator=generator)
            child.weight.data[0] = 0.0
            child.bias.data = torch.randn(n, generator=generator)
            child.running_mean.data = torch.randn(n, generator=generator)
            child.running_var.data = torch.rand(n, generator=generator) + 0.2
    return module


def batch(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
