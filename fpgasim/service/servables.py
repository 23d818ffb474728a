"""What a server serves: `servable` makes it of a network's name, a file or a pipeline; `Servable.run` answers."""

from __future__ import annotations

import dataclasses
import difflib
import io
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fpgasim.errors import InputError, ModelError
from fpgasim.graph import Graph
from fpgasim.service.steps import (
    DEVICE,
    FORMAT,
    Array,
    GoOn,
    Limits,
    Machine,
    Pace,
    Step,
    Target,
    TensorSpec,
    VirtualFpga,
    cpu_step,
    fpga_step,
    preprocessing_step,
)

if TYPE_CHECKING:
    from fpgasim.npu import Device
    from fpgasim.numerics import BlockFormat
    from fpgasim.placement import Plan
    from fpgasim.placement.plan import Objective
    from fpgasim.service.pipeline import ModelDefinition
    from fpgasim.zoo import Network

__all__ = [
    "DEVICE",
    "FORMAT",
    "FPGA",
    "Pace",
    "Result",
    "SeededWeightsWarning",
    "Servable",
    "Signature",
    "TensorSpec",
    "VirtualFpga",
    "servable",
]

#: What Azure's clients of 2018 call the one input and the one output of every service.
IMAGES, OUTPUT_ALIAS = "images", "output_alias"
#: What TensorFlow called the encoded pictures, and so what Azure's clients of 2019 send.
PLACEHOLDER = "Placeholder:0"
#: The engine of this process, which every servable runs on unless it is given another.
FPGA = VirtualFpga()

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
#: What a zip begins with, and no ONNX file does.
_ZIP = b"PK\x03\x04"


class SeededWeightsWarning(UserWarning):
    """Weights were drawn from a seed since none were given: what comes out means nothing."""


