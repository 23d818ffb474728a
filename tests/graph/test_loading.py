"""What `load` takes, what it refuses, and in which words."""

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fpgasim.errors import InputError, ModelError, WeightsError
from fpgasim.graph import load

from .models import OPSETS, Builder, assert_same_outputs, convnet, feeds_for, run


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def save_external(model: onnx.ModelProto, folder, location: str = "weights.bin") -> str:
    """Saves `model` with all its weights in `location`; the path of the model file."""
    path = folder / "model.onnx"
    onnx.save_model(
        onnx.ModelProto.FromString(model.SerializeToString()),
        path,
        save_as_external_data=True,
        location=location,
        size_threshold=0,
    )
    return str(path)


@pytest.mark.parametrize("opset", OPSETS)
def test_a_file_and_a_proto_of_every_opset_load_and_compute_the_same(opset, tmp_path):
    model = convnet(opset=opset)
    onnx.save(model, tmp_path / "net.onnx")
    feeds = feeds_for(model)
    want = run(model, feeds)
    for source in (model, tmp_path / "net.onnx", str(tmp_path / "net.onnx")):
        graph = load(source)
        assert graph.opset[""] == opset
        assert_same_outputs(run(graph.to_proto(), feeds), want)


@pytest.mark.parametrize("optimize", [False, True])
def test_the_callers_model_is_never_modified(optimize):
    model = convnet(("noop", "conv_scale_shift", "pad_conv", "dense"), opset=7)
    before = model.SerializeToString(deterministic=True)
    graph = load(model, optimize=optimize)
    graph.bind({"N": 3}).to_proto()
    assert model.SerializeToString(deterministic=True) == before


def test_a_graph_does_not_change_with_the_callers_model():
    model = convnet()
    graph = load(model)
    fingerprint = load(model).fingerprint()
    for tensor in model.graph.initializer:
        tensor.raw_data = b"\0" * len(tensor.raw_data)
    assert graph.fingerprint() == fingerprint


def test_without_optimizing_the_operators_are_those_of_the_file():
    model = convnet(("noop", "conv_scale_shift"))
    graph = load(model, optimize=False)
    assert [node.op_type for node in graph.nodes] == [node.op_type for node in model.graph.node]
    assert [node.name for node in graph.nodes] == [node.name for node in model.graph.node]


def test_initializers_that_are_also_inputs_are_constants():
    model = convnet(opset=7)
    assert len(model.graph.input) > 1
    graph = load(model)
    assert [tensor.name for tensor in graph.inputs] == ["image"]


def test_nodes_get_unique_names_and_topological_order():
    model = convnet()
    for i, node in enumerate(model.graph.node):
        node.name = "" if i % 2 else "again"
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    graph = load(model, optimize=False)
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    assert all(names)
    assert names[0] == "again"
    seen = {tensor.name for tensor in graph.inputs}
    for node in graph.nodes:
        assert all(name in seen or graph.constant(name) is not None for name in node.inputs)
        seen.update(node.outputs)


def test_unnamed_dimensions_get_symbols_of_their_own():
    model = convnet(batch=None)
    assert load(model).symbols == ("image_dim0",)
    for nameless in ("?", "-1", "None"):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = nameless
        assert load(model).symbols == ("image_dim0",)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert load(model).symbols == ("image_dim0",)


def test_a_model_local_function_is_inlined():
    body = [helper.make_node("Mul", ["x", "x"], ["square"]), helper.make_node("Relu", ["square"], ["y"])]
    function = helper.make_function("local", "Square", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    graph = helper.make_graph(
        [helper.make_node("Square", [x], [y], domain="local") for x, y in ("ab", "bc")],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)
    loaded = load(model)
    assert [node.op_type for node in loaded.nodes] == ["Mul", "Relu", "Mul", "Relu"]
    feeds = {"a": np.array([2, -3], np.float32)}
    assert_same_outputs(run(loaded.to_proto(), feeds), run(model, feeds))


def test_importing_fpgasim_does_not_import_onnx():
    code = "import fpgasim, sys; print({'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


# Files that are not models.


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError) as error:
        load(tmp_path / "no.onnx")
    assert "no.onnx" in one_line(error)
    with pytest.raises(ModelError) as error:
        load(tmp_path)
    assert "directory" in one_line(error)


def test_an_empty_path_and_a_path_that_no_file_can_have_are_shown_as_given():
    for path, shown in (("", "''"), ("a\0b", r"'a\x00b'")):
        with pytest.raises(ModelError) as error:
            load(path)
        assert f"model file {shown} cannot be read" in one_line(error)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ModelError) as error:
        load(tmp_path / "empty.onnx")
    assert "empty.onnx" in one_line(error)
    assert "0 bytes" in str(error.value)


