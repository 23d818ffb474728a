"""What an explanation says of a plan."""

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.placement import Counterfactual, objective
from fpgasim.placement.advising import Advice, Obstacle, pointwise_seconds
from fpgasim.placement.cost_graph import phases
from fpgasim.placement.explaining import Baseline, Explanation, NodeExplanation, Step
from fpgasim.placement.explaining_stages import Alternative, PipelineExplanation, StageExplanation
from fpgasim.placement.timing import Transfer

from . import split_nets
from .nets import Net, classifier, sandwich
from .split_nets import plan_of, reflecting

NETWORKS = {"classifier": classifier(), "sandwich": sandwich(), **split_nets.many_ways()}
PLANS = {name: plan_of(graph) for name, graph in NETWORKS.items()}


@pytest.fixture(params=PLANS.values(), ids=PLANS)
def plan(request):
    return request.param


def every_placement(costs):
    """Each placement there is of a small cost graph."""
    free = [node.name for node in costs.nodes if node.fpga is not None]
    fixed = {node.name: "cpu" for node in costs.nodes}
    for sides in itertools.product(("cpu", "fpga"), repeat=len(free)):
        yield {**fixed, **dict(zip(free, sides, strict=True))}


def fewest(costs, allowed=lambda placement: True):
    return min(objective(costs, placement) for placement in every_placement(costs) if allowed(placement))


def with_fpga_times(plan, names):
    times = {name: pointwise_seconds(plan, name) for name in names}
    nodes = tuple(dataclasses.replace(n, fpga=times.get(n.name, n.fpga)) for n in plan.cost_graph.nodes)
    return dataclasses.replace(plan.cost_graph, nodes=nodes)


def obstacles(plan):
    return {obstacle.operator: obstacle for obstacle in plan.explanation().obstacles}


def test_steps_and_transfers_add_up_to_the_objective(plan):
    said = plan.explanation(counterfactuals=False)
    parts = [step.seconds for step in said.steps] + [transfer.seconds for transfer in said.transfers]
    assert math.fsum(parts) == pytest.approx(said.objective_s, rel=1e-12)


def test_every_node_is_explained_once_in_the_order_of_the_graph(plan):
    said = plan.explanation(counterfactuals=False)
    assert [node.name for node in said.nodes] == [node.name for node in plan.graph.nodes]
    for node, decision in zip(said.nodes, plan.decisions, strict=True):
        assert (node.device, node.code, node.message) == (decision.device, decision.code, decision.message)
        assert node.name in said.steps[node.step - 1].nodes
        assert said.steps[node.step - 1].kind == node.device


def test_a_tensor_that_is_moved_is_sent_by_its_maker_and_received_on_the_other_side(plan):
    said = plan.explanation(counterfactuals=False)
    for transfer in said.transfers:
        home, away = ("fpga", "cpu") if transfer.direction == "to_cpu" else ("cpu", "fpga")
        makers = [node for node in said.nodes if transfer.tensor in node.sends]
        readers = [node for node in said.nodes if transfer.tensor in node.receives]
        assert len(makers) == (transfer.tensor not in {tensor.name for tensor in plan.graph.inputs})
        assert {node.device for node in makers} <= {home}
        assert {node.device for node in readers} <= {away}
        moved = [name for step in said.steps for name in getattr(step, transfer.direction)]
        assert moved.count(transfer.tensor) == 1
    assert {name for node in said.nodes for name in node.sends} <= {transfer.tensor for transfer in said.transfers}


@pytest.mark.parametrize("name", ["sandwich", "bridged", "branching"])
def test_the_other_side_of_a_node_is_what_the_best_placement_with_it_there_takes(name):
    plan = plan_of(NETWORKS[name])
    for node in plan.explanation().nodes:
        there = node.other_side
        assert there.side != node.device
        if node.fpga_s is None:
            assert (there.side, there.objective) == ("fpga", None)
            continue
        best = fewest(plan.cost_graph, lambda placement, node=node: placement[node.name] != node.device)
        assert there.exact
        assert there.objective == pytest.approx(best, rel=1e-9)


def test_for_coverage_the_other_side_of_a_node_is_it_alone_moved():
    plan = plan_of(NETWORKS["bridged"], objective="coverage")
    for node in plan.explanation().nodes:
        if node.fpga_s is not None:
            moved = objective(plan.cost_graph, {**plan.assignment, node.name: "cpu"})
            assert node.other_side.objective == pytest.approx(moved, rel=1e-12)


def test_supporting_an_operator_saves_what_the_best_placement_with_it_saves():
    plan = plan_of(NETWORKS["bridged"])
    (lrn,) = plan.explanation().obstacles
    assert lrn.operator == "LRN"
    best = fewest(with_fpga_times(plan, lrn.nodes))
    assert lrn.exact
    assert lrn.saves_s == pytest.approx(plan.objective_s - best, rel=1e-9)
    assert lrn.segments == 1


