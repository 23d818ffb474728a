"""`partition` and the plan it returns."""

import dataclasses
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import fpgasim as fs
from fpgasim.compiler import fuse, lower_node
from fpgasim.errors import DeviceError, InputError, PlacementError, UnknownNameError
from fpgasim.npu.timing import segment_timing, transfer_seconds
from fpgasim.placement import objective, phases
from fpgasim.placement.cost_graph import check_convex
from fpgasim.placement.costs import transfer_bytes
from fpgasim.placement.wording import milliseconds

from .nets import Net, classifier, sandwich

BW = ("bw_a10", "bw_1s5e5m")


def codes(plan):
    return {plan.graph.node(d.node).op_type: (d.device, d.code) for d in plan.decisions}


def test_a_classifier_runs_on_the_fpga_but_for_its_softmax():
    plan = fs.partition(classifier(), *BW)
    assert plan.algorithm == "mincut"
    assert codes(plan)["Conv"] == ("fpga", "cheaper-on-fpga")
    assert codes(plan)["Softmax"] == ("cpu", "unsupported-op")
    assert plan.fpga_mac_share > 0.999
    assert [segment.kind for segment in plan.segments] == ["fpga", "cpu"]
    assert plan.segments[0].inputs == ("x",)
    assert plan.segments[0].outputs == plan.segments[1].inputs
    assert plan.segments[1].outputs == (plan.graph.outputs[0].name,)
    assert plan.lower_bound_s <= plan.objective_s < plan.all_cpu_s
    assert plan.gap < 1e-4
    assert plan.note == ""


def test_the_plan_is_about_the_bound_graph_and_keeps_the_one_given():
    graph = classifier()
    plan = fs.partition(graph, *BW)
    assert plan.source_graph is graph
    assert plan.graph.inputs[0].shape == (1, 3, 32, 32)
    assert fs.partition(graph, *BW, dims={"N": 4}).graph.inputs[0].shape == (4, 3, 32, 32)
    with pytest.raises(UnknownNameError, match="no symbolic dimension 'M'"):
        fs.partition(graph, *BW, dims={"M": 4})


def test_coverage_takes_every_node_that_the_engine_can_compute():
    plan = fs.partition(sandwich(), *BW, objective="coverage")
    assert plan.algorithm == "coverage"
    assert [segment.kind for segment in plan.segments] == ["fpga", "cpu", "fpga"]
    assert plan.fpga_mac_share == 1.0
    assert {d.code for d in plan.decisions} == {"coverage", "unsupported-op"}
    slow_start = dataclasses.replace(fs.npu.get_device("bw_a10"), launch_s=0.1)
    dear = fs.partition(sandwich(), slow_start, "bw_1s5e5m", objective="coverage")
    assert dear.assignment == plan.assignment
    assert dear.objective_s > 0.2 > dear.all_cpu_s


def test_a_plan_that_would_lose_to_the_cpu_is_replaced_by_the_cpu_and_says_so():
    graph = classifier(24, 16, softmax=False)
    eager = dataclasses.replace(fs.npu.get_device("bw_a10"), launch_s=0.0, cpu_call_s=0.0)
    assert fs.partition(graph, eager, "bw_1s5e5m").algorithm == "mincut"
    slow_start = dataclasses.replace(eager, launch_s=0.01)
    plan = fs.partition(graph, slow_start, "bw_1s5e5m")
    assert plan.algorithm == "all-cpu"
    assert plan.objective_s == plan.all_cpu_s
    assert plan.fpga_mac_share == 0.0
    assert "everything is left on the CPU" in plan.note
    assert plan.note.split(":")[0] in " ".join(plan.explain().split())
    assert {d.device for d in plan.decisions} == {"cpu"}
    assert "not-worth-transfer" in {d.code for d in plan.decisions}


def test_a_link_that_is_too_slow_keeps_nodes_on_the_cpu_and_the_reason_says_so():
    slow_link = dataclasses.replace(fs.npu.get_device("bw_a10"), pcie_bytes_per_s=1e6)
    plan = fs.partition(sandwich(), slow_link, "bw_1s5e5m")
    assert codes(plan)["Conv"] == ("cpu", "not-worth-transfer")
    message = next(d.message for d in plan.decisions if d.code == "not-worth-transfer")
    assert "slower by itself; moving it alone to the FPGA would change the whole by +" in message


