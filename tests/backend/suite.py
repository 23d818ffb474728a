"""ONNX's own backend test suite: its cases, and who passes them.

Which cases are to be passed is what ONNX Runtime passes in the same process, when it is fed as its users feed it.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import onnxruntime
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from fpgasim.errors import FpgasimError

#: The suite's kinds of cases. The "real" ones are classic networks with made-up weights.
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"


@dataclass(frozen=True, eq=False)
class Case:
    """A model and its sets of (inputs, expected outputs), with the suite's tolerances."""

    name: str
    model: onnx.ModelProto
    data: Sequence[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float

    def check(self, got: Sequence[Any], expected: Sequence[Any]) -> None:
        """AssertionError where `got` is not what the suite expects."""
        Runner.assert_similar_outputs(expected, list(got), self.rtol, self.atol)


def cases(kind: str) -> Iterator[Case]:
    for made in _loaded(kind):
        if made.model is not None:
            sets = [([_array(x) for x in inputs], [_array(y) for y in outputs]) for inputs, outputs in made.data_sets]
            yield Case(made.name, made.model, sets, made.rtol, made.atol)
        elif made.model_dir is not None:
            model = onnx.load(Path(made.model_dir) / "model.onnx")
            yield Case(made.name, model, list(_stored(Path(made.model_dir), model)), made.rtol, made.atol)
        else:
            path = LIGHT / Path(made.url).name
            model = onnx.load(path)
            yield Case(made.name, model, [_made_up(model, path)], made.rtol, made.atol)


@functools.cache
def _loaded(kind: str) -> list[Any]:
    with warnings.catch_warnings(action="ignore"):  # the suite's casts that overflow
        return load_model_tests(kind=kind)


def _array(value: Any) -> Any:
    """Arrays and lists of them; the suite has protobuf tensors and NumPy's scalars among them."""
    if isinstance(value, list | tuple):
        return [_array(element) for element in value]
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return value if value is None else np.asarray(value)


def _stored(folder: Path, model: onnx.ModelProto) -> Iterator[tuple[list[Any], list[Any]]]:
    for data in sorted(folder.glob("test_data_set*")):
        yield tuple(  # type: ignore[misc]
            [
                _read(data / f"{role}_{i}.pb", info.type)
                for i, info in enumerate(infos)
                if (data / f"{role}_{i}.pb").exists()
            ]
            for role, infos in (("input", model.graph.input), ("output", model.graph.output))
        )


def _read(path: Path, kind: onnx.TypeProto) -> Any:
    data = path.read_bytes()
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def _made_up(model: onnx.ModelProto, path: Path) -> tuple[list[Any], list[Any]]:
    fixed = {tensor.name for tensor in model.graph.initializer}
    inputs = [Runner.generate_dummy_data(info, seed=0) for info in model.graph.input if info.name not in fixed]
    outputs = [path.with_name(f"{path.stem}_output_{i}.pb") for i in range(len(model.graph.output))]
    return inputs, [numpy_helper.to_array(onnx.TensorProto.FromString(output.read_bytes())) for output in outputs]


def run_onnx_runtime(model: onnx.ModelProto) -> Callable[[list[Any]], list[Any]]:
    """ONNX Runtime's run of `model`, with its defaults but for one thread and a closed mouth."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


#: How a case ends: as expected, with other numbers, with an error that says so, or with one that nobody meant.
PASSED, DIFFERENT, REFUSED, CRASHED = "passed", "different", "refused", "crashed"


def outcome(case: Case, prepare: Callable[[onnx.ModelProto], Callable[[list[Any]], Sequence[Any]]]) -> tuple[str, str]:
    """How `case` ends where `prepare` makes models ready to run, and what was said."""
    try:
        run = prepare(case.model)
        made = [(run(inputs), expected) for inputs, expected in case.data]
    except FpgasimError as error:
        return REFUSED, str(error)
    except Exception as error:  # ONNX Runtime's have no base of their own
        return CRASHED, f"{type(error).__name__}: {error}"
    try:
        for got, expected in made:
            case.check(got, expected)
    except (AssertionError, TypeError) as error:  # TypeError: a list where an array should be
        return DIFFERENT, str(error)
    return PASSED, ""
