"""The time of every node on the CPU of this machine, measured with ONNX Runtime's profiler once and kept in a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fpgasim.errors import InputError, ModelError
from fpgasim.graph import Graph, Tensor
from fpgasim.graph.onnx_runtime import start_session
from fpgasim.graph.passes.shape_inference import one_line
from fpgasim.machine import cache_dir, processor
from fpgasim.ops import num_threads

if TYPE_CHECKING:
    import onnxruntime

#: Raised by one whenever what is measured changes.
VERSION = 1
#: How often a network is run, twice at least, but not for longer than this.
RUNS, LIMIT_S = 7, 5.0


def measured_seconds(graph: Graph) -> dict[str, float]:
    """Node name -> its seconds on this machine's CPU; their sum is what ONNX Runtime takes for the bound `graph`.

    A run in which nothing is fused says what share of the whole each node has; the whole is the network as a CPU piece
    runs it, everything optimized, on $FPGASIM_NUM_THREADS threads. Both are the quickest of some runs on random feeds:
    processor time on one thread, where others on the machine do not count, else elapsed time.
    The times are kept under `fpgasim.machine.cache_dir()` and measured anew for another graph, processor, number of
    threads or version of ONNX Runtime, and where the file is damaged. Raises InputError for an input that cannot be
    made up, ModelError where ONNX Runtime does not run the graph.
    """
    key = _key(graph)
    path = cache_dir() / "costs" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
    names = [node.name for node in graph.nodes]
    seconds = _read(path, key, names)
    if seconds is None:
        seconds = dict(zip(names, _measure(graph), strict=True))
        _write(path, {"key": key, "seconds": seconds})
    return seconds


def _key(graph: Graph) -> dict[str, Any]:
    """All that the times depend on."""
    import onnxruntime

    cpu = processor()
    return {
        "version": VERSION,
        "graph": graph.fingerprint(),
        "onnxruntime": onnxruntime.__version__,
        "processor": [cpu.model, cpu.level, cpu.cores],
        "threads": num_threads(),
    }


def _read(path: Path, key: Mapping[str, Any], names: list[str]) -> dict[str, float] | None:
    """The times in the file at `path`; None where they are not there, not those of `key`, or not whole."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.get("key") != key or not isinstance(data.get("seconds"), dict):
        return None
    seconds = data["seconds"]
    sound = all(isinstance(s, float) and math.isfinite(s) and s >= 0 for s in seconds.values())
    return seconds if sound and list(seconds) == names else None


def _write(path: Path, data: Mapping[str, Any]) -> None:
    """Replaces the file at `path` once the new one is whole; without a place to keep it the times are not kept."""
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            partial = file.name
            json.dump(data, file, indent=1)
        os.replace(partial, path)
    except OSError as error:
        logging.getLogger(__name__).warning("measured costs are not kept: %s: %s", path, error.strerror or error)
        if partial is not None:
            with contextlib.suppress(OSError):
                os.unlink(partial)


def _measure(graph: Graph) -> list[float]:
    """The seconds of each node of `graph`, in order."""
    feeds = {tensor.name: _feed(tensor) for tensor in graph.inputs}
    threads = num_threads()
    try:
        clock = time.thread_time if threads == 1 else time.perf_counter
        whole = min(_run(start_session(graph, threads), feeds, clock))
        with tempfile.TemporaryDirectory() as folder:
            session = start_session(_numbered(graph), threads, profile=os.path.join(folder, "profile"))
            _run(session, feeds, clock)
            shares = _quickest(Path(session.end_profiling()), len(graph.nodes))
    except Exception as error:  # ONNX Runtime's exceptions have no base of their own
        raise ModelError(f"graph {graph.name!r} cannot be measured on ONNX Runtime: {one_line(error)}") from error
    total = math.fsum(shares) or 1.0
    return [whole * share / total for share in shares]


def _feed(tensor: Tensor) -> npt.NDArray[Any]:
    """Something to feed: normally distributed numbers, whole ones 0, texts empty."""
    shape = tuple(dim for dim in tensor.shape or () if isinstance(dim, int))
    if not tensor.static or len(shape) != len(tensor.shape or ()):
        raise InputError(f"costs='measured' needs the shape of input {tensor.name!r}, which is {tensor.shape}")
    if tensor.dtype.kind == "f":
        return np.random.default_rng(0).standard_normal(shape, np.float32).astype(tensor.dtype)
    return np.full(shape, "", object) if tensor.dtype.kind == "O" else np.zeros(shape, tensor.dtype)


def _run(
    session: onnxruntime.InferenceSession, feeds: Mapping[str, npt.NDArray[Any]], clock: Callable[[], float]
) -> list[float]:
    """The seconds of each run but the first, which warms up."""
    session.run(None, feeds)
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < RUNS and sum(seconds) < LIMIT_S):
        start = clock()
        session.run(None, feeds)
        seconds.append(clock() - start)
    return seconds


def _numbered(graph: Graph) -> Graph:
    """`graph` with its nodes called by their numbers; those in bodies, whose time their owner's holds, by none."""
    model = graph.model.clone()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.name = ""
    for i, node in enumerate(model.graph):
        node.name = str(i)
    return Graph(model)


def _quickest(path: Path, nodes: int) -> list[float]:
    """The seconds of each numbered node in the profile at `path`: its quickest run. A node that never ran takes 0."""
    found: dict[str, float] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            number = event["name"].removesuffix("_kernel_time")
            found[number] = min(found.get(number, math.inf), event["dur"] * 1e-6)
    return [found.get(str(i), 0.0) for i in range(nodes)]
