"""The window of a convolution or a pool, from ONNX's attributes."""

from __future__ import annotations

import numpy as np

from fpgasim.compiler.capability import Request
from fpgasim.errors import InputError
from fpgasim.graph.pooling import ceil_padding
from fpgasim.kernels.contract import Window


def conv_window(request: Request, kernel: tuple[int, int], height: int, width: int) -> Window:
    """The window of a Conv over a `height` × `width` image."""
    return _window(request, kernel, (height, width))[0]


def pool_window(request: Request, height: int, width: int) -> tuple[Window, bool]:
    """The window of a MaxPool or AveragePool, and whether ceil_mode made its padding larger than the model says.

    `ceil_mode` becomes padding below and to the right, as much as the last window needs; a window that would begin
    behind the image and its padding is dropped, as in ONNX Runtime. Every window must see a pixel.
    """
    shape = request.attribute("kernel_shape", None)
    if shape is None or len(shape) != 2:
        raise request.refuse(f"kernel_shape={shape} must have two sizes")
    window, larger = _window(request, (int(shape[0]), int(shape[1])), (height, width))
    for axis, size in enumerate((height, width)):
        outputs = window.output_size(height, width)[axis]
        starts = np.arange(outputs)[:, None] * window.stride[axis] - window.pads[axis]
        taps = starts + np.arange(window.kernel[axis]) * window.dilation[axis]
        if not ((taps >= 0) & (taps < size)).any(axis=1).all():
            raise request.refuse(f"a window of {window.kernel} with pads {window.pads} lies in the padding alone")
    return window, larger


def _window(request: Request, kernel: tuple[int, int], size: tuple[int, int]) -> tuple[Window, bool]:
    stride, dilation = _pair(request, "strides"), _pair(request, "dilations")
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    begin, end = _pads(request, size, stride, reach)
    larger = False
    if request.attribute("ceil_mode", 0):
        for axis in range(2):
            more = ceil_padding(size[axis], begin[axis], end[axis], reach[axis], stride[axis])
            end[axis] += more
            larger |= more > 0
    window = Window(kernel, stride, (begin[0], begin[1], end[0], end[1]), dilation)
    try:
        window.output_size(*size)
    except InputError as error:
        raise request.refuse(str(error)) from error
    return window, larger


def _pads(
    request: Request, size: tuple[int, int], stride: tuple[int, int], reach: list[int]
) -> tuple[list[int], list[int]]:
    """(top, left) and (bottom, right) by `auto_pad` or `pads`."""
    rule = request.attribute("auto_pad", "NOTSET")
    if rule == "VALID":
        return [0, 0], [0, 0]
    if rule in ("SAME_UPPER", "SAME_LOWER"):
        total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(size, stride, reach, strict=True)]
        smaller, larger = [t // 2 for t in total], [t - t // 2 for t in total]
        return (smaller, larger) if rule == "SAME_UPPER" else (larger, smaller)
    pads = [int(p) for p in request.attribute("pads", None) or [0] * 4]
    if rule != "NOTSET" or len(pads) != 4 or min(pads) < 0:
        raise request.refuse(f"auto_pad={rule} with pads={pads} is no padding of an image by zero or more")
    return pads[:2], pads[2:]


def _pair(request: Request, name: str) -> tuple[int, int]:
    values = request.attribute(name, None) or [1, 1]
    if len(values) != 2 or min(values) < 1:
        raise request.refuse(f"{name}={values} must be two numbers from 1 up")
    return int(values[0]), int(values[1])
