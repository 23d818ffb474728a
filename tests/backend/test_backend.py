"""fpgasim behind ONNX's own interface."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.backend.base import Backend, BackendRep

from fpgasim import onnx_backend
from fpgasim.errors import DeviceError, InputError, ModelError, UnknownNameError

X = np.float32([[1, -2, 3]])
RELU = helper.make_node("Relu", ["x"], ["y"])


def two_ways() -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3)) for name in ("a", "b", "sum", "less")]
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["less"])]
    graph = helper.make_graph(nodes, "two ways", infos[:2], infos[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_it_is_a_backend():
    assert issubclass(onnx_backend.FpgasimBackend, Backend)
    assert isinstance(onnx_backend.prepare(two_ways()), BackendRep)


@pytest.mark.parametrize("inputs", [[X, 2 * X], (X, 2 * X), {"b": 2 * X, "a": X}], ids=["list", "tuple", "by name"])
def test_inputs_come_in_order_or_by_name_and_outputs_too(inputs):
    outputs = onnx_backend.run_model(two_ways(), inputs)
    total, less = outputs
    np.testing.assert_array_equal(total, 3 * X)
    np.testing.assert_array_equal(less, -X)
    assert outputs["less"] is less


def test_a_file_will_do(tmp_path):
    onnx.save(two_ways(), tmp_path / "model.onnx")
    assert onnx_backend.prepare(tmp_path / "model.onnx").run([X, X])[1].tolist() == [[0, 0, 0]]


def test_a_device_says_who_computes():
    def sides(device: str) -> set[str]:
        return set(onnx_backend.prepare(two_ways(), device).session.plan.assignment.values())

    assert sides("CPU") == {"cpu"}
    assert sides("FPGA") == sides("FPGA:bw_s10") == {"fpga"}
    assert onnx_backend.prepare(two_ways(), "FPGA:bw_s10").session.plan.device.name == "bw_s10"
    assert onnx_backend.prepare(two_ways(), "FPGA", format="msfp16").session.plan.numbers.format.name == "msfp16"
    assert [onnx_backend.supports_device(name) for name in ("CPU", "FPGA", "FPGA:bw_s5")] == [True] * 3
    assert [onnx_backend.supports_device(name) for name in ("CUDA", "CPU:0", "FPGA:", "")] == [False] * 4


def test_a_single_node_runs():
    assert onnx_backend.run_node(RELU, [X])[0].tolist() == [[1, 0, 3]]
    assert onnx_backend.run_node(RELU, [X], "FPGA")[0].tolist() == [[1, 0, 3]]
    clip = helper.make_node("Clip", ["x", "", "most"], ["y"])
    assert onnx_backend.run_node(clip, [X, np.float32(2)], opset_version=13)[0].tolist() == [[1, -2, 2]]
    gelu = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    (y,) = onnx_backend.run_node(gelu, [X], outputs_info=[(np.float32, (1, 3))])
    np.testing.assert_allclose(y, [[0.841345, -0.0455, 2.99595]], rtol=1e-4)
    length = helper.make_node("SequenceLength", ["s"], ["y"])
    assert onnx_backend.run_node(length, [[X, X]])[0] == 2


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: onnx_backend.prepare(two_ways(), "CUDA"), UnknownNameError, "no device 'CUDA'; there are CPU, FPGA,"),
        (lambda: onnx_backend.prepare(two_ways(), "FPGA:x"), UnknownNameError, "no device 'x'; there are bw_s5"),
        (lambda: onnx_backend.prepare(two_ways(), "FPGA:bw_s5", format="msfp12"), DeviceError, "msfp12"),
        (lambda: onnx_backend.prepare(two_ways()).run([X]), InputError, "run got 1 inputs; the model has 2: 'a', 'b'"),
        (lambda: onnx_backend.prepare(two_ways()).run(X), InputError, "run got 1 inputs"),
        (lambda: onnx_backend.prepare(two_ways()).run([X, X], rtol=1), InputError, "run takes no rtol"),
        (lambda: onnx_backend.run_node(RELU, [X, X]), InputError, "Relu got 2 inputs; the node reads 1: x"),
        (lambda: onnx_backend.prepare("nowhere.onnx"), ModelError, "'nowhere.onnx' cannot be read"),
    ],
)
def test_what_does_not_fit_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
