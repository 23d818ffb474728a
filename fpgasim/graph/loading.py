"""Reading ONNX models: bounds checked, weights copied, names made unique, then the passes."""

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fpgasim.errors import InputError, ModelError, WeightsError
from fpgasim.graph.counting import WEIGHT_INPUTS
from fpgasim.graph.external import check_entries, read_external
from fpgasim.graph.opsets import LEAST_IR_VERSION, check_operators, check_versions
from fpgasim.graph.passes import optimize
from fpgasim.graph.passes.shape_inference import infer_shapes, one_line
from fpgasim.graph.plain import without_sparse_and_maps
from fpgasim.graph.structure import Graph, constant_array, graph_values, shape_of
from fpgasim.graph.verifier import verify_structure

# onnx-ir remarks on broken models before we refuse them; without a handler of its own that would reach stderr.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())

#: What exporters write for a dimension without a name: these say nothing about which dimensions are equal.
_NAMELESS = {"", "?", "-1", "None", "none", "unk", "unknown"}

#: Metadata of a node: its place in a graph that was written with some of its nodes in functions.
ORDER = "fpgasim.order"


def load(source: str | os.PathLike[str] | onnx.ModelProto, *, optimize: bool = True) -> Graph:
    """The graph of an ONNX file or ModelProto, verified, with all shapes that ONNX can infer.

    Opsets 7 to 28, and below where opset 7 has the operators unchanged; IR versions 3 to 14. Weights may lie in other
    files of the model's folder. Constants and batch norms are folded, operators that do nothing removed; with
    `optimize=False` the operators stay as they are in the file but for model-local functions, which are inlined. A
    `source` that is a ModelProto is neither changed nor kept.

    ModelError for a file that is not there, broken, unsafe, or uses what neither ONNX nor ONNX Runtime knows;
    WeightsError for weights that are not finite.
    """
    if isinstance(source, onnx.ModelProto):
        where, path, proto = "the model", None, source
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        where = f"model file {os.fspath(source)!r}"
        proto = _read(source, where)
    else:
        raise InputError(f"load takes a path or an onnx.ModelProto; got {type(source).__name__}")
    check_versions(proto, where)
    model = _deserialize(proto, where, None if path is None else path.parent)
    if not model.graph.name:
        model.graph.name = "graph" if path is None else path.stem
    try:
        return _finish(model, optimize)
    except (ModelError, WeightsError) as error:
        raise type(error)(f"{where}: {error}") from error


def _finish(model: ir.Model, optimizing: bool) -> Graph:
    _normalise(model)
    check_operators(model)
    verify_structure(model)
    graph, _ = infer_shapes(Graph(model))
    _check_finite(graph)
    if not optimizing:
        return graph
    graph = optimize(graph)
    _check_finite(graph)  # weights may have been hidden behind a Cast
    return graph


def _read(path: str | os.PathLike[str], where: str) -> onnx.ModelProto:
    try:
        with open(path, "rb") as file:  # Path("") would be the folder
            data = file.read()
    except (OSError, ValueError) as error:
        raise ModelError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not data:
        raise ModelError(f"{where} is empty (0 bytes); an ONNX model would do")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{where} of {len(data)} bytes is not a whole ONNX model: truncated, or something else"
        ) from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(f"{where} of {len(data)} bytes holds no ONNX graph; an ONNX model would do")
    return proto


