"""`Session`: a plan made ready to run, on the emulated FPGA and on ONNX Runtime."""

from __future__ import annotations

import copy
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fpgasim.compiler import lower
from fpgasim.errors import InputError
from fpgasim.graph import Tensor
from fpgasim.kernels import Backend, backend
from fpgasim.npu.segment import Packed
from fpgasim.numerics.float_state import ieee
from fpgasim.ops import num_threads
from fpgasim.placement import Plan, Segment
from fpgasim.placement.timing import Timing
from fpgasim.runtime.cpu import CpuRunner
from fpgasim.runtime.feeds import check_feeds
from fpgasim.runtime.fpga import FpgaRunner, Taken

Array = npt.NDArray[Any]

#: Input shapes other than the plan's that a session keeps ready; the one unused longest goes first.
SHAPES_KEPT = 8


@ieee
def compile(plan: Plan, kernels: str | Backend | None = None) -> Session:
    """The Session of `plan`: weights packed for the engine, CPU pieces loaded into ONNX Runtime.

    `kernels` names a backend or is one; the default is `fpgasim.kernels.backend()`. All give the same bits.
    $FPGASIM_NUM_THREADS is read here, for both sides. Raises InputError for what is not a Plan, UnknownNameError for
    an unknown backend, ModelError for a CPU piece that ONNX Runtime does not take.
    """
    if not isinstance(plan, Plan):
        raise InputError(f"compile takes a Plan, as fpgasim.partition returns it; got {type(plan).__name__}")
    if kernels is None or isinstance(kernels, str):
        kernels = backend(kernels)
    elif not isinstance(getattr(kernels, "name", None), str):
        raise InputError(f"kernels={kernels!r} is no kernel backend; the name of one would do (see `fpgasim kernels`)")
    return Session(plan, kernels)


@dataclass(frozen=True)
class Report:
    """What a session has done: `runs`, and how many fp16 values saturated by layer, or by tensor fed to the FPGA."""

    runs: int
    saturations: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class _Step:
    """A segment made ready. `made` are all tensors it can give; `done` those that no later step reads."""

    segment: Segment
    runner: FpgaRunner | CpuRunner
    made: frozenset[str]
    done: tuple[str, ...]


