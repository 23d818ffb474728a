"""Plans as ONNX files with a model-local function for each FPGA segment."""

import json

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest

import fpgasim as fs
from fpgasim.errors import InputError, ModelError
from fpgasim.graph import saving

from . import split_nets
from .nets import Net, classifier
from .split_nets import plan_of

NETWORKS = {"classifier": classifier(), **split_nets.many_ways()}
PLANS = {name: plan_of(graph, objective="coverage") for name, graph in NETWORKS.items()}


@pytest.fixture(params=PLANS.values(), ids=PLANS)
def plan(request):
    return request.param


@pytest.fixture
def file(plan, tmp_path):
    plan.export(tmp_path / "split.onnx")
    return tmp_path / "split.onnx"


def on_onnx_runtime(model, feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def feeds_of(graph):
    rng = np.random.default_rng(1)
    return {t.name: rng.standard_normal(t.shape).astype(t.dtype) for t in graph.inputs}


def same_bits(ours, theirs):
    return [a.tobytes() for a in ours] == [b.tobytes() for b in theirs]


def test_onnx_runtime_computes_the_same_bits_from_the_export_as_from_the_network(plan, file):
    feeds = feeds_of(plan.graph)
    expected = on_onnx_runtime(plan.graph.to_proto().SerializeToString(), feeds)
    assert same_bits(on_onnx_runtime(str(file), feeds), expected)


def test_the_reference_evaluator_computes_the_same_bits_from_the_export_as_from_the_network(plan, file):
    feeds = feeds_of(plan.graph)
    expected = onnx.reference.ReferenceEvaluator(plan.graph.to_proto()).run(None, feeds)
    assert same_bits(onnx.reference.ReferenceEvaluator(str(file)).run(None, feeds), expected)


def test_the_checker_has_no_complaint_about_the_export(file):
    onnx.checker.check_model(str(file), full_check=True)


def test_the_export_loads_as_the_same_network_and_gets_an_equal_plan(plan, file):
    graph = fs.load(file)
    assert graph.fingerprint() == plan.graph.fingerprint()
    assert plan_of(graph, objective="coverage") == plan_of(plan.graph, objective="coverage")


def test_each_fpga_segment_is_a_function_of_its_nodes_and_the_rest_stays_in_the_graph(plan, file):
    model = onnx.load(file)
    segments = [segment for segment in plan.segments if segment.kind == "fpga"]
    assert [function.name for function in model.functions] == [f"fpga{i}" for i in range(len(segments))]
    for function, segment in zip(model.functions, segments, strict=True):
        assert sorted(node.name for node in function.node) == sorted(segment.nodes)
        assert tuple(function.output) == segment.outputs
        assert set(segment.inputs) <= set(function.input)
    on_cpu = {name for name, side in plan.assignment.items() if side == "cpu"}
    assert {node.name for node in model.graph.node if node.domain != "fpgasim"} == on_cpu
    assert [node.op_type for node in model.graph.node if node.domain == "fpgasim"] == [f.name for f in model.functions]


def test_every_node_is_annotated_with_its_segment_or_the_cpu(file):
    model = onnx.load(file)
    for node in model.graph.node:
        called = node.op_type if node.domain == "fpgasim" else "cpu"
        assert {p.key: p.value for p in node.metadata_props}["layer_ann"] == called
    for function in model.functions:
        for holder in (function, *function.node):
            assert {p.key: p.value for p in holder.metadata_props}["layer_ann"] == function.name


def test_the_export_says_what_plan_it_is_of(plan, file):
    facts = json.loads({p.key: p.value for p in onnx.load(file).metadata_props}["fpgasim.plan"])
    assert facts["device"] == "bw_a10"
    assert facts["format"] == "bw_1s5e5m"
    assert facts["objective_s"] == plan.objective_s


def test_onnx_runtime_takes_the_annotations_as_layer_assignment(plan, file, capfd):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # it has no execution provider for an FPGA, and says so
    options.add_session_config_entry("session.layer_assignment_settings", "fpga(fpga); cpu(=cpu)")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feeds = feeds_of(plan.graph)
    assert same_bits(session.run(None, feeds), on_onnx_runtime(str(file), feeds))


def test_a_plan_without_fpga_segments_exports_the_network_alone(tmp_path):
    net = Net()
    plan = plan_of(net.graph(net.op("Softmax", "x")))
    plan.export(tmp_path / "cpu.onnx")
    model = onnx.load(tmp_path / "cpu.onnx")
    assert not model.functions
    assert [opset.domain for opset in model.opset_import] == [""]
    assert fs.load(tmp_path / "cpu.onnx").fingerprint() == plan.graph.fingerprint()


def test_a_node_that_has_the_name_of_a_segment_keeps_it(tmp_path):
    net = Net()
    net.op("Relu", net.conv("x", 16, 16))
    for node in net.nodes:
        node.name = {"Conv": "fpga0", "Relu": "fpga0_"}[node.op_type]
    plan = plan_of(net.graph(net.nodes[-1].output[0]), objective="coverage")
    plan.export(tmp_path / "named.onnx")
    assert fs.load(tmp_path / "named.onnx").fingerprint() == plan.graph.fingerprint()


def test_weights_too_big_for_protobuf_go_to_a_file_beside_it(tmp_path, monkeypatch):
    plan = PLANS["detector"]
    feeds = feeds_of(plan.graph)
    expected = on_onnx_runtime(plan.graph.to_proto().SerializeToString(), feeds)
    monkeypatch.setattr(saving, "INLINE_LIMIT_BYTES", 10_000)
    path = tmp_path / "big.onnx"
    plan.export(path)
    assert path.stat().st_size < 30_000 < (tmp_path / "big.onnx.data").stat().st_size
    onnx.checker.check_model(str(path))
    assert fs.load(path).fingerprint() == plan.graph.fingerprint()
    assert same_bits(on_onnx_runtime(str(path), feeds), expected)


def test_the_bound_shapes_are_exported(tmp_path):
    plan = plan_of(NETWORKS["classifier"], dims={"N": 3})
    plan.export(tmp_path / "three.onnx")
    assert fs.load(tmp_path / "three.onnx").inputs[0].shape == (3, 3, 32, 32)


def test_a_path_that_cannot_be_written_is_a_clear_error(tmp_path):
    plan = plan_of(NETWORKS["classifier"])
    with pytest.raises(ModelError, match="cannot write"):
        plan.export(tmp_path / "nowhere" / "split.onnx")
    with pytest.raises(InputError, match="path=3 is no path"):
        plan.export(3)
    assert not list(tmp_path.iterdir())


def test_places_that_are_no_places_are_ignored_on_loading(tmp_path):
    plan = plan_of(NETWORKS["bridged"], objective="coverage")
    plan.export(tmp_path / "split.onnx")
    model = onnx.load(tmp_path / "split.onnx")
    for entry in model.functions[0].node[0].metadata_props:
        entry.value = "first"
    graph = fs.load(model)
    assert sorted(node.name for node in graph.nodes) == sorted(node.name for node in plan.graph.nodes)
