"""If, Loop and Scan survive untouched, and what their bodies capture counts as read."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fpgasim.errors import InputError
from fpgasim.graph import Graph, load, optimize, verify

from .models import Builder, assert_same_outputs, run


def tensor(name: str, shape=(1, 4, 6, 6), dtype: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def branching_model():
    """Conv, BatchNormalization, Identity, whose result only the branches of an If read; one adds a folded constant."""
    b = Builder(opset=13, seed=3)
    normed = b.batch_norm(b.conv("x", 3, 4), 4)
    kept = b.op("Identity", normed, outputs=["kept"])
    offset = b.op("Neg", b.vector(6), outputs=["offset"])
    b.op("Relu", "x", outputs=["nobody_reads_this"])
    add = helper.make_node("Add", [kept, offset], ["then_sum"])
    same = helper.make_node("Identity", ["then_sum"], ["then_out"])
    then = helper.make_graph([add, same], "then", [], [tensor("then_out")])
    subtract = helper.make_node("Sub", [kept, "two"], ["inner_out"])
    inner = helper.make_graph([subtract], "inner", [], [tensor("inner_out")])
    nested = helper.make_node("If", ["flag"], ["else_out"], name="nested", then_branch=inner, else_branch=then)
    other = helper.make_graph(
        [nested], "else", [], [tensor("else_out")], [numpy_helper.from_array(np.float32(2), "two")]
    )
    b.op("If", "flag", outputs=["y"], then_branch=then, else_branch=other)
    return b.model({"x": [1, 3, 6, 6], "flag": []}, {"y": [1, 4, 6, 6]}, dtypes={"flag": TensorProto.BOOL})


def feeds(flag: bool):
    x = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)
    return {"x": x, "flag": np.array(flag)}


@pytest.mark.parametrize("flag", [False, True])
def test_captured_tensors_are_read(flag):
    model = branching_model()
    graph = optimize(load(model, optimize=False), after_pass=verify)
    assert [node.op_type for node in graph.nodes] == ["Conv", "Identity", "If"]
    branch = graph.nodes[-1]
    assert graph.consumers("kept") == (branch,)
    assert graph.consumers("offset") == (branch,)
    assert graph.constant("offset") is not None
    assert graph.consumers("flag") == (branch,)
    assert_same_outputs(run(graph.to_proto(), feeds(flag)), run(model, feeds(flag)))
    assert load(graph.to_proto()).fingerprint() == graph.fingerprint()


@pytest.mark.parametrize("flag", [False, True])
def test_extraction_brings_what_bodies_capture(flag):
    model = branching_model()
    graph = load(model)
    part = graph.extract(["kept", "flag"], ["y"])
    assert [node.op_type for node in part.nodes] == ["If"]
    assert list(part.model.graph.initializers) == ["offset"]
    kept = run(graph.extract(["x"], ["kept"]).to_proto(), {"x": feeds(flag)["x"]})
    assert_same_outputs(run(part.to_proto(), {**kept, "flag": np.array(flag)}), run(model, feeds(flag)))
    with pytest.raises(InputError, match="need graph input 'x'"):
        graph.extract(["flag"], ["y"])


def test_a_dead_control_flow_node_goes_with_what_only_it_captured():
    model = branching_model()
    del model.graph.output[:]
    model.graph.output.append(tensor("nobody_reads_this", (1, 3, 6, 6)))
    graph = load(model)
    verify(graph, "all passes")
    assert [node.op_type for node in graph.nodes] == ["Relu"]


def test_a_loop_and_a_scan_compute_the_same_after_loading():
    b = Builder(opset=13)
    step = b.op("Abs", b.vector(4), outputs=["step"])
    body = helper.make_graph(
        [helper.make_node("Add", ["state", step], ["next"]), helper.make_node("Identity", ["go"], ["go_on"])],
        "body",
        [tensor("i", (), TensorProto.INT64), tensor("go", (), TensorProto.BOOL), tensor("state", (4,))],
        [tensor("go_on", (), TensorProto.BOOL), tensor("next", (4,))],
    )
    b.op("Loop", b.constant(np.int64(3)), "", "x", outputs=["looped"], body=body)
    scanned = helper.make_graph(
        [helper.make_node("Add", ["sum", "row"], ["sum_out"]), helper.make_node("Mul", ["sum_out", step], ["row_out"])],
        "scanned",
        [tensor("sum", (4,)), tensor("row", (4,))],
        [tensor("sum_out", (4,)), tensor("row_out", (4,))],
    )
    rows = b.unsqueeze("looped", [0])
    b.op("Scan", "x", rows, outputs=["total", "rows"], body=scanned, num_scan_inputs=1)
    model = b.model({"x": [4]}, {"total": [4], "rows": [1, 4]})
    graph: Graph = load(model)
    verify(graph, "all passes")
    assert {node.op_type for node in graph.nodes} == {"Loop", "Unsqueeze", "Scan"}
    assert {node.op_type for node in graph.consumers("step")} == {"Loop", "Scan"}
    x = {"x": np.arange(4, dtype=np.float32)}
    assert_same_outputs(run(graph.to_proto(), x), run(model, x))


def test_external_data_in_a_body_is_checked(tmp_path):
    from fpgasim.errors import ModelError

    model = branching_model()
    secret = numpy_helper.from_array(np.float32(2), "two")
    secret.ClearField("raw_data")
    secret.data_location = TensorProto.EXTERNAL
    secret.external_data.add(key="location", value="/etc/hostname")
    node = next(node for node in model.graph.node if node.op_type == "If")
    body = next(attribute.g for attribute in node.attribute if attribute.name == "else_branch")
    body.initializer[0].CopyFrom(secret)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"'/etc/hostname'.*refused"):
        load(tmp_path / "model.onnx")
