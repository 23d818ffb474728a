"""What a conversion begins with: a registered model, opened, and the part of it between the tensors that are named."""

from __future__ import annotations

import copy
import difflib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fpgasim.errors import InputError, ModelError, WeightsError
from fpgasim.graph import Graph
from fpgasim.placement import Plan
from fpgasim.service import saved_models
from fpgasim.service.pipeline import FpgaStage, ModelDefinition, Stage
from fpgasim.service.registry import Model
from fpgasim.service.servables import open_source
from fpgasim.service.store import Content

#: What the stage of a graph of its own is called.
STAGE = "fpga"
_ENDINGS = (".zip", ".fpgaplan", ".onnx")
_LISTED = 12


@dataclass(frozen=True)
class TensorflowPart:
    """A part of the SavedModel in the folder `folder` of a model, still to become ONNX."""

    model: Model
    folder: str
    selection: saved_models.Selection


def names_of(role: str, given: str | Sequence[str]) -> list[str]:
    """The names in a list, or in a text with commas between them. InputError for none, and for one said twice."""
    items = given.split(",") if isinstance(given, str) else given
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise InputError(f"{role}={given!r}; the name of a tensor, or a list of them, would do")
    names = [item.strip() for item in items]
    if not all(names) or not names:
        raise InputError(f"{role}={given!r} names no tensor")
    if len(set(names)) < len(names):
        raise InputError(f"{role}={given!r} names a tensor twice")
    return names


def part_of(model: Model, inputs: Sequence[str], outputs: Sequence[str]) -> ModelDefinition | TensorflowPart:
    """The part of `model` from `inputs` to `outputs`, as stages; names with or without TensorFlow's ":0".

    Of an ONNX model one FPGA stage, of a service definition its stages from the one that takes the inputs to the one
    that makes the outputs, whatever they are. Raises InputError for a name that is not there, listing those that are;
    ModelError and WeightsError for files that are broken or none of these.
    """
    try:
        found = _opened(model)
        if isinstance(found, str):
            saved = saved_models.read(model.file(f"{found}{saved_models.FILE}"))
            return TensorflowPart(model, found, saved_models.select(saved, inputs, outputs))
        if isinstance(found, Graph):
            tensors = (
                {name: _tensor(found, role, name) for name in names}
                for role, names in (("input_node", inputs), ("output_nodes", outputs))
            )
            return of_graph(found, *tensors)
        if isinstance(found, Plan):
            stage = FpgaStage(found, name=STAGE)
            found = ModelDefinition()
            found.pipeline.append(stage)
        return _cut(found, inputs, outputs)
    except (InputError, ModelError, WeightsError) as error:
        raise type(error)(f"model {model.id}: {error}") from error


