"""A layer of the byte convolution on any number of threads, from several at once, and in a forked child."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fpgasim.kernels import Window, available, backend, pointwise as unit
from fpgasim.kernels.contract import Step, Unquantized
from fpgasim.kernels.native import Native
from fpgasim.numerics import CATALOGUE

BYTES = [b for b in available().values() if isinstance(b, Native) and b.bytes_convolution.there]
THREE = Window((3, 3), pads=(1, 1, 1, 1))

SHAPES = [
    # images, height, width, channels, outputs, groups, window
    (1, 20, 31, 32, 40, 1, THREE),  # by pixels
    (2, 12, 11, 16, 24, 1, Window((1, 1))),
    (1, 5, 5, 40, 330, 1, THREE),  # by panels, the last of them ragged
    (1, 4, 6, 32, 512, 2, Window((1, 1))),
    (1, 1, 1, 64, 200, 1, Window((1, 1))),  # fewer pixels than threads
    (1, 2, 1, 32, 20, 1, Window((1, 1))),
]


def layer_case(rng: Any, fmt: Any, shape: tuple[Any, ...], numbers: Any, blocked: Any) -> tuple[Any, ...]:
    """The arguments of `layer` up to its results, and what these are."""
    images, height, width, channels, outputs, groups, window = shape
    x = Unquantized(numbers(rng, "ordinary", images, height, width, channels), fmt)
    w = blocked(numbers(rng, "ordinary", outputs, *window.kernel, channels) * np.float32(200), fmt)
    rows = images * height * width
    bias, residual = (
        unit.round_to(numbers(rng, "ordinary", *s) * np.float32(6e4), "fp16") for s in ((outputs,), (rows, outputs))
    )
    args = (x, w, window, groups, "fp32", "khwc", [Step("add", bias), Step("add", residual), Step("relu")])
    expected = {i: np.empty((rows, outputs), np.float32) for i in (-1, 0, 2)}
    counts = backend("reference").layer(*args, expected, "fp16", 1)
    return args, expected, counts


@pytest.mark.parametrize("kernels", BYTES, ids=lambda b: b.name)
@pytest.mark.parametrize("name", ["msfp16", "fp13agx"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_layer_has_the_same_bits_on_any_number_of_threads(
    kernels: Native, name: str, shape: tuple[Any, ...], numbers: Any, blocked: Any, same_bits: Any
) -> None:
    args, expected, counts = layer_case(np.random.default_rng(0), CATALOGUE[name], shape, numbers, blocked)
    assert counts[1] > 0
    for threads in (1, 2, 3, 5, 100):
        got = {i: np.full_like(v, np.nan) for i, v in expected.items()}
        assert kernels.layer(*args, got, "fp16", threads) == counts
        assert all(same_bits(got[i], expected[i]) for i in got), threads


def test_several_threads_may_share_out_layers_at_once(numbers: Any, blocked: Any, same_bits: Any) -> None:
    cases = [
        layer_case(np.random.default_rng(i), CATALOGUE["msfp16"], shape, numbers, blocked)
        for i, shape in enumerate(SHAPES[:4])
    ]

    def wrong(case: tuple[Any, ...]) -> int:
        args, expected, counts = case
        failures = 0
        for _ in range(50):
            got = {i: np.full_like(v, np.nan) for i, v in expected.items()}
            failures += BYTES[-1].layer(*args, got, "fp16", 3) != counts
            failures += not all(same_bits(got[i], expected[i]) for i in got)
        return failures

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(wrong, cases)) == 0


FORKED = """
import os
import numpy as np
import fpgasim as fs
x, w = np.ones((1, 32, 40, 40), np.float32), np.ones((64, 32, 3, 3), np.float32)
before = fs.conv2d(x, w, format="msfp16")
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(fs.conv2d(x, w, format="msfp16"), before) else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPGASIM_NUM_THREADS", "2")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
