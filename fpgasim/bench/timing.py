"""Times of contenders that run in turns, and what the processor could do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from fpgasim.kernels import Backend


def medians(contenders: Mapping[str, Callable[[], Any]], rounds: int, threads: int) -> dict[str, float]:
    """The median seconds of each contender, all called in turns after one call to warm up.

    Processor time on one thread, where others on the machine do not count; elapsed time on several.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, call in contenders.items():
            start = clock()
            call()
            if i:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_rate(kernels: Backend, threads: int) -> float | None:
    """Integer multiply-accumulates a second that `threads` threads do at best, measured; None without C kernels."""
    peak: Callable[[], float] | None = getattr(kernels, "peak", None)
    return None if peak is None else peak() * threads
