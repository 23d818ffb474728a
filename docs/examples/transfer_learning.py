"""Transfer learning: a ResNet-50 that stays as it is on the FPGA, a classifier of one's own behind it.

Fine and coarse stripes are told apart by a classifier trained on the features that the FPGA will compute, bit for
bit, so that it learns with their rounding. The weights of the featurizer go from one folder to the next with
`save_weights` and `custom_weights_directory`. They are drawn from a seed here; a checkpoint in that folder takes their
place. The whole is then deployed, scored and deleted.
"""

import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from PIL import Image

from fpgasim.service import (
    BrainWaveStage,
    LocalWebservice,
    Model,
    ModelDefinition,
    QuantizedResnet50,
    Resnet50,
    SeededWeightsWarning,
    TensorflowStage,
    Webservice,
    Workspace,
    client_from_service,
    symbolic as tf,
)
from fpgasim.service.models import utils

KINDS = ("fine", "coarse")


def drawn(kind, rng):
    """A picture of stripes of that kind as the bytes of a PNG, in colours, widths and directions of chance."""
    y, x = np.mgrid[:256, :256]
    angle, width = rng.uniform(0, np.pi), rng.uniform(3, 6) if kind == "fine" else rng.uniform(12, 24)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * np.pi / width)[..., None]
    dark, light = rng.uniform(0, 100, 3), rng.uniform(150, 255, 3)
    file = io.BytesIO()
    Image.fromarray(np.where(wave > 0, light, dark).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def pictures(count, seed):
    rng = np.random.default_rng(seed)
    kinds = np.arange(count) % len(KINDS)
    return np.array([drawn(KINDS[kind], rng) for kind in kinds], object), kinds


def trained(features, kinds, steps=300, rate=0.5):
    """Weights and bias of a softmax regression, by gradient descent on standardized features."""
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-3
    x, wanted = (features - mean) / deviation, np.eye(len(KINDS))[kinds]
    weights, bias = np.zeros((x.shape[1], len(KINDS))), np.zeros(len(KINDS))
    for _ in range(steps):
        powers = np.exp(x @ weights + bias)
        error = (powers / powers.sum(axis=1, keepdims=True) - wanted) / len(x)
        weights -= rate * (x.T @ error + 1e-3 * weights)
        bias -= rate * error.sum(axis=0)
    return weights / deviation[:, None], bias - (mean / deviation) @ weights


def as_onnx(weights, bias):
    """The classifier as an ONNX model: (n, 2048, 1, 1) to a probability for each kind."""
    size, kinds = weights.shape
    arrays = {"weights": weights.astype(np.float32), "bias": bias.astype(np.float32)}
    nodes = [
        helper.make_node("Flatten", ["features"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "kinds",
        [helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["n", size, 1, 1])],
        [helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["n", kinds])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tour(folder):
    print("== The weights, from a folder of one's own")
    images = tf.placeholder(tf.string)
    tensors = utils.preprocess_array(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeededWeightsWarning)
        trainable = Resnet50(folder / "float")
        trainable.import_graph_def(tensors)
    (folder / "mine").mkdir()
    print(Path(trainable.save_weights(folder / "mine")).name)
    model = QuantizedResnet50(folder / "models", is_frozen=True, custom_weights_directory=folder / "mine")
    features = model.import_graph_def(tensors)
    print(features.name, features.shape)

    print("\n== Features of the FPGA, and a classifier trained on them")
    learned, kinds = pictures(40, seed=1)
    unseen, truth = pictures(16, seed=2)
    with tf.Session() as session:
        seen = session.run(features, {images: learned}).reshape(len(learned), -1)
        (folder / "kinds.onnx").write_bytes(as_onnx(*trained(seen, kinds)).SerializeToString())
        result = tf.import_graph(str(folder / "kinds.onnx"), features, prefix="kinds", layout="NHWC")
        guessed = session.run(result, {images: unseen})
    print(f"right on {(guessed.argmax(axis=1) == truth).sum()} of {len(truth)} pictures it has not seen")

    print("\n== Deployed")
    definition = ModelDefinition("kinds")
    definition.pipeline.append(TensorflowStage(None, images, tensors))
    definition.pipeline.append(BrainWaveStage(None, model))
    definition.pipeline.append(TensorflowStage(None, features, result))
    definition.save(str(folder / "service_def.zip"))
    ws = Workspace.create("kinds", path=folder / "workspace")
    registered = Model.register(ws, str(folder / "service_def.zip"), "kinds")
    service = Webservice.deploy_from_model(ws, "kinds", [registered], None, LocalWebservice.deploy_configuration())
    try:
        service.wait_for_deployment()
        with client_from_service(service) as client:
            for at in range(2):
                scores = client.score_file(unseen[at])
                print(KINDS[truth[at]], "is taken for", KINDS[scores.argmax()])
                print("the same bits as before:", (scores == guessed[at]).all())
    finally:
        service.delete()
    registered.delete()


with tempfile.TemporaryDirectory() as place:
    tour(Path(place))
