"""Removal of what no output depends on.

Rules:
- a node stays if a graph output depends on it, also through what a subgraph captures;
- an initializer stays if a node that stays reads it, or if it is a graph output.
Graph inputs always stay.
"""

import onnx_ir as ir

from fpgasim.graph.passes.rewriting import rewrite
from fpgasim.graph.structure import Graph, bodies, captured_values


def remove_dead_nodes(graph: Graph) -> tuple[Graph, bool]:
    """`graph` without nodes and initializers that no output needs."""
    return rewrite(graph, _rules)


def _rules(model: ir.Model) -> bool:
    graph = model.graph
    live: set[ir.Node] = set()
    pending = [value.producer() for value in graph.outputs]
    while pending:
        node = pending.pop()
        if node is None or node in live:
            continue
        live.add(node)
        pending += [value.producer() for value in (*node.inputs, *captured_values(node)) if value is not None]
    dead = [node for node in graph if node not in live]
    for node in dead:
        for body in bodies(node):  # captured values must forget the readers inside
            for inner in ir.traversal.RecursiveGraphIterator(body):
                for i in range(len(inner.inputs)):
                    inner.replace_input_with(i, None)
    graph.remove(dead, safe=True)
    unread = [name for name, value in graph.initializers.items() if not value.uses() and not value.is_graph_output()]
    for name in unread:
        del graph.initializers[name]
    return bool(dead or unread)
