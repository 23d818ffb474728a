"""Models that are loaded by a call, as TensorFlow Serving's users do it."""

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fpgasim.service import wire
from fpgasim.service.hosting import Model

from .calling import WEIGHTS, arrays, channel, health, linear, linear_servable, made, request, serving, status, stub

X = np.float32([[1, 2, 3, 4]])


def reload(*models):
    asked = wire.message("tensorflow.serving.ReloadConfigRequest")()
    for name, path in models:
        asked.config.model_config_list.config.add(name=name, base_path=str(path))
    return asked


def call(line):
    return stub(line, "HandleReloadConfigRequest", wire.MODEL_SERVICE)


def named(name, **spec):
    asked = request(x=X)
    asked.model_spec.name = name
    if "version" in spec:
        asked.model_spec.version.value = spec["version"]
    if "label" in spec:
        asked.model_spec.version_label = spec["label"]
    return asked


@pytest.fixture
def root(tmp_path):
    for version in (1, 2, 3):
        linear(tmp_path / "models" / "tall" / str(version) / "model.onnx", scale=2.0 ** (version - 1))
    linear(tmp_path / "models" / "flat.onnx", scale=0.5)
    linear(tmp_path / "outside.onnx")
    (tmp_path / "models" / "broken.onnx").write_bytes(b"junk")
    (tmp_path / "models" / "loop").symlink_to("loop")
    return tmp_path / "models"


@pytest.fixture
def server(root, tmp_path):
    with serving(linear_servable(tmp_path, "first"), model_root=root) as running:
        yield running


@pytest.fixture
def line(server):
    with channel(server) as opened:
        yield opened


def scale(line, asked):
    answer = stub(line, "Predict")(asked)
    return round(float((arrays(answer)["y"] / (X @ WEIGHTS)).mean()), 3), answer.model_spec.version.value


def test_the_models_of_a_config_take_the_place_of_all_others(line, server):
    assert call(line)(reload(("tall", "tall"), ("flat", "flat.onnx"))).status.error_code == 0
    assert server.names == ("tall", "flat")
    assert scale(line, named("tall")) == (4.0, 3)
    assert scale(line, named("flat")) == (0.5, 1)
    assert status(stub(line, "Predict"), named("first"))[0] == "NOT_FOUND"


def test_versions_are_chosen_by_the_policy_and_called_by_number_or_label(line):
    asked = reload(("tall", "tall"))
    config = asked.config.model_config_list.config[0]
    config.model_version_policy.specific.versions.extend([1, 2])
    config.version_labels["stable"] = 1
    call(line)(asked)
    assert scale(line, named("tall")) == (2.0, 2)
    assert scale(line, named("tall", version=1)) == (1.0, 1)
    assert scale(line, named("tall", label="stable")) == (1.0, 1)
    assert status(stub(line, "Predict"), named("tall", version=3))[0] == "NOT_FOUND"
    found = stub(line, "GetModelStatus", wire.MODEL_SERVICE)(wire.message("tensorflow.serving.GetModelStatusRequest")())
    assert [one.version for one in found.model_version_status] == [2, 1]


@pytest.mark.parametrize(("policy", "versions"), [("all", [3, 2, 1]), ("latest", [3, 2])])
def test_all_or_the_latest_versions(line, policy, versions):
    asked = reload(("tall", "tall"))
    chosen = asked.config.model_config_list.config[0].model_version_policy
    chosen.all.SetInParent() if policy == "all" else chosen.latest.MergeFrom(type(chosen.latest)(num_versions=2))
    call(line)(asked)
    found = stub(line, "GetModelStatus", wire.MODEL_SERVICE)(wire.message("tensorflow.serving.GetModelStatusRequest")())
    assert [one.version for one in found.model_version_status] == versions


def specific(*versions, label=None):
    asked = reload(("tall", "tall"))
    config = asked.config.model_config_list.config[0]
    config.model_version_policy.specific.versions.extend(versions)
    if label:
        config.version_labels["x"] = label
    return asked


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        (reload(("a", "../outside.onnx")), "PERMISSION_DENIED", "not under --model-root"),
        (reload(("a", "/etc")), "PERMISSION_DENIED", "not under --model-root"),
        (reload(("a", "nothing")), "NOT_FOUND", "is not there"),
        (reload(("a", "n\0x")), "INVALID_ARGUMENT", "cannot be read: embedded null byte"),
        (reload(("a", "n" * 300)), "INVALID_ARGUMENT", "cannot be read: "),
        (reload(("a", "loop")), "INVALID_ARGUMENT", "cannot be read: "),
        (reload(("a", "broken.onnx")), "INVALID_ARGUMENT", "broken.onnx"),
        (reload(("a b", "flat.onnx")), "INVALID_ARGUMENT", "'a b'"),
        (reload(("a", "flat.onnx"), ("a", "flat.onnx")), "INVALID_ARGUMENT", "each once"),
        (reload(), "INVALID_ARGUMENT", "model_config_list"),
        (specific(1, 7), "INVALID_ARGUMENT", "[7] is asked for"),
        (specific(1, label=2), "FAILED_PRECONDITION", "label x to version 2"),
    ],
)
def test_a_config_that_cannot_be_changes_nothing(line, server, asked, code, says):
    found, text = status(call(line), asked)
    assert found == code
    assert says in text
    assert server.names == ("first",)
    assert scale(line, named("first")) == (1.0, 1)


def test_health_forgets_a_model_that_is_no_longer_served_and_knows_it_when_it_is_again(line):
    assert health(line, "first") == "SERVING"
    watch = health_pb2_grpc.HealthStub(line).Watch(health_pb2.HealthCheckRequest(service="first"), timeout=30)
    told = (health_pb2.HealthCheckResponse.ServingStatus.Name(one.status) for one in watch)
    assert next(told) == "SERVING"
    call(line)(reload(("flat", "flat.onnx")))
    assert status(lambda: health(line, "first")) == ("NOT_FOUND", "no service 'first' here")
    assert next(told) == "SERVICE_UNKNOWN"
    assert health(line, "flat") == health(line) == "SERVING"
    call(line)(reload(("first", "flat.onnx")))
    assert health(line, "first") == next(told) == "SERVING"
    watch.cancel()


def test_a_folder_whose_name_is_no_version_of_the_wire_is_none(line, root):
    linear(root / "tall" / ("9" * 19) / "model.onnx")
    call(line)(reload(("tall", "tall")))
    assert scale(line, named("tall")) == (4.0, 3)


def test_without_a_root_nothing_is_loaded():
    with serving(made(lambda feeds: {"out:0": feeds["in:0"]})) as server, channel(server) as line:
        code, text = status(call(line), reload(("a", "/etc/passwd")))
    assert (code, "--model-root" in text) == ("FAILED_PRECONDITION", True)


def test_several_versions_may_be_put_in_by_hand():
    def version(number):
        return made(lambda feeds: {"out:0": number * feeds["in:0"]}, "echo", number)

    with serving() as server, channel(server) as line:
        server.replace_all({"echo": Model({1: version(1), 2: version(2)}, {"old": 1})})
        asked = request(in__0=np.float32([[1, 1]]))
        asked.model_spec.name = "echo"
        asked.model_spec.version_label = "old"
        assert arrays(stub(line, "Predict")(asked))["out:0"].tolist() == [[1, 1]]
