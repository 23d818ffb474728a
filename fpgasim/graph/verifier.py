"""Whether a graph keeps the rules that everything after it relies on."""

import onnx
import onnx_ir as ir

from fpgasim.errors import ModelError
from fpgasim.graph.operands import check_operands, differ
from fpgasim.graph.passes.shape_inference import inferred_types, one_line, skeleton
from fpgasim.graph.structure import Graph, captured_values, shape_of


def verify(graph: Graph, after: str = "loading") -> None:
    """Nothing, if all is well; else a ModelError that names what went on before (`after`, say a pass) and the node.

    Besides the structure, ONNX's shape inference must contradict no recorded shape, and no operand another.
    """
    try:
        verify_structure(graph.model)
        _check_shapes(graph.model)
        check_operands(graph.model.graph)
    except ModelError as error:
        raise ModelError(f"after {after}: {error}") from error


def verify_structure(model: ir.Model) -> None:
    """Nothing, or a ModelError that names the node.

    Nodes have unique names and stand after what they read; every tensor has one name and one definition; outputs are
    defined; constants have the type and shape they declare; ONNX's checker has no complaint.
    """
    _check_names(model.graph)
    _check_constants(model.graph)
    _check_schema(model)


def _check_names(graph: ir.Graph) -> None:
    defined: set[ir.Value] = set()
    names: dict[str, str] = {}

    def define(value: ir.Value, where: str) -> None:
        if not value.name:
            raise ModelError(f"{where} has a tensor without a name")
        if names.setdefault(value.name, where) != where:
            raise ModelError(f"{where}: tensor {value.name!r} is already defined by {names[value.name]}")
        defined.add(value)

    for value in graph.inputs:
        define(value, f"graph input {value.name!r}")
    for value in graph.initializers.values():
        define(value, f"initializer {value.name!r}")
    node_names: set[str] = set()
    for node in graph:
        where = f"node {node.name!r} ({node.op_type})"
        if not node.name or node.name in node_names:
            raise ModelError(f"{where}: a node name must be unique and not empty")
        node_names.add(node.name)
        for read in (*node.inputs, *captured_values(node)):
            if read is not None and read not in defined:
                raise ModelError(f"{where}: input {read.name!r} is not defined before it")
        for i, value in enumerate(node.outputs):
            if value.name:
                define(value, f"{where} output {i}")
    for value in graph.outputs:
        if value not in defined:
            raise ModelError(f"graph output {value.name!r} is computed by no node")


def _check_constants(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            raise ModelError(f"initializer {value.name!r} has no data")
        if value.dtype != tensor.dtype or shape_of(value) != tuple(tensor.shape):
            raise ModelError(
                f"initializer {value.name!r} is declared {value.dtype} {shape_of(value)}, "
                f"its data is {tensor.dtype} {tuple(tensor.shape)}"
            )


def _check_schema(model: ir.Model) -> None:
    try:
        proto = skeleton(model, forget=False)
        for info in (*proto.graph.input, *proto.graph.output):
            # The checker wants types and shapes here, ONNX Runtime does not; the checker never looks at which they are.
            if info.type.WhichOneof("value") is None:
                info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            if info.type.HasField("tensor_type"):
                info.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ir.serde.SerdeError) as error:
        raise ModelError(f"graph {model.graph.name!r}: {one_line(error)}") from error


def _check_shapes(model: ir.Model) -> None:
    inferred = inferred_types(model)
    for node in model.graph:
        for value in node.outputs:
            recorded = shape_of(value)
            proto = inferred.get(value.name or "")
            shape = None if proto is None else ir.serde.deserialize_type_proto_for_shape(proto)
            if recorded is None or shape is None:
                continue
            pairs = zip(recorded, shape, strict=len(recorded) == len(shape))
            if len(recorded) != len(shape) or any(differ(dim, real) for dim, real in pairs):
                raise ModelError(
                    f"node {node.name!r} ({node.op_type}): output {value.name!r} is recorded as {recorded}, "
                    f"its inputs make it {tuple(shape)}"
                )