def test_a_pass_of_the_pointwise_unit_takes_what_a_relu_of_that_size_takes():
    net = Net(("N", 64, 16, 16))
    plan = plan_of(net.graph(net.op("LRN", net.op("Relu", "x"), size=3)))
    relu, lrn = plan.graph.nodes
    assert pointwise_seconds(plan, lrn.name) == plan.cost_graph.node_of[relu.name].fpga


def test_round_trips_are_counted_and_blamed_on_what_causes_them():
    said = plan_of(reflecting(14, size=16), objective="coverage")
    (pad,) = said.explanation().obstacles
    assert (pad.operator, pad.round_trips, len(pad.nodes)) == ("Pad mode=reflect", 14, 14)
    text = " ".join(said.explain().split())
    assert "14 round trips caused by Pad mode=reflect at pad2, pad7, pad12, pad17 and 10 more" in text
    assert f"supporting it would save {pad.saves_s * 1e3:.3g} ms" in text
    assert "in 1 FPGA segment" in text


def test_what_only_lies_beside_a_round_trip_is_no_cause_of_it():
    found = obstacles(plan_of(NETWORKS["detector"], objective="coverage"))
    assert found["LpNormalization"].round_trips == 1
    assert found["Transpose"].round_trips == 0
    assert len(found["Transpose"].nodes) == 3


def test_nodes_with_the_same_operator_and_different_reasons_are_different_obstacles():
    net = Net(("N", 64, 16, 16))
    x = net.op("Concat", net.op("Relu", "x"), "x", axis=2)
    x = net.op("Concat", x, x, axis=2)
    x = net.op("Concat", x, x, axis=3)
    plan = plan_of(net.graph(net.op("Softmax", x)))
    found = [(o.operator, len(o.nodes)) for o in plan.explanation().obstacles]
    assert sorted(found) == [("Concat", 1), ("Concat", 2), ("Softmax", 1)]


def test_what_is_wanted_on_the_cpu_hinders_nothing():
    graph = NETWORKS["bridged"]
    assert not plan_of(graph, force={"lrn*": "cpu"}).explanation().obstacles
    before = plan_of(graph, cut_at=["add4_out"]).explanation().obstacles
    assert [obstacle.nodes for obstacle in before] == [("lrn2",)]


def test_of_control_flow_and_unknown_shapes_no_saving_is_claimed():
    (branch,) = (o for o in plan_of(NETWORKS["branching"]).explanation().obstacles if o.operator == "If")
    assert branch.saves_s is None
    net = Net()
    plan = plan_of(net.graph(net.op("Relu", net.op("Cast", net.op("NonZero", "x"), to=1))))
    assert {o.saves_s for o in plan.explanation().obstacles if o.operator in ("Cast", "Relu")} == {None}


def test_without_counterfactuals_nothing_is_solved_for():
    plan = plan_of(NETWORKS["detector"], objective="coverage")
    said = plan.explanation(counterfactuals=False)
    assert {node.other_side for node in said.nodes} == {None}
    assert {obstacle.saves_s for obstacle in said.obstacles} == {None}
    assert said.advice == ()
    assert said.obstacles[0].round_trips == 1
    assert "whole with it" not in plan.explain(counterfactuals=False)


def advised(plan, kind):
    return [advice for advice in plan.explanation().advice if advice.kind == kind]


def test_a_segment_limit_that_costs_time_is_said_to():
    plan = plan_of(NETWORKS["bridged"], max_segments=1)
    free = plan_of(NETWORKS["bridged"])
    assert sum(segment.kind == "fpga" for segment in plan.segments) == 1
    saved = [advice.saves_s for advice in advised(plan, "max_segments")]
    assert max(saved) == pytest.approx(plan.objective_s - free.objective_s, rel=1e-9)
    assert len(saved) == 2
    assert "without max_segments it would take" in plan.explain()
    assert len(advised(plan_of(NETWORKS["bridged"], max_segments=2), "max_segments")) == 1


def test_a_capacity_that_costs_time_is_said_to():
    free = plan_of(NETWORKS["bridged"])
    needed = sum(node.weight for node in free.cost_graph.nodes)
    plan = plan_of(NETWORKS["bridged"], capacity=needed - 1)
    (advice,) = advised(plan, "capacity")
    assert advice.saves_s == pytest.approx(plan.objective_s - free.objective_s, rel=1e-9)
    assert not advised(plan_of(NETWORKS["bridged"], capacity=needed), "capacity")


def test_a_force_that_costs_time_is_said_to_and_one_that_does_not_is_not():
    free = plan_of(NETWORKS["bridged"])
    plan = plan_of(NETWORKS["bridged"], force={"conv3": "cpu"})
    (advice,) = advised(plan, "force")
    assert "without force on conv3" in advice.text
    assert advice.saves_s == pytest.approx(plan.objective_s - free.objective_s, rel=1e-9)
    assert not advised(plan_of(NETWORKS["bridged"], force={"conv3": "fpga"}), "force")


