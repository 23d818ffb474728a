"""The Open Inference Protocol over gRPC."""

import numpy as np
import pytest

from fpgasim.service import tensors, wire
from fpgasim.service.steps import TensorSpec

from .calling import WEIGHTS, channel, linear_servable, made, serving, status, stub

SERVICE = wire.INFERENCE_SERVICE
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def message(name):
    return wire.message(f"inference.{name}")


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    with serving(linear_servable(tmp_path_factory.mktemp("models"))) as server, channel(server) as opened:
        yield opened


@pytest.fixture
def infer(line):
    return stub(line, "ModelInfer", SERVICE)


def raw(array, name="x", **fields):
    asked = message("ModelInferRequest")(**fields)
    asked.inputs.add(name=name, datatype=tensors.kind_of(array.dtype).datatype, shape=array.shape)
    asked.raw_input_contents.append(tensors.to_raw(array))
    return asked


def listed(array, field, name="x"):
    asked = message("ModelInferRequest")()
    tensor = asked.inputs.add(name=name, datatype=tensors.kind_of(array.dtype).datatype, shape=array.shape)
    getattr(tensor.contents, field).extend(array.ravel().tolist())
    return asked


def test_raw_is_answered_raw_with_the_callers_id(infer):
    answer = infer(raw(X, model_name="linear", model_version="1", id="seven"))
    assert (answer.model_name, answer.model_version, answer.id) == ("linear", "1", "seven")
    (output,) = answer.outputs
    found = tensors.from_raw(answer.raw_output_contents[0], output.datatype, output.shape, output.name)
    np.testing.assert_array_equal(found, X @ WEIGHTS)


def test_contents_are_answered_in_contents(infer):
    answer = infer(listed(X, "fp32_contents"))
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [2, 3])
    assert list(output.contents.fp32_contents) == (X @ WEIGHTS).ravel().tolist()
    assert not answer.raw_output_contents


def test_outputs_are_chosen_by_name_and_named_as_asked(infer):
    asked = raw(X)
    asked.outputs.add(name="output_alias")
    assert [output.name for output in infer(asked).outputs] == ["output_alias"]


def test_classes_are_given_where_they_are_asked_for(infer):
    asked = raw(X[1:])
    asked.outputs.add(name="y").parameters["classification"].int64_param = 2
    (output,) = infer(asked).outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [1, 2])


KINDS = [kind for kind in tensors.KINDS if kind.datatype]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.datatype)
def test_every_datatype_goes_through_raw_and_as_contents(kind):
    values = [b"a\xff", b""] if kind.datatype == "BYTES" else [0, 1]
    array = np.array([*values, None], object)[:-1] if kind.datatype == "BYTES" else np.array(values).astype(kind.dtype)
    (spec,) = (TensorSpec("in:0", kind.dtype, (None,)),)
    model = made(
        lambda feeds: {"out:0": feeds["in:0"]}, inputs=(spec,), outputs=(TensorSpec("out:0", kind.dtype, None),)
    )
    fields = ("bool", "int", "int64", "uint", "uint64", "fp32", "fp64", "bytes")
    with serving(model) as server, channel(server) as line:
        infer = stub(line, "ModelInfer", SERVICE)
        answer = infer(raw(array, "in:0"))
        assert answer.raw_output_contents[0] == tensors.to_raw(array)
        assert answer.outputs[0].datatype == kind.datatype
        if kind.datatype in ("FP16", "BF16"):
            assert "must be in raw_input_contents" in status(infer, listed(array, "fp32_contents", "in:0"))[1]
            return
        field = {"BOOL": "bool", "INT64": "int64", "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64"}.get(
            kind.datatype
        )
        field = field or {"B": "bytes", "I": "int", "U": "uint"}[kind.datatype[0]]
        assert field in fields
        contents = infer(listed(array, f"{field}_contents", "in:0")).outputs[0].contents
        assert list(getattr(contents, f"{field}_contents")) == array.tolist()


def shared(where):
    asked = raw(X)
    target = asked.inputs[0] if where == "input" else asked.outputs.add(name="y")
    target.parameters["shared_memory_region"].string_param = "region"
    return asked


def both_forms():
    asked = listed(X, "fp32_contents")
    asked.raw_input_contents.append(X.tobytes())
    return asked


def too_few_raw():
    asked = raw(X)
    asked.inputs.add(name="z", datatype="FP32", shape=[1])
    return asked


def wrong(**fields):
    asked = listed(X, "fp32_contents")
    for name, value in fields.items():
        setattr(asked.inputs[0], name, value)
    return asked


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        (raw(X, model_name="other"), "NOT_FOUND", "Latest(other)"),
        (raw(X, model_version="2"), "NOT_FOUND", "Specific(linear, 2)"),
        (raw(X, model_version="new"), "INVALID_ARGUMENT", "model_version='new'"),
        (raw(X, "z"), "INVALID_ARGUMENT", "no input 'z'"),
        (raw(X[:, :3]), "INVALID_ARGUMENT", "has shape (2, 3)"),
        (listed(X[:1, :3], "fp32_contents"), "INVALID_ARGUMENT", "has shape (1, 3)"),
        (shared("input"), "INVALID_ARGUMENT", "shared memory"),
        (shared("output"), "INVALID_ARGUMENT", "shared memory"),
        (both_forms(), "INVALID_ARGUMENT", "one of them would do"),
        (too_few_raw(), "INVALID_ARGUMENT", "2 inputs and 1 raw_input_contents"),
        (wrong(datatype="FP8"), "INVALID_ARGUMENT", "datatype 'FP8'"),
        (wrong(datatype="INT32"), "INVALID_ARGUMENT", "has 0 values in int_contents"),
        (message("ModelInferRequest")(), "INVALID_ARGUMENT", "is missing"),
    ],
)
def test_mistakes_are_told(infer, asked, code, says):
    found, text = status(infer, asked)
    assert found == code
    assert says in text


def test_the_server_and_its_model_say_what_they_are(line):
    call = {name: stub(line, name, SERVICE) for name in wire.methods(SERVICE)}
    assert call["ServerLive"](message("ServerLiveRequest")()).live
    assert call["ServerReady"](message("ServerReadyRequest")()).ready
    assert call["ServerMetadata"](message("ServerMetadataRequest")()).name == "fpgasim"
    ready = message("ModelReadyRequest")
    assert call["ModelReady"](ready(name="linear", version="1")).ready
    assert not call["ModelReady"](ready(name="other")).ready
    told = call["ModelMetadata"](message("ModelMetadataRequest")(name="linear"))
    assert (told.name, list(told.versions)) == ("linear", ["1"])
    assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [("x", "FP32", [-1, 4])]
    assert [(t.name, t.datatype, list(t.shape)) for t in told.outputs] == [("y", "FP32", [-1, 3])]


def test_a_server_without_a_model_lives_and_is_not_ready():
    with serving() as server, channel(server) as line:
        assert stub(line, "ServerLive", SERVICE)(message("ServerLiveRequest")()).live
        assert not stub(line, "ServerReady", SERVICE)(message("ServerReadyRequest")()).ready
