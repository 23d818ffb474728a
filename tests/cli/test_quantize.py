"""`fpgasim quantize`: the figures are right and bad files are one line."""

import json
import math

import numpy as np
import pytest

from fpgasim import quantize
from fpgasim.report.quantization import quantization_error


@pytest.fixture
def array(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(1).standard_normal((4, 40)).astype(np.float32))
    return path


def test_the_json_figures_are_those_of_the_library(fpgasim, array):
    got = json.loads(fpgasim("quantize", array, "--format", "mxint8", "--axis", 0, "--json").stdout)
    x = np.load(array)
    tensor = quantize(x, "mxint8", axis=0)
    difference = x.astype(np.float64) - tensor.dequantize()
    assert got["max_error"] == np.abs(difference).max()
    assert got["qsnr_db"] == pytest.approx(10 * math.log10(np.sum(x.astype(np.float64) ** 2) / np.sum(difference**2)))
    assert got["packed_bytes"] == len(tensor.pack())
    assert got["fp32_bytes"] == x.nbytes
    assert got["provenance"]["format"] == "mxint8"


def test_the_text_names_format_and_error(fpgasim, array):
    output = fpgasim("quantize", array, "--format", "msfp12").stdout
    assert "msfp12, 4.5 bits per element" in output
    assert " dB" in output


def test_the_written_file_holds_codes_exponents_and_values(fpgasim, array, tmp_path):
    out = tmp_path / "q.npz"
    assert f"wrote {out}" in fpgasim("quantize", array, "--format", "msfp14", "--out", out).stdout
    tensor = quantize(np.load(array), "msfp14")
    with np.load(out) as stored:
        np.testing.assert_array_equal(stored["codes"], tensor.codes)
        np.testing.assert_array_equal(stored["exponents"], tensor.exponents)
        np.testing.assert_array_equal(stored["values"], tensor.dequantize())


def test_a_block_with_a_nan_is_counted_and_left_out():
    x = np.ones((2, 16), np.float32)
    x[1, 3] = np.nan
    error = quantization_error(x, quantize(x, "msfp16"))
    assert (error.nan_blocks, error.blocks, error.qsnr_db) == (1, 2, math.inf)


def test_numbers_too_small_for_their_block_are_counted_as_zeros():
    x = np.array([1.0] + [1e-6] * 15, np.float32)
    assert quantization_error(x, quantize(x, "msfp12")).zeros == 15


def test_zeros_have_no_error():
    x = np.zeros((1, 16), np.float32)
    assert quantization_error(x, quantize(x, "msfp12")).max_error == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--format", "int3"), 4, "no format 'int3'; there are msfp11"),
        (("--axis", 5), 4, "axis=5 is not an axis of x with shape (4, 40)"),
        (("--rounding", "up"), 4, "no rounding 'up'"),
        (("--out", "/nowhere/q.npz"), 1, "'/nowhere/q.npz': No such file or directory"),
    ],
)
def test_a_bad_option_is_one_line(refused, array, options, code, message):
    assert refused("quantize", array, *options, exit_code=code).startswith(message)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"hello", b"PK\x03\x04"], ids=["empty", "cut", "text", "zip"])
def test_a_file_that_is_no_array_is_one_line(refused, tmp_path, content):
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    assert refused("quantize", path, exit_code=4).startswith(f"array '{path}' is no whole .npy file")


def test_a_truncated_array_is_one_line(refused, array):
    array.write_bytes(array.read_bytes()[:-5])
    assert refused("quantize", array, exit_code=4).startswith(f"array '{array}' is no whole .npy file")


def test_a_missing_file_is_one_line(refused, tmp_path):
    assert refused("quantize", tmp_path / "x.npy", exit_code=4).endswith("No such file or directory; give a .npy file")


def test_a_pickle_is_refused(refused, tmp_path):
    np.save(tmp_path / "p.npy", np.array([{}], object))
    assert "pickle" in refused("quantize", tmp_path / "p.npy", exit_code=4)
