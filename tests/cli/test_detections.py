"""`fpgasim run` of a detector: the boxes it prints and the picture it writes."""

import json

import numpy as np
import onnx
import PIL.Image
import pytest
from onnx import helper, numpy_helper

from fpgasim.zoo import boxes

DOG = boxes.labels().index("dog")


@pytest.fixture
def detector(tmp_path):
    """A model with SSD-VGG's input and outputs that finds one dog in the middle, whatever the picture."""
    nodes = [helper.make_node("ReduceMin", ["image"], ["least"], axes=[1, 2, 3], keepdims=0)]
    nodes.append(helper.make_node("Mul", ["least", "nothing"], ["zero"]))
    arrays, outputs = {"nothing": np.zeros(1, np.float32)}, []
    for i, shape in enumerate(boxes.output_shapes()):
        values = np.zeros((1, *shape), np.float32)
        if shape[-1] == 21:
            values[..., 0] = 30
        if shape[:3] == (5, 5, 6) and shape[-1] == 21:
            values[0, 2, 2, 1, 0], values[0, 2, 2, 1, 1:], values[0, 2, 2, 1, DOG] = 0, -30, np.log(3)
        arrays[f"values{i}"] = values
        nodes.append(helper.make_node("Add", [f"values{i}", "zero"], [f"out{i}"]))
        outputs.append(helper.make_tensor_value_info(f"out{i}", onnx.TensorProto.FLOAT, values.shape))
    picture = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 300, 300])
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "detector", [picture], outputs, weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "detector.onnx"
    )
    return tmp_path / "detector.onnx"


def test_a_detector_prints_its_boxes_and_draws_them(fpgasim, detector, photo, tmp_path):
    drawn = tmp_path / "drawn.png"
    command = ("run", detector, "--image", photo, "--preprocess", "azure_ssd_vgg", "--format", "msfp16")
    output = fpgasim(*command, "--picture", drawn).stdout
    # Centred at 2.5 * 64 = 160 of 300, its side √(153 * 207): from 0.2367 to 0.83 of each side of 50 x 40 pixels
    row = next(line for line in output.splitlines() if "dog" in line)
    assert row.split() == ["75.0%", "75.0%", "dog", "(12,", "9)", "to", "(41,", "33)", "100.0%"]
    assert "1 object in fp32 and 1 on the FPGA are likelier than 0.5; found by both: 1" in output
    assert "out0, the worst of 12 outputs" in output
    assert f"wrote {drawn}" in output
    with PIL.Image.open(drawn) as image, PIL.Image.open(photo) as before:
        assert image.size == before.size == (50, 40)
        differs = (np.asarray(image) != np.asarray(before)).any(axis=2)
    assert differs[20, 12]
    assert not differs[28, 20]
    assert not differs[:, :5].any()


def test_the_threshold_is_obeyed_and_json_holds_the_boxes(fpgasim, detector, photo):
    command = ("run", detector, "--image", photo, "--preprocess", "azure_ssd_vgg", "--format", "msfp16")
    got = json.loads(fpgasim(*command, "--json").stdout)["detections"]
    [dog] = got["objects"]
    assert got["threshold"] == 0.5
    assert (dog["label"], dog["index"], dog["overlap"]) == ("dog", DOG, 1)
    assert dog["score"] == dog["fp32_score"] == pytest.approx(0.75)
    side = np.sqrt(153 * 207) / 300
    np.testing.assert_allclose(dog["box"], [160 / 300 - side / 2] * 2 + [160 / 300 + side / 2] * 2, rtol=1e-5)
    output = fpgasim(*command, "--threshold", 0.8).stdout
    assert "no object is likelier than 0.8, neither in fp32 nor on the FPGA" in output


def test_a_picture_that_cannot_be_drawn_or_written_is_refused_before_the_run(refused, detector, model, photo, tmp_path):
    message = refused("run", model, "--image", photo, "--picture", tmp_path / "a.png", exit_code=4)
    assert message.endswith("'small' finds no boxes that could be drawn in a picture")
    message = refused("run", detector, "--image", photo, "--picture", tmp_path / "a.xyz", exit_code=4)
    assert message.endswith("no format to write is called '.xyz'; .png or .jpg would do")
    message = refused("run", detector, "--image", photo, "--picture", tmp_path / "none" / "a.png", exit_code=4)
    assert "there is no folder" in message
