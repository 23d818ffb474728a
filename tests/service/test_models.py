"""The classes of Azure's five networks, and pipelines written down with symbolic tensors."""

import hashlib
import http.server
import threading

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.errors import DownloadError, InputError, WeightsError
from fpgasim.service import (
    BrainWaveStage,
    FpgaStage,
    ModelDefinition,
    TensorflowStage,
    models,
    servable,
    symbolic as tf,
)
from fpgasim.service.models import MODELS, Densenet121, QuantizedDensenet121, QuantizedResnet50, Resnet50, SsdVgg, utils
from fpgasim.service.pipeline import definition_of
from fpgasim.service.registry import Model
from fpgasim.service.servables import SeededWeightsWarning

from .small import linear, model, picture, strings, two_outputs

NETWORKS = ("Resnet50", "Resnet152", "Densenet121", "Vgg16", "SsdVgg")


def tensors(**arguments):
    images = tf.placeholder(tf.string)
    return images, utils.preprocess_array(images, **arguments)


def imported(kind, tmp_path, **arguments):
    model = kind(tmp_path, **arguments)
    with pytest.warns(SeededWeightsWarning):
        return model, model.import_graph_def()


@pytest.fixture
def weights(tmp_path):
    """A checkpoint that is read, if not one of any network."""
    np.savez(tmp_path / "weights.npz", a=np.arange(6.0))
    return tmp_path / "weights.npz"


def test_there_is_a_class_for_each_network_and_its_quantized_twin():
    assert sorted(kind.__name__ for kind in MODELS.values()) == sorted(
        [*NETWORKS, *(f"Quantized{name}" for name in NETWORKS)]
    )
    for name in NETWORKS:
        exact, quantized = getattr(models, name), getattr(models, f"Quantized{name}")
        assert exact.network is quantized.network
        assert (exact.quantized, quantized.quantized) == (False, True)
        assert exact.network.model.name == name


@pytest.mark.parametrize(
    ("name", "ref", "version", "input_dims", "output_dims"),
    [
        ("QuantizedResnet50", "msfprn50", "1.1.2", [None, 224, 224, 3], [None, 1, 1, 2048]),
        ("Resnet152", "rn152", "1.1.2", [None, 224, 224, 3], [None, 1, 1, 2048]),
        ("Densenet121", "dn121", "1.1.4", [None, 224, 224, 3], [None, 1, 1, 1024]),
        ("QuantizedVgg16", "msfpvgg16", "1.1.2", [None, 224, 224, 3], [None, 1, 1, 4096]),
        ("SsdVgg", "vggssd", "1.1.3", [None, 300, 300, 3], [None, 37, 37, 4, 21]),
    ],
)
def test_versions_and_sizes_are_azures(tmp_path, name, ref, version, input_dims, output_dims):
    model = getattr(models, name)(tmp_path)
    assert (model.model_ref, model.version, model.model_version) == (ref, version, version)
    assert model.model_path == str(tmp_path / ref / version)
    assert model.get_input_dims() == model.input_dims == input_dims
    assert model.get_output_dims(0) == model.output_dims == output_dims
    with pytest.raises(InputError, match="index=12 of an output; a whole number from 0 to"):
        model.get_output_dims(12)


def test_tensors_print_as_in_tensorflow(tmp_path):
    images, image_tensors = tensors()
    assert str(images) == 'Tensor("Placeholder:0", shape=<unknown>, dtype=string)'
    assert str(image_tensors.shape) == "(?, 224, 224, 3)"
    assert image_tensors.get_shape().as_list() == [None, 224, 224, 3]
    model = QuantizedResnet50(tmp_path, is_frozen=True)
    with pytest.warns(SeededWeightsWarning, match="QuantizedResnet50 has random weights .seed 0.: its answers mean"):
        features = model.import_graph_def(image_tensors)
    assert (features.name, str(features.shape)) == ("resnet_v1_50/pool5:0", "(?, 1, 1, 2048)")
    assert model.input_tensor_list == [image_tensors.name]
    assert model.output_tensor_list == [features.name]
    output = model.get_default_classifier(features)
    assert str(output) == 'Tensor("classifier/resnet_v1_50/predictions/Softmax:0", shape=(?, 1000), dtype=float32)'
    assert model.get_default_classifier(features, "mine").name == "mine/resnet_v1_50/predictions/Softmax:0"


