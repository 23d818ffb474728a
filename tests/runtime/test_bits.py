"""What a session computes is, bit for bit, what the rules of docs/numbers.md say."""

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.kernels import Backend, available, backend
from fpgasim.placement import Plan

from .evaluator import evaluate, same_bits
from .nets import NETS, feed, tiny_device

FORMATS = ("msfp16", "bw_1s5e5m", "mxfp8_e4m3", "mxint8", "fp32")
#: Every network in every format; the residual network in every format and pointwise type.
CASES = [
    *((net, fmt, {}) for net in NETS for fmt in FORMATS),
    *(("residual", fmt, {"pointwise": kind, "accumulator": "fp32"}) for fmt in FORMATS for kind in ("fp16", "bf16")),
    *((net, "msfp16", {"pointwise": "bf16"}) for net in ("depthwise", "dense", "pools", "gates")),
    *((net, "mxint8", {"pointwise": "fp32"}) for net in ("depthwise", "vgg", "gates")),
    *((net, "msfp16", {"accumulator": "fp32", "order": "chwk"}) for net in ("residual", "grouped")),
    ("residual", "msfp16", {"accumulator": "fp16"}),
    ("grouped", "mxint8", {"accumulator": "bf16", "order": "chwk"}),
    ("residual", "bw_1s5e5m", {"accumulator": "fp16", "order": "tree(3)"}),
    ("vgg", "msfp16", {"accumulator": "fixed(24,10,saturate)", "order": "tree(4)"}),
    ("dense", "msfp16", {"accumulator": "fixed(16,8,wrap)"}),
]


def plan_of(net: str, fmt: str, batch: int = 1, **numbers: str) -> Plan:
    graph = fs.load(NETS[net]())
    return fs.partition(graph, tiny_device(), fmt, objective="coverage", dims={"N": batch}, **numbers)


def assert_bits(kernels: Backend, plan: Plan, expected: dict[str, np.ndarray]) -> None:
    names = [name for name in expected if name != "x"]
    assert len(names) >= len(plan.graph.nodes)
    got = fs.compile(plan, kernels).run({"x": expected["x"]}, names)
    assert [name for name in names if not same_bits(got[name], expected[name])] == []


@pytest.mark.parametrize(("net", "fmt", "numbers"), CASES, ids=str)
def test_every_tensor_is_the_definition_bit_for_bit(net, fmt, numbers):
    plan = plan_of(net, fmt, **numbers)
    assert plan.fpga_mac_share == 1
    expected = evaluate(plan, {"x": feed(plan.graph.inputs[0].shape)})
    for name, kernels in available().items():
        if name != "numba":
            assert_bits(kernels, plan, expected)


@pytest.mark.slow  # Numba compiles its kernels when they are first called
def test_every_tensor_on_numba_is_the_definition_bit_for_bit():
    for net, fmt, numbers in CASES:
        plan = plan_of(net, fmt, **numbers)
        assert_bits(backend("numba"), plan, evaluate(plan, {"x": feed(plan.graph.inputs[0].shape)}))
