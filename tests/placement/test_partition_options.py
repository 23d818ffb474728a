"""What `partition` can be asked for: limits, weights on the chip, forced nodes, cuts, the FPGA for everything."""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fpgasim as fs
from fpgasim.errors import InputError, PlacementError, UnknownNameError
from fpgasim.npu.timing import on_chip_bytes

from .nets import Net, classifier, sandwich

BW = ("bw_a10", "bw_1s5e5m")
ROOT = Path(__file__).parents[2]


def chain(layers=6, channels=64):
    """Convolutions with an operator between them that the engine does not have."""
    net = Net(("N", channels, 16, 16))
    x = "x"
    for i in range(layers):
        x = net.op("Relu", net.conv(x, channels, channels))
        x = net.op("LRN", x, size=5) if i % 2 else x
    return net.graph(x)


def weights_on_fpga(plan):
    return sum(n.weight for n in plan.cost_graph.nodes if plan.assignment[n.name] == "fpga")


def segments(plan):
    return sum(segment.kind == "fpga" for segment in plan.segments)


def reason(plan, node):
    return next(d for d in plan.decisions if d.node == node)


def free_launches():
    return dataclasses.replace(fs.npu.get_device("bw_a10"), launch_s=0.0, cpu_call_s=0.0)


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_no_more_segments_than_asked_for_and_each_more_is_no_worse(limit):
    graph = chain()
    plan = fs.partition(graph, free_launches(), "bw_1s5e5m", max_segments=limit)
    assert segments(plan) <= limit
    assert plan.lower_bound_s <= plan.objective_s <= plan.all_cpu_s
    looser = fs.partition(graph, free_launches(), "bw_1s5e5m", max_segments=limit + 1)
    assert looser.objective_s <= plan.objective_s * (1 + 1e-9)


def test_a_node_that_a_segment_limit_keeps_off_says_so():
    plan = fs.partition(chain(), free_launches(), "bw_1s5e5m", max_segments=1)
    kept = [d for d in plan.decisions if d.code == "segment-limit"]
    assert kept
    assert all(d.device == "cpu" and d.fpga_s < d.cpu_s for d in kept)
    assert "FPGA segments" in kept[0].message


def test_no_more_weights_than_the_capacity_and_what_is_kept_off_says_so():
    graph = chain()
    free = fs.partition(graph, free_launches(), "bw_1s5e5m")
    capacity = weights_on_fpga(free) // 2
    plan = fs.partition(graph, free_launches(), "bw_1s5e5m", capacity=capacity)
    assert 0 < weights_on_fpga(plan) <= capacity
    kept = [d for d in plan.decisions if d.code == "capacity"]
    assert kept
    assert all(f"exceed {capacity:,.0f}" in d.message for d in kept)
    assert plan.options.capacity == capacity


