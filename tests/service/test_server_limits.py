"""Too much, too large, too slow and too late: refused, and health answers all along."""

import gzip
import os
import random
import resource
import socket
import struct
import threading
import time
from contextlib import ExitStack

import grpc
import numpy as np
import pytest

from fpgasim.service import ServerConfig, tensors, wire
from fpgasim.service.limits import Admission, Refusal

from .calling import OPEN, Held, arrays, channel, health, linear_servable, made, request, serving, status, stub

PAIR = np.float32([[1, 2]])
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PREDICT = f"/{wire.PREDICTION_SERVICE}/Predict"


def echo():
    return made(lambda feeds: {"out:0": feeds["in:0"]})


@pytest.fixture
def held():
    found = Held()
    yield found
    found.go.set()


def test_calls_beyond_the_limit_are_refused_at_once_told_when_to_come_and_health_answers(held):
    with serving(held.servable, max_concurrent=2, max_queue=1) as server, channel(server) as line:
        predict = stub(line, "Predict")
        inside = [predict.future(request(in__0=PAIR)) for _ in range(2)]
        assert all(held.entered.acquire(timeout=30) for _ in range(2))
        waiting = predict.future(request(in__0=PAIR))
        while len(server._calls) < 3:
            time.sleep(0.001)
        with pytest.raises(grpc.RpcError) as caught:
            predict(request(in__0=PAIR), timeout=20)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 20 <= int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]) <= 10_000
        assert health(line) == "SERVING"
        held.go.set()
        assert all(arrays(call.result())["out:0"].tolist() == PAIR.tolist() for call in (*inside, waiting))


def test_a_deadline_that_passes_in_the_queue_costs_no_computation(held):
    with serving(held.servable, max_concurrent=1) as server, channel(server) as line:
        predict = stub(line, "Predict")
        first = predict.future(request(in__0=PAIR))
        assert held.entered.acquire(timeout=30)
        assert status(predict, request(in__0=PAIR), timeout=0.2)[0] == "DEADLINE_EXCEEDED"
        while len(server._calls) > 1:
            time.sleep(0.001)
        held.go.set()
        first.result()
        assert not held.entered.acquire(blocking=False)


def test_a_caller_that_went_away_in_the_queue_costs_no_computation(held):
    with serving(held.servable, max_concurrent=1) as server, channel(server) as line:
        predict = stub(line, "Predict")
        first = predict.future(request(in__0=PAIR))
        assert held.entered.acquire(timeout=30)
        second = predict.future(request(in__0=PAIR))
        while len(server._calls) < 2:
            time.sleep(0.001)
        second.cancel()
        health(line)  # comes after the cancellation, on the same connection
        held.go.set()
        first.result()
        while len(server._calls):
            time.sleep(0.001)
        assert not held.entered.acquire(blocking=False)


def test_a_message_larger_than_the_limit_is_refused():
    with serving(echo(), max_message_bytes=100_000) as server, channel(server, max_send_message_length=-1) as line:
        big = request(in__0=np.zeros((20_000, 2), np.float32))
        assert status(stub(line, "Predict"), big)[0] == "RESOURCE_EXHAUSTED"
        assert health(line) == "SERVING"


def test_five_megabytes_are_taken_by_default():
    x = np.random.default_rng(0).standard_normal((600_000, 2)).astype(np.float32)
    with serving(echo()) as server, channel(server, max_receive_message_length=-1) as line:
        np.testing.assert_array_equal(arrays(stub(line, "Predict")(request(in__0=x)))["out:0"], x)


def test_a_message_that_unpacks_to_more_than_the_limit_is_refused():
    bomb = request(in__0=np.zeros((8 << 20, 2), np.float32))
    with serving(echo(), max_message_bytes=1 << 20) as server, channel(server, max_send_message_length=-1) as line:
        predict = stub(line, "Predict")
        assert status(predict, bomb, compression=grpc.Compression.Gzip)[0] == "RESOURCE_EXHAUSTED"
        assert len(gzip.compress(bomb.SerializeToString())) < 1 << 20
        assert health(line) == "SERVING"


