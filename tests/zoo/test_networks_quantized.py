"""The five networks of Azure's service from end to end in the engine's numbers, against ONNX Runtime in float32."""

import numpy as np
import onnx_ir
import onnxruntime
import pytest

import fpgasim as fs
from fpgasim.zoo.building import Drawing, to_model
from fpgasim.zoo.weights import random_weights

FIVE = ("resnet152", "densenet121", "vgg16", "ssd_vgg", "resnet50_slim")
#: Signal over quantization noise that random weights leave at least, in dB: noise grows with depth where nothing
#: normalises, which is VGG and SSD.
FLOOR_DB = {"bw_1s5e5m": 10.0, "msfp16": 24.0}


def noise_db(expected, got):
    expected = expected.astype(np.float64)
    return 10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum())


def run_both(graph, x, format):
    """The plan, and each output's signal over noise in dB."""
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(graph.model).SerializeToString())
    expected = session.run(None, {"input": x})
    plan = fs.partition(graph, "bw_a10", format, objective="coverage")
    got = fs.compile(plan).run({"input": x})
    outputs = [tensor.name for tensor in graph.outputs]
    return plan, [noise_db(array, got[name]) for array, name in zip(expected, outputs, strict=True)]


def on_the_cpu(plan):
    operators = {node.name: node.op_type for node in plan.graph.nodes}
    return {operators[decision.node] for decision in plan.decisions if decision.device == "cpu"}


@pytest.mark.parametrize("format", FLOOR_DB)
def test_a_small_picture_runs_through_all_of_densenet_on_the_fpga(format):
    drawing = Drawing("input", (3, 64, 64))
    outputs = fs.zoo.NETWORKS["densenet121"].draw(drawing)
    model = to_model(drawing, "dense", random_weights(drawing.parameters, 1), ["input"], outputs)
    x = np.random.default_rng(1).standard_normal((1, 3, 64, 64), np.float32)
    plan, noise = run_both(fs.load(model), x, format)
    assert plan.fpga_mac_share == 1
    assert not on_the_cpu(plan)
    assert min(noise) > FLOOR_DB[format]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIVE)
def test_a_network_of_azures_service_runs_quantized(name):
    graph = fs.zoo.load(name)
    pixels = np.random.default_rng(2).integers(0, 256, (32, 32, 3), np.uint8)
    x = fs.zoo.preprocess(name, np.kron(pixels, np.ones((8, 8, 1), np.uint8)))
    for format, floor in FLOOR_DB.items():
        plan, noise = run_both(graph, x, format)
        assert plan.fpga_mac_share == 1
        # the engine has no square root and no other order of axes than its own
        assert on_the_cpu(plan) == ({"LpNormalization", "Transpose", "Reshape"} if name == "ssd_vgg" else set())
        assert min(noise) > floor


@pytest.mark.slow
def test_the_engine_in_float32_makes_an_ssds_numbers_for_a_batch_of_pictures():
    graph = fs.zoo.load("ssd_vgg")
    x = np.random.default_rng(3).standard_normal((2, 3, 300, 300), np.float32)
    _, noise = run_both(graph, x, "fp32")
    assert min(noise) > 50  # what fp16 between layers leaves