def test_an_engine_that_is_too_slow_keeps_nodes_on_the_cpu_and_the_reason_says_so():
    slow = dataclasses.replace(fs.npu.get_device("bw_a10"), clock_hz=100_000)
    plan = fs.partition(sandwich(), slow, "bw_1s5e5m")
    assert codes(plan)["Conv"] == ("cpu", "cheaper-on-cpu")
    assert "quicker by itself" in next(d.message for d in plan.decisions if d.code == "cheaper-on-cpu")


def test_a_node_that_is_slower_on_the_fpga_stays_there_where_that_saves_transfers():
    net = Net(("N", 64, 8, 8))
    x = net.op("GlobalAveragePool", net.conv("x", 64, 64))
    x = net.op("Flatten", net.conv(net.op("Relu", x), 64, 64, kernel=1))
    graph = net.graph(net.op("Gemm", x, net.weights(64, 64)))
    base = fs.npu.get_device("bw_a10")
    device = dataclasses.replace(base, dispatch_cycles=1500, mfu_latency=0, launch_s=0.0, pcie_bytes_per_s=1e9)
    plan = fs.partition(graph, device, "bw_1s5e5m")
    assert codes(plan)["Conv"][0] == "fpga"
    kept = [d for d in plan.decisions if d.code == "saves-transfer"]
    assert kept
    assert all(d.fpga_s >= d.cpu_s and "slower by itself" in d.message for d in kept)


@pytest.mark.parametrize(
    ("build", "code", "word"),
    [
        (lambda net: net.op("Softmax", "x"), "unsupported-op", "Softmax"),
        (lambda net: net.op("Concat", "x", "x", axis=2), "unsupported-attr", "axis=2"),
        (lambda net: net.op("Cast", net.op("Relu", net.op("Cast", "x", to=11)), to=1), "unsupported-dtype", "float64"),
        (lambda net: net.op("Relu", net.op("Cast", net.op("NonZero", "x"), to=1)), "dynamic-shape", "not known"),
    ],
)
def test_a_node_that_the_engine_cannot_compute_is_on_the_cpu_with_the_reason(build, code, word):
    net = Net()
    plan = fs.partition(net.graph(build(net)), *BW, objective="coverage")
    decision = next(d for d in plan.decisions if d.code == code)
    assert decision.device == "cpu"
    assert decision.fpga_s is None
    assert word in decision.message


def test_a_layer_that_does_not_fit_on_the_device_is_on_the_cpu():
    tiny = dataclasses.replace(fs.npu.get_device("bw_a10"), initial_vrf=64)
    plan = fs.partition(sandwich(), tiny, "bw_1s5e5m", objective="coverage")
    assert codes(plan)["Conv"] == ("fpga", "coverage")
    wide = Net(("N", 16, 4, 512))
    plan = fs.partition(wide.graph(wide.conv("x", 16, 16)), tiny, "bw_1s5e5m", objective="coverage")
    assert codes(plan)["Conv"] == ("cpu", "too-large")


@pytest.mark.parametrize("device", ["bw_s5", "bw_a10", "bw_s10"])
def test_a_network_that_is_one_segment_costs_what_the_cycle_model_says(device):
    net = Net(("N", 3, 32, 32))
    x = net.op("Relu", net.conv("x", 3, 64))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Relu", net.conv(net.op("Sigmoid", net.conv(x, 64, 96)), 96, 64))
    x = net.op("Concat", net.op("Relu", net.op("Add", y, x)), y, axis=1)
    x = net.op("Flatten", net.op("GlobalAveragePool", net.op("Clip", x, net.constant(np.float32(0)))))
    graph = net.graph(net.op("Gemm", x, net.weights(128, 10), net.weights(10)))
    plan = fs.partition(graph, device, "bw_1s5e5m", objective="coverage")
    assert [segment.kind for segment in plan.segments] == ["fpga"]
    results = {tensor.name for tensor in plan.graph.outputs}
    layers = fuse([lower_node(plan.graph, node, plan.device) for node in plan.graph.nodes], results)
    assert len(layers) < len(plan.graph.nodes)
    moved = [transfer_bytes(plan.graph, name, plan.device, plan.numbers) for name in ("x", *results)]
    expected = segment_timing(layers, plan.device, plan.numbers).seconds + plan.device.launch_s
    expected += sum(transfer_seconds(size, plan.device) for size in moved)
    assert plan.objective_s == pytest.approx(expected, rel=1e-9)


