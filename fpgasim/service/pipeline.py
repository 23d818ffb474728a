"""`ModelDefinition`: stages that run in order, each fed what the one before it made; saved as one zip.

manifest.json         schema, version, the stages in order, their tensors, every other file's SHA-256 and size
1-features.onnx       the graph of a stage, or …
1-features.fpgaplan   … its plan
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import fpgasim
from fpgasim.errors import FpgasimError, InputError, ModelError, UnknownNameError
from fpgasim.graph import Graph
from fpgasim.npu import DEVICES
from fpgasim.placement import Plan
from fpgasim.service import bundles
from fpgasim.service.servables import Servable, Signature
from fpgasim.service.stages import (
    WAYS,
    BrainWaveStage,
    CpuStage,
    FpgaStage,
    KerasStage,
    OnnxStage,
    Stage,
    TensorflowStage,
    stage_of,
)
from fpgasim.service.steps import AnyPreprocessing, Target, TensorSpec, VirtualFpga
from fpgasim.service.symbolic import Tensor

if TYPE_CHECKING:
    import onnx

__all__ = [
    "BrainWaveStage",
    "CpuStage",
    "FpgaStage",
    "KerasStage",
    "ModelDefinition",
    "OnnxStage",
    "Stage",
    "Target",
    "TensorflowStage",
    "definition_of",
]

SCHEMA = "fpgasim/service-definition"
#: Raised by one whenever a definition of before can no longer be read.
VERSION = 1
MANIFEST, FILE = "manifest.json", "service_def.zip"


class ModelDefinition:
    """A pipeline of stages under a name: what is saved, registered and served.

    `pipeline` is a list to append stages to. Each stage is fed what the one before it makes: by name where all its
    inputs are among that, else in order. `aliases` are further names of what goes in first and comes out last, by
    default `images` and `output_alias` where there is one of each; `labels` name the classes.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        aliases: Mapping[str, str] | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.pipeline: list[Stage] = []
        self.aliases = None if aliases is None else dict(aliases)
        self.labels = None if labels is None else list(labels)

    def __repr__(self) -> str:
        return f"ModelDefinition({self.name!r}, {self.pipeline})"

    @property
    def environment(self) -> dict[str, str]:
        """What it is made with."""
        return {"python_version": platform.python_version(), "package_version": fpgasim.__version__}

    @property
    def signature(self) -> Signature:
        """What goes in first and comes out last. Raises InputError for stages that do not fit one another."""
        self._links()
        inputs, outputs = self.pipeline[0].input_specs, self.pipeline[-1].output_specs
        return Signature.of(inputs, outputs, self.aliases)

    def json_dict(self) -> dict[str, Any]:
        """What the manifest says, the files' hashes aside."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "name": self.name,
            "environment": self.environment,
            "aliases": self.aliases,
            "labels": self.labels,
            "pipeline": [{**stage.json_dict(), **_file(stage, i)} for i, stage in enumerate(self.pipeline, start=1)],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the definition, weights included, as a zip; the same definition gives the same bytes.

        Raises InputError for stages that do not fit one another, ModelError where it cannot be written.
        """
        assert self.signature
        manifest = self.json_dict()
        files = {
            entry["file"]: _content(stage)
            for stage, entry in zip(self.pipeline, manifest["pipeline"], strict=True)
            if "file" in entry
        }
        manifest["files"] = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()
        }
        bundles.write(path, [(MANIFEST, json.dumps(manifest, indent=1).encode()), *files.items()])

    @staticmethod
    def load(path: str | os.PathLike[str]) -> ModelDefinition:
        """The definition that `save` wrote. Nothing in it is executed, and no file is written where it says.

        Raises ModelError for a file that is broken, unsafe, changed or of another version; one of Azure's SDKs is named
        as such, with its stages.
        """
        from fpgasim.service.old_definitions import refuse_old

        with bundles.Bundle(path) as bundle:
            refuse_old(bundle)
            manifest = bundle.read_json(MANIFEST)
            where = f"definition {bundle.path!r}"
            if manifest.get("schema") != SCHEMA:
                raise ModelError(f"{where} has schema {manifest.get('schema')!r}; {SCHEMA!r} would do")
            if manifest.get("version") != VERSION:
                raise ModelError(f"{where} is of version {manifest.get('version')!r}; this fpgasim reads {VERSION}")
            try:
                return _definition(manifest, bundle)
            except (KeyError, TypeError, ValueError, AttributeError, FpgasimError) as error:
                reason = f"its manifest lacks {error}" if isinstance(error, KeyError) else error
                raise ModelError(f"{where}: {reason}") from error

    def planned(self, target: Target | None = None, *, require_fpga: bool = False) -> ModelDefinition:
        """The same with every FPGA stage planned for `target`, or as it says itself.

        `require_fpga` asks every one of them for all its nodes on the FPGA. Raises what `fpgasim.partition` raises.
        """
        made = ModelDefinition(self.name, aliases=self.aliases, labels=self.labels)
        for stage in self.pipeline:
            if isinstance(stage, FpgaStage) and isinstance(stage.work, Graph):
                stage = FpgaStage(
                    stage.work, stage.device, stage.format, stage.require_fpga or require_fpga, stage.name,
                    stage.inputs, stage.outputs, stage.layout,
                )  # fmt: skip
                stage.work, stage.device, stage.format = stage.plan(target or Target()), None, None
            made.pipeline.append(stage)
        return made

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Those of the FPGA stages that have one already."""
        return tuple(stage.work for stage in self.pipeline if isinstance(stage.work, Plan))

    def servable(
        self,
        target: Target | None = None,
        *,
        name: str | None = None,
        version: int = 1,
        fpga: VirtualFpga | None = None,
    ) -> Servable:
        """The definition made ready to answer; FPGA stages that are not planned are planned for `target`."""
        links, signature = self._links(), self.signature
        steps, last = [], len(self.pipeline) - 1
        for i, (stage, link) in enumerate(zip(self.pipeline, links, strict=True)):
            reads = {own: link[outside] for outside, own in stage.inputs.items()}
            writes = {own: outside if i == last else _value(i, outside) for outside, own in stage.outputs.items()}
            step = stage.step(target or Target())
            steps.append(dataclasses.replace(step, name=self._title(i), reads=reads, writes=writes))
        return Servable(name or self.name or "model", version, steps, signature, self.labels, fpga)

    def _title(self, i: int) -> str:
        """The name of stage i, made to differ from those before it."""
        name = self.pipeline[i].name
        before = [stage.name for stage in self.pipeline[:i]]
        return f"{name}_{i + 1}" if name in before else name

    def _links(self) -> list[dict[str, str]]:
        """For each stage, its input -> the value it reads. Raises InputError where two do not fit."""
        if not self.pipeline:
            raise InputError("the pipeline is empty; append stages to it")
        for stage in self.pipeline:
            if not isinstance(stage, Stage):
                raise InputError(
                    f"a pipeline is of stages such as CpuStage and FpgaStage; got a {type(stage).__name__}"
                )
        links = [{spec.name: spec.name for spec in self.pipeline[0].input_specs}]
        for i, (before, stage) in enumerate(zip(self.pipeline, self.pipeline[1:], strict=False)):
            made, wanted = before.output_specs, stage.input_specs
            by_name = {spec.name: spec for spec in made}
            if all(spec.name in by_name for spec in wanted):
                pairs = [(by_name[spec.name], spec) for spec in wanted]
            elif len(made) == len(wanted):
                pairs = list(zip(made, wanted, strict=True))
            else:
                raise InputError(
                    f"stage {i + 2} ({stage.name}) takes {_listed(s.name for s in wanted)}, "
                    f"but stage {i + 1} ({before.name}) makes {_listed(s.name for s in made)}"
                )
            for source, spec in pairs:
                if not _fits(source, spec):
                    raise InputError(
                        f"stage {i + 2} ({stage.name}) takes {_described(spec)}, "
                        f"but stage {i + 1} ({before.name}) makes {_described(source)}"
                    )
            links.append({spec.name: _value(i, source.name) for source, spec in pairs})
        inputs, outputs = self.pipeline[0].inputs, self.pipeline[-1].outputs
        for both in inputs.keys() & outputs.keys():
            raise InputError(f"an input and an output are called {both!r}; output={{'another': …}} renames one")
        return links


def definition_of(inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], name: str) -> ModelDefinition:
    """The pipeline that makes the symbolic `outputs` of `inputs`, whose keys are aliases.

    Raises InputError for tensors that are not made of one another one stage after another.
    """
    for role, given in (("inputs", inputs), ("outputs", outputs)):
        if not given or not all(isinstance(tensor, Tensor) for tensor in given.values()):
            raise InputError(f"{role}={given!r}; a mapping from names to symbolic tensors would do")
    stages: list[Stage] = []
    ends = set(outputs.values())
    while not ends <= set(inputs.values()):
        ends = {end if end.source is None else end.source for end in ends}
        makers = {end.operation for end in ends}
        operation = makers.pop()
        if operation is None or makers:
            loose = next(end for end in ends if operation is None or end.operation is not operation)
            raise InputError(f"{loose!r} is not made of {_listed(t.name for t in inputs.values())} by stages in a row")
        stage = stage_of(operation)
        if not stages:
            wanted = [tensor.name for tensor in outputs.values()]
            stage = stage_of(operation, wanted)
        stages.insert(0, stage)
        ends = set(operation.inputs.values())
    aliases = {alias: tensor.name for alias, tensor in {**inputs, **outputs}.items() if alias != tensor.name}
    definition = ModelDefinition(name, aliases=aliases)
    definition.pipeline += stages
    return definition


def _value(i: int, name: str) -> str:
    """What the pipeline calls the output `name` of stage i: stages may use the same names."""
    return f"{i}\0{name}"


def _fits(made: TensorSpec, wanted: TensorSpec) -> bool:
    kinds = {made.dtype.kind, wanted.dtype.kind}
    if made.dtype != wanted.dtype and kinds != {"f"}:
        return False
    if made.shape is None or wanted.shape is None:
        return True
    return len(made.shape) == len(wanted.shape) and all(
        a == b or a is None or b is None for a, b in zip(made.shape, wanted.shape, strict=True)
    )


def _described(spec: TensorSpec) -> str:
    dtype = "strings" if spec.is_text else str(spec.dtype)
    shape = "any" if spec.shape is None else ", ".join("?" if size is None else str(size) for size in spec.shape)
    return f"{spec.name!r}, {dtype} of shape ({shape})"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _file(stage: Stage, number: int) -> dict[str, str]:
    ending = {Graph: "onnx", Plan: "fpgaplan"}.get(type(stage.work))
    if ending is None:
        return {}
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in stage.name)
    return {"file": f"{number}-{name}.{ending}"}


def _content(stage: Stage) -> bytes:
    if isinstance(stage.work, Plan):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "plan")
            stage.work.save(path)
            return path.read_bytes()
    return bytes(cast(Graph, stage.work).to_proto().SerializeToString(deterministic=True))


def _definition(manifest: Mapping[str, Any], bundle: bundles.Bundle) -> ModelDefinition:
    entries, files = manifest["pipeline"], manifest["files"]
    if not isinstance(entries, list) or not isinstance(files, dict):
        raise ModelError("the manifest's pipeline must be a list and its files an object")
    named = [entry["file"] for entry in entries if "file" in entry]
    if not (sorted(named) == sorted(files) == sorted(set(bundle.sizes) - {MANIFEST})):
        raise ModelError(
            f"the stages name the files {_listed(named)}, the manifest knows {_listed(files)} "
            f"and the archive holds {_listed(bundle.sizes)}"
        )
    definition = ModelDefinition(
        _text(manifest["name"], "name", True), aliases=_texts(manifest["aliases"]), labels=_labels(manifest["labels"])
    )
    for entry in entries:
        data = None
        if "file" in entry:
            data = bundle.read(entry["file"], _text(files[entry["file"]]["sha256"], "sha256") or "")
        definition.pipeline.append(_stage(entry, data))
    assert definition.signature
    return definition


def _stage(entry: Mapping[str, Any], data: bytes | None) -> Stage:
    inputs, outputs = _texts(entry["inputs"]) or {}, _texts(entry["outputs"]) or {}
    name, layout = entry["name"], entry["layout"]
    match entry["type"]:
        case "preprocessing":
            return CpuStage(_preprocessing(entry["way"], entry["parameters"]), inputs, outputs, name, layout)
        case "onnx" if data is not None:
            return CpuStage(_parsed(data), inputs, outputs, name, layout)
        case "fpga" if data is not None and entry["file"].endswith(".fpgaplan"):
            return FpgaStage(_plan(data), None, None, entry["require_fpga"], name, inputs, outputs, layout)
        case "fpga" if data is not None:
            if entry["device"] is not None and entry["device"] not in DEVICES:  # a name may be a file's
                raise UnknownNameError("device", entry["device"], DEVICES)
            return FpgaStage(
                _parsed(data), entry["device"], entry["format"], entry["require_fpga"], name, inputs, outputs, layout
            )
        case other:
            raise ModelError(
                f"stage {name!r} is of type {other!r}; preprocessing, onnx or fpga would do, with its file"
            )


def _preprocessing(way: str, facts: Mapping[str, Any]) -> AnyPreprocessing:
    """The preprocessing that the manifest tells. TypeError and InputError for fields that it has not."""
    if way not in WAYS:
        raise UnknownNameError("way of preprocessing", way, WAYS)
    parameters: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in facts.items()}
    for key in ("mean", "std"):
        values = parameters.get(key, ())
        if not isinstance(values, tuple) or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            raise ModelError(f"{key}={values!r} of a preprocessing; three finite numbers would do")
    return WAYS[way](**parameters)


def _parsed(data: bytes) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError("the file of a stage is no ONNX model") from error
    return proto


def _plan(data: bytes) -> Plan:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stage.fpgaplan")
        path.write_bytes(data)
        return Plan.load(path)


def _text(value: object, what: str, may_lack: bool = False) -> str | None:
    if isinstance(value, str) or (may_lack and value is None):
        return value
    raise ModelError(f"{what} is {value!r}; a text would do")


def _texts(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ModelError(f"{value!r} must be an object of texts")
    return value


def _labels(value: object) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ModelError("labels must be a list of texts")
    return value
