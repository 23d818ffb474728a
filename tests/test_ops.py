"""The two doors, `fs.quantize` and `fs.conv2d`: what they compute and what they say about bad arguments."""

import re
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fpgasim as fs
from fpgasim.errors import FormatError, InputError, UnknownNameError
from fpgasim.kernels import available, backend, operand, pointwise as unit
from fpgasim.kernels.contract import POINTWISE, Window, get_accumulator, get_order
from fpgasim.kernels.reference import Reference
from fpgasim.numerics import CATALOGUE, WHOLE, BlockFormat
from fpgasim.numerics.scalar import quantize_block
from fpgasim.ops import num_threads

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 20, 6, 5)).astype(np.float32)
W = RNG.standard_normal((6, 20, 3, 2)).astype(np.float32)
MSFP = CATALOGUE["msfp14"]
#: Shapes of 8 MB and an axis: across memory, along it, along it with a tail.
LARGE = [((8, 64, 64, 64), 1), ((256, 2, 4096), 0), ((512, 4096), 1), ((2048, 1000), -1)]


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_quantize_makes_blocks_along_any_axis(axis: int) -> None:
    x = RNG.standard_normal((5, 3, 4)).astype(np.float32)
    fmt = MSFP.with_block(3)
    tensor = fs.quantize(x, fmt, axis=axis)
    assert tensor.shape == x.shape
    assert tensor.axis == axis % 3
    rows = np.moveaxis(x, axis, -1)
    codes, exponents = np.moveaxis(tensor.codes, axis, -1), np.moveaxis(tensor.exponents, axis, -1)
    for row in np.ndindex(rows.shape[:-1]):
        for block in range(exponents.shape[-1]):
            part = slice(3 * block, 3 * block + 3)
            assert (codes[row][part].tolist(), exponents[row][block]) == quantize_block(rows[row][part].tolist(), fmt)


@pytest.mark.parametrize("kernels", [name for name in available() if name.startswith("native")])
@pytest.mark.parametrize("name", ["msfp16", "mxint8", "mxfp8_e4m3", "fp16_bfp"])
@pytest.mark.parametrize(("shape", "axis"), LARGE)
def test_quantizing_takes_little_memory_beside_the_result(
    shape: tuple[int, ...], axis: int, name: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FPGASIM_KERNELS", kernels)
    x = np.zeros(shape, np.float32)
    tracemalloc.start()
    tensor = fs.quantize(x, name, axis)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - tensor.codes.nbytes - tensor.exponents.nbytes < 0.1 * x.nbytes


def test_quantize_takes_lists_integers_and_doubles() -> None:
    assert fs.quantize([1, 2, 3], "msfp16").dequantize().tolist() == [1.0, 2.0, 3.0]
    with_double = fs.quantize(np.array([1e300, 1.0]), "msfp16")  # infinite as a float32
    assert np.isnan(with_double.dequantize()).all()


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "int4"])
def test_quantize_takes_the_types_of_ml_dtypes(name: str) -> None:
    x = RNG.standard_normal((3, 20)).astype(getattr(ml_dtypes, name))
    assert (fs.quantize(x, "msfp12").codes == fs.quantize(x.astype(np.float32), "msfp12").codes).all()


def test_quantize_of_nothing_is_nothing() -> None:
    assert fs.quantize(np.zeros((0, 3)), "mxint8").codes.shape == (0, 3)
    assert fs.quantize(np.zeros((3, 0)), "mxint8").exponents.shape == (3, 0)


