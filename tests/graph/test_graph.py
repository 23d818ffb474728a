"""The Graph itself: lookups, counting, binding, cutting, saving, fingerprints."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from fpgasim.errors import InputError, ModelError, UnknownNameError
from fpgasim.graph import Graph, load, saving

from .models import Builder, assert_same_outputs, convnet, feeds_for, light_model, run


@pytest.fixture(scope="module")
def net() -> Graph:
    return load(convnet(("residual", "dense")))


def test_nodes_and_tensors_are_found_by_name(net):
    first = net.nodes[0]
    assert net.node(first.name) is first
    assert net.producer(first.outputs[0]) is first
    assert net.producer("image") is None
    assert net.consumers("image") == (first,)
    assert net.consumers("scores") == ()
    assert net.tensor("image").shape == ("N", 3, 12, 12)
    assert net.tensor("image").dtype == np.float32
    assert net.constant("image") is None
    assert net.constant(first.inputs[1]).shape == (8, 3, 3, 3)
    assert net.producer(first.inputs[1]) is None
    assert first.attributes["pads"] == [1, 1, 1, 1]


def test_a_tensor_read_twice_by_one_node_has_one_consumer():
    b = Builder()
    b.op("Mul", "x", "x", outputs=["y"])
    graph = load(b.model({"x": [2]}, {"y": [2]}))
    assert graph.consumers("x") == graph.nodes


def test_an_absent_input_has_an_empty_name():
    b = Builder()
    b.op("Clip", "x", "", b.constant(np.float32(6)), outputs=["y"])
    graph = load(b.model({"x": [2]}, {"y": [2]}))
    assert graph.nodes[0].inputs[1] == ""


def test_an_unknown_name_is_refused_with_what_comes_close(net):
    with pytest.raises(InputError, match=r"no tensor 'imge'.*'image'"):
        net.tensor("imge")
    with pytest.raises(InputError, match=r"no node 'nothing like it'.*the first of its \d+ are 'Conv_4', 'Conv_\d+',"):
        net.node("nothing like it")
    for lookup in (net.constant, net.producer, net.consumers):
        with pytest.raises(InputError):
            lookup("imge")


def test_a_name_that_loading_folded_away_is_refused_with_the_way_to_keep_it():
    model = convnet(("conv_bn_relu",))
    conv = next(node for node in model.graph.node[1:] if node.op_type == "Conv").output[0]
    batch_norm = next(node.name for node in model.graph.node if node.op_type == "BatchNormalization")
    graph, whole = load(model), load(model, optimize=False)
    for lookup, name in ((Graph.tensor, conv), (Graph.node, batch_norm)):
        with pytest.raises(InputError, match=rf"'{name}'.*folded it away: fs\.load\(\.\.\., optimize=False\) keeps"):
            lookup(graph, name)
        lookup(whole, name)
    with pytest.raises(InputError) as error:
        whole.tensor("elsewhere")
    assert "folded" not in str(error.value)


def test_an_unknown_name_in_a_small_graph_is_refused_with_all_there_are():
    b = Builder()
    b.op("Relu", "x", outputs=["y"])
    graph = load(b.model({"x": [2]}, {"y": [2]}))
    with pytest.raises(InputError, match="no tensor 'elsewhere' in graph 'net'; there are 'x', 'y'"):
        graph.tensor("elsewhere")
    b = Builder()
    graph = load(b.model({"x": [2]}, {"x": [2]}))
    with pytest.raises(InputError, match="no node 'elsewhere' in graph 'net'; there are none"):
        graph.node("elsewhere")


def test_nodes_are_values_that_can_be_keys(net):
    assert len({*net.nodes, *net.nodes}) == len(net.nodes)


def test_multiply_accumulates_are_counted():
    b = Builder()
    x = b.conv("x", 4, 6, kernel=3, group=2, dilations=[2, 2])
    x = b.op("ConvTranspose", x, b.weights(6, 5, 2, 2), strides=[2, 2])
    x = b.op("Reshape", x, b.constant(np.array([10, 64], np.int64)))
    x = b.op("Gemm", x, b.weights(10, 7), transA=1)
    b.op("MatMul", b.op("Reshape", x, b.constant(np.array([2, 1, 32, 7], np.int64))), "z", outputs=["y"])
    graph = load(b.model({"x": [1, 4, 4, 8], "z": [1, 3, 7, 9]}, {"y": None}))
    counted = {node.op_type: (graph.macs(node), graph.weight_elements(node)) for node in graph.nodes}
    assert counted == {
        "Conv": (6 * 4 * 8 * 2 * 3 * 3, 6 * 2 * 3 * 3),
        "ConvTranspose": (6 * 4 * 8 * 5 * 2 * 2, 6 * 5 * 2 * 2),
        "Reshape": (0, 0),
        "Gemm": (64 * 7 * 10, 70),
        "MatMul": (2 * 3 * 32 * 9 * 7, 0),
    }


def test_a_vector_times_a_matrix_counts_the_matrix():
    b = Builder()
    b.op("MatMul", "x", b.weights(4, 6), outputs=["y"])
    graph = load(b.model({"x": [4]}, {"y": [6]}))
    assert (graph.macs(graph.nodes[0]), graph.weight_elements(graph.nodes[0])) == (24, 24)


def test_unbound_shapes_count_nothing(net):
    assert sum(map(net.macs, net.nodes)) == 0
    assert sum(net.macs(node) for node in net.bind({"N": 3}).nodes) == 0
    bound = net.bind({"N": 3})
    assert sum(map(bound.macs, bound.nodes)) == 3 * sum(map(net.bind().macs, net.bind().nodes)) > 0


def test_resnet50_has_the_published_number_of_operations():
    graph = load(light_model("resnet50"))
    assert sum(map(graph.macs, graph.nodes)) == 4_089_184_256
    assert sum(map(graph.weight_elements, graph.nodes)) == 25_502_912


# Binding.


def test_binding_is_by_symbol_with_a_default():
    b = Builder()
    b.op("Add", "a", "b", outputs=["c"])
    graph = load(b.model({"a": ["N", "M"], "b": ["N", None]}, {"c": None}))
    assert graph.symbols == ("N", "M", "b_dim1")
    bound = graph.bind({"M": 4, "b_dim1": 4}, default=2)
    assert bound.symbols == ()
    assert [tensor.shape for tensor in (*bound.inputs, *bound.outputs)] == [(2, 4)] * 3
    assert graph.symbols == ("N", "M", "b_dim1")
    assert bound.bind() is bound


def test_binding_refuses_unknown_symbols_and_sizes_below_one(net):
    with pytest.raises(UnknownNameError, match=r"'batch'.*N"):
        net.bind({"batch": 2})
    for size in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="dimension 'N'"):
            net.bind({"N": size})


def test_input_shapes_bind_their_symbols(net):
    assert net.with_input_shapes({"image": (3, 3, 12, 12)}).outputs[0].shape == (3, 5)
    with pytest.raises(UnknownNameError, match=r"'picture'.*image"):
        net.with_input_shapes({"picture": (1, 3, 12, 12)})
    assert net.with_input_shapes({"image": (0, 3, 12, 12)}).outputs[0].shape == (0, 5)
    for shape in ((1, 3, 13, 12), (3, 12, 12), (-1, 3, 12, 12)):
        with pytest.raises(InputError, match=r"takes \(N, 3, 12, 12\)"):
            net.with_input_shapes({"image": shape})


def test_input_shapes_must_agree_about_a_symbol():
    b = Builder()
    b.op("Add", "a", "b", outputs=["c"])
    graph = load(b.model({"a": ["N"], "b": ["N"]}, {"c": ["N"]}))
    with pytest.raises(InputError, match="'N'"):
        graph.with_input_shapes({"a": (2,), "b": (3,)})
    assert graph.with_input_shapes({"a": (2,)}).outputs[0].shape == (2,)


def test_an_input_without_a_rank_takes_any_shape():
    b = Builder()
    b.op("Relu", "x", outputs=["y"])
    model = b.model({"x": [1]}, {"y": None})
    model.graph.input[0].type.tensor_type.ClearField("shape")
    graph = load(model)
    assert graph.inputs[0].shape is None
    assert graph.with_input_shapes({"x": (2, 3)}).outputs[0].shape == (2, 3)


# Extraction.


def test_a_part_computes_what_the_whole_does_there(net):
    added = next(node for node in net.nodes if node.op_type == "Add")
    middle = net.consumers(added.outputs[0])[0].outputs[0]
    feeds = {"image": np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)}
    front, back = net.extract(["image"], [middle]), net.extract([middle], ["scores"])
    assert len(front.nodes) + len(back.nodes) == len(net.nodes)
    assert front.tensor(middle).shape == net.tensor(middle).shape
    between = run(front.to_proto(), feeds)
    assert_same_outputs(run(back.to_proto(), between), run(net.to_proto(), feeds))


def test_a_part_takes_along_only_the_weights_it_needs(net):
    part = net.extract(["image"], [net.nodes[0].outputs[0]])
    assert list(part.model.graph.initializers) == [name for name in net.nodes[0].inputs if name != "image"]


def test_extraction_refuses_what_does_not_hold_together(net):
    for args, words in [
        ((["image"], []), "at least one output"),
        ((["image"], ["nowhere"]), "no tensor 'nowhere'"),
        (([], ["scores"]), "need graph input 'image'"),
        ((["image", "image"], ["scores"]), "more than once"),
    ]:
        with pytest.raises(InputError, match=words):
            net.extract(*args)


# Saving.


def test_a_saved_graph_is_the_same_graph(net, tmp_path):
    net.save(tmp_path / "net.onnx")
    again = load(tmp_path / "net.onnx")
    assert again.fingerprint() == net.fingerprint()
    assert load(net.to_proto()).fingerprint() == net.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    model = onnx.load(tmp_path / "net.onnx")
    assert model.ir_version <= 13
    onnx.checker.check_model(model, full_check=True)


def test_weights_too_big_for_protobuf_are_saved_beside_the_file(net, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "INLINE_LIMIT_BYTES", 1000)
    with pytest.raises(ModelError, match=r"save\(path\)"):
        net.to_proto()
    net.save(tmp_path / "net.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx", "net.onnx.data"}
    again = load(tmp_path / "net.onnx")
    assert again.fingerprint() == net.fingerprint()
    feeds = {"image": np.ones((1, 3, 12, 12), np.float32)}
    monkeypatch.undo()
    assert_same_outputs(run(str(tmp_path / "net.onnx"), feeds), run(net.to_proto(), feeds))
    again.save(tmp_path / "net.onnx")
    assert load(tmp_path / "net.onnx").fingerprint() == net.fingerprint()


def test_a_path_that_cannot_be_written_is_named(net, tmp_path):
    with pytest.raises(ModelError, match="cannot write"):
        net.save(tmp_path / "no" / "net.onnx")


def test_a_constant_of_shape_is_saved_whole(tmp_path):
    b = Builder()
    b.op("MatMul", "x", b.op("ConstantOfShape", b.constant(np.array([3, 2], np.int64))), outputs=["y"])
    model = b.model({"x": [1, 3]}, {"y": [1, 2]})
    load(model).save(tmp_path / "net.onnx")
    feeds = feeds_for(model)
    assert_same_outputs(run(str(tmp_path / "net.onnx"), feeds), run(model, feeds))


# Fingerprints.


def test_a_fingerprint_tells_graphs_apart():
    def fingerprint(change) -> str:
        model = convnet(("conv_bias",))
        change(model)
        return load(model).fingerprint()

    def another_weight(model):
        raw = bytearray(model.graph.initializer[0].raw_data)
        raw[0] ^= 1
        model.graph.initializer[0].raw_data = bytes(raw)

    def another_attribute(model):
        next(a for a in model.graph.node[0].attribute if a.name == "pads").ints[0] = 2

    def another_symbol(model):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "M"

    def another_description(model):
        model.doc_string, model.producer_name = "text", "somebody"

    same = fingerprint(lambda model: None)
    assert len(same) == 64
    assert fingerprint(another_description) == same
    assert len({same, *map(fingerprint, (another_weight, another_attribute, another_symbol))}) == 4


def test_types_that_numpy_lacks_and_strings_are_described():
    b = Builder()
    b.op("Cast", "x", to=TensorProto.BFLOAT16, outputs=["y"])
    b.op("Cast", "x", to=TensorProto.STRING, outputs=["z"])
    dtypes = {"y": TensorProto.BFLOAT16, "z": TensorProto.STRING}
    graph = load(b.model({"x": [2]}, {"y": [2], "z": [2]}, dtypes=dtypes))
    assert graph.tensor("y").dtype.name == "bfloat16"
    assert graph.tensor("z").dtype == object
