"""`solve` on numbers of any kind, at capacities a rounding away, and in little time."""

import itertools
import json
import math
import random

import numpy as np
import pytest

from fpgasim.placement import CostGraph, CostNode, CostTensor, labels, solve, solving
from fpgasim.placement.plan import Options
from fpgasim.placement.problem import Found, Problem, Total, weight_of

from .brute_force import check_solution, random_problem

ALGORITHMS = ["auto", "frontier", "milp", "mincut", "greedy"]


def apart(*weights, cpu=1.0, fpga=0.1):
    """Nodes on their own with these weights, each of which costs a little more on the CPU than the one before."""
    nodes = tuple(CostNode(f"n{i}", cpu + i / 128, fpga, weight) for i, weight in enumerate(weights))
    return CostGraph(nodes, tuple(CostTensor(f"t{i}", f"n{i}", (), 0.0, 0.0, True) for i in range(len(nodes))))


def wide(nodes):
    """So many nodes that one reads at the end, none before another."""
    names = [f"n{i}" for i in range(nodes)]
    made = tuple(CostNode(name, 2.0 + i % 3, 0.5 + i % 2, 1.0 + i % 5) for i, name in enumerate(names))
    tensors = tuple(CostTensor(f"t{name}", name, ("end",), 0.125, 0.25) for name in names)
    return CostGraph((*made, CostNode("end", 1.0, None)), tensors, launch=0.25, cpu_call=0.5)


@pytest.mark.parametrize("algorithm", ["auto", "frontier", "milp"])
@pytest.mark.parametrize("seed", range(6))
def test_whole_numbers_are_costs_like_others(seed, algorithm):
    rng = random.Random(4000 + seed)

    for _ in range(8):
        graph, wanted = random_problem(rng, nodes=rng.randint(1, 7))
        data = json.loads(graph.to_json(), parse_float=lambda text: int(float(text)))
        check_solution(CostGraph.from_json(data), algorithm, wanted)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("capacity", [None, 100, 1e308, math.inf, 10**400])
def test_a_capacity_that_holds_everything_is_no_limit(algorithm, capacity):
    nodes = (CostNode("a", 1.0, 0.1, 1), CostNode("b", 1.0, None), CostNode("c", 1.0, 0.1, 1))
    links = tuple(CostTensor(f"{u}{v}", u, (v,), 0.0, 0.0) for u, v in itertools.pairwise("abc"))
    graph = CostGraph(nodes, links)
    one = solve(graph, algorithm, max_segments=1, capacity=capacity)
    assert one.objective == 2.1
    assert one.lower_bound <= 2.1
    for weights in ("streamed", "pinned", "auto"):
        assert solve(graph, algorithm, 10**30, capacity, weights=weights).objective == 1.2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("weights", ["streamed", "pinned", "auto"])
def test_a_capacity_is_kept_to_the_last_bit(algorithm, weights):
    graph = apart(0.1, 0.2, 0.3, fpga=0.1 if weights != "auto" else 0.5)
    if weights == "auto":
        graph = CostGraph(tuple(CostNode(n.name, n.cpu, n.fpga, n.weight, 0.5) for n in graph.nodes), graph.tensors)
    assert weight_of(graph, graph.node_of) == 0.6 < 0.1 + 0.2 + 0.3  # rounded once, and in turn
    for capacity, counted in ((0.6, 3), (math.nextafter(0.6, 0), 2)):
        solution = solve(graph, algorithm, capacity=capacity, weights=weights)
        on_fpga = [name for name, side in solution.placement.items() if side == "fpga"]
        there = solution.pinned if weights == "auto" else on_fpga
        assert len(there) == counted
        assert weight_of(graph, there) <= capacity


