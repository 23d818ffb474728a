"""The objective: against a second, naive reading of the rules, and the file form."""

import dataclasses
import itertools
import json
import random

import numpy as np
import pytest

from fpgasim.errors import InputError, PlacementError
from fpgasim.placement.cost_graph import CostGraph, CostNode, CostTensor, Pair, check_convex, objective, phases, pin

from .random_graphs import placements, random_cost_graph

SMALL = CostGraph(
    nodes=(CostNode("a", 1.0, 0.25), CostNode("b", 2.0, None), CostNode("c", 4.0, 0.5, weight=64)),
    tensors=(
        CostTensor("x", None, ("a", "c"), 0.125, 0.0625),
        CostTensor("ya", "a", ("b",), 0.125, 0.0625),
        CostTensor("yb", "b", ("c",), 0.125, 0.0625),
        CostTensor("yc", "c", (), 0.125, 0.0625, output=True),
    ),
    pairs=(Pair("a", "c", 0.03125),),
    launch=0.5,
    cpu_call=0.75,
)


def fewest_regions(graph, placement):
    """(segments, CPU pieces) of the cheapest labelling, found by trying every labelling."""
    names = [node.name for node in graph.nodes]
    edges = [(t.producer, c) for t in graph.tensors if t.producer for c in t.consumers]
    best = None
    for labels in itertools.product(range(len(names) + 2), repeat=len(names)):
        label = dict(zip(names, labels, strict=True))
        if any(label[n] % 2 != (placement[n] == "fpga") for n in names):
            continue
        if any(label[u] > label[v] for u, v in edges):
            continue
        odd = len({p for p in labels if p % 2})
        even = len({p for p in labels if p % 2 == 0})
        cost = odd * graph.launch + even * graph.cpu_call
        best = min(best or (cost, odd, even), (cost, odd, even))
    return best


def naive_cut_objective(graph, placement):
    total = 0.0
    for node in graph.nodes:
        total += node.cpu if placement[node.name] == "cpu" else node.fpga
    for tensor in graph.tensors:
        home = "cpu" if tensor.producer is None else placement[tensor.producer]
        needed = {placement[name] for name in tensor.consumers} | ({"cpu"} if tensor.output else set())
        if home == "cpu" and "fpga" in needed:
            total += tensor.to_fpga
        if home == "fpga" and "cpu" in needed:
            total += tensor.to_cpu
    for pair in graph.pairs:
        if placement[pair.first] == "fpga" and placement[pair.second] == "fpga":
            total -= pair.saves
    return total


def test_the_objective_of_a_graph_done_by_hand():
    # a fpga | b cpu | c fpga: two segments, one CPU piece; x goes up once, ya comes down, yb goes up, yc comes down
    placement = {"a": "fpga", "b": "cpu", "c": "fpga"}
    expected = 0.25 + 2.0 + 0.5 + 0.125 + 0.0625 + 0.125 + 0.0625 - 0.03125 + 2 * 0.5 + 0.75
    assert objective(SMALL, placement) == expected
    assert objective(SMALL, dict.fromkeys("abc", "cpu")) == 7.0 + 0.75


