"""Segments as instruction programs, beside the path that runs them fused."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

import fpgasim as fs
from fpgasim.compiler import Unsupported, emit, lower, lower_node
from fpgasim.graph import Graph
from fpgasim.kernels import backend
from fpgasim.npu import Device, resolve_numbers
from fpgasim.npu.chains import Chain, MatrixChain, VectorChain, program_chains
from fpgasim.npu.interpreter import execute, initial_state
from fpgasim.npu.isa import Mem
from fpgasim.npu.programs import Program
from fpgasim.npu.segment import Segment
from fpgasim.runtime.fpga import FpgaRunner

#: Numbers as `numbers` takes them: the engine's own, sums that depend on their order, a type with infinities.
NUMBERS: Mapping[str, Mapping[str, str]] = {
    "exact": {"format": "bw_1s5e5m"},
    "fp32": {"format": "msfp16", "accumulator": "fp32", "order": "khwc"},
    "chwk": {"format": "msfp16", "accumulator": "fp16", "order": "chwk"},
    "tree": {"format": "msfp12", "accumulator": "fp32", "order": "tree(3)", "pointwise": "bf16"},
}


def small(**changes: Any) -> Device:
    """An engine of vectors of 16 with room for every test network."""
    settings: dict[str, Any] = {
        "name": "small",
        "native_dim": 16,
        "lanes": 4,
        "tiles": 4,
        "mrf_tiles": 1024,
        "mfus": 2,
        "clock_hz": 100_000_000,
        "mvm_latency": 20,
        "initial_vrf": 4096,
        "addsub_vrf": 1024,
        "multiply_vrf": 256,
    }
    return Device(**settings | changes)


def segment_of(
    model: onnx.ModelProto | Graph, device: Device, numbers: str = "exact", batch: int = 1, nodes: Sequence[str] = ()
) -> Segment:
    """All `nodes` (of none: all that the engine computes) of `model` as one segment."""
    graph = (model if isinstance(model, Graph) else fs.load(model)).bind(default=batch)
    names = list(nodes)
    for node in graph.nodes if not nodes else ():
        try:
            lower_node(graph, node, device)
        except Unsupported:
            continue
        names.append(node.name)
    return lower(graph, names, device, resolve_numbers(device, **NUMBERS[numbers]))


def feeds_of(segment: Segment, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(segment.shapes[name]).astype(np.float32) for name in segment.inputs}


def assert_same_bits(
    segment: Segment,
    weights: str = "auto",
    kernels: str | None = None,
    feeds: Mapping[str, np.ndarray] | None = None,
) -> Program:
    """The program of `segment`, after a check that its outputs have the bits of the fused path; `feeds` or random."""
    program = emit(segment, weights=weights)
    feeds = feeds_of(segment) if feeds is None else feeds
    fused = FpgaRunner(segment, backend(kernels), 1).run(feeds, segment.outputs, Counter())
    found = execute(program, initial_state(program, feeds), kernels)
    assert sorted(found) == sorted(segment.outputs)
    for name in segment.outputs:
        assert found[name].shape == fused[name].shape
        wrong = np.flatnonzero(found[name].view(np.uint32) != fused[name].view(np.uint32))
        assert not wrong.size, f"{name}: {wrong.size} of {found[name].size} differ, the first at {wrong[0]}"
        assert np.unique(fused[name].view(np.uint32)).size > 1, f"{name} is constant, which shows nothing"
    return program


def chains_of(program: Program) -> list[Chain]:
    return [chain for block in program_chains(program) for chain in block]


def vector_chains(program: Program) -> list[VectorChain]:
    return [chain for chain in chains_of(program) if isinstance(chain, VectorChain)]


def loads(program: Program) -> list[MatrixChain]:
    return [chain for chain in chains_of(program) if isinstance(chain, MatrixChain)]


def touches(program: Program, mem: Mem) -> bool:
    """Whether a chain of vectors reads or writes `mem`."""
    return any(span.mem == mem for chain in vector_chains(program) for span in (*chain.reads, *chain.written))
