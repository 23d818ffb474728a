"""Runs of layers that go through an image in stripes of rows: which rows each layer makes when.

Every row of a tensor is made once: rows that the next stripe needs again stay in the stripe's buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fpgasim.compiler.tasks import TAPPED, Task

Rows = tuple[int, int]


@dataclass(frozen=True)
class Run:
    """Layers `first` … `last` − 1, done in stripes together."""

    first: int
    last: int


class Stripe(NamedTuple):
    """A stripe of a run: `rows` of its output, and those that each layer makes for them.

    `held` are the rows of each tensor that lie in its buffer then, halo included, `fresh` those among them that were
    not there in the stripe before.
    """

    rows: Rows
    made: Mapping[int, Rows]
    held: Mapping[str, Rows]
    fresh: Mapping[str, Rows]


def stripes_of(tasks: Sequence[Task], run: Run, rows: int) -> list[Stripe]:
    """The stripes of `run` in order, each of `rows` rows of its output, the last one of what is left."""
    height = tasks[run.last - 1].layer.out_shape[1]
    wanted = [(first, min(first + rows, height)) for first in range(0, height, rows)]
    have: dict[str, int] = {}  # the row up to which a tensor has been made
    made: list[dict[int, Rows]] = []
    needed: list[dict[str, Rows]] = []
    fresh: list[dict[str, Rows]] = []
    for stripe in wanted:
        made.append({})
        needed.append({})
        fresh.append({})
        for i in range(run.last - 1, run.first - 1, -1):
            task = tasks[i]
            name = task.layer.output
            low, high = stripe if i == run.last - 1 else _come(name, needed[-1], have, fresh[-1])
            low, high = max(low, 0), min(high, task.layer.out_shape[1])
            if low >= high:  # nothing new, or nothing but the halo
                continue
            made[-1][i] = low, high
            reads = [(source, rows_read(task, low, high)) for source in task.layer.inputs]
            reads += [(step.tensor, (low, high)) for step in task.steps() if step.tensor is not None]
            for source, (a, b) in reads:
                c, d = needed[-1].get(source, (a, b))
                needed[-1][source] = min(a, c), max(b, d)
        for source in needed[-1].keys() - fresh[-1].keys():
            _come(source, needed[-1], have, fresh[-1])
    found: list[Stripe] = []
    lowest: dict[str, int] = {}  # the first row that this stripe or a later one reads
    ends = [{name: rows[1] for name, rows in stripe.items()} for stripe in fresh]
    for k in range(1, len(ends)):
        ends[k] = {**ends[k - 1], **ends[k]}
    for k in reversed(range(len(wanted))):
        for name, (low, _) in needed[k].items():
            lowest[name] = min(low, lowest.get(name, low))
        held = {name: (low, ends[k][name]) for name, low in lowest.items() if low < ends[k].get(name, low)}
        found.append(Stripe(wanted[k], made[k], held, fresh[k]))
    return found[::-1]


def _come(name: str, needed: Mapping[str, Rows], have: dict[str, int], fresh: dict[str, Rows]) -> Rows:
    """The rows of a tensor that are needed and not there yet; notes that they come."""
    low, high = needed.get(name, (0, 0))
    low = max(low, have.get(name, low))
    if low < high:
        have[name] = high
        fresh[name] = low, high
    return low, high


def rows_read(task: Task, low: int, high: int) -> Rows:
    """The input rows that output rows `low` … `high` − 1 need; for a convolution those of its halo as well."""
    layer = task.layer
    height = layer.in_shape[1]
    match layer.head:
        case "reshape":
            return 0, height
        case "upsample":
            return low // layer.repeat[0], (high - 1) // layer.repeat[0] + 1
        case "concat" | "pointwise" | "matmul":
            return low, high
    window = task.window
    reach = window.dilation[0] * (window.kernel[0] - 1) + 1
    first, last = low * window.stride[0] - window.pads[0], (high - 1) * window.stride[0] - window.pads[0] + reach
    if layer.head in TAPPED:
        first, last = min(max(first, 0), height - 1), max(min(last, height), 1)
    return first, last
