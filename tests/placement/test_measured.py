"""Costs that are measured on this machine: once, kept in a file, their sum that of the whole session."""

import json
import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import fpgasim as fs
from fpgasim.errors import InputError, ModelError
from fpgasim.placement import measuring
from fpgasim.placement.measuring import measured_seconds

from .nets import Net, classifier, sandwich

BW = ("bw_a10", "bw_1s5e5m")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, and one thread."""
    monkeypatch.setenv("FPGASIM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FPGASIM_NUM_THREADS", "1")
    return tmp_path / "cache" / "costs"


@pytest.fixture
def runs(monkeypatch):
    """How often something was measured."""
    counted = []
    measure = measuring._measure
    monkeypatch.setattr(measuring, "_measure", lambda graph: (counted.append(graph.name), measure(graph))[1])
    return counted


def test_every_node_has_a_time_and_their_sum_is_that_of_the_whole(monkeypatch):
    whole = []
    run = measuring._run
    monkeypatch.setattr(measuring, "_run", lambda *a: (whole.append(run(*a)), whole[-1])[1])
    graph = classifier().bind()
    seconds = measured_seconds(graph)
    assert list(seconds) == [node.name for node in graph.nodes]
    assert sum(seconds.values()) == pytest.approx(min(whole[0]))
    assert max(seconds, key=seconds.__getitem__) in ("conv2", "conv4")


def test_what_was_measured_is_measured_once(cache, runs):
    graph = classifier().bind()
    first = measured_seconds(graph)
    assert measured_seconds(classifier().bind()) == first
    assert len(runs) == 1
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    measured_seconds(classifier().bind({"N": 2}))
    assert len(runs) == 2


@pytest.mark.parametrize("threads", ["1", "2"])
def test_another_number_of_threads_or_version_is_measured_anew(runs, monkeypatch, threads):
    graph = sandwich().bind()
    measured_seconds(graph)
    monkeypatch.setenv("FPGASIM_NUM_THREADS", threads)
    measured_seconds(graph)
    assert len(runs) == int(threads)
    monkeypatch.setattr(onnxruntime, "__version__", "99")
    measured_seconds(graph)
    assert len(runs) == int(threads) + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: text.replace('"conv0": ', '"conv0": -'),
        lambda text: text.replace('"conv0": ', '"conv0": NaN, "x": '),
        lambda text: text.replace("conv0", "conv9"),
        lambda text: text.replace('"threads": 1', '"threads": 2'),
        lambda text: "\ufeff" + text,
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_file_is_measured_anew_and_made_whole(cache, runs, damage):
    graph = sandwich().bind()
    measured_seconds(graph)
    (path,) = cache.iterdir()
    path.write_text(damage(path.read_text()))
    seconds = measured_seconds(graph)
    assert len(runs) == 2
    assert json.loads(path.read_text())["seconds"] == seconds
    assert measured_seconds(graph) == seconds
    assert len(runs) == 2


def test_a_place_that_cannot_be_written_keeps_nothing_and_fails_nothing(tmp_path, monkeypatch, runs, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FPGASIM_CACHE_DIR", str(tmp_path / "file"))
    graph = sandwich().bind()
    assert measured_seconds(graph).keys() == measured_seconds(graph).keys()
    assert len(runs) == 2
    assert "measured costs are not kept" in caplog.text


def test_a_plan_by_measured_costs_keeps_them_in_its_file_and_scales_them_for_other_shapes(tmp_path, runs):
    plan = fs.partition(sandwich(), *BW, costs="measured")
    assert plan.options.costs == "measured"
    assert [d.cpu_s for d in plan.decisions] == list(measured_seconds(plan.graph).values())
    plan.save(tmp_path / "plan")
    again = fs.Plan.load(tmp_path / "plan")
    assert again == plan
    larger = again.replan({"x": (3, 64, 16, 16)})
    one, three = (fs.partition(sandwich(), *BW, dims={"N": n}).decisions for n in (1, 3))
    scaled = [d.cpu_s * by.cpu_s / to.cpu_s for d, by, to in zip(plan.decisions, three, one, strict=True)]
    assert [d.cpu_s for d in larger.decisions] == pytest.approx(scaled)
    assert scaled != [d.cpu_s for d in plan.decisions]
    assert len(runs) == 1


def test_the_time_of_a_body_counts_for_the_node_that_has_it():
    net = Net(("N", 16, 8, 8))
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"], name="conv0"),
            helper.make_node("Exp", ["s"], ["s_next"], name="relu"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s_next", TensorProto.FLOAT, None),
        ],
    )
    x = net.op("Sigmoid", net.conv("x", 16, 16))
    trips = net.constant(np.array(50, np.int64))
    y = net.op("Loop", trips, "", x, body=body)
    graph = net.graph(y).bind()
    seconds = measured_seconds(graph)
    loop = next(node.name for node in graph.nodes if node.op_type == "Loop")
    assert seconds.keys() == {node.name for node in graph.nodes}
    assert max(seconds, key=seconds.__getitem__) == loop


def test_inputs_of_any_type_are_made_up():
    for kind in (TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.DOUBLE):
        net = Net(("N", 4), dtype=kind)
        measured_seconds(net.graph(net.op("Cast", "x", to=TensorProto.FLOAT)).bind())


def test_what_cannot_be_fed_or_run_is_refused_in_one_line():
    net = Net(shape=None)
    with pytest.raises(InputError, match="costs='measured' needs the shape of input 'x', which is None"):
        fs.partition(net.graph(net.op("Relu", "x")), *BW, costs="measured")
    net = Net(("N", 4), dtype=TensorProto.INT64)
    reshaped = net.op("Reshape", net.constant(np.ones(3, np.float32)), "x")
    net.inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, [2])]
    with pytest.raises(ModelError, match="graph 'net' cannot be measured on ONNX Runtime: ") as refusal:
        fs.partition(net.graph(reshaped), *BW, costs="measured")
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_resnet50_measured_is_near_what_the_session_takes():
    light = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data", "light", "light_resnet50.onnx")
    plan = fs.partition(fs.load(light), *BW, costs="measured")
    assert 0.005 < plan.all_cpu_s < 1
    assert plan.objective_s < plan.all_cpu_s
