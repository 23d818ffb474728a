"""One file for one plan: a zip of `plan.json` and `model.onnx`, stored without compression."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import zipfile
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fpgasim.errors import FpgasimError, InputError, ModelError
from fpgasim.graph import Graph, load as load_graph
from fpgasim.npu import Device, Numbers
from fpgasim.numerics import BlockFormat
from fpgasim.placement.cost_graph import CostGraph
from fpgasim.placement.costs import cost_table
from fpgasim.placement.plan import Decision, Plan

#: Raised by one whenever a plan of before can no longer be read.
VERSION = 1
_PLAN, _MODEL = "plan.json", "model.onnx"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same plan makes the same bytes


def save(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Writes `plan` to `path`: see `Plan.save`."""
    target = os.path.abspath(_decoded(path))
    facts = json.dumps(_facts(plan), indent=1)
    model = plan.source_graph.to_proto().SerializeToString(deterministic=True)
    partial = None
    try:
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(target), prefix=".plan-", delete=False) as file:
            partial = file.name
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(zipfile.ZipInfo(_PLAN, _EPOCH), facts)
                archive.writestr(zipfile.ZipInfo(_MODEL, _EPOCH), model)
        os.replace(partial, target)
    except OSError as error:
        if partial is not None:
            with contextlib.suppress(OSError):
                os.unlink(partial)
        raise ModelError(f"plan file {target!r} cannot be written: {error.strerror or error}") from error


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
            if [entry.filename for entry in entries] != [_PLAN, _MODEL] or not stored:
                raise ModelError(f"{where} is no plan; Plan.save writes one")
            facts = json.loads(archive.read(_PLAN))
            model = archive.read(_MODEL)
    except OSError as error:
        raise ModelError(f"{where} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError) as error:
        raise ModelError(f"{where} is damaged: {error}") from error
    version = facts.get("version") if isinstance(facts, dict) else None
    if version != VERSION:
        raise ModelError(f"{where} is of version {version!r}; this fpgasim reads version {VERSION}")
    try:
        return _plan(facts, onnx.ModelProto.FromString(model))
    except (FpgasimError, DecodeError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        message = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{where} is damaged: {message}") from error


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
    )
    costs = cost_table(graph, device, numbers).cost_graph
    for field in dataclasses.fields(CostGraph):
        if getattr(costs, field.name) != getattr(cost_graph, field.name):
            raise ModelError(
                f"cost_graph.{field.name} is not what this fpgasim computes for the model on device {device.name!r}; "
                "partition anew if another version wrote the plan"
            )
    return plan
