"""`export`: names, dynamic batch, and what PyTorch computes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fpgasim as fs
from fpgasim.errors import InputError
from fpgasim.torch import export

from .networks import Everything, Residual, batch, seeded


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, fs.Graph]:
    module = seeded(Residual()).train()
    module.norm.eval()
    return module, export(module, batch(1, 3, 8, 8), dynamic_batch=True)


def test_names_are_those_of_the_module(residual: Any) -> None:
    _, graph = residual
    assert graph.name == "Residual"
    assert [tensor.name for tensor in graph.inputs] == ["image"]
    names = [node.name for node in graph.nodes]
    assert names == ["stem", "relu", "conv", "add", "relu_1", "pool", "reshape", "fc"]
    assert [node.inputs[1] for node in graph.nodes if node.op_type in ("Conv", "Gemm")] == [
        "stem.weight", "conv.weight", "fc.weight",
    ]  # fmt: skip
    assert [tensor.name for tensor in graph.outputs] == ["fc"]


def test_operators_of_a_submodule_are_named_after_it() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x) + x.mean()

    graph = export(Outer(), batch(1, 3, 4, 4))
    assert [node.name for node in graph.nodes][:2] == ["layers.0", "layers.1"]
    assert not any(node.metadata_props for node in graph.model.graph)


def test_nothing_in_the_module_changes(residual: Any) -> None:
    module, _ = residual
    assert module.training
    assert module.conv.training
    assert not module.norm.training
    assert type(module.norm) is nn.BatchNorm2d
    untouched = seeded(Residual()).state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_batch_can_be_of_any_size(residual: Any, size: int) -> None:
    module, graph = residual
    assert graph.symbols == ("batch",)
    session = fs.compile(fs.partition(graph, "bw_a10", "fp32", require_fpga=True, objective="coverage"))
    x = batch(size, 3, 8, 8)
    result = session.run({"image": x.numpy()})["fc"]
    module.eval()
    np.testing.assert_allclose(result, module(x).detach().numpy(), rtol=1e-4, atol=1e-4)
    module.train()
    module.norm.eval()


def test_several_inputs_and_outputs_keep_their_order() -> None:
    module = seeded(Everything()).eval()
    inputs = (batch(2, 3, 26, 22), batch(2, 24, 13, 11, seed=2))
    graph = export(module, list(inputs))
    assert [tensor.name for tensor in graph.inputs] == ["image", "other"]
    assert [tensor.shape for tensor in graph.outputs] == [(2, 10), (2, 24, 2, 2)]
    plan = fs.partition(graph, "bw_a10", "fp32", objective="coverage")
    results = fs.compile(plan).run({"image": inputs[0].numpy(), "other": inputs[1].numpy()})
    for ours, theirs in zip(results.values(), module(*inputs), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-4)


class Returning(nn.Module):
    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(x)


@pytest.mark.parametrize(
    ("module", "example", "message"),
    [
        (Residual, batch(1, 3, 8, 8), "module is a type; a torch.nn.Module would do"),
        (Residual(), {"image": batch(1, 3, 8, 8)}, "example is a dict; a tensor, or a tuple"),
        (Residual(), (batch(1, 3, 8, 8), 3), "example is a tuple of Tensor, int; a tensor"),
        (Residual(), (), "example is a tuple of nothing"),
        (Residual(), batch(1, 4, 8, 8), r"Residual does not take an example of \(1, 4, 8, 8\): Given groups=1"),
        (Returning(lambda x: {"y": x}), batch(2, 3), "Returning returns dict; a tensor or a tuple of tensors would do"),
        (Returning(lambda x: None), batch(2, 3), "Returning returns NoneType"),
        (Returning(lambda x: x if x.sum() > 0 else -x), batch(2, 3), "Returning cannot be exported: "),
    ],
)
def test_what_cannot_be_exported_is_named_in_one_line(module: Any, example: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        export(module, example)
    assert "\n" not in str(raised.value)
