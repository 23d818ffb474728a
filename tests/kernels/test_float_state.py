"""The C kernels keep subnormals even where another library told the thread to flush them to zero."""

import ctypes
import ctypes.util
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest

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
