"""One file for one plan: a zip of `plan.json`, `model.onnx` and its `weights.bin`, stored without compression."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import zipfile
from typing import IO, Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fpgasim.errors import FpgasimError, InputError, ModelError
from fpgasim.graph import Graph, load as load_graph
from fpgasim.npu import Device, Numbers
from fpgasim.numerics import BlockFormat
from fpgasim.placement.cost_graph import CostGraph
from fpgasim.placement.costs import cost_table
from fpgasim.placement.plan import Decision, Options, Plan

#: Raised by one whenever a plan of before can no longer be read.
VERSION = 2
_PLAN, _MODEL, _WEIGHTS = "plan.json", "model.onnx", "weights.bin"
#: What reading a file that is not what `save` wrote may raise.
_BROKEN = (
    *(FpgasimError, DecodeError, zipfile.BadZipFile, EOFError, RuntimeError),
    *(AttributeError, KeyError, OverflowError, TypeError, ValueError),
)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same plan makes the same bytes


def save(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Writes `plan` to `path`: see `Plan.save`."""
    target = os.path.abspath(_decoded(path))
    facts = json.dumps(_facts(plan), indent=1)
    model, weights = _without_weights(plan.source_graph)
    partial = None
    try:
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(target), prefix=".plan-", delete=False) as file:
            partial = file.name
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(zipfile.ZipInfo(_PLAN, _EPOCH), facts)
                archive.writestr(zipfile.ZipInfo(_MODEL, _EPOCH), model.SerializeToString(deterministic=True))
                with archive.open(zipfile.ZipInfo(_WEIGHTS, _EPOCH), "w", force_zip64=True) as entry:
                    for tensor in weights:
                        entry.write(tensor.tobytes())
        os.replace(partial, target)
    except OSError as error:
        if partial is not None:
            with contextlib.suppress(OSError):
                os.unlink(partial)
        raise ModelError(f"plan file {target!r} cannot be written: {error.strerror or error}") from error


def _without_weights(graph: Graph) -> tuple[onnx.ModelProto, list[ir.TensorProtocol]]:
    """The model of `graph`, its initializers but for texts named as parts of weights.bin, and these in order.

    So neither a protobuf message nor a second copy in memory holds them.
    """
    model = graph.model.clone()
    weights: list[ir.TensorProtocol] = []
    offset = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        assert isinstance(tensor.shape, ir.Shape)
        value.const_value = ir.ExternalTensor(
            _WEIGHTS, offset, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=value.name or ""
        )
        weights.append(tensor)
        offset += tensor.nbytes
    return ir.to_proto(model), weights


def _put_weights(proto: onnx.ModelProto, file: IO[bytes]) -> None:
    """Puts the weights that `file` holds into the tensors of `proto` that are parts of it; reads it to its end."""
    at = 0
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        length = int(place["length"])
        if place["location"] != _WEIGHTS or int(place["offset"]) != at:
            raise ModelError(f"the weights {tensor.name!r} are not where they should be")
        data = file.read(length)
        if len(data) != length:
            raise ModelError(f"{_WEIGHTS} ends before the weights {tensor.name!r} do")
        tensor.raw_data = data
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
        at += length
    if file.read(1):
        raise ModelError(f"{_WEIGHTS} holds more than the model needs")


def _decoded(path: str | os.PathLike[str]) -> str:
    try:
        return os.fsdecode(path)
    except TypeError:
        raise InputError(f"path={path!r} is no path; a str or a pathlib.Path would do") from None


