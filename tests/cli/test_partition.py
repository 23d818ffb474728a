"""`fpgasim partition`: every option reaches the library, cost graphs stand alone, bad values are one line."""

import json

import pytest

import fpgasim as fs
from fpgasim.errors import STATUS, InputError, ModelError, PlacementError

INPUT, MODEL, PLACEMENT = (STATUS[cls].exit_code for cls in (InputError, ModelError, PlacementError))

COSTS = {
    "nodes": [
        {"name": "a", "cpu": 1.0, "fpga": 0.1, "weight": 10},
        {"name": "b", "cpu": 0.5, "fpga": None},
        {"name": "c=1", "cpu": 2.0, "fpga": 0.2, "weight": 20},
    ],
    "tensors": [
        {"name": "x", "producer": None, "consumers": ["a"], "to_fpga": 0.05, "to_cpu": 0.05},
        {"name": "t", "producer": "a", "consumers": ["b"], "to_fpga": 0.05, "to_cpu": 0.05},
        {"name": "u", "producer": "b", "consumers": ["c=1"], "to_fpga": 0.05, "to_cpu": 0.05},
        {"name": "y", "producer": "c=1", "consumers": [], "to_fpga": 0.05, "to_cpu": 0.05, "output": True},
    ],
}


@pytest.fixture
def costs(tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(COSTS))
    return path


def test_a_cost_graph_is_placed_without_a_model(fpgasim, costs):
    got = json.loads(fpgasim("partition", "--costs", costs, "--json").stdout)
    solution = fs.placement.solve(COSTS)
    assert got["placement"] == solution.placement == {"a": "fpga", "b": "cpu", "c=1": "fpga"}
    assert got["objective"] == solution.objective == pytest.approx(1.0)
    assert got["lower_bound"] == solution.lower_bound <= got["objective"]
    assert got["gap"] == solution.gap
    assert got["segments"] == [["a"], ["c=1"]]
    assert got["algorithm"] == solution.algorithm
    assert got["pinned"] == []
    assert got["note"] == solution.note
    assert got["seconds"] > 0


def test_every_limit_holds_for_a_cost_graph_too(fpgasim, costs):
    def placed(*options):
        return json.loads(fpgasim("partition", "--costs", costs, "--json", *options).stdout)

    assert placed("--max-segments", 1)["segments"] == [["c=1"]]
    assert placed("--capacity", 15)["segments"] == [["a"]]
    assert placed("--force", "c=1=cpu")["placement"]["c=1"] == "cpu"
    assert placed("--force", "*=cpu")["algorithm"] == "all-cpu"
    assert placed("--residency", "pinned")["pinned"] == ["a", "c=1"]
    assert placed("--algorithm", "greedy")["algorithm"] == "greedy"


def test_a_cost_graph_as_text_shows_sides_and_what_is_proved(fpgasim, costs):
    lines = fpgasim("partition", "--costs", costs).stdout.splitlines()
    assert lines[0].startswith(f"{costs}: 2 of 3 nodes on the FPGA in 2 segments, by ")
    assert lines[1].startswith("objective 1,000.000 ms; no placement takes less than ")
    assert [line.split()[:2] for line in lines[-3:]] == [["a", "fpga"], ["b", "cpu"], ["c=1", "fpga"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "bw_a10"), "--device is for a MODEL; the cost graph"),
        (("--cut-at", "x"), "--cut-at is for a MODEL"),
        (("--save", "plan"), "--save is for a MODEL"),
        (("--no-counterfactuals",), "--counterfactuals is for a MODEL"),
        (("--force", "a"), "--force 'a'; NODE=cpu or NODE=fpga would do"),
        (("--force", "=cpu"), "--force '=cpu'; NODE=cpu or NODE=fpga would do"),
        (("--force", "a=cpu", "--force", "a=fpga"), "--force 'a' is given twice, as 'cpu' and 'fpga'"),
        (("--force", "a=gpu"), "'gpu'; there are cpu, fpga"),
        (("--max-segments", "-1"), "max_segments=-1 must be a whole number"),
        (("--capacity", "nan"), "capacity=nan must be a"),
        (("--time-limit", "-1"), "time_limit=-1.0 must be a"),
        (("--algorithm", "best"), "no algorithm 'best'; there are auto, mincut, frontier, milp, greedy"),
        (("--residency", "cached"), "'cached'; there are streamed, pinned, auto"),
    ],
)
def test_what_does_not_go_with_a_cost_graph_is_named(refused, costs, options, message):
    assert message in refused("partition", "--costs", costs, *options, exit_code=INPUT)


def test_a_cost_graph_that_is_none_is_named(refused, fpgasim, tmp_path):
    (tmp_path / "bad.json").write_text("{")
    assert "not JSON" in refused("partition", "--costs", tmp_path / "bad.json", exit_code=INPUT)
    assert "none.json" in refused("partition", "--costs", tmp_path / "none.json", exit_code=INPUT)
    assert "Give a MODEL, or a cost graph by --costs" in fpgasim("partition", exit_code=2).stderr


