"""Weights in MatrixRf: all there from the start, or loaded while the tiles before them are in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fpgasim.compiler.writing import Writer


class Job(NamedTuple):
    """Tiles that are loaded together: `tiles` from `start` on in DRAM, for the next `uses` products."""

    start: int
    tiles: int
    uses: int


class Resident:
    """Weights that never move."""

    def begin(self, tile: int) -> int:
        """The address in MatrixRf of the tile that is number `tile` of the program's."""
        return tile

    def end(self) -> None:
        """A product has been written."""


class Stream:
    """Weights that jobs bring, in turn to the low and to the high end of a file of `capacity` tiles.

    The next job is loaded before the products of the present one, unless both overlap.
    """

    def __init__(self, writer: Writer, jobs: Sequence[Job], capacity: int) -> None:
        self.writer, self.jobs, self.capacity = writer, jobs, capacity
        self.loaded = self.current = self.used = 0
        self._load(0)

    def begin(self, tile: int) -> int:
        if self.used == 0 and not self._overlap(self.current):
            self._load(self.current + 1)
        return self._address(self.current) + tile - self.jobs[self.current].start

    def end(self) -> None:
        self.used += 1
        if self.used == self.jobs[self.current].uses:
            self.current, self.used = self.current + 1, 0
            self._load(self.current)

    def _address(self, job: int) -> int:
        return 0 if job % 2 == 0 else self.capacity - self.jobs[job].tiles

    def _overlap(self, job: int) -> bool:
        return sum(found.tiles for found in self.jobs[job : job + 2]) > self.capacity

    def _load(self, job: int) -> None:
        if self.loaded == job < len(self.jobs):
            self.writer.load(self.jobs[job].start, self._address(job), self.jobs[job].tiles)
            self.loaded += 1
