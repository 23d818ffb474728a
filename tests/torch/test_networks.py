"""A prepared network in evaluation and a session of its graph give the same bits."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fpgasim as fs
from fpgasim.errors import FormatError, InputError
from fpgasim.torch import convert, export, prepare

from .networks import Everything, Residual, Shared, batch, seeded

NUMBERS: list[dict[str, Any]] = [
    {"format": "msfp12"},
    {"format": "bw_1s5e2m", "device": "bw_a10"},
    {"format": "mxint8", "accumulator": "bf16", "order": "tree(3)", "pointwise": "bf16"},
    {"format": "mxfp8_e4m3", "accumulator": "exact", "order": "chwk", "pointwise": "fp16"},
    {"format": "fp32"},
]


def same_bits(graph: fs.Graph, prepared: nn.Module, inputs: dict[str, torch.Tensor], everything_on_fpga: bool) -> bool:
    """Whether a session of `graph` in the numbers of `prepared` gives what `prepared` does."""
    numbers = prepared.fpgasim_numbers
    plan = fs.partition(
        graph,
        "bw_a10",
        numbers.format,
        objective="coverage",
        accumulator=numbers.accumulator,
        order=numbers.order,
        pointwise=numbers.pointwise,
    )
    assert all(side == "fpga" for side in plan.assignment.values()) == everything_on_fpga
    results = fs.compile(plan).run({name: x.numpy() for name, x in inputs.items()})
    with torch.no_grad():
        expected = prepared.eval()(*inputs.values())
    listed = expected if isinstance(expected, tuple) else (expected,)
    assert len(results) == len(listed)
    return all(np.array_equal(a, b.numpy()) for a, b in zip(results.values(), listed, strict=True))


def trained(prepared: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """`prepared` after two steps of training."""
    optimizer = torch.optim.SGD(prepared.train().parameters(), 1e-3)
    for _ in range(2):
        outputs = prepared(*inputs)
        loss = sum(y.square().mean() for y in (outputs if isinstance(outputs, tuple) else (outputs,)))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in prepared.parameters())
        optimizer.step()
    return prepared


@pytest.fixture(scope="module")
def everything() -> tuple[nn.Module, fs.Graph, dict[str, torch.Tensor]]:
    inputs = {"image": batch(2, 3, 26, 22), "other": batch(2, 24, 13, 11, seed=2)}
    module = seeded(Everything())
    return module, export(module, tuple(inputs.values())), inputs


@pytest.mark.parametrize("numbers", NUMBERS, ids=lambda numbers: numbers["format"])
def test_every_operator_of_the_engine_has_the_same_bits(everything: Any, numbers: dict[str, Any]) -> None:
    module, graph, inputs = everything
    assert same_bits(graph, prepare(module, **numbers), inputs, everything_on_fpga=True)


def test_a_trained_network_exports_to_the_same_bits(tmp_path: Any) -> None:
    inputs = {"image": batch(4, 3, 8, 8)}
    before = seeded(Residual())
    prepared = trained(prepare(before, "bw_1s5e2m", device="bw_a10"), *inputs.values())
    graph = export(prepared, inputs["image"])
    assert same_bits(graph, prepared, inputs, everything_on_fpga=True)
    assert [node.name for node in graph.nodes if node.op_type in ("Conv", "Gemm")] == ["stem", "conv", "fc"]
    graph.save(tmp_path / "trained.onnx")
    assert same_bits(fs.load(tmp_path / "trained.onnx"), prepared, inputs, everything_on_fpga=True)
    weights = graph.constant("conv.weight")
    assert weights is not None
    assert not np.array_equal(weights, before.conv.weight.detach().numpy())


def test_a_trained_network_of_every_operator_exports_to_the_same_bits(everything: Any) -> None:
    module, _, inputs = everything
    prepared = trained(prepare(module, "msfp12", pointwise="fp16"), *inputs.values())
    assert same_bits(export(prepared, tuple(inputs.values())), prepared, inputs, everything_on_fpga=True)


def test_what_stays_on_the_cpu_has_the_same_bits_where_it_is_exact() -> None:
    inputs = {"x": batch(2, 3, 6, 6)}
    prepared = prepare(seeded(Shared()), "msfp12", accumulator="fp16", pointwise="fp16")
    assert same_bits(export(prepared, inputs["x"]), prepared, inputs, everything_on_fpga=False)


def test_preparing_keeps_names_and_changes_nothing_in_the_module() -> None:
    module = seeded(Residual()).eval()
    state = copy.deepcopy(module.state_dict())
    prepared = prepare(module, "msfp11").train()
    prepared(batch(4, 3, 8, 8)).sum().backward()
    assert list(prepared.state_dict()) == list(state)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in state.items())
    assert type(module.conv) is nn.Conv2d
    assert not module.training
    assert isinstance(prepared, Residual)
    assert "format=msfp11" in repr(prepared)


def test_a_state_goes_from_one_prepared_module_to_another_and_back_to_plain_ones() -> None:
    x = batch(4, 3, 8, 8)
    first = trained(prepare(seeded(Residual()), "msfp12"), x).eval()
    second = prepare(seeded(Residual(), seed=9), "msfp12").eval()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    plain = Residual()
    plain.load_state_dict(first.state_dict())
    assert torch.equal(prepare(plain, "msfp12").eval()(x), first(x))


def test_a_copy_of_a_prepared_module_has_batch_norms_of_its_own() -> None:
    x = batch(4, 3, 8, 8)
    prepared = prepare(seeded(Residual()), "msfp12").eval()
    before = prepared(x)
    trained(copy.deepcopy(prepared), x)
    assert torch.equal(prepared.eval()(x), before)


def test_converting_gives_plain_layers_with_batch_norms_folded() -> None:
    module = seeded(Residual()).eval()
    plain = convert(prepare(module, "msfp12")).eval()
    assert type(plain) is Residual
    assert type(plain.conv) is nn.Conv2d
    assert type(plain.norm) is nn.Identity
    torch.testing.assert_close(plain(batch(4, 3, 8, 8)), module(batch(4, 3, 8, 8)), rtol=1e-4, atol=1e-4)


class Scaled(Residual):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.stem(image) * 0.5).flatten(1))


class ByFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.mix = nn.Parameter(torch.randn(5, 4, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.relu(self.conv(image)), self.mix)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Scaled, "'mul' scales or shifts what a layer makes, and loading folds that"),
        (ByFunction, "'conv_1' multiplies by 'mix' outside nn.Conv2d and nn.Linear"),
    ],
)
def test_an_export_that_would_not_have_the_same_bits_is_refused(network: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export(prepare(network(), "msfp12"), batch(2, 3, 8, 8))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else x


class OwnConv2d(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: prepare(Residual, "msfp12"), "module is a type; a torch.nn.Module would do"),
        (lambda: prepare(Residual().double(), "msfp12"), "'stem.weight' is torch.float64 on cpu"),
        (lambda: prepare(nn.ReLU(), "msfp12"), "ReLU has no nn.Conv2d and no nn.Linear"),
        (lambda: prepare(prepare(Residual(), "msfp12"), "msfp12"), "PreparedResidual is prepared already"),
        (lambda: prepare(nn.Sequential(OwnConv2d(3, 4, 1)), "msfp12"), "layer '0' is a OwnConv2d; nn.Conv2d itself"),
        (lambda: prepare(Branching(), "msfp12"), "torch.fx cannot follow Branching, which has batch norms"),
        (
            lambda: prepare(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)), "msfp12"),
            "batch norm '1' keeps no running statistics",
        ),
        (lambda: prepare(nn.Linear(8, 8), "msfp12")(batch(2, 3, 8)), r"a linear layer gets \(2, 3, 8\)"),
        (lambda: prepare(Residual(), "msfp12", pointwise="fp8"), "no pointwise type 'fp8'"),
        (lambda: convert(Residual()), "Residual is not prepared"),
    ],
)
def test_what_cannot_be_prepared_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_formats_of_unlike_blocks_do_not_mix() -> None:
    with pytest.raises(FormatError, match="msfp12 has blocks of 16 and mxint8 of 32"):
        prepare(Residual(), "msfp12", "mxint8")
