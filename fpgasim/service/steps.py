"""The pieces a servable runs one after another: pictures made into tensors, a graph on the CPU, a plan on the FPGA."""

from __future__ import annotations

import contextlib
import io
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from fpgasim.errors import ImageError, InputError, UnknownNameError
from fpgasim.graph import Graph, Tensor

if TYPE_CHECKING:
    from fpgasim.npu import Device
    from fpgasim.numerics import BlockFormat
    from fpgasim.placement import Plan
    from fpgasim.placement.plan import Objective
    from fpgasim.zoo import AzurePreprocessing, Preprocessing

Array = np.ndarray[Any, Any]
#: Called between the parts of a computation, which ends if it raises.
GoOn: TypeAlias = Callable[[], None]
AnyPreprocessing: TypeAlias = "Preprocessing | AzurePreprocessing"
Layout = Literal["NHWC", "NCHW"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
#: `host`: as quick as this machine. `hardware`: the engine stays busy for as long as the simulated one would.
Pace = Literal["host", "hardware"]
PACES: tuple[Pace, ...] = get_args(Pace)


DEVICE, FORMAT = "bw_a10", "bw_1s5e5m"


@dataclass(frozen=True)
class Target:
    """What is planned for, and to which end, where nothing else is said."""

    device: str | Device = DEVICE
    format: str | BlockFormat = FORMAT
    objective: Objective = "coverage"


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor before it is there. Strings have dtype `object`; a size of None may be any."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None

    @property
    def is_text(self) -> bool:
        return self.dtype == object

    def as_tensor(self, name: str) -> Tensor:
        """The same under another name, as the check of feeds takes it."""
        return Tensor(name, self.dtype, self.shape)


class VirtualFpga:
    """One engine: it computes one batch at a time, whichever threads and servables come.

    With the pace `hardware` it stays busy for as long as the simulated engine would, transfers and launches counted, so
    no answer comes sooner and a queue forms as it would there. Raises UnknownNameError for another pace.
    """

    def __init__(self, pace: Pace = "host") -> None:
        if pace not in PACES:
            raise UnknownNameError("pace", pace, PACES)
        self.pace = pace
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def busy(self, seconds: float) -> Iterator[None]:
        """Holds the engine for the block, and at the pace `hardware` for `seconds` at least."""
        with self._lock:
            start = time.monotonic()
            yield
            if self.pace == "hardware":
                # sleep may end a little early on some systems' clocks
                while (rest := start + seconds - time.monotonic()) > 0:
                    time.sleep(rest)


@dataclass(frozen=True)
class Limits:
    """What one call may become: how many pictures (strings, or tensors of four dimensions), their pixels all together
    once decoded, and the bytes of the tensor that is made of them. None: any."""

    max_batch: int | None = None
    max_pixels: int | None = None
    max_bytes: int | None = None


def _go_on() -> None:
    """Nobody waits for it, so nobody can cease to."""


@dataclass(frozen=True)
class Machine:
    """What a step runs on: the engine, the limits of a call, and what raises as soon as nobody waits for the answer."""

    fpga: VirtualFpga
    limits: Limits = Limits()
    go_on: GoOn = _go_on


@dataclass(frozen=True)
class Done:
    """What a step made, by its own names; the simulated engine's cycles and seconds; seconds it took here.

    Waiting for the engine is in none of them.
    """

    outputs: Mapping[str, Array]
    seconds: float
    cycles: int = 0
    fpga_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Step:
    """A piece that runs. `reads` and `writes` say which value of the pipeline each of its own tensors is."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    run: Callable[[Mapping[str, Array], Machine], Done]
    plan: Plan | None = None
    takes_pictures: bool = False
    reads: Mapping[str, str] = field(default_factory=dict)
    writes: Mapping[str, str] = field(default_factory=dict)


def preprocessing_step(spec: AnyPreprocessing, layout: Layout, name: str) -> Step:
    """The step from `images`, encoded pictures (n), to `tensors`, float32 (n, 3, h, w) or (n, h, w, 3)."""
    images = TensorSpec("images", np.dtype(object), (None,))
    tensors = TensorSpec("tensors", np.dtype(np.float32), (None, *picture_shape(spec, layout)))

    def run(feeds: Mapping[str, Array], machine: Machine) -> Done:
        start = time.perf_counter()
        pictures = feeds["images"]
        if not len(pictures):
            raise InputError("the batch holds no picture; at least one would do")
        _check_size(len(pictures), math.prod(picture_shape(spec, layout)), machine.limits)
        _check_pixels(pictures, machine)
        batch = []
        for i, data in enumerate(pictures):
            machine.go_on()
            batch.append(_picture(spec, data, i))
        made = batch[0] if len(batch) == 1 else np.concatenate(batch)
        if layout == "NHWC":  # a view: the FPGA's stage turns it back
            made = made.transpose(0, 2, 3, 1)
        return Done({"tensors": made}, time.perf_counter() - start)

    return Step(name, (images,), (tensors,), run, takes_pictures=True)


def picture_shape(spec: AnyPreprocessing, layout: Layout) -> tuple[int, int, int]:
    """The shape of one picture after `spec`."""
    from fpgasim.zoo import AzurePreprocessing

    height, width = spec.shape if isinstance(spec, AzurePreprocessing) else (spec.size, spec.size)
    return (height, width, 3) if layout == "NHWC" else (3, height, width)


def cpu_step(graph: Graph, name: str) -> Step:
    """The step that runs `graph` on ONNX Runtime. Raises ModelError where that cannot."""
    from fpgasim.ops import num_threads
    from fpgasim.placement import Segment
    from fpgasim.runtime.cpu import CpuRunner

    inputs, outputs = specs(graph.inputs, graph), specs(graph.outputs, graph)
    names = tuple(spec.name for spec in outputs)
    whole = Segment("cpu", 0, tuple(node.name for node in graph.nodes), tuple(s.name for s in inputs), names)
    runner = CpuRunner(graph, whole, num_threads())

    def run(feeds: Mapping[str, Array], machine: Machine) -> Done:
        start = time.perf_counter()
        return Done(runner.run(feeds, names), time.perf_counter() - start)

    return _with_text(Step(name, inputs, outputs, run))


def fpga_step(plan: Plan, name: str) -> Step:
    """The step that runs `plan`, its CPU pieces included, while no other batch is on the engine."""
    from fpgasim.runtime import compile

    session = compile(plan)
    graph = plan.source_graph
    lock = threading.Lock()
    timings: dict[tuple[tuple[int, ...], ...], tuple[int, float]] = {}

    def simulated(feeds: Mapping[str, Array]) -> tuple[int, float]:
        shapes = {tensor.name: feeds[tensor.name].shape for tensor in session.inputs}
        key = tuple(shapes.values())
        with lock:
            found = timings.get(key)
        if found is None:  # to plan another size takes long, and calls of sizes that are known do not wait for it
            timing = session.timing(shapes)
            found = timing.cycles, (timing.total_ms - timing.cpu_ms) / 1e3
            with lock:
                timings[key] = found
                if len(timings) > _TIMINGS_KEPT:
                    del timings[next(iter(timings))]
        return found

    def run(feeds: Mapping[str, Array], machine: Machine) -> Done:
        cycles, fpga_seconds = simulated(feeds)
        with machine.fpga.busy(fpga_seconds):
            machine.go_on()  # it may have waited long for the engine
            start = time.perf_counter()
            made = session.run(feeds, between=machine.go_on)
        return Done(made, time.perf_counter() - start, cycles, fpga_seconds)

    return _with_text(Step(name, specs(graph.inputs, graph), specs(graph.outputs, graph), run, plan))


def _with_text(step: Step) -> Step:
    """`step`, whose strings are ONNX Runtime's, which are text, with strings that are bytes, in UTF-8, as requests
    have them."""
    if not any(spec.is_text for spec in (*step.inputs, *step.outputs)):
        return step

    def run(feeds: Mapping[str, Array], machine: Machine) -> Done:
        done = step.run({name: _text(name, array) for name, array in feeds.items()}, machine)
        return replace(done, outputs={name: _utf8(array) for name, array in done.outputs.items()})

    return replace(step, run=run)


def _text(name: str, array: Array) -> Array:
    if array.dtype != object:
        return array
    try:
        items = [item.decode() if isinstance(item, bytes) else str(item) for item in array.flat]
    except UnicodeDecodeError as error:
        raise InputError(f"input {name!r} holds a string that is no UTF-8: {error}") from None
    return np.array([*items, None], object)[:-1].reshape(array.shape)


def _utf8(array: Array) -> Array:
    if array.dtype.kind not in "OU":
        return array
    items = [item if isinstance(item, bytes) else str(item).encode() for item in array.flat]
    return np.array([*items, None], object)[:-1].reshape(array.shape)


def in_layout(step: Step, layout: Layout) -> Step:
    """`step`, whose tensors of four dimensions are (n, c, h, w), with these coming and going in `layout`."""
    if layout == "NCHW":
        return step
    turned = {spec.name for spec in (*step.inputs, *step.outputs) if spec.shape is not None and len(spec.shape) == 4}

    def run(feeds: Mapping[str, Array], machine: Machine) -> Done:
        inside = {name: array.transpose(0, 3, 1, 2) if name in turned else array for name, array in feeds.items()}
        done = step.run(inside, machine)
        outside = {name: a.transpose(0, 2, 3, 1) if name in turned else a for name, a in done.outputs.items()}
        return replace(done, outputs=outside)

    def seen(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(laid_out(spec, layout) for spec in specs)

    return replace(step, inputs=seen(step.inputs), outputs=seen(step.outputs), run=run)


def laid_out(spec: TensorSpec, layout: Layout) -> TensorSpec:
    """The spec of an (n, c, h, w) tensor in `layout`; one of other dimensions as it is."""
    if layout == "NCHW" or spec.shape is None or len(spec.shape) != 4:
        return spec
    n, c, h, w = spec.shape
    return replace(spec, shape=(n, h, w, c))


#: Input shapes whose simulated time is remembered.
_TIMINGS_KEPT = 64


def specs(tensors: Sequence[Tensor], graph: Graph) -> tuple[TensorSpec, ...]:
    """`tensors` of `graph` as specs; InputError for a sequence or an optional, which no request holds."""
    for tensor in tensors:
        if tensor.container:
            raise InputError(
                f"graph {graph.name!r} cannot be served: {tensor.name!r} is a {tensor.container}; tensors would do"
            )
    return tuple(
        TensorSpec(
            tensor.name,
            tensor.dtype,
            None if tensor.shape is None else tuple(dim if isinstance(dim, int) else None for dim in tensor.shape),
        )
        for tensor in tensors
    )


def _check_size(count: int, elements: int, limits: Limits) -> None:
    """Raises InputError for more pictures than make a tensor of `limits.max_bytes`, each of them so many elements."""
    each = elements * np.dtype(np.float32).itemsize
    if limits.max_bytes is not None and count * each > limits.max_bytes:
        raise InputError(
            f"{count} pictures make a tensor of {count * each} bytes, and at most {limits.max_bytes} are taken; "
            f"{limits.max_bytes // each} pictures in a call would do"
        )


def _check_pixels(pictures: Array, machine: Machine) -> None:
    """Raises ImageError for pictures that have more pixels by their headers, all together, than the limit."""
    limit, total = machine.limits.max_pixels, 0
    if limit is None:
        return
    for i, data in enumerate(pictures):
        machine.go_on()
        width, height = _size(data) if isinstance(data, bytes) else (0, 0)
        if width * height > limit:
            raise ImageError(
                f"picture {i} of the batch: a picture of {width}x{height} pixels; at most {limit} are taken"
            )
        total += width * height
        if total > limit:
            raise ImageError(
                f"pictures 0 to {i} of the batch have {total} pixels together, and at most {limit} are taken; "
                "fewer or smaller pictures in a call would do"
            )


def _size(data: bytes) -> tuple[int, int]:
    """Width and height of a picture by its header; (0, 0) without one: decoding says what is wrong with it."""
    import PIL.Image

    from fpgasim.zoo.decoding import KINDS

    try:
        with PIL.Image.open(io.BytesIO(data), formats=KINDS) as picture:
            return picture.size
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        return 0, 0


def _picture(spec: AnyPreprocessing, data: object, i: int) -> Array:
    """One encoded picture as (1, 3, h, w); errors say which of the batch it is."""
    from fpgasim.zoo import preprocess

    if not isinstance(data, bytes):  # a str would be taken for the path of a file of this machine
        raise InputError(f"picture {i} of the batch is a {type(data).__name__}; the bytes of a file would do")
    try:
        return preprocess(spec, data)
    except ImageError as error:
        raise ImageError(f"picture {i} of the batch: {error}") from error