def test_control_flow_stays_on_the_cpu_and_pays_for_what_its_bodies_read():
    net = Net(("N", 16, 8, 8))
    x = net.conv("x", 16, 16)
    flag = net.op("Greater", net.op("ReduceMax", "x", keepdims=0), net.constant(np.float32(0)))
    bodies = [
        helper.make_graph(
            [helper.make_node("Identity" if name == "then" else "Neg", [x], [name], name=name)],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 16, 8, 8])],
        )
        for name in ("then", "else")
    ]
    graph = net.graph(net.op("If", flag, then_branch=bodies[0], else_branch=bodies[1]))
    plan = fs.partition(graph, *BW, objective="coverage")
    assert codes(plan)["If"] == ("cpu", "unsupported-op")
    conv = next(s for s in plan.segments if s.kind == "fpga")
    assert conv.outputs == (x,)
    assert phases(plan.cost_graph, plan.assignment)[graph.producer(graph.outputs[0].name).name] > conv.phase


def test_the_same_call_gives_the_same_plan():
    graph = classifier()
    first, second = fs.partition(graph, *BW), fs.partition(classifier(), *BW)
    assert first == second
    assert hash(first) == hash(second)
    assert first.explain() == second.explain()
    assert first != fs.partition(graph, "bw_s10", "bw_1s5e5m")
    assert first != fs.partition(graph, *BW, pointwise="bf16")


def test_the_numbers_are_the_devices_unless_given():
    plan = fs.partition(classifier(), *BW)
    assert (plan.numbers.accumulator, plan.numbers.order, plan.numbers.pointwise) == ("exact", "khwc", "fp16")
    plan = fs.partition(classifier(), "bw_a10", "msfp16", accumulator="fp32", order="chwk", pointwise="bf16")
    assert plan.numbers == fs.npu.Numbers(fs.numerics.get_format("msfp16"), "fp32", "chwk", "bf16")
    assert fs.partition(classifier(), fs.npu.get_device("bw_s10"), "bw_1s5e2m").numbers.format.block == 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "bw_x"}, "no device 'bw_x'; there are bw_s5, bw_a10"),
        ({"format": "msfp99"}, "no format 'msfp99'; there are msfp11"),
        ({"algorithm": "best"}, "no algorithm 'best'; there are auto, mincut"),
        ({"objective": "speed"}, "no objective 'speed'; there are latency, coverage"),
        ({"costs": "guessed"}, "no cost table 'guessed'; there are analytic"),
        ({"accumulator": "fp8"}, "no accumulator 'fp8'"),
        ({"order": "wck"}, "no order 'wck'"),
        ({"pointwise": "int8"}, "no pointwise type 'int8'"),
    ],
)
def test_an_unknown_name_is_refused_with_those_there_are(change, message):
    arguments = {"device": "bw_a10", "format": "bw_1s5e5m"} | change
    with pytest.raises(UnknownNameError, match=message):
        fs.partition(classifier(4, 4), **arguments)


def test_a_format_whose_block_does_not_divide_the_native_dimension_is_refused():
    with pytest.raises(DeviceError, match=r"msfp16.*do not divide the native dimension 100"):
        fs.partition(classifier(4, 4), "bw_s5", "msfp16")


def test_what_is_no_graph_is_refused():
    with pytest.raises(InputError, match=r"partition takes a Graph, as fpgasim.load returns it; got str"):
        fs.partition("resnet50.onnx", *BW)


def head(size=7):
    """A convolution whose FPGA time pays from some batch up, and a Softmax that the engine does not have."""
    net = Net(("N", 64, size, size))
    return net.graph(net.op("Softmax", net.conv("x", 64, 64)))