def test_the_options_of_a_plan_are_those_of_the_library(fpgasim, model, tmp_path):
    saved = tmp_path / "plan"
    command = ("partition", model, "--force", "conv=cpu", "--max-segments", 1, "--capacity", 1e6, "--dim", "N=2")
    fpgasim(*command, "--cut-at", "pool,flat", "--time-limit", 3, "--algorithm", "milp", "--save", saved)
    expected = fs.partition(
        fs.load(model),
        "bw_a10",
        "bw_1s5e5m",
        algorithm="milp",
        max_segments=1,
        capacity=1e6,
        force={"conv": "cpu"},
        cut_at=["pool", "flat"],
        time_limit=3.0,
        dims={"N": 2},
    )
    assert fs.Plan.load(saved) == expected
    assert expected.graph.inputs[0].shape == (2, 3, 32, 32)


def test_all_that_is_not_on_the_fpga_is_named_where_all_must_be(refused, fpgasim, model):
    message = refused("partition", model, "--require-fpga", exit_code=PLACEMENT)
    assert "1 of 6 nodes cannot be on the FPGA: 'softmax' (unsupported-op: " in message
    got = json.loads(fpgasim("partition", model, "--require-fpga", "--cut-at", "logits", "--json").stdout)
    assert got["plan"]["reasons"] == {"fpga: forced": 5, "cpu: unsupported-op": 1}


def test_costs_are_measured_on_this_machine(fpgasim, model, tmp_path):
    environment = {"FPGASIM_CACHE_DIR": str(tmp_path), "FPGASIM_NUM_THREADS": "1"}
    got = json.loads(fpgasim("partition", model, "--costs", "measured", "--json", env=environment).stdout)
    (kept,) = (tmp_path / "costs").iterdir()
    seconds = json.loads(kept.read_text())["seconds"]
    assert {node["node"]: node["cpu_s"] for node in got["plan"]["nodes"]} == seconds


def test_files_are_written_beside_what_is_printed(fpgasim, model, tmp_path):
    import numpy as np
    import onnxruntime

    options = [("--dot", "plan.dot"), ("--svg", "plan.svg"), ("--export", "split.onnx"), ("--save", "plan")]
    paths = [tmp_path / name for _, name in options]
    arguments = [text for (option, _), path in zip(options, paths, strict=True) for text in (option, path)]
    output = fpgasim("partition", model, "--objective", "coverage", "--no-counterfactuals", *arguments).stdout
    assert output.endswith(f"wrote {', '.join(map(str, paths))}\n")
    assert paths[0].read_text().startswith("digraph")
    assert "<svg" in paths[1].read_text()
    feeds = {"image": np.ones((1, 3, 32, 32), np.float32)}
    before, after = (onnxruntime.InferenceSession(path).run(None, feeds)[0] for path in (model, paths[2]))
    np.testing.assert_array_equal(before, after)
    assert fs.Plan.load(paths[3]).objective_name == "coverage"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-segments", 1), "--max-segments 1: the plan"),
        (("--force", "conv=cpu", "--force", "relu=cpu"), "--force conv=cpu relu=cpu: the plan"),
        (("--require-fpga",), "--require-fpga: the plan"),
        (("--residency", "auto"), "--residency auto: the plan"),
    ],
)
def test_what_a_saved_plan_has_decided_is_not_taken_again(fpgasim, refused, model, tmp_path, options, message):
    fpgasim("partition", model, "--no-counterfactuals", "--save", tmp_path / "plan")
    assert refused("partition", tmp_path / "plan", *options, exit_code=INPUT).startswith(message)


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        (("--costs", "no.json"), "no cost table 'no.json'; there are analytic, measured with a MODEL, and a", INPUT),
        (("--dim", "N"), "--dim 'N'; NAME=SIZE would do", INPUT),
        (("--dim", "N=x"), "--dim N=x: the size must be a whole number from 1 up", INPUT),
        (("--dim", "N=0"), "dimension 'N' is bound to 0", INPUT),
        (("--dim", "M=1"), "no symbolic dimension 'M'; there are N", INPUT),
        (("--cut-at", "nowhere"), "no tensor 'nowhere'", INPUT),
        (("--force", "softmax=fpga"), "'softmax'", PLACEMENT),
        (("--residency", "pinned", "--capacity", "1e12"), "do not stay on 'bw_a10', which holds", INPUT),
        (("--svg", "/nowhere/plan.svg"), "/nowhere/plan.svg", 1),
        (("--export", "/nowhere/split.onnx"), "/nowhere/split.onnx", MODEL),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(refused, model, options, message, code):
    assert message in refused("partition", model, *options, exit_code=code)


def test_a_file_of_costs_does_not_go_with_a_model(refused, model, costs):
    message = refused("partition", model, "--costs", costs, exit_code=INPUT)
    assert message.endswith("have costs; leave MODEL out to place the file's")
