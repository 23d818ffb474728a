"""`fpgasim serve` as a process: the line it prints, signals, keys and certificates by files, and what it refuses."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from fpgasim.cli import main
from fpgasim.cli.inputs import checkpoint_of
from fpgasim.service import auth, servable

from .calling import KEY, KEY2, WEIGHTS, arrays, bearer, health, linear, request, status, stub
from .small import picture, strings

X = np.float32([[1, 2, 3, 4]])
LINE = re.compile(r"SERVING (\S+) on 127\.0\.0\.1:(\d+) \(([^)]*)\)(.*)\n")


class Process:
    """A running `fpgasim serve`; `name`, `port`, `facts` and `more` are of the line it printed."""

    def __init__(self, process, errors):
        self.process, self._errors = process, errors
        line = process.stdout.readline()
        found = LINE.fullmatch(line)
        assert found, (line, self.errors())
        self.name, self.port, self.facts, self.more = found[1], int(found[2]), found[3], found[4]

    def errors(self):
        return self._errors.read_text()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def serve(tmp_path, *options, environment=None):
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "fpgasim", "serve", *map(str, options), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield Process(process, errors)
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


@pytest.fixture
def model(tmp_path):
    return linear(tmp_path / "linear.onnx")


@contextmanager
def opened(server, root=None):
    target = f"127.0.0.1:{server.port}"
    made = grpc.insecure_channel(target) if root is None else grpc.secure_channel(target, root)
    with made as channel:
        yield channel


@pytest.mark.slow
def test_it_says_when_it_serves_and_ends_well_when_told_to(tmp_path, model):
    with serve(tmp_path, model, "--name", "net", "--rest-port", "0", "--metrics-port", "0") as server:
        assert (server.name, server.facts) == ("net", "plain, open")
        assert re.fullmatch(r", rest on 127\.0\.0\.1:\d+, metrics on 127\.0\.0\.1:\d+", server.more)
        with opened(server) as line:
            assert health(line) == "SERVING"
            np.testing.assert_array_equal(arrays(stub(line, "Predict")(request(images=X)))["output_alias"], X @ WEIGHTS)
        assert server.end() == 0
        assert server.errors() == ""


@pytest.mark.slow
def test_keys_come_by_the_environment_and_calls_in_flight_are_answered_at_the_end(tmp_path, model):
    keys = {"FPGASIM_AUTH_KEY": KEY, "FPGASIM_AUTH_KEY2": KEY2}
    failed, answered, told = [], [0], threading.Event()

    def load(line):
        predict = stub(line, "Predict")
        while True:
            try:
                predict(request(x=X), metadata=bearer(KEY2), timeout=30)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or not told.is_set():
                    failed.append(error)
                return
            answered[0] += 1

    with serve(tmp_path, model, "--audit-log", tmp_path / "audit", environment=keys) as server, opened(server) as line:
        assert server.facts == "plain, key"
        assert status(stub(line, "Predict"), request(x=X))[0] == "UNAUTHENTICATED"
        thread = threading.Thread(target=load, args=(line,))
        thread.start()
        while answered[0] < 20 and not failed:
            time.sleep(0.01)
        told.set()
        assert server.end() == 0
        thread.join()
        assert '"event": "refused"' in (tmp_path / "audit").read_text()
        assert KEY not in server.errors() + (tmp_path / "audit").read_text()
    assert not failed


@pytest.mark.slow
def test_keys_and_certificates_in_files_are_read_anew_at_a_signal(tmp_path, model):
    file, folder = tmp_path / "keys", tmp_path / "tls"
    auth.write_keys(file, KEY, None)
    with serve(tmp_path, model, "--keys-file", file, "--self-signed", folder) as server:
        assert server.facts == "tls, key"
        assert (folder / "server.key").stat().st_mode & 0o77 == 0
        root = grpc.ssl_channel_credentials((folder / "server.pem").read_bytes())
        with opened(server, root) as line:
            predict = stub(line, "Predict")
            predict(request(x=X), metadata=bearer(KEY))
            auth.write_keys(file, KEY2, None)
            server.process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 10
            while status_of(predict, KEY2) != "OK":
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert status_of(predict, KEY) == "UNAUTHENTICATED"
        assert server.end(signal.SIGINT) == 0


def status_of(predict, key):
    try:
        predict(request(x=X), metadata=bearer(key), timeout=20)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


@pytest.mark.slow
def test_pretrained_weights_are_those_of_this_machine(tmp_path):
    data = picture(size=(60, 50), format="JPEG")
    with serve(tmp_path, "efficientnet_lite0", "--weights", "pretrained", "--format", "msfp16") as server:
        with opened(server) as line:
            scores = arrays(stub(line, "Predict")(request(images=strings(data))))["output_alias"]
        assert server.errors() == ""  # and so nothing of random ones
    weights = checkpoint_of("efficientnet_lite0", "pretrained")
    trained = servable("efficientnet_lite0", weights=weights, format="msfp16")
    np.testing.assert_array_equal(scores, trained.run({"images": strings(data)}).outputs["output_alias"])


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["missing.onnx"], 6, "no model 'missing.onnx'"),
        (["MODEL", "--tls-cert", "a.pem"], 4, "TLS needs both"),
        (["MODEL", "--auth-key2", KEY2], 4, "--auth-key2 is given without --auth-key"),
        (["MODEL", "--auth-key", "short"], 4, "primary key must be 8 to 512"),
        (["MODEL", "--auth-key", KEY, "--keys-file", "keys"], 4, "both given"),
        (["MODEL", "--keys-file", "missing"], 4, "keys file 'missing' cannot be read"),
        (["MODEL", "--self-signed", "tls", "--tls-cert", "a.pem"], 4, "--self-signed and --tls-cert"),
        (["MODEL", "--pace", "quick"], 4, "no pace 'quick'"),
        (["MODEL", "--host", "192.0.2.1"], 14, "of 192.0.2.1 cannot be had"),
        (["MODEL", "--name", "a b"], 4, "'a b'"),
        (["MODEL", "--device", "none"], 4, "no device 'none'"),
        (["MODEL", "--max-batch", "0"], 4, "max_batch=0; at least 1 would do"),
        (["MODEL", "--weights", "pretrained"], 7, "no trained weights of"),
    ],
)
def test_what_it_cannot_do_is_one_line_and_an_exit_code(tmp_path, model, monkeypatch, options, code, says):
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        found = CliRunner().invoke(
            main, ["serve", "--port", "0", *(str(model) if o == "MODEL" else o for o in options)]
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert found.exit_code == code, found.output
    assert says in found.output
    assert "SERVING" not in found.output


def test_help_says_that_keys_in_arguments_are_seen_by_others():
    text = " ".join(CliRunner().invoke(main, ["serve", "--help"]).output.split())
    assert "Other users of this machine see --auth-key in the list of processes" in text
    assert "FPGASIM_AUTH_KEY" in text
