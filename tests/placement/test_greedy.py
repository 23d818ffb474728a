"""The baseline: what fits, in order, without a look at costs."""

import itertools
import random

import pytest

from fpgasim.placement import CostGraph, CostNode, CostTensor, solve
from fpgasim.placement.greedy import greedy_placement
from fpgasim.placement.problem import Problem

from .brute_force import random_problem


def chain(*weights):
    """Nodes a, b, c, … one after the other; a weight of None stands for a node that only the CPU can compute."""
    named = zip("abcdefg", weights, strict=False)
    nodes = tuple(CostNode(name, 1.0, None if w is None else 9.0, w or 0) for name, w in named)
    tensors = tuple(CostTensor(u.name, u.name, (v.name,), 0.0, 0.0) for u, v in itertools.pairwise(nodes))
    return CostGraph(nodes, tensors)


def on_fpga(graph, **wanted):
    return "".join(name for name, side in greedy_placement(Problem(graph, **wanted)).items() if side == "fpga")


def test_everything_goes_to_the_fpga_that_can_whatever_it_costs():
    assert on_fpga(chain(1, None, 1, 0)) == "acd"


def test_it_stops_at_the_first_node_that_does_not_fit():
    assert on_fpga(chain(3, 3, 1, 0), capacity=5) == "a"  # c and d would fit
    assert on_fpga(chain(3, 3, 1, 0), capacity=5, weights="auto") == "abcd"  # only what stays on chip takes room


def test_segments_too_many_go_to_the_cpu_the_smallest_first():
    graph = chain(1, 1, None, 1, None, 1, 1)
    assert on_fpga(graph, max_segments=2) == "abfg"
    assert on_fpga(graph, max_segments=1) == "ab"
    assert on_fpga(graph, max_segments=1, forced={"d": "fpga"}) in ("abd", "d")


def test_a_forced_node_counts_first():
    assert on_fpga(chain(3, 3, 3), capacity=5, forced={"c": "fpga"}) == "c"
    assert on_fpga(chain(1, 1), forced={"a": "cpu"}) == "b"


@pytest.mark.parametrize("seed", range(4))
def test_the_best_placement_is_never_worse(seed):
    rng = random.Random(seed)
    for _ in range(5):
        graph, wanted = random_problem(rng, nodes=8)
        problem = Problem(graph, {}, wanted["max_segments"], wanted["capacity"], wanted["weights"])
        placement = greedy_placement(problem)
        cost = problem.cost(placement, problem.pinned(placement))
        assert not problem.broken(placement, problem.pinned(placement))
        assert solve(graph, **{**wanted, "force": {}}).objective <= cost + 1e-9