def test_a_detector_imports_as_twelve_tensors_and_has_no_classifier(tmp_path):
    model, features = imported(SsdVgg, tmp_path)
    assert [feature.name for feature in features] == model.output_tensor_list
    assert len(features) == 12
    with pytest.raises(InputError, match=r"SsdVgg has no classifier: fpgasim.zoo.detect"):
        model.get_default_classifier(features[0])
    with pytest.raises(InputError, match=r"takes float32 of shape \(\?, 300, 300, 3\); got Tensor"):
        model.import_graph_def(tensors()[1])


def test_a_class_gives_input_and_output_of_the_classifier_as_in_2018(tmp_path):
    _, features = imported(QuantizedResnet50, tmp_path)
    source, output = Resnet50.get_default_classifier(features, tmp_path)
    assert str(source) == 'Tensor("Input:0", shape=(?, 1, 1, 2048), dtype=float32)'
    assert output.name == "classifier/resnet_v1_50/predictions/Softmax:0"
    with pytest.raises(InputError, match=r"takes features of shape \(\?, 1, 1, 1024\)"):
        Densenet121.get_default_classifier(features, tmp_path)


@pytest.mark.parametrize(
    "steps",
    [
        lambda model, path: model.restore_weights(tf.Session()),
        lambda model, path: model.save_weights(path),
        lambda model, path: FpgaStage(model),
        lambda model, path: BrainWaveStage(tf.Session(), model),
    ],
)
def test_what_needs_the_graph_says_that_it_must_be_imported_first(tmp_path, steps):
    with pytest.raises(InputError, match="import_graph_def"):
        steps(QuantizedResnet50(tmp_path), tmp_path / "w")


def test_a_tensor_of_other_sizes_is_refused(tmp_path):
    model = QuantizedResnet50(tmp_path)
    with pytest.raises(InputError, match=r"takes float32 of shape \(\?, 224, 224, 3\); got Tensor"):
        model.import_graph_def(tensors(output_height=200)[1])
    with pytest.raises(InputError, match="symbolic tensor would do"):
        model.import_graph_def(np.zeros(3))


# Where weights come from


def test_weights_are_checked_by_their_hash(tmp_path, weights):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    for good in (digest, digest[:8].upper(), None):
        Resnet50(tmp_path, weights=weights, sha256=good).import_graph_def()
    for bad in ("0" * 64, digest[:7], digest[:-1] + ("0" if digest[-1] != "0" else "1")):
        with pytest.raises(WeightsError, match=f"have the SHA-256 {digest}, not {bad}"):
            Resnet50(tmp_path, weights=weights, sha256=bad).import_graph_def()


def test_weights_come_from_a_registered_model_and_changed_ones_are_refused(tmp_path, weights, workspace):
    registered = Model.register(workspace, weights, "weights")
    Resnet50(tmp_path, weights=registered).import_graph_def()
    registered.path.chmod(0o644)
    registered.path.write_bytes(bytes(len(weights.read_bytes())))
    with pytest.raises(WeightsError, match="have the SHA-256"):
        Resnet50(tmp_path, weights=registered).import_graph_def()


def test_weights_come_from_a_url_into_the_models_folder(tmp_path, weights):
    data = weights.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/resnet.npz"
        model = Resnet50(tmp_path / "models", weights=url, sha256=hashlib.sha256(data).hexdigest())
        model.import_graph_def()
        assert (tmp_path / "models" / "rn50" / "1.1.3" / "resnet.npz").read_bytes() == data
        with pytest.raises(DownloadError, match="SHA-256"):
            Resnet50(tmp_path / "others", weights=url, sha256="0" * 64).import_graph_def()
        server.shutdown()


def test_weights_in_the_models_own_folder_are_found(tmp_path, weights):
    model = Resnet50(tmp_path)
    (tmp_path / "rn50" / "1.1.3").mkdir(parents=True)
    weights.rename(tmp_path / "rn50" / "1.1.3" / "resnet50.npz")
    model.import_graph_def()  # warns of nothing
    with pytest.raises(WeightsError, match="resnet50_slim"):
        assert model.graph


def test_a_folder_of_ones_own_weights_must_hold_some(tmp_path):
    with pytest.raises(WeightsError, match=r"custom_weights_directory .* holds no checkpoint"):
        QuantizedResnet50(tmp_path, custom_weights_directory=tmp_path / "none").import_graph_def()


def test_what_are_no_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match="weights is a int; a path, a URL, a registered Model or a mapping would do"):
        Resnet50(tmp_path, weights=3).import_graph_def()  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="cannot be read"):
        Resnet50(tmp_path, weights=tmp_path / "no.npz").import_graph_def()


