"""Tensors that have a name and a shape before they have numbers, as pipelines are written down with them.

It is what of TensorFlow 1 the users of Azure's SDK wrote: a placeholder, tensors made of it, a session that computes
them, and `saved_model.simple_save`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fpgasim.errors import InputError
from fpgasim.graph import Graph
from fpgasim.service.steps import (
    Array,
    Machine,
    Step,
    Target,
    TensorSpec,
    VirtualFpga,
    cpu_step,
    in_layout,
    picture_shape,
)

if TYPE_CHECKING:
    from fpgasim.service.steps import AnyPreprocessing, Layout

#: The dtype of encoded pictures and other texts.
string = np.dtype(object)
float32 = np.dtype(np.float32)


class Shape(tuple[int | None, ...]):
    """Sizes, None where any will do; it prints as TensorFlow 1 does: (?, 224, 224, 3)."""

    def __repr__(self) -> str:
        sizes = ["?" if size is None else str(size) for size in self]
        return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"

    def as_list(self) -> list[int | None]:
        return list(self)


@dataclass(frozen=True, eq=False)
class Operation:
    """What makes tensors of tensors: a stage of a pipeline to be.

    `work` gives a graph or a preprocessing when it is needed, so that weights may change until then. `side` is where it
    is to run; `exact` computes it in float32 on the CPU in a Session nevertheless, as a network in training is.
    `owner` is the model it is of, if it is of one.
    """

    name: str
    side: Literal["cpu", "fpga"]
    work: Callable[[], Graph | AnyPreprocessing]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, str]
    layout: Layout = "NCHW"
    exact: bool = False
    owner: object = None


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor to be: fed, if no operation makes it and it is not another name of its `source`."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape | None
    operation: Operation | None = None
    source: Tensor | None = None

    def __repr__(self) -> str:
        shape = "<unknown>" if self.shape is None else repr(self.shape)
        dtype = "string" if self.dtype == string else self.dtype.name
        return f'Tensor("{self.name}", shape={shape}, dtype={dtype})'

    def get_shape(self) -> Shape | None:
        return self.shape


def placeholder(dtype: Any = string, shape: Sequence[int | None] | None = None, name: str = "Placeholder") -> Tensor:
    """A tensor to be fed, called `name` and ":0". Raises InputError for a dtype or a name that is none."""
    if not isinstance(name, str) or not name:
        raise InputError(f"name={name!r} of a placeholder; a text would do")
    try:
        kind = string if dtype in ("string", str, bytes) else np.dtype(dtype)
    except TypeError:
        raise InputError(
            f"dtype={dtype!r} of placeholder {name!r} is none; such as 'float32' or 'string' would do"
        ) from None
    return Tensor(f"{name}:0" if ":" not in name else name, kind, None if shape is None else Shape(shape))


def import_graph(
    graph: Graph | str | os.PathLike[str],
    input_tensor: Tensor,
    *,
    prefix: str = "",
    layout: Layout = "NCHW",
) -> Tensor | list[Tensor]:
    """The outputs of `graph`, or of that ONNX file, with `input_tensor` as its one input, to be computed on the CPU.

    They are called as in the graph, after `prefix` and a slash; one tensor, or the list of several. With the layout
    NHWC tensors of four dimensions come and go as (n, h, w, c), whatever the graph has. Raises InputError for a graph
    of several inputs, ModelError for a file that is none.
    """
    from fpgasim.service.stages import as_graph

    network = as_graph(graph)
    if len(network.inputs) != 1:
        raise InputError(f"graph {network.name!r} has {len(network.inputs)} inputs; one would do")
    names = {tensor.name: f"{prefix}/{tensor.name}" if prefix else tensor.name for tensor in network.outputs}
    made = operate(
        Operation(
            prefix or network.name, "cpu", lambda: network, {network.inputs[0].name: input_tensor}, names, layout
        ),
        {tensor.name: (tensor.dtype, tensor.shape) for tensor in network.outputs},
    )
    return made[0] if len(made) == 1 else made


def operate(operation: Operation, made: Mapping[str, tuple[np.dtype[Any], Sequence[object] | None]]) -> list[Tensor]:
    """The tensors that `operation` makes; `made` tells dtype and shape of each by its own name in the graph."""
    tensors = []
    for own, name in operation.outputs.items():
        dtype, shape = made[own]
        sizes = None if shape is None else [size if isinstance(size, int) else None for size in shape]
        if sizes is not None and len(sizes) == 4 and operation.layout == "NHWC":
            sizes = [sizes[0], *sizes[2:], sizes[1]]
        tensors.append(Tensor(name, dtype, None if sizes is None else Shape(sizes), operation))
    return tensors


def preprocessed(images: Tensor, spec: AnyPreprocessing, name: str) -> Tensor:
    """The float32 tensor (?, height, width, 3) of encoded `images`. InputError where those are no strings."""
    if images.dtype != string:
        raise InputError(f"{images!r} holds no encoded pictures; a placeholder of dtype string would do")
    operation = Operation("preprocessing", "cpu", lambda: spec, {"images": images}, {"tensors": name}, "NHWC")
    return Tensor(name, float32, Shape((None, *picture_shape(spec, "NHWC"))), operation)


class Session:
    """What computes tensors on this machine, those of the FPGA as `target` would."""

    def __init__(self, target: Target | None = None) -> None:
        self._target = target or Target()
        self._steps: dict[Operation, tuple[object, Step]] = {}
        self._machine = Machine(VirtualFpga())

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._steps.clear()

    def run(self, fetches: Tensor | Sequence[Tensor], feed_dict: Mapping[Tensor, Any] | None = None) -> Any:
        """The array of a tensor, or the list of those of several, given the arrays that `feed_dict` feeds.

        A tensor that an operation makes may be fed as well. Featurizers of a Quantized… class run on the emulated FPGA,
        bit for bit as in the service, all else in float32. Raises InputError for a tensor that is neither fed nor made.
        """
        values = {tensor: _fed(tensor, value) for tensor, value in (feed_dict or {}).items()}
        wanted = [fetches] if isinstance(fetches, Tensor) else list(fetches)
        made = [self._value(tensor, values) for tensor in wanted]
        return made[0] if isinstance(fetches, Tensor) else made

    def _value(self, tensor: Tensor, values: dict[Tensor, Array]) -> Array:
        if not isinstance(tensor, Tensor):
            raise InputError(f"a session computes tensors; got a {type(tensor).__name__}")
        if tensor.source is not None and tensor not in values:
            return self._value(tensor.source, values)
        if tensor not in values:
            operation = tensor.operation
            if operation is None:
                raise InputError(f"{tensor!r} is neither fed nor made of anything; feed_dict={{…}} feeds it")
            feeds = {own: self._value(source, values) for own, source in operation.inputs.items()}
            outputs = self._step(operation).run(feeds, self._machine).outputs
            values[tensor] = outputs[next(own for own, name in operation.outputs.items() if name == tensor.name)]
        return values[tensor]

    def _step(self, operation: Operation) -> Step:
        """The step of `operation`, made anew where its work is another than before."""
        from fpgasim.service.stages import stage_of

        work = operation.work()
        if operation not in self._steps or self._steps[operation][0] is not work:
            if operation.exact and isinstance(work, Graph):
                step = in_layout(cpu_step(work, operation.name), operation.layout)
            else:
                step = stage_of(operation).step(self._target)
            self._steps[operation] = work, step
        return self._steps[operation][1]


def simple_save(
    session: Session | None,
    export_dir: str | os.PathLike[str],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
) -> None:
    """Writes the pipeline from `inputs` to `outputs` into the new folder `export_dir`, as service_def.zip.

    The keys are further names of the tensors, as `images` and `output_alias`. Raises InputError where a stage needs
    more than what the one before it makes, ModelError where it cannot be written.
    """
    from fpgasim.errors import ModelError
    from fpgasim.service.bundles import as_path
    from fpgasim.service.pipeline import FILE, definition_of

    definition = definition_of(inputs, outputs, os.path.basename(os.path.normpath(as_path(export_dir))))
    try:
        os.makedirs(export_dir, exist_ok=True)
    except OSError as error:
        raise ModelError(f"folder {as_path(export_dir)!r} cannot be made: {error.strerror}") from error
    definition.save(os.path.join(export_dir, FILE))


saved_model = SimpleNamespace(simple_save=simple_save)


def spec_of(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.dtype, tensor.shape)


def _fed(tensor: Tensor, value: Any) -> Array:
    from fpgasim.runtime.feeds import check_feeds

    if tensor.dtype == string and isinstance(value, list | tuple):
        value = np.array([*value, None], object)[:-1]
    return check_feeds([spec_of(tensor).as_tensor(tensor.name)], {tensor.name: value})[tensor.name]
