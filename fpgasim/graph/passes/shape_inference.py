"""Shape and type inference.

Rules:
- ONNX's own inference with data propagation says the shape and type of what the standard operators compute; what the
  file claims for those is dropped.
- A pool that rounds up has the shape ONNX Runtime makes, where ONNX's inference is wrong about it.
- A claim stays where inference cannot know better: for graph outputs, and for operators of other domains.
- A dimension is a number, a symbol of the inputs, or unknown: names that inference invents are dropped.
"""

import onnx
import onnx_ir as ir

from fpgasim.errors import ModelError
from fpgasim.graph.operands import check_operands
from fpgasim.graph.passes.rewriting import rewrite
from fpgasim.graph.passes.runtime import session
from fpgasim.graph.plain import is_map
from fpgasim.graph.pooling import round_down, rounding_up
from fpgasim.graph.structure import Dim, Graph, shape_of

#: Smaller constants stay visible to inference: shapes, axes, scales. Bigger ones are weights, and only slow it down.
_VISIBLE_BYTES = 4096


def infer_shapes(graph: Graph) -> tuple[Graph, bool]:
    """`graph` with the shape and type of each tensor, as far as ONNX can infer them.

    ModelError names the operator whose inputs do not fit.
    """
    return rewrite(graph, infer)


def infer(model: ir.Model) -> bool:
    """Infers in place, on a model that its caller owns; whether anything became known or different."""
    sizes = [pool.inputs[0] for pool in rounding_up(model.graph)]
    changed, again = False, True
    while again:  # what such a pool makes can only be inferred once the size of its image has been
        before = [None if value is None else shape_of(value) for value in sizes]
        changed = _infer_once(model) or changed
        again = before != [None if value is None else shape_of(value) for value in sizes]
    check_operands(model.graph)
    return changed


def _infer_once(model: ir.Model) -> bool:
    inferred = inferred_types(model)
    symbols = {dim for value in model.graph.inputs for dim in shape_of(value) or () if isinstance(dim, str)}
    changed = False
    for node in model.graph:
        for value in node.outputs:
            old_shape, old_type = shape_of(value), value.type
            proto = inferred.get(value.name or "")
            if proto is not None:
                value.type = ir.serde.deserialize_type_proto_for_type(proto) or value.type
            shape = None if proto is None else ir.serde.deserialize_type_proto_for_shape(proto)
            value.shape = _merged(shape, value, symbols)
            changed = changed or shape_of(value) != old_shape or value.type != old_type
    return changed


def inferred_types(model: ir.Model) -> dict[str, onnx.TypeProto]:
    """What ONNX infers for the values of the main graph, from its inputs and constants alone.

    ModelError where shapes do not fit. ONNX's strict inference sees that also in some graphs that are right; whether
    ONNX Runtime takes the graph decides, and then what could not be inferred stays unknown.
    """
    proto = skeleton(model, forget=True)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        if session(proto) is None:
            raise ModelError(f"graph {model.graph.name!r}: shapes do not fit: {one_line(error)}") from error
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    infos = (*inferred.graph.value_info, *inferred.graph.output)
    return {info.name: info.type for info in infos if info.HasField("type") and not is_map(info.type)}


def skeleton(model: ir.Model, *, forget: bool) -> onnx.ModelProto:
    """A small ModelProto for ONNX's C++ tools: big initializers are inputs; with `forget`, to infer shapes anew."""
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    graph = proto.graph
    graph.name = model.graph.name or "graph"
    for value in model.graph.inputs:
        ir.serde.serialize_value_into(graph.input.add(), value)
    for value in model.graph.initializers.values():
        if value.const_value is None or value.const_value.nbytes > _VISIBLE_BYTES:
            ir.serde.serialize_value_into(graph.input.add(), value)
        else:
            ir.serde.serialize_tensor_into(graph.initializer.add(), value.const_value)
            graph.initializer[-1].name = value.name or ""
    pools = set(rounding_up(model.graph) if forget else ())
    for node in model.graph:
        ir.serde.serialize_node_into(graph.node.add(), node)
        if node in pools:
            round_down(node, graph.node[-1])
        for value in node.outputs:
            if value.name and not value.is_graph_output() and not (forget and node.domain == ""):
                ir.serde.serialize_value_into(graph.value_info.add(), value)
    for value in model.graph.outputs:
        ir.serde.serialize_value_into(graph.output.add(), value)
        producer = value.producer()  # none: an input or initializer, whose shape inference would forget with this one
        if forget and producer is not None and graph.output[-1].type.HasField("tensor_type"):
            graph.output[-1].type.tensor_type.ClearField("shape")
    return proto


def one_line(error: BaseException) -> str:
    """The text of the error at the root of `error`, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def _merged(shape: ir.Shape | None, value: ir.Value, symbols: set[str]) -> ir.Shape | None:
    claim = shape_of(value)
    producer = value.producer()
    if producer is not None and producer.domain == "" and not value.is_graph_output():
        claim = None
    if shape is None:
        return None if claim is None else ir.Shape(claim)
    dims: list[Dim] = []
    for i, dim in enumerate(shape):
        known = dim if isinstance(dim, int) or dim.value in symbols else None
        fallback = claim[i] if claim is not None and len(claim) == len(shape) else None
        dims.append(fallback if known is None else known if isinstance(known, int) else known.value)
    return ir.Shape(dims)
