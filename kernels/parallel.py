"""Work split over threads. The kernels release Python's lock, and the result never depends on the split."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def split(count: int, threads: int, work: Callable[[int, int], object]) -> None:
    """Calls `work(first, last)` on about equal parts of range(count), on up to `threads` threads."""
    parts = max(1, min(threads, count))
    bounds = [count * i // parts for i in range(parts + 1)]
    others = [_pool(parts - 1).submit(work, *pair) for pair in zip(bounds[1:-1], bounds[2:], strict=True)]
    work(bounds[0], bounds[1])
    for other in others:
        other.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "fpgasim-kernels")


# A forked child has the pool but not its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
