"""What TensorFlow Serving's and Azure's clients ask of a server, and what they get."""

import threading

import grpc
import numpy as np
import onnx
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from onnx import TensorProto, helper

from fpgasim.errors import InputError, ServiceError
from fpgasim.service import Server, ServerConfig, servable, tensors, wire
from fpgasim.service.steps import TensorSpec

from .calling import (
    OPEN,
    WEIGHTS,
    Held,
    arrays,
    channel,
    health,
    linear_servable,
    made,
    request,
    serving,
    status,
    stub,
)

X = np.arange(8, dtype=np.float32).reshape(2, 4)
PAIR = np.float32([[1, 2]])
ROUTE = "x-ms-aml-grpc-service-route"
MODEL_SERVICE = wire.MODEL_SERVICE


def echo(name="echo", version=1):
    return made(lambda feeds: {"out:0": feeds["in:0"]}, name, version)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with serving(linear_servable(folder), config=OPEN) as running:
        yield running


@pytest.fixture
def line(server):
    with channel(server) as opened:
        yield opened


@pytest.fixture
def predict(line):
    return stub(line, "Predict")


def test_an_answer_is_what_the_servable_makes(predict):
    answer = predict(request(x=X))
    np.testing.assert_array_equal(arrays(answer)["y"], X @ WEIGHTS)


def test_floats_come_in_float_val(predict):
    proto = predict(request(x=X)).outputs["y"]
    assert list(proto.float_val) == (X @ WEIGHTS).ravel().tolist()
    assert not proto.tensor_content


@pytest.mark.parametrize("content", [True, False])
def test_both_forms_of_a_tensor_are_read(predict, content):
    asked = request()
    asked.inputs["x"].CopyFrom(tensors.to_proto(X, content=content))
    np.testing.assert_array_equal(arrays(predict(asked))["y"], X @ WEIGHTS)


@pytest.mark.parametrize(("input", "output"), [("x", "y"), ("images", "output_alias")])
def test_the_names_of_a_reply_follow_those_of_the_request(predict, input, output):
    assert list(predict(request(**{input: X})).outputs) == [output]


def test_a_filter_chooses_the_names(predict):
    asked = request(images=X)
    asked.output_filter.append("y")
    assert list(predict(asked).outputs) == ["y"]


def test_both_names_are_answered_where_the_server_is_told_to():
    with serving(echo(), both_names=True) as server, channel(server) as line:
        assert sorted(stub(line, "Predict")(request(in__0=PAIR)).outputs) == ["out:0", "output_alias"]


def test_a_reply_carries_an_id_and_the_simulated_time(predict):
    _, call = predict.with_call(request(x=X))
    initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
    assert len(initial["request_id"]) == 32
    assert int(trailing["x-fpgasim-cycles"]) > 0
    assert float(trailing["x-fpgasim-fpga-us"]) > 0


def test_a_reply_names_the_model_and_its_version(predict):
    spec = predict(request(x=X)).model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("linear", 1, "serving_default")


def test_an_empty_model_spec_means_the_only_model(predict):
    asked = request(x=X)
    asked.model_spec.SetInParent()
    assert predict(asked).model_spec.name == "linear"


def spec(**fields):
    asked = request(x=X)
    version = fields.pop("version", None)
    for name, value in fields.items():
        setattr(asked.model_spec, name, value)
    if version is not None:
        asked.model_spec.version.value = version
    return asked


@pytest.mark.parametrize(
    "fields", [{"name": "linear"}, {"name": "linear", "version": 1}, {"signature_name": "serving_default"}]
)
def test_a_model_spec_that_fits_is_served(predict, fields):
    np.testing.assert_array_equal(arrays(predict(spec(**fields)))["y"], X @ WEIGHTS)


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"name": "other"}, "NOT_FOUND", "Servable not found for request: Latest(other)"),
        ({"name": "linear", "version": 5}, "NOT_FOUND", "Servable not found for request: Specific(linear, 5)"),
        ({"version_label": "new"}, "INVALID_ARGUMENT", "Unrecognized servable version label: new"),
        ({"signature_name": "other"}, "FAILED_PRECONDITION", 'Serving signature key "other" not found.'),
    ],
)
def test_a_model_spec_that_does_not_fit_is_told_in_tensorflow_servings_words(predict, fields, code, text):
    assert status(predict, spec(**fields)) == (code, text)


