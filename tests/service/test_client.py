"""`PredictionClient` and its asyncio twin: what they send, what they make of answers, and when they try again."""

import asyncio
import contextlib
import io
import pickle
import threading
import time
from concurrent import futures
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from fpgasim.errors import InputError
from fpgasim.service import (
    AsyncPredictionClient,
    CallError,
    PredictionClient,
    async_client_from_service,
    client_from_service,
    tensors,
    tls,
    wire,
)
from fpgasim.service.steps import TensorSpec

from .calling import KEY, KEY2, WEIGHTS, linear_servable, made, serving, write

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X @ WEIGHTS
PICTURE = b"\xff\xd8 a picture, as far as this service can tell"


class Twin:
    """The asyncio client behind the methods of the other, so that one test holds both to the same."""

    def __init__(self, *args, **kwargs):
        self._client = AsyncPredictionClient(*args, **kwargs)
        self._loop = asyncio.new_event_loop()
        self.metadata = self._client.metadata

    def __getattr__(self, name):
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._loop.run_until_complete(method(*args, **kwargs))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self._loop.close()


@pytest.fixture(params=[PredictionClient, Twin], ids=["sync", "async"])
def client_class(request):
    return request.param


def text_servable():
    """Strings (n) to their lengths and their first bytes (n, 2), under Azure's names too."""
    inputs = (TensorSpec("in:0", np.dtype(object), (None,)),)
    outputs = (TensorSpec("sizes:0", np.dtype(np.float32), (None, 2)),)

    def sizes(feeds):
        return {"sizes:0": np.float32([[len(item), item[0] if item else 0] for item in feeds["in:0"]])}

    return made(sizes, "sizes", inputs=inputs, outputs=outputs)


def two_servable():
    outputs = tuple(TensorSpec(name, np.dtype(np.float32), (None, 2)) for name in ("b:0", "a:0"))
    return made(lambda feeds: {"a:0": feeds["in:0"], "b:0": -feeds["in:0"]}, "two", outputs=outputs)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with contextlib.ExitStack() as stack:
        given = {
            "linear": linear_servable(tmp_path_factory.mktemp("models")),
            "sizes": text_servable(),
            "two": two_servable(),
        }
        yield {name: stack.enter_context(serving(one)) for name, one in given.items()}


@pytest.fixture
def client(servers, client_class):
    """The client of a server by its model."""
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(client_class("127.0.0.1", servers[name].port))


SIZES = [len(PICTURE), PICTURE[0]]