def test_a_small_message_that_claims_a_large_tensor_is_refused():
    asked = request()
    asked.inputs["in:0"].CopyFrom(tensors.to_proto(np.float32([0.0])))
    asked.inputs["in:0"].tensor_shape.Clear()
    for size in (1 << 30, 2):
        asked.inputs["in:0"].tensor_shape.dim.add(size=size)
    with serving(echo()) as server, channel(server) as line:
        code, text = status(stub(line, "Predict"), asked)
    assert (code, "larger than" in text) == ("INVALID_ARGUMENT", True)


def test_a_long_text_is_cut():
    with serving(echo()) as server, channel(server) as line:
        _, text = status(stub(line, "Predict"), request(**{"n" * 100_000: PAIR}))
    assert len(text) == 1000


class SlowCaller:
    """HTTP/2 by hand: opens calls and sends nothing of their messages, or only the first bytes."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.sendall(PREFACE + self._frame(4, 0, 0, b""))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def _frame(self, kind, flags, stream, payload):
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    def call(self, stream, path=PREDICT, body=b""):
        def text(value):
            return bytes([len(value)]) + value.encode()

        headers = b"".join(
            b"\x00" + text(name) + text(value)
            for name, value in (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", "localhost"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            )
        )
        data = self._frame(0, 0, stream, body) if body else b""
        self.socket.sendall(self._frame(1, 4, stream, headers) + data)


def test_callers_that_send_no_message_keep_nobody_out(held):
    held.go.set()
    limits = {"max_concurrent": 2, "max_queue": 6}
    with ExitStack() as closing, serving(held.servable, **limits) as server, channel(server) as line:
        callers = [closing.enter_context(SlowCaller(server.port)) for _ in range(4)]
        for caller in callers:
            for i in range(20):
                caller.call(6 * i + 1)
                caller.call(6 * i + 3, "/grpc.health.v1.Health/Check", b"\x00\x00")
                caller.call(6 * i + 5, "/grpc.health.v1.Health/Watch")
        deadline = time.monotonic() + 20
        while len(server._calls) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(5):
            assert health(line) == "SERVING"

        def refused():
            try:
                stub(line, "Predict")(request(in__0=PAIR), timeout=20)
            except grpc.RpcError as error:
                return error.code().name
            return None

        while (code := refused()) is not None:  # whoever took longer than a second loses a place
            assert code == "RESOURCE_EXHAUSTED"
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_message_that_does_not_come_in_time_is_given_up():
    with serving(echo(), receive_s=0.3) as server, SlowCaller(server.port) as caller:
        caller.call(1)
        caller.call(3, body=b"\x00\x00\x00\x10\x00abc")
        deadline = time.monotonic() + 20
        while len(server._calls) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        while len(server._calls):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_five_hundred_connections_are_answered():
    answers, refused = [], []

    def one(server):
        with channel(server, use_local_subchannel_pool=1) as line:
            try:
                answers.append(arrays(stub(line, "Predict")(request(in__0=PAIR), timeout=60))["out:0"].tolist())
            except grpc.RpcError as error:
                refused.append(error.code())

    sockets = []
    with serving(echo()) as server, channel(server) as line:
        for _ in range(450):
            sockets.append(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        assert health(line) == "SERVING"
        threads = [threading.Thread(target=one, args=(server,)) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert health(line) == "SERVING"
        for opened in sockets:
            opened.close()
    assert set(refused) <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert answers == [PAIR.tolist()] * (50 - len(refused))
    assert len(answers) >= 40


def mutated(data, random_):
    """`data` with some bytes changed, cut, doubled or put elsewhere."""
    changed = bytearray(data)
    for _ in range(random_.randint(1, 6)):
        at, length = random_.randrange(len(changed) or 1), random_.randint(1, 8)
        kind = random_.randrange(5)
        if kind == 0 and changed:
            changed[at] = random_.randrange(256)
        elif kind == 1:
            changed[at : at + length] = b""
        elif kind == 2:
            changed[at:at] = random_.randbytes(length)
        elif kind == 3:
            changed[at:at] = changed[at : at + length]
        elif changed:
            changed[at] ^= 1 << random_.randrange(8)
    return bytes(changed)


def seeds():
    predict = request(x=np.ones((2, 4), np.float32))
    predict.model_spec.name = "linear"
    predict.model_spec.version.value = 1
    predict.output_filter.append("y")
    listed = request()
    listed.inputs["x"].CopyFrom(tensors.to_proto(np.ones((2, 4), np.float32)))
    classify = wire.message("tensorflow.serving.ClassificationRequest")()
    features = classify.input.example_list.examples.add().features
    features.feature["x"].float_list.value.extend([1, 2, 3, 4])
    infer = wire.message("inference.ModelInferRequest")(model_name="linear")
    infer.inputs.add(name="x", datatype="FP32", shape=[2, 4]).contents.fp32_contents.extend(range(8))
    raw = wire.message("inference.ModelInferRequest")()
    raw.inputs.add(name="x", datatype="FP32", shape=[2, 4])
    raw.raw_input_contents.append(np.ones(8, np.float32).tobytes())
    reload = wire.message("tensorflow.serving.ReloadConfigRequest")()
    reload.config.model_config_list.config.add(name="linear", base_path=".")
    metadata = wire.message("tensorflow.serving.GetModelMetadataRequest")(metadata_field=["signature_def"])
    return [
        (PREDICT, predict),
        (PREDICT, listed),
        (f"/{wire.PREDICTION_SERVICE}/Classify", classify),
        (f"/{wire.PREDICTION_SERVICE}/GetModelMetadata", metadata),
        (f"/{wire.MODEL_SERVICE}/HandleReloadConfigRequest", reload),
        (f"/{wire.INFERENCE_SERVICE}/ModelInfer", infer),
        (f"/{wire.INFERENCE_SERVICE}/ModelInfer", raw),
    ]


def outcome(call, data):
    """The code and text that a call ends with, and whether it told its id."""
    try:
        _, done = call.with_call(data, timeout=60)
    except grpc.RpcError as error:
        done = error
    return done.code().name, done.details(), "request_id" in dict(done.initial_metadata())


def mutate(tmp_path, count, caplog):
    """Sends so many mutated requests; each is answered or refused for a reason that is the caller's."""
    random_ = random.Random(20)
    allowed = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "PERMISSION_DENIED"}
    codes = {}
    with serving(linear_servable(tmp_path)) as server, channel(server) as line:
        table = [(line.unary_unary(path), message.SerializeToString()) for path, message in seeds()]
        for call, data in table[:4]:
            call(data)
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for i in range(count):
            call, data = random_.choice(table)
            code, text, has_id = outcome(call, mutated(data, random_))
            assert code in allowed, (code, text)
            assert has_id
            codes[code] = codes.get(code, 0) + 1
            if i % 100 == 0:
                assert health(line) == "SERVING"
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
        for call, data in table[:4]:
            call(data)
    assert codes["OK"] > count // 50
    assert codes["INVALID_ARGUMENT"] > count // 5
    assert grown_kb < 300 << 10
    assert not caplog.records


