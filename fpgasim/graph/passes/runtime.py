"""ONNX Runtime as the passes use it: unoptimised, single-threaded, silent."""

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    import onnx
    import onnxruntime


def session(proto: "onnx.ModelProto") -> "onnxruntime.InferenceSession | None":
    """A session of the model; None if ONNX Runtime refuses it, or has no CPU kernel for one of its operators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    except _errors():
        return None


def evaluate(model: ir.Model) -> dict[str, np.ndarray] | None:
    """The outputs of a model without inputs; None if ONNX Runtime cannot compute them."""
    made = session(ir.to_proto(model))
    if made is None:
        return None
    names = [output.name for output in made.get_outputs()]
    try:
        return dict(zip(names, made.run(names, {}), strict=True))
    except _errors():
        return None


def _errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException)
