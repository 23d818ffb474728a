"""When a call is answered that takes too long, and when what it computes ends."""

import http.client
import json
import socket
import threading
import time

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.errors import ServiceError
from fpgasim.service import CpuStage, FpgaStage, ModelDefinition, Server, servable
from fpgasim.service.limits import Admission

from .calling import OPEN, Held, arrays, channel, request, serving, status, stub
from .small import PICTURES, featurizer, linear, picture, strings

PAIR = np.float32([[1, 2]])


class Gone(Exception):
    """What `go_on` raises here."""


@pytest.fixture
def held():
    found = Held()
    yield found
    found.go.set()


def test_a_call_that_computes_is_answered_at_the_servers_deadline(held):
    with serving(held.servable, deadline_s=0.3) as server, channel(server) as line:
        start = time.monotonic()
        code, text = status(stub(line, "Predict"), request(in__0=PAIR), timeout=30)
        assert 0.3 <= time.monotonic() - start < 10
        assert (code, text.partition(";")[0]) == (
            "DEADLINE_EXCEEDED",
            "the deadline passed while the call was computed",
        )
        held.go.set()


def test_one_that_waits_is_answered_then_too(held):
    with serving(held.servable, deadline_s=0.3, max_concurrent=1) as server, channel(server) as line:
        first = stub(line, "Predict").future(request(in__0=PAIR))
        assert held.entered.acquire(timeout=30)
        code, text = status(stub(line, "Predict"), request(in__0=PAIR))
        assert (code, text) == ("DEADLINE_EXCEEDED", "the deadline passed while the call waited for its turn")
        assert status(first.result)[0] == "DEADLINE_EXCEEDED"
        held.go.set()


def test_rest_is_answered_at_the_deadline_too(held):
    with serving(held.servable, deadline_s=0.3, rest_port=0) as server:
        host, _, port = server.http["rest"].rpartition(":")
        line = http.client.HTTPConnection(host, int(port), timeout=30)
        line.request("POST", "/v1/models/held:predict", json.dumps({"inputs": PAIR.tolist()}))
        reply = line.getresponse()
        assert (reply.status, b"deadline" in reply.read()) == (504, True)
        line.close()
        held.go.set()


def test_what_nobody_waits_for_keeps_its_turn_until_it_ends_and_then_the_next_runs(held):
    with serving(held.servable, deadline_s=0.5, max_concurrent=1) as server, channel(server) as line:
        predict = stub(line, "Predict")
        assert status(predict, request(in__0=PAIR))[0] == "DEADLINE_EXCEEDED"
        waiting = predict.future(request(in__0=PAIR))
        held.go.set()
        assert arrays(waiting.result())["out:0"].tolist() == PAIR.tolist()


def stopped_after(model, inputs, count):
    """How often `go_on` is asked by a run that it ends at the time `count`."""
    asked = 0

    def go_on():
        nonlocal asked
        asked += 1
        if asked == count:
            raise Gone

    try:
        model.run(inputs, go_on=go_on)
    except Gone:
        return asked
    return -asked


def test_a_run_ends_between_stages_pictures_and_operations():
    definition = ModelDefinition("pictures")
    definition.pipeline += [CpuStage(PICTURES, layout="NCHW"), FpgaStage(featurizer())]
    model = servable(definition)
    inputs = {"images": strings(*[picture()] * 5)}
    all_asked = -stopped_after(model, inputs, 0)
    operations = len(fs.compile(model.plans[0]).profile({"input": np.zeros((1, 3, 8, 8), np.float32)}))
    assert all_asked >= 2 + 5 + operations > 9
    for count in range(1, all_asked + 1):
        assert stopped_after(model, inputs, count) == count
    assert stopped_after(model, inputs, 0) == -all_asked  # nothing is left behind