def test_a_file_truncated_anywhere_is_refused(tmp_path):
    data = convnet(("conv_bn_relu",)).SerializeToString()
    path = tmp_path / "short.onnx"
    for size in [*range(1, 40), *range(40, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(ModelError) as error:
            load(path)
        assert "short.onnx" in one_line(error)


@pytest.mark.parametrize("garbage", [b"\0" * 64, b"GIF89a" * 9, b'{"graph": {}}', b"\x08\x07"])
def test_garbage_is_refused(garbage, tmp_path):
    (tmp_path / "picture.onnx").write_bytes(garbage)
    with pytest.raises(ModelError) as error:
        load(tmp_path / "picture.onnx")
    assert "picture.onnx" in one_line(error)


def test_flipped_bytes_never_raise_anything_but_our_errors():
    data = convnet(("conv_bn_relu",), channels=4).SerializeToString()
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(60):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            broken[at] = rng.integers(0, 256)
        model = onnx.ModelProto()
        try:
            model.ParseFromString(bytes(broken))
        except Exception:
            outcomes.add("not parsed")
            continue
        try:
            load(model)
            outcomes.add("loaded")
        except (ModelError, WeightsError) as error:
            outcomes.add("refused on two lines" if "\n" in str(error) else "refused")
    assert outcomes == {"not parsed", "loaded", "refused"}


def test_what_is_no_path_and_no_proto_is_refused():
    with pytest.raises(InputError, match="int"):
        load(3)


# Versions and operators.


@pytest.mark.parametrize("opset", [6, 29])
def test_an_opset_outside_the_range_is_refused(opset):
    model = convnet()
    model.opset_import[0].version = opset
    with pytest.raises(ModelError, match=f"opset is {opset}; 7 to 28"):
        load(model)


@pytest.mark.parametrize("version", [2, 15])
def test_an_ir_version_outside_the_range_is_refused(version):
    model = convnet()
    model.ir_version = version
    with pytest.raises(ModelError, match=f"IR version is {version}; 3 to 14"):
        load(model)


def test_an_unknown_operator_is_named_with_its_node():
    for domain in ("", "somewhere.else", "com.microsoft"):
        b = Builder()
        b.op("Foo", "x", outputs=["y"], domain=domain)
        model = b.model({"x": [2]}, {"y": [2]})
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))
        with pytest.raises(ModelError) as error:
            load(model)
        assert "'Foo_1'" in one_line(error)
        assert "'Foo'" in str(error.value)


def test_an_operator_of_onnx_runtime_alone_is_taken():
    b = Builder()
    b.op("QuickGelu", "x", outputs=["y"], domain="com.microsoft")
    model = b.model({"x": [2]}, {"y": [2]})
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    graph = load(model)
    assert graph.nodes[0].domain == "com.microsoft"
    assert graph.tensor("y").shape == (2,)


def test_an_operator_newer_or_older_than_the_opset_is_named():
    b = Builder(opset=13)
    b.op("Gelu", "x", outputs=["y"])
    with pytest.raises(ModelError, match=r"'Gelu' is newer than the model's opset 13; opset 20 has it"):
        load(b.model({"x": [2]}, {"y": [2]}))
    b = Builder(opset=13)
    b.op("Upsample", "x", b.constant(np.ones(4, np.float32)), outputs=["y"])
    with pytest.raises(ModelError, match=r"'Upsample' is not in the model's opset 13"):
        load(b.model({"x": [1, 1, 2, 2]}, {"y": None}))


def test_an_undefined_tensor_is_named_with_its_node():
    b = Builder()
    b.op("Add", "x", "nowhere", outputs=["y"])
    with pytest.raises(ModelError, match=r"node 'Add_1' \(Add\): input 'nowhere' is not defined before it"):
        load(b.model({"x": [2]}, {"y": [2]}))


def test_an_output_that_nothing_computes_is_named():
    b = Builder()
    b.op("Relu", "x", outputs=["y"])
    with pytest.raises(ModelError, match="graph output 'z'"):
        load(b.model({"x": [2]}, {"y": [2], "z": [2]}))


def test_a_cycle_is_refused():
    b = Builder()
    b.op("Add", "x", "b", outputs=["a"])
    b.op("Relu", "a", outputs=["b"])
    with pytest.raises(ModelError, match="cycle"):
        load(b.model({"x": [2]}, {"b": [2]}))


