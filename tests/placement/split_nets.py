"""Networks that a plan has to split: operators the engine lacks between convolutions, edges around segments."""

import numpy as np
from onnx import TensorProto, helper

import fpgasim as fs

from .nets import Net


def reflecting(times=3, channels=64, size=32):
    """Convolutions with a mirrored border before each: the engine has no Pad that mirrors."""
    net = Net(("N", channels, size, size))
    x = "x"
    for i in range(times):
        pads = net.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        x = net.op("Conv", x, net.weights(channels, channels, 3, 3), net.weights(channels), pads=[1] * 4)
        x = net.op("Pad", net.op("Relu", x), pads, mode="reflect", outputs=[f"mirrored{i}"])
        x = net.op("Relu", net.op("Conv", x, net.weights(channels, channels, 3, 3), net.weights(channels)))
    return net.graph(x)


def detector(channels=64, size=32):
    """A backbone with a head at each of three scales, the first behind an operator that the engine lacks."""
    net = Net(("N", 3, size, size))
    x = net.op("Relu", net.conv("x", 3, channels))
    scales = []
    for _ in range(3):
        x = net.op("Relu", net.conv(x, channels, channels))
        scales.append(x)
        x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    scales[0] = net.op("Mul", net.op("LpNormalization", scales[0], axis=1, p=2), net.weights(1, channels, 1, 1))
    heads = [net.op("Transpose", net.conv(y, channels, 24), perm=[0, 2, 3, 1]) for y in scales]
    return net.graph(*heads)


def bridged(channels=64, size=32):
    """CPU nodes in a row with the FPGA between, and edges that pass both kinds by."""
    net = Net(("N", channels, size, size))
    a = net.op("Relu", net.conv("x", channels, channels))
    b = net.op("LRN", a, size=5)
    c = net.op("Add", net.conv(b, channels, channels), a)
    d = net.op("Add", net.op("LRN", c, size=5), b)
    e = net.op("Add", net.conv(d, channels, channels), a)
    return net.graph(net.op("Add", e, c), b)


def branching(channels=64, size=32):
    """Control flow whose bodies read what the FPGA makes by name."""
    net = Net(("N", channels, size, size))
    a = net.op("Relu", net.conv("x", channels, channels))
    least = net.constant(np.float32(0))
    mean = net.op("ReduceMean", a, keepdims=0)
    body = [helper.make_node(kind, [a], ["chosen"], name=f"inner{kind}") for kind in ("Sin", "Cos")]
    value = [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)]
    then, other = (helper.make_graph([node], f"when{i}", [], value) for i, node in enumerate(body))
    b = net.op("If", net.op("Greater", mean, least), then_branch=then, else_branch=other)
    return net.graph(net.op("Relu", net.conv(b, channels, channels)))


def many_ways():
    """Each of the networks of this file, by name."""
    return {build.__name__: build() for build in (reflecting, detector, bridged, branching)}


def plan_of(graph, **options):
    return fs.partition(graph, "bw_a10", "bw_1s5e5m", **options)