def test_a_frozen_model_takes_no_other_weights(tmp_path, weights):
    frozen, _ = imported(QuantizedResnet50, tmp_path, is_frozen=True)
    frozen.restore_weights(tf.Session())
    with pytest.raises(InputError, match="frozen"):
        frozen.restore_weights(weights=weights)
    open_, _ = imported(QuantizedResnet50, tmp_path)
    open_.restore_weights(weights=weights)


# Pipelines of symbolic tensors


def own_network(images):
    """Pictures, made smaller, through a network of one's own on the CPU."""
    small = utils.preprocess_array(images, output_height=2, output_width=2, preserve_aspect_ratio=False)
    flat = model("flat (float[N, 2, 2, 3] x) => (float[N, 12] y) { y = Flatten (x) }")
    return small, tf.import_graph(fs.load(flat), small, prefix="own")


def test_a_session_computes_tensors_and_the_service_the_same(tmp_path):
    images = tf.placeholder(tf.string)
    small, flat = own_network(images)
    output = tf.import_graph(linear("flat", "classes", rows=12), flat, prefix="head")
    data = [picture(1), picture(2)]
    with tf.Session() as session:
        pixels, classes = session.run([small, output], {images: data})
        tf.saved_model.simple_save(session, tmp_path / "net", {"images": images}, {"output_alias": output})
    assert np.array_equal(
        pixels, utils.preprocess_array(data, output_height=2, output_width=2, preserve_aspect_ratio=False)
    )
    s = servable(tmp_path / "net")
    assert s.name == "net"
    assert s.signature.aliases == {"images": "Placeholder:0", "output_alias": "head/classes"}
    assert np.array_equal(s.run({"images": strings(*data)}).outputs["output_alias"], classes)
    assert np.array_equal(session.run(output, {flat: pixels.reshape(2, 12)}), classes)


def test_the_keys_of_simple_save_are_the_names_that_clients_may_use(tmp_path):
    images = tf.placeholder(tf.string)
    _, flat = own_network(images)
    tf.saved_model.simple_save(None, tmp_path / "net", {"photo": images}, {"numbers": flat})
    assert list(servable(tmp_path / "net").run({"photo": strings(picture())}).outputs) == ["numbers"]


def test_a_pipeline_that_is_no_row_of_stages_is_refused():
    x = tf.placeholder("float32", (None, 2))
    a, b = tf.import_graph(two_outputs(), x)
    more = tf.import_graph(two_outputs(), a, prefix="more")
    with pytest.raises(InputError, match="is not made of 'Placeholder:0' by stages in a row"):
        definition_of({"x": x}, {"one": b, "two": more[0]}, "both")
    with pytest.raises(InputError, match="is not made of 'other:0' by stages in a row"):
        definition_of({"x": tf.placeholder("float32", name="other")}, {"a": a}, "none")
    with pytest.raises(InputError, match="a mapping from names to symbolic tensors would do"):
        definition_of({}, {"a": a}, "none")


def test_a_session_says_what_it_lacks():
    x = tf.placeholder("float32", (None, 4), name="x")
    y = tf.import_graph(linear(), x)
    with pytest.raises(InputError, match=r'Tensor."x:0", shape=.., 4., dtype=float32. is neither fed nor made'):
        tf.Session().run(y)
    with pytest.raises(InputError, match=r"input 'x:0' has shape .2, 3."):
        tf.Session().run(y, {x: np.zeros((2, 3), np.float32)})
    with pytest.raises(InputError, match="a session computes tensors; got a str"):
        tf.Session().run(["y"])
    with pytest.raises(InputError, match="dtype='floaty' of placeholder"):
        tf.placeholder("floaty")
    with pytest.raises(InputError, match="holds no encoded pictures"):
        utils.preprocess_array(x)
    with pytest.raises(InputError, match="has 2 inputs; one would do"):
        tf.import_graph(fs.load(model("m (float[2] a, float[2] b) => (float[2] c) { c = Add (a, b) }")), x)


def test_a_tensorflow_stage_is_one_operation():
    images = tf.placeholder(tf.string)
    small, flat = own_network(images)
    definition = ModelDefinition()
    definition.pipeline += [TensorflowStage(None, images, small), TensorflowStage(None, small, flat, name="mine")]
    assert definition.servable().run({"images": strings(picture())}).outputs["output_alias"].shape == (1, 12)
    assert [stage.name for stage in definition.pipeline] == ["preprocessing", "mine"]
    with pytest.raises(InputError, match=r"is not made of .* in one operation; a stage for each would do"):
        TensorflowStage(None, images, flat)