@dataclass(frozen=True)
class Signature:
    """What a servable takes and gives. `aliases` are other names of the same tensors: alias -> tensor name.

    A reply's names follow the request's: asked by aliases it answers with aliases, asked by tensor names with those.
    Outputs without an alias keep their tensor names.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(
        inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], aliases: Mapping[str, str] | None = None
    ) -> Signature:
        """The signature with `aliases`, by default `images` for one input and `output_alias` for one output.

        Raises InputError for an alias of no tensor, or one that another tensor is called.
        """
        if aliases is None:
            taken = {spec.name for spec in (*inputs, *outputs)}
            pairs = ((IMAGES, inputs), (OUTPUT_ALIAS, outputs))
            aliases = {alias: specs[0].name for alias, specs in pairs if len(specs) == 1 and alias not in taken}
        names = {spec.name for spec in (*inputs, *outputs)}
        for alias, name in aliases.items():
            if name not in names:
                raise InputError(f"alias {alias!r} is of {name!r}; the tensors are {_listed(names)}")
            if alias in names and alias != name:
                raise InputError(f"alias {alias!r} of {name!r} is the name of another tensor")
        return Signature(inputs, outputs, dict(aliases))

    @property
    def input_names(self) -> Mapping[str, TensorSpec]:
        """Every name an input goes by."""
        return _names(self.inputs, self.aliases)

    @property
    def output_names(self) -> Mapping[str, TensorSpec]:
        """Every name an output goes by."""
        return _names(self.outputs, self.aliases)

    def read(self, given: Mapping[str, Array]) -> tuple[dict[str, Array], bool]:
        """The arrays by tensor name, of the dtypes they should be; and whether aliases alone were used.

        Raises InputError for an unknown, missing or double input, and for one of another dtype or shape.
        """
        from fpgasim.runtime.feeds import check_feeds

        known = self.input_names
        found: dict[str, str] = {}
        for name in given:
            if name not in known:
                hint = f"the inputs are {self._described(self.inputs)}"
                raise InputError(f"no input {name!r}; {_closest(name, known)}{hint}")
            tensor = known[name].name
            if tensor in found:
                raise InputError(f"inputs {found[tensor]!r} and {name!r} are the same tensor; give one of them")
            found[tensor] = name
        missing = [spec for spec in self.inputs if spec.name not in found]
        if missing:
            there = f"got {_listed(given)}" if given else "got none"
            raise InputError(f"input {self._described(missing[:1])} is missing; {there}")
        wanted = [spec.as_tensor(found[spec.name]) for spec in self.inputs]
        checked = check_feeds(wanted, given)
        arrays = {spec.name: checked[found[spec.name]] for spec in self.inputs}
        return arrays, bool(found) and all(name in self.aliases and name != self.aliases[name] for name in given)

    def asked(self, outputs: Sequence[str] | None, by_alias: bool, both_names: bool) -> dict[str, str]:
        """Name in the reply -> tensor: `outputs` as asked for, or all of them.

        Raises InputError for a name that no output goes by.
        """
        known = self.output_names
        if outputs:
            for name in outputs:
                if name not in known:
                    hint = f"the outputs are {self._described(self.outputs)}"
                    raise InputError(f"no output {name!r}; {_closest(name, known)}{hint}")
            return {name: known[name].name for name in outputs}
        alias_of = {name: alias for alias, name in self.aliases.items()}
        names: dict[str, str] = {}
        for spec in self.outputs:
            alias = alias_of.get(spec.name, spec.name)
            if both_names or by_alias:
                names[alias] = spec.name
            if both_names or not by_alias:
                names[spec.name] = spec.name
        return names

    def _described(self, specs: Sequence[TensorSpec]) -> str:
        aliases = {name: alias for alias, name in self.aliases.items()}
        words = [
            repr(spec.name) + (f" (or {aliases[spec.name]!r})" if spec.name in aliases else "") for spec in specs[:12]
        ]
        return ", ".join(words) or "none"


@dataclass(frozen=True)
class Result:
    """The outputs by the names of the reply; what the simulated engine took, in cycles of its clock and in seconds.

    `fpga_seconds` counts transfers and launches too, CPU pieces not. `stage_seconds` is what each stage took on this
    machine, waiting for the engine left out.
    """

    outputs: dict[str, Array]
    cycles: int
    fpga_seconds: float
    stage_seconds: Mapping[str, float]


class Servable:
    """Something that answers: steps that run in order, each on the values of those before it.

    Threads may share one. `fpga` is the engine its FPGA stages take turns on, `limits` what a call may become, by
    default anything; both may be set before it serves.
    """

    def __init__(
        self,
        name: str,
        version: int,
        steps: Sequence[Step],
        signature: Signature,
        labels: Sequence[str] | None = None,
        fpga: VirtualFpga | None = None,
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"name={name!r}; a servable's name is 1 to 255 letters, digits, '.', '_' and '-'")
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise InputError(f"version={version!r} of servable {name!r}; a whole number from 1 would do")
        self.name, self.version, self.signature = name, version, signature
        self.labels = None if labels is None else tuple(labels)
        self.steps = tuple(steps)
        self.fpga = FPGA if fpga is None else fpga
        self.limits = Limits()

    def __repr__(self) -> str:
        return f"Servable({self.name!r}, version={self.version}, stages={[step.name for step in self.steps]})"

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Those of the FPGA stages, in order."""
        return tuple(step.plan for step in self.steps if step.plan is not None)

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        *,
        both_names: bool = False,
        go_on: GoOn | None = None,
    ) -> Result:
        """The answer to `inputs`; only `outputs`, under the names given there, if that is not empty.

        `both_names` answers under aliases and tensor names at once. `go_on` is called between stages, between pictures
        and between the operations of the FPGA; what it raises ends the run. Raises InputError for inputs or outputs
        that do not fit or are beyond the limits, ImageError for pictures that cannot be read or are.
        """
        machine = Machine(self.fpga, self.limits)
        if go_on is not None:
            machine = dataclasses.replace(machine, go_on=go_on)
        return self._run(inputs, outputs, both_names, machine)

    def warm_up(self) -> None:
        """Runs once, on a grey picture or on zeros, so that the first caller does not wait for what is made once."""
        inputs = {spec.name: _sample(spec, spec.name in self._pictures) for spec in self.signature.inputs}
        self._run(inputs, None, False, Machine(self.fpga))

    def _run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None, both_names: bool, machine: Machine
    ) -> Result:
        values, by_alias = self.signature.read(inputs)
        names = self.signature.asked(outputs, by_alias, both_names)
        for spec in self.signature.inputs:
            self._check_batch(spec, values[spec.name], machine.limits.max_batch)
        cycles, fpga_seconds, stage_seconds = 0, 0.0, dict[str, float]()
        for step in self.steps:
            machine.go_on()
            done = step.run({own: values[value] for own, value in step.reads.items()}, machine)
            values |= {value: done.outputs[own] for own, value in step.writes.items()}
            cycles += done.cycles
            fpga_seconds += done.fpga_seconds
            stage_seconds[step.name] = done.seconds
        return Result({name: values[tensor] for name, tensor in names.items()}, cycles, fpga_seconds, stage_seconds)

    @property
    def _pictures(self) -> frozenset[str]:
        """The inputs that are encoded pictures."""
        return frozenset(step.reads[spec.name] for step in self.steps if step.takes_pictures for spec in step.inputs)

    def _check_batch(self, spec: TensorSpec, array: Array, most: int | None) -> None:
        """Raises InputError for more than `most` pictures, encoded or as a tensor of four dimensions; a network that
        takes a number of its own takes that."""
        free = spec.shape is None or spec.shape[:1] == (None,)
        is_pictures = array.ndim == 4 or spec.name in self._pictures
        if most is not None and free and is_pictures and len(array) > most:
            raise InputError(
                f"input {spec.name!r} holds {len(array)} pictures, and a call may have {most}; several calls would do"
            )