def _deserialize(proto: onnx.ModelProto, where: str, folder: Path | None) -> ir.Model:
    """The model with every tensor's data copied out of `proto` and of the files it names in `folder`."""
    check_entries(proto)
    proto = without_sparse_and_maps(proto, where)
    try:
        model = ir.from_proto(proto)
        _restore_inputs(model, proto)
        if model.functions:
            _inline(model)
    # onnx-ir raises NotImplementedError for types that it cannot read.
    except (ir.serde.SerdeError, ir.passes.PassError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{where} is broken: {one_line(error)}") from error
    for graph in _all_graphs(model.graph):
        for text in _texts(graph):
            if isinstance(text, bytes):  # not every protobuf refuses them
                raise ModelError(f"{where} is broken: name {text!r} is not UTF-8")
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _own(value.const_value, where, folder)
        for node in graph:
            for attribute in list(node.attributes.values()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    tensor = _own(attribute.as_tensor(), where, folder)
                    node.attributes.add(ir.AttrTensor(attribute.name, tensor))
    return model


def _inline(model: ir.Model) -> None:
    """Puts the bodies of model-local functions where they are called; nodes that know their place go there."""
    functions = {function.domain for function in model.functions.values()}
    ir.passes.common.InlinePass()(model)
    for domain in functions - {node.domain for node in ir.traversal.RecursiveGraphIterator(model.graph)}:
        model.opset_imports.pop(domain, None)
    places = {node: node.metadata_props.get(ORDER, "") for node in model.graph}
    if all(re.fullmatch("[0-9]{1,9}", place) for place in places.values()):
        model.graph.remove(places)
        model.graph.extend(sorted(places, key=lambda node: int(places[node])))


def _restore_inputs(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Gives inputs that are also outputs what their input entries say; onnx-ir let the output entries replace that."""
    declared = {info.name: info for info in proto.graph.input}
    for value in model.graph.outputs:
        if value.is_graph_input():
            ir.serde.deserialize_value_info_proto(declared[value.name or ""], value)


def _all_graphs(graph: ir.Graph) -> Iterable[ir.Graph]:
    yield graph
    yield from graph.subgraphs()


def _texts(graph: ir.Graph) -> Iterable[object]:
    yield graph.name
    yield from (value.name for value in graph_values(graph))
    for value in graph.inputs:
        yield from shape_of(value) or ()
    for node in graph:
        yield from (node.name, node.op_type, node.domain, *node.attributes)
        yield from (value.name for value in node.inputs if value is not None)


def _own(tensor: ir.TensorProtocol, where: str, folder: Path | None) -> ir.TensorProtocol:
    """`tensor` with read-only data of its own."""
    name = tensor.name or ""
    if isinstance(tensor, ir.StringTensor):
        return ir.StringTensor(list(tensor.string_data()), shape=tensor.shape, name=name)
    if isinstance(tensor, ir.ExternalTensor):
        if folder is None:
            raise ModelError(
                f"{where}: tensor {name!r} lies in file {os.fspath(tensor.location)!r}, "
                "but a ModelProto has no folder; load the model by its path"
            )
        array = read_external(tensor, folder)
    else:
        try:
            array = tensor.numpy()
        except (ValueError, TypeError) as error:
            raise ModelError(f"{where}: tensor {name!r} is broken: {one_line(error)}") from error
    if array.flags.writeable:
        array.setflags(write=False)
    return ir.Tensor(array, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def _normalise(model: ir.Model) -> None:
    """Names every node, sorts them, and makes initializers constants instead of inputs with a default."""
    graph = model.graph
    if "ai.onnx" in model.opset_imports:  # the other name of ''
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    for value in [value for value in graph.inputs if value.is_initializer()]:
        graph.inputs.remove(value)
    model.ir_version = max(model.ir_version, LEAST_IR_VERSION)
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape.numpy())
    try:
        graph.sort()
    except ValueError as error:
        raise ModelError(f"graph {graph.name!r} has a cycle; an ONNX graph must have none") from error
    _name_nodes(graph)
    name_unknown_dims(graph)


def _name_nodes(graph: ir.Graph) -> None:
    """Gives nodes without a name one from what they are and make, and makes repeated names differ."""
    taken = {node.name for node in graph if node.name}
    seen: set[str] = set()
    for node in graph:
        first = next((value.name for value in node.outputs if value.name), "")
        base = node.name or f"{node.op_type}_{first}"
        name, n = base, 0
        while name in seen or (n and name in taken) or (not node.name and name in taken):
            n += 1
            name = f"{base}_{n}"
        seen.add(name)
        node.name = name


def name_unknown_dims(graph: ir.Graph) -> None:
    """Gives each unnamed dimension of the inputs a symbol of its own: dimension 0 of `x` becomes `x_dim0`."""
    taken = {dim for value in graph_values(graph) for dim in shape_of(value) or () if isinstance(dim, str)}
    for value in graph.inputs:
        dims = shape_of(value)
        if dims is None:
            continue
        named: list[Any] = []
        for i, dim in enumerate(dims):
            if (isinstance(dim, int) and dim >= 0) or (isinstance(dim, str) and dim not in _NAMELESS):
                named.append(dim)
                continue
            symbol, n = f"{value.name}_dim{i}", 0
            while symbol in taken:
                n += 1
                symbol = f"{value.name}_dim{i}_{n}"
            taken.add(symbol)
            named.append(symbol)
        value.shape = ir.Shape(named)


def _check_finite(graph: Graph) -> None:
    """WeightsError names a weight, bias or batch norm parameter that holds NaN or infinity."""
    for node in graph.model.graph:
        if node.domain != "" or (node.op_type not in WEIGHT_INPUTS and node.op_type != "BatchNormalization"):
            continue
        for value in node.inputs:
            array = constant_array(value)
            if array is None or value is None or array.dtype.kind != "f":
                continue
            # A constant that is one number broadcast is checked as that one number.
            once = array[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)]
            if not np.isfinite(once).all():
                bad = "NaN" if np.isnan(once).any() else "infinity"
                raise WeightsError(
                    f"weights {value.name!r} of node {node.name!r} ({node.op_type}) hold {bad}; finite numbers would do"
                )
