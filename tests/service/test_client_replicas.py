"""What the shipped client loses when one of two servers is killed under load, and what `fpgasim score` prints."""

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
from concurrent import futures

import numpy as np
import pytest
from click.testing import CliRunner

from fpgasim.cli import main
from fpgasim.errors import STATUS, ServiceError
from fpgasim.service import AsyncPredictionClient, PredictionClient, tls

from .calling import KEY, KEY2, WEIGHTS, linear, linear_servable, made, serving, write

X = np.arange(8, dtype=np.float32).reshape(2, 4)
SERVE = (sys.executable, "-c", "from fpgasim.cli import main; main()", "serve")


@contextlib.contextmanager
def served(model, port=0):
    """A server process and its port."""
    command = (*SERVE, str(model), "--port", str(port))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = re.match(r"SERVING linear on 127\.0\.0\.1:(\d+)", process.stdout.readline())
            yield process, int(said[1])
        finally:
            process.kill()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return linear(tmp_path_factory.mktemp("model") / "linear.onnx")


@pytest.mark.slow
def test_a_replica_that_is_killed_loses_no_call_and_is_found_again(model):
    """Calls of threads and of an event loop, before and after the end of one of two servers, and with it back."""
    with contextlib.ExitStack() as stack:
        (first, port), (second, other) = stack.enter_context(served(model)), stack.enter_context(served(model))
        # after the kill and after the return each caller makes so many calls
        killed, back, rest = threading.Event(), threading.Event(), 25

        def right(scores):
            np.testing.assert_array_equal(scores, X @ WEIGHTS)
            return 1

        def caller():
            count = 0
            for event in (killed, back):
                while not event.is_set():
                    count += right(client.score_numpy_array(X))
                count += sum(right(client.score_numpy_array(X)) for _ in range(rest))
            return count

        async def callers():
            async with AsyncPredictionClient("127.0.0.1", port, replicas=[f"127.0.0.1:{other}"]) as twin:
                count = 0
                while not back.is_set():
                    count += sum(right(s) for s in await asyncio.gather(*[twin.score_numpy_array(X) for _ in "12"]))
                return count

        client = stack.enter_context(PredictionClient("127.0.0.1", port, replicas=[f"127.0.0.1:{other}"]))
        threads = stack.enter_context(futures.ThreadPoolExecutor(4))
        stack.callback(killed.set)
        stack.callback(back.set)
        calls = [threads.submit(caller) for _ in range(3)] + [threads.submit(asyncio.run, callers())]
        assert not futures.wait(calls, 1.0).done  # under way
        first.send_signal(signal.SIGKILL)
        first.wait()
        killed.set()
        assert not futures.wait(calls, 1.0).done
        stack.enter_context(served(model, port))
        back.set()
        assert min(call.result(60) for call in calls) > rest
        second.send_signal(signal.SIGKILL)  # now the one that came back answers
        second.wait()
        right(client.score_numpy_array(X))


def score(*arguments):
    return CliRunner().invoke(main, ["score", *map(str, arguments)])


def test_the_command_prints_the_likeliest_classes(tmp_path):
    def classify(feeds):
        return {"scores:0": np.tile(np.float32([0.25, 0, 0.75]), (len(feeds["in:0"]), 1))}

    def imagenet(feeds):
        scores = np.zeros((len(feeds["in:0"]), 1000), np.float32)
        scores[:, 652] = 1
        return {"scores:0": scores}

    from fpgasim.service.steps import TensorSpec

    inputs = (TensorSpec("in:0", np.dtype(object), (None,)),)
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"picture")
    for run, classes in ((classify, 3), (imagenet, 1000)):
        outputs = (TensorSpec("scores:0", np.dtype(np.float32), (None, classes)),)
        with serving(made(run, "pictures", inputs=inputs, outputs=outputs)) as server:
            printed = score(f"127.0.0.1:{server.port}", "--image", path, "--top", 2)
            told = score(f"localhost:{server.port}", "--image", path, "--input-name", "in:0", "--json")
        assert printed.exit_code == told.exit_code == 0
        lines = [line.split() for line in printed.output.splitlines()]
        facts = json.loads(told.output)["outputs"]["scores:0"]
        assert facts["shape"] == [1, classes]
        assert len(facts["values"][0]) == classes
        if classes == 3:
            assert lines == [["class", "score"], ["2", "0.750000"], ["0", "0.250000"]]
            assert [row["index"] for row in facts["classes"]] == [2, 0, 1]
        else:
            assert lines[1] == ["military", "uniform", "1.000000"]
            assert facts["classes"][0] == {"index": 652, "label": "military uniform", "score": 1.0}


def test_the_command_speaks_tls_and_sends_the_key(tmp_path):
    np.save(tmp_path / "x.npy", X)
    chain, key = write(tmp_path, tls.self_signed(["localhost", "127.0.0.1"]))
    with serving(linear_servable(tmp_path), auth_keys=(KEY, KEY2), tls_cert=chain, tls_key=key) as server:
        asked = f"localhost:{server.port}", "--input", f"x={tmp_path / 'x.npy'}", "--ca", chain
        right = score(*asked, "--key", KEY2, "--output", "y")
        wrong = score(*asked)
    assert right.output == "y: float32 (2, 3), from 5.25 to 19.75, mean 11.5\n"
    assert wrong.exit_code == STATUS[ServiceError].exit_code
    assert re.search(r"UNAUTHENTICATED.*\(request \w+\); no access_token was given", wrong.output)


def test_the_command_wants_a_picture_or_arrays(tmp_path):
    assert "Give either --image FILE or --input" in score("localhost:1").output
    one_of_two = score("localhost:1", "--image", __file__, "--client-cert", __file__)
    assert "Give both, --client-cert and --client-key" in one_of_two.output
    assert "does not exist" in score("localhost:1", "--image", tmp_path / "no.jpg").output
