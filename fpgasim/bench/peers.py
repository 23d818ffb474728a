"""ONNX Runtime's side: a layer or a network in fp32 and in int8, as a call without arguments."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fpgasim.graph import Graph
from fpgasim.npu import Layer

if TYPE_CHECKING:
    import onnx

Call = Callable[[], Any]


def on_onnx_runtime(model: onnx.ModelProto, feeds: dict[str, Any], threads: int) -> Call:
    """`model` on `feeds`, on as many threads as the emulation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def layer_model(layer: Layer, int8: bool) -> onnx.ModelProto:
    """A convolution or product of the layer's shape, with bias and ReLU; in int8 from float32 numbers to float32."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    n, height, width, channels = layer.in_shape
    outputs = layer.out_shape[3]
    kernel = layer.window.kernel if layer.window is not None else (1, 1)
    w = rng.standard_normal((outputs, channels // layer.groups, *kernel)).astype(np.float32)
    attributes: dict[str, Any] = {"group": layer.groups}
    if layer.window is not None:
        attributes |= {"strides": layer.window.stride, "pads": layer.window.pads, "dilations": layer.window.dilation}
    weights = {"w": w, "b": rng.standard_normal(outputs).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], **attributes), helper.make_node("Relu", ["c"], ["y"])]
    if int8:  # a zero point of 0 makes the conversion to uint8 a ReLU
        weights = {
            "w": np.clip(np.rint(w * 30), -127, 127).astype(np.int8),
            "b": np.rint(weights["b"] * 1000).astype(np.int32),
            "s": np.array(0.03, np.float32),
            "z": np.array(0, np.uint8),
            "ws": np.array(0.03, np.float32),
            "wz": np.array(0, np.int8),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("QLinearConv", ["q", "s", "z", "w", "ws", "wz", "s", "z", "b"], ["r"], **attributes),
            helper.make_node("DequantizeLinear", ["r", "s", "z"], ["y"]),
        ]
    shape = (n, channels, height, width)
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def int8_model(graph: Graph, feeds: dict[str, Any]) -> onnx.ModelProto:
    """The network statically quantized to int8 by ONNX Runtime's tool, calibrated on `feeds`."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([feeds])

        def get_next(self) -> Any:
            return next(self.left, None)

    logging.disable(logging.WARNING)  # it advises to optimize the graph first, which has been done
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "int8.onnx")
            quantize_static(graph.to_proto(), path, Reader())
            return onnx.load(path)
    finally:
        logging.disable(logging.NOTSET)