def test_coverage_under_a_limit_takes_the_most_multiply_accumulates():
    graph = chain(4)
    free = fs.partition(graph, *BW, objective="coverage")
    plan = fs.partition(graph, *BW, objective="coverage", capacity=weights_on_fpga(free) // 2)
    assert plan.fpga_mac_share == pytest.approx(free.fpga_mac_share / 2)
    one = fs.partition(graph, *BW, objective="coverage", max_segments=1)
    assert segments(one) == 1
    assert one.fpga_mac_share == pytest.approx(free.fpga_mac_share / 2)


def test_pinned_weights_take_no_time_to_load_and_the_event_model_agrees():
    graph = classifier(softmax=False)
    streamed = fs.partition(graph, *BW, objective="coverage")
    plan = fs.partition(graph, *BW, objective="coverage", weights="pinned")
    assert plan.pinned == {n.name for n in plan.cost_graph.nodes if n.weight}
    assert plan.objective_s < streamed.objective_s
    timing = plan.timing()
    assert [segment.timing.load_cycles for segment in timing.segments] == [0]
    assert timing.pinned_bytes == weights_on_fpga(plan)
    assert timing.cycles == sum(segment.timing.compute_cycles for segment in timing.segments)
    assert timing.cycles < streamed.timing().cycles
    assert plan.objective_s * 1e3 == pytest.approx(timing.total_ms, rel=1e-9)
    assert fs.compile(plan).timing() == timing


def test_what_is_pinned_fits_on_the_chip():
    numbers = fs.partition(sandwich(), *BW).numbers
    there = on_chip_bytes(fs.npu.get_device("bw_a10"), numbers)
    assert there == 512 * 128 * (128 * 6 + 5) // 8  # 512 tiles of 128 rows of 128 six-bit elements and an exponent
    assert fs.partition(sandwich(), *BW, weights="pinned").options.capacity == there
    assert fs.partition(sandwich(), *BW, weights="auto").options.capacity == there // 2
    with pytest.raises(InputError, match=r"capacity=1e\+18 bytes of weights do not stay on 'bw_a10', which holds 6,33"):
        fs.partition(sandwich(), *BW, weights="pinned", capacity=1e18)


def test_auto_pins_what_fits_and_streams_the_rest():
    graph = chain(6)
    each = max(n.weight for n in fs.partition(graph, *BW).cost_graph.nodes)
    plan = fs.partition(graph, *BW, objective="latency", weights="auto", capacity=2 * each)
    assert plan.pinned == {"conv0"}  # the loads of the others hide behind the layers before them
    assert {d.node for d in plan.decisions if d.device == "fpga"} > plan.pinned
    streamed = fs.partition(graph, *BW)
    assert plan.objective_s < streamed.objective_s
    assert plan.timing().total_ms < streamed.timing().total_ms


@pytest.mark.parametrize(
    ("force", "node", "side"),
    [
        ({"conv0": "cpu"}, "conv0", "cpu"),
        ({"conv*": "cpu"}, "conv3", "cpu"),
        ({"conv*": "cpu", "conv0": "fpga"}, "conv0", "fpga"),
        ({"relu[14]": "fpga"}, "relu4", "fpga"),
    ],
)
def test_a_forced_node_is_where_it_is_forced_to_be(force, node, side):
    plan = fs.partition(sandwich(), *BW, force=force)
    assert plan.assignment[node] == side
    assert reason(plan, node).code == "forced"
    assert plan.options.force == tuple(force.items())
    assert fs.partition(sandwich(), *BW, force=force, objective="coverage").assignment[node] == side


@pytest.mark.parametrize(
    ("force", "message"),
    [
        ({"conv9": "cpu"}, "'conv9' meets no node"),
        ({"q*": "cpu"}, r"'q\*' meets no node"),
        ({"lrn*": "fpga"}, "node 'lrn2' to the FPGA, which cannot compute it"),
        ({"c*": "cpu", "conv*": "fpga"}, r"send node 'conv0' to different sides"),
    ],
)
def test_an_impossible_force_is_refused(force, message):
    with pytest.raises(PlacementError, match=message):
        fs.partition(sandwich(), *BW, force=force)


def test_what_is_behind_a_cut_stays_on_the_cpu():
    graph = classifier()
    features = graph.node("flatten8").outputs[0]
    plan = fs.partition(graph, *BW, cut_at=[features])
    gemm = reason(plan, "gemm9")
    assert (gemm.device, gemm.code) == ("cpu", "forced")
    assert gemm.message == f"behind the cut at '{features}'"
    assert reason(plan, "softmax10").code == "unsupported-op"
    assert plan.assignment["conv0"] == "fpga"
    assert fs.partition(graph, *BW, cut_at=[features], objective="coverage").assignment["gemm9"] == "cpu"


def test_everything_before_a_cut_may_be_required_on_the_fpga():
    graph = classifier()
    features = graph.node("flatten8").outputs[0]
    plan = fs.partition(graph, *BW, cut_at=[features], require_fpga=True)
    assert {d.node for d in plan.decisions if d.device == "cpu"} == {"gemm9", "softmax10"}
    assert [segment.kind for segment in plan.segments] == ["fpga", "cpu"]
    assert reason(plan, "conv0").code == "forced"


def test_the_fpga_for_everything_is_refused_with_every_node_that_is_in_the_way_and_why():
    with pytest.raises(PlacementError) as refusal:
        fs.partition(chain(4), *BW, require_fpga=True, force={"conv0": "cpu"})
    message = str(refusal.value)
    assert message.startswith(
        "require_fpga: 3 of 10 nodes cannot be on the FPGA: 'conv0' (forced to the CPU), 'lrn4' ("
    )
    assert message.count("unsupported-op: LRN is not an operator of the engine") == 2
    assert fs.partition(classifier(softmax=False), *BW, require_fpga=True).fpga_mac_share == 1


def test_a_plan_that_is_forced_to_lose_to_the_cpu_says_what_that_would_take():
    slow_start = dataclasses.replace(fs.npu.get_device("bw_a10"), launch_s=0.1)
    plan = fs.partition(sandwich(), slow_start, "bw_1s5e5m", force={"conv0": "fpga"})
    assert plan.objective_s > plan.all_cpu_s
    assert "CPU" in plan.note


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"max_segments": -1}, InputError, "max_segments=-1 must be a whole number"),
        ({"max_segments": 1.5}, InputError, "max_segments=1.5 must be a whole number"),
        ({"max_segments": True}, InputError, "max_segments=True must be a whole number"),
        ({"capacity": -1}, InputError, "capacity=-1 must be a"),
        ({"capacity": math.nan}, InputError, "capacity=nan must be a"),
        ({"capacity": "1 MB"}, InputError, "capacity='1 MB' must be a"),
        ({"time_limit": None}, InputError, "time_limit=None must be a"),
        ({"time_limit": -1}, InputError, "time_limit=-1 must be a"),
        ({"weights": "cached"}, UnknownNameError, "'cached'; there are streamed, pinned, auto"),
        ({"weights": []}, UnknownNameError, r"\[\]; there are streamed, pinned, auto"),
        ({"force": "conv0"}, InputError, "force='conv0' must map node names or patterns to sides"),
        ({"force": {3: "cpu"}}, InputError, "force: 3 is no node name or pattern"),
        ({"force": {"conv0": "gpu"}}, UnknownNameError, "no side 'gpu'; there are cpu, fpga"),
        ({"force": {"conv0": []}}, UnknownNameError, r"no side \[\]; there are cpu, fpga"),
        ({"cut_at": "x"}, InputError, "cut_at='x' must be a list of tensor names"),
        ({"cut_at": 3}, InputError, "cut_at=3 must be a list of tensor names"),
        ({"cut_at": [3]}, InputError, "cut_at: 3 is no tensor name"),
        ({"cut_at": ["nowhere"]}, InputError, "no tensor 'nowhere' in graph"),
        ({"cut_at": ["x"]}, InputError, "cut_at: tensor 'x' is fed or constant; one that a node computes would do"),
        ({"require_fpga": 1}, InputError, "require_fpga=1 must be True or False"),
        ({"cut_at": ["conv0_out"], "force": {"conv3": "fpga"}}, PlacementError, "node 'conv3' on the FPGA, but it is"),
        ({"require_fpga": True}, PlacementError, "require_fpga: 1 of 5 nodes cannot be on the FPGA: 'lrn2' "),
        ({"force": {"conv*": "fpga"}, "capacity": 100}, PlacementError, "capacity"),
        ({"force": {"conv*": "fpga"}, "max_segments": 1}, PlacementError, "max_segments"),
        ({"dims": 3}, InputError, "dims"),
        ({"dims": [1]}, InputError, "dims"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_it(change, error, message):
    with pytest.raises(error, match=message) as refusal:
        fs.partition(sandwich(), *BW, **change)
    assert "\n" not in str(refusal.value)


OUT_OF_ROOM = """
import fpgasim as fs
from tests.placement.nets import classifier, Net
graph = classifier(softmax=False)
weights = [n.weight for n in fs.partition(graph, "bw_a10", "bw_1s5e5m").cost_graph.nodes]
chain = Net()
x = "x"
for _ in range(12):
    x = chain.op("Relu", x)
for network, asked in (
    (graph, {"require_fpga": True, "capacity": sum(weights[:3]) + 1}),
    (chain.graph(x), {"require_fpga": True, "max_segments": 0}),
    (chain.graph(x), {"cut_at": ["relu0_out"], "force": {"relu*": "fpga"}}),
):
    try:
        fs.partition(network, "bw_a10", "bw_1s5e5m", **asked)
    except fs.errors.PlacementError as refusal:
        print(refusal)
"""


def test_demands_that_contradict_name_the_first_node_of_the_graph_in_every_run():
    said = []
    for seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", OUT_OF_ROOM], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        said.append(run.stdout.splitlines())
    assert said[0] == said[1]
    room, segments, cut = said[0]
    weights = {n.name: n.weight for n in fs.partition(classifier(softmax=False), *BW).cost_graph.nodes}
    held = sum(weights[name] for name in ("conv0", "conv2"))
    assert room == (
        f"capacity={held + 1:,.0f} bytes of weights do not hold those of the {len(weights)} nodes that must be on the "
        f"FPGA, {sum(weights.values()):,.0f}; 'conv4', with {weights['conv4']:,.0f}, is the first without room "
        "(require_fpga puts it there)"
    )
    assert "'relu0'" in segments
    assert cut == "force puts node 'relu1' on the FPGA, but it is behind the cut at 'relu0_out'"


OPTIONS = (
    {"max_segments": 1, "force": {"relu1": "fpga"}},
    {"capacity": 40_000, "algorithm": "milp"},
    {"weights": "pinned", "objective": "coverage"},
    {"weights": "auto", "capacity": 40_000},
    {"cut_at": ["lrn2_out"], "time_limit": 5},
    {"algorithm": "greedy"},
)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options))
def test_options_are_kept_in_a_file_and_for_other_shapes(options, tmp_path):
    plan = fs.partition(sandwich(), *BW, **options)
    plan.save(tmp_path / "plan")
    again = fs.Plan.load(tmp_path / "plan")
    assert again == plan
    assert (again.options, again.pinned, again.solver_s) == (plan.options, plan.pinned, plan.solver_s)
    assert again.timing() == plan.timing()
    forced = {d.node: d.message for d in plan.decisions if d.code == "forced"}
    shapes = {"x": (2, 64, 16, 16)}
    kept, larger = again.replan(shapes, keep_sides=True), again.replan(shapes)
    assert (kept.assignment, kept.pinned, kept.algorithm) == (plan.assignment, plan.pinned, plan.algorithm)
    assert larger == fs.partition(sandwich(), *BW, **options, dims={"N": 2})
    for other in (kept, larger):
        assert other.options == plan.options
        assert {d.node: d.message for d in other.decisions if d.code == "forced"} == forced
        assert other.lower_bound_s <= other.objective_s


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"max_segments": 1}}, "asked for: 2 FPGA segments, more than max_segments=1"),
        ({"options": {"capacity": 10}}, "asked for: weights of .* on the FPGA, more than capacity=10"),
        ({"pinned": frozenset({"conv0"})}, "the weights of node 'conv0' do not stay on the chip in this plan"),
        ({"solver_s": -1.0}, r"solver_s=-1\.0 is no time in seconds"),
    ],
)
def test_a_plan_that_does_not_keep_to_its_options_is_refused(change, message):
    plan = fs.partition(sandwich(), *BW, objective="coverage")
    change = {name: fs.placement.Options(**v) if name == "options" else v for name, v in change.items()}
    with pytest.raises(PlacementError, match=message):
        dataclasses.replace(plan, **change)


@pytest.mark.parametrize("shapes", [3, [], {"x": 3}, {"x": (1, "a", 16, 16)}, {"x": None}])
def test_replan_names_what_is_no_shape(shapes):
    plan = fs.partition(sandwich(), *BW)
    with pytest.raises(InputError, match=r"input_shapes is a|input 'x': shape"):
        plan.replan(shapes)
