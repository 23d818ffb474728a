"""The kernels: one contract, several backends that all return the same bits.

`contract.Backend` says what each kernel computes and `reference` is the living definition.
`backend("native-portable")` and `backend("numba")` are faster; `backend()` is the fastest one here.
"""

from fpgasim.kernels.contract import Backend, Operand, Window, operand
from fpgasim.kernels.registry import available, backend

__all__ = ["Backend", "Operand", "Window", "available", "backend", "operand"]
