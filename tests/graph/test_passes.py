"""Each rule of each pass, and each reason not to apply it."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from fpgasim.errors import ModelError
from fpgasim.graph import PASSES, Graph, load, verify

from .models import Builder, assert_same_outputs, convnet, feeds_for, run


def ops(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


def check_same(model, graph: Graph | None = None) -> Graph:
    """`model` loaded, after comparing what it computes."""
    graph = graph or load(model)
    verify(graph, "all passes")
    feeds = feeds_for(model)
    assert_same_outputs(run(graph.to_proto(), feeds), run(model, feeds))
    return graph


@pytest.mark.parametrize("name", list(PASSES))
def test_a_pass_with_nothing_to_do_returns_the_same_graph(name):
    graph = load(convnet())
    again, changed = PASSES[name](graph)
    assert again is graph
    assert not changed


@pytest.mark.parametrize("name", list(PASSES))
def test_a_pass_never_changes_the_graph_it_is_given(name):
    graph = load(convnet(("noop", "conv_scale_shift", "pad_conv"), opset=9), optimize=False)
    before = graph.to_proto().SerializeToString(deterministic=True)
    PASSES[name](graph)
    assert graph.to_proto().SerializeToString(deterministic=True) == before


# Shape inference.


def test_shapes_are_known_with_a_symbolic_batch_and_numbers_once_bound():
    graph = load(convnet())
    assert graph.tensor(graph.nodes[0].outputs[0]).shape == ("N", 8, 12, 12)
    bound = graph.bind({"N": 4})
    assert all(bound.tensor(name).static for node in bound.nodes for name in node.outputs)


def test_a_stale_claim_about_an_inner_tensor_is_dropped():
    model = convnet()
    inner = model.graph.node[0].output[0]
    model.graph.value_info.add(name=inner).type.tensor_type.elem_type = TensorProto.FLOAT
    for n in (1, 8, 99, 99):
        model.graph.value_info[0].type.tensor_type.shape.dim.add(dim_value=n)
    assert load(model).tensor(inner).shape == ("N", 8, 12, 12)


@pytest.mark.parametrize("opset", [11, 19, 22])
@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("bound", [False, True])
def test_a_pool_that_rounds_up_has_the_shape_that_onnx_runtime_makes(opset, op_type, bound):
    # ONNX counts windows behind the padding in all but the last two of these. ONNX Runtime seldom runs the fourth.
    for size, kernel, strides, attributes in (
        ((3, 3), [2, 2], [2, 2], {"pads": [1, 1, 1, 1]}),
        ((4, 8), [1, 3], [2, 2], {}),
        ((6, 4), [1, 1], [2, 3], {"auto_pad": "VALID"}),
        *([((5, 5), [3, 1], [1, 3], {"auto_pad": "SAME_UPPER"})] if (op_type, opset) == ("AveragePool", 19) else []),
        ((8, 6), [3, 3], [2, 2], {"pads": [0, 0, 1, 1]}),
        ((9, 6), [3, 2], [2, 2], {"auto_pad": "SAME_LOWER"}),
    ):
        b = Builder(opset=opset)
        pooled = b.op(op_type, "x", kernel_shape=kernel, strides=strides, ceil_mode=1, **attributes)
        b.op(op_type, b.op("Relu", pooled), outputs=["y"], kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1)
        graph = load(b.model({"x": (1, 2, *(("H", "W") if bound else size))}, {"y": None, pooled: None}))
        if bound:
            graph = graph.bind(dict(zip("HW", size, strict=True)))
        verify(graph)
        made = run(graph.to_proto(), {"x": np.ones((1, 2, *size), np.float32)})
        assert {name: graph.tensor(name).shape for name in made} == {name: y.shape for name, y in made.items()}


@pytest.mark.parametrize("order", [1, -1])
def test_an_output_that_is_an_input_or_a_constant_hides_no_shape(order):
    b = Builder()
    b.op("Relu", b.conv("x", 4, 4), outputs=["y"])
    names = ("y", "x", b.initializers[0].name)[::order]
    shapes = {"y": None, "x": (1, 4, 6, 6), b.initializers[0].name: (4, 4, 3, 3)}
    graph = load(b.model({"x": (1, 4, 6, 6)}, {name: shapes[name] for name in names}))
    verify(graph)
    assert {name: graph.tensor(name).shape for name in shapes} == {**shapes, "y": (1, 4, 6, 6)}
    assert [tensor.name for tensor in graph.outputs] == list(names)


@pytest.mark.parametrize("claim", [None, (1, 4, 6, 7)])
def test_an_input_that_is_also_an_output_is_what_its_input_entry_says(claim):
    b = Builder()
    b.op("Relu", "x", outputs=["y"])
    graph = load(b.model({"x": ("N", 4, 6, 6)}, {"y": None, "x": claim}))
    assert graph.inputs[0].shape == graph.tensor("y").shape == ("N", 4, 6, 6)


def test_the_shape_a_file_claims_for_an_output_stays_where_inference_knows_less():
    b = Builder()
    b.op("NonZero", "x", outputs=["where"])
    graph = load(b.model({"x": [2, 3]}, {"where": (2, "found")}, dtypes={"where": TensorProto.INT64}))
    assert graph.outputs[0].shape == (2, "found")


# Constant folding.


def test_float16_weights_behind_a_cast_fold():
    b = Builder()
    weights = b.constant(b.rng.standard_normal((4, 3, 3, 3)).astype(np.float16))
    b.op("Conv", "x", b.op("Cast", weights, to=TensorProto.FLOAT, outputs=["wide"]), outputs=["y"])
    graph = check_same(b.model({"x": [1, 3, 5, 5]}, {"y": [1, 4, 3, 3]}))
    assert ops(graph) == ["Conv"]
    constant = graph.constant("wide")
    assert constant.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        constant[0] = 0


def test_dequantized_weights_fold():
    b = Builder()
    codes = b.rng.integers(-127, 128, (4, 6)).astype(np.int8)
    w = b.op("DequantizeLinear", b.constant(codes), b.constant(np.float32(0.01)), b.constant(np.int8(3)))
    b.op("MatMul", "x", w, outputs=["y"])
    graph = load(b.model({"x": [2, 4]}, {"y": [2, 6]}))
    assert ops(graph) == ["MatMul"]
    np.testing.assert_array_equal(graph.constant(w), (codes.astype(np.float32) - 3) * np.float32(0.01))


def test_weights_made_by_constant_of_shape_fold_however_big_they_are():
    b = Builder(opset=9)
    fill = ir.to_proto(ir.tensor(np.array([0.5], np.float32)))
    shape = b.constant(np.array([40000, 25000], np.int64))
    b.op("Gemm", "x", b.op("ConstantOfShape", shape, value=fill, outputs=["w"]), "b", outputs=["y"])
    b.op("ConstantOfShape", b.constant(np.array([25000], np.int64)), outputs=["b"])
    graph = load(b.model({"x": [1, 40000]}, {"y": [1, 25000]}))
    assert ops(graph) == ["Gemm"]
    assert graph.constant("w").shape == (40000, 25000)
    assert graph.constant("w")[3, 4] == 0.5
    assert graph.macs(graph.nodes[0]) == graph.weight_elements(graph.nodes[0]) == 10**9


def test_a_big_constant_that_is_no_weight_stays_computed():
    b = Builder()
    big = b.op("Expand", b.constant(np.float32(1)), b.constant(np.array([17 << 10, 1 << 10], np.int64)))
    b.op("Add", "x", big, outputs=["y"])
    assert ops(load(b.model({"x": [1]}, {"y": [17 << 10, 1 << 10]}))) == ["Expand", "Add"]


def test_shape_arithmetic_folds_once_the_batch_is_bound():
    b = Builder()
    batch = b.op("Gather", b.op("Shape", "x"), b.constant(np.int64(0)), axis=0)
    target = b.op("Concat", b.unsqueeze(batch, [0]), b.constant(np.array([-1], np.int64)), axis=0)
    b.op("Relu", b.op("Reshape", "x", target), outputs=["y"])
    model = b.model({"x": ["N", 3, 4]}, {"y": ["N", 12]})
    assert "Shape" in ops(check_same(model))
    bound = load(model).bind({"N": 2})
    assert ops(bound) == ["Reshape", "Relu"]
    assert bound.outputs[0].shape == (2, 12)
    check_same(model, bound)


def test_random_operators_and_outputs_do_not_fold():
    b = Builder()
    b.op("RandomNormal", shape=[2], outputs=["noise"])
    b.op("Add", "x", "noise", outputs=["y"])
    b.op("Neg", b.constant(np.float32(3)), outputs=["z"])
    assert ops(load(b.model({"x": [2]}, {"y": [2], "z": []}))) == ["RandomNormal", "Add", "Neg"]


def test_an_operator_without_a_kernel_does_not_keep_others_from_folding():
    b = Builder()
    odd = b.op("Sign", b.constant(np.array([1, 2], np.int16)))
    none = b.op("Max", b.constant(np.array([1, 2], np.int16)), b.constant(np.array([1, 1], np.int16)))
    b.op("Add", "x", b.op("Cast", odd, to=TensorProto.FLOAT), outputs=["y"])
    b.op("Add", "x", b.op("Cast", none, to=TensorProto.FLOAT), outputs=["z"])
    graph = load(b.model({"x": [2]}, {"y": [2], "z": [2]}))
    assert "Max" in ops(graph)
    assert "Sign" not in ops(graph)


# Batch norms.


def test_batch_norms_fold_into_convolutions_and_the_output_keeps_its_name():
    b = Builder()
    y = b.batch_norm(b.conv("x", 3, 4), 4)
    b.op("Relu", y, outputs=["r"])
    graph = check_same(b.model({"x": [1, 3, 6, 6]}, {"r": [1, 4, 6, 6]}))
    assert ops(graph) == ["Conv", "Relu"]
    assert graph.nodes[0].outputs == (y,)
    assert graph.nodes[0].name == "Conv_3"


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_batch_norm_folds_into_gemm_with_alpha_and_beta(transposed):
    b = Builder()
    weights = b.weights(4, 6) if transposed else b.weights(6, 4)
    g = b.op("Gemm", "x", weights, b.constant(np.float32(0.7)), transB=transposed, alpha=0.3, beta=1.7)
    b.op("Identity", b.batch_norm(g, 4), outputs=["y"])
    assert ops(check_same(b.model({"x": [5, 6]}, {"y": [5, 4]}))) == ["Gemm"]


def test_weights_shared_by_two_convolutions_fold_apart():
    b = Builder()
    w = b.weights(3, 3, 1, 1)
    first = b.batch_norm(b.op("Conv", "x", w), 3)
    b.op("Add", first, b.op("Conv", "x", w), outputs=["y"])
    assert ops(check_same(b.model({"x": [1, 3, 4, 4]}, {"y": [1, 3, 4, 4]}))) == ["Conv", "Conv", "Add"]


@pytest.mark.parametrize("why", ["read twice", "an output", "training", "computed scale", "not finite", "per pixel"])
def test_a_batch_norm_or_scale_stays(why):
    b = Builder(opset=14)
    conv = b.conv("x", 3, 4)
    outputs = {"y": [1, 4, 4, 4]}
    dtypes = None
    if why == "training":
        p = [b.vector(4, 0.5, 1) for _ in range(4)]
        b.op("BatchNormalization", conv, *p, outputs=["y", "mean", "var"], training_mode=1)
        outputs |= {"mean": [4], "var": [4]}
    elif why == "computed scale":
        b.op("Mul", conv, b.op("GlobalAveragePool", conv), outputs=["y"])
    elif why == "not finite":
        b.op("Div", conv, b.constant(np.full((4, 1, 1), 1e-39, np.float32)), outputs=["y"])
    elif why == "per pixel":
        b.op("Add", conv, b.constant(np.arange(4, dtype=np.float32)), outputs=["y"])
    else:
        b.op("Identity", b.batch_norm(conv, 4), outputs=["y"])
        if why == "read twice":
            b.op("Relu", conv, outputs=["z"])
            outputs["z"] = [1, 4, 4, 4]
        else:
            outputs[conv] = [1, 4, 4, 4]
    graph = load(b.model({"x": [1, 3, 4, 4]}, outputs, dtypes=dtypes))
    assert len(ops(graph)) >= 2
    assert ops(graph)[0] == "Conv"
    assert {"BatchNormalization", "Mul", "Add", "Div"} & set(ops(graph))


# Identities.


def test_identities_go_and_the_graph_output_keeps_its_name():
    b = Builder()
    b.op("Dropout", b.op("Relu", b.op("Identity", "x")), outputs=["y"])
    graph = check_same(b.model({"x": ["N", 3]}, {"y": ["N", 3]}))
    assert ops(graph) == ["Relu"]
    assert graph.nodes[0].outputs == ("y",)


def test_an_identity_between_an_input_and_an_output_stays():
    b = Builder()
    b.op("Identity", "x", outputs=["y"])
    r = b.op("Relu", "x", outputs=["r"])
    b.op("Identity", r, outputs=["same"])
    graph = check_same(b.model({"x": [3]}, {"y": [3], "r": [3], "same": [3]}))
    assert sorted(ops(graph)) == ["Identity", "Identity", "Relu"]


def test_reshapes_to_the_same_shape_go_and_others_stay():
    b = Builder()
    same = b.op("Flatten", b.op("Reshape", "x", b.constant(np.array([0, 12], np.int64))), axis=1)
    b.op("Reshape", same, b.constant(np.array([-1, 3, 4], np.int64)), outputs=["y"])
    assert ops(check_same(b.model({"x": ["N", 12]}, {"y": ["N", 3, 4]}))) == ["Reshape"]


def test_a_dropout_whose_mask_is_read_or_that_trains_stays():
    b = Builder(opset=13)
    b.op("Dropout", "x", outputs=["y", "mask"])
    b.op("Dropout", "x", "", b.constant(np.array(True)), outputs=["z"])
    graph = load(b.model({"x": [3]}, {"y": [3], "mask": [3], "z": [3]}, dtypes={"mask": TensorProto.BOOL}))
    assert ops(graph) == ["Dropout", "Dropout"]


# Pads.


@pytest.mark.parametrize("opset", [7, 11, 18])
def test_zero_pads_go_into_the_convolution(opset):
    b = Builder(opset)
    b.op("Identity", b.conv(b.pad("x", [0, 0, 1, 2, 0, 0, 3, 0]), 3, 4, pads=[1, 0, 0, 1]), outputs=["y"])
    graph = check_same(b.model({"x": [1, 3, 6, 6]}, {"y": None}))
    assert ops(graph) == ["Conv"]
    assert graph.nodes[0].attributes["pads"] == [2, 2, 3, 1]


def test_pads_with_axes_go_into_the_convolution():
    b = Builder(18)
    pads, axes = b.constant(np.array([2, 1], np.int64)), b.constant(np.array([-1], np.int64))
    b.op("Conv", b.op("Pad", "x", pads, "", axes), b.weights(4, 3, 3, 3), outputs=["y"], auto_pad="VALID")
    graph = check_same(b.model({"x": [1, 3, 6, 6]}, {"y": None}))
    assert ops(graph) == ["Conv"]
    assert graph.nodes[0].attributes["pads"] == [0, 2, 0, 1]


@pytest.mark.parametrize("why", ["mode", "value", "channels", "crop", "auto_pad"])
def test_other_pads_stay(why):
    b = Builder(13)
    pads = {"channels": [0, 1, 0, 0, 0, 0, 0, 0], "crop": [0, 0, 1, 1, 0, 0, -1, 0]}.get(why, [0, 0, 1, 1, 0, 0, 1, 1])
    inputs = ["x", b.constant(np.array(pads, np.int64)), *([b.constant(np.float32(2))] if why == "value" else [])]
    padded = b.op("Pad", *inputs, mode="reflect" if why == "mode" else "constant")
    weights = b.weights(4, 4 if why == "channels" else 3, 3, 3)
    b.op("Conv", padded, weights, outputs=["y"], auto_pad="SAME_UPPER" if why == "auto_pad" else "NOTSET")
    assert ops(check_same(b.model({"x": [1, 3, 6, 6]}, {"y": None}))) == ["Pad", "Conv"]


# Dead nodes.


def test_what_no_output_needs_goes_but_inputs_stay():
    b = Builder()
    b.op("Relu", "x", outputs=["y"])
    b.op("Conv", "unused", b.weights(2, 2, 1, 1))
    graph = load(b.model({"x": [3], "unused": [1, 2, 3, 3]}, {"y": [3]}))
    assert ops(graph) == ["Relu"]
    assert [tensor.name for tensor in graph.inputs] == ["x", "unused"]
    assert not graph.model.graph.initializers


# The verifier.


def broken(how: str) -> Graph:
    model = load(convnet()).model.clone()
    graph = model.graph
    second = graph[1]
    match how:
        case "name":
            second.name = graph[0].name
        case "order":
            graph.remove(graph[0])
        case "shape":
            second.outputs[0].shape = ir.Shape([1, 2, 3, 4])
        case "schema":
            second.attributes.add(ir.AttrInt64("nonsense", 1))
        case "constant":
            next(iter(graph.initializers.values())).shape = ir.Shape([7])
        case "twice":
            second.outputs[0].name = graph[0].outputs[0].name
    return Graph(model)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("name", "must be unique"),
        ("order", "is not defined before it"),
        ("shape", "is recorded as"),
        ("schema", "nonsense"),
        ("constant", "its data is"),
        ("twice", "is already defined"),
    ],
)
def test_the_verifier_names_the_pass_and_what_is_wrong(how, words):
    with pytest.raises(ModelError, match=words) as error:
        verify(broken(how), "fold_everything")
    assert str(error.value).startswith("after fold_everything: ")
    assert "node " in str(error.value) or how == "constant"
