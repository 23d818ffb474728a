"""Where the arrays of a run lie: one block of memory, laid out before the first run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fpgasim.kernels.contract import Array

#: Bytes of a cache line: every array begins on one.
LINE = 64


@dataclass
class Slot:
    """An array that lives from operation `first` to operation `last`, both included.

    With a `base` it is the first channels of that slot, which comes before it and lives at least as long.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    first: int
    last: int
    base: int | None = None

    @property
    def size(self) -> int:
        """Bytes of its own, in whole cache lines."""
        return 0 if self.base is not None else -(-math.prod(self.shape) * self.dtype.itemsize // LINE) * LINE


@dataclass(frozen=True)
class Layout:
    """`offsets` of the slots in an arena of `size` bytes; two that live at the same time do not overlap."""

    slots: tuple[Slot, ...]
    offsets: tuple[int, ...]
    size: int

    def arrays(self) -> list[Array]:
        """A new arena, as one array for each slot."""
        memory = np.empty(self.size + LINE, np.uint8)
        start = -memory.ctypes.data % LINE
        made: list[Array] = []
        for slot, offset in zip(self.slots, self.offsets, strict=True):
            if slot.base is not None:
                made.append(made[slot.base][..., : slot.shape[-1]])
                continue
            size = math.prod(slot.shape) * slot.dtype.itemsize
            made.append(memory[start + offset : start + offset + size].view(slot.dtype).reshape(slot.shape))
        return made


def lay_out(slots: Sequence[Slot]) -> Layout:
    """Places each slot at the lowest offset that is free while it lives, in the order in which they begin."""
    offsets = [0] * len(slots)
    live: list[int] = []  # by offset
    for i in sorted(range(len(slots)), key=lambda i: slots[i].first):
        live = [j for j in live if slots[j].last >= slots[i].first]
        at, place = 0, 0
        for place, j in enumerate([*live, -1]):  # noqa: B007
            if j < 0 or offsets[j] - at >= slots[i].size:
                break
            at = offsets[j] + slots[j].size
        offsets[i] = at
        live.insert(place, i)
    size = max((offset + slot.size for offset, slot in zip(offsets, slots, strict=True)), default=0)
    return Layout(tuple(slots), tuple(offsets), size)