def unknown_dtype():
    asked = request(x=X)
    asked.inputs["x"].dtype = 20
    return asked


def unknown_output():
    asked = request(x=X)
    asked.output_filter.append("z")
    return asked


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (request(), "input 'x' (or 'images') is missing"),
        (request(z=X), "no input 'z'"),
        (request(x=X, images=X), "are the same tensor"),
        (request(x=X[:, :3]), "has shape (2, 3)"),
        (request(x=X[0]), "has shape (4,)"),
        (request(x=np.array([[b"a"]], object)), "float32 of shape (?, 4) would do"),
        (request(x=X.astype(np.int32)), "has dtype int32"),
        (unknown_dtype(), "dtype 20"),
        (unknown_output(), "no output 'z'"),
    ],
)
def test_a_callers_mistake_is_an_invalid_argument_that_names_it(predict, asked, says):
    code, text = status(predict, asked)
    assert code == "INVALID_ARGUMENT"
    assert says in text


def test_a_message_that_is_none_is_an_invalid_argument_with_an_id(line):
    call = line.unary_unary(f"/{wire.PREDICTION_SERVICE}/Predict")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "request_id" in dict(caught.value.initial_metadata())


def test_a_method_that_is_not_there_is_told_with_an_id(line):
    with pytest.raises(grpc.RpcError) as caught:
        line.unary_unary("/some.Service/Method")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "request_id" in dict(caught.value.initial_metadata())


def test_what_fails_unforeseen_is_an_internal_error_that_tells_nothing_but_its_id(caplog):
    failing = False

    def run(feeds):
        if failing:
            raise KeyError("secret")
        return {"out:0": feeds["in:0"]}

    with serving(made(run)) as server, channel(server) as line:
        failing = True
        with pytest.raises(grpc.RpcError) as caught:
            stub(line, "Predict")(request(in__0=PAIR))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in caught.value.details()
    assert dict(caught.value.initial_metadata())["request_id"] in caught.value.details()
    assert "secret" in caplog.text


@pytest.mark.parametrize("route", ["", "/api/v1/service/", "/api/v1/service/linear", "/api/v1/service/linear/score"])
def test_a_route_that_names_the_model_or_nothing_is_taken(predict, route):
    assert predict(request(x=X), metadata=((ROUTE, route),)).model_spec.name == "linear"


@pytest.mark.parametrize("route", ["/api/v1/service/other", "nonsense"])
def test_another_route_is_refused(predict, route):
    code, text = status(predict, request(x=X), metadata=((ROUTE, route),))
    assert code == "INVALID_ARGUMENT"
    assert repr(route.rpartition("/")[2]) in text


def test_of_several_models_the_route_or_the_name_chooses():
    with serving(echo("one"), echo("two"), service="both") as server, channel(server) as line:
        predict = stub(line, "Predict")
        asked = request(in__0=PAIR)
        for name in ("one", "two"):
            assert predict(asked, metadata=((ROUTE, f"/api/v1/service/{name}"),)).model_spec.name == name
        named = request(in__0=PAIR)
        named.model_spec.name = "two"
        assert predict(named, metadata=((ROUTE, "/api/v1/service/both"),)).model_spec.name == "two"
        assert status(predict, asked) == (
            "INVALID_ARGUMENT",
            "Missing ModelSpec: name one of the models 'one', 'two'",
        )


def test_metadata_tells_the_signature(line):
    asked = wire.message("tensorflow.serving.GetModelMetadataRequest")(metadata_field=["signature_def"])
    answer = stub(line, "GetModelMetadata")(asked)
    packed = answer.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    told = wire.message("tensorflow.serving.SignatureDefMap")()
    assert packed.Unpack(told)
    signature = told.signature_def["serving_default"]
    assert signature.method_name == "tensorflow/serving/predict"
    assert signature.inputs["images"].name == "x"
    assert [dim.size for dim in signature.inputs["images"].tensor_shape.dim] == [-1, 4]
    assert signature.outputs["output_alias"].dtype == 1


@pytest.mark.parametrize("fields", [[], ["other"]])
def test_metadata_needs_a_field_that_is_there(line, fields):
    asked = wire.message("tensorflow.serving.GetModelMetadataRequest")(metadata_field=fields)
    code, text = status(stub(line, "GetModelMetadata"), asked)
    assert code == "INVALID_ARGUMENT"
    assert "metadata_field" in text or text == "MetadataField other is not supported"