def test_another_batch_is_placed_as_if_it_had_been_asked_for_at_first():
    graph = head()
    plan = fs.partition(graph, *BW)
    assert plan.algorithm == "all-cpu"
    larger = plan.replan({"x": (64, 64, 7, 7)})
    assert larger == fs.partition(graph, *BW, dims={"N": 64})
    assert larger.assignment["conv0"] == "fpga"
    assert larger.objective_s < larger.all_cpu_s / 2
    again = larger.replan({"x": (1, 64, 7, 7)})
    assert again == plan
    assert (again.algorithm, again.note) == (plan.algorithm, plan.note)


@pytest.mark.parametrize(
    "asked",
    [
        {"objective": "coverage"},
        {"force": {"conv*": "fpga"}},
        {"algorithm": "greedy"},
        {"weights": "pinned"},
        {"max_segments": 0},
        {"devices": 2, "hop_s": 1e-6, "split_for": "throughput"},
        {"pointwise": "bf16", "accumulator": "fp32", "order": "chwk"},
    ],
    ids=str,
)
def test_another_batch_is_placed_by_what_was_asked_for(asked):
    graph = head()
    plan = fs.partition(graph, *BW, **asked)
    for batch in (64, 2):
        plan = plan.replan({"x": (batch, 64, 7, 7)})
        assert plan == fs.partition(graph, *BW, dims={"N": batch}, **asked)


def test_sides_that_are_kept_say_so_and_what_they_lose_to_the_cpu():
    graph = head()
    small, large = fs.partition(graph, *BW), fs.partition(graph, *BW, dims={"N": 64})
    kept = small.replan({"x": (64, 64, 7, 7)}, keep_sides=True)
    assert kept.assignment == small.assignment
    assert kept.algorithm == "all-cpu"
    assert kept.note == "every node is on its side in the plan for x (1, 64, 7, 7)"
    kept = large.replan({"x": (1, 64, 7, 7)}, keep_sides=True)
    assert kept.assignment == large.assignment
    assert kept.algorithm == large.algorithm
    assert kept.objective_s > kept.all_cpu_s >= kept.lower_bound_s
    assert kept.note == (
        "every node is on its side in the plan for x (64, 64, 7, 7); the CPU alone would take "
        f"{milliseconds(kept.all_cpu_s)} instead of {milliseconds(kept.objective_s)}"
    )


@pytest.mark.parametrize("keep_sides", [False, True])
@pytest.mark.parametrize("asked", [{"objective": "coverage"}, {"force": {"conv*": "fpga"}}, {}], ids=str)
def test_an_empty_batch_is_left_to_the_cpu_and_so_it_is_called(asked, keep_sides):
    plan = fs.partition(sandwich(), *BW, **asked).replan({"x": (0, 64, 16, 16)}, keep_sides=keep_sides)
    assert set(plan.assignment.values()) == {"cpu"}
    assert plan.algorithm == "all-cpu"
    assert plan.note == "everything is left on the CPU: an input is empty"
    assert {d.code for d in plan.decisions} == {"unsupported-op", "unsupported-attr"}


def test_replan_takes_shapes_of_the_model():
    plan = fs.partition(sandwich(), *BW, objective="coverage")
    larger = plan.replan({"x": (3, 64, 16, 16)}, keep_sides=True)
    assert larger.graph.inputs[0].shape == (3, 64, 16, 16)
    assert larger.assignment == plan.assignment
    assert larger.objective_s > plan.objective_s
    with pytest.raises(InputError, match="has shape"):
        plan.replan({"x": (1, 64, 16, 17)})