def test_a_cut_that_costs_time_is_said_to():
    plan = plan_of(NETWORKS["bridged"], cut_at=["add4_out"])
    (advice,) = advised(plan, "cut_at")
    assert "without the cut at add4_out" in advice.text
    assert advice.saves_s > 0


def test_coverage_that_costs_time_is_said_to():
    slow_start = dataclasses.replace(fs.npu.get_device("bw_a10"), launch_s=0.1)
    plan = fs.partition(NETWORKS["bridged"], slow_start, "bw_1s5e5m", objective="coverage")
    (advice,) = plan.explanation().advice
    assert advice.kind == "objective"
    assert advice.saves_s == pytest.approx(plan.objective_s - plan.all_cpu_s, rel=1e-9)


def test_obstacles_that_share_a_round_trip_are_reckoned_together_too():
    net = Net(("N", 64, 32, 32))
    x = net.op("Relu", net.conv("x", 64, 64))
    x = net.op("Cos", net.op("Sin", x))
    plan = plan_of(net.graph(net.op("Relu", net.conv(x, 64, 64))))
    (together,) = advised(plan, "support")
    assert together.text.startswith("supporting Sin, Cos together would take")
    assert together.saves_s > 2 * max(obstacle.saves_s for obstacle in plan.explanation().obstacles)


def test_greedy_is_what_all_that_is_supported_takes():
    plan = plan_of(NETWORKS["detector"])
    everything = {node.name: "cpu" if node.fpga is None else "fpga" for node in plan.cost_graph.nodes}
    greedy = plan.explanation(counterfactuals=False).greedy
    assert greedy.seconds == pytest.approx(objective(plan.cost_graph, everything), rel=1e-12)
    assert greedy.segments == len({p for p in phases(plan.cost_graph, everything).values() if p % 2})


def test_the_dictionary_is_json_and_carries_its_schema(plan):
    said = plan.explanation(counterfactuals=False)
    values = said.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["schema"] == 1
    assert set(values) == {field.name for field in dataclasses.fields(said)}
    assert [node["name"] for node in values["nodes"]] == [node.name for node in plan.graph.nodes]


def test_the_page_about_explanations_names_every_key_of_the_json():
    page = (Path(__file__).parents[2] / "docs/explaining.md").read_text(encoding="utf-8")
    kinds = {
        "The whole": Explanation,
        "Baseline": Baseline,
        "Step": Step,
        "Transfer": Transfer,
        "Obstacle": Obstacle,
        "Advice": Advice,
        "Node": NodeExplanation,
        "Other side": Counterfactual,
        "Pipeline": PipelineExplanation,
        "Device of a pipeline": StageExplanation,
        "Other split": Alternative,
    }
    for title, kind in kinds.items():
        rows = page.split(f"### {title}\n")[1].split("\n#")[0].splitlines()
        keys = [key for row in rows if row.startswith("| `") for key in re.findall("`(.*?)`", row.split("|")[1])]
        assert sorted(keys) == sorted(field.name for field in dataclasses.fields(kind)), title


def test_the_text_says_what_moves_and_what_others_would_do():
    text = " ".join(plan_of(NETWORKS["detector"], objective="coverage").explain(counterfactuals=False).split())
    assert "2 FPGA segments" in text
    assert "6 transfers" in text
    assert "137,216 bytes to the FPGA and 195,584 bytes to the CPU" in text
    assert "all that the engine can compute, costs not looked at (what others do)" in text
    assert "by the event model" in text


def test_weights_that_stay_on_the_chip_are_named():
    plan = plan_of(NETWORKS["bridged"], weights="pinned")
    said = plan.explanation(counterfactuals=False)
    assert sorted(node.name for node in said.nodes if node.pinned) == ["conv0", "conv3", "conv7"]
    assert "weights of 3 nodes," in plan.explain(counterfactuals=False)


def test_a_network_without_nodes_is_explained():
    said = plan_of(Net().graph("x")).explanation()
    assert (said.steps, said.nodes, said.obstacles, said.advice) == ((), (), (), ())
    assert np.isfinite(said.gap)


def test_all_that_is_solved_anew_shares_one_time_and_is_bounded_where_that_is_over(monkeypatch):
    free = fs.partition(classifier(), "bw_a10", "bw_1s5e5m")
    capacity = sum(n.weight for n in free.cost_graph.nodes) // 2
    plan = fs.partition(classifier(), "bw_a10", "bw_1s5e5m", capacity=capacity)
    in_time = {node.name: node.other_side for node in plan.explanation().nodes}
    assert all(there.exact for there in in_time.values())
    monkeypatch.setattr("fpgasim.placement.explaining.TOTAL_S", 0.0)
    said = plan.explanation()
    assert said.advice == ()
    for node in said.nodes:
        there, best = node.other_side, in_time[node.name]
        assert (there.objective is None) == (best.objective is None)
        if best.objective is not None:
            assert there.lower_bound <= best.objective * (1 + 1e-6)
            assert best.objective <= there.objective * (1 + 1e-6)
    assert not all(node.other_side.exact for node in said.nodes)
