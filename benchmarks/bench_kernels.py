"""Kernel speed beside ONNX Runtime: `pytest benchmarks/bench_kernels.py`.

Each benchmark first checks that the backends return the same bits, then times them on one thread by CPU time, in turns
with ONNX Runtime's fp32 convolution of the same layer, and prints medians: GMAC/s, and the rate as a multiple of ONNX
Runtime's. pytest-benchmark's own table is of the default backend alone.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fpgasim.kernels import Backend, Operand, Window, available, backend
from fpgasim.kernels.contract import rows_operand
from fpgasim.kernels.reference import Reference
from fpgasim.numerics import CATALOGUE, BlockFormat

#: Layers of ResNet-50: (side of the image, channels, filters, side of the kernel).
LAYERS = [(56, 64, 64, 3), (28, 128, 128, 3), (14, 256, 256, 3), (7, 512, 512, 3), (56, 64, 256, 1), (14, 1024, 256, 1)]
FORMATS = [("msfp16", "fp32"), ("msfp12", "fp32"), ("bw_1s5e5m", "exact"), ("msfp16", "fp16"), ("msfp16", "bf16"),
           ("fp13agx", "fp32"), ("fp16_bfp", "fp32"), ("mxfp8_e4m3", "fp32"), ("fp32", "fp32")]  # fmt: skip
ROUNDS = 7
FAST = {name: b for name, b in available().items() if name != "reference"}


def medians(contenders: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median CPU seconds of each contender, all called in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def same(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def blocked(kernels: Backend, x: Any, fmt: BlockFormat) -> Operand:
    codes, exponents = kernels.quantize(x.reshape(-1, x.shape[-1]), fmt, "even", 0)
    return rows_operand(codes.reshape(*x.shape[:-1], -1), exponents.reshape(*x.shape[:-1], -1), fmt, x.shape[-1])


def onnx_conv(x: Any, w: Any, pad: int) -> Callable[[], Any]:
    """ONNX Runtime's convolution of `x` (N, H, W, C) with `w` (O, KH, KW, C), on one thread."""
    nchw, oihw = (np.ascontiguousarray(t.transpose(0, 3, 1, 2)) for t in (x, w))
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[pad] * 4)
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", nchw.shape), ("y", ["n", "o", "h", "w"]))
    ]
    graph = helper.make_graph([node], "conv", ends[:1], ends[1:], [numpy_helper.from_array(oihw, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": nchw})


@pytest.mark.parametrize("layer", LAYERS, ids=lambda s: f"{s[0]}x{s[0]}x{s[1]}-{s[2]}-{s[3]}x{s[3]}")
@pytest.mark.parametrize(("name", "accumulator"), FORMATS, ids=[f"{f}-{a}" for f, a in FORMATS])
@pytest.mark.benchmark(timer=time.process_time)
def test_conv2d_speed(benchmark: Any, capsys: Any, layer: tuple[int, ...], name: str, accumulator: Any) -> None:
    side, channels, filters, kernel = layer
    rng, fmt, pad = np.random.default_rng(0), CATALOGUE[name], kernel // 2
    x = np.maximum(rng.standard_normal((1, side, side, channels)), 0).astype(np.float32)
    w = (rng.standard_normal((filters, kernel, kernel, channels)) * 0.05).astype(np.float32)
    window = Window((kernel, kernel), pads=(pad,) * 4)
    b = blocked(backend(), w, fmt)

    def convolution(kernels: Backend, a: Operand) -> Callable[[], Any]:
        return lambda: kernels.conv2d(a, b, window, 1, accumulator, "khwc", 1)

    corner = blocked(backend(), np.ascontiguousarray(x[:, :3, :2]), fmt)
    expected = convolution(Reference(), corner)()
    assert all(same(convolution(k, corner)(), expected) for k in FAST.values())
    a = blocked(backend(), x, fmt)
    contenders = {name: convolution(k, a) for name, k in FAST.items()} | {"onnxruntime": onnx_conv(x, w, pad)}
    first, *others = (contenders[name]() for name in FAST)
    assert all(same(first, other) for other in others)

    macs = side * side * channels * filters * kernel * kernel
    seconds = medians(contenders)
    benchmark.pedantic(contenders[backend().name], rounds=3)
    rates = [f"{n} {macs / s / 1e9:.1f} ({seconds['onnxruntime'] / s:.2f}x)" for n, s in seconds.items()]
    with capsys.disabled():
        print(f"\n{name} {accumulator} {layer}, GMAC/s (times ONNX Runtime): " + ", ".join(rates))


@pytest.mark.parametrize("name", ["msfp16", "msfp12", "bw_1s5e5m", "mxint8", "mxfp8_e4m3", "fp16_bfp"])
@pytest.mark.benchmark(timer=time.process_time)
def test_quantize_speed(benchmark: Any, capsys: Any, name: str) -> None:
    x = np.random.default_rng(0).standard_normal((3136, 128)).astype(np.float32)
    fmt = CATALOGUE[name]
    expected = Reference().quantize(x, fmt, "even", 0)
    for kernels in FAST.values():
        assert all(same(got, want) for got, want in zip(kernels.quantize(x, fmt, "even", 0), expected, strict=True))
    contenders = {n: lambda k=k: k.quantize(x, fmt, "even", 0) for n, k in FAST.items()}  # type: ignore[misc]
    contenders["copying the input"] = x.copy
    seconds = medians(contenders)
    benchmark.pedantic(contenders[backend().name], rounds=3)
    with capsys.disabled():
        print(f"\n{name}, Melem/s: " + ", ".join(f"{n} {x.size / s / 1e6:.0f}" for n, s in seconds.items()))
