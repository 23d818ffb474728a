"""The mixed-integer program by itself: against every placement there is, and where its solver rounds."""

import random

import pytest

from fpgasim.placement import CostGraph, CostNode, CostTensor
from fpgasim.placement.milp import solve_milp
from fpgasim.placement.problem import Problem

from .brute_force import best, random_problem


@pytest.mark.parametrize("seed", range(8))
def test_the_program_finds_the_best_placement_and_proves_it(seed):
    rng = random.Random(seed)
    for _ in range(6):
        graph, wanted = random_problem(rng, nodes=rng.randint(1, 7))
        force = {name: side for name, side in wanted.pop("force").items() if side == "cpu"}
        problem = Problem(graph, force, **wanted)
        expected = best(graph, force=force, **wanted)
        found = solve_milp(problem, time_limit=60.0)
        assert found.finished
        assert not problem.broken(found.placement, found.pinned)
        assert problem.cost(found.placement, found.pinned) == pytest.approx(expected[1], rel=1e-7, abs=1e-7)
        assert expected[1] - 1e-6 <= found.lower_bound <= expected[1] + 1e-12


def test_a_capacity_is_kept_where_the_solver_rounds_it_away():
    nodes = tuple(CostNode(name, 2.0, 1.0, 10**9 + i) for i, name in enumerate("abc"))
    problem = Problem(CostGraph(nodes, ()), capacity=2 * 10**9 + 1)  # b and c are heavier by 2 in 2,000,000,003
    found = solve_milp(problem, time_limit=60.0)
    assert found.placement == {"a": "fpga", "b": "fpga", "c": "cpu"}
    assert found.lower_bound == pytest.approx(4.0)


def test_limits_that_nothing_keeps_have_no_placement():
    nodes = (CostNode("a", 2.0, 1.0), CostNode("b", 2.0, None), CostNode("c", 2.0, 1.0))
    graph = CostGraph(nodes, (CostTensor("x", "a", ("b",), 0.0, 0.0), CostTensor("y", "b", ("c",), 0.0, 0.0)))
    both = {"a": "fpga", "c": "fpga"}
    assert solve_milp(Problem(graph, both, max_segments=2), time_limit=60.0).lower_bound == pytest.approx(4.0)
    found = solve_milp(Problem(graph, both, max_segments=1), time_limit=60.0)
    assert (found.placement, found.finished) == (None, True)
