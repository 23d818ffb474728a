"""The threads of a session: no more than asked for."""

import os

import numpy as np
import pytest

import fpgasim as fs

from .nets import Net, tiny_device

PIECES = 4


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_starts_no_thread_too_many(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPGASIM_NUM_THREADS", str(threads))
    net, x = Net(5), "x"
    for i in range(PIECES):  # each Softmax is a piece for ONNX Runtime, between segments of the engine
        x = net.op("Softmax", net.conv(x, 16, 16, 3, pads=[1, 1, 1, 1]), axis=1, output="result" if i == 3 else None)
    graph = fs.load(net.model((1, 16, 64, 64), "result"))
    feeds = {"x": np.ones((1, 16, 64, 64), np.float32)}
    plan = fs.partition(graph, tiny_device(), "msfp16", objective="coverage")
    fs.compile(plan).run(feeds)  # libraries start threads of their own when they are first imported
    before = len(os.listdir("/proc/self/task"))
    session = fs.compile(plan)
    session.run(feeds)
    made = len(os.listdir("/proc/self/task")) - before
    assert made <= (threads - 1) * (PIECES + 1)  # the caller's thread works too