def servable(
    source: str | os.PathLike[str] | Graph | Plan | ModelDefinition,
    *,
    name: str | None = None,
    version: int = 1,
    device: str | Device = DEVICE,
    format: str | BlockFormat = FORMAT,
    objective: Objective = "coverage",
    weights: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    seed: int = 0,
    fpga: VirtualFpga | None = None,
) -> Servable:
    """The servable of `source`, called `name`, by default after it.

    - The name of a network of the zoo: from encoded pictures to classes, or to the twelve tensors of an SSD. The
      network's own preprocessing (Azure's, bit for bit, for the networks that were Azure's), its featurizer on the
      FPGA, its classifier on the CPU. `weights` is a checkpoint; without one they are drawn from `seed`, with a
      SeededWeightsWarning. Tensors have Azure's names (`Placeholder:0` to
      `classifier/resnet_v1_50/predictions/Softmax:0`, …), also where the variant is another library's.
    - A Graph, or the path of an ONNX file: that network, planned by `objective`, under its own tensor names.
    - A Plan, or the path of one that was saved: as it was planned, whatever `device`, `format` and `objective` say.
    - A ModelDefinition, or the path of one that was saved: its stages; those that say no device or format have these.

    Files are told by what is in them; a folder stands for the one model file in it. With one input and one output these
    also go by `images` and `output_alias`. Raises ModelError for a file that is none of these, InputError for
    `weights` with a source that has its own, and what partitioning and compiling raise.
    """
    from fpgasim import zoo
    from fpgasim.placement import Plan, partition
    from fpgasim.service.pipeline import ModelDefinition

    if isinstance(source, str) and source in zoo.NETWORKS:
        return _network(source, name or source, version, device, format, objective, weights, seed, fpga)
    if weights is not None:
        raise InputError(f"weights={_short(weights)}; only a network of the zoo takes them, and {source!r} has its own")
    default = source.name if isinstance(source, Graph | ModelDefinition) else None
    if isinstance(source, str | os.PathLike):
        path = model_file(source)
        default = Path(source).stem
        source = open_source(path)
    if isinstance(source, ModelDefinition):
        title = name or _as_name(source.name or default or "")
        return source.servable(Target(device, format, objective), name=title, version=version, fpga=fpga)
    if isinstance(source, Graph):
        plan = partition(source, device, format, objective=objective)
    elif isinstance(source, Plan):
        plan = source
    else:
        raise InputError(
            f"a {type(source).__name__} cannot be served; "
            "the name of a network, a path, a Graph, a Plan or a ModelDefinition would do"
        )
    title = name or _as_name(default or plan.source_graph.name)
    step = own_names(fpga_step(plan, "fpga"))
    return Servable(title, version, [step], Signature.of(step.inputs, step.outputs), fpga=fpga)


def model_file(path: str | os.PathLike[str]) -> Path:
    """The model file at `path`, or the only one in that folder. Raises ModelError where there is none."""
    from fpgasim import zoo

    found = Path(path)
    if found.is_dir():
        inside = [p for p in sorted(found.iterdir()) if p.suffix in (".zip", ".onnx", ".fpgaplan") and p.is_file()]
        if len(inside) != 1:
            there = _listed(p.name for p in inside) if inside else "there is none"
            raise ModelError(f"folder {str(found)!r} must hold one .zip, .onnx or .fpgaplan file; {there}")
        return inside[0]
    if not found.is_file():
        known = ", ".join(zoo.names())
        raise ModelError(f"no model {str(found)!r}: there is no such file, and the networks of the zoo are {known}")
    return found


def open_source(path: Path, *, optimize: bool = True) -> Graph | Plan | ModelDefinition:
    """What the file at `path` holds, told by its contents: a pipeline, a plan or an ONNX model (see `fpgasim.load`).

    Raises ModelError for anything else.
    """
    from fpgasim.graph import load
    from fpgasim.placement import Plan
    from fpgasim.service.pipeline import ModelDefinition

    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP
        entries = zipfile.ZipFile(path).namelist() if is_zip else []
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ModelError(f"model file {str(path)!r} cannot be read: {error}") from error
    if not is_zip:
        return load(path, optimize=optimize)
    return Plan.load(path) if "plan.json" in entries else ModelDefinition.load(path)


