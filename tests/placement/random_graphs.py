"""Random cost graphs, and every placement of one."""

import itertools

from fpgasim.placement.cost_graph import CostGraph, CostNode, CostTensor, Pair


def random_cost_graph(rng, nodes, *, fixed=True):
    """A random DAG with graph inputs, outputs, unsupported nodes, pairs and, if `fixed`, launches and CPU calls.

    Zero costs and ties are frequent. The nodes are not listed in topological order.
    """
    names = [f"n{i}" for i in range(nodes)]
    density = rng.choice([0.15, 0.3, 0.6])

    def cost(high):
        return rng.choice([0.0, rng.uniform(0, high), float(rng.randint(0, int(high)))])

    made = [CostNode(n, cost(9), None if rng.random() < 0.2 else cost(6), rng.randint(0, 5)) for n in names]
    tensors = []
    for i, name in enumerate(names):
        for k in range(rng.choice([1, 1, 1, 2])):
            readers = tuple(n for n in names[i + 1 :] if rng.random() < density)
            output = not readers or rng.random() < 0.15
            tensors.append(CostTensor(f"{name}.{k}", name, readers, cost(4), cost(4), output))
    for k in range(rng.randint(1, 3)):
        readers = tuple(n for n in names if rng.random() < density)
        tensors.append(CostTensor(f"in{k}", None, readers, cost(4), cost(4), rng.random() < 0.1))
    pairs = [Pair(u, v, cost(3)) for u, v in itertools.combinations(names, 2) if rng.random() < 0.2]
    rng.shuffle(made)
    launch, cpu_call = (cost(3), cost(3)) if fixed else (0.0, 0.0)
    return CostGraph(tuple(made), tuple(tensors), tuple(pairs), launch, cpu_call)


def placements(graph):
    """Every placement of `graph` that keeps unsupported nodes on the CPU."""
    sides = [("cpu",) if node.fpga is None else ("cpu", "fpga") for node in graph.nodes]
    for choice in itertools.product(*sides):
        yield dict(zip((node.name for node in graph.nodes), choice, strict=True))
