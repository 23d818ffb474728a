"""From a segment to instructions: `emit`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from fpgasim.compiler.chains import Chains, Item
from fpgasim.compiler.matrices import Matrix, joined
from fpgasim.compiler.placing import Placed, Planner, pinned_vectors
from fpgasim.compiler.store import Store
from fpgasim.compiler.streaming import Job, Resident, Stream
from fpgasim.compiler.striping import stripes_of
from fpgasim.compiler.tasks import Task, Tensor, lowest, make_tasks, tensors_of
from fpgasim.compiler.writing import Writer
from fpgasim.errors import CompileError, InputError
from fpgasim.npu.isa import Mem
from fpgasim.npu.programs import Port, Program
from fpgasim.npu.segment import Segment

Weights = Literal["auto", "pin", "stream"]


def emit(segment: Segment, *, weights: Weights = "auto", name: str = "segment") -> Program:
    """The instructions that compute `segment`: outputs have the bits of the fused path.

    `weights` "pin" keeps all tiles in MatrixRf and all constants in register files, and touches no DRAM; "stream" loads
    tiles from DRAM while those before them are in use; "auto" pins tiles where all fit. The inputs come through the
    network queue in the order of `Program.inputs`, and outputs leave in that of `Program.outputs`: packed images where
    every reader unrolls windows, else pixels in whole vectors. Raises CompileError naming the layer that does not
    fit, InputError for unknown `weights`.
    """
    if weights not in ("auto", "pin", "stream"):
        raise InputError(f"weights={weights!r}; auto, pin or stream would do")
    if segment.device.engine != "matvec":
        raise CompileError(f"device {segment.device.name!r} is a {segment.device.engine} array and has no instructions")
    tasks, constants = make_tasks(segment)
    tensors = tensors_of(segment, tasks)
    tiles = sum(sum(matrix.rows) for matrix in _matrices(tasks))
    capacity = segment.device.mrf_tiles
    pin = weights == "pin" or (weights == "auto" and tiles <= capacity)
    if pin and tiles > capacity:
        raise CompileError(
            f"weights='pin': {tiles} tiles do not fit, matrix_rf has room for {capacity}; 'stream' would do"
        )
    pinned = pinned_vectors(segment.device, constants, tasks)
    if weights == "pin" and not all(stay for _, stay in pinned.values()):
        mem = next(mem for mem, (_, stay) in pinned.items() if not stay)
        raise CompileError(
            f"weights='pin': {len(constants.vectors[mem])} vectors of constants do not fit into {mem.name.lower()}, "
            f"which has room for {pinned[mem][0]}; 'auto' would do"
        )
    cached = {mem: constants.vectors[mem] for mem, (_, stay) in pinned.items() if not stay}
    pins = {mem: count for mem, (count, _) in pinned.items()}
    specials = (0.0, -0.0, lowest(segment.numbers.pointwise))  # what halos hold and sums begin with
    if tasks and segment.device.initial_vrf < len(specials):
        raise CompileError(
            f"layer {tasks[0].layer.name!r}: its constants take {len(specials)} vectors, and initial_vrf has "
            f"{segment.device.initial_vrf}"
        )
    pins[Mem.INITIAL_VRF] = len(specials)
    planner = Planner(segment.device, tasks, tensors, pins, sum(map(len, cached.values())))
    placed = planner.decide()
    if weights == "pin" and any(Mem.DRAM in places for run in placed for places in run.homes.values()):
        spilled = next(n for run in placed for n, places in run.homes.items() if Mem.DRAM in places)
        raise CompileError(
            f"weights='pin': tensor {spilled!r} does not fit into initial_vrf; 'auto' would keep it in DRAM"
        )
    store = Store(segment.device.native_dim, constants, pinned, specials)
    return _Emission(segment, tasks, tensors, placed, store, pin, name).program()


@dataclass(eq=False)
class _Emission:
    segment: Segment
    tasks: Sequence[Task]
    tensors: dict[str, Tensor]
    placed: Sequence[Placed]
    store: Store
    pin: bool
    name: str

    def program(self) -> Program:
        segment, native = self.segment, self.segment.device.native_dim
        writer = Writer(native)
        matrices = _matrices(self.tasks)
        starts = dict(zip(map(id, matrices), np.cumsum([0, *(sum(m.rows) for m in matrices)]).tolist(), strict=False))
        firsts = [starts.get(id(task.matrix), 0) for task in self.tasks]
        items = [list(self.items(placed)) for placed in self.placed]
        jobs = [] if self.pin else [job for found in items for job in self.jobs(found, firsts)]
        weights = Stream(writer, jobs, segment.device.mrf_tiles) if jobs else Resident()
        chains = Chains(segment, self.tasks, self.tensors, writer, self.store, weights, firsts)
        inputs: list[Port] = []
        outputs: list[Port] = []
        for placed, found in zip(self.placed, items, strict=True):
            for entering in placed.entering:
                inputs.append(self.port(entering, placed))
                chains.enter(entering, placed)
            chains.begin(placed)
            before: Item | None = None
            for _, group in groupby(found, key=lambda item: (item.images.start, item.stripe.rows)):
                part = list(group)
                chains.stripe(part[0], before)
                for item in part:
                    chains.item(item)
                before = part[0]
            output = self.tasks[placed.run.last - 1].layer.output
            if self.tensors[output].is_output:
                outputs.append(Port(output, segment.shapes[output]))
                chains.leave(output, placed)
        where = Mem.MATRIX_RF if self.pin else Mem.DRAM
        tiles = {where: joined([matrix.tiles for matrix in matrices])} if matrices else {}
        return Program(
            self.name,
            segment.device,
            segment.numbers,
            tuple(writer.blocks),
            self.store.contents(),
            tiles,
            tuple(inputs),
            tuple(outputs),
        )

    def port(self, name: str, placed: Placed) -> Port:
        """How input `name` comes: an image whose pixels lie without gaps is packed, with its halo."""
        buffer, shape = placed.homes[name].get(Mem.INITIAL_VRF), self.segment.shapes[name]
        if buffer is None or name not in placed.packed:
            return Port(name, shape)
        return Port(name, shape, True, placed.packed[name])

    def items(self, placed: Placed) -> Iterator[Item]:
        """The work of a run in order: by image, stripe, layer and portion of its rows of tiles."""
        run = placed.run
        n = self.tasks[run.last - 1].layer.out_shape[0]
        images = [range(i, i + 1) for i in range(n)] if placed.by_image else [range(n)]
        stripes = stripes_of(self.tasks, run, placed.rows)
        for several in images:
            for stripe in stripes:
                for i in sorted(stripe.made):
                    for portion in self.portions(self.tasks[i]):
                        yield Item(placed, i, several, stripe, portion)

    def portions(self, task: Task) -> list[range]:
        """Rows of tiles that are worked on together: as many as half of MatrixRf holds, if they are streamed."""
        if task.matrix is None:
            return [range(1)]
        rows, capacity = task.matrix.rows, self.segment.device.mrf_tiles
        whole = [range(len(rows))]
        if self.pin or sum(rows) <= capacity // 2:
            return whole
        if task.matrix.by_group and sum(rows) <= capacity:
            return whole
        if task.matrix.by_group or max(rows) > capacity:
            order = self.segment.numbers.order
            what = (
                f"in order {order} the groups are done one by one and take {sum(rows)}"
                if task.matrix.by_group
                else f"one row of outputs takes {max(rows)}"
            )
            raise CompileError(f"layer {task.layer.name!r}: {what} tiles, and matrix_rf has room for {capacity}")
        found, start = [], 0
        while start < len(rows):
            stop = start + 1
            while stop < len(rows) and sum(rows[start : stop + 1]) <= capacity // 2:
                stop += 1
            found.append(range(start, stop))
            start = stop
        return found

    def jobs(self, items: Sequence[Item], firsts: Sequence[int]) -> list[Job]:
        """The loads of a run: one of all its tiles where they fit, else one for each item."""
        found: list[Job] = []
        products = [(item, matrix) for item in items if (matrix := self.tasks[item.task].matrix) is not None]
        if not products:
            return []
        spans = {firsts[item.task]: sum(matrix.rows) for item, matrix in products}
        first, tiles = min(spans), sum(spans.values())
        whole = all(item.portion == range(len(matrix.rows)) for item, matrix in products)
        together = max(start + count for start, count in spans.items()) == first + tiles
        if whole and together and tiles <= self.segment.device.mrf_tiles:
            return [Job(first, tiles, len(products))]
        for item, matrix in products:
            start = firsts[item.task] + matrix.tiles_before(item.portion.start)
            found.append(Job(start, sum(matrix.rows[i] for i in item.portion), 1))
        return found


def _matrices(tasks: Sequence[Task]) -> list[Matrix]:
    """The matrices of `tasks`, those that several share once."""
    return list({id(task.matrix): task.matrix for task in tasks if task.matrix is not None}.values())
