"""The networks that are here, and how one is made."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fpgasim.errors import UnknownNameError
from fpgasim.zoo import imagenet
from fpgasim.zoo.building import Drawing, to_model
from fpgasim.zoo.checkpoints import read_checkpoint
from fpgasim.zoo.efficientnet import efficientnet_lite
from fpgasim.zoo.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from fpgasim.zoo.resnet import resnet
from fpgasim.zoo.weights import match_weights, random_weights

if TYPE_CHECKING:
    import onnx

    from fpgasim.graph import Graph

#: The standard deviation of a channel of ImageNet's pixels, 0…255: what random weights expect before normalising.
PIXEL_STD = 58.0


@dataclass(frozen=True)
class Network:
    """A network of the zoo: how it is drawn, what it takes in and what its classes are called."""

    draw: Callable[[Drawing], list[str]]
    preprocessing: Preprocessing
    labels: Callable[[], list[str]] = imagenet.labels

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return 3, self.preprocessing.size, self.preprocessing.size


TORCHVISION = Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD, "center_crop", shorter_side=256)
#: Caffe's, Keras' and TF-Slim's: the mean taken off, nothing scaled.
MEAN_ONLY = Preprocessing(224, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0), "center_crop", shorter_side=256)
LITE = Preprocessing(224, (127.0,) * 3, (128.0,) * 3, interpolation="bicubic")

RESNET50 = (3, 4, 6, 3)
NETWORKS = {
    "resnet50": Network(partial(resnet, blocks=RESNET50, variant="v1.5"), TORCHVISION),
    "resnet50_v1": Network(partial(resnet, blocks=RESNET50, variant="v1"), MEAN_ONLY),
    "resnet50_slim": Network(partial(resnet, blocks=RESNET50, variant="slim"), MEAN_ONLY),
    "efficientnet_lite0": Network(efficientnet_lite, LITE),
}


def names() -> list[str]:
    """The names that `load`, `build` and `preprocess` take."""
    return list(NETWORKS)


def network(name: str) -> Network:
    """The entry of `name` in NETWORKS; raises UnknownNameError."""
    if not isinstance(name, str) or name not in NETWORKS:
        raise UnknownNameError("network", name, NETWORKS)
    return NETWORKS[name]


def build(
    name: str, weights: str | os.PathLike[str] | Mapping[str, Any] | None = None, seed: int = 0
) -> "onnx.ModelProto":
    """The network as an ONNX model: `input` (N, 3, size, size) to `logits`, BatchNormalization not folded.

    `weights` is a checkpoint's path (see `read_checkpoint`) or a mapping from name to array, matched by name one to
    one; None makes random weights from `seed`. Raises UnknownNameError for the network, WeightsError for the weights.
    """
    net = network(name)
    variance = sum((PIXEL_STD / std) ** 2 for std in net.preprocessing.std) / 3
    drawing = Drawing("input", net.input_shape, variance)
    outputs = net.draw(drawing)
    if weights is None:
        arrays = random_weights(drawing.parameters, seed)
    else:
        given = weights if isinstance(weights, Mapping) else read_checkpoint(weights)
        what = name if isinstance(weights, Mapping) else f"{name} (weights {os.fspath(weights)!r})"
        arrays = match_weights(drawing.parameters, given, what=what, optional=drawing.constants)
    return to_model(drawing, name, arrays, outputs)


def load(name: str, weights: str | os.PathLike[str] | Mapping[str, Any] | None = None, seed: int = 0) -> "Graph":
    """The network as a Graph, ready for `fpgasim.partition`; arguments and errors are those of `build`."""
    from fpgasim import graph

    return graph.load(build(name, weights, seed))