def test_a_picture_scores_without_a_batch_axis_from_path_bytes_and_files(client, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(PICTURE)
    scores = client("sizes")
    with path.open("rb") as binary, path.open(encoding="latin-1") as text:
        for source in (path, str(path), PICTURE, bytearray(PICTURE), io.BytesIO(PICTURE), binary, text):
            np.testing.assert_array_equal(scores.score_file(source), SIZES)
    np.testing.assert_array_equal(scores.score_image(path), SIZES)


def test_outputs_by_name_come_as_one_array_and_lists_keep_the_batch_axis(client):
    one, two = client("sizes"), client("two")
    np.testing.assert_array_equal(one.score_file(PICTURE, "in:0", "sizes:0"), SIZES)
    (listed,) = one.score_file(PICTURE, input_name="in:0", outputs=["sizes:0"])
    np.testing.assert_array_equal(listed, [SIZES])
    pair = np.float32([[1, 2]])
    b, a = two.score_numpy_arrays({"in:0": pair}, ["b:0", "a:0"])
    np.testing.assert_array_equal([a, b], [pair, -pair])
    np.testing.assert_array_equal(two.score_numpy_arrays({"in:0": pair}, "b:0"), -pair)
    np.testing.assert_array_equal(two.score_numpy_arrays({"in:0": pair}), [pair, -pair])  # in the order of their names


def test_arrays_and_tensors_score_with_their_batch_axes(client):
    linear, sizes = client("linear"), client("sizes")
    np.testing.assert_array_equal(linear.score_numpy_array(X.astype(int)), Y)
    np.testing.assert_array_equal(linear.score_numpy_arrays({"x": X}), Y)
    for datatype in (1, "DT_FLOAT", np.float32):
        np.testing.assert_array_equal(linear.score_tensors({"x": (X.tobytes(), [2, 4], datatype)}, "y"), Y)
    np.testing.assert_array_equal(sizes.score_tensors({"images": (PICTURE, [1], 7)}), [SIZES])
    np.testing.assert_array_equal(sizes.score_tensors({"images": ([PICTURE, b"x"], [2], 7)}), [SIZES, [1, ord("x")]])
    proto = sizes.score_tensor(PICTURE, [1], 7)
    assert isinstance(proto, wire.message("tensorflow.TensorProto"))
    np.testing.assert_array_equal(tensors.from_proto(proto, "scores"), [SIZES])


def test_a_reply_tells_the_request_and_the_cycles(client):
    reply = client("linear").predict({"x": X})
    np.testing.assert_array_equal(reply.outputs["y"], Y)
    assert len(reply.request_id) == 32
    assert int(reply.facts["x-fpgasim-cycles"]) > 0


def test_what_cannot_be_sent_is_an_error_at_the_door(client):
    sizes = client("sizes")
    with pytest.raises(InputError, match=r"picture 'no\.jpg' cannot be read: No such file"):
        sizes.score_file("no.jpg")
    with pytest.raises(InputError, match="timeout=0; more than 0 seconds"):
        sizes.score_file(PICTURE, timeout=0)
    with pytest.raises(InputError, match=r"input_name=10\.0.*a timeout is timeout="):
        sizes.score_file(PICTURE, 10.0)
    with pytest.raises(InputError, match="a picture is a int"):
        sizes.score_file(3)
    with pytest.raises(InputError, match="'images' is bytes"):
        sizes.score_tensors({"images": PICTURE})
    with pytest.raises(InputError, match=r"'images' of float32 \(3,\) needs 12 bytes and has 4"):
        sizes.score_tensor(b"1234", [3], "DT_FLOAT")
    with pytest.raises(InputError, match="no array of numbers"):
        sizes.score_numpy_array(["a"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"address": None}, "address=None; a host"),
        ({"address": "https://host/score"}, "a host such as"),
        ({"address": "host:x"}, "port 'x'; a number"),
        ({"address": "host:1", "port": 2}, "another port than port=2"),
        ({"address": "host", "port": 70000}, "port=70000; 1 to 65535"),
        ({"address": "host", "port": "50051"}, "port='50051'; 1 to 65535"),
        ({"address": "host", "access_token": "line\nbreak"}, "access_token has characters"),
        ({"address": "host", "attempts": 0}, "attempts=0; at least 1"),
        ({"address": "host", "root_certificates": b"pem"}, "give use_ssl=True too"),
        (
            {"address": "host", "use_ssl": True, "root_certificates": "no.pem"},
            r"root_certificates 'no\.pem' cannot be read",
        ),
        ({"address": "host", "use_ssl": True, "client_certificate": (b"", "no.key")}, r"client_certificate 'no\.key'"),
        ({"address": "127.0.0.1", "port": 1, "replicas": ["no host:1"]}, "'no host' is not known here"),
    ],
)
def test_a_client_that_cannot_be_says_why(client_class, arguments, reason):
    with pytest.raises(InputError, match=reason) as error:
        client_class(**arguments)
    assert "line" not in str(error.value)  # nothing of a key


@pytest.mark.parametrize(
    ("address", "port", "use_ssl", "target"),
    [
        ("host", None, False, "dns:///host:80"),
        ("host", None, True, "dns:///host:443"),
        ("host:5", None, True, "dns:///host:5"),
        ("::1", 7, False, "dns:///[::1]:7"),
        ("[::1]:7", None, False, "dns:///[::1]:7"),
    ],
)
def test_ports_default_to_those_of_http(address, port, use_ssl, target):
    with PredictionClient(address, port, use_ssl) as client:
        assert client._line.target == target


def test_a_callers_mistake_is_told_at_once_with_the_request(client):
    start = time.monotonic()
    with pytest.raises(CallError, match=r"answers INVALID_ARGUMENT: no input 'z'.*\(request [0-9a-f]{32}\)$") as error:
        client("linear").score_numpy_arrays({"z": X})
    assert time.monotonic() - start < 0.5
    assert (error.value.code, error.value.attempts) == ("INVALID_ARGUMENT", 1)
    assert error.value.request_id in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    with pytest.raises(CallError, match="no output 'nothing'"):
        client("linear").score_numpy_arrays({"x": X}, "nothing")


