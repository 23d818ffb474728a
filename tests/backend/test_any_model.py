"""Models of every kind that ONNX Runtime runs, split between the FPGA and it."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import fpgasim as fs
from fpgasim.errors import InputError, ModelError
from fpgasim.graph import onnx_runtime
from fpgasim.graph.opsets import OPSETS

RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
FILTERS = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
FILTERING = helper.make_node("Conv", ["x", "filters"], ["filtered"], name="filter")


def tensor(name: str, dtype: int = TensorProto.FLOAT, shape: Sequence[int | str] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    inputs: Sequence[onnx.ValueInfoProto] = (tensor("x", shape=("N", 3, 8, 8)),),
    constants: Mapping[str, Any] = {},
    opset: int = 21,
    **parts: Any,
) -> onnx.ModelProto:
    """A model that may filter its image with constant filters."""
    fixed = {"filters": FILTERS, **constants} if any("filters" in node.input for node in nodes) else constants
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in fixed.items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("mine", 1)]
    ir_version = min(helper.find_min_ir_version_for(opsets[:1]), 13) if opset > 8 else 3
    infos = [*inputs, *(tensor(t.name, t.data_type, t.dims) for t in tensors if ir_version < 4)]
    graph = helper.make_graph(nodes, "net", infos, outputs, tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, **parts)


def split(proto: onnx.ModelProto, format: str = "fp32") -> fs.Session:
    """What the engine can compute is computed there."""
    exact = {"accumulator": "fp32", "pointwise": "fp32"} if format == "fp32" else {}
    return fs.compile(fs.partition(fs.load(proto), "bw_a10", format, objective="coverage", **exact))


def on_fpga(session: fs.Session) -> set[str]:
    return {name for name, side in session.plan.assignment.items() if side == "fpga"}


def expected(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_equal(got: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    assert list(got) == list(want)
    for name, value in want.items():
        assert type(got[name]) is type(value)
        for one, other in zip(got[name], value, strict=True) if isinstance(value, list) else [(got[name], value)]:
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            if one.dtype.kind == "f":
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
            else:
                np.testing.assert_array_equal(one, other)


def check(proto: onnx.ModelProto, feeds: Mapping[str, Any], fpga: set[str] = frozenset({"filter"})) -> fs.Session:  # type: ignore[assignment]
    session = split(proto)
    assert on_fpga(session) >= fpga
    assert_equal(session.run(feeds), expected(proto, feeds))
    return session


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_splits(opset):
    nodes = [FILTERING, helper.make_node("Elu", ["filtered"], ["y"])]
    check(model(nodes, [tensor("y")], opset=opset), {"x": IMAGE})


@pytest.mark.parametrize("opset", range(1, OPSETS.start))
def test_an_opset_before_the_first_will_do_where_the_operators_are_the_same(opset):
    check(model([FILTERING], [tensor("filtered")], opset=opset), {"x": IMAGE})
    old = model([FILTERING, helper.make_node("Add", ["filtered", "filtered"], ["y"])], [tensor("y")], opset=opset)
    with pytest.raises(ModelError, match=rf"opset is {opset}; 7 to 28 would do, since .*'Add' changed with 7"):
        fs.load(old)


@pytest.mark.parametrize("batch", [1, 2, 5, 0])
def test_a_batch_of_any_size_is_planned_anew(batch):
    nodes = [
        FILTERING,
        helper.make_node("Relu", ["filtered"], ["r"]),
        helper.make_node("Softmax", ["r"], ["y"], axis=1),
    ]
    proto = model(nodes, [tensor("y", shape=("N", 4, 6, 6))])
    session = split(proto)
    for n in (batch, 1, batch):
        feeds = {"x": RNG.standard_normal((n, 3, 8, 8)).astype(np.float32)}
        assert_equal(session.run(feeds), expected(proto, feeds))


def test_an_unknown_rank_is_planned_for_what_is_fed():
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Elu", ["r"], ["y"])]
    proto = model(nodes, [tensor("y")], [tensor("x")])
    session = split(proto)
    for shape in ((3,), (2, 3), (1, 2, 3, 4)):
        feeds = {"x": RNG.standard_normal(shape).astype(np.float32)}
        assert_equal(session.run(feeds), expected(proto, feeds))


def test_strings_pass_by_the_fpga():
    nodes = [
        FILTERING,
        helper.make_node("StringConcat", ["s", "s"], ["twice"]),
        helper.make_node("Elu", ["filtered"], ["y"]),
    ]
    inputs = [tensor("x", shape=(1, 3, 8, 8)), tensor("s", TensorProto.STRING, (2,))]
    proto = model(nodes, [tensor("y"), tensor("twice", TensorProto.STRING)], inputs)
    check(proto, {"x": IMAGE, "s": np.array(["a", "ß"], object)})


def test_a_sequence_lives_on_while_the_fpga_works():
    nodes = [
        helper.make_node("SequenceInsert", ["list", "image"], ["longer"]),
        helper.make_node("SequenceLength", ["longer"], ["length"]),
        helper.make_node("Pow", ["image", "length"], ["x"]),
        FILTERING,
        helper.make_node("Elu", ["filtered"], ["last"]),
        helper.make_node("SequenceInsert", ["longer", "last"], ["all"]),
    ]
    inputs = [
        tensor("image", shape=(1, 3, 8, 8)),
        helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None),
    ]
    output = helper.make_tensor_sequence_value_info("all", TensorProto.FLOAT, None)
    session = check(model(nodes, [output], inputs), {"image": IMAGE, "list": [np.float32([1, 2]), np.float32([[3]])]})
    assert [segment.kind for segment in session.plan.segments] == ["cpu", "fpga", "cpu"]
    assert "longer" in session.plan.segments[-1].inputs
    assert session.inputs[1].container == "sequence(tensor(float))"
    assert len(session.run({"image": IMAGE, "list": []})["all"]) == 2
    with pytest.raises(
        InputError, match=r"'list' is a ndarray; a list of arrays, sequence\(tensor\(float\)\), would do"
    ):
        session.run({"image": IMAGE, "list": IMAGE})


def test_an_optional_holds_something_or_nothing():
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    info = helper.make_value_info("maybe", helper.make_optional_type_proto(element))
    nodes = [FILTERING, helper.make_node("OptionalHasElement", ["maybe"], ["there"])]
    proto = model(
        nodes, [tensor("filtered"), tensor("there", TensorProto.BOOL, ())], [tensor("x", shape=(1, 3, 8, 8)), info]
    )
    session = split(proto)
    for value in (np.float32([1, 2]), None):
        assert_equal(session.run({"x": IMAGE, "maybe": value}), expected(proto, {"x": IMAGE, "maybe": value}))


SMALL = {
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    TensorProto.FLOAT8E5M2: ml_dtypes.float8_e5m2,
    TensorProto.INT4: ml_dtypes.int4,
    TensorProto.UINT4: ml_dtypes.uint4,
}


@pytest.mark.parametrize("elem_type", SMALL, ids=lambda t: TensorProto.DataType.Name(t))
def test_types_that_numpy_has_not_go_in_out_and_between_the_pieces(elem_type):
    """`s` is fed, `t` made before the FPGA's turn and read behind it; both are asked for."""
    nodes = [
        helper.make_node("Cast", ["s"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["wide"], ["t"], to=elem_type),
        helper.make_node("Cast", ["t"], ["before"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["before"], ["most"], keepdims=0),
        helper.make_node("Pow", ["image", "most"], ["x"]),
        FILTERING,
        helper.make_node("ReduceMax", ["filtered"], ["top"], keepdims=0),
        helper.make_node("CastLike", ["t", "top"], ["behind"]),
        helper.make_node("Mul", ["behind", "top"], ["y"]),
    ]
    inputs = [tensor("image", shape=(1, 3, 8, 8)), tensor("s", elem_type, ("K",))]
    small = np.array([1, 2, 3, 1, 0]).astype(SMALL[elem_type])
    session = split(model(nodes, [tensor("y"), tensor("t", elem_type, ("K",))], inputs))
    assert on_fpga(session) == {"filter"}
    assert "t" in session.plan.segments[-1].inputs
    got = session.run({"image": IMAGE, "s": small}, ["y", "t", "s", "top"])
    for name in ("s", "t"):
        assert got[name].dtype == small.dtype
        np.testing.assert_array_equal(got[name].astype(np.float32), small.astype(np.float32))
    np.testing.assert_array_equal(got["y"], small.astype(np.float32) * got["top"])


@pytest.mark.parametrize("elem_type", SMALL, ids=lambda t: TensorProto.DataType.Name(t))
def test_constants_of_types_that_numpy_has_not_are_read(elem_type):
    nodes = [
        helper.make_node("Cast", ["numbers"], ["small"], to=elem_type),
        helper.make_node("CastLike", ["small", "x"], ["back"]),
        helper.make_node("Sub", ["x", "back"], ["y"]),
    ]
    proto = model(nodes, [tensor("y")], [tensor("x", shape=(2,))], {"numbers": np.float32([1, 2])})
    assert split(proto).run({"x": np.float32([3, 5])})["y"].tolist() == [2, 3]


def test_a_function_of_the_model_is_split_inside():
    body = [
        helper.make_node("Conv", ["a", "w"], ["c"]),
        helper.make_node("Elu", ["c"], ["b"]),
    ]
    function = helper.make_function("mine", "Filter", ["a", "w"], ["b"], body, [helper.make_opsetid("", 21)])
    call = helper.make_node("Filter", ["x", "filters"], ["y"], domain="mine", name="call")
    proto = model([call], [tensor("y", shape=("N", 4, 6, 6))], functions=[function])
    session = split(proto)
    assert [session.plan.graph.node(name).op_type for name in on_fpga(session)] == ["Conv"]
    assert_equal(session.run({"x": IMAGE}), expected(proto, {"x": IMAGE}))


def test_an_operator_of_onnx_runtimes_own_domain_stays_on_the_cpu():
    gelu = helper.make_node("Gelu", ["filtered"], ["y"], domain="com.microsoft", name="gelu")
    session = check(model([FILTERING, gelu], [tensor("y")]), {"x": IMAGE})
    (decision,) = [d for d in session.plan.decisions if d.node == "gelu"]
    assert (decision.device, decision.code) == ("cpu", "unsupported-op")
    assert decision.message == "com.microsoft.Gelu is not an operator of the engine"


def test_an_operator_for_trees_needs_no_opset_of_onnx():
    node = helper.make_node("Binarizer", ["x"], ["y"], domain="ai.onnx.ml", threshold=0.5)
    graph = helper.make_graph([node], "trees", [tensor("x", shape=(2, 2))], [tensor("y", shape=(2, 2))])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)
    feeds = {"x": np.float32([[0, 1], [2, 0.5]])}
    assert_equal(split(proto).run(feeds), expected(proto, feeds))


def classifier(*nodes: onnx.NodeProto, inputs: list, outputs: list) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "classifier", inputs, outputs)
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_the_scores_of_a_classifier_may_be_maps():
    """As scikit-learn's come out of their converter."""
    scores = onnx.TypeProto()
    scores.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    scores.sequence_type.elem_type.map_type.value_type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    lines = {"coefficients": [1.0, 2.0, -1.0, 2.0], "intercepts": [0.0, 1.0], "classlabels_ints": [3, 5]}
    proto = classifier(
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("LinearClassifier", ["r"], ["label", "p"], domain="ai.onnx.ml", **lines),
        helper.make_node("ZipMap", ["p"], ["scores"], domain="ai.onnx.ml", classlabels_int64s=[3, 5]),
        inputs=[tensor("x", shape=("N", 2))],
        outputs=[tensor("label", TensorProto.INT64, ("N",)), helper.make_value_info("scores", scores)],
    )
    feeds = {"x": np.float32([[1, 2], [-3, 4]])}
    session = split(proto)
    assert len(on_fpga(session)) == 1
    got, want = session.run(feeds), expected(proto, feeds)
    assert got["label"].tolist() == want["label"].tolist()
    assert got["scores"] == want["scores"]
    assert [set(row) for row in got["scores"]] == [{3, 5}, {3, 5}]