@pytest.mark.parametrize("seed", range(40))
def test_the_objective_equals_a_naive_reading_of_the_rules_for_every_placement(seed):
    graph = random_cost_graph(random.Random(seed), nodes=4)
    for placement in placements(graph):
        regions, _, _ = fewest_regions(graph, placement)
        assert objective(graph, placement) == pytest.approx(naive_cut_objective(graph, placement) + regions, rel=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_no_labelling_has_fewer_phases(seed):
    graph = random_cost_graph(random.Random(1000 + seed), nodes=4)
    graph = dataclasses.replace(graph, launch=1.0, cpu_call=1.0)
    for placement in placements(graph):
        cost, _, _ = fewest_regions(graph, placement)
        assert len(set(phases(graph, placement).values())) == cost


def test_a_cpu_node_before_the_second_segment_alone_shares_the_only_cpu_piece():
    nodes = tuple(CostNode(name, 1.0, 1.0) for name in ("f1", "c2", "side", "f3"))
    edges = [("f1", "c2"), ("c2", "f3"), ("side", "f3")]
    tensors = tuple(CostTensor(f"{u}{v}", u, (v,), 0.0, 0.0) for u, v in edges)
    graph = CostGraph(nodes, tensors)
    found = phases(graph, {"f1": "fpga", "c2": "cpu", "side": "cpu", "f3": "fpga"})
    assert found == {"f1": 1, "c2": 2, "side": 2, "f3": 3}


def test_an_edge_beside_a_longer_way_does_not_decide_phases():
    nodes = tuple(CostNode(name, 1.0, 1.0) for name in "abc")
    tensors = (CostTensor("x", "a", ("b", "c"), 0.0, 0.0), CostTensor("y", "b", ("c",), 0.0, 0.0))
    graph = CostGraph(nodes, tensors)
    assert graph.predecessors["c"] == ("a", "b")
    assert graph.direct_predecessors == {"a": (), "b": ("a",), "c": ("b",)}


def test_a_limit_decides_between_labellings_of_equally_many_phases():
    nodes = tuple(CostNode(name, 1.0, 1.0) for name in ("c1", "f1", "f2", "c2"))
    tensors = (CostTensor("a", "c1", ("f1",), 0.0, 0.0), CostTensor("b", "f2", ("c2",), 0.0, 0.0))
    graph = CostGraph(nodes, tensors, launch=1.0, cpu_call=3.0)
    placement = {"c1": "cpu", "f1": "fpga", "f2": "fpga", "c2": "cpu"}
    assert phases(graph, placement) == {"c1": 2, "f1": 3, "f2": 1, "c2": 2}  # two launches and one call
    assert phases(graph, placement, max_segments=1) == {"c1": 0, "f1": 1, "f2": 1, "c2": 2}
    assert objective(graph, placement) == 4.0 + 5.0
    assert objective(graph, placement, max_segments=1) == 4.0 + 7.0


def test_weights_that_stay_on_chip_are_not_loaded_and_save_no_overlap():
    nodes = (CostNode("a", 1.0, 0.5, 8, 0.25), CostNode("b", 1.0, 0.5, 8, 0.25), CostNode("c", 1.0, None))
    pairs = (Pair("a", "b", 0.125), Pair("a", "b", 0.0625, "overlap"))
    graph = CostGraph(nodes, (), pairs)
    placement = {"a": "fpga", "b": "fpga", "c": "cpu"}
    assert objective(graph, placement) == 2.0 - 0.125 - 0.0625
    assert objective(graph, placement, pinned={"a"}) == 2.0 - 0.25 - 0.125 - 0.0625
    assert objective(graph, placement, pinned={"a", "b"}) == 2.0 - 0.5 - 0.125
    assert pin(graph, ()) is graph
    assert pin(graph, {"a", "b"}).pairs == pairs[:1]


def test_nodes_without_any_fpga_are_one_cpu_piece():
    assert set(phases(SMALL, dict.fromkeys("abc", "cpu")).values()) == {0}


def test_no_nodes_cost_nothing():
    assert objective(CostGraph((), (), launch=1.0, cpu_call=1.0), {}) == 0.0


@pytest.mark.parametrize("seed", range(60))
def test_the_nodes_of_a_phase_are_convex(seed):
    rng = random.Random(seed)
    graph = random_cost_graph(rng, nodes=30)
    placement = {n.name: rng.choice(["cpu", "fpga"]) for n in graph.nodes}
    found = phases(graph, placement)
    check_convex(graph, [[name for name, p in found.items() if p == phase] for phase in set(found.values())])


def test_a_segment_that_a_path_leaves_and_enters_again_is_refused():
    with pytest.raises(PlacementError, match="not convex: a path leaves it and comes back at node 'c'"):
        check_convex(SMALL, [["a", "c"], ["b"]])
    check_convex(SMALL, [["a", "b"], ["c"]])


def test_a_node_on_a_side_it_cannot_be_on_is_refused():
    with pytest.raises(PlacementError, match="node 'b' cannot be on the FPGA"):
        objective(SMALL, dict.fromkeys("abc", "fpga"))
    with pytest.raises(PlacementError, match="node 'b' has side None"):
        objective(SMALL, {"a": "cpu", "c": "cpu"})


def test_the_file_form_gives_an_equal_graph_back():
    assert CostGraph.from_json(SMALL.to_json()) == SMALL
    data = json.loads(SMALL.to_json())
    assert CostGraph.from_json(data) == SMALL
    assert data["nodes"][1] == {"name": "b", "cpu": 2.0, "fpga": None, "weight": 0, "load": 0.0}
    assert data["tensors"][0] == {
        "name": "x", "producer": None, "consumers": ["a", "c"], "to_fpga": 0.125, "to_cpu": 0.0625, "output": False
    }  # fmt: skip
    assert set(data) == {"nodes", "tensors", "pairs", "launch", "cpu_call"}


def test_all_numbers_become_floats():
    node = CostNode("a", 1, np.float32(0.5), np.int64(8), 0)
    tensor, pair = CostTensor("t", "a", ("b",), 3, np.float64(4)), Pair("a", "b", 0)
    graph = CostGraph((node, CostNode("b", 2, 1)), (tensor,), (pair,), launch=1, cpu_call=np.int8(2))
    assert node == CostNode("a", 1.0, 0.5, 8.0)
    numbers = (node.cpu, node.fpga, node.weight, node.load, tensor.to_fpga, tensor.to_cpu, pair.saves)
    assert {type(number) for number in (*numbers, graph.launch, graph.cpu_call)} == {float}


def damaged(**changes):
    data = json.loads(SMALL.to_json())
    for path, value in changes.items():
        *way, last = path.split("__")
        place = data
        for step in way:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value
    return data


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{", "not JSON"),
        ([1], "the graph must be an object, not list"),
        ({"nodes": []}, "the graph lacks 'tensors'"),
        (damaged(speed=1), "the graph has no field 'speed'"),
        (damaged(nodes=3), "nodes=3 must be a list"),
        (damaged(nodes__0__cpu=-1.0), "node 'a': cpu=-1.0 must be a finite number"),
        (damaged(nodes__0__cpu=float("nan")), "cpu=nan must be a finite number"),
        (damaged(nodes__0__fpga="fast"), "fpga='fast' must be a finite number"),
        (damaged(nodes__0__name=None), r"nodes\[0\]: name=None must be a name"),
        (damaged(nodes__0__name="b"), "node 'b' is there twice"),
        (damaged(tensors__0__name="ya"), "tensor 'ya' is there twice"),
        (damaged(tensors__0__consumers=["z"]), "names node 'z', which is not among the nodes"),
        (damaged(tensors__0__consumers="a"), "consumers='a' must be a list of node names"),
        (damaged(tensors__0__producer="z"), "names node 'z'"),
        (damaged(tensors__0__output=1), "output=1 must be true or false"),
        (damaged(tensors__0__to_cpu=float("inf")), "to_cpu=inf must be a finite number"),
        (damaged(pairs__0__saves=-0.5), "saves=-0.5"),
        (damaged(pairs__0__second="z"), "names node 'z'"),
        (damaged(pairs__0__second="a"), "is one node twice"),
        (damaged(pairs__0__kind="near"), "no kind of pair 'near'; there are fused, overlap"),
        (damaged(nodes__0__load=0.5), r"node 'a': load=0.5 is more than fpga=0.25"),
        (damaged(nodes__1__load=0.5), r"node 'b': load=0.5 is more than fpga=None"),
        (damaged(nodes__0__cpu=10**400), r"node 'a': cpu=10{59}… must be a finite number"),
        (damaged(nodes__0__weight=10**5000), "weight=a number of thousands of digits must be a finite number"),
        (damaged(nodes__0__cpu=True), "cpu=True must be a finite number"),
        (SMALL.to_json().replace("2.0", "2" * 5000), "not JSON"),
        (damaged(launch=None), "launch=None must be a finite number"),
        (damaged(tensors__1__consumers=["b", "a"]), "is on or behind a circle"),
    ],
)
def test_a_broken_file_is_refused_by_name(source, message):
    with pytest.raises(InputError, match=message):
        CostGraph.from_json(source)
