"""`fake_quantize`: the values of `fpgasim.quantize`, the gradient of the identity where nothing saturates."""

import numpy as np
import pytest
import torch

import fpgasim as fs
from fpgasim.errors import InputError, UnknownNameError
from fpgasim.numerics import CATALOGUE
from fpgasim.torch import fake_quantize

from .networks import batch


@pytest.mark.parametrize("format", CATALOGUE)
@pytest.mark.parametrize("rounding", ["even", "nearest", "floor", "stochastic"])
def test_values_are_those_of_quantize(format: str, rounding: str) -> None:
    x = batch(5, 40, 3) * torch.exp2(batch(5, 40, 3, seed=2) * 8)
    for axis in (0, 1, -1):
        expected = fs.quantize(x.numpy(), format, axis, rounding, seed=7).dequantize()
        assert np.array_equal(fake_quantize(x, format, axis, rounding, seed=7).numpy(), expected)


@pytest.mark.parametrize("format", CATALOGUE)
def test_the_gradient_passes_straight_through(format: str) -> None:
    x = batch(4, 70).requires_grad_()
    upstream = batch(4, 70, seed=3)
    fake_quantize(x, format).backward(upstream)
    assert x.grad is not None
    assert torch.equal(x.grad, upstream)


def test_the_gradient_is_masked_beyond_the_largest_number_of_the_format() -> None:
    largest = 3 * 2.0**15  # of bw_1s5e2m: mantissa 3, one fraction bit, exponent 16
    x = torch.tensor([1.0, largest, np.nextafter(np.float32(largest), np.float32(np.inf)), -2.0 * largest, -largest])
    x.requires_grad_()
    y = fake_quantize(x, "bw_1s5e2m")
    assert y.detach().tolist() == [0.0, largest, largest, -largest, -largest]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]


def test_the_largest_of_a_block_may_be_cut_by_less_than_a_unit_and_keeps_its_gradient() -> None:
    x = torch.tensor([7.9, 1.0]).requires_grad_()
    y = fake_quantize(x, "msfp12")
    assert y.detach().tolist() == [7.0, 1.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0]


def test_what_is_no_number_gets_no_gradient() -> None:
    x = torch.tensor([[np.inf, 1.0], [np.nan, 1.0]]).requires_grad_()
    fake_quantize(x, "msfp16").sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(UnknownNameError, match="no format 'msfp10'"):
        fake_quantize(batch(3), "msfp10")
    with pytest.raises(InputError, match=r"torch\.float64 on cpu; torch\.float32"):
        fake_quantize(batch(3).double(), "msfp12")
    with pytest.raises(InputError, match="axis=1 is not an axis"):
        fake_quantize(batch(3), "msfp12", axis=1)
