"""REST: TensorFlow Serving's and the Open Inference Protocol's, and /metrics."""

import base64
import http.client
import json
import re
import socket
import ssl
import threading
import time

import numpy as np
import pytest

from fpgasim.errors import ServiceError
from fpgasim.service import Server, ServerConfig, tls
from fpgasim.service.steps import TensorSpec

from .calling import KEY, KEY2, WEIGHTS, Held, channel, linear_servable, made, request, serving, status, stub, write

X = np.float32([[1, 2, 3, 4], [4, 3, 2, 1]])
Y = (X @ WEIGHTS).tolist()
NULL = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, None]}


def where(server, which="rest"):
    host, _, port = server.http[which].rpartition(":")
    return host, int(port)


def ask(server, path, body=None, headers=None, which="rest", context=None):
    """Status, headers (names in small letters) and body of a reply, read as JSON where it is."""
    make = http.client.HTTPConnection if context is None else http.client.HTTPSConnection
    line = make(*where(server, which), timeout=20, **({} if context is None else {"context": context}))
    try:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        line.request("GET" if body is None else "POST", path, data, headers or {})
        reply = line.getresponse()
        content = reply.read()
    finally:
        line.close()
    found = {name.lower(): value for name, value in reply.getheaders()}
    return reply.status, found, json.loads(content) if found["content-type"] == "application/json" else content


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(linear_servable(tmp_path_factory.mktemp("models")), rest_port=0, metrics_port=0) as running:
        yield running


def text_model():
    spec = TensorSpec("in:0", np.dtype(object), (None,))
    return made(
        lambda feeds: {"out:0": feeds["in:0"]}, inputs=(spec,), outputs=(TensorSpec("out:0", spec.dtype, (None,)),)
    )


@pytest.fixture(scope="module")
def texts():
    with serving(text_model(), rest_port=0) as running:
        yield running


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"instances": X.tolist()}, {"predictions": Y}),
        ({"instances": [{"x": row} for row in X.tolist()]}, {"predictions": Y}),
        ({"inputs": X.tolist()}, {"outputs": Y}),
        ({"inputs": {"images": X.tolist()}, "signature_name": "serving_default"}, {"outputs": Y}),
        ({"instances": [[1, 2, 3, 4]]}, {"predictions": Y[:1]}),
        ({"instances": [[0, 0, 0, 1e300]]}, {"predictions": [[65504.0] * 3]}),  # fp16 saturates
    ],
)
def test_tensorflow_servings_rows_and_columns(server, body, answer):
    code, headers, found = ask(server, "/v1/models/linear:predict", body)
    assert (code, found) == (200, answer)
    assert int(headers["x-fpgasim-cycles"]) > 0
    assert len(headers["x-request-id"]) == 32


@pytest.mark.parametrize("path", ["/v1/models/linear/versions/1:predict", "/v1/models/linear:predict"])
def test_a_version_may_be_in_the_path(server, path):
    assert ask(server, path, {"inputs": X.tolist()})[0] == 200


def test_strings_come_and_go_as_text_or_base64(texts):
    data = base64.b64encode(b"\xff\x00").decode()
    body = {"instances": ["text", {"b64": data}]}
    assert ask(texts, "/v1/models/echo:predict", body)[2] == {"predictions": ["text", {"b64": data}]}
    assert ask(texts, "/v1/models/echo:predict", {"inputs": [{"b64": data}]})[2] == {"outputs": [{"b64": data}]}


def test_several_outputs_come_as_objects():
    outputs = tuple(TensorSpec(name, np.dtype(np.float32), (None, 2)) for name in ("a", "b"))
    model = made(lambda feeds: {"a": feeds["in:0"], "b": -feeds["in:0"]}, outputs=outputs)
    with serving(model, rest_port=0) as server:
        path = "/v1/models/echo:predict"
        assert ask(server, path, {"instances": [[1, 2]]})[2] == {"predictions": [{"a": [1, 2], "b": [-1, -2]}]}
        assert ask(server, path, {"inputs": [[1, 2]]})[2] == {"outputs": {"a": [[1, 2]], "b": [[-1, -2]]}}


