"""The memory of a run: laid out once, used again, never shared by what lives at the same time."""

import itertools
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.kernels import available
from fpgasim.kernels.native import Native
from fpgasim.runtime.arena import Slot, lay_out

from .evaluator import same_bits
from .nets import NETS, Net, feed, tiny_device

NATIVE = [b for b in available().values() if isinstance(b, Native)]


def session_of(model, kernels=None, fmt="msfp16", **options):
    return fs.compile(fs.partition(fs.load(model), tiny_device(), fmt, objective="coverage", **options), kernels)


def test_slots_that_live_together_do_not_overlap_and_room_is_used_again():
    rng = np.random.default_rng(0)
    for _ in range(50):
        slots = []
        for first in range(40):
            shape, dtype = (int(rng.integers(1, 300)),), np.dtype(rng.choice(["f4", "i1", "i2"]))
            slots.append(Slot(shape, dtype, first // 2, first // 2 + int(rng.integers(0, 6))))
        layout = lay_out(slots)
        arrays = layout.arrays()
        assert [(a.shape, a.dtype) for a in arrays] == [(s.shape, s.dtype) for s in slots]
        assert all(a.ctypes.data % 64 == 0 for a in arrays)
        for (a, s), (b, t) in itertools.combinations(zip(arrays, slots, strict=True), 2):
            if s.first <= t.last and t.first <= s.last:
                assert not np.shares_memory(a, b)
        assert layout.size < sum(slot.size for slot in slots) / 2


def test_a_slot_with_a_base_is_its_first_channels():
    kind = np.dtype("f4")
    slots = [Slot((1, 2, 2, 5), kind, 0, 4), Slot((1, 2, 2, 3), kind, 1, 1, 0), Slot((9,), kind, 1, 4)]
    layout = lay_out(slots)
    base, first, other = layout.arrays()
    assert layout.size == slots[0].size + slots[2].size
    assert first.shape == (1, 2, 2, 3)
    assert np.shares_memory(base[..., :3], first)
    assert not np.shares_memory(base[..., 3:], first)
    assert not np.shares_memory(other, base)


def growing_net(also_pooled, ends_in_stages):
    net = Net(22)
    x, results = "x", []
    for i in range(4):
        y = net.op("Relu", net.op("Mul", x, net.random(16 + 8 * i, 1, 1)))
        x = net.op("Concat", x, net.conv(y, 16 + 8 * i, 8, 3, pads=[1, 1, 1, 1]), axis=1)
        if i == 1 and also_pooled:
            results.append(net.op("GlobalAveragePool", x))
    if ends_in_stages:
        x = net.op("Relu", net.op("Mul", x, net.random(48, 1, 1)))
    last = net.op("GlobalAveragePool", x)
    net.op("Concat", last, *results, axis=1, output="result")
    return net.model(("N", 16, 6, 7), "result")


@pytest.mark.parametrize(("also_pooled", "views"), [(False, 3), (True, 2)])
@pytest.mark.parametrize("ends_in_stages", [False, True])
def test_concats_that_grow_lie_in_the_memory_of_the_last(also_pooled, views, ends_in_stages):
    session = session_of(growing_net(also_pooled, ends_in_stages))
    schedule = session._steps[0].runner._schedules[frozenset(["result"])][0]
    assert sum(slot.base is not None for slot in schedule.layout.slots) == views
    kinds = [operation.kind for operation in schedule.operations]
    assert kinds.count("pointwise") == ends_in_stages
    assert kinds.count("matrix") == 4
    x = feed((1, 16, 6, 7))
    names = [node.outputs[0] for node in session.plan.graph.nodes]
    every = session.run({"x": x}, names)  # where each tensor is wanted, none shares its memory
    assert same_bits(session.run({"x": x})["result"], every["result"])


def pointwise_net():
    net = Net(20)
    x = net.op("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Sigmoid", net.op("Mul", x, net.random(16, 1, 1)))
    x = net.op("Concat", net.op("Relu", net.op("Add", x, y)), y, axis=1)
    x = net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    x = net.op("Conv", x, net.random(32, 1, 3, 3), group=32, pads=[1, 1, 1, 1])
    net.op("GlobalAveragePool", x, output="result")
    return net.model(("N", 16, 128, 128), "result")


def matrix_net():
    net = Net(21)
    x = net.conv("x", 16, 64, 3, pads=[1, 1, 1, 1])
    y = net.op("Relu", net.conv(x, 64, 32))
    x = net.op("Add", net.conv(y, 32, 64, 3, pads=[1, 1, 1, 1]), net.conv(x, 64, 64))
    net.op("MaxPool", net.op("Relu", x), kernel_shape=[4, 4], strides=[4, 4], output="result")
    return net.model(("N", 16, 96, 96), "result")


CASES = [
    *((pointwise_net, kernels) for kernels in NATIVE),
    *((matrix_net, kernels) for kernels in NATIVE),
]


@pytest.mark.parametrize("fmt", ["msfp16", "mxfp8_e4m3"])
@pytest.mark.parametrize(("net", "kernels"), CASES, ids=lambda v: getattr(v, "__name__", None) or v.name)
def test_a_run_after_the_first_takes_no_large_memory(net, kernels, fmt):
    session = session_of(net(), kernels, fmt, accumulator="fp32")
    x = feed(session.plan.graph.inputs[0].shape)
    session.run({"x": x})
    largest = max(slot.size for slot in session._steps[0].runner._schedules[frozenset(["result"])][0].layout.slots)
    assert largest > 500_000
    tracemalloc.start()
    result = session.run({"x": x})["result"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000 + result.nbytes


def test_an_arena_is_smaller_than_its_arrays_and_serves_run_after_run():
    session = session_of(NETS["residual"]())
    runner = session._steps[0].runner
    x = feed((1, 3, 13, 13))
    ((schedule, idle),) = runner._schedules.values()
    assert idle == []
    session.run({"x": x})
    (frame,) = idle
    assert schedule.layout.size < sum(slot.size for slot in schedule.layout.slots)
    session.run({"x": x})
    assert idle == [frame]


def test_the_large_arena_of_a_batch_is_given_back(monkeypatch):
    session = session_of(NETS["residual"]())
    ((schedule, idle),) = session._steps[0].runner._schedules.values()
    monkeypatch.setattr("fpgasim.runtime.fpga.KEPT_BYTES", schedule.layout.size - 1)
    session.run({"x": feed((1, 3, 13, 13))})
    assert idle == []


def test_runs_at_the_same_time_have_arenas_of_their_own():
    session = session_of(NETS["residual"]())
    inputs = [feed((1, 3, 13, 13), seed=seed) for seed in range(12)]
    alone = [session.run({"x": x})["logits"] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: session.run({"x": x})["logits"], inputs * 4))
    assert all(same_bits(a, b) for a, b in zip(together, alone * 4, strict=True))
    (_, idle) = next(iter(session._steps[0].runner._schedules.values()))
    arenas = [id(frame) for frame in idle]
    assert len(set(arenas)) == len(arenas), "an arena was given back twice"
    assert arenas, "every arena was lost"
    assert len(arenas) <= 4, "more arenas than runs at a time"
    session.run({"x": inputs[0]})
    assert sorted(id(frame) for frame in idle) == sorted(arenas), "a run alone needs no new arena"


def test_schedules_for_inner_tensors_are_limited_and_right_whatever_was_asked_before():
    session = session_of(NETS["gates"]())
    x = feed((1, 4, 5, 6))
    names = [node.outputs[0] for node in session.plan.graph.nodes]
    expected = session.run({"x": x}, names)
    for name in names:
        assert same_bits(session.run({"x": x}, [name])[name], expected[name])
    assert len(session._steps[0].runner._schedules) <= 6
    assert same_bits(session.run({"x": x})["result"], expected["result"])


def test_what_the_caller_does_with_results_and_feeds_reaches_no_later_run():
    session = session_of(NETS["upsampling"]())
    x = feed((1, 3, 4, 6))
    first = session.run({"x": x}, ["result", "x"])
    kept = first["result"].copy()
    first["result"][:] = np.nan
    assert same_bits(session.run({"x": x})["result"], kept)
