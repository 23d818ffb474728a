"""Which node runs on the FPGA and which on the CPU, why, and what that costs."""

from fpgasim.placement.cost_graph import CostGraph, CostNode, CostTensor, Pair, objective, phases
from fpgasim.placement.mincut import Cut, lower_bound, minimum_cut
from fpgasim.placement.partitioning import partition
from fpgasim.placement.plan import Decision, Plan, Segment

__all__ = [
    "CostGraph",
    "CostNode",
    "CostTensor",
    "Cut",
    "Decision",
    "Pair",
    "Plan",
    "Segment",
    "lower_bound",
    "minimum_cut",
    "objective",
    "partition",
    "phases",
]
