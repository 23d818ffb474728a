"""The best placement by labels on a frontier: against every placement there is, also where bounds are of less."""

import itertools
import random

import pytest

from fpgasim.placement import CostGraph, CostNode, CostTensor, frontier, solve
from fpgasim.placement.labels import solve_labels
from fpgasim.placement.mincut import cut_objective
from fpgasim.placement.problem import Problem

from .brute_force import best, random_problem
from .random_graphs import placements, random_cost_graph


@pytest.mark.parametrize("most_states", [8, 24, 20_000])
@pytest.mark.parametrize("seed", range(6))
def test_the_placement_is_the_best_however_few_states_the_bounds_are_of(seed, most_states, monkeypatch):
    monkeypatch.setattr(frontier, "_MOST_STATES", most_states)
    rng = random.Random(seed)
    solved = 0
    for _ in range(12):
        graph, wanted = random_problem(rng, nodes=rng.randint(1, 7))
        forced = {name: side for name, side in wanted["force"].items() if side == "cpu"}
        problem = Problem(graph, forced, wanted["max_segments"], wanted["capacity"], wanted["weights"])
        found = solve_labels(problem, time_limit=60.0)
        if found is None:
            continue
        solved += 1
        assert found.finished
        expected = best(graph, **{**wanted, "force": forced})
        assert not problem.broken(found.placement, found.pinned)
        assert problem.cost(found.placement, found.pinned) == pytest.approx(expected[1], rel=1e-9, abs=1e-9)
        assert found.lower_bound <= expected[1] + 1e-9
    assert solved > (0 if most_states == 8 else 6)


def test_what_is_not_below_a_cost_known_need_not_be_found():
    graph, _ = random_problem(random.Random(3), 6)
    least = solve(graph).objective
    assert solve_labels(Problem(graph), time_limit=60.0, upper=least - 0.01).placement is None
    assert solve_labels(Problem(graph), time_limit=60.0, upper=least).lower_bound == pytest.approx(least)


@pytest.mark.parametrize("seed", range(10))
def test_a_narrowed_problem_costs_no_placement_more_and_keeps_its_phases(seed):
    graph = random_cost_graph(random.Random(seed), nodes=6)
    narrow = frontier.narrowed(Problem(graph), 1).cost_graph
    assert all(sum(t.to_fpga > 0 for _ in t.consumers) <= 1 for t in narrow.tensors)
    assert {n: set(p) for n, p in narrow.predecessors.items()} == {n: set(p) for n, p in graph.predecessors.items()}
    for placement in itertools.islice(placements(graph), 64):
        assert cut_objective(narrow, placement) <= cut_objective(graph, placement) + 1e-12


def test_a_network_that_concatenates_everything_before_is_solved_under_a_capacity():
    names = [f"n{i}" for i in range(30)]
    nodes = tuple(CostNode(name, 2.0 + i % 3, 0.5 + i % 2 / 4, 2 + i % 5) for i, name in enumerate(names))
    tensors = tuple(
        CostTensor(f"t{i}", name, tuple(names[i + 1 :]), 0.125, 0.25, i == 29) for i, name in enumerate(names)
    )
    graph = CostGraph(nodes, tensors, launch=0.25, cpu_call=0.5)
    limits = {"max_segments": 2, "capacity": 60}
    narrow, whole = solve(graph, "frontier", **limits), solve(graph, "milp", **limits)
    assert (narrow.algorithm, whole.algorithm) == ("frontier", "milp")
    assert narrow.objective == pytest.approx(whole.objective, rel=1e-9)
    assert narrow.gap < 1e-9


def test_the_algorithm_says_where_a_graph_is_too_wide_for_it(monkeypatch):
    monkeypatch.setattr(frontier, "_MOST_STATES", 2)
    graph = random_cost_graph(random.Random(1), nodes=8)
    solution = solve(graph, "frontier")
    assert solution.algorithm == "milp"
    assert "too wide for frontier in that time: solved by milp instead" in solution.note
