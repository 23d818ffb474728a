"""Which node runs on the FPGA and which on the CPU, why, and what that costs."""

from fpgasim.placement.cost_graph import CostGraph, CostNode, CostTensor, Pair, objective, phases
from fpgasim.placement.mincut import Cut, lower_bound, minimum_cut
from fpgasim.placement.partitioning import partition
from fpgasim.placement.plan import Decision, Options, Plan, Segment
from fpgasim.placement.regrets import Counterfactual, counterfactuals
from fpgasim.placement.solving import Solution, solve, what_if

__all__ = [
    "CostGraph",
    "CostNode",
    "CostTensor",
    "Counterfactual",
    "Cut",
    "Decision",
    "Options",
    "Pair",
    "Plan",
    "Segment",
    "Solution",
    "counterfactuals",
    "lower_bound",
    "minimum_cut",
    "objective",
    "partition",
    "phases",
    "solve",
    "what_if",
]
