"""The networks that are here, and how one is made."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

from fpgasim.errors import InputError, UnknownNameError
from fpgasim.zoo import azure, boxes, imagenet, naming_tables, ssd
from fpgasim.zoo.azure import Azure
from fpgasim.zoo.azure_images import AzurePreprocessing
from fpgasim.zoo.building import Drawing, cut, to_model
from fpgasim.zoo.checkpoints import read_checkpoint
from fpgasim.zoo.densenet import Stem, densenet121
from fpgasim.zoo.efficientnet import efficientnet_lite
from fpgasim.zoo.images import LITE, MEAN_ONLY, PREPROCESSINGS, TORCHVISION, Preprocessing
from fpgasim.zoo.naming import OWN, Naming, match_named
from fpgasim.zoo.resnet import Variant, resnet
from fpgasim.zoo.ssd import Grid, ssd_vgg
from fpgasim.zoo.vgg import vgg16
from fpgasim.zoo.weights import random_weights

if TYPE_CHECKING:
    import onnx

    from fpgasim.graph import Graph

AnyPreprocessing: TypeAlias = Preprocessing | AzurePreprocessing
#: The standard deviation of a channel of ImageNet's pixels, 0…255: what random weights expect before normalising.
PIXEL_STD = 58.0


@dataclass(frozen=True)
class Network:
    """A network of the zoo: how it is drawn, what it takes in and what its classes are called.

    `features` are the tensors at which it is cut into featurizer and classifier, and `azure` what Azure's service
    called it, for the five that were in it. `namings` are the libraries whose weights it takes.
    """

    draw: Callable[[Drawing], list[str]]
    preprocessing: AnyPreprocessing
    features: tuple[str, ...]
    namings: tuple[Naming, ...] = OWN
    azure: Azure | None = None
    labels: Callable[[], list[str]] = imagenet.labels

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return 3, self.preprocessing.size, self.preprocessing.size


def _resnet(depth: int, variant: Variant, preprocessing: AnyPreprocessing) -> Network:
    blocks, names = {50: ((3, 4, 6, 3), azure.RESNET50), 152: ((3, 8, 36, 3), azure.RESNET152)}[depth]
    draw = partial(resnet, blocks=blocks, variant=variant)
    return Network(draw, preprocessing, ("avgpool",), naming_tables.resnet(depth), names)


def _densenet(stem: Stem, preprocessing: AnyPreprocessing) -> Network:
    draw = partial(densenet121, stem=stem)
    return Network(draw, preprocessing, ("avgpool",), naming_tables.DENSENET121, azure.DENSENET121)


def _vgg(preprocessing: AnyPreprocessing) -> Network:
    return Network(vgg16, preprocessing, ("relu7",), naming_tables.VGG16, azure.VGG16)


def _ssd(grid: Grid) -> Network:
    names = azure.SSD_VGG if grid == azure.SSD_VGG.feature_dims[0][1] else None
    preprocessing = PREPROCESSINGS["azure_ssd_vgg"]
    draw = partial(ssd_vgg, grid=grid)
    return Network(draw, preprocessing, ssd.OUTPUTS, naming_tables.SSD_VGG, names, boxes.labels)


NETWORKS = {
    "resnet50": _resnet(50, "v1.5", TORCHVISION),
    "resnet50_v1": _resnet(50, "v1", MEAN_ONLY),
    "resnet50_slim": _resnet(50, "slim", PREPROCESSINGS["azure"]),
    "resnet152": _resnet(152, "v1.5", TORCHVISION),
    "resnet152_v1": _resnet(152, "v1", MEAN_ONLY),
    "resnet152_slim": _resnet(152, "slim", PREPROCESSINGS["azure"]),
    "densenet121": _densenet("even", TORCHVISION),
    "densenet121_slim": _densenet("same", PREPROCESSINGS["azure_densenet121"]),
    "vgg16": _vgg(TORCHVISION),
    "vgg16_slim": _vgg(PREPROCESSINGS["azure"]),
    "ssd_vgg": _ssd(37),
    "ssd_vgg_38": _ssd(38),
    "efficientnet_lite0": Network(efficientnet_lite, LITE, ("_avg_pooling",)),
}


def names() -> list[str]:
    """The names that `load`, `build` and `preprocess` take."""
    return list(NETWORKS)


def network(name: str) -> Network:
    """The entry of `name` in NETWORKS; raises UnknownNameError."""
    if not isinstance(name, str) or name not in NETWORKS:
        raise UnknownNameError("network", name, NETWORKS)
    return NETWORKS[name]


Weights: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | None"


def build(name: str, weights: Weights = None, seed: int = 0) -> "onnx.ModelProto":
    """The network as an ONNX model: `input` (N, 3, size, size) to its outputs, BatchNormalization not folded.

    `weights` is a checkpoint's path (see `read_checkpoint`) or a mapping from name to array, whose names may be those
    of any library in NETWORKS[name].namings, matched one to one; None makes random weights from `seed`. The output is
    `logits`, for SSD the twelve of NETWORKS[name].features. Raises UnknownNameError for the network, InputError for
    arguments of another type, WeightsError for the weights.
    """
    drawing, outputs = _draw(network(name))
    return _model(name, drawing, ["input"], outputs, weights, seed)


def load(name: str, weights: Weights = None, seed: int = 0) -> "Graph":
    """The network as a Graph, ready for `fpgasim.partition`; arguments and errors are those of `build`."""
    return _graph(build(name, weights, seed))


def featurizer(name: str, weights: Weights = None, seed: int = 0) -> "Graph":
    """The network up to NETWORKS[name].features, the part that Azure ran on the FPGA; SSD's is the whole.

    `weights` may be those of the whole network, with whatever classifier, or without one. Arguments and errors are
    those of `build`; the same seed gives the same weights as there.
    """
    net = network(name)
    drawing, _ = _draw(net)
    return _graph(_model(f"{name}_featurizer", drawing, ["input"], net.features, weights, seed, name))


def classifier(name: str, weights: Weights = None, seed: int = 0) -> "Graph":
    """The network behind NETWORKS[name].features, as Azure's default classifier: it ends in `probabilities` where that
    did (ResNet, DenseNet), else in `logits`.

    Arguments and errors are those of `featurizer`. Raises InputError for SSD, whose features are its outputs.
    """
    net = network(name)
    drawing, outputs = _draw(net)
    if set(outputs) == set(net.features):
        raise InputError(f"network {name!r} has no classifier: its features are its outputs; fs.zoo.detect reads them")
    if net.azure and net.azure.probabilities:
        outputs = [drawing.softmax(outputs[0], "probabilities")]
    return _graph(_model(f"{name}_classifier", drawing, net.features, outputs, weights, seed, name))


def _draw(net: Network) -> tuple[Drawing, list[str]]:
    variance = sum((PIXEL_STD / std) ** 2 for std in net.preprocessing.std) / 3
    drawing = Drawing("input", net.input_shape, variance)
    return drawing, net.draw(drawing)


def _graph(model: "onnx.ModelProto") -> "Graph":
    from fpgasim import graph

    return graph.load(model)


def _model(
    title: str,
    drawing: Drawing,
    inputs: Sequence[str],
    outputs: Sequence[str],
    weights: Weights,
    seed: int,
    name: str = "",
) -> "onnx.ModelProto":
    """The part of network `name` (else `title`) from `inputs` to `outputs` with its weights."""
    part, name = cut(drawing, inputs, outputs), name or title
    if weights is not None and not isinstance(weights, str | os.PathLike | Mapping):
        raise InputError(f"weights={weights!r}; a checkpoint's path, a mapping from name to array or None would do")
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise InputError(f"seed={seed!r}; a whole number from 0 would do")
    if weights is None:
        arrays = random_weights(part.parameters, seed)
    else:
        given = weights if isinstance(weights, Mapping) else read_checkpoint(weights)
        what = title if isinstance(weights, Mapping) else f"{title} (weights {os.fspath(weights)!r})"
        rest = {key: parameter for key, parameter in drawing.parameters.items() if key not in part.parameters}
        arrays = match_named(
            part.parameters, given, NETWORKS[name].namings,
            network=name, what=what, rest=rest, constants=drawing.constants,
        )  # fmt: skip
    return to_model(part, title, arrays, inputs, outputs)
