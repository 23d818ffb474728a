"""Which ONNX versions and operators are taken."""

import onnx
import onnx_ir as ir

from fpgasim.errors import ModelError

#: ONNX Runtime 1.32 takes up to these. Below, many operators had other rules; the others may come from there too.
OPSETS = range(7, 29)
_EARLY_OPSETS = range(1, OPSETS.start)
IR_VERSIONS = range(3, 15)
#: From here on an initializer need not be a graph input too, which is what a `Graph` holds to.
LEAST_IR_VERSION = 4


_WANTED = f"{OPSETS.start} to {OPSETS.stop - 1}"


def check_versions(proto: onnx.ModelProto, where: str) -> None:
    """ModelError unless the model's IR version and opset are among those taken."""
    if proto.ir_version not in IR_VERSIONS:
        raise ModelError(
            f"{where}: IR version is {proto.ir_version}; {IR_VERSIONS.start} to {IR_VERSIONS.stop - 1} would do"
        )
    if not proto.opset_import:
        raise ModelError(f"{where} declares no ai.onnx opset; {_WANTED} would do")
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if versions and versions[0] not in OPSETS and versions[0] not in _EARLY_OPSETS:
        raise ModelError(f"{where}: opset is {versions[0]}; {_WANTED} would do")


def check_operators(model: ir.Model) -> None:
    """ModelError names the first node whose operator neither ONNX nor ONNX Runtime knows in the model's opset.

    A model of an opset below 7 whose operators opset 7 has unchanged is declared to be of that one.
    """
    early = model.opset_imports.get("", OPSETS.start)
    if early in _EARLY_OPSETS:
        model.opset_imports[""] = OPSETS.start
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        where = f"node {node.name!r}: operator {node.op_type!r}"
        if not onnx.defs.has(node.op_type, node.domain):
            if (node.domain, node.op_type) not in _runtime_operators():
                raise ModelError(f"{where} of domain {node.domain or 'ai.onnx'!r} is unknown to ONNX and ONNX Runtime")
            continue
        opset = model.opset_imports.get(node.domain)
        if opset is None:
            raise ModelError(f"{where} is of domain {node.domain!r}, whose opset the model does not declare")
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        except onnx.defs.SchemaError as error:
            since = onnx.defs.get_schema(node.op_type, node.domain).since_version
            raise ModelError(f"{where} is newer than the model's opset {opset}; opset {since} has it") from error
        if node.domain == "" and schema.since_version > early:
            raise ModelError(f"opset is {early}; {_WANTED} would do, since {where} changed with {schema.since_version}")
        if schema.deprecated:
            raise ModelError(f"{where} is not in the model's opset {opset}; it went with {schema.since_version}")


def _runtime_operators() -> set[tuple[str, str]]:
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    return {(schema.domain, schema.name) for schema in get_all_operator_schema()}
