"""Whole networks: a session beside ONNX Runtime in fp32 and in int8."""

from __future__ import annotations

import itertools
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import fpgasim
from fpgasim.bench.peers import int8_model, on_onnx_runtime
from fpgasim.bench.timing import medians
from fpgasim.errors import FpgasimError
from fpgasim.kernels import available
from fpgasim.placement import Plan
from fpgasim.runtime import Session


@dataclass(frozen=True)
class NetworkSpeed:
    """One run of a network, input and output included. `profile` is processor seconds by kind of work."""

    macs: int
    fpga_mac_share: float
    seconds: float
    seconds_fp32: float
    seconds_int8: float | None
    profile: Mapping[str, float]


def measure_network(
    plan: Plan, kernels: str | None = None, threads: int = 1, rounds: int = 5, int8: bool = True
) -> NetworkSpeed:
    """The speed of `plan` beside ONNX Runtime on the same graph, both on `threads` threads.

    Raises FpgasimError where two backends differ in a bit of an output.
    """
    before = os.environ.get("FPGASIM_NUM_THREADS")
    os.environ["FPGASIM_NUM_THREADS"] = str(threads)
    try:
        session = fpgasim.compile(plan, kernels)
        check_session(session)
    finally:
        if before is None:
            del os.environ["FPGASIM_NUM_THREADS"]
        else:
            os.environ["FPGASIM_NUM_THREADS"] = before
    feeds = feeds_for(plan)
    contenders = {
        "ours": lambda: session.run(feeds),
        "fp32": on_onnx_runtime(plan.graph.to_proto(), feeds, threads),
    }
    if int8:
        contenders["int8"] = on_onnx_runtime(int8_model(plan.graph, feeds), feeds, threads)
    seconds = medians(contenders, rounds, threads)
    return NetworkSpeed(
        macs=sum(plan.graph.macs(node) for node in plan.graph.nodes),
        fpga_mac_share=plan.fpga_mac_share,
        seconds=seconds["ours"],
        seconds_fp32=seconds["fp32"],
        seconds_int8=seconds.get("int8"),
        profile=profile(session, feeds, rounds),
    )


def check_session(session: Session) -> None:
    """Raises FpgasimError unless the next slower C variant (without one, the reference) gives the same bits."""
    names = [name for name in available() if name != "numba"]
    own = names.index(session.kernels.name) if session.kernels.name in names else 0
    other = names[own - 1] if own else names[-1]
    feeds = feeds_for(session.plan)
    results = zip(session.run(feeds).values(), fpgasim.compile(session.plan, other).run(feeds).values(), strict=True)
    for got, expected in results:
        if got.tobytes() != expected.tobytes():
            raise FpgasimError(f"{session.kernels.name} and {other} differ in an output; no speed is worth printing")


def feeds_for(plan: Plan) -> dict[str, Any]:
    """Normally distributed numbers for every input of the plan's shapes."""
    rng = np.random.default_rng(0)
    shapes = {t.name: tuple(int(dim) for dim in t.shape or () if dim is not None) for t in plan.graph.inputs}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def profile(session: Session, feeds: Mapping[str, Any], rounds: int) -> dict[str, float]:
    """Median processor seconds of a run by kind of work, `cpu` being the pieces on ONNX Runtime."""
    taken: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        rows = sorted(((kind, seconds) for kind, _, seconds in session.profile(feeds)), key=lambda row: row[0])
        for kind, group in itertools.groupby(rows, key=lambda row: row[0]):
            taken[kind].append(sum(seconds for _, seconds in group))
    return {kind: statistics.median(values) for kind, values in taken.items()}