def test_classify_gives_pairs(server):
    body = {"examples": [{"x": [1, 2, 3, 4]}]}
    (row,) = ask(server, "/v1/models/linear:classify", body)[2]["results"]
    assert row == sorted(([str(i), score] for i, score in enumerate(Y[0])), key=lambda pair: -pair[1])


def test_status_and_metadata(server):
    (version,) = ask(server, "/v1/models/linear")[2]["model_version_status"]
    assert (version["version"], version["state"]) == ("1", "AVAILABLE")
    told = ask(server, "/v1/models/linear/metadata")[2]
    signature = told["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["images"]["dtype"] == "DT_FLOAT"
    assert told["model_spec"]["name"] == "linear"


@pytest.mark.parametrize(
    ("path", "body", "code", "says"),
    [
        ("/v1/models/other:predict", {"inputs": 1}, 404, "Latest(other)"),
        ("/v1/models/linear/versions/9:predict", {"inputs": 1}, 404, "Specific(linear, 9)"),
        ("/v1/models/linear/labels/new:predict", {"inputs": 1}, 400, "label: new"),
        ("/v1/models/linear:predict", {}, 400, "either instances or inputs"),
        ("/v1/models/linear:predict", {"inputs": 1, "instances": [1]}, 400, "either instances or inputs"),
        ("/v1/models/linear:predict", {"instances": []}, 400, "not empty"),
        ("/v1/models/linear:predict", {"instances": [{"x": 1}, {"y": 1}]}, 400, "the same names"),
        ("/v1/models/linear:predict", {"inputs": [[1, 2, 3]]}, 400, "has shape (1, 3)"),
        ("/v1/models/linear:predict", {"inputs": [[1, 2], [3]]}, 400, "is no array"),
        ("/v1/models/linear:predict", {"inputs": [["a"]]}, 400, "no number"),
        ("/v1/models/linear:predict", {"inputs": {"z": 1}}, 400, "no input 'z'"),
        ("/v1/models/linear:predict", {"inputs": [[1] * 4], "signature_name": "z"}, 400, "signature name"),
        ("/v1/models/linear:predict", [1], 400, "JSON list"),
        ("/v1/models/linear:predict", b"{", 400, "no JSON"),
        ("/v1/models/linear:predict", b"[" * 100_000, 400, "no JSON"),
        ("/v1/models/linear:predict", b"\xff", 400, "no JSON"),
        ("/v1/models/linear:classify", {"examples": 1}, 400, "a list of objects"),
        ("/v1/models/linear:predict", None, 400, "takes POST"),
        ("/v1/other", None, 404, "nothing is at /v1/other"),
        ("/v2/models/other", None, 404, "Latest(other)"),
        ("/v2/models/linear/infer", {"inputs": [{"name": "x"}]}, 400, "needs a datatype"),
        ("/v2/models/linear/infer", {"inputs": [1]}, 400, "a name of its own"),
        ("/v2/models/linear/infer", {"inputs": 1}, 400, "must be a list"),
        ("/v2/models/linear/infer", {"inputs": [NULL]}, 400, "no float32: a null"),
        ("/v1/models/linear:predict", {"instances": [[1, 2, 3, None]]}, 400, "no number"),
        ("/v1/models/linear:predict", {"inputs": {"x": [[1, 2, 3, None]]}}, 400, "no number"),
        ("/v1/models/linear:classify", {"examples": [{"x": [1, 2, 3, None]}]}, 400, "no float32: a null"),
        ("/v1/models/linear:classify", {"examples": [{"x": [1, 2, 3, "4"]}]}, 400, "no float32: a bytes"),
    ],
)
def test_mistakes_are_told_in_json(server, path, body, code, says):
    found, headers, answer = ask(server, path, body)
    assert found == code
    assert says in answer["error"]
    assert len(headers["x-request-id"]) == 32


def test_the_open_inference_protocol_in_json(server):
    body = {"id": "7", "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": X.ravel().tolist()}]}
    code, _, found = ask(server, "/v2/models/linear/infer", body)
    assert code == 200
    assert (found["model_name"], found["model_version"], found["id"]) == ("linear", "1", "7")
    output = {"name": "y", "datatype": "FP32", "shape": [2, 3], "data": np.ravel(Y).tolist()}
    assert found["outputs"] == [output]