def test_stochastic_rounding_is_drawn_from_the_seed() -> None:
    x = RNG.standard_normal((4, 64))
    first, again, other = (fs.quantize(x, "msfp12", rounding="stochastic", seed=s).codes for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": 3.0}, InputError, "x is a scalar"),
        ({"axis": 2}, InputError, "axis=2 is not an axis of x with shape (2, 3); -2 to 1 are"),
        ({"axis": 1.0}, InputError, "axis=1.0 is not an axis of x"),
        ({"axis": "a"}, InputError, "axis='a' is not an axis of x"),
        ({"axis": None}, InputError, "axis=None is not an axis of x"),
        ({"axis": True}, InputError, "axis=True is not an axis of x"),
        ({"format": []}, UnknownNameError, "no format []; there are msfp11"),
        ({"rounding": []}, UnknownNameError, "no rounding []; there are even"),
        ({"seed": 1.5}, InputError, "seed=1.5 is no seed; a whole number would do"),
        ({"seed": "a"}, InputError, "seed='a' is no seed"),
        ({"seed": None}, InputError, "seed=None is no seed"),
        ({"x": np.zeros((2, 3), "V4")}, InputError, "x has dtype |V4; real numbers would do"),
        ({"x": np.array(["a"])}, InputError, "x has dtype <U1; real numbers would do"),
        ({"x": [1j]}, InputError, "x has dtype complex128"),
        ({"x": [[1.0], [1.0, 2.0]]}, InputError, "x is no array of numbers"),
        ({"format": "int4"}, UnknownNameError, "no format 'int4'; there are msfp11"),
        ({"rounding": "up"}, UnknownNameError, "no rounding 'up'; there are even"),
    ],
)
def test_quantize_names_the_argument_that_does_not_fit(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fs.quantize(**({"x": np.zeros((2, 3)), "format": "msfp12"} | arguments))


@pytest.mark.parametrize("accumulator", ["fp32", "exact"])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d_in_fp32_is_the_convolution_everyone_knows(accumulator: str, groups: int) -> None:
    bias = RNG.standard_normal(6).astype(np.float32)
    w = W[:, : 20 // groups]
    got = fs.conv2d(X, w, format="fp32", stride=(2, 1), padding=(1, 0, 2, 3), dilation=(1, 2), groups=groups, bias=bias,
                    accumulator=accumulator)  # fmt: skip
    padded = np.pad(X, ((0, 0), (0, 0), (1, 2), (0, 3))).astype(np.float64)
    expected = np.zeros((2, 6, 4, 6)) + bias[:, None, None]
    for g in range(groups):
        mine, theirs = slice(g * 6 // groups, (g + 1) * 6 // groups), slice(g * 20 // groups, (g + 1) * 20 // groups)
        for kh, kw in np.ndindex(3, 2):
            taps = padded[:, theirs, kh : kh + 7 : 2, 2 * kw : 2 * kw + 6]
            expected[:, mine] += np.einsum("nchw,oc->nohw", taps, w[mine, :, kh, kw])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_a_convolution_of_numbers_is_that_of_their_quantized_values() -> None:
    got = fs.conv2d(X, W, format="msfp16", accumulator="exact")
    x, w = (fs.quantize(t, "msfp16", axis=1).dequantize() for t in (X, W))
    np.testing.assert_allclose(got, fs.conv2d(x, w, format="fp32"), rtol=0, atol=1e-4)


def test_the_layouts_agree() -> None:
    nhwc = fs.conv2d(X.transpose(0, 2, 3, 1), W, format="msfp12", layout="NHWC", padding=1)
    assert (nhwc.transpose(0, 3, 1, 2) == fs.conv2d(X, W, format="msfp12", padding=1)).all()


def test_block_tensors_are_used_as_they_are() -> None:
    expected = fs.conv2d(X, W, format="msfp14", weight_format="msfp12")
    x, w = fs.quantize(X, "msfp14", axis=1), fs.quantize(W, "msfp12", axis=-3)
    assert (fs.conv2d(x, w) == expected).all()
    assert (fs.conv2d(x, W, format="msfp12") == expected).all()
    assert (fs.conv2d(X, w, format="msfp14") == expected).all()
    last = fs.quantize(X.transpose(0, 2, 3, 1), "msfp14", axis=3)
    assert (fs.conv2d(last, w, layout="NHWC").transpose(0, 3, 1, 2) == expected).all()


@pytest.mark.parametrize("block", [8, 16, 32, 64, 128, WHOLE])
def test_a_format_of_ones_own_makes_blocks_of_any_length(block: int) -> None:
    mine, weights = BlockFormat("mine", 5, 8, block), BlockFormat("mine too", 3, 5, block)
    got = fs.conv2d(X, W, format=mine, weight_format=weights, padding=1)
    x, w = fs.quantize(X, mine, axis=1), fs.quantize(W, weights, axis=1)
    assert x.exponents.shape[1] == (-(-20 // block) if block else 1)
    assert (fs.conv2d(x, w, padding=1) == got).all()
    assert (fs.conv2d(x, W, format=mine, weight_format=weights, padding=1) == got).all()
    np.testing.assert_allclose(got, fs.conv2d(x.dequantize(), w.dequantize(), format="fp32", padding=1), atol=1e-4)


def test_a_whole_vector_is_the_channels_of_a_pixel_or_the_window() -> None:
    whole = MSFP.with_block(WHOLE)
    assert (fs.conv2d(X, W, format=whole) == fs.conv2d(X, W, format=MSFP.with_block(20))).all()
    windows = [fs.conv2d(X, W, format=f, packing="window") for f in (whole, MSFP.with_block(120))]
    assert (windows[0] == windows[1]).all()
    grouped = [fs.conv2d(X, W[:, :10], format=f, groups=2) for f in (whole, MSFP.with_block(20))]
    assert (grouped[0] == grouped[1]).all()


@pytest.mark.parametrize("order", ["khwc", "tree( 3 )"])
@pytest.mark.parametrize("accumulator", ["fp16", "bf16", "fixed(16, 6, saturate)", "fixed(16,6,wrap)"])
def test_conv2d_adds_up_as_it_is_asked_to(accumulator: str, order: str) -> None:
    small = MSFP.with_block(4)
    x, w = operand(fs.quantize(X.transpose(0, 2, 3, 1), small)), operand(fs.quantize(W.transpose(0, 2, 3, 1), small))
    names = get_accumulator(accumulator), get_order(order)
    expected = Reference().conv2d(x, w, Window((3, 2)), 1, *names, 1)
    got = fs.conv2d(X, W, format=small, accumulator=accumulator, order=order)
    assert (got.transpose(0, 2, 3, 1) == expected).all()
    assert (got != fs.conv2d(X, W, format=small)).any()


def test_window_packing_is_a_product_of_unfolded_windows() -> None:
    x, w = X[:, :3], W[:, :3]
    got = fs.conv2d(x, w, format="msfp16", packing="window", padding=(1, 0), stride=2, layout="NCHW")
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    windows = [
        padded[n, :, 2 * y : 2 * y + 3, 2 * z : 2 * z + 2].transpose(1, 2, 0).ravel()
        for n, y, z in np.ndindex(2, 3, 2)
    ]  # fmt: skip
    a = operand(fs.quantize(np.array(windows), "msfp16"))
    b = operand(fs.quantize(w.transpose(0, 2, 3, 1).reshape(6, -1), "msfp16"))
    expected = backend().matmul(a, b, "fp32", "khwc", 1).reshape(2, 3, 2, 6).transpose(0, 3, 1, 2)
    assert (got == expected).all()
    assert (got != fs.conv2d(x, w, format="msfp16", padding=(1, 0), stride=2)).any()


def test_groups_keep_blocks_of_absolute_channels() -> None:
    # Blocks of 16 straddle the groups of 10 channels: an outlier in the other group costs precision.
    x, w = X.copy(), W[:, :10]
    before = fs.conv2d(x, w, format="msfp12", groups=2)
    x[:, 12] *= 100.0
    after = fs.conv2d(x, w, format="msfp12", groups=2)
    assert (before[:, :3] != after[:, :3]).any()


@pytest.mark.parametrize("pointwise", POINTWISE)
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_runs_in_the_pointwise_unit(pointwise: Any, multiplier: int) -> None:
    w = RNG.standard_normal((20 * multiplier, 1, 3, 3)).astype(np.float32)
    bias = RNG.standard_normal(20 * multiplier)
    got = fs.conv2d(X, w, format="msfp12", groups=20, padding=1, pointwise=pointwise, bias=bias)
    x = unit.round_to(np.ascontiguousarray(X.transpose(0, 2, 3, 1)), pointwise)
    taps = unit.round_to(np.ascontiguousarray(w[:, 0].transpose(1, 2, 0)), pointwise)
    result = backend().depthwise(x, taps, Window((3, 3), pads=(1, 1, 1, 1)), pointwise, 1)
    offsets = unit.round_to(bias.astype(np.float32), pointwise)
    assert (got.transpose(0, 2, 3, 1) == unit.add(result, offsets, pointwise)).all()


@pytest.mark.parametrize("packing", ["channel", "window"])
def test_the_roundings_of_conv2d_are_drawn_from_the_seed_for_x_and_the_next_for_w(packing: Any) -> None:
    def conv(**more: Any) -> Any:
        return fs.conv2d(X, W, format=MSFP, rounding="stochastic", packing=packing, **more)

    first = conv(seed=3)
    assert (conv(seed=3) == first).all()
    assert (conv(seed=4) != first).any()
    assert (conv() == conv(seed=0)).all()
    if packing == "channel":
        x, w = X.transpose(0, 2, 3, 1), W.transpose(0, 2, 3, 1)
        a, b = (fs.quantize(t, MSFP, rounding="stochastic", seed=s).dequantize() for t, s in ((x, 3), (w, 4)))
        whole = fs.conv2d(a, b.transpose(0, 3, 1, 2), format=MSFP, layout="NHWC")  # on the grid: nothing to round
        assert (whole.transpose(0, 3, 1, 2) == first).all()


def test_weights_in_blocks_must_be_finite_too() -> None:
    w = W.copy()
    w[1, 17, 2, 0] = np.nan
    with pytest.raises(InputError, match=r"block \[1, 1, 2, 0\] of w is NaN; weights must be finite"):
        fs.conv2d(X, fs.quantize(w, "msfp14", axis=1), format="msfp14")
    with pytest.raises(InputError, match=r"w\[1, 17, 2, 0\] is nan; weights must be finite"):
        fs.conv2d(X, fs.quantize(w, "fp32", axis=1), format="fp32")


@pytest.mark.parametrize("kernels", available())
@pytest.mark.parametrize("dtype", ["i1", "i8", "f8"])
def test_a_block_tensor_of_another_type_never_reaches_the_kernels(
    dtype: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FPGASIM_KERNELS", kernels)
    x = fs.quantize(X, "msfp14", axis=1)
    with pytest.raises(InputError, match=r"exponents of msfp14 have dtype .*; int16 would do"):
        fs.conv2d(fs.BlockTensor(x.codes, x.exponents.astype(dtype), x.format, x.axis), W, format="msfp14")


@pytest.mark.parametrize("pointwise", POINTWISE)
def test_the_sum_is_rounded_before_the_bias_is_added(pointwise: Any) -> None:
    bias = RNG.standard_normal(6).astype(np.float32)
    plain = fs.conv2d(X, W, format="msfp16")
    got = fs.conv2d(X, W, format="msfp16", pointwise=pointwise, bias=bias)
    rounded = unit.round_to(plain, pointwise), unit.round_to(bias, pointwise)[:, None, None]
    assert (got == unit.add(*rounded, pointwise)).all()


def test_the_thread_count_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    one = fs.conv2d(X, W, format="msfp16", threads=1)
    assert (fs.conv2d(X, W, format="msfp16", threads=2) == one).all()
    monkeypatch.setenv("FPGASIM_NUM_THREADS", "3")
    assert num_threads() == 3
    assert num_threads(1) == 1
    assert (fs.conv2d(X, W, format="msfp16") == one).all()


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "two", [1]])
def test_a_bad_thread_count_is_named(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=re.escape(f"threads={value!r} is no thread count")):
        num_threads(value)
    monkeypatch.setenv("FPGASIM_NUM_THREADS", "many")
    with pytest.raises(InputError, match="FPGASIM_NUM_THREADS='many' is no thread count"):
        num_threads()
    monkeypatch.setenv("FPGASIM_NUM_THREADS", "1" * 5000)  # more digits than int takes
    with pytest.raises(InputError, match="FPGASIM_NUM_THREADS='1111"):
        num_threads()


BAD = [
    ({"format": None}, InputError, "x is not quantized yet and no format is given"),
    ({"x": fs.quantize(X, "msfp14", axis=1), "format": None}, InputError, "w is not quantized yet and no format"),
    ({"format": "msfp99"}, UnknownNameError, "no format 'msfp99'"),
    ({"weight_format": "mxint8"}, FormatError, "msfp14 has blocks of 16 and mxint8 of 32"),
    ({"format": MSFP.with_block(1), "weight_format": "fp32"}, FormatError, "fp32 goes with fp32 alone"),
    ({"layout": "CHWN"}, UnknownNameError, "no layout 'CHWN'; there are NCHW, NHWC"),
    ({"packing": "row"}, UnknownNameError, "no packing 'row'; there are channel, window"),
    ({"accumulator": "fp64"}, UnknownNameError, "no accumulator 'fp64'; there are fp32, fp16, bf16, exact, fixed("),
    ({"accumulator": "fixed(65,8,wrap)"}, InputError, "fixed(65,8,wrap): 65 bits will not do; 2 to 64 would"),
    ({"accumulator": "fixed(8,8,wrap)"}, InputError, "8 of 8 bits behind the point will not do; 0 to 7 would"),
    ({"accumulator": "fixed(8,-1,wrap)"}, UnknownNameError, "no accumulator 'fixed(8,-1,wrap)'"),
    ({"order": "tree(0)"}, InputError, "order tree(0): 0 engines will not do; 1 to 1024 would"),
    ({"order": "tree(1025)"}, InputError, "1025 engines will not do"),
    ({"order": "tree"}, UnknownNameError, "no order 'tree'"),
    ({"order": "whc"}, UnknownNameError, "no order 'whc'; there are khwc, chwk, tree(T)"),
    ({"pointwise": "fp8"}, UnknownNameError, "no pointwise type 'fp8'; there are fp16, bf16, fp32"),
    ({"rounding": "up"}, UnknownNameError, "no rounding 'up'"),
    ({"x": X[0]}, InputError, "x has shape (20, 6, 5) and w (6, 20, 3, 2); both need four dimensions"),
    ({"x": X.astype(complex)}, InputError, "x has dtype complex128"),
    ({"x": X[:0]}, InputError, "must not have an empty dimension"),
    ({"w": W[:, :7]}, InputError, "w (6, 7, 3, 2) takes 7 channels with groups=1, x (2, 20, 6, 5) in NCHW has 20"),
    ({"layout": "NHWC"}, InputError, "in NHWC has 5"),
    ({"groups": 3}, InputError, "groups=3 must divide the 20 channels of x and the 6 filters of w"),
    ({"groups": 0}, InputError, "groups=0 must divide"),
    ({"groups": 1.0}, InputError, "groups=1.0 must divide"),
    ({"stride": 0}, InputError, "stride=0 will not do; a whole number from 1 up, or two, would"),
    ({"stride": 1.5}, InputError, "stride=1.5 will not do"),
    ({"stride": (1, 2, 3)}, InputError, "stride=(1, 2, 3) will not do"),
    ({"stride": True}, InputError, "stride=True will not do"),
    ({"groups": True}, InputError, "groups=True must divide"),
    ({"threads": True}, InputError, "threads=True is no thread count"),
    ({"seed": 1.5}, InputError, "seed=1.5 is no seed; a whole number would do"),
    ({"padding": 1 << 40}, InputError, "an output of shape (2, 6, 2199023255556, 2199023255556) takes "),
    ({"padding": 10**6, "stride": 10**6}, InputError, "a padded input (N, H, W, C) of shape (2, 2000006, 2000005, 20)"),
    ({"padding": -1}, InputError, "padding=-1 will not do; a whole number from 0 up"),
    ({"padding": (0, 0, 0, -1)}, InputError, "padding=(0, 0, 0, -1) will not do"),
    ({"dilation": "2"}, InputError, "dilation='2' will not do"),
    ({"dilation": 9}, InputError, "a window of 19x10 does not fit into the padded input of 6x5"),
    ({"bias": [1.0]}, InputError, "bias has shape (1,); (6,), one a filter, would do"),
    ({"bias": [0, 0, np.nan, 0, 0, 0]}, InputError, "bias[2] is nan; weights must be finite"),
    ({"w": np.where(np.arange(240).reshape(6, 20, 1, 2) == 5, np.inf, 1)}, InputError, "w[0, 2, 0, 1] is inf"),
    ({"groups": 20, "w": np.full((20, 1, 1, 1), np.nan)}, InputError, "w[0, 0, 0, 0] is nan"),
    ({"packing": "window", "groups": 2, "w": W[:, :10]}, InputError, "packing='window' needs groups=1 and numbers"),
    ({"packing": "window", "x": fs.quantize(X, "msfp14", axis=1)}, InputError, "packing='window' needs"),
    ({"x": fs.quantize(X, "msfp14", axis=2)}, InputError, "x has its blocks along axis 2; along axis 1"),
    ({"w": fs.quantize(W, "msfp14", axis=3)}, InputError, "w has its blocks along axis 3; along axis 1"),
    ({"w": fs.quantize(W[:, :10], "msfp14", axis=1), "groups": 2}, InputError, "w is a BlockTensor and groups=2"),
    ({"threads": 0}, InputError, "threads=0 is no thread count"),
    ({"threads": 1025}, InputError, "threads=1025 is no thread count; a whole number from 1 to 1024 would do"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_conv2d_names_the_argument_that_does_not_fit(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fs.conv2d(**({"x": X, "w": W, "format": "msfp14"} | arguments))


def test_numbers_of_numpy_are_whole_numbers_too() -> None:
    two = np.int64(2)
    got = fs.conv2d(X, W, format="msfp16", stride=two, padding=np.array([1, 1]), dilation=[np.int32(1), 1])
    assert (got == fs.conv2d(X, W, format="msfp16", stride=2, padding=1)).all()


def test_a_format_that_contradicts_both_operands_is_refused():
    x, w = fs.quantize(X, "msfp16", axis=1), fs.quantize(W, "msfp16", axis=1)
    assert (fs.conv2d(x, w, format="msfp16") == fs.conv2d(x, w, format=None)).all()
    with pytest.raises(InputError, match="x is a BlockTensor of msfp16, and the format given is 'msfp12'"):
        fs.conv2d(x, w, format="msfp12")
    with pytest.raises(InputError, match="w is a BlockTensor of msfp16, and the format given is 'msfp12'"):
        fs.conv2d(x, w, format="msfp16", weight_format="msfp12")
    with pytest.raises(UnknownNameError, match="no format 'foo'"):
        fs.conv2d(x, w, format="foo")
    assert fs.conv2d(x, W, format="msfp12").shape == fs.conv2d(X, W, format="msfp12").shape


@pytest.mark.parametrize("argument", ["stride", "dilation", "padding"])
def test_a_window_beyond_what_an_index_holds_is_refused(argument):
    with pytest.raises(InputError, match=rf"{argument}=100000000000000000000 will not do; numbers below 2\*\*48 would"):
        fs.conv2d(X, W, format="msfp16", **{argument: 10**20})
