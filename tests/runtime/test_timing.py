"""`session.timing()`: the cost model's figures put together."""

import dataclasses

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.npu.timing import segment_timing, transfer_seconds
from fpgasim.runtime import plan_timing

from .nets import NETS, Net, feed, tiny_device


def plan_of(model, fmt: str = "msfp16", **options):
    return fs.partition(fs.load(model), tiny_device(), fmt, objective="coverage", **options)


def softmax_between():
    net = Net(11)
    x = net.op("LeakyRelu", net.conv("x", 3, 16, 3), output="leaky")
    net.conv(x, 16, 40, bias=False)
    net.nodes[-1].output[0] = "result"
    return net.model((1, 3, 8, 8), "result", "leaky")


def test_timing_puts_segments_transfers_and_cpu_pieces_side_by_side():
    plan = plan_of(softmax_between())
    timing = fs.compile(plan).timing()
    device = plan.device
    assert [segment.phase for segment in timing.segments] == [1, 3]
    assert timing.cycles == sum(segment.timing.cycles for segment in timing.segments)
    assert timing.milliseconds == timing.cycles / 300e6 * 1e3
    # An image of 8·8·3 values is 6 vectors of 32, 6·6·16 are 18, 6·6·40 are 45; two bytes a value.
    moves = [(t.tensor, t.direction, t.payload_bytes) for t in timing.transfers]
    made = plan.graph.nodes[0].outputs[0]
    assert moves == [
        ("x", "to_fpga", 6 * 64),
        (made, "to_cpu", 18 * 64),
        ("leaky", "to_fpga", 18 * 64),
        ("result", "to_cpu", 45 * 64),
    ]
    assert all(t.seconds == transfer_seconds(t.payload_bytes, device) for t in timing.transfers)
    assert [piece.nodes for piece in timing.cpu_pieces] == [(plan.graph.nodes[1].name,)]
    assert timing.cpu_pieces[0].seconds == plan.decisions[1].cpu_s + device.cpu_call_s
    assert timing.launch_ms == pytest.approx(2 * 0.02)
    parts = timing.milliseconds + timing.launch_ms + timing.transfer_ms + timing.cpu_ms
    assert timing.total_ms == pytest.approx(parts)


@pytest.mark.parametrize("net", NETS)
def test_rows_say_what_each_layer_is_and_takes(net):
    plan = plan_of(NETS[net]())
    timing = plan_timing(plan)
    (segment,) = timing.segments
    assert segment.timing == segment_timing(segment.layers, plan.device, plan.numbers)
    assert sorted(name for layer in segment.layers for name in layer.nodes) == sorted(plan.segments[0].nodes)
    for layer, row in segment.rows:
        assert (layer.name, layer.macs, layer.head) == (row.name, row.macs, row.head)
        assert row.compute_cycles >= 0
    assert sum(row.macs for _, row in segment.rows) > 0
    assert 0 < timing.utilization < 1


def test_one_segment_that_is_all_of_the_network_takes_what_its_plan_says():
    plan = plan_of(NETS["residual"]())
    assert plan_timing(plan).total_ms == pytest.approx(plan.objective_s * 1e3, rel=0.05)


def test_timing_does_not_depend_on_weights_or_runs():
    models = [NETS["residual"](), NETS["residual"]()]
    for tensor in models[1].graph.initializer:
        if tensor.data_type == 1:
            values = np.frombuffer(tensor.raw_data, np.float32) * 1.5
            tensor.raw_data = values.astype(np.float32).tobytes()
    first, second = (plan_of(model) for model in models)
    session = fs.compile(first)
    before = session.timing()
    session.run({"x": feed((1, 3, 13, 13))})
    assert session.timing() == before == plan_timing(second)
    assert first.graph.fingerprint() != second.graph.fingerprint()


def test_a_larger_batch_takes_more_cycles_but_loads_its_weights_once():
    one, four = (plan_timing(plan_of(NETS["residual"](), dims={"N": n})) for n in (1, 4))
    assert one.cycles < four.cycles < 4 * one.cycles
    assert one.segments[0].timing.load_bytes == four.segments[0].timing.load_bytes


def test_a_slower_clock_takes_longer_for_its_cycles():
    slow = dataclasses.replace(tiny_device(), clock_hz=100_000_000)
    plan = fs.partition(fs.load(NETS["vgg"]()), slow, "msfp16", objective="coverage")
    timing = plan_timing(plan)
    assert timing.milliseconds == pytest.approx(timing.cycles / 1e5)
