"""What the passes share: a private copy to work on, and the moves that keep names right."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fpgasim.graph.structure import Graph, graph_values


def rewrite(graph: Graph, rules: Callable[[ir.Model], bool]) -> tuple[Graph, bool]:
    """`rules` applied to a clone of the model (weights shared); the graph itself if they found nothing to do."""
    model = graph.model.clone()
    return (Graph(model, optimized=graph.optimized), True) if rules(model) else (graph, False)


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of these operators of the standard domain."""
    return node is not None and node.domain == "" and node.op_type in op_types


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that sees `value`; None if there are more, or a subgraph or the caller sees it too."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    (use,) = uses
    producer = value.producer()
    return use.node if producer is None or use.node.graph is producer.graph else None


def seen_by_subgraphs(graph: ir.Graph, value: ir.Value) -> bool:
    return any(use.node.graph is not graph for use in value.uses())


def take_over(graph: ir.Graph, source: ir.Value, node: ir.Node) -> None:
    """Removes `node`; `source`, computed before it, takes its output's place and name."""
    output = node.outputs[0]
    name = output.name
    source.shape, source.type = output.shape, output.type
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    source.name = name


def taken_names(graph: ir.Graph) -> set[str]:
    """The tensor names in use, in subgraphs too."""
    graphs = (graph, *graph.subgraphs())
    return {value.name for part in graphs for value in graph_values(part) if value.name}


def add_constant(graph: ir.Graph, name: str, array: np.ndarray, taken: set[str]) -> ir.Value:
    """A new initializer called `name`, or `name_1`, … if that is among `taken`, which grows by it."""
    unique, n = name, 0
    while unique in taken:
        n += 1
        unique = f"{name}_{n}"
    taken.add(unique)
    array.setflags(write=False)
    value = ir.val(unique, const_value=ir.tensor(array, name=unique))
    graph.register_initializer(value)
    return value
