"""The minimum cut against every placement there is."""

import dataclasses
import random

import pytest

from fpgasim.placement.cost_graph import CostGraph, CostNode, CostTensor, Pair, cut_objective, objective
from fpgasim.placement.mincut import lower_bound, minimum_cut, side_cuts

from .random_graphs import placements, random_cost_graph


@pytest.mark.parametrize("seed", range(40))
def test_the_cut_is_the_best_of_all_placements_without_launches_and_calls(seed):
    rng = random.Random(seed)
    for _ in range(8):
        graph = random_cost_graph(rng, nodes=rng.randint(1, 7))
        best = min(cut_objective(graph, p) for p in placements(graph))
        cut = minimum_cut(graph)
        assert cut_objective(graph, cut.placement) == pytest.approx(best, rel=1e-6, abs=1e-6)
        assert cut.lower_bound <= best + 1e-12
        assert cut_objective(graph, cut.placement) <= cut.lower_bound + cut.error + 1e-12
        assert cut.error < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_the_cut_of_ten_nodes_is_the_best_of_all_placements(seed):
    graph = random_cost_graph(random.Random(100 + seed), nodes=10)
    best = min(cut_objective(graph, p) for p in placements(graph))
    assert cut_objective(graph, minimum_cut(graph).placement) == pytest.approx(best, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_no_placement_is_below_the_lower_bound_of_the_full_objective(seed):
    rng = random.Random(1000 + seed)
    for _ in range(8):
        graph = random_cost_graph(rng, nodes=rng.randint(1, 6))
        bound = lower_bound(graph, minimum_cut(graph))
        best = min(objective(graph, p) for p in placements(graph))
        assert bound <= best + 1e-12
        without = dataclasses.replace(graph, launch=0.0, cpu_call=0.0)
        best = min(cut_objective(without, p) for p in placements(without))
        assert lower_bound(without, minimum_cut(without)) == pytest.approx(best, rel=1e-6, abs=1e-6)


def test_among_equal_cuts_the_fpga_gets_the_fewest_nodes():
    tie = CostGraph((CostNode("a", 1.0, 1.0), CostNode("b", 2.0, 2.0), CostNode("c", 2.0, 1.0)), ())
    assert minimum_cut(tie).placement == {"a": "cpu", "b": "cpu", "c": "fpga"}


def test_nothing_to_gain_stays_on_the_cpu():
    free = CostGraph((CostNode("a", 0.0, 0.0), CostNode("b", 0.0, None)), ())
    assert minimum_cut(free).placement == {"a": "cpu", "b": "cpu"}
    assert minimum_cut(CostGraph((), ())).placement == {}


def test_a_pair_alone_can_bring_two_nodes_to_the_fpga():
    nodes = (CostNode("a", 1.0, 1.5), CostNode("b", 1.0, 1.5))
    link = (CostTensor("t", "a", ("b",), 0.0, 0.0),)
    assert set(minimum_cut(CostGraph(nodes, link)).placement.values()) == {"cpu"}
    paired = CostGraph(nodes, link, (Pair("a", "b", 1.25),))
    assert set(minimum_cut(paired).placement.values()) == {"fpga"}
    assert minimum_cut(paired).lower_bound == pytest.approx(1.75)


def test_a_tensor_with_many_readers_is_moved_once():
    readers = tuple(CostNode(f"r{i}", 1.0, 0.5) for i in range(3))
    graph = CostGraph(readers, (CostTensor("x", None, ("r0", "r1", "r2"), 1.25, 0.0),))
    assert set(minimum_cut(graph).placement.values()) == {"fpga"}  # 1.5 + 1.25 < 3; each alone would not pay


def test_costs_of_very_different_sizes_are_still_cut_exactly_enough():
    small = 1e-6
    nodes = (CostNode("huge", 10.0, None), CostNode("tiny", 2 * small, small))
    cut = minimum_cut(CostGraph(nodes, ()))
    assert cut.placement == {"huge": "cpu", "tiny": "fpga"}
    assert cut.error < 1e-7


def test_the_same_graph_gives_the_same_cut_again():
    graph = random_cost_graph(random.Random(7), nodes=60)
    assert minimum_cut(graph) == minimum_cut(graph)


@pytest.mark.parametrize("seed", range(20))
def test_forced_nodes_stay_and_the_rest_is_the_best_of_all_placements(seed):
    rng = random.Random(2000 + seed)
    for _ in range(8):
        graph = random_cost_graph(rng, nodes=rng.randint(1, 7))
        forced = {n.name: "cpu" if n.fpga is None else rng.choice(["cpu", "fpga"]) for n in graph.nodes[::3]}
        kept = [p for p in placements(graph) if all(p[name] == side for name, side in forced.items())]
        cut = minimum_cut(graph, forced)
        assert cut.placement in kept
        best = min(cut_objective(graph, p) for p in kept)
        assert cut_objective(graph, cut.placement) == pytest.approx(best, rel=1e-6, abs=1e-6)
        assert cut.lower_bound <= best + 1e-12
        assert lower_bound(graph, cut, forced) <= min(objective(graph, p) for p in kept) + 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_with_a_node_on_a_side_bounds_all_placements_that_have_it_there(seed):
    rng = random.Random(3000 + seed)
    for _ in range(8):
        graph = random_cost_graph(rng, nodes=rng.randint(1, 7))
        forced = {n.name: "cpu" for n in graph.nodes[1::4]}
        kept = [p for p in placements(graph) if all(p[name] == side for name, side in forced.items())]
        for name, bounds in side_cuts(graph, forced).items():
            for side, bound in bounds.items():
                best = min((cut_objective(graph, p) for p in kept if p[name] == side), default=float("inf"))
                assert bound == pytest.approx(best, rel=1e-5, abs=1e-5)
                assert bound <= best + 1e-12
