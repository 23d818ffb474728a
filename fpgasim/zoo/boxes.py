"""From the twelve outputs of SSD-VGG-300 to objects: anchors, decoding, selection, and the boxes drawn in a picture.

SSD: Single Shot MultiBox Detector (Liu et al., ECCV 2016), with the anchor sizes of SSD-Tensorflow, which Azure's
SSD-VGG follows but for its first grid: 37x37 where the paper has 38x38. Both are known here. Arithmetic is float32 in
the order of Azure's SDK, `ssdvgg_utils.postprocess`, so scores and boxes have its bits; here both thresholds do what
they say.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fpgasim.errors import InputError
from fpgasim.zoo.decoding import Picture, to_pillow

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, Any]

#: Side of the network's input in pixels.
SIDE = 300


class Grid(NamedTuple):
    """The anchors of one output: `cells` x `cells` centres, `step` pixels apart, each with boxes of these sizes."""

    cells: int
    step: int
    sizes: tuple[float, float]
    ratios: tuple[float, ...]

    @property
    def boxes(self) -> int:
        """Boxes of one cell: a square of each size (the second in the geometric mean), and one for each ratio."""
        return len(self.sizes) + len(self.ratios)


FEW, MANY = (2, 1 / 2), (2, 1 / 2, 3, 1 / 3)
GRIDS = (
    Grid(37, 8, (21, 45), FEW),
    Grid(19, 16, (45, 99), MANY),
    Grid(10, 32, (99, 153), MANY),
    Grid(5, 64, (153, 207), MANY),
    Grid(3, 100, (207, 261), FEW),
    Grid(1, 300, (261, 315), FEW),
)
#: Sides of the first grid: Azure's and the paper's.
FINEST = (37, 38)
#: What offsets of the centre and logarithms of the size are multiplied by.
CENTRE_SCALE, SIZE_SCALE = 0.1, 0.2
#: Boxes that are compared with each other, the likeliest first.
TOP = 400

LABELS = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class Detections(NamedTuple):
    """What was found, the likeliest first; `boxes` are (y1, x1, y2, x2) as shares of the picture's height and width."""

    classes: np.ndarray[Any, np.dtype[np.int64]]  # (n,), indices of `labels`
    scores: np.ndarray[Any, np.dtype[np.float32]]  # (n,)
    boxes: np.ndarray[Any, np.dtype[np.float32]]  # (n, 4)


def labels() -> list[str]:
    """The 21 classes of Pascal VOC by index; 0 is the background."""
    return list(LABELS)


def output_shapes(finest: int = GRIDS[0].cells) -> list[tuple[int, ...]]:
    """The shapes (cells, cells, boxes, values) of one picture's outputs: six of logits, then six of box offsets.

    `finest` is the side of the first grid.
    """
    return [(g.cells, g.cells, g.boxes, values) for values in (len(LABELS), 4) for g in _grids(finest)]


def is_detection(shapes: Iterable[tuple[object, ...]]) -> bool:
    """Whether these are the shapes of the twelve outputs of SSD-VGG-300 for one picture."""
    of_one = Counter(_of_one(shape) for shape in shapes)
    return any(of_one == Counter(output_shapes(finest)) for finest in FINEST)