def test_keys_are_sent_and_wrong_ones_are_told_without_another_try(tmp_path, client_class):
    certificate = tls.self_signed(["localhost", "127.0.0.1"])
    chain, key = write(tmp_path, certificate)
    changes = {"auth_keys": (KEY, KEY2), "tls_cert": chain, "tls_key": key}
    with serving(linear_servable(tmp_path), **changes) as server:

        def client(token, **more):
            return client_class("localhost", server.port, True, token, "", root_certificates=chain, **more)

        for token in (KEY, KEY2):
            with client(token) as right:
                np.testing.assert_array_equal(right.score_numpy_array(X), Y)
        with client(KEY, replicas=[f"127.0.0.1:{server.port}"]) as several:
            np.testing.assert_array_equal(several.score_numpy_array(X), Y)
        for token, hint in (("wrong", "the access_token given is not one of its keys"), ("", "no access_token was")):
            with client(token) as other, pytest.raises(CallError, match=hint) as error:
                other.score_numpy_array(X)
            assert (error.value.code, error.value.attempts) == ("UNAUTHENTICATED", 1)
            assert error.value.request_id
            assert "wrong" not in str(error.value).replace("a wrong one", "")
        with client_class("127.0.0.1", server.port, True) as other:
            with pytest.raises(CallError, match="is not trusted here; give root_certificates") as error:
                other.score_numpy_array(X)
            assert error.value.attempts == 1
        plain = client_class("127.0.0.1", server.port, False, KEY, attempts=1)
        with plain, pytest.raises(CallError, match="use_ssl=True would do"):
            plain.score_numpy_array(X)


def test_a_client_shows_its_certificate_to_a_server_that_asks(tmp_path, client_class):
    (chain, key), (own, own_key) = (
        write(tmp_path, tls.self_signed(["localhost"])),
        write(tmp_path, tls.self_signed(["somebody"]), "client"),
    )
    with serving(linear_servable(tmp_path), tls_cert=chain, tls_key=key, client_ca=own) as server:
        known = client_class("localhost", server.port, True, root_certificates=chain, client_certificate=(own, own_key))
        with known:
            np.testing.assert_array_equal(known.score_numpy_array(X), Y)
        with client_class("localhost", server.port, True, root_certificates=chain, attempts=1) as unknown:
            with pytest.raises(CallError) as error:
                unknown.score_numpy_array(X)
            assert error.value.code == "UNAVAILABLE"


class Script:
    """A server of Predict that does as told: a list of (code, trailing metadata) to fail with, then it answers."""

    def __init__(self):
        self.failures, self.times, self.metadata = [], [], []

    def answer(self, data, context):
        self.times.append(time.monotonic())
        self.metadata.append(dict(context.invocation_metadata()))
        if self.failures:
            code, trailing = self.failures.pop(0)
            context.set_trailing_metadata(trailing)
            context.abort(code, "as told")
        reply = wire.message("tensorflow.serving.PredictResponse")()
        reply.outputs["y"].CopyFrom(tensors.to_proto(np.float32([[1, 2]])))
        return reply.SerializeToString()


@pytest.fixture
def script():
    told = Script()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    methods = {"Predict": grpc.unary_unary_rpc_method_handler(told.answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.PREDICTION_SERVICE, methods),))
    told.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield told
    server.stop(None).wait()


def test_the_headers_are_those_of_azures_clients(script, client_class):
    with client_class("127.0.0.1", script.port, access_token=KEY, service_name="mine") as client:
        np.testing.assert_array_equal(client.score_numpy_array(X), [[1, 2]])
        assert dict(client.metadata).items() <= script.metadata[0].items()
    assert script.metadata[0]["authorization"] == f"Bearer {KEY}"
    assert script.metadata[0]["x-ms-aml-grpc-service-route"] == "/api/v1/service/mine"
    with client_class("127.0.0.1", script.port) as client:
        client.score_numpy_array(X)
    assert "authorization" not in script.metadata[1]


UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_server_that_is_not_ready_is_asked_again_later_and_later(script, client_class):
    script.failures = [(UNAVAILABLE, ()), (UNAVAILABLE, ())]
    with client_class("127.0.0.1", script.port) as client:
        np.testing.assert_array_equal(client.score_numpy_array(X), [[1, 2]])
    first, second, third = script.times
    assert second - first >= 0.08
    assert third - second >= 0.16


def test_a_server_is_asked_again_when_it_says_so(script, client_class):
    script.failures = [(EXHAUSTED, (("grpc-retry-pushback-ms", "150"),))]
    with client_class("127.0.0.1", script.port) as client:
        client.score_numpy_array(X)
    assert script.times[1] - script.times[0] >= 0.15


