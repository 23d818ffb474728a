"""Time of the minimum cut on cost graphs of ResNet-like networks; the answer is checked first.

python benchmarks/mincut.py --blocks 72
"""

import argparse
import itertools
import random
import statistics
import time

from fpgasim.placement import CostGraph, CostNode, CostTensor, Pair, lower_bound, minimum_cut, objective


def residual_network(blocks: int, seed: int = 0) -> CostGraph:
    """`blocks` residual blocks of three convolutions, four activations and an addition; random costs, seconds."""
    rng = random.Random(seed)
    nodes: list[CostNode] = []
    readers: dict[str, list[str]] = {"x": []}

    def add(name: str, *inputs: str) -> str:
        nodes.append(CostNode(name, rng.uniform(1e-5, 1e-3), None if rng.random() < 0.02 else rng.uniform(1e-6, 2e-4)))
        for tensor in inputs:
            readers[tensor].append(name)
        readers[name] = []  # a node's only tensor has its name
        return name

    x = "x"
    for block in range(blocks):
        y = x
        for i in range(3):
            y = add(f"{block}.relu{i}", add(f"{block}.conv{i}", y))
        x = add(f"{block}.relu3", add(f"{block}.add", x, y))
    made = {node.name for node in nodes}
    tensors = (
        CostTensor(name, name if name in made else None, tuple(who), rng.uniform(1e-5, 3e-4), 1e-4, not who)
        for name, who in readers.items()
    )
    pairs = (Pair(a.name, b.name, rng.uniform(0, 1e-5)) for a, b in itertools.pairwise(nodes))
    return CostGraph(tuple(nodes), tuple(tensors), tuple(pairs), launch=2e-5, cpu_call=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=63, help="eight nodes each")
    graph = residual_network(parser.parse_args().blocks)
    cut = minimum_cut(graph)
    without = CostGraph(graph.nodes, graph.tensors, graph.pairs)
    assert lower_bound(without, cut) <= objective(without, cut.placement) <= cut.lower_bound + cut.error + 1e-12
    for node in graph.nodes:  # no single move makes a minimum smaller
        if node.fpga is not None:
            moved = {**cut.placement, node.name: "cpu" if cut.placement[node.name] == "fpga" else "fpga"}
            assert objective(without, moved) >= cut.lower_bound
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        minimum_cut(graph)
        seconds.append(time.perf_counter() - start)
    on_fpga = sum(side == "fpga" for side in cut.placement.values())
    print(f"{len(graph.nodes)} nodes, {len(graph.tensors)} tensors, {len(graph.pairs)} pairs; {on_fpga} on the FPGA")
    print(f"minimum cut {statistics.median(seconds) * 1e3:.1f} ms (median of 20), error at most {cut.error:.1e} s")


if __name__ == "__main__":
    main()