def binary(data, size=None, **fields):
    size = len(data) if size is None else size
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor], **fields}).encode()
    return text + data, {"Inference-Header-Content-Length": str(len(text))}


def test_tensors_may_follow_the_json_in_binary(server):
    data, headers = binary(X.tobytes(), outputs=[{"name": "y", "parameters": {"binary_data": True}}])
    code, told, found = ask(server, "/v2/models/linear/infer", data, headers)
    length = int(told["inference-header-content-length"])
    (output,) = json.loads(found[:length])["outputs"]
    assert (code, output["parameters"]) == (200, {"binary_data_size": 24})
    assert np.frombuffer(found[length:], np.float32).reshape(2, 3).tolist() == Y


@pytest.mark.parametrize("size", [31, 33, -1, True, "8"])
def test_binary_data_of_another_size_is_refused(server, size):
    data, headers = binary(X.tobytes(), size)
    code, _, found = ask(server, "/v2/models/linear/infer", data, headers)
    assert code == 400
    assert (
        "binary_data_size" in found["error"] or "belong to no input" in found["error"] or "needs 32" in found["error"]
    )


def test_what_there_is_and_whether_it_is_ready(server):
    assert ask(server, "/v2")[2]["name"] == "fpgasim"
    assert ask(server, "/v2/models/linear")[2]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/linear/ready"):
        assert ask(server, path)[0] == 200
    with serving(rest_port=0) as empty:
        assert ask(empty, "/v2/health/live")[0] == 200
        assert ask(empty, "/v2/health/ready")[0] == 503


def test_metrics_count_calls_by_method_and_code_and_the_engines_time(tmp_path):
    with serving(linear_servable(tmp_path), rest_port=0, metrics_port=0) as server, channel(server) as line:
        stub(line, "Predict")(request(x=X))
        status(stub(line, "Predict"), request(x=X[:, :1]))
        ask(server, "/v1/models/linear:predict", {"inputs": X.tolist()})
        for which in ("rest", "metrics"):
            code, headers, text = ask(server, "/metrics", which=which)
            assert code == 200
            assert headers["content-type"].startswith("text/plain")
            counts = dict(row.rsplit(" ", 1) for row in text.decode().splitlines() if row[0] != "#")
            assert counts['fpgasim_requests_total{code="OK",method="Predict"}'] == "1.0"
            assert counts['fpgasim_requests_total{code="INVALID_ARGUMENT",method="Predict"}'] == "1.0"
            assert counts['fpgasim_requests_total{code="OK",method="rest_predict"}'] == "1.0"
            assert counts['fpgasim_request_seconds_count{method="Predict"}'] == "2.0"
            assert counts["fpgasim_in_flight"] == "1.0"  # this one
            assert float(counts['fpgasim_fpga_busy_seconds_total{model="linear"}']) > 0
            assert float(counts['fpgasim_simulated_cycles_total{model="linear"}']) > 0
        assert ask(server, "/v1/models/linear", which="metrics")[0] == 404


def test_keys_and_certificates_are_those_of_grpc(tmp_path, caplog):
    certificate = tls.self_signed()
    cert, key = write(tmp_path, certificate)
    config = ServerConfig(port=0, rest_port=0, metrics_port=0, tls_cert=cert, tls_key=key, auth_keys=(KEY, KEY2))
    trusting = ssl.create_default_context(cadata=certificate.chain.decode())
    with serving(linear_servable(tmp_path), config=config) as server:
        path, body = "/v1/models/linear:predict", {"inputs": X.tolist()}
        for header in (f"Bearer {KEY}", f"bearer {KEY2}", KEY):
            assert ask(server, path, body, {"authorization": header}, context=trusting)[0] == 200
        for headers in ({}, {"authorization": "Bearer wrong-key"}):
            code, told, found = ask(server, path, body, headers, context=trusting)
            assert (code, told["www-authenticate"]) == (401, "Bearer")
            assert KEY not in found["error"]
        assert ask(server, "/metrics", which="metrics", context=trusting)[0] == 401
        assert ask(server, "/v2/health/ready", context=trusting)[0] == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(server, path, body, context=ssl.create_default_context())
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            ask(server, path, body)
        fresh = tls.self_signed()
        write(tmp_path, fresh)
        time.sleep(1.05)  # files are looked at once a second
        again = ssl.create_default_context(cadata=fresh.chain.decode())
        assert ask(server, path, body, {"authorization": KEY}, context=again)[0] == 200
    audits = [json.loads(message) for message in caplog.messages]
    assert audits[0]["method"] == "rest_predict"
    (plain,) = (line for line in audits if line.get("reason") == "HTTP_REQUEST")  # and one for who did not trust it
    assert (plain["event"], plain["method"]) == ("refused", "handshake")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", plain["peer"])