def test_an_input_that_is_a_map_is_refused_by_name():
    words = onnx.TypeProto()
    words.map_type.key_type = TensorProto.INT64
    words.map_type.value_type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    node = helper.make_node("DictVectorizer", ["words"], ["y"], domain="ai.onnx.ml", int64_vocabulary=[1, 2])
    proto = classifier(node, inputs=[helper.make_value_info("words", words)], outputs=[tensor("y")])
    with pytest.raises(ModelError, match="input 'words' is a map, which is not taken; an array would do"):
        fs.load(proto)


def branches() -> onnx.NodeProto:
    """An If of which one branch captures what the FPGA filtered and the other what it is fed."""
    shift = helper.make_node("Add", ["filtered", "one"], ["shifted"])
    crop = helper.make_node("Slice", ["x", "from", "to"], ["cropped"])
    return helper.make_node(
        "If", ["flag"], ["y"], name="if",
        then_branch=helper.make_graph([shift], "then", [], [tensor("shifted")]),
        else_branch=helper.make_graph([crop], "else", [], [tensor("cropped")]),
    )  # fmt: skip


CONSTANTS = {"one": np.float32(1), "from": np.array([0, 0, 1, 1]), "to": np.array([1, 3, 7, 7])}


@pytest.mark.parametrize("flag", [True, False])
def test_a_branch_captures_what_the_fpga_made(flag):
    inputs = [tensor("x", shape=("N", 3, 8, 8)), tensor("flag", TensorProto.BOOL, ())]
    relu = helper.make_node(
        "Relu", ["filtered"], ["r"], name="relu"
    )  # fused behind the filter, whose result is captured
    proto = model([FILTERING, relu, branches()], [tensor("y"), tensor("r")], inputs, CONSTANTS)
    session = check(proto, {"x": IMAGE, "flag": np.array(flag)}, {"filter", "relu"})
    assert session.plan.assignment["if"] == "cpu"
    two = {"x": np.concatenate([IMAGE, -IMAGE]), "flag": np.array(flag)}
    assert_equal(session.run(two), expected(proto, two))


