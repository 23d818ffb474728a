"""Which Resize and Upsample the engine takes: those that ONNX Runtime computes by repeating pixels."""

import numpy as np
import onnxruntime
import pytest

import fpgasim as fs
from fpgasim.compiler import Unsupported, lower_node

from .models import load_one, one_op

DEVICE = fs.npu.get_device("bw_a10")
IMAGE = (1, 4, 3, 5)
ROI = np.zeros(0, np.float32)
X = np.arange(60, dtype=np.float32).reshape(IMAGE)


def scales(*values):
    return np.array(values, np.float32)


TAKEN = [
    ("Upsample", {"x": IMAGE}, {"opset": 7, "scales": [1.0, 1.0, 2.0, 3.0]}, (2, 3)),
    ("Upsample", {"x": IMAGE, "s": scales(1, 1, 2, 2)}, {"opset": 9, "mode": "nearest"}, (2, 2)),
    ("Resize", {"x": IMAGE, "s": scales(1, 1, 3, 1)}, {"opset": 10}, (3, 1)),
    ("Resize", {"x": IMAGE, "_": 0, "s": scales(1, 1, 3, 4)}, {"opset": 13}, (3, 4)),
    ("Resize", {"x": IMAGE, "_r": 0, "_s": 0, "z": np.array([1, 4, 6, 5])}, {}, (2, 1)),
    ("Resize", {"x": IMAGE, "_": 0, "s": scales(2, 5)}, {"opset": 18, "axes": [-2, 3]}, (2, 5)),
    *(
        ("Resize", {"x": IMAGE, "_": 0, "s": scales(1, 1, factor, 2)},
         {"coordinate_transformation_mode": transformation, "nearest_mode": rounding}, (factor, 2))
        for factor in (1, 2, 3, 7)
        for transformation, rounding in (
            ("half_pixel", "round_prefer_ceil"), ("pytorch_half_pixel", "round_prefer_floor"), ("asymmetric", "floor"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "options", "factors"), TAKEN, ids=str)
def test_what_repeats_pixels_is_taken_and_gives_the_bits_of_onnx_runtime(op, inputs, options, factors):
    graph = load_one(op, inputs, **options)
    assert lower_node(graph, graph.node("node"), DEVICE).repeat == factors
    model = one_op(op, inputs, **options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    plan = fs.partition(graph, DEVICE, "fp32", objective="coverage")
    assert plan.decisions[0].device == "fpga"
    assert np.array_equal(fs.compile(plan).run({"x": X})["y"], session.run(None, {"x": X})[0])


REFUSED = [
    ({"s": scales(1, 1, 2, 2)}, {"mode": "linear"}, "mode='linear'; the engine repeats pixels"),
    ({"s": scales(1, 1, 2, 2)}, {"coordinate_transformation_mode": "align_corners"}, "align_corners with round_prefer"),
    ({"s": scales(1, 1, 2, 2)}, {"nearest_mode": "floor"}, "half_pixel with floor does not repeat"),
    ({"s": scales(1, 1, 1.5, 2)}, {}, "the engine repeats rows and columns a whole number of times"),
    ({"s": scales(1, 2, 1, 1)}, {}, "the engine repeats rows and columns a whole number of times"),
    ({"s": scales(1, 1, 1, 1.19)}, {}, "a scale of 1.19.* for 5 to 5 is not a whole number"),
    ({"s": scales(1, 1, 0.34, 1)}, {}, "the engine repeats rows and columns a whole number of times"),
]


@pytest.mark.parametrize(("inputs", "options", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_does_not_repeat_pixels_is_refused_with_the_reason(inputs, options, message):
    graph = load_one("Resize", {"x": IMAGE, "_": 0, **inputs}, **options)
    with pytest.raises(Unsupported, match=message) as error:
        lower_node(graph, graph.node("node"), DEVICE)
    assert error.value.code == "unsupported-attr"
