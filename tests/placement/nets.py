"""Small ONNX networks with seeded weights."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper, shape_inference

import fpgasim as fs


class Net:
    """An ONNX graph made operator by operator; every method returns the name of the tensor it made."""

    def __init__(self, shape=("N", 16, 8, 8), dtype=TensorProto.FLOAT):
        self.rng = np.random.default_rng(0)
        self.inputs = [helper.make_tensor_value_info("x", dtype, shape)]
        self.nodes, self.constants = [], []

    def constant(self, value):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weights(self, *shape):
        return self.constant(self.rng.normal(0, 0.1, shape).astype(np.float32))

    def op(self, op_type, *inputs, outputs=None, **attributes):
        name = f"{op_type.lower()}{len(self.nodes)}"
        made = outputs or [f"{name}_out"]
        self.nodes.append(helper.make_node(op_type, list(inputs), made, name=name, **attributes))
        return made[0]

    def conv(self, x, inputs, outputs, kernel=3, **attributes):
        pads = [kernel // 2] * 4
        return self.op(
            "Conv", x, self.weights(outputs, inputs, kernel, kernel), self.weights(outputs), pads=pads, **attributes
        )

    def graph(self, *outputs):
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, infos, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        return fs.load(shape_inference.infer_shapes(model))


def classifier(channels=64, size=32, *, softmax=True):
    """Stem, a residual block, pooling, a dense layer, Softmax: the shape of a real classifier, large enough to pay."""
    net = Net(("N", 3, size, size))
    x = net.op("Relu", net.conv("x", 3, channels))
    y = net.op("Relu", net.conv(x, channels, channels))
    x = net.op("Relu", net.op("Add", net.conv(y, channels, channels), x))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    x = net.op("Gemm", x, net.weights(channels, 10), net.weights(10))
    return net.graph(net.op("Softmax", x) if softmax else x)


def sandwich():
    """Two convolutions around an operator that the engine does not have."""
    net = Net(("N", 64, 16, 16))
    x = net.op("Relu", net.conv("x", 64, 64))
    x = net.op("LRN", x, size=5)
    return net.graph(net.op("Relu", net.conv(x, 64, 64)))
