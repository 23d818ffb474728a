"""Cutting a part out of a graph."""

from collections.abc import Sequence

import onnx_ir as ir

from fpgasim.errors import InputError
from fpgasim.graph.structure import Graph, captured_values


def extract(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
    """The part of `graph` that computes `outputs` from `inputs`: see `Graph.extract`."""
    from fpgasim.graph.loading import name_unknown_dims

    if not outputs:
        raise InputError("extract needs at least one output tensor; got none")
    for role, names in (("inputs", inputs), ("outputs", outputs)):
        twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
        if twice:
            raise InputError(f"extract {role} name tensor {twice[0]!r} more than once; once is enough")
    starts = [graph._value(name) for name in inputs]
    ends = [graph._value(name) for name in outputs]
    needed, initializers = _between(starts, ends)
    source = graph.model.graph
    view = ir.GraphView(
        starts,
        ends,
        nodes=[node for node in source if node in needed],
        initializers=[value for value in source.initializers.values() if value in initializers],
        opset_imports=dict(graph.model.opset_imports),
        name=graph.name,
    )
    part = ir.Model(view.clone(), ir_version=graph.model.ir_version)
    name_unknown_dims(part.graph)
    return Graph(part, optimized=graph.optimized)


def _between(starts: Sequence[ir.Value], ends: Sequence[ir.Value]) -> tuple[set[ir.Node], set[ir.Value]]:
    """The nodes from which `ends` follow, given `starts`, and the initializers they read."""
    needed: set[ir.Node] = set()
    initializers: set[ir.Value] = set()
    seen = set(starts)
    pending = list(reversed(ends))
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        producer = value.producer()
        if producer is not None:
            needed.add(producer)
            pending += [v for v in (*producer.inputs, *captured_values(producer)) if v is not None]
        elif value.is_initializer():
            initializers.add(value)
        else:
            raise InputError(f"the extracted outputs need graph input {value.name!r}; name it among the inputs")
    return needed, initializers