def test_a_node_that_does_not_fit_at_a_shape_is_on_the_cpu_there_unless_it_must_stay():
    net = Net(("N", 16, 4, "W"))
    graph = net.graph(net.conv("x", 16, 16))
    tiny = dataclasses.replace(fs.npu.get_device("bw_a10"), initial_vrf=64)
    wide = {"x": (1, 16, 4, 512)}
    plan = fs.partition(graph, tiny, "bw_1s5e5m", objective="coverage", dims={"W": 8})
    assert plan.assignment == {"conv0": "fpga"}
    assert plan.replan(wide).decisions[0].code == "too-large"
    with pytest.raises(
        PlacementError, match=r"node 'conv0' cannot stay on the FPGA at these shapes: .*; keep_sides=False would do"
    ):
        plan.replan(wide, keep_sides=True)
    required = fs.partition(graph, tiny, "bw_1s5e5m", require_fpga=True, dims={"W": 8})
    with pytest.raises(PlacementError, match=r"require_fpga: 1 of 1 nodes cannot be on the FPGA: 'conv0' \(too-large"):
        required.replan(wide)


def test_a_plan_whose_decisions_are_about_other_nodes_is_refused():
    plan = fs.partition(classifier(), *BW)
    with pytest.raises(PlacementError, match="are not about the nodes of graph 'net'"):
        dataclasses.replace(plan, decisions=plan.decisions[1:])


def test_a_plan_with_a_node_where_it_cannot_be_is_refused():
    plan = fs.partition(classifier(), *BW)
    wrong = tuple(dataclasses.replace(d, device="fpga") for d in plan.decisions)
    with pytest.raises(PlacementError, match="node 'softmax10' cannot be on the FPGA"):
        dataclasses.replace(plan, decisions=wrong)


@pytest.mark.parametrize("seed", range(20))
def test_the_segments_of_any_placement_are_convex_and_their_tensors_fit_together(seed):
    plan = fs.partition(sandwich(), *BW, objective="coverage")
    rng = np.random.default_rng(seed)
    random = tuple(
        d if d.fpga_s is None else dataclasses.replace(d, device=str(rng.choice(["cpu", "fpga"])))
        for d in plan.decisions
    )
    mixed = dataclasses.replace(plan, decisions=random)
    check_convex(mixed.cost_graph, [segment.nodes for segment in mixed.segments])
    there = {"x"}
    for segment in mixed.segments:
        assert set(segment.inputs) <= there
        there |= set(segment.outputs)
    assert {tensor.name for tensor in mixed.graph.outputs} <= there
    assert mixed.objective_s == objective(mixed.cost_graph, mixed.assignment)


def test_a_graph_without_matrix_products_has_no_share():
    net = Net()
    plan = fs.partition(net.graph(net.op("Softmax", "x")), *BW)
    assert plan.fpga_mac_share == 0.0
    assert plan.algorithm == "all-cpu"
    assert plan.note == ""


def test_resnet50_takes_forty_milliseconds_by_the_table_and_two_with_the_fpga():
    light = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data", "light", "light_resnet50.onnx")
    plan = fs.partition(fs.load(light), *BW)
    assert 0.035 < plan.all_cpu_s < 0.05
    assert 0.0015 < plan.objective_s < 0.003
    assert plan.fpga_mac_share == 1.0


def test_the_explanation_names_the_figures_the_reasons_and_the_transfers():
    plan = fs.partition(sandwich(), *BW, objective="coverage")
    text = plan.explain()
    lines = text.splitlines()
    assert lines[0].startswith("net on bw_a10 in bw_1s5e5m (blocks of 128, exact sums in khwc order, fp16 between")
    assert "asked for as much as possible on the FPGA" in lines[1]
    assert "100.0% of" in text
    assert "pcie_bytes_per_s=6.5e+09 bytes/s" in " ".join(text.split())
    assert "unsupported-op: LRN is not an operator of the engine" in text
    assert text.index("1 node on the CPU") < text.index("4 nodes on the FPGA")
    table = lines[lines.index("steps in order") + 1 :]
    assert [row.split()[:3] for row in table[1:]] == [["1", "fpga", "2"], ["2", "cpu", "1"], ["3", "fpga", "2"]]
    assert "x 32,768 bytes" in table[1]
    assert table[2].split()[-2:] == ["-", "-"]


def test_the_explanation_leaves_out_assumptions_that_the_plan_overrides():
    explain = fs.partition(sandwich(), "bw_a10", "msfp16", accumulator="fp32").explain()
    assert "accumulator=" not in explain
    assert "order=khwc" in explain
