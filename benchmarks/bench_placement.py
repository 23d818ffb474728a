"""Time of every solver on cost graphs of the five networks, beside what it is meant to reach; answers checked first.

python benchmarks/bench_placement.py [--device bw_a10] [--format bw_1s5e5m] [--random 500] [--json FILE]
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fpgasim as fs
from fpgasim.npu import get_device, resolve_numbers
from fpgasim.placement import CostGraph, counterfactuals, minimum_cut, objective, solve
from fpgasim.placement.costs import cost_table

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.placement.brute_force import check_solution, random_problem

NETWORKS = ("resnet50", "resnet152", "densenet121", "vgg16", "ssd_vgg")
#: Seconds: what each is meant to stay under.
TARGETS = {"minimum cut": 0.3, "3 segments, half the weights": 20.0, "counterfactuals": 10.0}


def timed(work: Callable[[], object], repeat: int = 1) -> tuple[object, float]:
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def check_random(count: int) -> None:
    """`count` random problems of up to 12 nodes, each against all its placements; fails at the first miss."""
    start = time.perf_counter()
    feasible = 0
    for seed in range(count):
        rng = random.Random(seed)
        graph, wanted = random_problem(rng, nodes=rng.randint(8, 12))
        feasible += check_solution(graph, rng.choice(["auto", "frontier", "milp"]), wanted) is not None
    seconds = time.perf_counter() - start
    print(f"{count} random problems of 8 to 12 nodes, {feasible} of them feasible: 0 misses ({seconds:.0f} s)")


def measure(name: str, graph: CostGraph) -> dict[str, object]:
    rows: dict[str, object] = {"network": name, "nodes": len(graph.nodes)}

    def show(what: str, seconds: float, more: str) -> None:
        target = f" (≤ {TARGETS[what]:g} s)" if what in TARGETS else ""
        print(f"{name:12} {what:30} {seconds:7.3f} s{target}  {more}", flush=True)
        rows[what] = seconds

    cut, seconds = timed(lambda: minimum_cut(graph), 5)
    assert objective(graph, cut.placement) >= cut.lower_bound
    show("minimum cut", seconds, f"error at most {cut.error:.1e} s")
    limits = {"max_segments": 3, "capacity": sum(node.weight for node in graph.nodes) / 2}
    found = {}
    for algorithm, wanted, what in (
        ("auto", {}, "auto"),
        ("greedy", limits, "greedy, same limits"),
        ("auto", limits, "3 segments, half the weights"),
        ("milp", limits, "the same by milp"),
    ):
        solution, seconds = timed(lambda a=algorithm, w=wanted: solve(graph, a, **w))
        found[what] = solution
        show(what, seconds, f"{solution.objective * 1e3:.4f} ms, gap {solution.gap:.1e}, {solution.algorithm}")
    limited = [found[what] for what in ("3 segments, half the weights", "the same by milp")]
    assert max(s.lower_bound for s in limited) <= min(s.objective for s in limited) * (1 + 1e-9)
    there, seconds = timed(lambda: counterfactuals(graph, found["auto"]))
    exact = sum(one.exact for one in there.values())
    assert all(one.objective is None or one.objective >= found["auto"].lower_bound for one in there.values())
    show("counterfactuals", seconds, f"{exact} of {len(there)} exact")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="bw_a10")
    parser.add_argument("--format", default="bw_1s5e5m")
    parser.add_argument("--random", type=int, default=100, help="how many random problems are checked first")
    parser.add_argument("--json", help="file for the seconds")
    arguments = parser.parse_args()
    check_random(arguments.random)
    device = get_device(arguments.device)
    numbers = resolve_numbers(device, arguments.format)
    rows = []
    for name in NETWORKS:
        graph = fs.load(fs.zoo.build(name)).bind()
        rows.append(measure(name, cost_table(graph, device, numbers).cost_graph))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
