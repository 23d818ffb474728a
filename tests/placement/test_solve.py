"""`solve` against every placement there is, and what it says where it takes something else than asked for."""

import dataclasses
import itertools
import json
import random

import numpy as np
import pytest

from fpgasim.errors import InputError, PlacementError, UnknownNameError
from fpgasim.placement import CostGraph, CostNode, CostTensor, Pair, Solution, objective, solve, what_if

from .brute_force import best, check_solution, random_problem, random_worth


def chain(*nodes, launch=0.0, cpu_call=0.0, transfer=0.0, pairs=()):
    """`nodes` one after the other, named a, b, c, …: (seconds on the CPU, on the FPGA, weight, load)."""
    made = tuple(CostNode(name, *costs) for name, costs in zip("abcdefgh", nodes, strict=False))
    links = itertools.pairwise(node.name for node in made)
    tensors = [CostTensor(f"{u}{v}", u, (v,), transfer, transfer) for u, v in links]
    tensors += [CostTensor("x", None, ("a",), transfer, transfer)]
    tensors += [CostTensor("y", made[-1].name, (), transfer, transfer, output=True)]
    return CostGraph(made, tuple(tensors), pairs, launch, cpu_call)


FAST = (1.0, 0.125, 4)  # on the FPGA eight times as quick, weight 4
ONLY_CPU = (1.0, None)


