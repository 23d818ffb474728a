"""Integer mantissas under one exponent against qtorch's block quantization: equal in every bit away from ties.

qtorch (Zhang et al., 2019) rounds ties up, and what lies within a float32 rounding of 6·2^E of a tie with them.
"""

import numpy as np
import pytest
import qtorch.quant
import torch

import fpgasim as fs
from fpgasim.numerics import WHOLE, BlockFormat


@pytest.mark.parametrize("bits", range(2, 15))
@pytest.mark.parametrize("n", [1, 8, 16, 48])
def test_rows_have_the_values_of_qtorch(bits: int, n: int) -> None:
    rng = np.random.default_rng(100 * bits + n)
    x = (rng.standard_normal((400, n)) * 2.0 ** rng.integers(-6, 6, (400, n))).astype(np.float32)
    x *= (2.0 ** rng.integers(-60, 60, (400, 1))).astype(np.float32)
    theirs = qtorch.quant.block_quantize(torch.from_numpy(x), bits + 1, dim=0, rounding="nearest").numpy()
    tensor = fs.quantize(x, BlockFormat("row", bits, 8, WHOLE))
    ours = tensor.dequantize()
    quotient = np.abs(np.ldexp(x.astype(np.float64), bits - 1 - tensor.exponents))
    clear = np.abs(quotient - np.floor(quotient) - 0.5) > 2.0 ** (bits - 20)
    assert clear.mean() > 0.95
    assert (ours[clear].view(np.uint32) == theirs[clear].view(np.uint32)).all()