def test_a_loop_and_a_scan_read_what_the_fpga_made_and_feed_it():
    step = helper.make_graph(
        [helper.make_node("Add", ["state", "filtered"], ["next"]), helper.make_node("Identity", ["go"], ["going"])],
        "step",
        [tensor("i", TensorProto.INT64, ()), tensor("go", TensorProto.BOOL, ()), tensor("state")],
        [tensor("going", TensorProto.BOOL, ()), tensor("next")],
    )
    image = (1, 4, 6, 6)
    row = helper.make_graph(
        [helper.make_node("Add", ["sum", "row"], ["total"]), helper.make_node("Mul", ["total", "filtered"], ["made"])],
        "row",
        [tensor("sum", shape=image), tensor("row", shape=image)],
        [tensor("total", shape=image), tensor("made", shape=image)],
    )
    nodes = [
        FILTERING,
        helper.make_node("Loop", ["trips", "", "filtered"], ["looped"], body=step),
        helper.make_node("Unsqueeze", ["looped", "first"], ["rows"]),
        helper.make_node("Scan", ["looped", "rows"], ["total", "scanned"], body=row, num_scan_inputs=1),
        helper.make_node("Relu", ["total"], ["y"], name="relu"),
    ]
    constants = {"trips": np.int64(3), "first": np.array([0])}
    proto = model(
        nodes, [tensor("y", shape=(1, 4, 6, 6)), tensor("scanned")], [tensor("x", shape=(1, 3, 8, 8))], constants
    )
    check(proto, {"x": IMAGE})


