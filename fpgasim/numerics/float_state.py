"""The state of a thread's floating-point unit: that of IEEE 754, whatever another library made of it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_C = ctypes.PyDLL(None)
#: C's FE_DFL_ENV: ties to even, and no subnormal number flushed to zero.
_IEEE = ctypes.c_void_p(-1)
#: More bytes than any fenv_t has.
_SIZE = 64


def ieee(work: Callable[P, R]) -> Callable[P, R]:
    """`work` in the state of IEEE 754; behind it the thread has the state it had before.

    Code that was compiled to flush subnormal numbers to zero leaves a thread so, and NumPy and Numba follow it. The C
    kernels see to themselves.
    """

    @functools.wraps(work)
    def done(*args: P.args, **kwargs: P.kwargs) -> R:
        before = ctypes.create_string_buffer(_SIZE)
        _C.fegetenv(before)
        _C.fesetenv(_IEEE)
        try:
            return work(*args, **kwargs)
        finally:
            _C.fesetenv(before)

    return done
