"""Resize and Upsample that repeat every pixel: all that an engine without interpolation can do, by addressing."""

from __future__ import annotations

import numpy as np

from fpgasim.compiler.capability import Array, Request

#: Where ONNX takes the pixel of an output: the rules (transformation, rounding) that repeat each pixel s times for a
#: whole scale s. Output q·s + r reads q + (r + 1/2)/s − 1/2, less than half a pixel from q, or q + r/s, rounded down.
_REPEATING = {
    *((transformation, rounding) for transformation in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
      for rounding in ("round_prefer_floor", "round_prefer_ceil")),
    ("asymmetric", "floor"),
}  # fmt: skip


def repeats(request: Request) -> tuple[int, int]:
    """How often Resize or Upsample repeats each row and each column."""
    mode = request.attribute("mode", "nearest")
    if mode not in ("nearest", b"nearest"):
        raise request.refuse(f"mode={mode!r}; the engine repeats pixels, nearest")
    if _has_rules(request):
        rule = (
            request.attribute("coordinate_transformation_mode", "half_pixel"),
            request.attribute("nearest_mode", "round_prefer_floor"),
        )
        if rule not in _REPEATING:
            raise request.refuse(f"{rule[0]} with {rule[1]} does not repeat each pixel alike")
    before, after = request.shape(request.node.inputs[0]), request.shape(request.node.outputs[0])
    scales = _scales(request)
    for axis in range(4):
        factor = after[axis] // before[axis]
        if before[axis] * factor != after[axis] or (axis < 2 and factor != 1):
            raise request.refuse(f"{before} to {after}; the engine repeats rows and columns a whole number of times")
        if scales is not None and scales[axis] != factor:
            raise request.refuse(f"a scale of {scales[axis]} for {before[axis]} to {after[axis]} is not a whole number")
    return after[2] // before[2], after[3] // before[3]


def _has_rules(request: Request) -> bool:
    """Since opset 11 a Resize says where it reads; before, and in Upsample, pixels repeat."""
    return request.node.op_type == "Resize" and request.graph.opset[""] >= 11


def _scales(request: Request) -> list[float] | None:
    """The scale of each axis, None where the model gives sizes."""
    index = 2 if _has_rules(request) else 1
    if request.attribute("scales", None) is not None:  # Upsample of opset 7
        given: Array = np.asarray(request.attribute("scales", None))
    elif request.has_input(index):
        given = request.constant(index, "scales").reshape(-1)
    else:
        request.constant(3, "sizes")
        return None
    axes = request.attribute("axes", None) or range(4)
    scales = dict(zip((axis % 4 for axis in axes), given.tolist(), strict=True))
    return [float(scales.get(axis, 1.0)) for axis in range(4)]
