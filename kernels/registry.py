"""Which backends there are on this machine, and which one to use."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys

from fpgasim.errors import UnknownNameError
from fpgasim.kernels.contract import Backend
from fpgasim.kernels.reference import Reference


@functools.cache
def available() -> dict[str, Backend]:
    """The backends that run on this machine, by name, slowest first."""
    found: list[Backend] = [Reference()]
    if importlib.util.find_spec("numba"):
        from fpgasim.kernels.numba_ import Numba

        found.append(Numba())
    if importlib.util.find_spec("fpgasim.kernels._native"):
        from fpgasim.kernels.native import variants

        found += variants()
    else:
        print(
            f"using the {found[-1].name} kernels: the native extension is not there (installed without a C compiler, "
            "or its build failed); `pip install .` with a compiler builds it",
            file=sys.stderr,
        )
    return {b.name: b for b in found}


def backend(name: str | None = None) -> Backend:
    """The backend called `name`, else the one in $FPGASIM_KERNELS, else the fastest.

    Raises UnknownNameError, which lists those that are there.
    """
    found = available()
    name = name or os.environ.get("FPGASIM_KERNELS") or next(reversed(found))
    if name not in found:
        raise UnknownNameError("kernel backend", name, found)
    return found[name]
