"""Random problems, and the best placement of one by trying them all: a second reading of the rules, in NumPy."""

import dataclasses
import itertools

import numpy as np

from fpgasim.errors import PlacementError
from fpgasim.placement.cost_graph import objective
from fpgasim.placement.solving import solve

from .random_graphs import random_cost_graph


def random_problem(rng, nodes):
    """A cost graph with loads and both kinds of pairs, and limits: keyword arguments of `solve`."""
    graph = random_cost_graph(rng, nodes, fixed=rng.random() < 0.75)
    loads = [0.0 if n.fpga is None else rng.choice([0.0, rng.uniform(0, n.fpga), n.fpga]) for n in graph.nodes]
    graph = dataclasses.replace(
        graph,
        nodes=tuple(dataclasses.replace(n, load=load) for n, load in zip(graph.nodes, loads, strict=True)),
        pairs=tuple(dataclasses.replace(p, kind=rng.choice(["fused", "overlap"])) for p in graph.pairs),
    )
    share = rng.choice([0.0, 0.2])
    force = {
        n.name: "cpu" if n.fpga is None else rng.choice(["cpu", "fpga"]) for n in graph.nodes if rng.random() < share
    }
    return graph, {
        "force": force,
        "max_segments": rng.choice([None, None, 0, 1, 1, 2, 3]),
        "capacity": rng.choice([None, None, rng.randint(0, max(1, int(sum(n.weight for n in graph.nodes))))]),
        "weights": rng.choice(["streamed", "streamed", "pinned", "auto"]),
    }


def random_worth(rng, graph):
    return {node.name: rng.choice([0, 1, 2.5, rng.randint(0, 10**6)]) for node in graph.nodes}


def best(graph, *, force=None, max_segments=None, capacity=None, weights="streamed", worth=None):
    """(worth, objective) of the best placement, None where no placement keeps the limits."""
    columns = {node.name: i for i, node in enumerate(graph.nodes)}
    ways = []  # 0: CPU, 1: FPGA, 2: FPGA with its weights on chip
    for node in graph.nodes:
        on_fpga = {"streamed": [1], "pinned": [2], "auto": [1, 2]}[weights] if node.weight else [1]
        side = (force or {}).get(node.name)
        ways.append([] if side == "fpga" else [0])
        if side != "cpu" and node.fpga is not None:
            ways[-1] += on_fpga
    grid = np.array(list(itertools.product(*ways)), np.int8).reshape(-1, len(columns))
    there, stays = grid > 0, grid == 2
    cost = np.zeros(len(grid))
    weight = np.zeros(len(grid))
    covered = np.zeros(len(grid))
    for node, x, q in zip(graph.nodes, there.T, stays.T, strict=True):
        cost += np.where(x, (node.fpga or 0.0) - node.load * q, node.cpu)
        weight += node.weight * (q if weights == "auto" else x)
        covered += x * (worth or {}).get(node.name, 0)
    for tensor in graph.tensors:
        home = np.zeros(len(grid), bool) if tensor.producer is None else there[:, columns[tensor.producer]]
        readers = there[:, [columns[name] for name in tensor.consumers]]
        cost += tensor.to_fpga * (~home & readers.any(axis=1))
        cost += tensor.to_cpu * (home & ((~readers).any(axis=1) | tensor.output))
    for pair in graph.pairs:
        first, second = columns[pair.first], columns[pair.second]
        hidden = there[:, first] & there[:, second] & ~(stays[:, second] & (pair.kind == "overlap"))
        cost -= pair.saves * hidden
    fixed = np.full(len(grid), np.inf)
    for start in (0, 2):
        phase = {}
        for name in graph.order:
            x = there[:, columns[name]]
            phase[name] = np.where(x, 1, start)
            if graph.predecessors[name]:
                phase[name] = np.zeros(len(grid), int)
            for producer in graph.predecessors[name]:
                phase[name] = np.maximum(phase[name], phase[producer] + (there[:, columns[producer]] != x))
        table = np.array(list(phase.values())).reshape(-1, len(grid))
        used = [(table == p).any(axis=0) for p in range(len(columns) + 3)]
        segments, pieces = sum(used[1::2], np.zeros(len(grid), int)), sum(used[0::2], np.zeros(len(grid), int))
        total = graph.launch * segments + graph.cpu_call * pieces
        allowed = segments <= (len(columns) if max_segments is None else max_segments)
        fixed = np.minimum(fixed, np.where(allowed, total, np.inf))
    cost += fixed
    fits = np.isfinite(cost) & (weight <= (np.inf if capacity is None else capacity))
    if not fits.any():
        return None
    most = covered[fits].max()
    return most, cost[fits & (covered == most)].min()


def check_solution(graph, algorithm, wanted, worth=None):
    """Solves and compares with every placement there is; returns the Solution, None where there is no placement."""
    expected = best(graph, worth=worth, **wanted)
    try:
        solution = solve(graph, algorithm, coverage=worth, **wanted)
    except PlacementError:
        assert expected is None
        return None
    assert expected is not None
    most, least = expected
    tolerance = 1e-6 * max(abs(least), 1e-3)
    assert abs(solution.objective - least) <= tolerance
    assert solution.lower_bound <= least + 1e-12
    assert solution.objective - solution.lower_bound <= 2 * tolerance
    on_fpga = [name for name, side in solution.placement.items() if side == "fpga"]
    assert sum((worth or {}).get(name, 0) for name in on_fpga) == most
    limits = {"pinned": solution.pinned, "max_segments": wanted["max_segments"]}
    assert solution.objective == objective(graph, solution.placement, **limits)
    assert all(solution.placement[name] == side for name, side in wanted["force"].items())
    assert len(solution.segments) <= (len(graph.nodes) if wanted["max_segments"] is None else wanted["max_segments"])
    assert sorted(name for names in solution.segments for name in names) == sorted(on_fpga)
    counted = solution.pinned if wanted["weights"] == "auto" else on_fpga
    weight = sum(graph.node_of[name].weight for name in counted)
    assert weight <= (weight if wanted["capacity"] is None else wanted["capacity"])
    return solution
