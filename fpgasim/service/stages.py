"""The stages of a pipeline: preprocessing or a graph on the CPU, a graph or a plan on the FPGA."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fpgasim.errors import InputError, ModelError, UnknownNameError
from fpgasim.graph import Graph
from fpgasim.npu import DEVICES, Device, get_device
from fpgasim.numerics import BlockFormat, get_format
from fpgasim.placement import Plan, partition
from fpgasim.service.servables import PLACEHOLDER
from fpgasim.service.steps import (
    LAYOUTS,
    AnyPreprocessing,
    Layout,
    Step,
    Target,
    TensorSpec,
    cpu_step,
    fpga_step,
    in_layout,
    laid_out,
    preprocessing_step,
    specs,
)
from fpgasim.service.symbolic import Operation, Tensor
from fpgasim.zoo import AzurePreprocessing, Preprocessing

if TYPE_CHECKING:
    import onnx

    from fpgasim.service.models import BrainwaveModel
    from fpgasim.service.symbolic import Session

#: How the manifest calls the two ways of preprocessing: Azure's bits, or Pillow's resizing.
WAYS: dict[str, type[AzurePreprocessing] | type[Preprocessing]] = {"azure": AzurePreprocessing, "pillow": Preprocessing}


class Stage:
    """A stage: what it does, and which of its own tensors (`inputs`, `outputs`: name outside -> name inside) cross.

    With the layout NHWC, tensors of four dimensions cross as (n, h, w, c), whatever the graph has inside. CpuStage,
    OnnxStage and FpgaStage make them.
    """

    def __init__(
        self,
        work: AnyPreprocessing | Graph | Plan,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        name: str,
        layout: Layout,
    ) -> None:
        if not isinstance(name, str) or not name or len(name) > 100 or not name.isprintable():
            raise InputError(f"name={name!r} of a stage; 1 to 100 printable characters would do")
        if layout not in LAYOUTS:
            raise UnknownNameError("layout", layout, LAYOUTS)
        self.work, self.name, self.layout = work, name, layout
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        for what, chosen, inside in zip(("input", "output"), (self.inputs, self.outputs), self._inside, strict=True):
            own = [spec.name for spec in inside]
            unknown = [name for name in chosen.values() if name not in own]
            if unknown or len(set(chosen.values())) < len(chosen) or not chosen:
                there = ", ".join(map(repr, own))
                raise InputError(f"stage {self.name!r} has the {what}s {there}; {chosen} does not choose among them")
        missing = [spec.name for spec in self._inside[0] if spec.name not in self.inputs.values()]
        if missing:
            raise InputError(f"stage {self.name!r} needs input {missing[0]!r} too")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {list(self.inputs)} -> {list(self.outputs)})"

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """What it takes, by the names outside."""
        return self._outside(self.inputs, self._inside[0])

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """What it makes, by the names outside."""
        return self._outside(self.outputs, self._inside[1])

    def step(self, target: Target) -> Step:
        """The stage made ready to run; FPGA stages are planned for `target` where they do not say for what."""
        raise TypeError(f"{type(self).__name__} is no stage of its own")

    def json_dict(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"name": self.name, "inputs": self.inputs, "outputs": self.outputs, "layout": self.layout}

    @property
    def _inside(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        if isinstance(self.work, Preprocessing | AzurePreprocessing):
            step = preprocessing_step(self.work, "NCHW", self.name)
            return step.inputs, step.outputs
        graph = self.work.source_graph if isinstance(self.work, Plan) else self.work
        return specs(graph.inputs, graph), specs(graph.outputs, graph)

    def _outside(self, names: Mapping[str, str], inside: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        known = {spec.name: laid_out(spec, self.layout) for spec in inside}
        return tuple(dataclasses.replace(known[own], name=name) for name, own in names.items())


class CpuStage(Stage):
    """Preprocessing, or a graph on ONNX Runtime.

    `work` is a Preprocessing or AzurePreprocessing (encoded pictures in, float32 out, in `layout`), a Graph, an ONNX
    ModelProto or the path of a file. `input` and `output` choose tensors of the graph by name, by default its own
    inputs and outputs; a mapping from a name outside to the name in the graph renames them. Raises InputError for
    tensors that are not there, ModelError for a broken file.
    """

    def __init__(
        self,
        work: AnyPreprocessing | Graph | onnx.ModelProto | str | os.PathLike[str],
        input: Any = None,
        output: Any = None,
        name: str | None = None,
        layout: Layout | None = None,
    ) -> None:
        if isinstance(work, Preprocessing | AzurePreprocessing):
            inputs = _ports(PLACEHOLDER if input is None else input, ("images",))
            outputs = _ports(output, ("tensors",))
            super().__init__(work, inputs, outputs, name or "preprocessing", layout or "NHWC")
            return
        graph, inputs, outputs = _selected(as_graph(work), input, output)
        super().__init__(graph, inputs, outputs, name or "cpu", layout or "NCHW")

    def step(self, target: Target) -> Step:
        if isinstance(self.work, Graph):
            return in_layout(cpu_step(self.work, self.name), self.layout)
        return preprocessing_step(cast(AnyPreprocessing, self.work), self.layout, self.name)

    def json_dict(self) -> dict[str, Any]:
        if isinstance(self.work, Graph):
            return {"type": "onnx", **super().json_dict()}
        way = next(way for way, kind in WAYS.items() if isinstance(self.work, kind))
        return {
            "type": "preprocessing",
            **super().json_dict(),
            "way": way,
            "parameters": dataclasses.asdict(cast(AnyPreprocessing, self.work)),
        }


class OnnxStage(CpuStage):
    """A graph on ONNX Runtime: of an ONNX file, a ModelProto or a Graph; arguments as CpuStage's."""

    def __init__(
        self,
        source: Graph | onnx.ModelProto | str | os.PathLike[str],
        input: Any = None,
        output: Any = None,
        name: str | None = None,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(as_graph(source), input, output, name or "onnx", layout)


class FpgaStage(Stage):
    """A graph on the emulated FPGA.

    `source` is a Graph, a ModelProto, the path of an ONNX file or of a saved plan, a Plan, or a model of
    `fpgasim.service.models`, which comes with its names. `device` and `format` default to those that the definition is
    served with; a plan has its own. With `require_fpga` a node that the FPGA cannot compute is an error then.
    """

    def __init__(
        self,
        source: Graph | Plan | BrainwaveModel | onnx.ModelProto | str | os.PathLike[str],
        device: str | Device | None = None,
        format: str | BlockFormat | None = None,
        require_fpga: bool = False,
        name: str | None = None,
        input: Any = None,
        output: Any = None,
        layout: Layout | None = None,
    ) -> None:
        from fpgasim.service.models import BrainwaveModel

        work: Graph | Plan
        if isinstance(source, BrainwaveModel):
            if source.operation is None:
                raise InputError(f"{source!r} has no graph yet; import_graph_def(input) comes before its stage")
            found = stage_of(source.operation)
            work, inputs, outputs = cast(Graph, found.work), found.inputs, found.outputs
            name, layout = name or found.name, layout or found.layout
        else:
            opened = _opened(source)
            if isinstance(opened, Plan):
                whole = opened.source_graph
                inputs, outputs = _ports(input, _names(whole.inputs)), _ports(output, _names(whole.outputs))
                work = opened
            else:
                work, inputs, outputs = _selected(opened, input, output)
        if isinstance(work, Plan) and (device is not None or format is not None):
            raise InputError(
                f"a plan is for {work.device.name} in {work.numbers.format.name}; leave device and format out"
            )
        if device is not None and get_device(device) not in DEVICES.values():
            device = get_device(device)
        if format is not None:
            get_format(format)
        self.device, self.format, self.require_fpga = device, format, bool(require_fpga)
        if isinstance(device, Device) or isinstance(format, BlockFormat):  # a name alone would not say which
            work = self._plan(cast(Graph, work), Target())
            self.device = self.format = None
        super().__init__(work, inputs, outputs, name or "fpga", layout or "NCHW")

    def plan(self, target: Target) -> Plan:
        """The plan of this stage, as its own or for `target`. Raises what `fpgasim.partition` raises."""
        return self.work if isinstance(self.work, Plan) else self._plan(cast(Graph, self.work), target)

    def step(self, target: Target) -> Step:
        return in_layout(fpga_step(self.plan(target), self.name), self.layout)

    def json_dict(self) -> dict[str, Any]:
        asked: dict[str, Any] = {"require_fpga": self.require_fpga}
        if not isinstance(self.work, Plan):
            asked |= {"device": self.device, "format": self.format}
        return {"type": "fpga", **super().json_dict(), **asked}

    def _plan(self, graph: Graph, target: Target) -> Plan:
        return partition(
            graph,
            self.device or target.device,
            self.format or target.format,
            objective=target.objective,
            require_fpga=self.require_fpga,
        )


class TensorflowStage(CpuStage):
    """The stage that makes `output_tensor` of `input_tensor`, symbolic ones (`fpgasim.service.symbolic`).

    `session` has no meaning here. Raises InputError where one operation does not make the one of the other.
    """

    def __init__(
        self, session: Session | None, input_tensor: Tensor, output_tensor: Tensor, name: str | None = None
    ) -> None:
        operation = output_tensor.operation if isinstance(output_tensor, Tensor) else None
        if operation is None or input_tensor not in operation.inputs.values():
            raise InputError(
                f"{output_tensor!r} is not made of {input_tensor!r} in one operation; a stage for each would do"
            )
        if operation.side == "fpga":
            raise InputError(f"{output_tensor!r} is made on the FPGA; BrainWaveStage(session, model) is its stage")
        stage = stage_of(operation)
        outputs = {output_tensor.name: stage.outputs[output_tensor.name]}
        work = cast("AnyPreprocessing | Graph", stage.work)
        super().__init__(work, stage.inputs, outputs, name or stage.name, stage.layout)


class BrainWaveStage(FpgaStage):
    """The FPGA stage of a model of `fpgasim.service.models`; its arguments of before, (model, name), do as well."""

    def __init__(self, session: object, model: object = None, name: str | None = None) -> None:
        from fpgasim.service.models import BrainwaveModel

        if isinstance(session, BrainwaveModel):
            model, name = session, model if isinstance(model, str) else name
        if not isinstance(model, BrainwaveModel):
            raise InputError(f"model={model!r}; a model such as QuantizedResnet50 would do")
        super().__init__(model, name=name)


class KerasStage(CpuStage):
    """A Keras model on the CPU: one that can `export` itself as ONNX (Keras 3), or an ONNX file or Graph of one."""

    def __init__(self, model: Any, name: str | None = None) -> None:
        if not callable(getattr(model, "export", None)) or isinstance(model, Graph):
            super().__init__(as_graph(model), name=name or "keras")
            return
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.onnx")
            model.export(path, format="onnx")
            super().__init__(as_graph(path), name=name or "keras")


def stage_of(operation: Operation, outputs: Sequence[str] | None = None) -> Stage:
    """The stage that computes `operation`; only `outputs`, by their names outside, if given."""
    work = operation.work()
    inputs = {tensor.name: own for own, tensor in operation.inputs.items()}
    made = {name: own for own, name in operation.outputs.items() if outputs is None or name in outputs}
    if isinstance(work, Preprocessing | AzurePreprocessing):
        return CpuStage(work, inputs, made, operation.name, operation.layout)
    if operation.side == "fpga":
        return FpgaStage(work, name=operation.name, input=inputs, output=made, layout=operation.layout)
    return CpuStage(work, inputs, made, operation.name, operation.layout)


def as_graph(source: Any) -> Graph:
    """The Graph that is given, or of the ONNX file or ModelProto; InputError and ModelError as `fpgasim.load`."""
    from fpgasim.graph import load

    return source if isinstance(source, Graph) else load(source)


def _opened(source: Any) -> Graph | Plan:
    from fpgasim.service.servables import open_source

    if isinstance(source, Plan):
        return source
    if isinstance(source, str | os.PathLike):
        found = open_source(Path(source))
        if isinstance(found, Graph | Plan):
            return found
        raise ModelError(f"{os.fspath(source)!r} is a whole definition; append the stages of its pipeline instead")
    return as_graph(source)


def _names(tensors: Iterable[Any]) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in tensors)


def _ports(given: Any, own: Sequence[str]) -> dict[str, str]:
    """Name outside -> name inside, of what a caller chose among the tensors `own`, or calls the only one of them."""
    if given is None:
        return {name: name for name in own}
    if isinstance(given, Tensor):
        given = given.name
    if isinstance(given, str):
        return {given: given if given in own or len(own) != 1 else own[0]}
    if isinstance(given, Mapping):
        return dict(given)
    return {
        (item.name if isinstance(item, Tensor) else item): (item.name if isinstance(item, Tensor) else item)
        for item in given
    }


def _selected(graph: Graph, input: Any, output: Any) -> tuple[Graph, dict[str, str], dict[str, str]]:
    """The part of `graph` between the chosen tensors, and these."""
    own_inputs, own_outputs = _names(graph.inputs), _names(graph.outputs)
    inputs = _ports(input, own_inputs if not isinstance(input, str) else ())
    outputs = _ports(output, own_outputs if not isinstance(output, str) else ())
    if tuple(inputs.values()) != own_inputs or tuple(outputs.values()) != own_outputs:
        graph = graph.extract(list(inputs.values()), list(outputs.values()))
    return graph, inputs, outputs
