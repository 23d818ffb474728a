"""Preprocessing as Azure's SDK does it (`azureml.accel.models.utils.preprocess_array`), bit for bit, and as ONNX.

TensorFlow 1 resizes without antialiasing and samples pixel i of n at i·(size/n), not at pixel centres: ONNX's Resize
with mode linear and coordinate_transformation_mode asymmetric. All arithmetic is float32 in TensorFlow's order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fpgasim.errors import ImageError, InputError
from fpgasim.zoo.decoding import Picture, Pixels, decode, name_of

if TYPE_CHECKING:
    import onnx

Order = Literal["RGB", "BGR"]
Layout = Literal["NHWC", "NCHW"]

#: Mean of ImageNet's red, green and blue, 0…255, as VGG's authors took it off.
MEANS = (123.68, 116.779, 103.939)
SHORTER_SIDE = 256
#: Longer sides of the output are refused.
MAX_OUTPUT_SIDE = 8192


class Window(NamedTuple):
    """What becomes the output: a (height, width) window at (top, left) of the picture resized to `scaled`."""

    scaled: tuple[int, int]
    top: int
    left: int


@dataclass(frozen=True)
class AzurePreprocessing:
    """How pixels become input: resized, (pixel − mean)·scaling_factor per channel; the names are the SDK's.

    With `preserve_aspect_ratio` the shorter side becomes 256 (or the larger side of the output, if that is more) and
    the middle is cut out; without, the whole picture is stretched. `quirks` repeats two faults of the SDK that show
    where the aspect ratio is preserved: no side of the output is above 256, and its width is its height, whatever was
    asked for.
    """

    order: Order = "RGB"
    scaling_factor: float = 1.0
    output_height: int = 224
    output_width: int = 224
    preserve_aspect_ratio: bool = True
    quirks: bool = False

    def __post_init__(self) -> None:
        if self.order not in ("RGB", "BGR"):
            raise InputError(f"order={self.order!r}; can only construct in RGB or BGR order")
        for field in ("output_height", "output_width"):
            side = getattr(self, field)
            if isinstance(side, bool) or not isinstance(side, int | np.integer) or not 1 <= side <= MAX_OUTPUT_SIDE:
                raise InputError(f"{field}={side!r}; must be a whole number from 1 to {MAX_OUTPUT_SIDE}")
        wrong = isinstance(self.scaling_factor, bool) or not isinstance(self.scaling_factor, int | float | np.number)
        if wrong or not 0 < self.scaling_factor < float("inf"):
            raise InputError(f"scaling_factor={self.scaling_factor!r}; must be a finite number above 0")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what comes out."""
        if not (self.quirks and self.preserve_aspect_ratio):
            return self.output_height, self.output_width
        height = min(self.output_height, SHORTER_SIDE)
        return height, min(height, SHORTER_SIDE)

    @property
    def size(self) -> int:
        """The side of a square output."""
        height, width = self.shape
        if height != width:
            raise InputError(f"the output is {height}x{width}; a square one would do")
        return height

    @property
    def std(self) -> tuple[float, float, float]:
        """What pixels are divided by, in effect."""
        return (1 / self.scaling_factor,) * 3

    @property
    def shorter_side(self) -> int:
        """What the shorter side of a picture becomes if the aspect ratio is preserved."""
        return SHORTER_SIDE if self.quirks else max(SHORTER_SIDE, *self.shape)

    def window(self, height: int, width: int) -> Window:
        """The window of a picture of that size."""
        out = self.shape
        if not self.preserve_aspect_ratio:
            return Window(out, 0, 0)
        scale = np.float32(self.shorter_side) / np.float32(min(height, width))
        scaled = int(np.float32(height) * scale), int(np.float32(width) * scale)
        if not self.quirks:  # rounding may leave a side of 255
            scaled = max(scaled[0], out[0]), max(scaled[1], out[1])
        return Window(scaled, (scaled[0] - out[0]) // 2, (scaled[1] - out[1]) // 2)

    def apply(self, pixels: Pixels, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Decoded pixels (h, w, 3) as float32 (height, width, 3); raises ImageError where the SDK's crop fails."""
        window = self.window(*pixels.shape[:2])
        height, width = self.shape
        if window.scaled[0] < height or window.scaled[1] < width:
            got = "x".join(map(str, window.scaled))
            raise ImageError(
                f"image {name} becomes {got}, too small to cut {height}x{width} from; quirks=False would do"
            )
        y0, y1, y = _taps(pixels.shape[0], window.scaled[0], window.top, height)
        x0, x1, x = _taps(pixels.shape[1], window.scaled[1], window.left, width)
        x, y = x[None, :, None], y[:, None, None]
        upper, lower = pixels[y0], pixels[y1]
        top = _between(upper[:, x0], upper[:, x1], x)
        bottom = _between(lower[:, x0], lower[:, x1], x)
        resized = _between(top, bottom, y)
        normal = resized - np.array(MEANS, np.float32)
        if self.order == "BGR":
            normal = normal[:, :, ::-1]
        return np.asarray(np.ascontiguousarray(normal) * np.float32(self.scaling_factor), np.float32)


def preprocess_azure(
    images: "Sequence[Picture] | np.ndarray[Any, Any]",
    order: Order = "RGB",
    scaling_factor: float = 1.0,
    output_height: int = 224,
    output_width: int = 224,
    preserve_aspect_ratio: bool = True,
    *,
    layout: Layout = "NHWC",
    quirks: bool = False,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """n pictures as float32 (n, height, width, 3), or (n, 3, height, width) in the layout NCHW, as Azure's SDK does it.

    `images` is a sequence, or an array of dtype object, of what `decode` takes. `quirks` repeats two faults of the SDK:
    see AzurePreprocessing. Raises ImageError naming the picture, InputError for anything else.
    """
    spec = AzurePreprocessing(order, scaling_factor, output_height, output_width, preserve_aspect_ratio, quirks)
    if layout not in ("NHWC", "NCHW"):
        raise InputError(f"layout={layout!r}; NHWC or NCHW would do")
    if isinstance(images, np.ndarray) and images.dtype == object and images.ndim == 1:
        images = images.tolist()
    if not isinstance(images, list | tuple):
        raise InputError(f"images {name_of(images)}; give a list of pictures")
    height, width = spec.shape
    batch = np.empty((len(images), height, width, 3), np.float32)
    for i, image in enumerate(images):
        batch[i] = spec.apply(decode(image), name_of(image))
    return batch if layout == "NHWC" else np.ascontiguousarray(batch.transpose(0, 3, 1, 2))


def preprocessing_model(spec: AzurePreprocessing, layout: Layout = "NCHW") -> "onnx.ModelProto":
    """What follows decoding as an ONNX model: `picture`, uint8 (height, width, 3) of any size, to `input`, float32.

    `input` is (1, 3, h, w), or (1, h, w, 3) in the layout NHWC, with the bits of `AzurePreprocessing.apply` on any
    runtime that rounds each operator. Resize itself would not do: runtimes weigh its four pixels in other orders.
    """
    import onnx.parser

    if layout not in ("NHWC", "NCHW"):
        raise InputError(f"layout={layout!r}; NHWC or NCHW would do")
    height, width = spec.shape
    shape = f"1, 3, {height}, {width}" if layout == "NCHW" else f"1, {height}, {width}, 3"
    rows, columns = (
        _axis_nodes(axis, out, spec.preserve_aspect_ratio and not spec.quirks)
        for axis, out in (("y", height), ("x", width))
    )
    means = ", ".join(map(str, MEANS))
    if spec.preserve_aspect_ratio:
        sizes = f"""
            shorter_side = Constant <value = float {{{spec.shorter_side}.0}}> ()
            shorter = Min (y_size, x_size)
            shorter_float = Cast <to = 1> (shorter)
            scale = Div (shorter_side, shorter_float)
            y_resized = Mul (y_size_float, scale)
            x_resized = Mul (x_size_float, scale)
            y_truncated = Cast <to = 7> (y_resized)
            x_truncated = Cast <to = 7> (x_resized)"""
    else:
        sizes = """
            y_truncated = Identity (y_out)
            x_truncated = Identity (x_out)"""
    order = "normal" if spec.order == "RGB" else "reversed"
    permutation = "[2, 0, 1]" if layout == "NCHW" else "[0, 1, 2]"
    return onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 18]>
        azure_preprocessing (uint8[height, width, 3] picture) => (float[{shape}] input) {{
            zero = Constant <value = int64 {{0}}> ()
            one = Constant <value = int64 {{1}}> ()
            two = Constant <value = int64 {{2}}> ()
            y_out = Constant <value = int64 {{{height}}}> ()
            x_out = Constant <value = int64 {{{width}}}> ()
            size = Shape (picture)
            y_size = Gather (size, zero)
            x_size = Gather (size, one)
            y_size_float = Cast <to = 1> (y_size)
            x_size_float = Cast <to = 1> (x_size)
            {sizes}
            {rows}
            {columns}
            y_shape = Constant <value_ints = [-1, 1, 1]> ()
            x_shape = Constant <value_ints = [-1, 1]> ()
            y_weight = Reshape (y_fraction, y_shape)
            x_weight = Reshape (x_fraction, x_shape)
            upper = Gather <axis = 0> (picture, y_low)
            lower = Gather <axis = 0> (picture, y_high)
            {_between_nodes("upper")}
            {_between_nodes("lower")}
            difference = Sub (lower_line, upper_line)
            weighted = Mul (difference, y_weight)
            resized = Add (upper_line, weighted)
            means = Constant <value_floats = [{means}]> ()
            normal = Sub (resized, means)
            backwards = Constant <value_ints = [2, 1, 0]> ()
            reversed = Gather <axis = 2> (normal, backwards)
            factor = Constant <value = float {{{float(spec.scaling_factor)!r}}}> ()
            scaled = Mul ({order}, factor)
            turned = Transpose <perm = {permutation}> (scaled)
            first = Constant <value_ints = [0]> ()
            input = Unsqueeze (turned, first)
        }}""")


def _taps(size: int, scaled: int, offset: int, count: int) -> tuple[Any, Any, np.ndarray[Any, np.dtype[np.float32]]]:
    """For `count` samples from `offset` of `size` pixels resized to `scaled`: the two pixels, the second's weight."""
    position = np.arange(offset, offset + count).astype(np.float32) * (np.float32(size) / np.float32(scaled))
    floor = np.floor(position)
    low = np.minimum(floor.astype(np.int64), size - 1)
    return low, np.minimum(low + 1, size - 1), position - floor


def _between(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    start = a.astype(np.float32)
    return np.asarray(start + (b.astype(np.float32) - start) * weight)


def _axis_nodes(axis: str, out: int, at_least: bool) -> str:
    """`_taps` of one axis as text; `at_least` keeps the resized side from being smaller than the output."""
    scaled = f"Max ({axis}_truncated, {axis}_out)" if at_least else f"Identity ({axis}_truncated)"
    return f"""
            {axis}_scaled = {scaled}
            {axis}_rest = Sub ({axis}_scaled, {axis}_out)
            {axis}_start = Div ({axis}_rest, two)
            {axis}_end = Add ({axis}_start, {axis}_out)
            {axis}_index = Range ({axis}_start, {axis}_end, one)
            {axis}_index_float = Cast <to = 1> ({axis}_index)
            {axis}_scaled_float = Cast <to = 1> ({axis}_scaled)
            {axis}_step = Div ({axis}_size_float, {axis}_scaled_float)
            {axis}_position = Mul ({axis}_index_float, {axis}_step)
            {axis}_floor = Floor ({axis}_position)
            {axis}_fraction = Sub ({axis}_position, {axis}_floor)
            {axis}_pixel = Cast <to = 7> ({axis}_floor)
            {axis}_last = Sub ({axis}_size, one)
            {axis}_low = Min ({axis}_pixel, {axis}_last)
            {axis}_next = Add ({axis}_low, one)
            {axis}_high = Min ({axis}_next, {axis}_last)"""


def _between_nodes(row: str) -> str:
    """`_between` along the width of one row of samples as text."""
    return f"""
            {row}_a_pixels = Gather <axis = 1> ({row}, x_low)
            {row}_b_pixels = Gather <axis = 1> ({row}, x_high)
            {row}_a = Cast <to = 1> ({row}_a_pixels)
            {row}_b = Cast <to = 1> ({row}_b_pixels)
            {row}_difference = Sub ({row}_b, {row}_a)
            {row}_weighted = Mul ({row}_difference, x_weight)
            {row}_line = Add ({row}_a, {row}_weighted)"""