def test_a_stage_of_the_fpga_is_no_tensorflow_stage(tmp_path):
    model, features = imported(QuantizedResnet50, tmp_path)
    with pytest.raises(InputError, match="is made on the FPGA; BrainWaveStage"):
        TensorflowStage(None, next(iter(model.operation.inputs.values())), features)
    with pytest.raises(InputError, match="a model such as QuantizedResnet50 would do"):
        BrainWaveStage(None, 3)


def test_features_without_places_get_them():
    flat = linear(rows=4, columns=3)
    out = models.with_places(flat, at_input=False)
    assert out.outputs[0].shape[1:] == (3, 1, 1)
    x = np.ones((2, 4), np.float32)
    expected = fs.compile(fs.partition(flat, "bw_a10", "fp32")).run({"x": x})["y"]
    got = fs.compile(fs.partition(out, "bw_a10", "fp32", require_fpga=True)).run({"x": x})["y"]
    assert np.array_equal(got, expected.reshape(2, 3, 1, 1))
    into = models.with_places(flat, at_input=True)
    got = fs.compile(fs.partition(into, "bw_a10", "fp32")).run({"x": x.reshape(2, 4, 1, 1)})["y"]
    assert np.array_equal(got, expected)
    assert (flat.inputs[0].shape[1:], flat.outputs[0].shape[1:]) == ((4,), (3,))


@pytest.mark.slow
def test_the_steps_of_2018_and_2019_give_what_the_zoo_serves(tmp_path):
    images, image_tensors = tensors(scaling_factor=0.017)
    model = QuantizedDensenet121(tmp_path, is_frozen=True)
    with pytest.warns(SeededWeightsWarning):
        features = model.import_graph_def(image_tensors)
    source, output = Densenet121.get_default_classifier(features, tmp_path)  # has the model's, and does not warn again
    definition = ModelDefinition()
    with tf.Session() as session:
        definition.pipeline.append(TensorflowStage(session, images, image_tensors))
        definition.pipeline.append(BrainWaveStage(session, model))
        definition.pipeline.append(TensorflowStage(session, source, output))
        definition.save(tmp_path / "service_def.zip")
        model.restore_weights(session)
        result = model.get_default_classifier(features)
        tf.saved_model.simple_save(session, tmp_path / "saved", {"images": images}, {"output_alias": result})
        data = picture(0, (250, 240), "JPEG")
        here = session.run(result, {images: [data]})
    with pytest.warns(SeededWeightsWarning):
        zoo = servable("densenet121_slim").run({"images": strings(data)}).outputs["output_alias"]
    assert np.array_equal(here, zoo)
    for path in ("service_def.zip", "saved"):
        s = servable(tmp_path / path)
        assert s.signature.aliases["output_alias"] == "classifier/densenet121/predictions/Softmax:0"
        assert np.array_equal(s.run({"images": strings(data)}).outputs["output_alias"], zoo)


@pytest.mark.slow
def test_weights_that_were_saved_come_back_and_a_classifier_of_ones_own_follows_them(tmp_path):
    images, image_tensors = tensors(scaling_factor=0.017)
    trained, _ = imported(Densenet121, tmp_path / "models", seed=5)
    where = trained.save_weights(tmp_path / "custom" / "densenet121_bw")
    assert where == str(tmp_path / "custom" / "densenet121_bw.npz")
    fine = QuantizedDensenet121(tmp_path / "models", custom_weights_directory=tmp_path / "custom")
    features = fine.import_graph_def(image_tensors)
    assert fine.graph.fingerprint() == fs.zoo.featurizer("densenet121_slim", seed=5).fingerprint()
    assert fine.classifier_graph.fingerprint() == fs.zoo.classifier("densenet121_slim", seed=5).fingerprint()
    output = tf.import_graph(fs.load(model_of_two_classes()), features, prefix="own")
    data = [picture(0, (250, 240), "JPEG")]
    with tf.Session() as session:
        values, exact, classes = session.run(
            [features, trained_features(trained, image_tensors), output], {images: data}
        )
    assert values.shape == exact.shape == (1, 1, 1, 1024)
    assert not np.array_equal(values, exact)
    assert np.corrcoef(values.ravel(), exact.ravel())[0, 1] > 0.95
    definition = definition_of({"images": images}, {"output_alias": output}, "own")
    assert np.array_equal(definition.servable().run({"images": strings(*data)}).outputs["output_alias"], classes)


def trained_features(model, image_tensors):
    return model.import_graph_def(image_tensors)


def model_of_two_classes():
    return model("""head (float[N, 1, 1, 1024] features) => (float[N, 2] y)
        <int64[1] axis = {3}, int64[1] zero = {0}, int64[1] two = {2}> {
            part = Slice (features, zero, two, axis)
            y = Flatten (part)
        }""")
