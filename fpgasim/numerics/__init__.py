"""Number formats as values: the catalogue, the scalar rules of quantization, tensors of blocks."""

from fpgasim.numerics.formats import CATALOGUE, NAN_EXPONENT, WHOLE, BlockFormat, get_format
from fpgasim.numerics.scalar import ROUNDINGS, Rounding, get_rounding
from fpgasim.numerics.tensors import BlockTensor

__all__ = [
    "CATALOGUE",
    "NAN_EXPONENT",
    "ROUNDINGS",
    "WHOLE",
    "BlockFormat",
    "BlockTensor",
    "Rounding",
    "get_format",
    "get_rounding",
]
