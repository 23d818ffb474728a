"""Where every tensor of a segment lies, and when: whole in InitialVrf, in stripes of a run of layers, or in DRAM.

Layers run one after the other, each on whole tensors, while these fit. Where they do not, layers that follow each other
are joined to a *run*, which goes through the image in stripes of rows: of the tensors between them only the rows that a
stripe needs are kept. What still does not fit goes to DRAM, and the layers that read it bring stripes of it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fpgasim.compiler.memory import Buffer, Space
from fpgasim.compiler.striping import Run, stripes_of
from fpgasim.compiler.tasks import WINDOWED, Constants, Task, Tensor, readers_halo
from fpgasim.errors import CompileError
from fpgasim.npu.device import Device
from fpgasim.npu.isa import Mem, addsub_vrf, multiply_vrf
from fpgasim.npu.programs import depth

#: The most layers that are tried as one run.
LONGEST_RUN = 8

Halo = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Placed:
    """A run and its memory. `rows` of its output are made at a time; all images at once unless `by_image`.

    `homes` are the tensors that are whole, also those that come from the network queue before the run (`entering`);
    `local` those of which a stripe is kept, as buffers whose row and image are not set. `room` is free meanwhile:
    address and length in vectors. `packed` are tensors without gaps between their pixels, with their halo.
    """

    run: Run
    rows: int
    by_image: bool
    entering: tuple[str, ...]
    homes: Mapping[str, Mapping[Mem, Buffer]]
    local: Mapping[tuple[str, Mem], Buffer]
    room: Mapping[Mem, tuple[int, int]]
    packed: Mapping[str, Halo]


#: Other runs, and other tensors in DRAM.
_Change = tuple[list[Run], frozenset[str]]


class Full(Exception):
    """Run `index` does not fit; `lying` are the tensors whole in InitialVrf then."""

    def __init__(self, index: int, what: str, needed: int, lying: Sequence[str]) -> None:
        super().__init__(what)
        self.index, self.what, self.needed, self.lying = index, what, needed, tuple(lying)


@dataclass(frozen=True, eq=False)
class Planner:
    """What placing goes by. `pins` vectors at the low end of a memory are constants, or a cache of them."""

    device: Device
    tasks: Sequence[Task]
    tensors: Mapping[str, Tensor]
    pins: Mapping[Mem, int]
    dram_pins: int

    def decide(self) -> list[Placed]:
        """The runs of the segment and their memory. Raises CompileError for a layer that fits in no way."""
        runs = [Run(i, i + 1) for i in range(len(self.tasks))]
        spilled: frozenset[str] = frozenset()
        while True:
            try:
                return self.place(runs, spilled)
            except Full as full:
                change = self._joined(runs, spilled, full) or self._spilled(runs, spilled, full)
                if change is None:
                    layer = self.tasks[runs[full.index].last - 1].layer
                    raise CompileError(
                        f"layer {layer.name!r}: {full.what} takes {full.needed} vectors, and initial_vrf has "
                        f"{self.device.initial_vrf}, {self.pins[Mem.INITIAL_VRF]} of them for constants"
                    ) from None
                runs, spilled = change

    def _fits(self, runs: Sequence[Run], spilled: frozenset[str], until: int) -> bool:
        try:
            self.place(runs, spilled, until)
        except Full:
            return False
        return True

    def _around(self, runs: list[Run], index: int, least: int) -> Iterator[tuple[list[Run], int]]:
        """`runs` with from `least` to `LONGEST_RUN` of those around `index` joined, and the joined one's number."""
        for count in range(least, LONGEST_RUN + 1):
            for start in range(max(0, index - count + 1), min(index, len(runs) - count) + 1):
                run = Run(runs[start].first, runs[start + count - 1].last)
                if run.last - run.first <= LONGEST_RUN and self._may_join(run):
                    yield [*runs[:start], run, *runs[start + count :]], start

    def _joined(self, runs: list[Run], spilled: frozenset[str], full: Full) -> _Change | None:
        """Runs around the one that does not fit joined, such that it does; the fewest."""
        for joined, number in self._around(runs, full.index, 2):
            if self._fits(joined, spilled, number + 1):
                return joined, spilled
        return None

    def _spilled(self, runs: list[Run], spilled: frozenset[str], full: Full) -> _Change | None:
        """One more tensor in DRAM: the smallest with which the run fits, be it one that lies idle or what the run, or
        one joined around it, makes. Where none is enough, the largest that there is."""
        options: list[tuple[int, _Change]] = []
        for joined, number in self._around(runs, full.index, 1):
            name = self.tasks[joined[number].last - 1].layer.output
            if name not in spilled and self._fits(joined, spilled | {name}, number + 1):
                options.append((self._vectors(name), (joined, spilled | {name})))
        names = [name for name in full.lying if name not in spilled]
        for name in names:
            if self._fits(runs, spilled | {name}, full.index + 1):
                options.append((self._vectors(name), (runs, spilled | {name})))
        if options:
            return min(options, key=lambda option: option[0])[1]
        output = self.tasks[runs[full.index].last - 1].layer.output
        names += [output] if output not in spilled else []
        return (runs, spilled | {max(names, key=self._vectors)}) if names else None

    def _may_join(self, run: Run) -> bool:
        """Whether every tensor inside the run is made and read there alone, row by row."""
        inside = range(run.first, run.last)
        for i in inside[:-1]:
            tensor = self.tensors[self.tasks[i].layer.output]
            if tensor.is_output or not tensor.used or not all(reader in inside for reader in tensor.used):
                return False
        return all(self.tasks[i].layer.head not in ("reshape", "matmul") for i in inside)

    def _names(self, i: int) -> list[str]:
        task = self.tasks[i]
        return [*task.layer.inputs, *(step.tensor for step in task.steps() if step.tensor), task.layer.output]

    def _vectors(self, name: str) -> int:
        n, height, width, channels = self.tensors[name].shape
        return n * height * width * self.of(channels)

    def of(self, channels: int) -> int:
        """Vectors of a pixel."""
        return -(-channels // self.device.native_dim)

    def place(self, runs: Sequence[Run], spilled: frozenset[str], until: int | None = None) -> list[Placed]:
        """The memory of `runs`, up to number `until`. Raises Full for the first that does not fit."""
        state = _Placing(self, spilled)
        for index, run in enumerate(runs[:until]):
            state.add(index, run)
        return state.placed


class _Placing:
    """Goes through the runs in order with what is free."""

    def __init__(self, planner: Planner, spilled: frozenset[str]) -> None:
        self.planner, self.spilled = planner, spilled
        self.spaces = {mem: Space(pins, depth(planner.device, mem)) for mem, pins in planner.pins.items()}
        self.spaces[Mem.DRAM] = Space(planner.dram_pins, depth(planner.device, Mem.DRAM))
        self.homes: dict[str, dict[Mem, Buffer]] = {}
        self.sizes: dict[tuple[str, Mem], tuple[int, int]] = {}
        self.placed: list[Placed] = []
        self.inherited: set[tuple[str, Mem]] = set()  # places that went to another tensor

    def add(self, index: int, run: Run) -> None:
        planner = self.planner
        inside = range(run.first, run.last)
        output = planner.tasks[run.last - 1].layer.output
        fed = dict.fromkeys(
            name
            for i in inside
            for name in planner._names(i)
            if planner.tensors[name].made < 0 and name not in self.homes
        )
        for name in fed:
            self.settle(index, name, {})
        self.settle(index, output, self.dying(run))
        rows, local, taken = self.stripes(index, run)
        room: dict[Mem, tuple[int, int]] = {mem: space.longest for mem, space in self.spaces.items() if mem != Mem.DRAM}
        self.check_room(index, run, room, local)
        layer = planner.tasks[run.last - 1].layer
        by_image = rows < layer.out_shape[1] or bool(local)
        packed = {name: self.halo(name) for name in fed if self.flat(name)}
        self.placed.append(
            Placed(run, rows, by_image, tuple(fed), {n: at for n, at in self.homes.items() if at}, local, room, packed)
        )
        for mem, low, size in taken:
            self.spaces[mem].give(low, size)
        for name, mem in [(name, mem) for name, places in self.homes.items() for mem in places]:
            if self.last_use(name, mem) < run.last:
                if (name, mem) not in self.inherited:
                    self.spaces[mem].give(*self.sizes[name, mem])
                self.homes[name] = {other: at for other, at in self.homes[name].items() if other != mem}

    def last_use(self, name: str, mem: Mem) -> int:
        """The last layer that reads the place of a tensor in `mem`; −1 if none does."""
        tensor = self.planner.tensors[name]
        if mem.is_addsub:
            return max(i for i, where in tensor.operands if where == mem)
        brought = [i for i, where in tensor.operands if (name, where) not in self.sizes]
        return max([*tensor.heads, *brought], default=-1)

    def dying(self, run: Run) -> dict[Mem, str]:
        """Operands that only this run's one layer reads, of its output's shape: the output may overwrite them."""
        task = self.planner.tasks[run.last - 1]
        if run.last - run.first > 1:
            return {}
        return {
            step.mem: step.tensor
            for step in task.steps()
            if step.tensor is not None
            and step.mem is not None
            and step.mem in self.homes.get(step.tensor, {})
            and self.last_use(step.tensor, step.mem) == run.first
        }

    def settle(self, index: int, name: str, dying: Mapping[Mem, str]) -> None:
        """Gives a whole tensor its places; in those of `dying` tensors of the same shape if there is no other room."""
        planner, tensor = self.planner, self.planner.tensors[name]
        native = planner.device.native_dim
        n, height, width, channels = tensor.shape
        vectors = planner.of(channels)
        places: dict[Mem, Buffer] = {}
        pixel, row = vectors * native, width * vectors * native
        if name in self.spilled:
            base = self.take(name, Mem.DRAM, n * height * width * vectors)
            assert base is not None, "DRAM has room for every tensor"
            places[Mem.DRAM] = Buffer(Mem.DRAM, base * native, pixel, row, height * row)
        else:
            whole = bool(tensor.heads) or tensor.is_output
            for mem in dict.fromkeys(mem for _, mem in tensor.operands):
                base = self.take(name, mem, n * height * width * vectors) if mem.is_addsub else None
                if base is not None:
                    places[mem] = Buffer(mem, base * native, pixel, row, height * row)
                elif mem in dying:
                    places[mem] = self.homes[dying[mem]][mem]
                    self.sizes[name, mem] = self.sizes[dying[mem], mem]
                    self.inherited.add((dying[mem], mem))
                else:
                    whole = True
            if whole:
                top, left, bottom, right = halo = self.halo(name)
                if self.flat(name):
                    pixel = channels
                    row = (width + left + right) * channels
                    plane = -(-(height + top + bottom) * row // native) * native
                else:
                    row = (width + left + right) * pixel
                    plane = (height + top + bottom) * row
                base = self.take(name, Mem.INITIAL_VRF, n * plane // native)
                if base is None:
                    raise Full(
                        index, f"tensor {name!r} with a halo of {halo}", n * plane // native, [*self.lying(), name]
                    )
                places[Mem.INITIAL_VRF] = Buffer(
                    Mem.INITIAL_VRF, base * native, pixel, row, plane, top=-top, left=-left
                )
        self.homes[name] = places

    def flat(self, name: str) -> bool:
        """Whether a tensor lies without gaps between its pixels: one that is fed and whose windows are unrolled."""
        tensor = self.planner.tensors[name]
        return (
            tensor.made < 0
            and name not in self.spilled
            and not tensor.operands
            and all(self.planner.tasks[i].layer.packing == "window" for i in tensor.heads)
        )

    def halo(self, name: str, inside: range | None = None) -> Halo:
        """The widest halo that a reader (of those `inside`) needs."""
        halos = [
            readers_halo(self.planner.tasks[i])
            for i in self.planner.tensors[name].heads
            if inside is None or i in inside
        ]
        top, left, bottom, right = (max(sides) for sides in zip((0, 0, 0, 0), *halos, strict=True))
        return top, left, bottom, right

    def take(self, name: str, mem: Mem, vectors: int) -> int | None:
        """The address of `vectors` for a whole tensor. In AddSubVrf, a quarter stays free for sums and operands."""
        space, device = self.spaces[mem], self.planner.device
        base = space.take(vectors)
        if base is not None and mem.is_addsub and space.longest[1] < (depth(device, mem) - self.planner.pins[mem]) // 4:
            space.give(base, vectors)
            return None
        if base is not None:
            self.sizes[name, mem] = base, vectors
        return base

    def lying(self) -> list[str]:
        return [name for name, places in self.homes.items() if Mem.INITIAL_VRF in places]

    def stripes(self, index: int, run: Run) -> tuple[int, dict[tuple[str, Mem], Buffer], list[tuple[Mem, int, int]]]:
        """The most rows at a time whose local tensors fit, these, and the memory taken for them."""
        planner = self.planner
        height = planner.tasks[run.last - 1].layer.out_shape[1]
        tried = 0
        for count in range(1, height + 1):
            rows = -(-height // count)
            if rows == tried:
                continue
            tried = rows
            found = self.local(run, rows)
            if found is not None:
                return rows, *found
        raise Full(index, "one row of its output", self.needed(run), self.lying())

    def needed(self, run: Run) -> int:
        """Vectors of InitialVrf that one row at a time takes."""
        return sum(
            rows * self.local_shape(name, run)[0] // self.planner.device.native_dim
            for name, (rows, _) in self.local_rows(run, 1).items()
        )

    def local_rows(self, run: Run, rows: int) -> dict[str, tuple[int, bool]]:
        """How many rows of each local tensor a stripe holds at most, and whether the next one needs some of them."""
        found: dict[str, tuple[int, bool]] = {}
        for stripe in stripes_of(self.planner.tasks, run, rows):
            for name, (low, high) in stripe.held.items():
                if self.is_local(name, run):
                    most, stays = found.get(name, (0, False))
                    found[name] = max(most, high - low), stays or stripe.fresh.get(name, (high, high))[0] > low
        return found

    def is_local(self, name: str, run: Run) -> bool:
        """Whether the run keeps rows of a tensor: one that it makes and reads, or brings from DRAM for windows."""
        tensor = self.planner.tensors[name]
        if run.first <= tensor.made < run.last - 1:
            return True
        return Mem.DRAM in self.homes.get(name, {}) and any(
            i in range(run.first, run.last) and self.planner.tasks[i].layer.head in WINDOWED for i in tensor.heads
        )

    def local_shape(self, name: str, run: Run) -> tuple[int, int, int]:
        """Elements of a row with its halo, of a pixel, and the halo at the left."""
        _, left, _, right = self.halo(name, range(run.first, run.last))
        _, _, width, channels = self.planner.tensors[name].shape
        pixel = self.planner.of(channels) * self.planner.device.native_dim
        return (width + left + right) * pixel, pixel, left

    def local(self, run: Run, rows: int) -> tuple[dict[tuple[str, Mem], Buffer], list[tuple[Mem, int, int]]] | None:
        """The buffers of the run's local tensors for stripes of `rows`; None where they do not fit."""
        native, inside = self.planner.device.native_dim, range(run.first, run.last)
        taken: list[tuple[Mem, int, int]] = []
        buffers: dict[tuple[str, Mem], Buffer] = {}

        def take(name: str, mem: Mem, size: int) -> int | None:
            base = self.take(name, mem, size)
            if base is not None:
                taken.append((mem, base, size))
            return base

        for name, (count, stays) in self.local_rows(run, rows).items():
            tensor = self.planner.tensors[name]
            row, pixel, left = self.local_shape(name, run)
            whole = any(i in inside for i in tensor.heads)
            for mem in dict.fromkeys(mem for i, mem in tensor.operands if i in inside):
                plain = tensor.shape[2] * pixel
                base = take(name, mem, count * plain // native) if mem.is_addsub and not stays else None
                if base is None:
                    whole = True
                else:
                    buffers[name, mem] = Buffer(mem, base * native, pixel, plain)
            if whole:
                base = take(name, Mem.INITIAL_VRF, count * row // native)
                if base is None:
                    for mem, low, size in taken:
                        self.spaces[mem].give(low, size)
                    return None
                buffers[name, Mem.INITIAL_VRF] = Buffer(Mem.INITIAL_VRF, base * native, pixel, row, left=-left)
        return buffers, taken

    def check_room(
        self,
        index: int,
        run: Run,
        room: Mapping[Mem, tuple[int, int]],
        local: Mapping[tuple[str, Mem], Buffer],
    ) -> None:
        """Raises Full where InitialVrf has no room for results between two passes."""
        for i in range(run.first, run.last):
            task = self.planner.tasks[i]
            output = task.layer.output
            if not (task.raw or len(task.passes) > 1):
                continue
            if Mem.INITIAL_VRF in self.homes.get(output, {}) or (output, Mem.INITIAL_VRF) in local:
                continue
            vectors = self.planner.of(task.layer.out_shape[3])
            if room[Mem.INITIAL_VRF][1] < vectors:
                raise Full(index, "one pixel between two passes", vectors, self.lying())


def pinned_vectors(device: Device, constants: Constants, tasks: Sequence[Task]) -> dict[Mem, tuple[int, bool]]:
    """How many vectors at the low end of each MFU's memories are for constants, and whether these stay there.

    All stay where they fit; half of a memory is left for sums and operands if there are any. Else they come from DRAM
    before use, and the vectors are those of a cache.
    """
    found = {}
    temporary = {mem for task in tasks for mem in task.temporaries()}
    for mfu in range(device.mfus):
        for mem in (addsub_vrf(mfu), multiply_vrf(mfu)):
            room = depth(device, mem)
            if mem in temporary:
                room -= room // 2
            count = len(constants.vectors[mem]) if mem in constants.vectors else 0
            found[mem] = (count, True) if count <= room else (room, False)
    return found