def test_shapes_that_do_not_fit_are_refused_with_the_node():
    b = Builder()
    b.op("MatMul", "x", b.weights(3, 4), outputs=["y"])
    with pytest.raises(ModelError) as error:
        load(b.model({"x": [2, 5]}, {"y": [2, 4]}))
    assert "MatMul_2" in one_line(error)


CONTRADICTIONS = {
    "channels": ("Conv", ((1, 3, 6, 6), (4, 4, 3, 3)), {}, r"'x' has 3 channels, but the weights 'w' .* take 4"),
    "channels of groups": ("Conv", ((1, 3, 6, 6), (4, 3, 3, 3)), {"group": 2}, r"'x' has 3 channels.* group=2 take 6"),
    "kernel": ("Conv", ((1, 3, 6, 6), (4, 3, 3, 3)), {"kernel_shape": [5, 5]}, r"kernel_shape=\[5, 5\].*\[3, 3\]"),
    "no group": ("Conv", ((1, 3, 6, 6), (4, 3, 3, 3)), {"group": 0}, "group=0; a whole number from 1 up"),
    "uneven groups": ("Conv", ((1, 4, 6, 6), (5, 2, 3, 3)), {"group": 2}, "5 rows of the weights 'w'.* group=2"),
    "bias": ("Conv", ((1, 3, 6, 6), (4, 3, 3, 3), (5,)), {}, r"bias 'c' has shape \(5,\).* make 4 channels"),
    "transposed": ("ConvTranspose", ((1, 3, 6, 6), (4, 3, 3, 3)), {}, r"'x' has 3 channels.* take 4"),
    "transposed bias": ("ConvTranspose", ((1, 2, 6, 6), (2, 3, 3, 3), (2,)), {"group": 2}, "'c'.* make 6 channels"),
    "Gemm": ("Gemm", ((2, 5), (3, 4), (4,)), {}, "inner dimensions 5 and 3"),
    "transposed Gemm": ("Gemm", ((5, 2), (4, 3), (4,)), {"transA": 1, "transB": 1}, "inner dimensions 5 and 3"),
    "Gemm's bias": ("Gemm", ((2, 3), (3, 4), (2, 5)), {}, r"'c' of shape \(2, 5\) does not broadcast to \(2, 4\)"),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_operands_that_contradict_each_other_are_refused_with_the_node(kind):
    op_type, shapes, attributes, message = CONTRADICTIONS[kind]
    b = Builder(opset=7)  # ONNX's inference looks away from all of them here
    b.op(op_type, *"xwc"[: len(shapes)], outputs=["y"], **attributes)
    model = b.model(dict(zip("xwc", shapes, strict=False)), {"y": None})
    with pytest.raises(ModelError, match=rf"node '{op_type}_1' \({op_type}\): .*{message}") as error:
        load(model)
    one_line(error)
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        run(model, feeds_for(model))


@pytest.mark.parametrize("known", [True, False])
def test_operands_that_fit_load_though_their_shapes_are_rare(known):
    cases = [
        ("Conv", ((2, 6, 9), (4, 3, 3), (4,)), {"group": 2, "kernel_shape": [3]}),
        ("ConvTranspose", ((1, 6, 5, 5), (6, 2, 3, 1), (6,)), {"group": 3, "kernel_shape": [3, 1]}),
        *(("Gemm", ((3, 2), (4, 3), c), {"transA": 1, "transB": 1}) for c in ((), (1,), (4,), (2, 1), (1, 4), (2, 4))),
    ]
    for op_type, shapes, attributes in cases:
        b = Builder(opset=11)
        b.op(op_type, *"xwc", outputs=["y"], **attributes)
        model = b.model(dict(zip("xwc", shapes, strict=True)), {"y": None})
        feeds = feeds_for(model)
        if not known:
            for info in model.graph.input:
                info.type.tensor_type.ClearField("shape")
        assert_same_outputs(run(load(model).to_proto(), feeds), run(model, feeds))


def test_operands_are_checked_once_their_symbols_are_bound():
    b = Builder()
    b.op("Conv", "x", b.weights(4, 3, 1, 1), outputs=["y"])
    graph = load(b.model({"x": (1, "C", 2, 2)}, {"y": None}))
    assert graph.bind({"C": 3}).outputs[0].shape == (1, 4, 2, 2)
    with pytest.raises(ModelError, match="'x' has 2 channels"):
        graph.bind({"C": 2})


def test_a_missing_required_attribute_is_refused_with_the_node():
    b = Builder()
    b.op("Concat", "x", "x", outputs=["y"])
    with pytest.raises(ModelError) as error:
        load(b.model({"x": [2]}, {"y": [4]}))
    assert "axis" in one_line(error)


def sparse(values: list[float], indices: list, dims: list[int]) -> onnx.SparseTensorProto:
    at = np.array(indices, np.int64)
    return helper.make_sparse_tensor(
        helper.make_tensor("w", TensorProto.FLOAT, [len(values)], values), numpy_helper.from_array(at, "i"), dims
    )


def with_sparse(tensor: onnx.SparseTensorProto, constant: bool) -> onnx.ModelProto:
    b = Builder()
    if constant:
        b.nodes.append(helper.make_node("Constant", [], ["w"], sparse_value=tensor))
    b.op("Add", "x", "w", outputs=["y"])
    model = b.model({"x": [2, 2]}, {"y": [2, 2]})
    if not constant:
        model.graph.sparse_initializer.append(tensor)
    return model


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("indices", [[1, 2], [[0, 1], [1, 0]]])
def test_a_sparse_constant_becomes_dense(constant, indices):
    model = with_sparse(sparse([5, 7], indices, [2, 2]), constant)
    graph = load(model)
    assert graph.constant("w").tolist() == [[0, 5], [7, 0]]
    assert len(model.graph.sparse_initializer) + constant == 1, "the model that was given stays as it is"
    x = {"x": np.ones((2, 2), np.float32)}
    assert_same_outputs(run(graph.to_proto(), x), run(model, x))


def test_a_broken_sparse_constant_is_refused_by_name():
    elsewhere = sparse([5], [1], [2, 2])
    elsewhere.values.data_location = TensorProto.EXTERNAL
    for tensor, words in (
        (sparse([5], [4], [2, 2]), "sparse tensor 'w' is broken: (1,) values at (1,) indices do not fit (2, 2)"),
        (sparse([5, 6], [1], [2, 2]), "sparse tensor 'w' is broken"),
        (sparse([5], [[2, 0]], [2, 2]), "sparse tensor 'w' is broken"),
        (sparse([5], [1], [1 << 20, 1 << 20]), "has more than 268435456 elements"),
        (elsewhere, "sparse tensor 'w' lies in another file; one in the model would do"),
    ):
        with pytest.raises(ModelError) as error:
            load(with_sparse(tensor, constant=False))
        assert words in one_line(error)


def test_the_standard_domain_has_two_names():
    b = Builder()
    b.op("Relu", "x", outputs=["y"])
    model = b.model({"x": [2]}, {"y": [2]})
    model.opset_import[0].domain = model.graph.node[0].domain = "ai.onnx"
    assert load(model).opset == {"": 17}


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
@pytest.mark.parametrize("as_float16", [False, True])
def test_weights_that_are_not_finite_are_named(bad, word, as_float16):
    array = np.ones((4, 3, 1, 1), np.float16 if as_float16 else np.float32)
    array[2, 1] = bad
    b = Builder()
    weights = b.constant(array, "filters")
    if as_float16:
        weights = b.op("Cast", weights, to=TensorProto.FLOAT, outputs=["filters_wide"])
    b.op("Conv", "x", weights, outputs=["y"])
    with pytest.raises(WeightsError) as error:
        load(b.model({"x": [1, 3, 2, 2]}, {"y": [1, 4, 2, 2]}))
    assert f"'{weights}'" in one_line(error)
    assert word in str(error.value)


def test_infinity_that_is_no_weight_is_taken():
    b = Builder()
    b.op("Add", "x", b.constant(np.array([0, -np.inf], np.float32)), outputs=["y"])
    assert load(b.model({"x": [2]}, {"y": [2]})).nodes[0].op_type == "Add"


def test_a_tensor_whose_data_does_not_fill_its_shape_is_named():
    model = convnet()
    name = model.graph.initializer[0].name
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    with pytest.raises(ModelError) as error:
        load(model)
    assert f"'{name}'" in one_line(error)


# External data.


def test_external_data_loads_and_need_not_stay(tmp_path):
    model = convnet()
    path = save_external(model, tmp_path)
    graph = load(path)
    os.remove(tmp_path / "weights.bin")
    assert graph.fingerprint() == load(model).fingerprint()


def test_external_data_in_a_folder_below_loads(tmp_path, monkeypatch):
    model = convnet()
    (tmp_path / "weights").mkdir()
    path = save_external(model, tmp_path, "weights/all.bin")
    assert load(path).fingerprint() == load(model).fingerprint()
    monkeypatch.chdir(tmp_path)
    assert load("model.onnx").fingerprint() == load(model).fingerprint()


def test_missing_external_data_is_named(tmp_path):
    path = save_external(convnet(), tmp_path)
    os.remove(tmp_path / "weights.bin")
    with pytest.raises(ModelError) as error:
        load(path)
    assert "'weights.bin'" in one_line(error)
    assert "missing" in str(error.value)


def test_short_external_data_is_named(tmp_path):
    path = save_external(convnet(), tmp_path)
    os.truncate(tmp_path / "weights.bin", 100)
    with pytest.raises(ModelError) as error:
        load(path)
    assert "too short" in one_line(error)


def relocate(path: str, location: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    onnx.save(model, path)


@pytest.mark.parametrize("kind", ["absolute", "parent", "link", "linked folder"])
def test_external_data_outside_the_folder_is_refused(kind, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    path = save_external(convnet(), home)
    os.rename(home / "weights.bin", tmp_path / "weights.bin")
    location = {
        "absolute": str(tmp_path / "weights.bin"),
        "parent": "../weights.bin",
        "link": "link.bin",
        "linked folder": "linked/weights.bin",
    }[kind]
    os.symlink(tmp_path / "weights.bin", home / "link.bin")
    os.symlink(tmp_path, home / "linked")
    relocate(path, location)
    with pytest.raises(ModelError) as error:
        load(path)
    assert "refused" in one_line(error)
    assert location in str(error.value)


def test_a_link_that_stays_inside_the_folder_is_followed(tmp_path):
    path = save_external(convnet(), tmp_path)
    os.rename(tmp_path / "weights.bin", tmp_path / "blob")
    os.symlink("blob", tmp_path / "weights.bin")
    assert load(path).nodes


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("value", ["-8", "abc", "", "9" * 5000])
@pytest.mark.parametrize("in_a_branch", [False, True])
def test_external_data_at_no_whole_number_of_bytes_is_named(key, value, in_a_branch, tmp_path):
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "filters")
    onnx.external_data_helper.set_external_data(tensor, "all.bin")
    tensor.ClearField("raw_data")
    tensor.external_data.add(key=key, value=value)
    b = Builder()
    if in_a_branch:
        output = helper.make_tensor_value_info("filters", TensorProto.FLOAT, [2])
        branch = helper.make_graph([], "branch", [], [output], [tensor])
        b.op("If", "x", outputs=["y"], then_branch=branch, else_branch=branch)
    else:
        b.initializers.append(tensor)
        b.op("Add", "x", "filters", outputs=["y"])
    (tmp_path / "model.onnx").write_bytes(b.model({"x": [2]}, {"y": [2]}).SerializeToString())
    with pytest.raises(ModelError, match=rf"tensor 'filters' has {key} '{value}'; a whole number of bytes"):
        load(tmp_path / "model.onnx")


def test_empty_external_data_at_an_offset_past_all_files_is_too_short(tmp_path):
    (tmp_path / "all.bin").write_bytes(b"")
    tensor = numpy_helper.from_array(np.ones(0, np.float32), "filters")
    onnx.external_data_helper.set_external_data(tensor, "all.bin", offset=10**19 - 1)
    tensor.ClearField("raw_data")
    b = Builder()
    b.initializers.append(tensor)
    b.op("Concat", "x", "filters", axis=0, outputs=["y"])
    (tmp_path / "model.onnx").write_bytes(b.model({"x": [2]}, {"y": [2]}).SerializeToString())
    with pytest.raises(ModelError, match=r"'all\.bin' of tensor 'filters' is too short"):
        load(tmp_path / "model.onnx")


def test_external_data_of_constant_nodes_is_checked_too(tmp_path):
    b = Builder()
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "secret")
    onnx.external_data_helper.set_external_data(tensor, "../secret.bin")
    tensor.ClearField("raw_data")
    b.op("Constant", outputs=["c"], value=tensor)
    b.op("Add", "x", "c", outputs=["y"])
    (tmp_path / "model.onnx").write_bytes(b.model({"x": [2]}, {"y": [2]}).SerializeToString())
    with pytest.raises(ModelError, match=r"'\.\./secret\.bin'.*refused"):
        load(tmp_path / "model.onnx")


def test_a_proto_with_external_data_asks_for_the_path(tmp_path):
    path = save_external(convnet(), tmp_path)
    with pytest.raises(ModelError, match="load the model by its path"):
        load(onnx.load(path, load_external_data=False))
