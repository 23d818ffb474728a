"""The classic topologies that ship with the onnx package, whole: loaded, placed, timed, computed."""

from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import onnxruntime
import pytest

import fpgasim as fs

FOLDER = Path(onnx.backend.test.__file__).parent / "data" / "light"
#: Multiply-accumulates of each, in millions, as `Graph.macs` counts them (padded positions included).
MACS = {
    "bvlc_alexnet": 655,
    "densenet121": 2834,
    "inception_v1": 1432,
    "inception_v2": 2019,
    "resnet50": 4089,
    "shufflenet": 125,
    "squeezenet": 349,
    "vgg19": 19632,
    "zfnet512": 1482,
}
#: Norm-wise error of the logits that a format may cause over a whole network; docs/numbers.md gives the reasons.
BOUNDS = {"fp32": 1e-5, "msfp16": 0.05, "bw_1s5e5m": 0.2}


def seeded(name: str) -> fs.Graph:
    return fs.load(fs.zoo.seed_weights(onnx.load(FOLDER / f"light_{name}.onnx")))


def feeds(graph: fs.Graph) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {tensor.name: generator.standard_normal(tensor.shape).astype(np.float32) for tensor in graph.inputs}


def logits_name(graph: fs.Graph) -> str:
    """The network's output before a softmax, which would hide differences."""
    last = graph.producer(graph.outputs[0].name)
    assert last is not None
    return last.inputs[0] if last.op_type == "Softmax" else graph.outputs[0].name


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", MACS)
def test_a_topology_loads_partitions_and_times(name):
    graph = fs.load(FOLDER / f"light_{name}.onnx")
    plan = fs.partition(graph, "bw_a10", "bw_1s5e5m", objective="coverage")
    timing = fs.compile(plan).timing()

    assert round(sum(graph.macs(node) for node in graph.nodes) / 1e6) == MACS[name]
    assert plan.fpga_mac_share == 1.0
    peak = plan.device.macs_per_cycle
    assert timing.cycles > sum(graph.macs(node) for node in graph.nodes) / peak
    on_cpu = [decision for decision in plan.decisions if decision.device == "cpu"]
    assert all(decision.code.startswith("unsupported") for decision in on_cpu)


@pytest.mark.parametrize("format", BOUNDS)
@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_small_networks_compute_what_onnx_runtime_computes(name, format):
    check_values(name, format)


@pytest.mark.slow
@pytest.mark.parametrize("format", BOUNDS)
@pytest.mark.parametrize("name", ["densenet121", "inception_v1", "resnet50"])
def test_large_networks_compute_what_onnx_runtime_computes(name, format):
    check_values(name, format)


def check_values(name: str, format: str) -> None:
    graph = seeded(name)
    target = logits_name(graph)
    inputs = feeds(graph)
    part = graph.extract([tensor.name for tensor in graph.inputs], [target])
    session = onnxruntime.InferenceSession(part.to_proto().SerializeToString())
    (expected,) = session.run([target], inputs)
    plan = fs.partition(graph, "bw_a10", format, objective="coverage")
    got = fs.compile(plan).run(inputs, [target])[target]
    assert relative_error(got, expected) < BOUNDS[format]
