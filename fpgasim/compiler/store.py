"""Constants in the register files: those that stay from the start, and those that come from DRAM before use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fpgasim.compiler.memory import At
from fpgasim.compiler.tasks import Constant, Constants
from fpgasim.compiler.writing import Source, Writer
from fpgasim.kernels.contract import Float32Array
from fpgasim.npu.isa import Mem


class Store:
    """The constants of a program.

    `pinned` says of each memory how many vectors at its low end are for constants, and whether these stay there.
    `specials` fill a vector each at the low end of InitialVrf.
    """

    def __init__(
        self, native: int, constants: Constants, pinned: Mapping[Mem, tuple[int, bool]], specials: Sequence[float]
    ) -> None:
        self.native, self.constants, self.pinned, self.specials = native, constants, pinned, specials
        self._dram: dict[Mem, int] = {}
        self._cached: dict[Mem, dict[tuple[int, int], int]] = {}
        self._used: dict[Mem, int] = {}
        at = 0
        for mem, (_, stays) in pinned.items():
            if not stays:
                self._dram[mem] = at
                self._cached[mem], self._used[mem] = {}, 0
                at += len(constants.vectors[mem])

    def special(self, value: float) -> At:
        """A vector of InitialVrf that is full of `value`."""
        index = next(i for i, known in enumerate(self.specials) if str(known) == str(value))
        return At(Mem.INITIAL_VRF, index * self.native)

    def limit(self, mem: Mem) -> int | None:
        """How many vectors of a constant a chain can have at once; None for any number."""
        count, stays = self.pinned[mem]
        return None if stays else count

    def at(self, writer: Writer, constant: Constant, first: int, last: int) -> At:
        """Where vectors `first` … `last` − 1 of `constant` are, after a load from DRAM if they were not there.

        A chain has at most one constant in each memory, so a cache that is full is begun anew.
        """
        mem, start, count = constant.mem, constant.first + first, last - first
        if mem not in self._cached:
            return At(mem, start * self.native)
        room, cached = self.pinned[mem][0], self._cached[mem]
        if (start, count) not in cached:
            if self._used[mem] + count > room:
                cached.clear()
                self._used[mem] = 0
            base = self._used[mem]
            cached[start, count] = base
            self._used[mem] += count
            source = Source(At(Mem.DRAM, (self._dram[mem] + start) * self.native), count)
            writer.chain(source, [At(mem, base * self.native)])
        return At(mem, cached[start, count] * self.native)

    def contents(self) -> dict[Mem, Float32Array]:
        """What the memories of vectors hold when the program is loaded."""
        found = {Mem.INITIAL_VRF: np.repeat(np.array(self.specials, np.float32)[:, None], self.native, axis=1)}
        for mem, vectors in self.constants.vectors.items():
            if mem not in self._cached and vectors:
                found[mem] = np.stack(vectors)
        if self._cached:
            found[Mem.DRAM] = np.stack([v for mem in self._cached for v in self.constants.vectors[mem]])
        return found
