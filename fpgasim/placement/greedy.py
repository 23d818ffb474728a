"""The placement that others make: everything that can be on the FPGA, in order, until it is full. No cost is looked at.

It is the baseline that a chosen placement is compared with. The order and the end follow ONNX Runtime's capacity-aware
partitioning: nodes are taken in topological order, and at the first whose weights do not fit it stops; smaller ones
behind are not tried. Where that leaves more segments than are allowed, the segment of the fewest nodes goes to the CPU,
the last of several, until there are few enough.
"""

from __future__ import annotations

from fpgasim.placement.cost_graph import Side, phases
from fpgasim.placement.problem import Problem, Total


def greedy_placement(problem: Problem) -> dict[str, Side]:
    """The greedy placement of `problem`. Nodes forced to the FPGA stay there, even where that breaks a limit."""
    graph = problem.cost_graph
    placement = problem.all_cpu()
    limited = problem.capacity is not None and problem.weights != "auto"
    used = Total()
    for name, side in placement.items():
        used = used.plus(graph.node_of[name].weight) if side == "fpga" else used
    for name in graph.order:
        if placement[name] == "fpga" or "fpga" not in problem.sides(name):
            continue
        used = used.plus(graph.node_of[name].weight)
        if limited and problem.capacity is not None and used.sum > problem.capacity:
            break
        placement[name] = "fpga"
    while problem.max_segments is not None:
        segments: dict[int, list[str]] = {}
        for name, phase in phases(graph, placement, problem.max_segments).items():
            if phase % 2:
                segments.setdefault(phase, []).append(name)
        free = [
            (len(names), -phase, names)
            for phase, names in segments.items()
            if not all(problem.forced.get(name) == "fpga" for name in names)
        ]
        if len(segments) <= problem.max_segments or not free:
            break
        placement |= {name: problem.forced.get(name, "cpu") for name in min(free)[2]}
    return placement
