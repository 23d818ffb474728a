"""`AccelOnnxConverter`: a registered model becomes one that is planned for the FPGA, and says why it is as it is.

The converted model is a folder in the registry, which can be served as it is:

    service_def.zip   the pipeline, its FPGA stages planned
    explanation.json  why every node of every FPGA stage is where it is, by stage
    explanation.txt   the same to be read
    conversion.log    what was done, and how long it took
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fpgasim
from fpgasim.errors import ConversionError, FpgasimError, InputError, ModelNotFoundException, PlacementError
from fpgasim.npu import Device, get_device
from fpgasim.numerics import BlockFormat, get_format
from fpgasim.placement import Plan
from fpgasim.service import saved_models
from fpgasim.service.pipeline import FILE, FpgaStage, ModelDefinition, Stage
from fpgasim.service.registry import Model, add_item, next_version
from fpgasim.service.servables import open_source
from fpgasim.service.sources import TensorflowPart, folder_of, names_of, of_graph, part_of
from fpgasim.service.steps import DEVICE, FORMAT, Target
from fpgasim.service.workspace import Workspace

if TYPE_CHECKING:
    from fpgasim.placement.plan import Objective

KIND = "conversion"
#: What the name of a converted model ends in.
SUFFIX = ".accelonnx"
EXPLANATION, EXPLANATION_TEXT, LOG = "explanation.json", "explanation.txt", "conversion.log"
#: Of a model's properties: what it was converted from and how, as one hash.
_DIGEST = "conversion"
_SHOWN = 5


class AccelOnnxConverter:
    """Converts registered models for the FPGA."""

    @staticmethod
    def convert_model(
        workspace: Workspace,
        model: Model | str,
        input_node: str | Sequence[str],
        output_nodes: str | Sequence[str],
        require_fpga_conversion: bool = True,
        *,
        device: str | Device = DEVICE,
        format: str | BlockFormat = FORMAT,
        objective: Objective = "coverage",
    ) -> ModelConvertOperation:
        """The conversion of `model`, or of the one of that id ("name:version"), begun in the background.

        A model is an ONNX file, alone or in a folder with the files of its weights; a service definition, whose FPGA
        stages are planned while the others stay; a plan; or a TensorFlow SavedModel, where tf2onnx is installed (the
        extra `tensorflow`). What lies between `input_node` and `output_nodes` is converted; each is a tensor's name,
        several with commas between them, or a list. TensorFlow's ":0" may be there or not; clients of an ONNX model
        then use the names given here. Of a service definition the names are those that stages take and make.

        With `require_fpga_conversion` it fails unless every layer that multiplies is on the FPGA; others (softmax, …)
        may stay on the CPU, as always if it is false. The result is called after the model with ".accelonnx" behind,
        and the same conversion again gives the same result.

        Raises at once ModelNotFoundException for a model that is not there, InputError for names that it does not have,
        ModelError for files that cannot be read or a SavedModel without the extra; all else is told by the operation.
        """
        source = _model(workspace, model)
        inputs, outputs = names_of("input_node", input_node), names_of("output_nodes", output_nodes)
        target = Target(get_device(device), get_format(format), objective)
        part = part_of(source, inputs, outputs)
        if isinstance(part, TensorflowPart):
            saved_models.check_extra()
        request = _Request(source, part, inputs, outputs, bool(require_fpga_conversion), target)
        return ModelConvertOperation(workspace, source, request.run)

    @staticmethod
    def convert_tf_model(
        workspace: Workspace,
        source_model: Model | str,
        input_node: str | Sequence[str],
        outputs_nodes: str | Sequence[str],
        require_fpga_conversion: bool = True,
    ) -> ModelConvertOperation:
        """`convert_model`, as Azure's SDK calls it and its arguments."""
        return AccelOnnxConverter.convert_model(
            workspace, source_model, input_node, outputs_nodes, require_fpga_conversion
        )

    @staticmethod
    def history(workspace: Workspace, source_model: Model | str | None = None) -> list[dict[str, Any]]:
        """The conversions that have ended, newest first, with source, result, status, error and log; of one model only.

        A model is meant by its id, whether it is still there or not.
        """
        wanted = source_model.id if isinstance(source_model, Model) else source_model
        rows = workspace.store.read("SELECT name, version, facts FROM items WHERE kind = ?", KIND)
        found = [{"id": f"{row['name']}:{row['version']}", **json.loads(row["facts"])} for row in rows]
        return sorted(
            (facts for facts in found if wanted in (None, facts["source"])),
            key=lambda facts: str(facts["created_time"]),
            reverse=True,
        )


