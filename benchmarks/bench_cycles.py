"""How long it takes to count the cycles of a network, by the closed forms and by the events of its program.

    python benchmarks/bench_cycles.py [NETWORK] [DEVICE] [FORMAT]

Checked first: the closed form's compute bound is not above the program's cycles, and the lost cycles add up. Processor
time, the best of five; memory is what tracemalloc sees at most beside the network and its packed weights.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import TypeVar

import fpgasim as fs
from fpgasim.compiler import emit, lower
from fpgasim.npu import segment_timing, simulate

T = TypeVar("T")


def timed(work: Callable[[], T], turns: int = 5) -> tuple[T, float]:
    """What `work` gives, and the least processor time of `turns` turns."""
    best = float("inf")
    for _ in range(turns):
        begin = time.process_time()
        result = work()
        best = min(best, time.process_time() - begin)
    return result, best


def main(network: str = "resnet50", device: str = "bw_cnn_a10", format: str = "bw_1s5e5m") -> None:
    graph = fs.zoo.load(network)
    plan = fs.partition(graph, device, format, objective="coverage")
    (part,) = (step for step in plan.segments if step.kind == "fpga")
    segment = lower(plan.graph, part.nodes, plan.device, plan.numbers)
    closed, closed_s = timed(lambda: segment_timing(segment.layers, plan.device, plan.numbers))
    program, emit_s = timed(lambda: emit(segment))
    events, events_s = timed(lambda: simulate(program))
    assert sum(row.mvm_cycles for row in closed.layers) <= events.cycles
    assert sum(events.losses.values()) == events.cycles
    tracemalloc.start()
    simulate(emit(segment))
    _, peak = tracemalloc.get_traced_memory()
    print(f"{network} on {device} in {format}, batch 1")
    print(f"closed form    {closed.cycles:9,} cycles   {closed_s * 1e3:7.2f} ms")
    print(f"program        {len(events.chains):9,} chains   {emit_s * 1e3:7.2f} ms")
    print(f"events         {events.cycles:9,} cycles   {events_s * 1e3:7.2f} ms")
    stepped, all_ = events.stepped_cycles / events_s / 1e6, events.cycles / events_s / 1e6
    print(f"stepped {stepped:,.1f} million cycles a second, {all_:,.1f} with what was extrapolated")
    print(f"at most {peak / 1e6:.0f} MB for the program and its events")


if __name__ == "__main__":
    main(*sys.argv[1:])
