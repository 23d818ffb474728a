"""Running a CPU piece of a plan on ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fpgasim.errors import ModelError
from fpgasim.graph import Graph
from fpgasim.graph.onnx_runtime import from_ort_value, start_session, to_ort_value

if TYPE_CHECKING:
    import onnxruntime

    from fpgasim.placement import Segment

Array = npt.NDArray[Any]


class CpuRunner:
    """The nodes of one CPU piece as ONNX Runtime sessions: one for its outputs, more if inner tensors are asked for."""

    def __init__(self, graph: Graph, segment: Segment, threads: int) -> None:
        self._graph, self._segment, self._threads = graph, segment, threads
        self._lock = threading.Lock()
        #: By outputs; with whether NumPy has a type for all that goes in and out.
        self._sessions: dict[frozenset[str], tuple[onnxruntime.InferenceSession, bool]] = {}
        if segment.outputs:
            self._session(frozenset(segment.outputs))

    def run(self, values: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """The tensors `wanted` from `values`, which hold the piece's inputs. Raises ModelError where it fails."""
        if not wanted:
            return {}
        session, plain = self._session(frozenset(self._segment.outputs) | frozenset(wanted))
        feeds = {name: _in_order(values[name]) for name in self._segment.inputs}
        try:
            if plain:
                return dict(zip(wanted, session.run(list(wanted), feeds), strict=True))
            made = session.run_with_ort_values(list(wanted), {name: to_ort_value(a) for name, a in feeds.items()})
            return dict(zip(wanted, map(from_ort_value, made), strict=True))
        except Exception as error:
            raise self._failure("failed on ONNX Runtime", error) from error

    def _session(self, outputs: frozenset[str]) -> tuple[onnxruntime.InferenceSession, bool]:
        with self._lock:
            if outputs not in self._sessions:
                self._sessions[outputs] = self._start(outputs)
            return self._sessions[outputs]

    def _start(self, outputs: frozenset[str]) -> tuple[onnxruntime.InferenceSession, bool]:
        part = self._graph.extract(self._segment.inputs, sorted(outputs))
        try:
            session = start_session(part, self._threads)
        except Exception as error:  # its exceptions have no base of their own
            raise self._failure("cannot run on ONNX Runtime", error) from error
        return session, all(map(_has_numpy_type, (*session.get_inputs(), *session.get_outputs())))

    def _failure(self, what: str, error: Exception) -> ModelError:
        first, last = self._segment.nodes[0], self._segment.nodes[-1]
        nodes = f"node {first!r}" if first == last else f"nodes {first!r} to {last!r}"
        return ModelError(f"the CPU piece of {nodes} {what}: {' '.join(str(error).split())}")


def _in_order(value: Any) -> Any:
    """An array in C order; a sequence or None as it is."""
    return np.asarray(value, order="C") if isinstance(value, np.ndarray | np.generic) else value


def _has_numpy_type(value: onnxruntime.NodeArg) -> bool:
    """Whether ONNX Runtime itself turns the value into Python's and back."""
    return not value.type.startswith("tensor(") or value.type in _NUMPY_TYPES


_WHOLE = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
#: Tensors whose elements NumPy has a type for, in ONNX Runtime's words.
_NUMPY_TYPES = {f"tensor({name})" for name in ("bool", "string", "float16", "float", "double", *_WHOLE)}
