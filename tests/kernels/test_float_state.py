"""The kernels keep subnormals even where another library told the thread to flush them to zero."""

import ctypes
import ctypes.util
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import fpgasim as fs
from fpgasim.kernels import Backend, Window, available
from fpgasim.kernels.reference import Reference
from fpgasim.numerics import CATALOGUE

NATIVE = [b for name, b in available().items() if name.startswith("native")]
#: Where C's fenv_t keeps the control word, and its bits that flush subnormal results and operands to zero.
OFFSET, FLUSH = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}[platform.machine()]


@contextmanager
def flushing() -> Iterator[None]:
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    old, new = (ctypes.create_string_buffer(64) for _ in range(2))
    libm.fegetenv(old)
    libm.fegetenv(new)
    word = ctypes.c_uint32.from_buffer(new, OFFSET)
    word.value |= FLUSH
    libm.fesetenv(new)
    try:
        yield
    finally:
        libm.fesetenv(old)


@pytest.mark.parametrize("kernels", NATIVE, ids=lambda b: b.name)
def test_subnormals_survive_in_a_thread_that_flushes_them(
    kernels: Backend, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(0)
    tiny = numbers(rng, "tiny", 2, 32)
    fmt = CATALOGUE["mxint8"]
    x, w = blocked(numbers(rng, "tiny", 1, 3, 3, 64), fmt), blocked(numbers(rng, "ordinary", 4, 2, 2, 64), fmt)
    small, ones = np.full((1, 1, 1, 8), 2.0**-140, np.float32), np.ones((1, 1, 8), np.float32)
    results = []
    for k in (kernels, Reference()):
        with flushing() if k is kernels else nullcontext():
            assert k is not kernels or float(np.float32(2.0**-140) * np.float32(0.5)) == 0.0
            results.append(
                [
                    *k.quantize(tiny, fmt, "even", 0),
                    k.conv2d(x, w, Window((2, 2)), 1, "fp32", "khwc", 1),
                    k.conv2d(x, w, Window((2, 2)), 1, "exact", "khwc", 1),
                    k.depthwise(small, ones, Window((1, 1)), "fp32", 1),
                ]
            )
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    assert 0 < results[0][2].view(np.uint32).min() & 0x7FFFFFFF < 0x00800000


def small_net(rng: np.random.Generator) -> onnx.ModelProto:
    """A convolution and a bias, both with subnormal results."""
    w = numpy_helper.from_array((rng.standard_normal((8, 32, 3, 3)) * 2.0**-66).astype(np.float32), "w")
    bias = numpy_helper.from_array((rng.standard_normal(8) * 1e-40).astype(np.float32), "bias")
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", (1, 32, 5, 5)), ("y", None)))
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w", "bias"], ["y"])], "tiny", [x], [y], [w, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize("name", available())
def test_every_door_keeps_subnormals_and_leaves_the_thread_as_it_was(
    name: str, monkeypatch: pytest.MonkeyPatch, same_bits: Any
) -> None:
    monkeypatch.setenv("FPGASIM_KERNELS", name)
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((1, 32, 5, 5)) * 2.0**-70).astype(np.float32)
    w, deep = ((rng.standard_normal(s) * 2.0**-66).astype(np.float32) for s in ((8, 32, 3, 3), (32, 1, 3, 3)))
    bias, tiny = (rng.standard_normal(8) * 1e-40).astype(np.float32), x * np.float32(2.0**-60)
    blocks, model = fs.quantize(tiny, "mxint8"), small_net(rng)

    def doors() -> list[Any]:
        results = [fs.quantize(tiny, "msfp16").codes, blocks.dequantize()]
        for pointwise in ("fp32", "bf16"):
            results.append(fs.conv2d(x, w, format="msfp16", bias=bias, pointwise=pointwise, threads=2))
            results.append(fs.conv2d(x, deep, format="msfp16", groups=32, pointwise=pointwise, threads=2))
            plan = fs.partition(fs.load(model), "bw_a10", "msfp16", objective="coverage", pointwise=pointwise)
            results.append(fs.compile(plan).run({"x": x})["y"])
        return results

    expected = doors()
    with flushing():
        got = doors()
        assert float(np.float32(2.0**-140) * np.float32(0.5)) == 0.0
    assert all(map(same_bits, got, expected))
    assert all(((np.abs(v) > 0) & (np.abs(v) < 2.0**-126)).any() for v in expected[1:])
