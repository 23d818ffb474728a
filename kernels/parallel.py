"""Work split over threads. The kernels release Python's lock, and the result never depends on the split."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def split(count: int, threads: int, work: Callable[[int, int], T]) -> list[T]:
    """What `work(first, last)` returns for about equal parts of range(count), done on up to `threads` threads."""
    parts = max(1, min(threads, count))
    if parts == 1:
        return [work(0, count)]
    mine, *others = itertools.pairwise(count * i // parts for i in range(parts + 1))
    running = [_pool(parts - 1).submit(work, *part) for part in others]
    return [work(*mine), *(task.result() for task in running)]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "fpgasim-kernels")


# A forked child has the pool but not its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