def _facts(plan: Plan) -> dict[str, Any]:
    device = dataclasses.asdict(plan.device)
    return {
        "version": VERSION,
        "fingerprint": plan.source_graph.fingerprint(),
        "bound_fingerprint": plan.graph.fingerprint(),
        "optimized": plan.source_graph.optimized,
        "input_shapes": {tensor.name: tensor.shape for tensor in plan.graph.inputs},
        "device": {**device, "assumed": sorted(plan.device.assumed)},
        "numbers": dataclasses.asdict(plan.numbers),
        "objective_name": plan.objective_name,
        "algorithm": plan.algorithm,
        "note": plan.note,
        "lower_bound_s": plan.lower_bound_s,
        "options": dataclasses.asdict(plan.options),
        "pinned": sorted(plan.pinned),
        "solver_s": plan.solver_s,
        "stages": plan.stages,
        "decisions": [dataclasses.asdict(decision) for decision in plan.decisions],
        "cost_graph": json.loads(plan.cost_graph.to_json()),
    }


def load(path: str | os.PathLike[str]) -> Plan:
    """The plan in `path`: see `Plan.load`."""
    path = _decoded(path)
    where = f"plan file {path!r}"
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if [entry.filename for entry in entries[:2]] != [_PLAN, _MODEL] or not stored:
                refusal = "is no plan; Plan.save writes one"
            else:
                facts = json.loads(archive.read(_PLAN))
                version = facts.get("version") if isinstance(facts, dict) else None
                if version == VERSION:
                    return _plan(facts, _model(archive))
                refusal = f"is of version {version!r}; this fpgasim reads version {VERSION}"
    except OSError as error:
        raise ModelError(f"{where} cannot be read: {error.strerror or error}") from error
    except _BROKEN as error:
        message = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{where} is damaged: {message}") from error
    raise ModelError(f"{where} {refusal}")


def _model(archive: zipfile.ZipFile) -> onnx.ModelProto:
    """The model in `archive`, its weights put back."""
    model = onnx.ModelProto()
    model.ParseFromString(archive.read(_MODEL))
    with archive.open(_WEIGHTS) as file:
        _put_weights(model, file)
    return model


def _plan(facts: dict[str, Any], proto: onnx.ModelProto) -> Plan:
    if not isinstance(facts["optimized"], bool):
        raise ModelError(f"optimized={facts['optimized']!r} must be true or false")
    source = Graph(load_graph(proto, optimize=False).model, optimized=facts["optimized"])
    shapes = {name: tuple(shape) for name, shape in facts["input_shapes"].items() if shape is not None}
    graph = source.with_input_shapes(shapes)
    for found, key in ((source, "fingerprint"), (graph, "bound_fingerprint")):
        if found.fingerprint() != facts[key]:
            raise ModelError(f"the model is not the one the plan was made for ({key} {found.fingerprint()[:12]}…)")
    device = Device(**{**facts["device"], "assumed": frozenset(facts["device"]["assumed"])})
    numbers = Numbers(**{**facts["numbers"], "format": BlockFormat(**facts["numbers"]["format"])})
    decisions = tuple(Decision(**decision) for decision in facts["decisions"])
    for name, text in (("note", facts["note"]), *((d.node, d.message) for d in decisions)):
        if not isinstance(text, str):
            raise ModelError(f"{name}: {text!r} is no text")
    cost_graph = CostGraph.from_json(facts["cost_graph"])
    asked = facts["options"]
    force = tuple((name, side) for name, side in asked["force"])
    options = Options(**{**asked, "force": force, "cut_at": tuple(asked["cut_at"])})
    plan = Plan(
        graph,
        source,
        device,
        numbers,
        facts["objective_name"],
        facts["algorithm"],
        decisions,
        cost_graph,
        facts["lower_bound_s"],
        facts["note"],
        options,
        frozenset(facts["pinned"]),
        facts["solver_s"],
        tuple(map(tuple, facts["stages"])),
    )
    cpu_s = {node.name: node.cpu for node in cost_graph.nodes} if options.costs == "measured" else None
    costs = cost_table(graph, device, numbers, cpu_s).cost_graph
    for field in dataclasses.fields(CostGraph):
        if getattr(costs, field.name) != getattr(cost_graph, field.name):
            raise ModelError(
                f"cost_graph.{field.name} is not what this fpgasim computes for the model on device {device.name!r}; "
                "partition anew if another version wrote the plan"
            )
    return plan
