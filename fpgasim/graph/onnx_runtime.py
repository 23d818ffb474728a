"""A graph as a session of ONNX Runtime, on the CPU, and values that NumPy has no type for."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from fpgasim.graph.structure import Graph, is_of_numpy

if TYPE_CHECKING:
    import onnxruntime

Array = npt.NDArray[Any]

#: Constants beyond this are not written into the model: ONNX Runtime reads them where they are. So they are not copied,
#: and a model of any size stays below the 2 GiB of a protobuf message. Shapes and axes must be in the model.
REFERRED_BYTES = 4096


def start_session(graph: Graph, threads: int, *, profile: str = "") -> onnxruntime.InferenceSession:
    """A session of `graph` on `threads` threads, optimized as far as it goes; raises what ONNX Runtime raises.

    With `profile`, the beginning of a file's path, every node is run by itself instead and profiled.
    """
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    model, weights = _with_references(graph)

    def start(level: Any) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Its threads would otherwise go on spinning for a while after a piece, on the processors that ours need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # fatal: errors come as exceptions, warnings are about graphs that we made
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        if weights:
            options.add_external_initializers(list(weights), list(map(to_ort_value, weights.values())))
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        session.fpgasim_weights = weights  # it reads them where they are, so they must be there as long as it is
        return session

    failures = []
    # Its optimizer breaks some graphs, as by inlining an If; then the graph is run as it stands.
    for level in (levels.ORT_DISABLE_ALL,) if profile else (levels.ORT_ENABLE_ALL, levels.ORT_DISABLE_ALL):
        try:
            return start(level)
        except Exception as error:  # its exceptions have no base of their own
            failures.append(error)
    raise failures[0]


def _with_references(graph: Graph) -> tuple[bytes, dict[str, Array]]:
    """The model as bytes, and the constants that it only refers to."""
    model, weights = graph.model.clone(), {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= REFERRED_BYTES or tensor.dtype == ir.DataType.STRING:
            continue
        name = value.name or ""
        array = np.asarray(tensor.numpy(), order="C")
        if is_of_numpy(array.dtype):
            weights[name] = array
            value.const_value = ir.ExternalTensor(
                "weights", 0, array.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
    return ir.to_proto(model).SerializeToString(), weights


def to_ort_value(array: Array) -> onnxruntime.OrtValue:
    """`array` as a value of ONNX Runtime, of any dtype; where NumPy has that dtype itself, it shares the memory."""
    import onnxruntime

    if is_of_numpy(array.dtype):
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    tensor = ir.tensor(array)
    packed = tensor.tobytes()  # two or four small elements in a byte
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), tensor.dtype.value)
    ctypes.memmove(value.data_ptr(), packed, len(packed))
    return value


def from_ort_value(value: onnxruntime.OrtValue) -> Array:
    """The tensor in `value` as an array of its own; the dtypes that NumPy has not are those of ml_dtypes."""
    dtype = ir.DataType(value.element_type()) if value.is_tensor() else None
    if dtype is None or is_of_numpy(dtype.numpy()):
        array: Array = value.numpy()
        return array
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    packed = onnx.TensorProto(data_type=dtype.value, dims=value.shape(), raw_data=data)
    return np.array(ir.serde.TensorProtoTensor(packed).numpy())
