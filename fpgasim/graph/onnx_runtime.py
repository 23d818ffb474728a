"""A graph as a session of ONNX Runtime, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fpgasim.graph.structure import Graph

if TYPE_CHECKING:
    import onnxruntime


def start_session(graph: Graph, threads: int, *, profile: str = "") -> onnxruntime.InferenceSession:
    """A session of `graph` on `threads` threads, optimized as far as it goes; raises what ONNX Runtime raises.

    With `profile`, the beginning of a file's path, every node is run by itself instead and profiled.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its threads would otherwise go on spinning for a while after a piece, on the processors that ours need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # fatal: errors come as exceptions, warnings are about graphs that we made
    if profile:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling, options.profile_file_prefix = True, profile
    model = graph.to_proto().SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