def own_names(step: Step) -> Step:
    """`step` as a pipeline of its own: every tensor is the value of its name."""
    return dataclasses.replace(
        step,
        reads={spec.name: spec.name for spec in step.inputs},
        writes={spec.name: spec.name for spec in step.outputs},
    )


def warn_seeded(network: str, seed: int) -> None:
    """Warns that the weights of `network` are drawn."""
    warnings.warn(
        f"{network} has random weights (seed {seed}): its answers mean nothing until it is given weights",
        SeededWeightsWarning,
        stacklevel=4,
    )


def _network(
    network: str,
    name: str,
    version: int,
    device: str | Device,
    format: str | BlockFormat,
    objective: Objective,
    weights: str | os.PathLike[str] | Mapping[str, Any] | None,
    seed: int,
    fpga: VirtualFpga | None,
) -> Servable:
    from fpgasim import zoo
    from fpgasim.placement import partition

    net = zoo.NETWORKS[network]
    if weights is None:
        warn_seeded(network, seed)
    elif isinstance(weights, str | os.PathLike):
        weights = zoo.read_checkpoint(weights)
    featurizer = zoo.featurizer(network, weights, seed)
    plan = partition(featurizer, device, format, objective=objective)
    preprocessing = preprocessing_step(exact(net), "NCHW", "preprocessing")
    inside = preprocessing.outputs[0].name
    steps = [
        dataclasses.replace(preprocessing, reads={"images": PLACEHOLDER}, writes={inside: inside}),
        fpga_step(plan, "featurizer"),
    ]
    features = feature_names(net)
    steps[1] = dataclasses.replace(
        steps[1],
        reads={steps[1].inputs[0].name: inside},
        writes=dict(zip((spec.name for spec in steps[1].outputs), features, strict=True)),
    )
    outputs = [dataclasses.replace(spec, name=name) for spec, name in zip(steps[1].outputs, features, strict=True)]
    if has_classifier(net):
        last = cpu_step(zoo.classifier(network, weights, seed), "classifier")
        result = f"classifier/{classifier_output(net, last.outputs[0].name)}"
        last = dataclasses.replace(
            last, reads={last.inputs[0].name: features[0]}, writes={last.outputs[0].name: result}
        )
        outputs = [dataclasses.replace(last.outputs[0], name=result)]
        steps.append(last)
    inputs = (dataclasses.replace(preprocessing.inputs[0], name=PLACEHOLDER),)
    return Servable(name, version, steps, Signature.of(inputs, tuple(outputs)), net.labels(), fpga)


def exact(net: Network) -> Any:
    """The preprocessing of `net`; where it is Azure's, with that SDK's faults, since clients rely on its bits."""
    from fpgasim.zoo import AzurePreprocessing

    spec = net.preprocessing
    return dataclasses.replace(spec, quirks=True) if isinstance(spec, AzurePreprocessing) else spec


def feature_names(net: Network) -> tuple[str, ...]:
    """What the features of `net` are called here: Azure's names where it has any, else its own."""
    return net.azure.features if net.azure else net.features


def classifier_output(net: Network, own: str) -> str:
    """What the classifier's result is called: Azure's name where there is one, else `own` as TensorFlow would say."""
    return (net.azure.classifier_output if net.azure else None) or f"{own}:0"


def has_classifier(net: Network) -> bool:
    """Whether anything follows the features: a detector's are what it gives."""
    return len(net.features) == 1


def _as_name(text: str) -> str:
    """`text` as a servable may be called."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:255]
    return cleaned or "model"


def _names(specs: Sequence[TensorSpec], aliases: Mapping[str, str]) -> dict[str, TensorSpec]:
    own = {spec.name: spec for spec in specs}
    return {**{alias: own[name] for alias, name in aliases.items() if name in own}, **own}


def _sample(spec: TensorSpec, is_picture: bool) -> Array:
    shape = [1 if size is None else size for size in spec.shape or ()]
    if not spec.is_text:
        return np.zeros(shape, spec.dtype)
    sample = np.empty(shape, object)
    sample.fill(_grey_picture() if is_picture else b"")
    return sample


def _grey_picture() -> bytes:
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), (128, 128, 128)).save(file, "JPEG")
    return file.getvalue()


def _closest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _short(weights: object) -> str:
    return repr(weights) if isinstance(weights, str | os.PathLike) else f"a {type(weights).__name__}"
