"""The two doors to the kernels: check, then call."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from fpgasim.errors import InputError, UnknownNameError
from fpgasim.kernels import backend, operand, pointwise as unit
from fpgasim.kernels.contract import (
    Operand,
    Window,
    check_alike,
    get_accumulator,
    get_order,
    get_pointwise,
    rows_operand,
)
from fpgasim.numerics import NAN_EXPONENT, BlockFormat, BlockTensor, Rounding, get_format, get_rounding
from fpgasim.numerics.float_state import ieee
from fpgasim.numerics.tensors import checked_axis

Float32Array = npt.NDArray[np.float32]


#: More threads than any machine this runs on has processors.
MAX_THREADS = 1024


def num_threads(threads: int | None = None) -> int:
    """`threads`, else $FPGASIM_NUM_THREADS, else the processors this process may use.

    Raises InputError below 1 and above `MAX_THREADS`.
    """
    name, value = "threads", cast(Any, threads)
    if value is None:
        text = os.environ.get("FPGASIM_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
        name, value = "FPGASIM_NUM_THREADS", int(text) if text.strip().isdecimal() and len(text) < 20 else text
    if not _is_whole(value, 1) or value > MAX_THREADS:
        raise InputError(f"{name}={value!r} is no thread count; a whole number from 1 to {MAX_THREADS} would do")
    return int(value)


@ieee
def quantize(
    x: npt.ArrayLike, format: str | BlockFormat, axis: int = -1, rounding: str = "even", *, seed: int = 0
) -> BlockTensor:
    """`x` in blocks of `format` along `axis`, as codes and shared exponents; a tail is a shorter block.

    A format with the block `WHOLE` makes one block of the whole axis.

    `x` is anything NumPy takes as float32 with at least one dimension, the small floats of ml_dtypes too. `rounding`
    is `even`, `nearest` (ties away from zero), `floor` (toward zero) or `stochastic`, which draws from `seed`, a whole
    number, and the element's position (C order with `axis` last). Raises UnknownNameError for an unknown format or
    rounding, InputError for a wrong axis, seed or dtype. The rules stand in `fpgasim.numerics.scalar`.
    """
    fmt, mode = get_format(format), get_rounding(rounding)
    values = _float32(x, "x")
    axis = checked_axis(axis, values.shape, "x")
    fmt = fmt.for_length(values.shape[axis])
    codes, exponents = _quantize_axis(values, axis, fmt, mode, _seed(seed), as_rows=False)
    blocks = (*values.shape[:axis], -(-values.shape[axis] // fmt.block), *values.shape[axis + 1 :])
    return BlockTensor(codes.reshape(values.shape), exponents.reshape(blocks), fmt, axis)


def quantize_rows(
    x: Float32Array, fmt: BlockFormat, rounding: Rounding = "even", seed: int = 0, kernels: Any = None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int16]]:
    """Codes (…, blocks·block) and exponents (…, blocks) of C-contiguous `x` (…, n), blocked along the last axis."""
    n = x.shape[-1]
    codes, exponents = (kernels or backend()).quantize(x.reshape(math.prod(x.shape[:-1]), n), fmt, rounding, seed)
    blocks = -(-n // fmt.block)
    return codes.reshape(*x.shape[:-1], blocks * fmt.block), exponents.reshape(*x.shape[:-1], blocks)


def _quantize_axis(
    x: Float32Array, axis: int, fmt: BlockFormat, rounding: Rounding, seed: int, as_rows: bool
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int16]]:
    """What `Backend.quantize_across` makes of `x`, blocked along `axis`."""
    before, n, behind = math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])
    shaped = np.ascontiguousarray(x).reshape(before, n, behind)
    return backend().quantize_across(shaped, fmt, rounding, seed, as_rows)


@ieee
def conv2d(
    x: npt.ArrayLike | BlockTensor,
    w: npt.ArrayLike | BlockTensor,
    *,
    format: str | BlockFormat | None = None,
    weight_format: str | BlockFormat | None = None,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    bias: npt.ArrayLike | None = None,
    packing: Literal["channel", "window"] = "channel",
    accumulator: str = "fp32",
    order: str = "khwc",
    rounding: str = "even",
    seed: int = 0,
    pointwise: str = "fp32",
    threads: int | None = None,
) -> Float32Array:
    """The convolution of `x` with `w` as the matrix unit computes it, float32, in `layout`.

    x is (N, C, H, W) or by `layout` (N, H, W, C); w is (O, C / groups, KH, KW); bias is (O,). Both are quantized to
    `format` (w to `weight_format` if given) along the channels, or are BlockTensors blocked along the channels
    already. Stochastic `rounding` draws from `seed` for x and from `seed` + 1 for w, by position with the blocks last.
    `padding` is one number, (height, width) or (top, left, bottom, right). `packing="window"` makes blocks
    of the flattened (kh, kw, c) window instead, each window quantized afresh. `accumulator` and `order` say how the
    blocks' terms are summed (`kernels/contract.py`); the sum is rounded to `pointwise`, then bias is added, rounded.
    Raises InputError, FormatError or UnknownNameError naming the argument that does not fit.
    """
    acc, steps, kind, mode = (
        get_accumulator(accumulator),
        get_order(order),
        get_pointwise(pointwise),
        get_rounding(rounding),
    )
    _one_of("layout", layout, ("NCHW", "NHWC"))
    _one_of("packing", packing, ("channel", "window"))
    x, w = (t if isinstance(t, BlockTensor) else _float32(t, name) for t, name in ((x, "x"), (w, "w")))
    x_format = _format_of("x", x, format, isinstance(w, BlockTensor))
    w_format = _format_of("w", w, *((format, False) if weight_format is None else (weight_format, True)))
    _finite_weights(w)
    w_shape = w.shape
    window, channels = _check_conv(x.shape, w_shape, layout, stride, padding, dilation, groups)
    length = channels * math.prod(window.kernel) if packing == "window" else channels
    _check_memory(x.shape, w_shape, layout, window, packing)
    x_format, w_format = x_format.for_length(length), w_format.for_length(length)
    check_alike(x_format, w_format)
    offsets = None if bias is None else unit.round_to(_checked_bias(bias, w_shape[0]), kind)
    kernels, workers, x_seed = backend(), num_threads(threads), _seed(seed)
    w_seed = x_seed + 1

    if groups == channels > 1:  # depthwise: the pointwise unit, no blocks
        taps = np.ascontiguousarray(_values(w)[:, 0].transpose(1, 2, 0))
        result = kernels.depthwise(
            unit.round_to(_nhwc(x, layout), kind), unit.round_to(taps, kind), window, kind, workers
        )
    else:
        if packing == "window":
            if groups > 1 or isinstance(x, BlockTensor) or isinstance(w, BlockTensor):
                raise InputError(
                    "packing='window' needs groups=1 and numbers, not BlockTensors: it quantizes each window afresh"
                )
            columns = kernels.unfold(_nhwc(x, layout), window, workers)
            flat = _values(w).transpose(0, 2, 3, 1).reshape(w_shape[0], 1, 1, -1)
            a, b = _operand(columns, 3, x_format, mode, x_seed), _operand(flat, 3, w_format, mode, w_seed)
            window = Window((1, 1))
        else:
            axis = 1 if layout == "NCHW" else 3
            a = _blocked(x, axis, "x") if isinstance(x, BlockTensor) else _operand(x, axis, x_format, mode, x_seed)
            b = _weights(w, w_format, mode, w_seed, groups, channels)
        result = unit.round_to(kernels.conv2d(a, b, window, groups, acc, steps, workers), kind)
    if offsets is not None:
        result = unit.add(result, offsets, kind)
    return kernels.leave(result, workers) if layout == "NCHW" else result


def expand_groups(w: Float32Array, groups: int, channels: int) -> Float32Array:
    """Grouped weights (O, C / groups, KH, KW) as (O, KH, KW, C) over absolute channels, zero outside the group."""
    outputs, per_group, kh, kw = w.shape
    full = np.zeros((outputs, kh, kw, channels), np.float32)
    for g in range(groups):
        filters = slice(g * outputs // groups, (g + 1) * outputs // groups)
        full[filters, :, :, g * per_group : (g + 1) * per_group] = w[filters].transpose(0, 2, 3, 1)
    return full


def _weights(
    w: Float32Array | BlockTensor, fmt: BlockFormat, rounding: Rounding, seed: int, groups: int, channels: int
) -> Operand:
    if not isinstance(w, BlockTensor):
        return _operand(*((w, 1) if groups == 1 else (expand_groups(w, groups, channels), 3)), fmt, rounding, seed)
    if groups > 1:
        raise InputError(
            f"w is a BlockTensor and groups={groups}: blocks run over absolute channels, so pass w as numbers"
        )
    return _blocked(w, 1, "w")


def _blocked(tensor: BlockTensor, axis: int, name: str) -> Operand:
    """`tensor` as an operand, after a check that its blocks run along the channels."""
    if tensor.axis % len(tensor.shape) != axis:
        raise InputError(f"{name} has its blocks along axis {tensor.axis}; along axis {axis}, the channels, would do")
    return operand(tensor)


def _operand(x: Float32Array, axis: int, fmt: BlockFormat, rounding: Rounding, seed: int) -> Operand:
    """`x` in blocks along `axis`, which becomes the last one."""
    codes, exponents = _quantize_axis(x, axis, fmt, rounding, seed, as_rows=True)
    shape = (*x.shape[:axis], *x.shape[axis + 1 :], -1)
    return rows_operand(codes.reshape(shape), exponents.reshape(shape), fmt, x.shape[axis])


def _format_of(
    name: str, tensor: npt.ArrayLike | BlockTensor, format: str | BlockFormat | None, its_own: bool
) -> BlockFormat:
    """The format of an operand. `its_own` says that `format` is for this one alone, so that it must not contradict."""
    if isinstance(tensor, BlockTensor):
        if format is not None and get_format(format).with_block(tensor.format.block) != tensor.format and its_own:
            raise InputError(f"{name} is a BlockTensor of {tensor.format.name}, and the format given is {format!r}; "
                             "that format or none would do")  # fmt: skip
        return tensor.format
    if format is None:
        raise InputError(f"{name} is not quantized yet and no format is given; a format key or a BlockFormat would do")
    return get_format(format)


def _check_conv(
    x: tuple[int, ...], w: tuple[int, ...], layout: str, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[Window, int]:
    if len(x) != 4 or len(w) != 4:
        raise InputError(f"x has shape {x} and w {w}; both need four dimensions")
    channels, height, width = (x[1], x[2], x[3]) if layout == "NCHW" else (x[3], x[1], x[2])
    if not _is_whole(groups, 1) or channels % groups or w[0] % groups:
        raise InputError(f"groups={groups} must divide the {channels} channels of x and the {w[0]} filters of w")
    if w[1] * groups != channels:
        raise InputError(f"w {w} takes {w[1] * groups} channels with groups={groups}, x {x} in {layout} has {channels}")
    window = Window((w[2], w[3]), _pair("stride", stride, 1), _pads(padding), _pair("dilation", dilation, 1))
    if min(x) < 1 or min(w) < 1:
        raise InputError(f"x {x} and w {w} must not have an empty dimension")
    window.output_size(height, width)
    return window, channels


def _check_memory(x: tuple[int, ...], w: tuple[int, ...], layout: str, window: Window, packing: str) -> None:
    """Raises InputError where the padded input, the unfolded windows or the output could not be held here."""
    n, channels, height, width = x if layout == "NCHW" else (x[0], x[3], x[1], x[2])
    (oh, ow), (top, left, bottom, right) = window.output_size(height, width), window.pads
    arrays = {
        "an output": (n, w[0], oh, ow) if layout == "NCHW" else (n, oh, ow, w[0]),
        "a padded input (N, H, W, C)": (n, height + top + bottom, width + left + right, channels),
    }
    if packing == "window":
        arrays["unfolded windows"] = (n, oh, ow, math.prod(window.kernel) * channels)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for what, shape in arrays.items():
        size = 4 * math.prod(shape)
        if size > memory:
            raise InputError(f"{what} of shape {shape} takes {size:,} bytes; this machine has {memory:,}")


def _is_whole(value: Any, low: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= low


def _seed(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f"seed={value!r} is no seed; a whole number would do")
    return int(value)


def _pair(name: str, value: int | Sequence[int], low: int) -> tuple[int, int]:
    """`value`, a number for both or (height, width), as a pair."""
    pair = tuple(value) if isinstance(value, Sequence | np.ndarray) else (value, value)
    if len(pair) != 2 or not all(_is_whole(v, low) for v in pair):
        raise InputError(f"{name}={value!r} will not do; a whole number from {low} up, or two, would")
    if max(pair) >= 1 << 48:
        raise InputError(f"{name}={value!r} will not do; numbers below 2**48 would")
    return int(pair[0]), int(pair[1])


def _pads(value: int | Sequence[int]) -> tuple[int, int, int, int]:
    if (
        isinstance(value, Sequence | np.ndarray)
        and len(value) == 4
        and all(_is_whole(v, 0) and v < 1 << 48 for v in value)
    ):
        return int(value[0]), int(value[1]), int(value[2]), int(value[3])
    top, left = _pair("padding", value, 0)
    return top, left, top, left


def _one_of(kind: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UnknownNameError(kind, value, known)


def _nhwc(x: Float32Array | BlockTensor, layout: str) -> Float32Array:
    values = _values(x)
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1) if layout == "NCHW" else values)


def _values(tensor: Float32Array | BlockTensor) -> Float32Array:
    return tensor.dequantize() if isinstance(tensor, BlockTensor) else tensor


def _float32(x: npt.ArrayLike, name: str) -> Float32Array:
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise InputError(f"{name} is no array of numbers: {error}") from None
    # ml_dtypes' types are of kind "V", and cast to float32 safely, which other void types do not.
    if array.dtype.kind not in "fiub" and not (array.dtype.kind == "V" and np.can_cast(array.dtype, np.float32)):
        raise InputError(f"{name} has dtype {array.dtype}; real numbers would do")
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32, copy=False)


def _finite(w: Float32Array, name: str) -> Float32Array:
    if not np.isfinite(w).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(w))[0])
        raise InputError(f"{name}{list(where)} is {w[where]}; weights must be finite")
    return w


def _finite_weights(w: Float32Array | BlockTensor) -> None:
    if not isinstance(w, BlockTensor):
        _finite(w, "w")
    elif w.format.is_fp32:
        _finite(w.codes, "w")
    elif (w.exponents == NAN_EXPONENT).any():
        where = [int(i) for i in np.argwhere(w.exponents == NAN_EXPONENT)[0]]
        raise InputError(f"block {where} of w is NaN; weights must be finite")


def _checked_bias(bias: npt.ArrayLike, outputs: int) -> Float32Array:
    values = _float32(bias, "bias")
    if values.shape != (outputs,):
        raise InputError(f"bias has shape {values.shape}; ({outputs},), one a filter, would do")
    return _finite(values, "bias")