def test_mutated_requests_are_answered_or_refused(tmp_path, caplog):
    mutate(tmp_path, 600, caplog)


@pytest.mark.slow
def test_ten_thousand_mutated_requests_are_answered_or_refused(tmp_path, caplog):
    mutate(tmp_path, 10_000, caplog)


def test_bytes_that_are_no_http_do_not_disturb():
    with serving(echo()) as server, channel(server) as line:
        for junk in (
            b"GET / HTTP/1.1\r\n\r\n",
            os.urandom(1000),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(300),
        ):
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as opened:
                opened.sendall(junk)
        assert health(line) == "SERVING"


def test_places_are_given_and_given_back():
    admission = Admission(1, 1, receive_s=10)
    with admission.admitted(lambda: None), admission.admitted(lambda: None):
        with pytest.raises(Refusal) as caught, admission.admitted(lambda: None):
            raise AssertionError
        assert (caught.value.code, len(admission)) == ("RESOURCE_EXHAUSTED", 2)
    assert len(admission) == 0


def test_the_slowest_loses_its_place_and_none_that_has_its_message():
    cancelled = []
    admission = Admission(2, 0, receive_s=10, patience_s=0)
    with admission.admitted(lambda: cancelled.append("first")) as first:
        first.received()
        with admission.admitted(lambda: cancelled.append("second")), admission.admitted(lambda: None) as third:
            assert cancelled == ["second"]
            third.received()
            with pytest.raises(Refusal), admission.admitted(lambda: None):
                raise AssertionError


def test_the_limits_have_defaults_that_suit_pictures():
    assert OPEN.max_message_bytes == 64 << 20
    assert ServerConfig().max_concurrent >= 2
