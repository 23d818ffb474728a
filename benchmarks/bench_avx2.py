"""Layers of ResNet-50 in vectors of 256 bits: `.venv-oracles/bin/python benchmarks/bench_avx2.py`.

`make test-oracles` makes that environment, which has PyTorch and so oneDNN; with ONEDNN_MAX_CPU_ISA=AVX2 its fp32
convolution keeps to AVX2, as our variants `avx2` and `avxvnni` do. For each layer, on one thread: bits checked against
the reference, then the processor time of quantizing and convolving numbers NHWC in MSFP16 with fp32 sums, in turns with
PyTorch's fp32 convolution in each memory layout. Printed are GMAC/s and multiples of PyTorch's better layout.
"""

import argparse
import math
import os
from collections.abc import Callable
from typing import Any

os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"  # read when PyTorch loads

import torch

from fpgasim.bench.layers import check_layer, our_layer
from fpgasim.bench.timing import medians
from fpgasim.kernels import Window, available
from fpgasim.npu import Layer, resolve_numbers

#: (side of the image, channels, filters, side of the kernel).
LAYERS = [
    *((56, 64, 64, 3), (28, 128, 128, 3), (14, 256, 256, 3), (7, 512, 512, 3)),
    *((56, 64, 64, 1), (56, 64, 256, 1), (56, 256, 64, 1), (28, 512, 128, 1), (14, 1024, 256, 1), (7, 512, 2048, 1)),
]


def layer_of(side: int, channels: int, filters: int, kernel: int) -> Layer:
    window = Window((kernel, kernel), pads=(kernel // 2,) * 4)
    shapes = (1, side, side, channels), (1, side, side, filters)
    return Layer("", "conv", (), (), "", *shapes, window=window)


def torch_conv(layer: Layer, memory_format: Any) -> Callable[[], Any]:
    """PyTorch's convolution of the layer's shape, with bias and ReLU as ours has."""
    assert layer.window is not None
    _, side, _, channels = layer.in_shape
    outputs, kernel = layer.out_shape[3], layer.window.kernel
    x = torch.randn(1, channels, side, side).to(memory_format=memory_format)
    w = torch.randn(outputs, channels, *kernel).to(memory_format=memory_format)
    bias = torch.randn(outputs)
    return lambda: torch.relu_(torch.nn.functional.conv2d(x, w, bias, padding=layer.window.pads[0]))  # type: ignore[union-attr]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    numbers = resolve_numbers("bw_a10", "msfp16", "fp32", "khwc", "fp32")
    ours = {n: k for n, k in available().items() if n in ("native-avx2", "native-avxvnni")}
    logs: dict[str, list[float]] = {f"{name} {kernel}x{kernel}": [] for kernel in (3, 1) for name in ours}
    for shape in LAYERS:
        layer, kernel = layer_of(*shape), shape[3]
        check_layer(layer, numbers)
        calls = {name: our_layer(layer, numbers, kernels, 1) for name, kernels in ours.items()}
        contenders: dict[str, Callable[[], Any]] = {name: call for name, (call, _) in calls.items()}
        contenders |= {
            "torch NCHW": torch_conv(layer, torch.contiguous_format),
            "torch NHWC": torch_conv(layer, torch.channels_last),
        }
        seconds = medians(contenders, rounds, 1)
        best = min(seconds["torch NCHW"], seconds["torch NHWC"])
        rates = [f"{name} {layer.macs / s / 1e9:.0f} ({best / s:.2f}x)" for name, s in seconds.items()]
        print(f"{shape[0]}x{shape[0]}x{shape[1]}-{shape[2]} {kernel}x{kernel}: " + ", ".join(rates), flush=True)
        for name in ours:
            logs[f"{name} {kernel}x{kernel}"].append(math.log(best / seconds[name]))
    for name, values in logs.items():
        print(f"{name}: {math.exp(sum(values) / len(values)):.2f}x in the geometric mean")


if __name__ == "__main__":
    main()