@pytest.mark.parametrize("algorithm", ["auto", "frontier", "milp"])
@pytest.mark.parametrize("seed", range(6))
def test_capacities_a_rounding_from_a_sum_of_decimals_part_what_fits_from_what_does_not(seed, algorithm):
    rng = random.Random(5000 + seed)
    for _ in range(4):
        weights = [rng.randint(1, 9) / 10 for _ in range(7)]
        graph = apart(*weights)
        full = math.fsum(rng.sample(weights, 4))
        for capacity in (full, math.nextafter(full, 0), math.nextafter(full, 1e9)):
            fitting = [
                names
                for count in range(8)
                for names in itertools.combinations(graph.node_of, count)
                if weight_of(graph, names) <= capacity
            ]
            least = min(
                math.fsum([node.fpga if node.name in names else node.cpu for node in graph.nodes]) for names in fitting
            )
            solution = solve(graph, algorithm, capacity=capacity)
            there = [name for name, side in solution.placement.items() if side == "fpga"]
            assert weight_of(graph, there) <= capacity
            assert solution.objective == pytest.approx(least, rel=1e-6)
            assert solution.lower_bound <= least


def test_sums_in_turn_are_rounded_once():
    rng = random.Random(6)
    for _ in range(200):
        weights = [rng.choice([rng.randint(1, 99) / 10, rng.random() * 10.0 ** rng.randint(-6, 6)]) for _ in range(30)]
        total, used, finer = Total(), np.zeros(1), np.zeros(1)
        for weight in weights:
            total = total.plus(weight)
            used, finer = labels._added(used, finer, np.array([weight]))
        assert total.sum == used[0] == math.fsum(weights)


def test_what_breaks_a_limit_is_not_taken_from_an_algorithm(monkeypatch):
    graph = apart(2, 2, 2)
    wrong = Found(dict.fromkeys(graph.node_of, "fpga"), frozenset(), -math.inf, True)
    monkeypatch.setattr(solving, "solve_labels", lambda *args, **kwargs: wrong)
    solution = solve(graph, capacity=4)
    assert (solution.algorithm, len(solution.segments[0])) == ("milp", 2)


def test_another_algorithm_than_asked_for_is_named(monkeypatch):
    graph = apart(3, 1, 2)
    monkeypatch.setattr(
        solving, "solve_milp", lambda *args, **kwargs: Found(None, frozenset(), -math.inf, finished=False)
    )
    solution = solve(graph, "milp", capacity=4)
    assert solution.algorithm in ("frontier", "coverage")
    assert solution.note == "milp proved no best placement in its time: solved by frontier instead"
    assert solve(graph, capacity=4).note == ""


def test_nodes_forced_to_the_fpga_alone_are_not_all_on_the_cpu():
    graph = apart(1, 1, cpu=1.0, fpga=9.0)
    solution = solve(graph, force={"n0": "fpga"}, max_segments=1, capacity=1)
    assert solution.placement == {"n0": "fpga", "n1": "cpu"}
    assert solution.algorithm != "all-cpu"
    late = solve(wide(70), "milp", force={"n0": "fpga"}, capacity=5, max_segments=1, time_limit=0.0)
    assert "fpga" in late.placement.values()
    assert late.algorithm != "all-cpu"
    assert late.note.endswith(f"taken is the best found, by {late.algorithm}")


def test_the_best_found_is_said_to_be_by_what_the_solution_names(monkeypatch):
    graph = apart(2, 2, cpu=1.0, fpga=0.1)
    nothing = Found(dict.fromkeys(graph.node_of, "cpu"), frozenset(), 0.5, finished=False)
    for solver in ("solve_milp", "solve_labels"):
        monkeypatch.setattr(solving, solver, lambda *args, **kwargs: nothing)
    late = solve(graph, capacity=1)
    assert late.algorithm == "all-cpu"
    assert late.note.endswith("taken is the best found, by all-cpu")


def test_a_graph_too_wide_for_the_frontier_goes_to_milp_at_once(monkeypatch):
    graph = wide(70)
    monkeypatch.setattr(labels, "capacity_price", lambda *args: pytest.fail("prices are of no use here"))
    monkeypatch.setattr(labels, "frontier_layers", lambda *args: pytest.fail("no layers are made"))
    solution = solve(graph, max_segments=1, capacity=60, time_limit=20.0)
    assert (solution.algorithm, solution.note) == ("milp", "")
    assert solution.gap < 1e-6
    assert labels.solve_labels(Problem(wide(3)), time_limit=0.0) is None


def test_a_plan_keeps_its_limits_as_plain_numbers():
    options = Options(max_segments=np.int64(2), capacity=np.float32(8))
    assert (type(options.max_segments), type(options.capacity)) == (int, float)
    assert Options(capacity=math.inf).capacity == math.inf  # more than what the device holds