def test_the_status_of_a_model_is_available(line):
    call = stub(line, "GetModelStatus", MODEL_SERVICE)
    asked = wire.message("tensorflow.serving.GetModelStatusRequest")
    (found,) = call(asked()).model_version_status
    assert (found.version, found.state, found.status.error_code) == (1, 30, 0)
    wrong = asked()
    wrong.model_spec.name, wrong.model_spec.version.value = "linear", 9
    assert status(call, wrong) == ("NOT_FOUND", "Could not find version 9 of model linear")


def example(**features):
    made = wire.message("tensorflow.Example")()
    for name, values in features.items():
        made.features.feature[name].float_list.value.extend(values)
    return made


def test_classify_gives_the_classes_best_first():
    scores = np.float32([[0.1, 0.7]])
    model = made(lambda feeds: {"out:0": scores}, labels=("cat", "dog"))
    with serving(model) as server, channel(server) as line:
        asked = wire.message("tensorflow.serving.ClassificationRequest")()
        asked.input.example_list.examples.append(example(images=[1, 2]))
        (row,) = stub(line, "Classify")(asked).result.classifications
    assert [(c.label, round(c.score, 3)) for c in row.classes] == [("dog", 0.7), ("cat", 0.1)]


def test_classify_without_examples_or_with_others_is_an_invalid_argument(line):
    classify = stub(line, "Classify")
    asked = wire.message("tensorflow.serving.ClassificationRequest")()
    assert status(classify, asked) == ("INVALID_ARGUMENT", "Input is empty")
    asked.input.example_list.SetInParent()
    assert status(classify, asked) == ("INVALID_ARGUMENT", "Input is empty")
    asked.input.example_list.examples.append(example(x=[1, 2]))
    assert "takes 4 numbers" in status(classify, asked)[1]


def test_what_has_several_outputs_does_not_classify():
    outputs = tuple(TensorSpec(name, np.dtype(np.float32), (None, 2)) for name in ("a", "b"))
    model = made(lambda feeds: {"a": feeds["in:0"], "b": feeds["in:0"]}, outputs=outputs)
    with serving(model) as server, channel(server) as line:
        asked = wire.message("tensorflow.serving.ClassificationRequest")()
        asked.input.example_list.examples.append(example(images=[1, 2]))
        assert "does not classify" in status(stub(line, "Classify"), asked)[1]


def test_strings_of_an_onnx_model_come_and_go_as_they_are(tmp_path):
    ends = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    words = np.array([b"abc", "é".encode(), b""], object)
    with serving(servable(tmp_path / "m.onnx", name="same")) as server, channel(server) as line:
        predict = stub(line, "Predict")
        assert arrays(predict(request(x=words)))["y"].tolist() == words.tolist()
        code, text = status(predict, request(x=np.array([b"\xff", b""], object)))
    assert (code, "'x' holds a string that is no UTF-8" in text) == ("INVALID_ARGUMENT", True)


def test_health_knows_the_server_its_services_and_its_models(line):
    for service in ("", wire.PREDICTION_SERVICE, wire.INFERENCE_SERVICE, "linear"):
        assert health(line, service) == "SERVING"
    assert status(health, line, "other")[0] == "NOT_FOUND"


def test_calls_before_a_model_is_there_are_unavailable_and_health_says_so():
    with serving() as server, channel(server) as line:
        assert health(line) == "NOT_SERVING"
        assert status(stub(line, "Predict"), request(in__0=PAIR))[0] == "UNAVAILABLE"
        server.replace("echo", echo())
        assert health(line) == "SERVING"
        assert arrays(stub(line, "Predict")(request(in__0=PAIR)))["out:0"].tolist() == PAIR.tolist()


def test_calls_while_it_warms_up_are_unavailable():
    warm, go = threading.Event(), threading.Event()

    def run(feeds):
        warm.set()
        assert go.wait(30)
        return {"out:0": feeds["in:0"]}

    server = Server({"echo": made(run)}, OPEN)
    starting = threading.Thread(target=server.start)
    starting.start()
    try:
        assert warm.wait(30)
        with channel(server) as line:
            assert health(line) == "NOT_SERVING"
            assert status(stub(line, "Predict"), request(in__0=PAIR))[0] == "UNAVAILABLE"
            go.set()
            starting.join()
            assert health(line) == "SERVING"
    finally:
        go.set()
        starting.join()
        server.drain(0.0)