@pytest.mark.parametrize("seed", range(20))
def test_the_solution_is_the_best_of_all_placements(seed):
    rng = random.Random(seed)
    for _ in range(20):
        graph, wanted = random_problem(rng, nodes=rng.randint(1, 8))
        check_solution(graph, rng.choice(["auto", "frontier", "milp"]), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_the_solution_of_many_nodes_is_the_best_of_all_placements(seed):
    rng = random.Random(1000 + seed)
    for nodes in (9, 10, 11, 12):
        graph, wanted = random_problem(rng, nodes)
        check_solution(graph, rng.choice(["auto", "milp"]), wanted)


@pytest.mark.parametrize("seed", range(8))
def test_coverage_is_the_greatest_there_is_and_its_objective_the_least_of_that(seed):
    rng = random.Random(2000 + seed)
    for _ in range(6):
        graph, wanted = random_problem(rng, nodes=rng.randint(1, 6))
        check_solution(graph, rng.choice(["auto", "milp"]), wanted, random_worth(rng, graph))


@pytest.mark.parametrize("algorithm", ["mincut", "greedy"])
@pytest.mark.parametrize("seed", range(5))
def test_no_algorithm_breaks_a_limit_or_says_a_wrong_bound(algorithm, seed):
    rng = random.Random(3000 + seed)
    for _ in range(6):
        graph, wanted = random_problem(rng, nodes=rng.randint(1, 6))
        expected = best(graph, **wanted)
        if expected is None:
            with pytest.raises(PlacementError, match=r"no placement keeps|must be on the FPGA"):
                solve(graph, algorithm, **wanted)
            continue
        solution = solve(graph, algorithm, **wanted)
        assert solution.lower_bound <= expected[1] + 1e-12 <= solution.objective + 2e-12
        assert all(solution.placement[name] == side for name, side in wanted["force"].items())
        counted = solution.pinned if wanted["weights"] == "auto" else [n for names in solution.segments for n in names]
        if wanted["capacity"] is not None:
            assert sum(graph.node_of[name].weight for name in counted) <= wanted["capacity"]
        if wanted["max_segments"] is not None:
            assert len(solution.segments) <= wanted["max_segments"]


def test_auto_says_which_algorithm_proved_it():
    free = solve(chain(FAST, FAST))
    assert (free.algorithm, free.note) == ("mincut", "")
    assert free.placement == {"a": "fpga", "b": "fpga"}
    assert free.segments == (("a", "b"),)
    # two launches cost more than the CPU node between them saves, which a cut does not see
    dear = solve(chain(FAST, (0.25, 0.375, 0), FAST, launch=0.25, cpu_call=0.25))
    assert dear.placement == dict.fromkeys("abc", "fpga")
    tight = solve(chain(FAST, FAST, FAST, launch=0.125), capacity=8)
    assert tight.algorithm == "frontier"
    assert tight.segments == (("a", "b"),) or tight.segments == (("b", "c"),)


def test_a_cut_that_breaks_a_limit_gives_way_and_says_so():
    graph = chain(FAST, ONLY_CPU, FAST)
    two = solve(graph, "mincut")
    assert (two.segments, two.note) == ((("a",), ("c",)), "")
    one = solve(graph, "mincut", max_segments=1)
    assert one.algorithm == "frontier"
    assert len(one.segments) == 1
    assert "mincut gives 2 FPGA segments, more than max_segments=1: solved exactly instead" in one.note
    light = solve(graph, "mincut", capacity=4)
    assert "weights of 8 on the FPGA, more than capacity=4" in light.note
    assert len(light.segments) == 1


def test_max_segments_of_none_there_is_leaves_everything_on_the_cpu():
    solution = solve(chain(FAST, FAST), max_segments=0)
    assert solution.algorithm == "all-cpu"
    assert solution.segments == ()
    assert (solution.objective, solution.lower_bound) == (2.0, pytest.approx(2.0))


def test_a_placement_that_loses_to_the_cpu_alone_is_replaced_by_it():
    graph = chain(FAST, FAST, launch=9.0)
    for algorithm in ("auto", "mincut", "greedy"):
        solution = solve(graph, algorithm)
        assert solution.algorithm == "all-cpu"
        assert solution.objective == 2.0
        assert "everything is left on the CPU" in solution.note
    kept = solve(graph, force={"a": "fpga"})
    assert kept.placement["a"] == "fpga"
    assert "the CPU alone would take 2,000 ms instead of 9,250 ms" in kept.note


def test_a_solver_that_has_no_time_gives_the_best_at_hand_and_says_so():
    rng = random.Random(5)
    graph, _ = random_problem(rng, 40)
    weight = sum(node.weight for node in graph.nodes)
    late = solve(graph, "milp", max_segments=2, capacity=weight / 3, time_limit=0.0)
    assert "the time limit of 0 s was over" in late.note
    assert late.lower_bound < late.objective
    assert len(late.segments) <= 2
    assert sum(graph.node_of[n].weight for names in late.segments for n in names) <= weight / 3
    assert late.objective <= objective(graph, dict.fromkeys(late.placement, "cpu"))


def test_pinned_weights_are_not_loaded_and_save_no_overlap():
    graph = chain((9.0, 2.0, 4, 1.0), (9.0, 2.0, 4, 1.0), pairs=(Pair("a", "b", 0.75, "overlap"),))
    assert solve(graph).objective == 4.0 - 0.75
    pinned = solve(graph, weights="pinned")
    assert (pinned.objective, pinned.pinned) == (2.0, {"a", "b"})
    half = solve(graph, weights="auto", capacity=4)
    assert (half.objective, half.pinned) == (4.0 - 0.75 - 1.0, {"a"})
    assert solve(graph, weights="pinned", capacity=4).segments in ((("a",),), (("b",),))


def test_coverage_takes_what_it_can_whatever_it_costs():
    graph = chain(FAST, (1.0, 5.0, 4), ONLY_CPU)
    assert solve(graph).placement["b"] == "cpu"
    covered = solve(graph, coverage={"a": 1, "b": 1, "c": 1})
    assert covered.algorithm == "coverage"
    assert covered.placement == {"a": "fpga", "b": "fpga", "c": "cpu"}
    assert "the CPU alone would take" in covered.note
    assert solve(graph, coverage={"a": 1, "b": 2}, capacity=4).placement == {"a": "cpu", "b": "fpga", "c": "cpu"}


def test_an_exact_name_beats_a_pattern():
    graph = chain(FAST, FAST, FAST)
    solution = solve(graph, force={"[ab]": "cpu", "b": "fpga"})
    assert solution.placement == {"a": "cpu", "b": "fpga", "c": "fpga"}


@pytest.mark.parametrize(
    ("force", "error", "message"),
    [
        ({"z*": "cpu"}, PlacementError, r"'z\*' meets no node"),
        ({"a": "gpu"}, InputError, "'a' is sent to 'gpu'; there are cpu, fpga"),
        ({"a": []}, InputError, r"'a' is sent to \[\]; there are cpu, fpga"),
        (["a"], InputError, r"force=\['a'\] must be a mapping of node names or patterns to cpu or fpga"),
        ("a=cpu", InputError, "force='a=cpu' must be a mapping"),
        ({3: "cpu"}, InputError, "force: 3 is no node name or pattern"),
        ({"b": "fpga"}, PlacementError, "sends node 'b' to the FPGA, which cannot compute it"),
        ({"[ab]": "cpu", "[ac]": "fpga"}, PlacementError, "send node 'a' to different sides"),
    ],
)
def test_a_force_that_cannot_be_is_refused_by_name(force, error, message):
    with pytest.raises(error, match=message):
        solve(chain(FAST, ONLY_CPU, FAST), force=force)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"force": {"a": "fpga", "c": "fpga"}, "max_segments": 1}, "no placement keeps all of max_segments=1, force"),
        ({"force": {"a": "fpga"}, "max_segments": 0}, "node 'a' must be on the FPGA, but max_segments=0"),
        ({"force": {"a": "fpga", "c": "fpga"}, "capacity": 7}, "weigh 8, more than capacity=7"),
    ],
)
def test_limits_that_nothing_keeps_are_refused(wanted, message):
    with pytest.raises(PlacementError, match=message):
        solve(chain(FAST, ONLY_CPU, FAST), **wanted)


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ({"algorithm": "best"}, UnknownNameError, "no algorithm 'best'"),
        ({"weights": "some"}, UnknownNameError, "'some'; there are streamed, pinned, auto"),
        ({"max_segments": -1}, InputError, "max_segments=-1 must be a whole number"),
        ({"max_segments": 1.5}, InputError, "max_segments=1.5 must be a whole number"),
        ({"capacity": -1}, InputError, "capacity=-1 must be a number"),
        ({"time_limit": "long"}, InputError, "time_limit='long' must be a number"),
        ({"coverage": {"z": 1}}, PlacementError, "coverage: 'z' is no node"),
        ({"max_segments": True}, InputError, "max_segments=True must be a whole number"),
        ({"capacity": float("nan")}, InputError, "capacity=nan must be a number"),
        ({"coverage": ["a"]}, InputError, r"coverage=\['a'\] must be a mapping"),
        ({"coverage": {"a": 10**400}}, InputError, "coverage: 'a': 10+… must be a finite number"),
        ({"coverage": {"a": None}}, InputError, "coverage: 'a': None must be a finite number"),
        ({"coverage": {"a": -1}}, InputError, "coverage: 'a': -1 must be a finite number"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(wanted, error, message):
    with pytest.raises(error, match=message):
        solve(chain(FAST), **wanted)


def test_a_cost_graph_may_be_an_object_its_text_or_a_file(tmp_path):
    graph = chain(FAST, ONLY_CPU, launch=0.125)
    path = tmp_path / "graph.json"
    path.write_text(graph.to_json())
    expected = solve(graph)
    for source in (graph.to_json(), json.loads(graph.to_json()), path, str(path)):
        assert dataclasses.replace(solve(source), seconds=0.0) == dataclasses.replace(expected, seconds=0.0)
    path.write_text("\ufeff" + graph.to_json(), encoding="utf-8")
    assert solve(path).placement == solve("\ufeff" + graph.to_json()).placement == expected.placement
    with pytest.raises(InputError, match=r"cannot read 'no\\x00where': no path has a NUL in it"):
        solve("no\0where")
    path.write_text('{"nodes":' + "[" * 100_000)
    for source in (path, path.read_text()):
        with pytest.raises(InputError, match="nested too deeply"):
            solve(source)
    with pytest.raises(InputError, match=r"cannot read 'nowhere\.json': No such file"):
        solve("nowhere.json")
    with pytest.raises(InputError, match="solve takes a CostGraph, its JSON or a path; got int"):
        solve(3)


def test_numbers_of_numpy_are_limits_like_others():
    graph = chain(FAST, ONLY_CPU, FAST)
    solution = solve(graph, max_segments=np.int64(1), capacity=np.float32(4), coverage={"a": np.float32(2)})
    assert solution.segments == (("a",),)


def test_the_old_file_form_without_loads_and_kinds_is_read():
    data = json.loads(chain(FAST, FAST, pairs=(Pair("a", "b", 0.0625),)).to_json())
    for node in data["nodes"]:
        del node["load"]
    del data["pairs"][0]["kind"]
    assert solve(data).objective == 0.25 - 0.0625


def test_a_graph_without_nodes_costs_nothing():
    solution = solve(CostGraph((), (), launch=1.0))
    assert (solution.objective, solution.gap, solution.segments) == (0.0, 0.0, ())


def test_what_if_says_what_supporting_a_node_would_save():
    graph = chain(FAST, ONLY_CPU, FAST, launch=0.125, cpu_call=0.125, transfer=0.0625)
    now, then = solve(graph), what_if(graph, {"b": 0.25})
    assert len(now.segments) == 2
    assert len(then.segments) == 1
    assert now.objective == 0.125 + 1.0 + 0.125 + 2 * 0.125 + 0.125 + 4 * 0.0625
    assert then.objective == 0.5 + 0.125 + 2 * 0.0625
    with pytest.raises(PlacementError, match="what_if: 'z' is no node"):
        what_if(graph, {"z": 0.25})


def test_the_same_graph_gives_the_same_solution_again():
    graph, wanted = random_problem(random.Random(11), 30)
    first, second = (solve(graph, **wanted) for _ in range(2))
    assert isinstance(first, Solution)
    assert dataclasses.replace(first, seconds=0.0) == dataclasses.replace(second, seconds=0.0)
