"""Service definitions of Azure's SDKs of 2018 and 2019, recognised: what their stages are, and what to do with them.

Their zips hold TensorFlow graphs, which do not run here; the networks themselves do.

    service_def.json  amlrealtimeai: {"aml_runtime_version", "pipeline": [{"type", "model_path" | "model_ref", …}]}
    manifest.json     azureml.contrib.brainwave: {"pipeline": […], "environment": {"tensorflow_version", …}}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fpgasim.errors import ModelError
from fpgasim.service.bundles import Bundle

#: The file that tells a generation -> the package that wrote it.
SDKS = {"service_def.json": "amlrealtimeai", "manifest.json": "azureml.contrib.brainwave"}
_SHOWN = 20


@dataclass(frozen=True)
class OldStage:
    """A stage of an old definition; `model_ref` and `model_version` are of the networks on the FPGA, else ''."""

    type: str
    name: str
    input_tensor: str
    output_tensor: str
    model_ref: str = ""
    model_version: str = ""

    def __str__(self) -> str:
        if self.model_ref:
            kind = _class_of(self.model_ref)
            here = f", which is {kind} here" if kind else ", which is not known here"
            return f"{self.type} {self.model_ref} {self.model_version}".rstrip() + here
        return f"{self.type} {self.input_tensor} -> {self.output_tensor}"


@dataclass(frozen=True)
class OldDefinition:
    """An old definition: the package that wrote it, in which environment, and its stages."""

    sdk: str
    environment: Mapping[str, str]
    stages: tuple[OldStage, ...]


def read_old(path: str | os.PathLike[str]) -> OldDefinition | None:
    """What the zip at `path` says, if one of Azure's SDKs wrote it; None for any other. ModelError for a broken one."""
    with Bundle(path) as bundle:
        return _read(bundle)


def refuse_old(bundle: Bundle) -> None:
    """Raises ModelError, naming the SDK and every stage, where one of Azure's SDKs wrote the zip."""
    old = _read(bundle)
    if old is None:
        return
    stages = "; ".join(f"{i}. {stage}" for i, stage in enumerate(old.stages[:_SHOWN], start=1))
    raise ModelError(
        f"definition {bundle.path!r} was written by {old.sdk} and holds TensorFlow graphs, which do not run here "
        f"({stages}); make it anew with fpgasim.service.models, or of the graphs' ONNX forms with OnnxStage"
    )


def _read(bundle: Bundle) -> OldDefinition | None:
    for file, sdk in SDKS.items():
        if file not in bundle.sizes:
            continue
        facts = bundle.read_json(file)
        if "schema" in facts or not isinstance(facts.get("pipeline"), list):
            continue
        environment = facts.get("environment")
        if not isinstance(environment, dict):
            environment = {"aml_runtime_version": facts.get("aml_runtime_version", "")}
        stages = tuple(_stage(entry, i) for i, entry in enumerate(facts["pipeline"], start=1))
        return OldDefinition(sdk, {str(key): str(value) for key, value in environment.items()}, stages)
    return None


def _stage(entry: object, i: int) -> OldStage:
    if not isinstance(entry, Mapping):
        raise ModelError(f"stage {i} of the old definition is a {type(entry).__name__}; an object would do")
    properties = entry.get("properties")
    model: Mapping[str, Any] = properties if isinstance(properties, Mapping) else entry
    known = {
        "type": entry.get("type"),
        "name": entry.get("name") or entry.get("model_path"),
        "input_tensor": entry.get("input_tensor"),
        "output_tensor": entry.get("output_tensor"),
        "model_ref": model.get("model_ref"),
        "model_version": model.get("model_version"),
    }
    return OldStage(**{field: str(value)[:100] if value is not None else "" for field, value in known.items()})


def _class_of(model_ref: str) -> str:
    from fpgasim.service.models import MODELS

    kind = MODELS.get(model_ref)
    return kind.__name__ if kind else ""
