"""Layers leave blocks where the matrix unit reads them, and numbers only where somebody reads numbers."""

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.kernels import available
from fpgasim.kernels.native import Native

from .evaluator import same_bits
from .nets import NETS, Net, feed, tiny_device

ROOMY = [b for b in available().values() if isinstance(b, Native) and b.bytes_convolution.there]


def session_of(model, kernels, fmt="msfp16", **options):
    return fs.compile(fs.partition(fs.load(model), tiny_device(), fmt, objective="coverage", **options), kernels)


def slots_of(session):
    """How many tensors lie in blocks and how many in numbers."""
    kinds = [slot.dtype for slot in session._steps[0].runner._schedules[frozenset(["result"])][0].layout.slots]
    return kinds.count(np.uint8), kinds.count(np.float32)


def bottleneck(also_pooled, stride):
    """A block of three convolutions with a projection; the first one may be pooled, too."""
    net = Net(30)
    x = net.conv("x", 16, 24)
    a = net.op("Relu", net.conv(x, 24, 16))
    b = net.op("Relu", net.conv(a, 16, 16, 3, pads=[1, 1, 1, 1], strides=[stride, stride]))
    y = net.op("Relu", net.op("Add", net.conv(b, 16, 40), net.conv(x, 24, 40, strides=[stride, stride])))
    result = net.op("GlobalAveragePool", y)
    more = [net.op("GlobalAveragePool", a)] if also_pooled else []
    net.op("Concat", result, *more, axis=1, output="result")
    return net.model(("N", 16, 8, 9), "result")


@pytest.mark.parametrize("kernels", ROOMY, ids=lambda k: k.name)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("also_pooled", "numbers"), [(False, 4), (True, 7)])
def test_numbers_are_kept_only_for_those_who_read_them(kernels, stride, also_pooled, numbers):
    session = session_of(bottleneck(also_pooled, stride), kernels, accumulator="fp32")
    x = feed((1, 16, 8, 9))
    names = [node.outputs[0] for node in session.plan.graph.nodes]
    assert same_bits(session.run({"x": x})["result"], session.run({"x": x}, names)["result"])
    assert slots_of(session) == (3, numbers)  # blocks of the first three, numbers of the rest


@pytest.mark.parametrize("kernels", ROOMY, ids=lambda k: k.name)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("fmt", ["msfp16", "fp13agx"])
def test_what_is_left_in_blocks_changes_no_bit(kernels, net, fmt):
    session = session_of(NETS[net](), kernels, fmt, accumulator="fp32")
    x = feed([2 if isinstance(d, str) else d for d in session.inputs[0].shape])
    names = [node.outputs[0] for node in session.plan.graph.nodes]
    asked = session.run({"x": x}, names)  # every tensor in numbers, too
    assert all(same_bits(result, asked[name]) for name, result in session.run({"x": x}).items())


def test_saturations_are_counted_whether_numbers_are_kept_or_not():
    net = Net(31)
    x = net.op("Relu", net.conv("x", 16, 32, 3, pads=[1, 1, 1, 1]))
    net.conv(x, 32, 8, 3, pads=[1, 1, 1, 1])
    net.nodes[-1].output[0] = "result"
    model = net.model((1, 16, 6, 7), "result")
    counts = []
    for kernels in available().values():
        session = session_of(model, kernels)
        session.run({"x": feed((1, 16, 6, 7)) * np.float32(3e4)})
        counts.append(dict(session.report().saturations))
    assert counts[0]
    assert all(count == counts[0] for count in counts)