class Session:
    """A plan that runs. It may be used by several threads at once: each run has a state of its own.

    One engine computes one batch at a time; runs of this emulation may overlap, since no bit depends on it, and
    `timing` is that of a run alone.
    """

    def __init__(self, plan: Plan, kernels: Backend) -> None:
        self.plan = plan
        self.kernels = kernels
        self._threads = num_threads()
        self._lock = threading.Lock()
        self._planning = threading.Lock()  # one at a time, and nobody else waits for it
        self._steps = _steps(plan, kernels, self._threads, {})
        self._other_shapes: dict[tuple[tuple[int, ...], ...], tuple[Plan, tuple[_Step, ...]]] = {}
        self._runs = 0
        self._saturations: Counter[str] = Counter()

    def __repr__(self) -> str:
        numbers = self.plan.numbers
        return f"Session({self.plan.graph.name!r}, {self.plan.device.name}, {numbers.format.name}, {self.kernels.name})"

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What `run` is fed; a dimension with a name takes any size."""
        return self.plan.source_graph.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What `run` returns by default."""
        return self.plan.source_graph.outputs

    def run(
        self,
        feeds: Mapping[str, npt.ArrayLike],
        outputs: Sequence[str] | None = None,
        *,
        between: Callable[[], None] | None = None,
    ) -> dict[str, Array]:
        """The tensors `outputs` by name, in that order; by default the graph's outputs, but any tensor of it will do.

        `feeds` maps every input to an array of its dtype and shape; floating-point numbers of another precision are
        converted. Other sizes than the plan's in the symbolic dimensions are planned once, by `Plan.replan`, and kept:
        nodes may be on other sides then. What the FPGA computed is float32 and of the pointwise type. `between` is
        called before each operation of the FPGA and each CPU piece; what it raises ends the run. Raises InputError
        naming the input or the output that does not fit, PlacementError where what the plan was asked for cannot be met
        at these sizes.
        """
        return self._run(feeds, outputs, None, between)

    def profile(self, feeds: Mapping[str, npt.ArrayLike]) -> list[Taken]:
        """What a run for the graph's outputs spends its time on: (kind of work, layer or tensor, processor seconds).

        The kinds are those of `runtime.schedule`, and `cpu` for a piece on ONNX Runtime.
        """
        taken: list[Taken] = []
        self._run(feeds, None, taken)
        return taken

    @ieee
    def _run(
        self,
        feeds: Mapping[str, npt.ArrayLike],
        outputs: Sequence[str] | None,
        taken: list[Taken] | None,
        between: Callable[[], None] | None = None,
    ) -> dict[str, Array]:
        arrays = check_feeds(self.inputs, feeds)
        plan, steps = self._for_shapes({t.name: arrays[t.name].shape for t in self.inputs if not t.container})
        names = [tensor.name for tensor in plan.graph.outputs] if outputs is None else _checked_names(plan, outputs)
        saturations: Counter[str] = Counter()
        values: dict[str, Array] = dict(arrays)
        for step in steps:
            wanted = [n for n in step.made if n in step.segment.outputs or n in names]
            if isinstance(step.runner, FpgaRunner):
                values.update(step.runner.run(values, wanted, saturations, taken, between))
            else:
                if between is not None:
                    between()
                start = time.process_time()
                values.update(step.runner.run(values, wanted))
                if taken is not None:
                    taken.append(Taken("cpu", step.segment.nodes[0], time.process_time() - start))
            for name in step.done:
                if name not in names:
                    del values[name]
        with self._lock:
            self._runs += 1
            self._saturations.update(saturations)
        return {name: _result(plan, name, values, arrays) for name in names}

    def timing(self, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Timing:
        """What one run takes, in cycles and seconds, for the plan's own shapes or these; nothing is computed.

        `input_shapes` names every input; `run` then keeps the plan for them. Errors are those of `run`.
        """
        if input_shapes is None:
            return self.plan.timing()
        shapes = dict(input_shapes)
        unknown = [tensor.name for tensor in self.inputs if not tensor.container and tensor.name not in shapes]
        if unknown:
            raise InputError(f"input_shapes lacks input {unknown[0]!r}")
        return self._for_shapes(shapes)[0].timing()

    def report(self) -> Report:
        """What all runs so far have done."""
        with self._lock:
            return Report(self._runs, MappingProxyType(dict(sorted(self._saturations.items()))))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the session as its plan, which holds the weights; ModelError if the file cannot be written."""
        self.plan.save(path)

    @staticmethod
    def load(path: str | os.PathLike[str], kernels: str | Backend | None = None) -> Session:
        """The session that `save` wrote; it gives the same bits. ModelError for a file that is no plan."""
        return compile(Plan.load(path), kernels)

    def _for_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Plan, tuple[_Step, ...]]:
        """The plan for inputs of these shapes and its steps, made if this is the first time."""
        if all(tensor.shape == shapes.get(tensor.name) for tensor in self.plan.graph.inputs):
            return self.plan, self._steps
        key = tuple(shapes[tensor.name] for tensor in self.inputs if not tensor.container)
        if (found := self._kept(key)) is not None:
            return found
        with self._planning:
            if (found := self._kept(key)) is not None:  # another thread made it
                return found
            with self._lock:
                made = [self._steps, *(steps for _, steps in self._other_shapes.values())]
            plan = self.plan.replan(shapes)
            packed = {name: constant for steps in made for name, constant in _packed(steps).items()}
            found = plan, _steps(plan, self.kernels, self._threads, packed)
            with self._lock:
                self._other_shapes[key] = found
                if len(self._other_shapes) > SHAPES_KEPT:
                    del self._other_shapes[next(iter(self._other_shapes))]
            return found

    def _kept(self, key: tuple[tuple[int, ...], ...]) -> tuple[Plan, tuple[_Step, ...]] | None:
        """What is kept for these shapes, now the last used."""
        with self._lock:
            found = self._other_shapes.pop(key, None)
            if found is not None:
                self._other_shapes[key] = found
            return found


def _steps(plan: Plan, kernels: Backend, threads: int, packed: Mapping[str, Packed]) -> tuple[_Step, ...]:
    last_reader = {name: i for i, segment in enumerate(plan.segments) for name in segment.inputs}
    steps = []
    for i, segment in enumerate(plan.segments):
        made = {name for node in segment.nodes for name in plan.graph.node(node).outputs if name}
        runner: FpgaRunner | CpuRunner
        if segment.kind == "fpga":
            lowered = lower(plan.graph, segment.nodes, plan.device, plan.numbers, kernels, packed)
            runner = FpgaRunner(lowered, kernels, threads)
        else:
            runner = CpuRunner(plan.graph, segment, threads)
        done = tuple(name for name in segment.inputs if last_reader[name] == i)
        steps.append(_Step(segment, runner, frozenset(made), done))
    return tuple(steps)


def _packed(steps: Sequence[_Step]) -> dict[str, Packed]:
    segments = (step.runner.segment for step in steps if isinstance(step.runner, FpgaRunner))
    return {name: constant for segment in segments for name, constant in segment.constants.items()}


def _checked_names(plan: Plan, outputs: Sequence[str]) -> list[str]:
    if isinstance(outputs, str) or not all(isinstance(name, str) for name in outputs):
        raise InputError(f"outputs={outputs!r} must be a list of tensor names")
    for name in outputs:
        plan.graph.tensor(name)  # an InputError names the tensors that are close
    return list(dict.fromkeys(outputs))


def _result(plan: Plan, name: str, values: Mapping[str, Array], fed: Mapping[str, Array]) -> Array:
    if name in values:
        return copy.copy(values[name]) if name in fed else values[name]
    constant = plan.graph.constant(name)
    assert constant is not None, f"no step makes tensor {name!r}"
    return np.array(constant)
