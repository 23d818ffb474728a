"""What a request becomes once it is unpacked, decoded and made a batch: bounded at every door, before it is made."""

import http.client
import json
import re

import numpy as np
import pytest

from fpgasim import zoo
from fpgasim.errors import ImageError, InputError
from fpgasim.service import CpuStage, FpgaStage, ModelDefinition, Server, ServerConfig, servable, tensors, wire
from fpgasim.service.steps import Limits, TensorSpec

from .calling import arrays, channel, made, serving, status, stub
from .small import PICTURES, featurizer, picture, strings

PICTURE = picture(size=(8, 8))
#: A picture of 8x8 becomes 3 x 8 x 8 numbers of 4 bytes.
EACH = 768


def pictures():
    definition = ModelDefinition("pictures")
    definition.pipeline += [CpuStage(PICTURES, layout="NCHW"), FpgaStage(featurizer())]
    return servable(definition)


def repeated(count, value=PICTURE):
    """A PredictRequest whose one string stands for `count` of them."""
    asked = wire.message("tensorflow.serving.PredictRequest")()
    proto = asked.inputs["images"]
    proto.CopyFrom(tensors.to_proto(strings(value)))
    proto.tensor_shape.dim[0].size = count
    return asked


def infer(count):
    asked = wire.message("inference.ModelInferRequest")()
    asked.inputs.add(name="images", datatype="BYTES", shape=[count])
    asked.raw_input_contents.append(tensors.to_raw(strings(*[PICTURE] * count)))
    return asked


def post(server, path, body):
    host, _, port = server.http["rest"].rpartition(":")
    line = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        line.request("POST", path, json.dumps(body))
        reply = line.getresponse()
        return reply.status, json.loads(reply.read()).get("error", "")
    finally:
        line.close()


def rest(count):
    """Paths and bodies of as many texts, which are no pictures: none of them is looked at."""
    tensor = {"name": "images", "datatype": "BYTES", "shape": [count], "data": ["x"] * count}
    return (
        ("/v1/models/pictures:predict", {"instances": ["x"] * count}),
        ("/v1/models/pictures:predict", {"inputs": ["x"] * count}),
        ("/v2/models/pictures/infer", {"inputs": [tensor]}),
    )


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"max_batch": 4}, "holds 5 pictures, and a call may have 4"),
        ({"max_message_bytes": 5 * EACH - 1}, "5 pictures make a tensor of 3840 bytes.* 4 pictures in a call would do"),
    ],
)
def test_more_pictures_than_a_call_may_have_are_refused_at_every_door_before_one_is_decoded(monkeypatch, limits, says):
    with serving(pictures(), rest_port=0, **limits) as server, channel(server) as line:
        assert arrays(stub(line, "Predict")(repeated(4)))["output_alias"].shape[0] == 4
        decoded = []
        monkeypatch.setattr(zoo, "preprocess", lambda spec, data: decoded.append(data))
        found = [
            status(stub(line, "Predict"), repeated(5)),
            status(stub(line, "ModelInfer", wire.INFERENCE_SERVICE), infer(5)),
        ]
        found += [post(server, path, body) for path, body in rest(5)]
        assert [code for code, _ in found] == ["INVALID_ARGUMENT"] * 2 + [400] * 3
        assert all(re.search(says, text) for _, text in found), found
        assert not decoded


def test_more_examples_than_a_call_may_have_pictures_are_refused():
    spec = TensorSpec("images", np.dtype(np.float32), (None, 1, 1, 1))
    scores = TensorSpec("scores", np.dtype(np.float32), (None, 1))
    model = made(lambda feeds: {"scores": feeds["images"].reshape(-1, 1)}, inputs=(spec,), outputs=(scores,))
    asked = wire.message("tensorflow.serving.ClassificationRequest")()
    for _ in range(5):
        asked.input.example_list.examples.add().features.feature["images"].float_list.value.append(1)
    with serving(model, rest_port=0, max_batch=4) as server, channel(server) as line:
        code, text = status(stub(line, "Classify"), asked)
        assert (code, "a call may have 4" in text) == ("INVALID_ARGUMENT", True)
        code, text = post(server, "/v1/models/echo:classify", {"examples": [{"images": [1]}] * 5})
        assert (code, "a call may have 4" in text) == (400, True)


