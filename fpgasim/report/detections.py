"""The boxes a detector finds, the engine's beside those of fp32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fpgasim.report.text import plural, table
from fpgasim.zoo import boxes
from fpgasim.zoo.boxes import Detections

#: Boxes of one class are the same object if their intersection over union is at least this (Pascal VOC's rule).
SAME_OBJECT = 0.5
#: Rows of the table; JSON has all objects.
ROWS = 20


@dataclass(frozen=True)
class Found:
    """An object as fp32 and the engine see it; None where one of them does not.

    `box` is (y1, x1, y2, x2) as shares of the picture, the engine's if it has one; `overlap` is the intersection over
    union of the two.
    """

    index: int
    label: str
    fp32_score: float | None
    score: float | None
    box: tuple[float, ...]
    overlap: float | None


def pair(fp32: Detections, got: Detections) -> list[Found]:
    """The objects of both sides, those of fp32 first, the likeliest first: each box with the nearest of its class."""
    overlap = boxes.overlaps(fp32.boxes, got.boxes)
    overlap[fp32.classes[:, None] != got.classes[None]] = 0
    names, pairs, left = boxes.labels(), [], set(range(len(got.classes)))
    for i, index in enumerate(fp32.classes):
        near = max(left, key=lambda j: overlap[i, j], default=None)
        if near is not None and overlap[i, near] >= SAME_OBJECT:
            left.remove(near)
            scores, box, share = (fp32.scores[i], got.scores[near]), got.boxes[near], float(overlap[i, near])
            pairs.append(Found(int(index), names[index], float(scores[0]), float(scores[1]), _floats(box), share))
        else:
            pairs.append(Found(int(index), names[index], float(fp32.scores[i]), None, _floats(fp32.boxes[i]), None))
    for j in sorted(left):
        index = got.classes[j]
        pairs.append(Found(int(index), names[index], None, float(got.scores[j]), _floats(got.boxes[j]), None))
    return pairs


def found_table(found: list[Found], size: tuple[int, int], format_name: str) -> Any:
    """The first ROWS objects with their boxes in pixels of a picture of that (width, height)."""
    rows = []
    for f in found[:ROWS]:
        y1, x1, y2, x2 = (round(share * side) for share, side in zip(f.box, (*size[::-1], *size[::-1]), strict=True))
        corners = f"({x1}, {y1}) to ({x2}, {y2})"
        rows.append((_percent(f.fp32_score), _percent(f.score), f.label, corners, _percent(f.overlap)))
    headers = (">ONNX Runtime fp32", f">FPGA {format_name}", "label", "box in pixels (x, y)", ">overlap of the two")
    return table(headers, rows)


def agreement(found: list[Found], threshold: float) -> str:
    """How far the two sides agree, in words."""
    if not found:
        return f"no object is likelier than {threshold:g}, neither in fp32 nor on the FPGA"
    fp32, got = sum(f.fp32_score is not None for f in found), sum(f.score is not None for f in found)
    same = sum(f.overlap is not None for f in found)
    shown = f"; the first {ROWS} are shown" if len(found) > ROWS else ""
    sides = f"{plural(fp32, 'object')} in fp32 and {got} on the FPGA"
    return f"{sides} are likelier than {threshold:g}; found by both: {same}{shown}"


def _floats(box: np.ndarray[Any, Any]) -> tuple[float, ...]:
    return tuple(float(corner) for corner in box)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