def anchors(finest: int = GRIDS[0].cells) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The anchors in the order of the outputs, (n, 4): y and x of the centre, height, width; in sides of the picture.

    `finest` is the side of the first grid: 37 gives 8,432 anchors, 38 gives 8,732.
    """
    every = []
    for grid in _grids(finest):
        centre = (np.arange(grid.cells, dtype=np.float32) + np.float32(0.5)) * np.float32(grid.step) / np.float32(SIDE)
        small, large = grid.sizes
        squares = [small / SIDE, math.sqrt(small * large) / SIDE]
        height = squares + [small / SIDE / math.sqrt(ratio) for ratio in grid.ratios]
        width = squares + [small / SIDE * math.sqrt(ratio) for ratio in grid.ratios]
        layer = np.empty((grid.cells, grid.cells, grid.boxes, 4), np.float32)
        layer[..., 0], layer[..., 1] = centre[:, None, None], centre[:, None]
        layer[..., 2], layer[..., 3] = height, width
        every.append(layer.reshape(-1, 4))
    return np.concatenate(every)


def detect(
    outputs: Mapping[str, Array] | Sequence[Array], select_threshold: float = 0.5, nms_threshold: float = 0.45
) -> Detections:
    """The objects in one picture from the twelve outputs of SSD-VGG-300.

    The outputs are told by their shapes (see `output_shapes`; a batch axis of 1 may stand before), so names and order
    do not matter. Of each box every class but the background counts whose softmax is above `select_threshold`; boxes
    are clipped to the picture (those outside are dropped), the 400 likeliest go on, and a box is dropped that has a
    likelier one of its class with an intersection over union of at least `nms_threshold`. Raises InputError.
    """
    for name, threshold in (("select_threshold", select_threshold), ("nms_threshold", nms_threshold)):
        if not 0 <= threshold <= 1:
            raise InputError(f"{name}={threshold}; must be from 0 to 1")
    logits, offsets, finest = _joined(outputs)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (powers / powers.sum(axis=1, keepdims=True))[:, 1:]
    which, classes = np.nonzero(scores > select_threshold)
    boxes = _decode(offsets[which], anchors(finest)[which])
    kept = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    chosen = scores[which, classes][kept]
    kept = kept[np.argsort(-chosen, kind="stable")[:TOP]]
    found = Detections(classes[kept] + 1, scores[which, classes][kept], boxes[kept])
    unlike = _unlike(found, nms_threshold)
    return Detections(found.classes[unlike], found.scores[unlike], found.boxes[unlike])


def overlaps(a: Array, b: Array) -> Array:
    """The intersection over union of each box of `a` (n, 4) with each of `b` (m, 4), (n, m); no box is empty."""
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (a, b)]
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.maximum(high - low, 0)
    common = sides[..., 0] * sides[..., 1]
    return np.asarray(common / (areas[0][:, None] + areas[1][None] - common))


def draw_boxes(picture: Picture, found: Detections, names: Sequence[str] = LABELS) -> "Image":
    """The picture in RGB with a frame for every box, a colour for every class, its label and score beside it."""
    from PIL import ImageDraw, ImageFont

    image = to_pillow(picture).copy()
    thick = max(1, round(min(image.size) / 150))
    font = ImageFont.load_default(max(10, round(min(image.size) / 30)))
    pen = ImageDraw.Draw(image)
    for index, score, (y1, x1, y2, x2) in reversed(list(zip(*found, strict=True))):  # the likeliest on top
        left, right = x1 * (image.width - 1), x2 * (image.width - 1)
        upper, lower = y1 * (image.height - 1), y2 * (image.height - 1)
        colour = f"hsl({int(index) * 137 % 360}, 90%, 40%)"
        pen.rectangle((left, upper, right, lower), outline=colour, width=thick)
        text = f" {names[index]} {score:.2f} "
        ends = pen.textbbox((left, upper), text, font=font)
        pen.rectangle(ends, fill=colour)
        pen.text((left, upper), text, fill="white", font=font)
    return image


def _grids(finest: int) -> tuple[Grid, ...]:
    return GRIDS[0]._replace(cells=finest), *GRIDS[1:]


def _of_one(shape: tuple[object, ...]) -> tuple[object, ...]:
    """The shape without its batch axis where that is 1."""
    return shape[1:] if len(shape) == 5 and shape[0] == 1 else shape


def _joined(outputs: Mapping[str, Array] | Sequence[Array]) -> tuple[Array, Array, int]:
    """Logits (n, 21) and offsets (n, 4) as float32, and the side of the first grid."""
    arrays = [np.asarray(a) for a in (outputs.values() if isinstance(outputs, Mapping) else outputs)]
    by_shape = {}
    for array in arrays:
        if array.ndim == 5 and array.shape[0] != 1:
            raise InputError(f"an output has shape {array.shape}; detect takes one picture: [output[i:i+1] for each]")
        by_shape[_of_one(array.shape)] = array
    for finest in FINEST:
        wanted = output_shapes(finest)
        if len(arrays) == len(wanted) and set(by_shape) == set(wanted):
            break
    else:
        got = ", ".join(map(str, by_shape)) or "none"
        known = ", ".join(map(str, output_shapes()))
        raise InputError(f"{len(arrays)} outputs, of shapes {got}; SSD-VGG-300 has {known}")
    flat = [np.asarray(by_shape[shape], np.float32).reshape(-1, shape[-1]) for shape in wanted]
    logits, offsets = np.concatenate(flat[: len(GRIDS)]), np.concatenate(flat[len(GRIDS) :])
    if not (np.isfinite(logits).all() and np.isfinite(offsets).all()):
        raise InputError("the outputs hold values that are not finite; a network that overflows finds nothing")
    return logits, offsets, finest


def _decode(offsets: Array, anchor: Array) -> Array:
    """Boxes (n, 4) as y1, x1, y2, x2, clipped to 0…1."""
    y, x, height, width = anchor.T
    with np.errstate(over="ignore"):  # an infinite box is clipped to the picture
        centre_x = offsets[:, 0] * width * np.float32(CENTRE_SCALE) + x
        centre_y = offsets[:, 1] * height * np.float32(CENTRE_SCALE) + y
        wide = width * np.exp(offsets[:, 2] * np.float32(SIZE_SCALE))
        high = height * np.exp(offsets[:, 3] * np.float32(SIZE_SCALE))
    half_y, half_x = high / np.float32(2), wide / np.float32(2)
    corners = (centre_y - half_y, centre_x - half_x, centre_y + half_y, centre_x + half_x)
    return np.asarray(np.clip(np.stack(corners, axis=1), np.float32(0), np.float32(1)))


def _unlike(found: Detections, threshold: float) -> Array:
    """Indices of the boxes that no likelier one of their class overlaps."""
    classes = found.classes
    rivals = (overlaps(found.boxes, found.boxes) >= threshold) & (classes[:, None] == classes[None])
    keep = np.ones(len(classes), bool)
    for i in range(len(classes)):
        if keep[i]:
            keep[i + 1 :] &= ~rivals[i, i + 1 :]
    return np.flatnonzero(keep)