def of_graph(graph: Graph, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> ModelDefinition:
    """The part of `graph`, which is not optimized yet, as one FPGA stage; name asked for -> tensor."""
    from fpgasim.graph.passes import optimize

    part = graph.extract(list(inputs.values()), list(outputs.values()))
    if not part.nodes:
        raise InputError(f"nothing is computed from {_listed(inputs)} to {_listed(outputs)}")
    definition = ModelDefinition()
    definition.pipeline.append(FpgaStage(optimize(part), name=STAGE, input=inputs, output=outputs))
    assert definition.signature
    return definition


def _opened(model: Model) -> Graph | Plan | ModelDefinition | str:
    """What the files of `model` are; of a SavedModel the path of its folder in the model, '' or with a slash behind."""
    contents = model.contents
    if not model.unpack:
        return open_source(model.path, optimize=False)
    saved = [c.path for c in contents if c.path.rpartition("/")[2] == saved_models.FILE]
    if len(saved) == 1:
        return saved[0].removesuffix(saved_models.FILE)
    tops = [content for content in contents if content.path.endswith(_ENDINGS) and "/" not in content.path]
    if len(tops) != 1 or saved:
        there = _listed(content.path for content in contents)
        raise ModelError(f"the folder must hold one .onnx, .zip or .fpgaplan file, or one SavedModel; it has {there}")
    if len(contents) == 1 or not tops[0].path.endswith(".onnx"):
        return open_source(model.file(tops[0].path), optimize=False)
    with tempfile.TemporaryDirectory() as folder:  # weights lie in files beside it
        model.workspace.store.copy_out(contents, Path(folder))
        return open_source(Path(folder, tops[0].path), optimize=False)


def folder_of(part: TensorflowPart, target: Path) -> Path:
    """Where the SavedModel of `part` is, once it is written below the folder `target`."""
    contents: list[Content] = [c for c in part.model.contents if c.path.startswith(part.folder)]
    part.model.workspace.store.copy_out(contents, target)
    return target / part.folder


def _cut(definition: ModelDefinition, inputs: Sequence[str], outputs: Sequence[str]) -> ModelDefinition:
    """The stages of `definition` from `inputs` to `outputs`."""
    aliases, stages = definition.signature.aliases, definition.pipeline
    reads = [_spellings(stage.inputs, aliases if i == 0 else {}) for i, stage in enumerate(stages)]
    makes = [_spellings(stage.outputs, aliases if i == len(stages) - 1 else {}) for i, stage in enumerate(stages)]
    first = _stage_with(inputs, reads, range(len(stages)))
    if first is None:
        raise InputError(_missing("input_node", inputs, reads, stages))
    last = _stage_with(outputs, makes, reversed(range(first, len(stages))))
    if last is None:
        raise InputError(_missing("output_nodes", outputs, makes, stages))
    lacking = set(stages[first].inputs) - {reads[first][name] for name in inputs}
    if lacking:
        raise InputError(f"input_node: stage {stages[first].name!r} needs {_listed(sorted(lacking))} too")
    chosen = list(dict.fromkeys(makes[last][name] for name in outputs))
    part = ModelDefinition(definition.name, labels=definition.labels if last == len(stages) - 1 else None)
    part.pipeline += stages[first : last + 1]
    if set(chosen) != set(stages[last].outputs):
        part.pipeline[-1] = copy.copy(stages[last])
        part.pipeline[-1].outputs = {name: stages[last].outputs[name] for name in chosen}
    if definition.aliases is not None:
        ends = {*part.pipeline[0].inputs, *part.pipeline[-1].outputs}
        part.aliases = {alias: name for alias, name in aliases.items() if name in ends}
    assert part.signature
    return part


def _spellings(names: Iterable[str], aliases: Mapping[str, str]) -> dict[str, str]:
    """Every way to write one of `names` -> that name: with or without ":0", and its aliases."""
    own = list(names)
    return {
        **{(name.removesuffix(":0") if name.endswith(":0") else f"{name}:0"): name for name in own},
        **{alias: name for alias, name in aliases.items() if name in own},
        **{name: name for name in own},
    }


def _stage_with(names: Sequence[str], known: Sequence[Mapping[str, str]], order: Iterable[int]) -> int | None:
    return next((i for i in order if all(name in known[i] for name in names)), None)


def _missing(role: str, names: Sequence[str], known: Sequence[Mapping[str, str]], stages: Sequence[Stage]) -> str:
    """That no stage has all of `names`, or which of them none has; and what there is."""
    every = {name for spellings in known for name in spellings}
    unknown = [name for name in names if name not in every]
    side = "takes" if role == "input_node" else "makes"
    there = "; ".join(
        f"stage {stage.name!r} {side} {_listed(dict.fromkeys(spellings.values()))}"
        for stage, spellings in zip(stages, known, strict=True)
    )
    if not unknown:
        return f"{role}: no stage after the inputs {side} all of {_listed(names)}; {there}"
    close = difflib.get_close_matches(unknown[0], every, n=1)
    return f"{role}: no tensor {unknown[0]!r}; {f'did you mean {close[0]!r}? ' if close else ''}{there}"


def _tensor(graph: Graph, role: str, name: str) -> str:
    """The tensor of `graph` that is written `name`."""
    inputs, outputs = ([tensor.name for tensor in ends] for ends in (graph.inputs, graph.outputs))
    known = _spellings([*inputs, *(made for node in graph.nodes for made in node.outputs if made)], {})
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        ends = f"inputs {_listed(inputs)}, outputs {_listed(outputs)}"
        raise InputError(f"{role}: no tensor {name!r}; {hint}the graph has {ends} and what lies between")
    return known[name]


def _listed(names: Iterable[str]) -> str:
    found = [repr(name) for name in names]
    return ", ".join(found[:_LISTED]) + (f" and {len(found) - _LISTED} more" if len(found) > _LISTED else "")
