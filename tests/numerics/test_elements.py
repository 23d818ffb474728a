"""Float elements against other people's implementations: ml_dtypes and gfloat."""

import math
from collections.abc import Callable
from typing import Any

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest

from fpgasim.numerics import CATALOGUE
from fpgasim.numerics.scalar import decode_element, encode_element
from fpgasim.numerics.tensors import element_values

Quantize = Callable[..., Any]

DTYPES = {
    "mxfp8_e5m2": ml_dtypes.float8_e5m2,
    "mxfp8_e4m3": ml_dtypes.float8_e4m3fn,
    "mxfp6_e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp6_e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp4_e2m1": ml_dtypes.float4_e2m1fn,
}
each_format = pytest.mark.parametrize("name", DTYPES)


@each_format
def test_every_code_decodes_as_in_ml_dtypes(name: str) -> None:
    ours = element_values(CATALOGUE[name])
    theirs = np.arange(len(ours), dtype=np.uint8).view(DTYPES[name]).astype(np.float32)
    numbers = np.isfinite(theirs)
    assert numbers.sum() >= len(ours) - 8
    assert (ours[numbers].view(np.uint32) == theirs[numbers].view(np.uint32)).all()


@each_format
def test_encoding_is_the_saturating_cast_of_ml_dtypes(name: str, quantize: Quantize) -> None:
    fmt = CATALOGUE[name]
    values = element_values(fmt)
    values = np.unique(values[np.abs(values) <= fmt.element_max])
    ties = (values[1:] + values[:-1]) / 2
    x = np.concatenate([values, ties, np.nextafter(ties, np.float32(9e9)), np.nextafter(ties, np.float32(-9e9))])
    x = np.concatenate(
        [x, np.random.default_rng(0).uniform(-fmt.element_max, fmt.element_max, 4000).astype(np.float32)]
    )
    pairs = np.stack([np.full_like(x, fmt.element_max), x], axis=1)  # the first one makes the shared exponent 0
    tensor = quantize(pairs, fmt.with_block(2))
    assert (tensor.exponents == 0).all()
    assert (tensor.codes[:, 1] == x.astype(DTYPES[name]).view(np.uint8)).all()


@each_format
def test_elements_saturate_at_the_largest(name: str) -> None:
    fmt = CATALOGUE[name]
    largest = encode_element(fmt.element_max, 0, fmt, "even")
    assert element_values(fmt)[largest] == fmt.element_max
    for factor in (1.01, 1.5, 100.0):
        assert encode_element(factor * fmt.element_max, 0, fmt, "even") == largest
        assert encode_element(-factor * fmt.element_max, 0, fmt, "nearest") == largest | 1 << fmt.element_bits - 1


@each_format
def test_blocks_are_quantized_as_in_gfloat(name: str, quantize: Quantize) -> None:
    fmt = CATALOGUE[name]
    info = getattr(gfloat.formats, f"format_info_{name}")
    rng = np.random.default_rng(2)
    for scale in (1.0, 1e-6, 3e20):
        x = (rng.standard_normal((3, 32)) * scale).astype(np.float32)
        ours = quantize(x, fmt).dequantize()
        for row, values in enumerate(x.astype(np.float64)):
            theirs = gfloat.quantize_block(info, values, gfloat.compute_scale_amax)
            # gfloat takes what rounds beyond the largest element to infinity or NaN; here it saturates.
            kept = np.isfinite(theirs)
            assert kept.sum() >= 24
            assert (ours[row][kept] == theirs[kept]).all()


def test_mxint8_is_gfloats_but_for_minus_two(quantize: Quantize) -> None:
    info = gfloat.formats.format_info_mxint8
    x = np.random.default_rng(3).standard_normal((8, 32)).astype(np.float32)
    tensor = quantize(x, CATALOGUE["mxint8"])
    for row, values in enumerate(x.astype(np.float64)):
        theirs = gfloat.quantize_block(info, values, gfloat.compute_scale_amax)
        kept = tensor.codes[row] != -127  # -128 is never used here
        assert (tensor.dequantize()[row][kept] == theirs[kept]).all()


@each_format
def test_every_code_decodes_as_in_gfloat(name: str) -> None:
    info = getattr(gfloat.formats, f"format_info_ocp_{name.rpartition('_')[2]}")
    ours = element_values(CATALOGUE[name])
    for code, value in enumerate(ours.tolist()):
        theirs = gfloat.decode_float(info, code)
        if theirs.fclass in (gfloat.FloatClass.NAN, gfloat.FloatClass.INFINITE):
            assert abs(value) > CATALOGUE[name].element_max  # no quantization makes such a code
        else:
            assert (value, math.copysign(1, value) < 0) == (theirs.fval, theirs.signbit)


@each_format
@pytest.mark.parametrize("rounding", ["even", "nearest", "floor"])
def test_every_tie_and_its_neighbours_round_as_in_gfloat(name: str, rounding: Any) -> None:
    fmt = CATALOGUE[name]
    info = getattr(gfloat.formats, f"format_info_ocp_{name.rpartition('_')[2]}")
    mode = {"even": "TiesToEven", "nearest": "TiesToAway", "floor": "TowardZero"}[rounding]
    values = element_values(fmt)
    values = np.unique(values[np.abs(values) <= fmt.element_max])
    ties = (values[1:] + values[:-1]) / 2
    beside = [np.nextafter(ties, np.float32(to)) for to in (9e9, -9e9)]  # as doubles gfloat takes some for ties
    for v in np.concatenate([values, ties, *beside, values * 2]).tolist():
        ours = decode_element(encode_element(v, 0, fmt, rounding), 0, fmt)
        assert ours == gfloat.round_float(info, v, gfloat.RoundMode[mode], sat=True), v
