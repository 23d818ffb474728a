"""The backends under test, and what equal means."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings

from fpgasim.kernels import Backend, Operand, available
from fpgasim.kernels.contract import rows_operand
from fpgasim.kernels.reference import Reference
from fpgasim.numerics import BlockFormat

Array = npt.NDArray[Any]


@pytest.fixture(params=[b for b in available().values() if b.name != "reference"], ids=lambda b: b.name)
def kernels(request: pytest.FixtureRequest) -> Backend:
    """Each faster backend, to be held against the reference."""
    backend: Backend = request.param
    return backend


@pytest.fixture(scope="session")
def fuzz() -> settings:
    """How many examples of shapes are tried: always the same ones, or as many new ones as make test-fuzz asks for."""
    examples = os.environ.get("FPGASIM_FUZZ_EXAMPLES")
    return settings(
        max_examples=int(examples or 100),
        deadline=None,
        derandomize=examples is None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


@pytest.fixture(scope="session")
def same_bits() -> Callable[[Array, Array], bool]:
    """Whether two arrays agree in shape, type and every bit, NaNs of any payload being alike."""

    def check(a: Array, b: Array) -> bool:
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.dtype != np.float32:
            return bool((a == b).all())
        return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())

    return check


@pytest.fixture(scope="session")
def numbers() -> Callable[..., Array]:
    """Float32 numbers of a kind: ordinary, spread over many powers of two, any bits, any finite bits, tiny, zeros."""

    def make(rng: np.random.Generator, kind: str, *shape: int) -> Array:
        x = rng.standard_normal(shape)
        if kind == "spread":
            x *= 2.0 ** rng.integers(-40, 40, shape)
        elif kind in ("any", "finite"):
            x = rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
            if kind == "finite":
                x = np.where(np.isfinite(x), x, np.float32(1.0))
        elif kind == "tiny":
            x *= 2.0**-130
        elif kind == "zeros":
            x *= 0.0
        else:
            assert kind == "ordinary"
        y = x.astype(np.float32)
        y[rng.random(shape) < 0.2] = 0.0
        y[rng.random(shape) < 0.05] = -0.0
        return y

    return make


@pytest.fixture(scope="session")
def blocked() -> Callable[[Array, BlockFormat], Operand]:
    """`x` (…, channels) in blocks of a format, by the reference."""

    def make(x: Array, fmt: BlockFormat) -> Operand:
        codes, exponents = Reference().quantize(x.reshape(-1, x.shape[-1]), fmt, "even", 0)
        lead = x.shape[:-1]
        return rows_operand(codes.reshape(*lead, -1), exponents.reshape(*lead, -1), fmt, x.shape[-1])

    return make
