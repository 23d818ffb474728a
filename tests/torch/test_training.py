"""Training that sees the format loses less accuracy than quantizing what was trained without it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fpgasim.torch import prepare

from .networks import Residual


def pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight patterns of 8×8 pixels under noise of twice their strength, and their numbers."""
    patterns = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % 8
    return patterns[labels] / 2 + torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)), labels


def train(module: nn.Module, epochs: int, rate: float) -> nn.Module:
    images, labels = pictures(1024, seed=1)
    optimizer = torch.optim.Adam(module.train().parameters(), rate)
    generator = torch.Generator().manual_seed(3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator).split(64):
            loss = F.cross_entropy(module(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module


def accuracy(module: nn.Module) -> float:
    images, labels = pictures(1024, seed=2)
    with torch.no_grad():
        return float((module.eval()(images).argmax(1) == labels).float().mean())


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    """A network after four epochs, and the same after two more without quantization."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    first = train(Residual(16), 4, 3e-3)
    second = Residual(16)
    second.load_state_dict(first.state_dict())
    return first, train(second, 2, 1e-3)


@pytest.mark.parametrize("format", ["msfp11", "bw_1s5e2m"])
def test_training_that_sees_the_format_loses_less(networks: tuple[nn.Module, nn.Module], format: str) -> None:
    first, second = networks
    unquantized = accuracy(second)
    afterwards = unquantized - accuracy(prepare(second, format))
    aware = unquantized - accuracy(train(prepare(first, format), 2, 1e-3))
    print(f"{format}: float {unquantized:.4f}, loss afterwards {afterwards:.4f}, aware {aware:.4f}")
    assert aware < afterwards - 0.01


def test_training_is_the_same_every_time() -> None:
    torch.manual_seed(0)
    start = Residual(16)
    a, b = (train(prepare(start, "msfp11"), 1, 1e-3).state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
