"""Removal of operators that pass their input through.

Rules (x is the first input):
- Identity(x), Concat(x) of one tensor, Dropout(x) in inference whose mask nobody reads;
- Cast(x) to the type x has; Transpose(x) with the axes in order; Pad(x) by nothing;
- Reshape, Flatten, Expand, Squeeze or Unsqueeze of x to the shape x has.

The output's readers read x instead. Where the output is a graph output, x takes over its name; the operator stays if
x is itself an input, a constant, another output or captured by a subgraph, whose names must not change.
"""

import onnx_ir as ir

from fpgasim.graph.passes.rewriting import is_op, rewrite, seen_by_subgraphs, take_over
from fpgasim.graph.structure import Graph, constant_array, shape_of


def remove_identities(graph: Graph) -> tuple[Graph, bool]:
    """`graph` without operators that do nothing."""
    return rewrite(graph, _rules)


def _rules(model: ir.Model) -> bool:
    graph = model.graph
    changed = False
    for node in graph:
        if node.domain == "" and _does_nothing(node):
            changed = _bypass(graph, node) or changed
    return changed


def _does_nothing(node: ir.Node) -> bool:
    if not node.inputs or node.inputs[0] is None or any(output.uses() for output in node.outputs[1:]):
        return False
    if any(output.is_graph_output() for output in node.outputs[1:]):
        return False
    source, output = node.inputs[0], node.outputs[0]
    match node.op_type:
        case "Identity":
            return source.type is not None and isinstance(source.type, ir.TensorType)
        case "Concat":
            return len(node.inputs) == 1
        case "Dropout":
            return not _trains(node)
        case "Cast":
            return source.dtype is not None and node.attributes["to"].as_int() == source.dtype.value
        case "Transpose":
            perm = node.attributes.get_ints("perm")
            return perm is not None and list(perm) == list(range(len(perm)))
        case "Pad":
            return (pads := pad_amounts(node)) is not None and not any(pads)
        case "Reshape" | "Flatten" | "Expand" | "Squeeze" | "Unsqueeze":
            shape = shape_of(source)
            return shape is not None and None not in shape and shape == shape_of(output)
    return False


def _trains(dropout: ir.Node) -> bool:
    """Whether a Dropout may drop anything: its training_mode input (opset 12) is there and not a constant false."""
    if len(dropout.inputs) < 3 or dropout.inputs[2] is None:
        return False
    mode = constant_array(dropout.inputs[2])
    return mode is None or bool(mode)


def pad_amounts(pad: ir.Node) -> list[int] | None:
    """The `pads` of a Pad, as begins then ends of the axes it names; None if they are computed."""
    if "pads" in pad.attributes:  # before opset 11
        return list(pad.attributes["pads"].as_ints())
    amounts = constant_array(pad.inputs[1]) if len(pad.inputs) > 1 else None
    return None if amounts is None else [int(n) for n in amounts]


def _bypass(graph: ir.Graph, node: ir.Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    # A subgraph may define a name of its own like the source's, so what it captures is left alone.
    if source is None or seen_by_subgraphs(graph, output):
        return False
    if not output.is_graph_output():
        output.replace_all_uses_with(source)
        graph.remove(node, safe=True)
        return True
    producer = source.producer()
    if producer is None or source.is_graph_output() or seen_by_subgraphs(graph, source) or is_op(producer, "Constant"):
        return False
    take_over(graph, source, node)
    return True