def test_a_session_gives_the_same_after_a_run_that_ended_early():
    session = fs.compile(fs.partition(featurizer(), "bw_a10", "bw_1s5e5m", objective="coverage"))
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    before, runs = session.run({"input": x}), session.report().runs

    def leave():
        raise Gone

    with pytest.raises(Gone):
        session.run({"input": x}, between=leave)
    assert session.report().runs == runs
    np.testing.assert_array_equal(session.run({"input": x})["features"], before["features"])


class Asking:
    """A servable that computes until it is told that nobody waits."""

    def __init__(self):
        self.entered, self.ended, self.warm = threading.Event(), threading.Event(), False
        self.held = Held("asking")
        self.servable = self.held.servable
        step = self.servable.steps[0]
        run = step.run

        def asking(feeds, machine):
            if self.warm:
                self.entered.set()
                try:
                    while True:
                        machine.go_on()
                        time.sleep(0.005)
                finally:
                    self.ended.set()
            self.warm = True
            return run(feeds, machine)

        object.__setattr__(step, "run", asking)


def test_what_a_caller_of_grpc_left_ends():
    asking = Asking()
    with serving(asking.servable) as server, channel(server) as line:
        call = stub(line, "Predict").future(request(in__0=PAIR))
        assert asking.entered.wait(30)
        call.cancel()
        assert asking.ended.wait(30)


def test_what_a_caller_of_rest_left_ends():
    asking = Asking()
    with serving(asking.servable, rest_port=0) as server:
        host, _, port = server.http["rest"].rpartition(":")
        body = json.dumps({"inputs": PAIR.tolist()}).encode()
        with socket.create_connection((host, int(port)), timeout=20) as line:
            head = f"POST /v1/models/asking:predict HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
            line.sendall(head.encode() + body)
            assert asking.entered.wait(30)
            assert not asking.ended.is_set()
        assert asking.ended.wait(30)


def test_what_passed_its_deadline_ends():
    asking = Asking()
    with serving(asking.servable, deadline_s=0.2) as server, channel(server) as line:
        assert status(stub(line, "Predict"), request(in__0=PAIR))[0] == "DEADLINE_EXCEEDED"
        assert asking.ended.wait(30)


def test_calls_of_known_sizes_do_not_wait_for_the_planning_of_another(monkeypatch):
    model = servable(linear())
    x = np.ones((1, 4), np.float32)
    model.run({"x": x})
    session_type = type(fs.compile(model.plans[0]))
    planning, go_on = threading.Event(), threading.Event()
    timing = session_type.timing

    def slow(self, shapes=None):
        planning.set()
        assert go_on.wait(30)
        return timing(self, shapes)

    monkeypatch.setattr(session_type, "timing", slow)
    other = threading.Thread(target=lambda: model.run({"x": np.ones((7, 4), np.float32)}))
    other.start()
    assert planning.wait(30)
    known = threading.Thread(target=lambda: model.run({"x": x}), daemon=True)
    known.start()
    known.join(20)
    waited = known.is_alive()
    go_on.set()
    other.join()
    assert not waited


def test_a_server_starts_once():
    server = Server({}, OPEN)
    server.start()
    try:
        with pytest.raises(ServiceError, match="has been started before; a new one would do"):
            server.start()
    finally:
        server.drain(0.0)
    with pytest.raises(ServiceError, match="has been started before"):
        server.start()


def test_what_is_known_to_be_quick_is_computed_in_place_and_what_is_not_on_a_thread():
    admission = Admission(running=1, waiting=1, receive_s=30)

    def where(left, work=lambda: None, what="model:1"):
        def compute(_):
            work()
            return threading.current_thread()

        with admission.admitted(lambda: None) as ticket:
            return ticket.compute(compute, time.monotonic() + left, lambda: True, what)

    here = threading.current_thread()
    assert where(60) is not here  # nothing is known of it yet
    assert where(60) is here
    assert where(60, what="model:2") is not here
    where(60, lambda: time.sleep(0.05))
    assert where(20) is not here  # a thousandth of it is less than the longest of late
    assert where(600) is here
