"""The array definition of quantization, and float32 numbers that are likely to break it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

from fpgasim.kernels.reference import Reference
from fpgasim.numerics import BlockFormat, BlockTensor

Array = npt.NDArray[Any]
Quantize = Callable[..., BlockTensor]


@pytest.fixture(scope="session")
def quantize() -> Quantize:
    """Quantizes (rows, n) along the last axis with the reference kernel."""

    def run(x: Array, fmt: BlockFormat, rounding: Any = "even", seed: int = 0) -> BlockTensor:
        codes, exponents = Reference().quantize(np.asarray(x, np.float32), fmt, rounding, seed)
        return BlockTensor(np.ascontiguousarray(codes[:, : np.shape(x)[1]]), exponents, fmt, 1)

    return run


def _near_power(exponent: int, steps: int, negative: bool) -> float:
    bits = np.float32(2.0**exponent).view(np.uint32) + np.uint32(steps + 1) - np.uint32(1)
    value = float(np.uint32(bits).view(np.float32))
    return -value if negative else value


@pytest.fixture(scope="session")
def blocks() -> st.SearchStrategy[list[float]]:
    """Lists of float32: neighbours of powers of two, subnormals, ties, any number, now and then an infinity or NaN."""
    powers = st.builds(_near_power, st.integers(-148, 127), st.integers(-1, 1), st.booleans())
    near_one = st.integers(-4096, 4096).map(lambda n: n / 1024)
    finite = st.one_of(powers, near_one, st.sampled_from([0.0, -0.0, 1.0]), st.floats(width=32, allow_nan=False))
    return st.lists(st.one_of(finite, finite, finite, st.floats(width=32)), min_size=1, max_size=11)
