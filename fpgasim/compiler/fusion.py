"""Joining layers: pointwise layers become stages of the layer before them. No bit depends on it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence

from fpgasim.npu import Layer


def fuse(layers: Sequence[Layer], keep: Collection[str]) -> tuple[Layer, ...]:
    """`layers`, in order, with each pointwise layer chained to the layer that makes what it reads, where it may be.

    It may where nobody else reads that tensor and it is not among `keep`. Of two such operands the one made last is
    continued. The joined layer stands where the pointwise one stood, so that its other operand is there; nothing
    between the two can need what moves, since that has one reader.
    """
    readers = Counter(name for layer in layers for name in reads(layer))
    done: list[Layer] = []
    for layer in layers:
        if layer.head == "pointwise":
            first = layer.stages[0]
            operands = [layer.inputs[0]] if first.operand is None else [layer.inputs[0], first.operand]
            open_ends = {name for name in operands if readers[name] == 1 and name not in keep}
            host = next((before for before in reversed(done) if before.output in open_ends), None)
            if host is not None:
                done.remove(host)
                layer = _chain(host, layer)
        done.append(layer)
    return tuple(done)


def reads(layer: Layer) -> list[str]:
    """What a layer reads, in order and with repetition: the head's inputs, then the operands of its stages."""
    return [*layer.inputs, *(stage.operand for stage in layer.stages if stage.operand is not None)]


def _chain(host: Layer, layer: Layer) -> Layer:
    first = layer.stages[0]
    if host.output != layer.inputs[0]:  # the chain enters as the second operand
        first = dataclasses.replace(first, operand=layer.inputs[0], swapped=not first.swapped)
    return dataclasses.replace(host, nodes=host.nodes + layer.nodes, stages=(*host.stages, first, *layer.stages[1:]))
