"""Splits over several FPGAs: the best of all splits of the linear order, by enumeration."""

import itertools
import random

import pytest

from fpgasim.errors import PlacementError
from fpgasim.placement import objective, phases
from fpgasim.placement.pipelines import Room, fill, held, linear_order, price, split

from .random_graphs import random_cost_graph


def some_problem(seed):
    """A cost graph, a placement of it, hops, room and pinned nodes."""
    rng = random.Random(seed)
    graph = random_cost_graph(rng, rng.randint(1, 9), fixed=rng.random() < 0.8)
    placement = {n.name: "cpu" if n.fpga is None or rng.random() < 0.15 else "fpga" for n in graph.nodes}
    hops = {tensor.name: rng.choice([0.0, 1.0, rng.uniform(0, 3)]) for tensor in graph.tensors}
    whole = rng.choice([5, 7, 12])
    room = Room(whole, rng.choice([whole, whole // 2]))
    pinned = {n.name for n in graph.nodes if placement[n.name] == "fpga" and rng.random() < 0.8 and n.weight <= whole}
    return graph, placement, hops, room, pinned


def splits(order, devices):
    """Every split of `order` into 1 to `devices` contiguous stages."""
    for count in range(1, devices + 1):
        for borders in itertools.combinations(range(1, len(order)), count - 1):
            ends = (0, *borders, len(order))
            yield tuple(order[a:b] for a, b in itertools.pairwise(ends))


def fits(graph, stages, pinned, room):
    return all(used <= there for used, there in (held(graph, names, pinned, room) for names in stages))


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_no_split_of_the_order_is_better(start):
    for seed in range(start, start + 100):
        graph, placement, hops, room, pinned = some_problem(seed)
        order = linear_order(graph, placement)
        for devices in (1, 2, 3, 4):
            fitting = [s for s in splits(order, devices) if fits(graph, s, pinned, room)]
            if not order:
                fitting = [()]
            if not fitting:
                with pytest.raises(PlacementError, match=f"devices={devices} are too few"):
                    split(graph, placement, hops, room, devices, pinned=pinned)
                continue
            priced = [price(graph, placement, stages, hops) for stages in fitting]
            quick = split(graph, placement, hops, room, devices, pinned=pinned)
            assert fits(graph, quick.stages, pinned, room)
            assert quick.latency_s == pytest.approx(min(s.latency_s for s in priced), abs=1e-9), seed
            often = split(graph, placement, hops, room, devices, pinned=pinned, split_for="throughput")
            assert fits(graph, often.stages, pinned, room)
            least = min(s.interval_s for s in priced)
            assert often.interval_s == pytest.approx(least, abs=1e-9), seed
            assert often.latency_s <= min(s.latency_s for s in priced if s.interval_s <= least) + 1e-9, seed


def test_as_many_devices_as_are_needed_are_the_fewest_that_hold_the_weights():
    for seed in range(200):
        graph, placement, hops, room, pinned = some_problem(seed)
        order = linear_order(graph, placement)
        fewest = next((len(s) for s in splits(order, len(order)) if fits(graph, s, pinned, room)), 0)
        assert len(fill(graph, order, pinned, room)) == fewest
        assert len(split(graph, placement, hops, room, pinned=pinned).stages) <= fewest


def test_one_stage_costs_what_the_objective_says():
    for seed in range(200):
        graph, placement, hops, *_ = some_problem(seed)
        order = linear_order(graph, placement)
        whole = price(graph, placement, (order,) if order else (), hops)
        assert whole.latency_s == pytest.approx(objective(graph, placement), abs=1e-12)


def test_the_order_is_one_that_edges_and_phases_go_along():
    for seed in range(200):
        graph, placement, *_ = some_problem(seed)
        at = {name: i for i, name in enumerate(linear_order(graph, placement))}
        phase_of = phases(graph, placement)
        assert list(at) == sorted(at, key=phase_of.__getitem__)
        for name in at:
            assert all(at[producer] < at[name] for producer in graph.predecessors[name] if producer in at)


def test_stages_that_lead_back_are_refused():
    graph, placement, hops, *_ = next(
        problem for problem in map(some_problem, range(99)) if len(linear_order(*problem[:2])) == 6
    )
    order = linear_order(graph, placement)
    with pytest.raises(PlacementError, match="each of them once"):
        price(graph, placement, (order, order), hops)
    with pytest.raises(PlacementError, match="each of them once"):
        price(graph, placement, (order[1:],), hops)
    with pytest.raises(PlacementError, match="from device 2 back to 1"):
        price(graph, placement, (order[3:], order[:3]), hops)
