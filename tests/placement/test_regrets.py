"""What the whole would take with a node on its other side: against every placement there is."""

import math
import random

import pytest

from fpgasim.errors import InputError, PlacementError
from fpgasim.placement import CostGraph, CostNode, CostTensor, counterfactuals, solve
from fpgasim.placement.frontier import side_bounds
from fpgasim.placement.problem import Problem

from .brute_force import best, random_problem


def solved(rng, nodes):
    """A random problem that has a solution, and that."""
    while True:
        graph, wanted = random_problem(rng, nodes)
        try:
            return graph, wanted, solve(graph, **wanted)
        except PlacementError:
            continue


@pytest.mark.parametrize("seed", range(12))
def test_each_is_the_best_placement_with_that_node_on_the_other_side(seed):
    rng = random.Random(seed)
    for _ in range(4):
        graph, wanted, solution = solved(rng, nodes=rng.randint(1, 6))
        found = counterfactuals(graph, solution, **wanted)
        assert list(found) == [node.name for node in graph.nodes]
        for name, there in found.items():
            assert there.side != solution.placement[name]
            assert there.exact or there.objective is None
            expected = None
            if there.side == "cpu" or graph.node_of[name].fpga is not None:
                expected = best(graph, **{**wanted, "force": {**wanted["force"], name: there.side}})
            if expected is None:
                assert (there.objective, there.lower_bound) == (None, None)
            else:
                assert there.objective == pytest.approx(expected[1], rel=2e-6, abs=1e-9)
                assert there.lower_bound <= expected[1] + 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_bounds_by_node_and_side_hold_with_and_without_a_price_on_weights(seed):
    rng = random.Random(100 + seed)
    for _ in range(4):
        graph, wanted = random_problem(rng, nodes=rng.randint(1, 6))
        capacity = wanted.pop("capacity") or 3
        problem = Problem(graph, wanted["force"], wanted["max_segments"], None, wanted["weights"])
        free, priced = side_bounds(problem), side_bounds(problem, price=0.25)
        for node in graph.nodes:
            for side in ("cpu", "fpga"):
                expected = limited = None
                if side in problem.sides(node.name):
                    forced = {**wanted["force"], node.name: side}
                    expected = best(graph, **{**wanted, "force": forced})
                    limited = best(graph, **{**wanted, "force": forced, "capacity": capacity})
                least = math.inf if expected is None else expected[1]
                assert free.lower[node.name][side] <= least + 1e-9
                assert free.upper[node.name][side] == pytest.approx(least, abs=1e-9)
                assert priced.lower[node.name][side] - 0.25 * capacity <= (limited or (0, math.inf))[1] + 1e-9


def ladder(rungs):
    """Two chains with a link at every rung; phases many enough that they cannot all be counted at once."""
    nodes, tensors = [], [CostTensor("x", None, ("l0", "r0"), 0.5, 0.5)]
    for i in range(rungs):
        nodes += [CostNode(f"l{i}", 4.0, 1.0 if i % 3 else None, 1), CostNode(f"r{i}", 4.0, 2.0, 1)]
        below = (f"l{i + 1}", f"r{i + 1}") if i + 1 < rungs else ()
        tensors += [CostTensor(f"tl{i}", f"l{i}", below, 0.25, 0.25, not below)]
        tensors += [CostTensor(f"tr{i}", f"r{i}", below[1:], 0.25, 0.25, not below)]
    return CostGraph(tuple(nodes), tuple(tensors), launch=0.125, cpu_call=0.25)


def test_many_nodes_are_settled_at_once():
    graph = ladder(40)
    solution = solve(graph)
    assert len(solution.segments) > 5
    found = counterfactuals(graph, solution, time_limit=0.0)
    assert all(there.exact or there.objective is None for there in found.values())
    assert min(there.objective for there in found.values() if there.objective is not None) >= solution.lower_bound
    for name in ("r3", "l20", "r39"):
        again = solve(graph, force={name: found[name].side})
        assert found[name].objective == pytest.approx(again.objective, rel=1e-6)


def dense(layers):
    """Each node reads all before it, so that all of them wait until the end."""
    names = [f"n{i}" for i in range(layers)]
    nodes = tuple(CostNode(name, 2.0, 1.0 + i % 2 / 4, 1) for i, name in enumerate(names))
    tensors = tuple(
        CostTensor(f"t{i}", name, tuple(names[i + 1 :]), 0.125, 0.25, i == layers - 1) for i, name in enumerate(names)
    )
    return CostGraph(nodes, tensors, launch=0.25, cpu_call=0.5)


def test_a_graph_too_wide_for_any_number_of_phases_is_settled_by_few_and_cuts():
    graph = dense(24)
    solution = solve(graph)
    found = counterfactuals(graph, solution, time_limit=0.0)
    assert all(there.exact for there in found.values())
    for name in ("n0", "n7", "n23"):
        again = solve(graph, "milp", force={name: found[name].side})
        assert found[name].objective == pytest.approx(again.objective, rel=1e-6)


def test_a_graph_too_wide_for_even_that_is_solved_node_by_node():
    graph = dense(40)
    solution = solve(graph)
    found = counterfactuals(graph, solution, time_limit=1.0)
    assert all(there.lower_bound <= there.objective < math.inf for there in found.values())
    assert all(there.lower_bound >= solution.lower_bound - 1e-6 for there in found.values())


def test_what_the_time_does_not_do_for_is_bounded_and_says_so():
    graph = ladder(40)
    solution = solve(graph, capacity=30, time_limit=20.0)
    found = counterfactuals(graph, solution, capacity=30, time_limit=0.0)
    loose = [there for there in found.values() if not there.exact]
    assert loose
    assert all(there.lower_bound < there.objective < math.inf for there in loose)
    assert any(there.lower_bound > solution.lower_bound for there in loose)


def test_a_forced_node_is_asked_about_as_if_it_were_free():
    graph = ladder(3)
    force = {"r1": "cpu"}
    solution = solve(graph, force=force)
    found = counterfactuals(graph, solution.placement, force=force)
    assert found["r1"].side == "fpga"
    assert found["r1"].objective == pytest.approx(solve(graph, force={"r1": "fpga"}).objective, rel=1e-6)


def test_limits_that_make_no_sense_are_refused():
    graph = ladder(2)
    with pytest.raises(InputError, match="max_segments=-1"):
        counterfactuals(graph, dict.fromkeys(graph.node_of, "cpu"), max_segments=-1)