def test_reflection_tells_all_messages(line):
    database = ProtoReflectionDescriptorDatabase(line)
    assert {wire.PREDICTION_SERVICE, wire.MODEL_SERVICE, wire.INFERENCE_SERVICE} <= set(database.get_services())
    found = DescriptorPool(database).FindServiceByName(wire.PREDICTION_SERVICE)
    assert found.methods_by_name["Predict"].input_type.full_name == "tensorflow.serving.PredictRequest"


def test_reflection_may_be_off():
    with serving(echo(), reflection=False) as server, channel(server) as line:
        code, _ = status(lambda: ProtoReflectionDescriptorDatabase(line).get_services())
    assert code == "UNIMPLEMENTED"


def test_a_call_that_is_in_ends_on_the_model_it_began_with():
    held = Held()
    with serving(held.servable) as server, channel(server) as line:
        predict = stub(line, "Predict")
        first = predict.future(request(in__0=PAIR))
        assert held.entered.acquire(timeout=30)
        server.replace("held", made(lambda feeds: {"out:0": 2 * feeds["in:0"]}, "held", version=2))
        second = predict(request(in__0=PAIR))
        held.go.set()
        assert (first.result().model_spec.version.value, second.model_spec.version.value) == (1, 2)
        assert arrays(first.result())["out:0"].tolist() == PAIR.tolist()
        assert arrays(second)["out:0"].tolist() == (2 * PAIR).tolist()


def test_all_models_of_a_server_take_turns_on_its_one_engine_at_its_pace():
    models = echo("one"), echo("two")
    with serving(*models, pace="hardware"):
        assert models[0].fpga is models[1].fpga
        assert models[0].fpga.pace == "hardware"


def test_replacing_a_model_under_load_drops_and_mixes_up_nothing():
    def scaled(version):
        return made(lambda feeds: {"out:0": version * feeds["in:0"]}, "echo", version)

    wrong, answered, stop = [], [0], threading.Event()

    def load(line):
        predict = stub(line, "Predict")
        while not stop.is_set():
            try:
                answer = predict(request(in__0=PAIR), timeout=30)
            except grpc.RpcError as error:
                wrong.append(error)
                return
            if arrays(answer)["out:0"].tolist() != (answer.model_spec.version.value * PAIR).tolist():
                wrong.append(answer)
            answered[0] += 1

    with serving(scaled(1)) as server, channel(server) as line:
        threads = [threading.Thread(target=load, args=(line,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in range(2, 60):
            before = answered[0]
            server.replace("echo", scaled(version))
            while answered[0] < before + 2 and not wrong:
                stop.wait(0.001)
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert answered[0] > 100


def test_draining_answers_what_is_in_and_takes_no_more():
    held = Held()
    with serving(held.servable) as server, channel(server) as line:
        predict = stub(line, "Predict")
        first = predict.future(request(in__0=PAIR))
        assert held.entered.acquire(timeout=30)
        draining = threading.Thread(target=server.drain, args=(30.0,))
        draining.start()
        while status_or_none(predict) != "UNAVAILABLE":
            assert draining.is_alive()
        held.go.set()
        assert arrays(first.result())["out:0"].tolist() == PAIR.tolist()
        draining.join()
        assert server.wait(0)


def status_or_none(predict):
    try:
        predict(request(in__0=PAIR), timeout=0.2)
    except grpc.RpcError as error:
        return error.code().name
    return None


def test_a_port_is_given_once():
    with serving(echo()) as server, pytest.raises(ServiceError, match=f"port {server.port} of 127.0.0.1"):
        Server({}, ServerConfig(port=server.port)).start()


def test_a_servable_is_served_under_its_own_name():
    with pytest.raises(InputError, match="'echo' cannot be served as 'other'"):
        Server({"other": echo()}, OPEN).start()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"port": 70000}, "port=70000"),
        ({"max_message_bytes": 10}, "max_message_bytes=10"),
        ({"max_concurrent": 0}, "max_concurrent=0"),
        ({"deadline_s": 0.0}, "deadline_s=0.0"),
        ({"tls_cert": "a.pem"}, "tls_key"),
        ({"client_ca": "a.pem"}, "needs TLS"),
        ({"auth_keys": ("a" * 8, None), "keys_file": "keys"}, "both given"),
    ],
)
def test_a_config_that_cannot_be_is_told(fields, says):
    with pytest.raises(InputError, match=says):
        ServerConfig(**fields)
