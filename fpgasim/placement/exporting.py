"""A plan as an ONNX file that any runtime executes: each FPGA segment is a model-local function.

`fpgasim::fpga0`, `fpgasim::fpga1`, … are the segments in running order. A function has no initializers, so the weights
stay those of the graph and are passed to it. Every node says where it belongs: `layer_ann`, which ONNX Runtime's
`session.layer_assignment_settings` reads, is the name of the segment or "cpu".
"""

from __future__ import annotations

import json
import os
from collections.abc import Container
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from fpgasim.graph import Graph
from fpgasim.graph.loading import ORDER

if TYPE_CHECKING:
    from fpgasim.placement.plan import Plan, Segment

DOMAIN = "fpgasim"
#: Of the metadata `fpgasim.plan`.
VERSION = 1
#: Functions have metadata from here on.
_IR_VERSION = 10
_ANNOTATION, _PLAN = "layer_ann", "fpgasim.plan"


def export(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Writes `plan` as ONNX: see `Plan.export`."""
    Graph(exported(plan)).save(path)


def exported(plan: Plan) -> ir.Model:
    """The bound graph of `plan` with a model-local function for each FPGA segment; weights are shared."""
    model = plan.graph.model.clone()
    graph = model.graph
    nodes = {node.name: node for node in graph}
    for i, node in enumerate(graph):
        node.metadata_props.update({ORDER: str(i), _ANNOTATION: "cpu"})
    for i, segment in enumerate(segment for segment in plan.segments if segment.kind == "fpga"):
        name = f"fpga{i}"
        members = [nodes[member] for member in segment.nodes]
        for node in members:
            node.metadata_props[_ANNOTATION] = name
        function = _function(name, members, segment, model)
        facts = {"step": plan.segments.index(segment) + 1, "nodes": len(members)}
        function.metadata_props.update({_ANNOTATION: name, _PLAN: json.dumps(facts)})
        function.doc_string = f"FPGA segment of {plan.graph.name} on {plan.device.name}"
        model.functions[function.identifier()] = function
        _replace(graph, members, function, _unique(name, nodes))
        model.opset_imports[DOMAIN] = 1
    graph.sort()
    model.ir_version = max(model.ir_version, _IR_VERSION)
    model.metadata_props[_PLAN] = json.dumps(_summary(plan))
    return model


def _function(name: str, members: list[ir.Node], segment: Segment, model: ir.Model) -> ir.Function:
    """`members` as a function of all they read: the segment's inputs, then constants in order of use."""
    made = {value for node in members for value in node.outputs}
    reads = dict.fromkeys(v for node in members for v in node.inputs if v is not None and v not in made)
    constants = [value for value in reads if value.name not in segment.inputs]
    inputs = [value for value in reads if value.name in segment.inputs] + constants
    outputs = [value for value in made if value.name in segment.outputs]
    outputs.sort(key=lambda value: segment.outputs.index(value.name or ""))
    body = ir.GraphView(inputs, outputs, nodes=members, opset_imports=dict(model.opset_imports), name=name).clone()
    for value in body.inputs:
        value.const_value = None  # what is passed is no constant of the function
    return ir.Function(DOMAIN, name, graph=body, attributes=[])


def _replace(graph: ir.Graph, members: list[ir.Node], function: ir.Function, name: str) -> None:
    """`members` out of the graph and a call of `function` at their place, its outputs under their old names."""
    values = {value.name: value for node in members for value in (*node.inputs, *node.outputs) if value is not None}
    old = [values[value.name] for value in function.outputs]
    call = ir.Node(
        DOMAIN,
        function.name,
        [values[value.name] for value in function.inputs],
        num_outputs=len(old),
        name=name,
        metadata_props=dict(function.metadata_props),
    )
    for before, after in zip(old, call.outputs, strict=True):
        after.name, after.type, after.shape = before.name, before.type, before.shape
        before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.insert_before(members[0], call)
    graph.remove(members, safe=True)


def _unique(name: str, taken: Container[str | None]) -> str:
    while name in taken:
        name += "_"
    return name


def _summary(plan: Plan) -> dict[str, Any]:
    return {
        "version": VERSION,
        "device": plan.device.name,
        "format": plan.numbers.format.name,
        "algorithm": plan.algorithm,
        "objective_s": plan.objective_s,
        "all_cpu_s": plan.all_cpu_s,
        "lower_bound_s": plan.lower_bound_s,
    }
