"""Running a Segment: every operation of its schedule through the kernels, in memory that is laid out once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fpgasim.kernels.contract import Backend, Float32Array
from fpgasim.npu.segment import Segment
from fpgasim.runtime.schedule import Feeds, Operation, Schedule, Work, make_schedule

#: Schedules for other tensors than the segment's outputs that a runner keeps; the one made first goes first.
SCHEDULES_KEPT = 4
#: Memory of a run that is kept for the next one; a larger one is for a batch, which takes far longer than getting it.
KEPT_BYTES = 128 << 20


class Taken(NamedTuple):
    """Processor seconds that a kind of work took for a layer or tensor, all threads together."""

    kind: str
    name: str
    seconds: float


class Frame:
    """The memory of one run at a time, and a schedule's work bound to it."""

    def __init__(self, schedule: Schedule) -> None:
        self.arrays = schedule.layout.arrays()
        self.feeds: Feeds = {}
        self.works: list[tuple[Operation, Work]] = [(o, o.bind(self.arrays, self.feeds)) for o in schedule.operations]

    def run(
        self, saturations: Counter[str], taken: list[Taken] | None, between: Callable[[], None] | None = None
    ) -> None:
        for operation, work in self.works:
            if between is not None:
                between()
            start = time.process_time() if taken is not None else 0.0
            saturated = work()
            for name, count in zip(operation.names, saturated, strict=False):
                if count:
                    saturations[name] += count
            if taken is not None:
                taken.append(Taken(operation.kind, operation.names[0], time.process_time() - start))


class FpgaRunner:
    """One FPGA segment, ready to run from several threads at once: each run takes a frame that no other run has."""

    def __init__(self, segment: Segment, kernels: Backend, threads: int) -> None:
        self.segment, self._kernels, self._threads = segment, kernels, threads
        self._lock = threading.Lock()
        self._schedules: dict[frozenset[str], tuple[Schedule, list[Frame]]] = {}
        self._schedule(frozenset(segment.outputs))

    def run(
        self,
        feeds: Mapping[str, npt.NDArray[Any]],
        wanted: Collection[str],
        saturations: Counter[str],
        taken: list[Taken] | None = None,
        between: Callable[[], None] | None = None,
    ) -> dict[str, Float32Array]:
        """The tensors `wanted`, float32 in their ONNX shapes, from `feeds`, which are so too.

        How many values saturated in fp16 is added to `saturations` under the layer's name or the fed tensor's; what
        each operation took to `taken`. `between` is called before each operation; what it raises ends the run.
        """
        schedule, idle = self._schedule(frozenset(self.segment.outputs) | frozenset(wanted))
        frame = self._take(schedule, idle, feeds)
        frame.run(saturations, taken, between)
        results = {name: self._leave(name, frame, schedule) for name in wanted}
        frame.feeds.clear()
        if schedule.layout.size <= KEPT_BYTES:
            idle.append(frame)
        return results

    def _take(self, schedule: Schedule, idle: list[Frame], feeds: Mapping[str, npt.NDArray[Any]]) -> Frame:
        try:
            frame = idle.pop()  # one bytecode: no other thread gets the same
        except IndexError:
            frame = Frame(schedule)
        frame.feeds.update((name, np.ascontiguousarray(feeds[name])) for name in self.segment.inputs)
        return frame

    def _leave(self, name: str, frame: Frame, schedule: Schedule) -> Float32Array:
        return self._kernels.leave(frame.arrays[schedule.results[name]], self._threads).reshape(
            self.segment.shapes[name]
        )

    def _schedule(self, wanted: frozenset[str]) -> tuple[Schedule, list[Frame]]:
        with self._lock:
            if wanted not in self._schedules:
                if len(self._schedules) > SCHEDULES_KEPT:
                    del self._schedules[list(self._schedules)[1]]  # the first one is for the segment's outputs
                self._schedules[wanted] = make_schedule(self.segment, wanted, self._kernels, self._threads), []
            return self._schedules[wanted]
