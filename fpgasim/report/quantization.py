"""What quantization does to a tensor, in figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fpgasim.numerics import NAN_EXPONENT, BlockTensor


@dataclass(frozen=True)
class QuantizationError:
    """The error of a BlockTensor against the numbers it was made of.

    `qsnr_db` is 10·log10(Σx² / Σ(x − q)²) (Darvish Rouhani et al., ISCA 2023, IV), infinite without error.
    `zeros` counts elements that became zero and were none, `nan_blocks` blocks with a NaN or an infinity,
    which the other figures leave out. `packed_bytes` is the dense size, `fp32_bytes` that of x.
    """

    qsnr_db: float
    max_error: float
    rms_error: float
    zeros: int
    blocks: int
    nan_blocks: int
    packed_bytes: int
    fp32_bytes: int


def quantization_error(x: npt.NDArray[Any], tensor: BlockTensor) -> QuantizationError:
    """The figures of `tensor`, which `fpgasim.quantize` made of `x`; sums are taken in float64."""
    values, quantized = np.asarray(x, np.float64), tensor.dequantize().astype(np.float64)
    finite = np.isfinite(values) & np.isfinite(quantized)
    values, quantized = values[finite], quantized[finite]
    error = np.abs(values - quantized)
    signal, noise = float(np.sum(values**2)), float(np.sum(error**2))
    fmt, blocks = tensor.format, tensor.exponents.size
    bits = blocks * (fmt.exponent_bits + fmt.block * fmt.element_bits)
    return QuantizationError(
        qsnr_db=math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf,
        max_error=float(error.max(initial=0)),
        rms_error=math.sqrt(noise / values.size) if values.size else 0.0,
        zeros=int(np.count_nonzero((quantized == 0) & (values != 0))),
        blocks=blocks,
        nan_blocks=int(np.count_nonzero(tensor.exponents == NAN_EXPONENT)),
        packed_bytes=-(-bits // 8),
        fp32_bytes=4 * x.size,
    )