def test_a_small_request_that_repeats_its_picture_three_thousand_times_is_refused_by_default():
    with serving(pictures()) as server, channel(server) as line:
        code, text = status(stub(line, "Predict"), repeated(3000))
    assert (code, "3000 pictures" in text) == ("INVALID_ARGUMENT", True)


def test_a_string_that_repeats_counts_each_time_with_its_length():
    with serving(pictures(), max_message_bytes=100_000) as server, channel(server) as line:
        code, text = status(stub(line, "Predict"), repeated(60, bytes(2000)))
    assert (code, text) == (
        "INVALID_ARGUMENT",
        "tensor 'images' holds strings of 120480 bytes, and at most 100000 are taken",
    )


def test_tensors_of_pictures_count_and_rows_of_a_table_do_not():
    limits = Limits(max_batch=2)
    spec = TensorSpec("in:0", np.dtype(np.float32), None)
    model = made(
        lambda feeds: {"out:0": feeds["in:0"]}, inputs=(spec,), outputs=(TensorSpec("out:0", spec.dtype, None),)
    )
    model.limits = limits
    model.run({"in:0": np.zeros((2, 3, 4, 4), np.float32)})
    model.run({"in:0": np.zeros((1000, 3), np.float32)})
    with pytest.raises(
        InputError, match="input 'in:0' holds 3 pictures, and a call may have 2; several calls would do"
    ):
        model.run({"in:0": np.zeros((3, 3, 4, 4), np.float32)})


def test_a_network_that_takes_a_number_of_its_own_takes_it():
    spec = TensorSpec("in:0", np.dtype(np.float32), (3, 1, 1, 1))
    model = made(
        lambda feeds: {"out:0": feeds["in:0"]}, inputs=(spec,), outputs=(TensorSpec("out:0", spec.dtype, None),)
    )
    model.limits = Limits(max_batch=2)
    assert model.run({"in:0": np.zeros((3, 1, 1, 1), np.float32)}).outputs["out:0"].size == 3


def test_pixels_count_all_together():
    model = pictures()
    model.limits = Limits(max_pixels=600)
    with pytest.raises(ImageError, match="picture 0 of the batch: a picture of 30x21 pixels; at most 600 are taken"):
        model.run({"images": strings(picture(size=(21, 30)))})
    model.run({"images": strings(*[picture(size=(10, 20))] * 3)})
    with pytest.raises(ImageError, match="pictures 0 to 3 of the batch have 800 pixels together, and at most 600"):
        model.run({"images": strings(*[picture(size=(10, 20))] * 5)})


def test_no_decoder_but_those_of_usual_pictures_looks_at_the_bytes_of_a_caller(monkeypatch):
    asked = []
    monkeypatch.setattr("PIL.EpsImagePlugin.EpsImageFile._open", lambda self: asked.append(self))
    model = pictures()
    model.limits = Limits(max_pixels=600)
    with pytest.raises(ImageError, match="picture 0 of the batch"):
        model.run({"images": strings(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")})
    assert not asked


def test_a_server_gives_its_limits_to_what_it_serves():
    model = pictures()
    model.limits = Limits(max_batch=1)
    server = Server({}, ServerConfig(port=0, max_pixels=1, max_batch=7, max_message_bytes=4096))
    server.start()
    try:
        server.replace("pictures", model)  # warms it up, whatever the limits
    finally:
        server.drain(0.0)
    assert model.limits == Limits(max_batch=7, max_pixels=1, max_bytes=4096)


def test_a_servable_of_ones_own_has_no_limits():
    assert pictures().run({"images": strings(*[PICTURE] * 100)}).outputs["output_alias"].shape[0] == 100