def test_numbers_that_json_does_not_have_come_and_go_as_tensorflow_serving_has_them():
    with serving(made(lambda feeds: {"out:0": feeds["in:0"]}), rest_port=0) as server:
        body = b'{"instances": [[NaN, -Infinity], [Infinity, 1.0]]}'
        code, _, found = ask(server, "/v1/models/echo:predict", body)
        assert code == 200
        assert repr(found) == "{'predictions': [[nan, -inf], [inf, 1.0]]}"


def test_a_body_that_is_too_large_or_of_unknown_size_is_refused():
    with serving(text_model(), rest_port=0, max_message_bytes=4096) as server:
        path = "/v1/models/echo:predict"
        assert ask(server, path, b"x" * 5000)[0] == 429
        assert ask(server, path, b'{"instances": ["' + b"x" * 2000 + b'"]}')[0] == 429  # a text may be a quarter
        assert ask(server, path, b"{}", {"content-encoding": "gzip"})[0] == 400
        assert ask(server, path, b"{}", {"transfer-encoding": "chunked", "content-length": "2"})[0] == 400
        assert ask(server, path, b"{}", {"content-length": "-2"})[0] == 400


def raw(server, data):
    with socket.create_connection(where(server), timeout=20) as line:
        line.sendall(data)
        return b"".join(iter(lambda: line.recv(65536), b""))


def test_what_is_no_http_or_does_not_come_is_given_up():
    with serving(text_model(), rest_port=0, receive_s=0.3) as server:
        assert b"Bad request" in raw(server, b"\x00\x01junk\r\n\r\n")
        start = time.monotonic()
        head = b"POST /v1/models/echo:predict HTTP/1.1\r\nContent-Length: 10\r\n\r\n"
        raw(server, head + b"{")
        assert time.monotonic() - start < 10
        assert ask(server, "/v2/health/ready")[0] == 200


def test_a_connection_serves_many_calls(server):
    line = http.client.HTTPConnection(*where(server), timeout=20)
    for _ in range(3):
        line.request("POST", "/v1/models/linear:predict", json.dumps({"inputs": X.tolist()}))
        assert json.loads(line.getresponse().read()) == {"outputs": Y}
    line.close()


def test_too_many_calls_are_told_when_to_come_again():
    held = Held()
    with serving(held.servable, rest_port=0, max_concurrent=1, max_queue=0) as server, channel(server) as line:
        first = stub(line, "Predict").future(request(in__0=np.float32([[1, 2]])))
        assert held.entered.acquire(timeout=30)
        code, headers, _ = ask(server, "/v1/models/held:predict", {"inputs": [[1, 2]]})
        assert (code, int(headers["retry-after"])) == (429, 1)
        assert ask(server, "/v2/health/live")[0] == 200
        held.go.set()
        first.result()


def test_draining_answers_what_is_in():
    held = Held()
    with serving(held.servable, rest_port=0) as server:
        answers = []
        body = {"inputs": [[1, 2]]}
        calling = threading.Thread(target=lambda: answers.append(ask(server, "/v1/models/held:predict", body)))
        calling.start()
        assert held.entered.acquire(timeout=30)
        draining = threading.Thread(target=server.drain, args=(30.0,))
        draining.start()
        held.go.set()
        calling.join()
        draining.join()
        assert answers[0][2] == {"outputs": [[1.0, 2.0]]}
        with pytest.raises(ConnectionError):
            ask(server, "/v2/health/live")


def test_a_port_that_is_taken_is_told(server):
    with pytest.raises(ServiceError, match="cannot be had"):
        Server({}, ServerConfig(port=0, rest_port=where(server)[1])).start()
