"""SavedModels of TensorFlow, converted for the FPGA by tf2onnx: what comes out answers as TensorFlow does."""

import numpy as np
import pytest
import tensorflow as tf

from fpgasim.errors import ConversionError, InputError
from fpgasim.service import AccelOnnxConverter, Model, Workspace, servable

pytestmark = pytest.mark.filterwarnings("default")  # TensorFlow has its own
v1 = tf.compat.v1


@pytest.fixture
def workspace(tmp_path):
    return Workspace.create("tests", path=tmp_path / "workspace")


def classifier(folder, *, decode):
    """A SavedModel as TensorFlow 1 wrote them, and its answer to pictures (2, 8, 8, 3) of a few numbers."""
    with tf.Graph().as_default(), v1.Session() as session:
        if decode:
            fed = v1.placeholder(tf.string, [None], name="Placeholder")
            decoded = tf.map_fn(lambda one: tf.cast(tf.image.decode_jpeg(one, 3), tf.float32), fed, dtype=tf.float32)
            pictures = tf.identity(v1.image.resize_bilinear(decoded, (8, 8)), name="pictures")
        else:
            fed = pictures = v1.placeholder(tf.float32, [None, 8, 8, 3], name="pictures")
        kernel = tf.constant(np.linspace(-1, 1, 3 * 3 * 3 * 4).reshape(3, 3, 3, 4), tf.float32)
        hidden = tf.nn.relu(tf.nn.conv2d(pictures, kernel, 1, "SAME"))
        features = tf.reduce_mean(hidden, [1, 2], name="features")
        weights = v1.get_variable("weights", initializer=np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5))
        scores = tf.nn.softmax(tf.matmul(features, weights), name="classifier/Softmax")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(folder), {"images": fed}, {"output_alias": scores})
        return session.run(scores, {pictures: sample()})


def sample():
    return np.random.default_rng(0).random((2, 8, 8, 3), np.float32)


def converted(workspace, folder, *names):
    operation = AccelOnnxConverter.convert_tf_model(workspace, Model.register(workspace, folder, "tf"), *names)
    assert operation.wait_for_completion(show_output=True), operation.log
    return operation


@pytest.mark.parametrize(
    ("names", "decode"),
    [
        (("pictures:0", "classifier/Softmax:0"), False),
        (("images", "output_alias"), False),
        (("pictures:0", "classifier/Softmax:0"), True),
    ],
)
def test_a_saved_model_of_tensorflow_1_answers_as_it_did(workspace, tmp_path, names, decode):
    expected = classifier(tmp_path / "saved", decode=decode)
    operation = converted(workspace, tmp_path / "saved", *names)
    assert operation.plan.fpga_mac_share == 1
    got = servable(operation.result.path, fpga=None).run({names[0]: sample()}).outputs
    assert list(got) == [names[1]] if ":" in names[1] else ["output_alias"]
    (scores,) = got.values()
    np.testing.assert_allclose(scores, expected, atol=0.05)
    np.testing.assert_array_equal(scores.argmax(1), expected.argmax(1))


def test_a_saved_model_of_tensorflow_2_answers_as_it_did(workspace, tmp_path):
    class Linear(tf.Module):
        def __init__(self):
            self.weights = tf.Variable(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3))

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def __call__(self, x):
            return {"y": tf.nn.relu(x @ self.weights)}

    module = Linear()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.__call__)
    x = np.random.default_rng(0).random((2, 4), np.float32)
    for names in (("x", "y"), ("serving_default_x:0", "StatefulPartitionedCall:0")):
        operation = converted(workspace, tmp_path / "saved", *names)
        got = servable(operation.result.path).run({names[0]: x}).outputs[names[1]]
        np.testing.assert_allclose(got, module(x)["y"], atol=0.05)
    with pytest.raises(InputError, match="signature 'serving_default' has 'serving_default_x:0'"):
        AccelOnnxConverter.convert_tf_model(workspace, "tf:1", "x", "z")


def test_what_onnx_has_not_is_named_with_what_would_do(workspace, tmp_path):
    classifier(tmp_path / "saved", decode=True)
    operation = AccelOnnxConverter.convert_tf_model(
        workspace, Model.register(workspace, tmp_path / "saved", "tf"), "images", "output_alias"
    )
    assert not operation.wait_for_completion()
    with pytest.raises(ConversionError, match="DecodeJpeg"):
        assert operation.result
    assert "input_node behind" in str(operation.error)