def test_a_graph_that_onnx_runtimes_optimizer_breaks_runs_as_it_stands():
    """Inlining the If tells Range that a tensor of one dimension is its limit, which it takes only in the run."""
    one = helper.make_node("Identity", ["two"], ["limit"])
    other = helper.make_node("Identity", ["three"], ["other"])
    nodes = [
        helper.make_node("If", ["always"], ["end"],
                         then_branch=helper.make_graph([one], "then", [], [tensor("limit", TensorProto.INT64)]),
                         else_branch=helper.make_graph([other], "else", [], [tensor("other", TensorProto.INT64)])),
        helper.make_node("Range", ["zero", "end", "step"], ["steps"]),
        helper.make_node("Add", ["steps", "x"], ["y"]),
    ]  # fmt: skip
    constants = {"always": np.array(True), "two": np.array([2]), "three": np.array([3]), "zero": np.int64(0)}
    inputs = [tensor("x", TensorProto.INT64, (1,))]
    proto = model(nodes, [tensor("y", TensorProto.INT64)], inputs, {**constants, "step": np.int64(1)})
    assert fs.compile(fs.partition(fs.load(proto), "bw_a10", "fp32")).run({"x": [5]})["y"].tolist() == [5, 6]


def test_weights_beyond_a_protobuf_message_reach_both_sides(tmp_path, monkeypatch):
    """Here more than 3000 bytes are beyond; with the limit where it is, see the slow test."""
    monkeypatch.setattr("fpgasim.graph.saving.INLINE_LIMIT_BYTES", 3000)
    monkeypatch.setattr(onnx_runtime, "REFERRED_BYTES", 64)
    nodes = [
        FILTERING,
        helper.make_node("Flatten", ["filtered"], ["flat"]),
        helper.make_node("Einsum", ["flat", "w"], ["y"], equation="ij,jk->ik"),
    ]
    matrix = RNG.standard_normal((144, 5)).astype(np.float32)
    proto = model(nodes, [tensor("y")], constants={"w": matrix})
    want = expected(proto, {"x": IMAGE})
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    graph = fs.load(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="more than the 3000 that fit"):
        graph.to_proto()
    plan = fs.partition(graph, "bw_a10", "fp32", objective="coverage", accumulator="fp32", pointwise="fp32")
    assert {d.node: d.device for d in plan.decisions}["filter"] == "fpga"
    assert_equal(fs.compile(plan).run({"x": IMAGE}), want)