@pytest.mark.parametrize(
    "failure",
    [
        (EXHAUSTED, ()),
        (UNAVAILABLE, (("grpc-retry-pushback-ms", "-1"),)),
        (UNAVAILABLE, (("grpc-retry-pushback-ms", "60000"),)),  # past the call's timeout
        (grpc.StatusCode.INTERNAL, ()),
        (grpc.StatusCode.UNAUTHENTICATED, ()),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ()),
    ],
)
def test_what_is_hopeless_is_tried_once(script, client_class, failure):
    script.failures = [failure]
    with client_class("127.0.0.1", script.port) as client, pytest.raises(CallError, match="as told") as error:
        client.score_numpy_array(X, timeout=5)
    assert (error.value.code, error.value.details) == (failure[0].name, "as told")
    assert len(script.times) == error.value.attempts == 1


def test_attempts_end(script, client_class):
    script.failures = [(UNAVAILABLE, ())] * 9
    with (
        client_class("127.0.0.1", script.port, attempts=3) as client,
        pytest.raises(CallError, match="tried 3 times") as error,
    ):
        client.score_numpy_array(X)
    assert len(script.times) == error.value.attempts == 3
    script.times.clear()
    with client_class("127.0.0.1", script.port, attempts=99) as client, pytest.raises(CallError):
        client.score_numpy_array(X, timeout=0.3)
    assert len(script.times) < 4


def service(port, **facts):
    """What a deployed service says of itself."""
    keys = {"auth_enabled": False, "get_keys": lambda: (KEY, KEY2), "name": "mine"}
    return SimpleNamespace(**{"scoring_uri": f"127.0.0.1:{port}", **keys, **facts})


@pytest.mark.parametrize(
    ("uri", "ssl", "target"),
    [
        ("10.0.0.1:5001", False, "dns:///10.0.0.1:5001"),
        ("http://10.0.0.1:5001/api/v1/service/mine/score", False, "dns:///10.0.0.1:5001"),
        ("https://host/api", False, "dns:///host:443"),
        ("http://host/api", False, "dns:///host:80"),
        ("host:7", True, "dns:///host:7"),
        ("http://[::1]:7", False, "dns:///[::1]:7"),
    ],
)
def test_a_client_calls_where_its_service_is(uri, ssl, target):
    with client_from_service(service(0, scoring_uri=uri, ssl=ssl)) as client:
        assert client._line.target == target
        assert (client._line.credentials is not None) == ("https" in uri or ssl)
        assert client.metadata == [("x-ms-aml-grpc-service-route", "/api/v1/service/mine")]


def test_a_client_has_the_key_the_certificate_and_the_replicas_of_its_service():
    certificate = tls.self_signed(["mine.example", "localhost"]).chain
    given = service(5, auth_enabled=True, ssl=True, server_certificate=certificate, ports=[5, 6])
    for client in (client_from_service(given), async_client_from_service(given)):
        assert client.metadata[0] == ("authorization", f"Bearer {KEY}")
        assert client._line.target == "ipv4:127.0.0.1:5,127.0.0.1:6"
        assert ("grpc.ssl_target_name_override", "mine.example") in client._line.options
    with pytest.raises(InputError, match="scoring_uri=None, which names no host; is it deployed"):
        client_from_service(service(0, scoring_uri=None))


def test_many_threads_share_a_client(servers):
    with PredictionClient("127.0.0.1", servers["linear"].port) as client:

        def ask(i):
            x = X * np.float32(2.0 ** (i % 8))  # whose values every format has exactly
            return np.array_equal(client.score_numpy_array(x), x @ WEIGHTS)

        with futures.ThreadPoolExecutor(8) as threads:
            assert all(threads.map(ask, range(40)))


def test_a_call_that_takes_too_long_ends(client_class):
    go = threading.Event()
    warm = []

    def slow(feeds):
        if warm:
            go.wait(10)
        warm.append(1)
        return {"out:0": feeds["in:0"]}

    with serving(made(slow)) as server, client_class("127.0.0.1", server.port) as client:
        with pytest.raises(CallError) as error:
            client.score_numpy_arrays({"in:0": np.float32([[1, 2]])}, timeout=0.3)
        go.set()
        assert (error.value.code, error.value.attempts) == ("DEADLINE_EXCEEDED", 1)
