"""The chains of each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np

from fpgasim.compiler.matrices import Band, source_of
from fpgasim.compiler.memory import At, Buffer, Piece, compact
from fpgasim.compiler.placing import Placed
from fpgasim.compiler.store import Store
from fpgasim.compiler.streaming import Resident, Stream
from fpgasim.compiler.striping import Rows, Stripe
from fpgasim.compiler.tasks import TAPPED, Step, Task, Tensor, inside, lowest, readers_halo
from fpgasim.compiler.writing import Do, Product, Source, Writer
from fpgasim.errors import CompileError
from fpgasim.npu.isa import Mem, addsub_vrf
from fpgasim.npu.mapping import best_mapping
from fpgasim.npu.segment import Segment

Key = TypeVar("Key")
Value = TypeVar("Value")
#: What a chain does with a piece behind its head, and where it writes it.
Ops = Callable[[Piece], list[Do]]
Targets = Callable[[Piece], list[At]]


@dataclass(frozen=True, eq=False)
class Item:
    """The part of a layer that is written at a time: a stripe of some `images`, and a `portion` of its tile rows."""

    placed: Placed
    task: int
    images: range
    stripe: Stripe
    portion: range

    @property
    def rows(self) -> Rows:
        """The output rows that are made."""
        return self.stripe.made[self.task]


class Chains:
    """Writes chains."""

    def __init__(
        self,
        segment: Segment,
        tasks: Sequence[Task],
        tensors: dict[str, Tensor],
        writer: Writer,
        store: Store,
        weights: Resident | Stream,
        firsts: Sequence[int],
    ) -> None:
        self.segment, self.tasks, self.tensors = segment, tasks, tensors
        self.writer, self.store, self.weights, self.firsts = writer, store, weights, firsts
        self.native = segment.device.native_dim

    # -- a run's borders --------------------------------------------------------------------------------------------

    def enter(self, name: str, placed: Placed) -> None:
        """Input `name` from the network queue to its places."""
        places, queue = placed.homes[name], At(Mem.NET_QUEUE)
        n, height, width, channels = self.tensors[name].shape
        if name in placed.packed:
            buffer = places[Mem.INITIAL_VRF]
            vectors = n * buffer.plane // self.native
            self.writer.chain(Source(queue, 1), [At(Mem.INITIAL_VRF, buffer.base, self.native)], vectors)
        else:
            self.frame_home(name, placed)
            for image in range(n):
                targets = [place.at(image, 0, 0) for place in places.values()]
                self.writer.chain(Source(queue, self.vectors(channels)), targets, width, height)
        self.writer.end_block(name)

    def begin(self, placed: Placed) -> None:
        """Zeros around what the run makes."""
        self.frame_home(self.tasks[placed.run.last - 1].layer.output, placed)

    def frame_home(self, name: str, placed: Placed) -> None:
        n, height, width, _ = self.tensors[name].shape
        buffer = placed.homes[name].get(Mem.INITIAL_VRF)
        if buffer is not None:
            halos = [readers_halo(self.tasks[i]) for i in self.tensors[name].heads]
            for image in range(n):
                rows = (buffer.top, height + max((halo[2] for halo in halos), default=0))
                self.frame(buffer, image, rows, max((halo[3] for halo in halos), default=0), (height, width))

    def frame(self, buffer: Buffer, image: int, rows: Rows, right: int, size: tuple[int, int]) -> None:
        """Writes zeros to those of `rows`, and of the columns that `buffer` has, that lie outside of the image."""
        height, width = size
        low, high = max(rows[0], 0), min(rows[1], height)
        per_row, per_pixel = buffer.row // self.native, buffer.pixel // self.native
        zero = Source(self.store.special(0.0), 1)

        def fill(y: int, x: int, vectors: int, count: int) -> None:
            at = At(buffer.mem, buffer.address(image, y, x), self.native, buffer.row)
            self.writer.chain(zero, [at], vectors, count)

        fill(rows[0], buffer.left, per_row, min(rows[1], 0) - rows[0] if rows[0] < 0 else 0)
        fill(max(rows[0], height), buffer.left, per_row, rows[1] - max(rows[0], height) if rows[1] > height else 0)
        if low < high:
            fill(low, buffer.left, -buffer.left * per_pixel, high - low)
            fill(low, width, right * per_pixel, high - low)

    def stripe(self, item: Item, before: Item | None) -> None:
        """Before a stripe: of its local tensors, the rows that stay, zeros around, and what DRAM has of them."""
        placed, held, fresh = item.placed, item.stripe.held, item.stripe.fresh
        image = item.images.start
        for name, mem in placed.local:
            if mem != Mem.INITIAL_VRF or name not in held:
                continue
            _, height, width, channels = self.tensors[name].shape
            buffer = self.buffer(item, name, mem)
            if before is not None and before.images == item.images and name in before.stripe.held:
                (low, _), (first, last) = held[name], before.stripe.held[name]
                by = low - first
                for row in range(low, last, by) if by else ():  # so many at a time that none is read and written
                    source = At(mem, buffer.base + (row - first) * buffer.row, self.native, buffer.row)
                    target = source._replace(address=source.address - by * buffer.row)
                    rows = min(by, last - row)
                    self.writer.chain(Source(source, 1), [target], buffer.row // self.native, rows)
            if name not in fresh:
                continue
            inner = range(placed.run.first, placed.run.last)
            right = max((readers_halo(self.tasks[i])[3] for i in self.tensors[name].heads if i in inner), default=0)
            self.frame(buffer, image, fresh[name], right, (height, width))
            home = placed.homes.get(name, {}).get(Mem.DRAM)
            if home is not None:
                low, high = max(fresh[name][0], 0), min(fresh[name][1], height)
                source_rows = Source(home.at(image, low, 0), self.vectors(channels))
                self.writer.chain(source_rows, [buffer.at(image, low, 0)], width, max(high - low, 0))

    def leave(self, name: str, placed: Placed) -> None:
        """Output `name` to the network queue, if the last chains of its layer have not written it there."""
        task = self.tasks[placed.run.last - 1]
        if not self.is_direct(placed, task):
            n, height, width, channels = self.tensors[name].shape
            places = placed.homes[name]
            buffer = places.get(Mem.INITIAL_VRF) or places[Mem.DRAM]
            for image in range(n):
                source = Source(buffer.at(image, 0, 0), self.vectors(channels))
                self.writer.chain(source, [At(Mem.NET_QUEUE)], width, height)
            self.writer.end_block(name)

    # -- a layer ----------------------------------------------------------------------------------------------------

    def item(self, item: Item) -> None:
        task = self.tasks[item.task]
        base = 0
        if task.matrix is not None:
            base = self.weights.begin(self.firsts[item.task] + task.matrix.tiles_before(item.portion.start))
        for piece in self.pieces(item, task):
            if task.raw:
                self.raw_head(item, task, piece, base)
                self.passes(item, task, piece, range(1, len(task.passes)))
            else:
                self.passes(item, task, piece, range(len(task.passes)), base)
        if task.matrix is not None:
            self.weights.end()
        self.writer.end_block(task.layer.name, self.macs(item, task))

    def macs(self, item: Item, task: Task) -> int:
        """The useful multiply-accumulates of an item."""
        layer = task.layer
        n, height, width, outputs = layer.out_shape
        each = layer.macs // (n * height * width * outputs)
        positions = len(item.images) * (item.rows[1] - item.rows[0]) * width
        if task.matrix is not None and not task.matrix.by_group:
            outputs = min(item.portion.stop * self.native, outputs) - item.portion.start * self.native
        return each * positions * outputs

    def vectors(self, channels: int) -> int:
        return -(-channels // self.native)

    def is_across(self, placed: Placed, task: Task) -> bool:
        """Whether the images, of one pixel each, are done as one row."""
        layer, window = task.layer, task.window
        one = layer.in_shape[1:3] == layer.out_shape[1:3] == (1, 1) and layer.head in (
            "conv",
            "matmul",
            "pointwise",
            "concat",
        )
        return one and not placed.by_image and window.kernel == (1, 1) and not any(window.pads)

    def buffer(self, item: Item, name: str, mem: Mem) -> Buffer:
        """Where `name` lies in `mem` for `item`. KeyError where it does not."""
        placed, task = item.placed, self.tasks[item.task]
        found = placed.local.get((name, mem))
        if found is not None:
            return Buffer(
                mem, found.base, found.pixel, found.row, 0, item.images.start, item.stripe.held[name][0], found.left
            )
        found = placed.homes[name][mem]
        return found.across() if self.is_across(placed, task) else found

    def lies(self, item: Item, name: str, mem: Mem) -> bool:
        return (name, mem) in item.placed.local or mem in item.placed.homes.get(name, {})

    def read(self, item: Item, name: str) -> Buffer:
        """Where the chains of `item` read tensor `name`."""
        return self.buffer(item, name, Mem.INITIAL_VRF if self.lies(item, name, Mem.INITIAL_VRF) else Mem.DRAM)

    def places(self, item: Item, task: Task, piece: Piece) -> list[At]:
        """Everywhere the output goes."""
        name, placed = task.layer.output, item.placed
        direct = self.is_direct(placed, task) and item.task == placed.run.last - 1
        found = []
        for mem in Mem:
            gone = mem == Mem.NET_QUEUE or (direct and mem == Mem.INITIAL_VRF and not self.tensors[name].used)
            if not gone and self.lies(item, name, mem):
                found.append(self.buffer(item, name, mem).of(piece, self.native))
        return [*found, At(Mem.NET_QUEUE)] if direct else found

    def is_direct(self, placed: Placed, task: Task) -> bool:
        """Whether the last chains of an output write it in the order in which it leaves."""
        layer = task.layer
        if not self.tensors[layer.output].is_output or layer.head == "upsample":
            return False
        if task.matrix is not None and not task.matrix.by_group and len(task.matrix.bands) > 1:
            return False
        streamed = task.matrix is not None and isinstance(self.weights, Stream)
        if streamed and task.matrix is not None and sum(task.matrix.rows) > self.segment.device.mrf_tiles // 2:
            return False
        if layer.head in TAPPED and any(task.window.pads):
            return False
        return self.vectors_at_once(placed, task) >= self.vectors(layer.out_shape[3])

    # -- pieces -----------------------------------------------------------------------------------------------------

    def operand_is_there(self, placed: Placed, step: Step) -> bool:
        assert step.tensor is not None
        assert step.mem is not None
        return (step.tensor, step.mem) in placed.local or step.mem in placed.homes.get(step.tensor, {})

    def brought(self, placed: Placed, task: Task) -> list[Mem]:
        """Memories in which sums are kept or operands brought for each piece."""
        sums = [addsub_vrf(0)] if task.layer.head in TAPPED else []
        return sums + [
            step.mem
            for step in task.steps()
            if step.tensor is not None and step.mem is not None and not self.operand_is_there(placed, step)
        ]

    def vectors_at_once(self, placed: Placed, task: Task) -> int:
        """How many vectors of a pixel a chain can have, by the room of the memories of its constants and operands."""
        limits = [self.vectors(task.layer.out_shape[3])]
        limits += [placed.room[mem][1] for mem in self.brought(placed, task)]
        constants = [step.constant for step in task.steps()] + [*task.taps, *task.counts.values()]
        for constant in constants:
            limit = None if constant is None else self.store.limit(constant.mem)
            if limit is not None:
                limits.append(limit)
        return min(limits)

    def scratch(self, item: Item, task: Task) -> bool:
        """Whether results between two passes lie in free room of InitialVrf."""
        between = task.raw or len(task.passes) > 1
        return between and not self.lies(item, task.layer.output, Mem.INITIAL_VRF)

    def pieces(self, item: Item, task: Task) -> Iterator[Piece]:
        """The item in parts that the memories have room for: by image, rows or columns, then vectors."""
        layer, room = task.layer, item.placed.room
        whole = self.vectors(layer.out_shape[3])
        first, last = (
            (0, whole) if task.matrix is None or task.matrix.by_group else (item.portion.start, item.portion.stop)
        )
        most = self.vectors_at_once(item.placed, task)
        if most < 1:
            raise CompileError(
                f"layer {layer.name!r}: a register file has no room for one vector of an operand; "
                f"{', '.join(f'{mem.name.lower()} has {left}' for mem, (_, left) in room.items())} left"
            )
        parts = -(-(last - first) // most)
        each = -(-(last - first) // parts)
        multiple = layer.out_shape[3] // layer.in_shape[3]
        if layer.head == "depthwise" and parts > 1 and self.native % multiple:
            raise CompileError(
                f"layer {layer.name!r}: {multiple} filters a channel do not divide vectors of {self.native}, and "
                f"{whole} vectors of constants or sums do not fit at once"
            )
        wide = whole if task.raw else each
        positions = min([room[mem][1] // each for mem in self.brought(item.placed, task)], default=1 << 62)
        if self.scratch(item, task):
            positions = min(positions, room[Mem.INITIAL_VRF][1] // wide)
        width = layer.out_shape[2]
        rows, images = item.rows, item.images
        if self.is_across(item.placed, task):
            width, images, rows = len(item.images), range(1), (0, 1)
        high, broad = max(1, positions // width), min(positions, width)
        for image in images:
            for top in range(rows[0], rows[1], high):
                for left in range(0, width, broad):
                    piece = Piece(image, top, min(top + high, rows[1]), left, min(left + broad, width), first, last)
                    if task.raw:
                        yield piece
                    else:
                        for start in range(first, last, each):
                            yield piece._replace(first=start, last=min(start + each, last))

    # -- passes -----------------------------------------------------------------------------------------------------

    def passes(self, item: Item, task: Task, piece: Piece, numbers: range, base: int = 0) -> None:
        """The passes `numbers` of a piece: 0 is the head's, those behind it read what the one before has left."""
        between = self.between(item, task, piece)
        several = [piece]
        if task.raw:
            each = self.vectors_at_once(item.placed, task)
            several = [
                piece._replace(first=start, last=min(start + each, piece.last))
                for start in range(piece.first, piece.last, each)
            ]
            if len(numbers) == 0 and self.places(item, task, piece) != [between.of(piece, self.native)]:
                for part in several:  # the head has written to one place, and there are others
                    others = [at for at in self.places(item, task, part) if at != between.of(part, self.native)]
                    source = Source(between.of(part, self.native), part.vectors)
                    self.writer.chain(source, others, part.width, part.height)
        for part in several:
            for number in numbers:
                steps = task.passes[number]
                operands = self.bring(item, steps, part)

                def ops(sub: Piece, steps: Sequence[Step] = steps, operands: dict[int, Buffer] = operands) -> list[Do]:
                    return [self.do(item, step, sub, operands.get(i)) for i, step in enumerate(steps)]

                def targets(sub: Piece, last: bool = number == len(task.passes) - 1) -> list[At]:
                    return self.places(item, task, sub) if last else [between.of(sub, self.native)]

                if number == 0:
                    self.head(item, task, part, ops, targets, base)
                else:
                    source = Source(between.of(part, self.native), part.vectors)
                    self.writer.chain(source, targets(part), part.width, part.height, ops(part))

    def between(self, item: Item, task: Task, piece: Piece) -> Buffer:
        """Where the results of a piece lie between two passes."""
        if self.scratch(item, task):
            return compact(Mem.INITIAL_VRF, item.placed.room[Mem.INITIAL_VRF][0], piece, self.native)
        name = task.layer.output
        if self.lies(item, name, Mem.INITIAL_VRF):
            return self.buffer(item, name, Mem.INITIAL_VRF)
        return compact(Mem.INITIAL_VRF, 0, piece, self.native)  # one pass: not used

    def bring(self, item: Item, steps: Sequence[Step], piece: Piece) -> dict[int, Buffer]:
        """Brings the operands of `steps` that are not in their memories there; where they are then, by step."""
        found = {}
        for i, step in enumerate(steps):
            if step.tensor is not None and step.mem is not None and not self.operand_is_there(item.placed, step):
                buffer = compact(step.mem, item.placed.room[step.mem][0], piece, self.native)
                source = Source(self.read(item, step.tensor).of(piece, self.native), piece.vectors)
                self.writer.chain(source, [buffer.of(piece, self.native)], piece.width, piece.height)
                found[i] = buffer
        return found

    def do(self, item: Item, step: Step, piece: Piece, brought: Buffer | None) -> Do:
        stage, at = step.stage, None
        if step.constant is not None:
            at = self.store.at(self.writer, step.constant, piece.first, piece.last)
        elif step.tensor is not None and step.mem is not None:
            at = (brought or self.buffer(item, step.tensor, step.mem)).of(piece, self.native)
        return Do(stage.kind, at, stage.swapped, stage.low, stage.high)

    # -- heads ------------------------------------------------------------------------------------------------------

    def head(self, item: Item, task: Task, piece: Piece, ops: Ops, targets: Targets, base: int) -> None:
        layer = task.layer
        if task.matrix is not None:
            self.products(item, task, piece, ops, targets, base)
        elif layer.head in TAPPED:
            self.taps(item, task, piece, ops, targets)
        elif layer.head == "upsample":
            self.upsample(item, task, piece, ops, targets)
        else:
            source = Source(self.read(item, task.head_input).of(piece, self.native), piece.vectors)
            self.writer.chain(source, targets(piece), piece.width, piece.height, ops(piece))

    def products(self, item: Item, task: Task, piece: Piece, ops: Ops, targets: Targets, base: int) -> None:
        image = self.read(item, task.head_input)
        for band in task.matrix.bands if task.matrix else ():
            part = piece._replace(first=max(piece.first, band.rows.start), last=min(piece.last, band.rows.stop))
            if part.first < part.last:
                source = source_of(task.window, task.layer.packing, band, image, part, self.native)
                product = self.product(item, task, range(part.first, part.last), base)
                operations = ops(part)
                self.writer.chain(source, targets(part), part.width, part.height, operations, product)

    def product(self, item: Item, task: Task, rows: range, base: int) -> Product:
        """`rows` of tiles; `base` is the address of the first tile of the item's portion."""
        matrix = task.matrix
        assert matrix is not None
        tile = base + matrix.tiles_before(rows.start) - matrix.tiles_before(item.portion.start)
        positions = len(item.images) * (item.rows[1] - item.rows[0]) * task.layer.out_shape[2]
        tiles = [matrix.rows[i] for i in (rows if matrix.by_group else item.portion)]
        mapping, _ = best_mapping(matrix.lowering, tiles, positions, self.segment.device.tiles, matrix.together)
        return Product(tile, len(rows), mapping.pixels)

    def taps(self, item: Item, task: Task, piece: Piece, ops: Ops, targets: Targets) -> None:
        """One chain a tap, over the positions whose tap lies inside the image; the last one carries the stages.

        What is outside adds nothing, not even to the sign of a zero: such positions begin with −0, +0 or the lowest
        number, and where the last tap is outside, the stages follow in chains of their own.
        """
        layer, window, native = task.layer, task.window, self.native
        kind = layer.head
        x = self.read(item, task.head_input)
        acc = compact(addsub_vrf(0), item.placed.room[addsub_vrf(0)][0], piece, native)
        neutral = lowest(self.segment.numbers.pointwise) if kind == "max_pool" else -0.0
        rows, columns = (
            [inside(outputs, s, k * d - p, size) for k in range(count)]
            for outputs, s, d, p, size, count in zip(
                layer.out_shape[1:3],
                window.stride,
                window.dilation,
                window.pads,
                layer.in_shape[1:3],
                window.kernel,
                strict=False,
            )
        )

        def seen(ranges: list[range], i: int) -> int:
            return sum(i in found for found in ranges)

        def sum_of(number: int, part: Piece) -> tuple[Source, list[Do]]:
            """The chain of tap `number` up to the sum."""
            kh, kw = divmod(number, window.kernel[1])
            y, left = (
                start * s + k * d - p
                for start, s, k, d, p in zip(
                    (part.top, part.left), window.stride, (kh, kw), window.dilation, window.pads, strict=False
                )
            )
            before = acc.of(part, native)
            if kind == "depthwise":
                source = self.channels(x, layer.out_shape[3], layer.in_shape[3], part, (y, left), window.stride)
                weight = self.store.at(self.writer, task.taps[number], part.first, part.last)
                return source, [Do("mul", weight), *([Do("add", before)] if number else [])]
            source = Source(x.at(part.image, y, left, window.stride, part.first * native), part.vectors)
            start = self.store.at(self.writer, task.taps[0], part.first, part.last)
            return source, [Do("max" if kind == "max_pool" else "add", before if number else start)]

        for part, start in _regions(
            piece,
            lambda y: (y in rows[0], seen(rows, y) > 0),
            lambda i: (i in columns[0], seen(columns, i) > 0),
            # Regions are compared by the address of the fill: the two zeros are equal as numbers.
            lambda a, b: (
                None
                if a[0] and b[0]
                else self.store.special(
                    neutral if kind == "max_pool" or (kind == "depthwise" and a[1] and b[1]) else 0.0
                )
            ),
        ):
            at = acc.of(part, native)._replace(step_x=native)
            self.writer.chain(Source(start, 1), [at], part.width * part.vectors, part.height)
        last = math.prod(window.kernel) - 1
        for number in range(last):
            part = piece.within(rows[number // window.kernel[1]], columns[number % window.kernel[1]])
            source, operations = sum_of(number, part)
            self.writer.chain(source, [acc.of(part, native)], part.width, part.height, operations)
        averages = kind == "average_pool" and not layer.count_padding
        for part, (ends, count) in _regions(
            piece,
            lambda y: (y in rows[-1], seen(rows, y) if averages else 1),
            lambda i: (i in columns[-1], seen(columns, i) if averages else 1),
            lambda a, b: (a[0] and b[0], a[1] * b[1]),
        ):
            if ends:
                source, operations = sum_of(last, part)
            else:
                source = Source(self.store.special(neutral), 1, part.vectors)
                operations = [Do("max" if kind == "max_pool" else "add", acc.of(part, native))]
            if kind == "average_pool":
                factor = task.counts[count if averages else last + 1]
                operations.append(Do("mul", self.store.at(self.writer, factor, part.first, part.last)))
            operations += ops(part)
            self.writer.chain(source, targets(part), part.width, part.height, operations)

    def channels(
        self, x: Buffer, outputs: int, inputs: int, piece: Piece, corner: tuple[int, int], stride: tuple[int, int]
    ) -> Source:
        """The channel that each output of a depthwise convolution reads."""
        multiple, first = outputs // inputs, piece.first * self.native
        at = x.at(piece.image, *corner, stride, first // multiple)
        if multiple == 1:
            return Source(at, piece.vectors)
        count = min(piece.last * self.native, outputs) - first
        return Source(at, multiple, count // multiple, 1, 1, 0, 0, gather=True)

    def upsample(self, item: Item, task: Task, piece: Piece, ops: Ops, targets: Targets) -> None:
        """Every pixel to several addresses: in one chain where nothing but the address differs."""
        down, right = task.layer.repeat
        x, alike = self.read(item, task.head_input), not any(step.tensor for step in task.steps())
        parts = []
        for dy in range(down):
            for dx in range(right):
                top = piece.top + (dy - piece.top) % down
                left = piece.left + (dx - piece.left) % right
                parts.append(piece._replace(top=top, left=left, down=down, along=right))

        def pixels(part: Piece) -> tuple[int, int, int, int]:
            return part.top // down, part.left // right, part.width, part.height

        for (y, left, width, height), group in groupby(sorted(parts, key=pixels), key=pixels):
            found = list(group)
            for several in [found] if alike else [[part] for part in found]:
                source = Source(x.at(piece.image, y, left, element=piece.first * self.native), piece.vectors)
                writes = [at for part in several for at in targets(part)]
                operations = ops(several[0])
                self.writer.chain(source, writes, width, height, operations)

    def raw_head(self, item: Item, task: Task, piece: Piece, base: int) -> None:
        """A head that moves elements, to where its result lies before any stage."""
        layer, native = task.layer, self.native
        result = self.between(item, task, piece)
        at = result.of(piece, native)
        whole = self.vectors(layer.out_shape[3])
        if layer.head == "reshape":
            x, (_, height, width, channels) = self.read(item, task.head_input), layer.in_shape
            source = Source(x.at(piece.image, 0, 0), width, height, channels, x.row, 1, x.pixel, gather=True)
            self.writer.chain(source, [at])
            return
        offsets = np.cumsum([0, *layer.input_channels]).tolist() if layer.head == "concat" else []
        ends = [
            start + self.vectors(c) * native
            for start, c in zip(offsets, layer.input_channels, strict=False)
            if not start % native
        ]
        if layer.out_shape[3] % native and max(ends, default=0) < whole * native:
            last = at._replace(address=at.address + (whole - 1) * native)
            self.writer.chain(Source(self.store.special(0.0), 1), [last], piece.width, piece.height)
        if layer.head == "concat":
            for name, start, channels in zip(layer.inputs, offsets, layer.input_channels, strict=False):
                source = Source(self.read(item, name).of(piece, native), self.vectors(channels))
                target = at._replace(address=at.address + start)
                packed = channels if start % native else None
                self.writer.chain(source, [target], piece.width, piece.height, width=packed)
            return
        assert task.matrix is not None
        image = self.read(item, task.head_input)
        for band in task.matrix.bands:
            self.group(item, task, piece, band, image, at, base)

    def group(self, item: Item, task: Task, piece: Piece, band: Band, image: Buffer, at: At, base: int) -> None:
        """The outputs of one group, packed behind those of the group before."""
        source = source_of(task.window, task.layer.packing, band, image, piece._replace(first=0), self.native)
        target = at._replace(address=at.address + band.output)
        product = self.product(item, task, band.rows, base)
        self.writer.chain(
            source, [target], piece.width, piece.height, product=product, width=band.outputs - band.output
        )


def _regions(
    piece: Piece,
    row_key: Callable[[int], Key],
    column_key: Callable[[int], Key],
    value: Callable[[Key, Key], Value | None],
) -> Iterator[tuple[Piece, Value]]:
    """The piece in rectangles whose positions have one `value`, those without one left out."""
    for a, ys in groupby(range(piece.top, piece.bottom), key=row_key):
        rows = list(ys)
        for found, xs in groupby(range(piece.left, piece.right), key=lambda i, a=a: value(a, column_key(i))):  # type: ignore[misc]
            columns = list(xs)
            if found is not None:
                yield piece._replace(top=rows[0], bottom=rows[-1] + 1, left=columns[0], right=columns[-1] + 1), found