class ModelConvertOperation:
    """A conversion under way in a thread of this process; `AccelOnnxConverter` begins it.

    What is not finished when the process ends is not begun: nothing of it is in the registry. `source` is the model
    that is converted.
    """

    def __init__(self, workspace: Workspace, source: Model, work: Callable[[Callable[[str], None]], Model]) -> None:
        self.workspace, self.source = workspace, source
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._result: Model | None = None
        self._error: Exception | None = None
        self._ended = False
        self._began = time.monotonic()
        threading.Thread(target=self._run, args=(work,), name=f"convert-{source.id}", daemon=True).start()

    def __repr__(self) -> str:
        return f"ModelConvertOperation({self.source.id!r}, {self.status!r})"

    @property
    def status(self) -> str:
        """'InProgress', 'Succeeded' or 'Failed'."""
        with self._changed:
            return "InProgress" if not self._ended else "Failed" if self._error else "Succeeded"

    @property
    def get_status(self) -> str:
        """`status`, as Azure's SDK calls it; a property there too."""
        return self.status

    @property
    def log(self) -> str:
        """What was done so far: a line for each step, with the seconds since the beginning."""
        with self._changed:
            return "".join(f"{line}\n" for line in self._lines)

    @property
    def error(self) -> Exception | None:
        """Why it failed; None if it did not."""
        return self._error

    def wait_for_completion(self, show_output: bool = False, timeout: float | None = None) -> bool:
        """Whether it succeeded, once it has ended or `timeout` seconds are over; with `show_output` the log is printed.

        What was logged before is printed too. A failure is told by its line in the log and by `result`.
        """
        for line in self.lines(timeout):
            if show_output:
                print(line, flush=True)
        return self.status == "Succeeded"

    def lines(self, timeout: float | None = None) -> Iterator[str]:
        """The lines of the log from the first one, as they come, until it has ended or `timeout` seconds are over."""
        end = None if timeout is None else time.monotonic() + timeout
        shown, ended = 0, False
        while not ended and (end is None or time.monotonic() < end):
            with self._changed:
                if not self._ended and len(self._lines) == shown:
                    self._changed.wait(None if end is None else end - time.monotonic())
                lines, ended = self._lines[shown:], self._ended
            shown += len(lines)
            yield from lines

    @property
    def result(self) -> Model:
        """The converted model, whose parent is the source. ConversionError if it failed, or has not ended."""
        if not self._ended:
            raise ConversionError("Model conversion is not complete; wait_for_completion() waits for it")
        if self._result is None:
            raise ConversionError(f"Model conversion is not successful: {self._error}") from self._error
        return self._result

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Those of the FPGA stages of the result, in order."""
        definition = open_source(self.result.path)
        assert isinstance(definition, ModelDefinition)
        return definition.plans

    @property
    def plan(self) -> Plan:
        """That of its one FPGA stage; InputError where there are several."""
        plans = self.plans
        if len(plans) != 1:
            raise InputError(f"model {self.result.id} has {len(plans)} plans; plans has all of them")
        return plans[0]

    @property
    def explanation(self) -> dict[str, Any]:
        """Why every node is where it is: FPGA stage -> `Explanation.to_dict`, as in explanation.json."""
        found: dict[str, Any] = json.loads(self.result.file(EXPLANATION).read_text())
        return found

    def explain(self) -> str:
        """The explanation to be read, as in explanation.txt."""
        return self.result.file(EXPLANATION_TEXT).read_text()

    def _say(self, text: str) -> None:
        with self._changed:
            self._lines.append(f"{time.monotonic() - self._began:8.2f} s  {text}")
            self._changed.notify_all()

    def _run(self, work: Callable[[Callable[[str], None]], Model]) -> None:
        try:
            self._result = work(self._say)
            self._say(f"Succeeded: {self._result.id}")
        except FpgasimError as error:
            self._fail(error, str(error))
        except Exception as error:  # whatever it is: the one who waits must get to know it
            self._fail(error, "".join(traceback.format_exception(error)).rstrip())
        try:
            self._keep()
        except FpgasimError as error:
            self._say(f"the log is not kept: {error}")
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _fail(self, error: Exception, told: str) -> None:
        self._error = error
        for line in told.split("\n"):
            self._say(f"Failed: {line}")

    def _keep(self) -> None:
        """Notes in the registry that it has ended, and how."""
        facts = {
            "source": self.source.id,
            "result": None if self._result is None else self._result.id,
            "status": "Failed" if self._error else "Succeeded",
            "error": None if self._error is None else str(self._error),
            "seconds": time.monotonic() - self._began,
            "created_time": datetime.datetime.now(datetime.UTC).isoformat(),
            "log": self.log,
        }
        with self.workspace.store.transaction() as connection:
            name = _result_name(self.source)
            add_item(connection, KIND, name, next_version(connection, KIND, name), facts)


@dataclasses.dataclass(frozen=True)
class _Request:
    """What is to be converted, and into what."""

    source: Model
    part: ModelDefinition | TensorflowPart
    inputs: Sequence[str]
    outputs: Sequence[str]
    require_fpga: bool
    target: Target

    def run(self, say: Callable[[str], None]) -> Model:
        """The converted model: the one there is already, or a new one."""
        workspace, name = self.source.workspace, _result_name(self.source)
        say(f"converting {self.source.id} from {', '.join(self.inputs)} to {', '.join(self.outputs)}")
        digest = self._digest()
        for model in Model.list(workspace, name, properties={_DIGEST: digest}):
            say(f"the same conversion was made before, at {model.created_time:%Y-%m-%d %H:%M:%S} UTC")
            return model
        log: list[str] = []

        def tell(text: str) -> None:
            log.append(text)
            say(text)

        with tempfile.TemporaryDirectory() as folder:
            definition = self._planned(self._definition(tell), tell)
            definition.name = self.source.name
            made = Path(folder, name)
            made.mkdir()
            definition.save(made / FILE)
            tell(f"wrote {FILE}, {(made / FILE).stat().st_size:,} bytes")
            plans: dict[str, Plan] = {}
            for i, stage in enumerate(definition.pipeline, start=1):
                if isinstance(stage.work, Plan):
                    plans[f"{stage.name}_{i}" if stage.name in plans else stage.name] = stage.work
            explained = {name: plan.explanation(counterfactuals=False).to_dict() for name, plan in plans.items()}
            texts = [f"Stage {name!r}\n\n{plan.explain(counterfactuals=False)}" for name, plan in plans.items()]
            Path(made, EXPLANATION).write_text(json.dumps(explained, indent=1))
            Path(made, EXPLANATION_TEXT).write_text("\n\n".join(texts) + "\n")
            Path(made, LOG).write_text("".join(f"{line}\n" for line in log))
            return Model.register(
                workspace, made, name, properties=self._properties(digest), parent=self.source,
                description=f"{self.source.id} converted for the FPGA",
            )  # fmt: skip

    def _definition(self, say: Callable[[str], None]) -> ModelDefinition:
        if isinstance(self.part, ModelDefinition):
            return self.part
        say("TensorFlow to ONNX by tf2onnx")
        selection = self.part.selection
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "model.onnx")
            graph = saved_models.to_onnx(folder_of(self.part, Path(folder, "model")), selection, target, say)
        return of_graph(graph, selection.inputs, selection.outputs)

    def _planned(self, definition: ModelDefinition, say: Callable[[str], None]) -> ModelDefinition:
        """`definition` with its FPGA stages planned. ConversionError where there is none, or one may not be so."""
        if not any(isinstance(stage, FpgaStage) for stage in definition.pipeline):
            names = ", ".join(repr(stage.name) for stage in definition.pipeline)
            raise ConversionError(f"model {self.source.id} has no FPGA stage; its stages are {names}")
        made = ModelDefinition(definition.name, aliases=definition.aliases, labels=definition.labels)
        for stage in definition.pipeline:
            if isinstance(stage, FpgaStage):
                stage = self._planned_stage(stage, say)
            else:
                say(f"stage {stage.name!r}: on the CPU")
            made.pipeline.append(stage)
        return made

    def _planned_stage(self, stage: FpgaStage, say: Callable[[str], None]) -> Stage:
        alone = ModelDefinition()
        alone.pipeline.append(stage)
        began = time.monotonic()
        try:
            (planned,) = alone.planned(self.target).pipeline
        except PlacementError as error:
            raise ConversionError(
                f"stage {stage.name!r} of model {self.source.id}: {error}; a stage without require_fpga leaves them on "
                "the CPU"
            ) from error
        plan = planned.work
        assert isinstance(plan, Plan)
        on_fpga = sum(decision.device == "fpga" for decision in plan.decisions)
        say(
            f"stage {stage.name!r}: {on_fpga} of {len(plan.decisions)} nodes and {plan.fpga_mac_share:.1%} of the "
            f"multiply-accumulates on {plan.device.name} in {plan.numbers.format.name}, planned in "
            f"{time.monotonic() - began:.2f} s"
        )
        for decision in [decision for decision in plan.decisions if decision.device == "cpu"][:_SHOWN]:
            operator = plan.graph.node(decision.node).op_type
            say(f"  on the CPU: {decision.node!r} ({operator}): {decision.code}: {decision.message}")
        if self.require_fpga:
            self._check(stage, plan)
        return planned

    def _check(self, stage: Stage, plan: Plan) -> None:
        """Raises ConversionError for layers that multiply and are on the CPU: node, operator, reason, what would do."""
        left = [d for d in plan.decisions if d.device == "cpu" and plan.graph.macs(plan.graph.node(d.node))]
        if not left and all(decision.device == "cpu" for decision in plan.decisions):
            left = list(plan.decisions)
        if not left:
            return
        told = "; ".join(
            f"node {d.node!r} ({plan.graph.node(d.node).op_type}): {d.code}: {d.message}" for d in left[:_SHOWN]
        )
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        node = plan.graph.node(left[0].node)
        before = next((name for name in node.inputs if name and plan.graph.producer(name)), None)
        earlier = "" if before is None else f"output_nodes={before!r} ends before {node.name!r}, or "
        raise ConversionError(
            f"{len(left)} of {len(plan.decisions)} nodes of stage {stage.name!r} of model {self.source.id} cannot be "
            f"on the FPGA: {told}{more}; {earlier}require_fpga_conversion=False leaves what cannot be there on the CPU"
        )

    def _properties(self, digest: str) -> Mapping[str, str]:
        return {
            "input_node": ",".join(self.inputs),
            "output_nodes": ",".join(self.outputs),
            "require_fpga_conversion": str(self.require_fpga),
            "device": get_device(self.target.device).name,
            "format": get_format(self.target.format).name,
            "objective": self.target.objective,
            "fpgasim": fpgasim.__version__,
            _DIGEST: digest,
        }

    def _digest(self) -> str:
        """The same for conversions of the same model into the same."""
        device, numbers = get_device(self.target.device), get_format(self.target.format)
        facts = [self.source.id, self.source.sha256, self._properties("")]
        text = json.dumps([*facts, dataclasses.asdict(device), dataclasses.asdict(numbers)], default=sorted)
        return hashlib.sha256(text.encode()).hexdigest()


def _model(workspace: Workspace, given: Model | str) -> Model:
    if isinstance(given, str):
        return Model(workspace, id=given) if ":" in given else Model(workspace, name=given)
    if not isinstance(given, Model):
        raise InputError(f"model={given!r}; a Model, or the id of one (name:version), would do")
    if given.workspace.root.absolute() != workspace.root.absolute():
        raise ModelNotFoundException(
            f"ModelNotFound: model {given.id} is of workspace {given.workspace.name!r}, not of {workspace.name!r}"
        )
    return given


def _result_name(source: Model) -> str:
    return source.name.removesuffix(SUFFIX)[: 255 - len(SUFFIX)] + SUFFIX
