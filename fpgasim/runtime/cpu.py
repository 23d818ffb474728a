"""Running a CPU piece of a plan on ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fpgasim.errors import ModelError
from fpgasim.graph import Graph
from fpgasim.graph.onnx_runtime import start_session

if TYPE_CHECKING:
    import onnxruntime

    from fpgasim.placement import Segment

Array = npt.NDArray[Any]


class CpuRunner:
    """The nodes of one CPU piece as ONNX Runtime sessions: one for its outputs, more if inner tensors are asked for."""

    def __init__(self, graph: Graph, segment: Segment, threads: int) -> None:
        self._graph, self._segment, self._threads = graph, segment, threads
        self._lock = threading.Lock()
        self._sessions: dict[frozenset[str], onnxruntime.InferenceSession] = {}
        if segment.outputs:
            self._session(frozenset(segment.outputs))

    def run(self, values: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """The tensors `wanted` from `values`, which hold the piece's inputs. Raises ModelError where it fails."""
        if not wanted:
            return {}
        session = self._session(frozenset(self._segment.outputs) | frozenset(wanted))
        feeds = {name: np.ascontiguousarray(values[name]) for name in self._segment.inputs}
        try:
            return dict(zip(wanted, session.run(list(wanted), feeds), strict=True))
        except Exception as error:
            raise self._failure("failed on ONNX Runtime", error) from error

    def _session(self, outputs: frozenset[str]) -> onnxruntime.InferenceSession:
        with self._lock:
            if outputs not in self._sessions:
                self._sessions[outputs] = self._start(outputs)
            return self._sessions[outputs]

    def _start(self, outputs: frozenset[str]) -> onnxruntime.InferenceSession:
        part = self._graph.extract(self._segment.inputs, sorted(outputs))
        try:
            return start_session(part, self._threads)
        except Exception as error:  # its exceptions have no base of their own
            raise self._failure("cannot run on ONNX Runtime", error) from error

    def _failure(self, what: str, error: Exception) -> ModelError:
        first, last = self._segment.nodes[0], self._segment.nodes[-1]
        nodes = f"node {first!r}" if first == last else f"nodes {first!r} to {last!r}"
        return ModelError(f"the CPU piece of {nodes} {what}: {' '.join(str(error).split())}")
