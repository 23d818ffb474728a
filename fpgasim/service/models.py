"""The five networks of Azure's FPGA service, as its SDK had them: classes that import a featurizer and its classifier.

`QuantizedResnet50` and such compute in a Session as the FPGA will, `Resnet50` and such in float32, as for training; in
a service both run on the FPGA. Names, versions and cuts are Azure's (`fpgasim.zoo.azure`), the weights those that are
given.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fpgasim.errors import InputError, WeightsError
from fpgasim.graph import Graph
from fpgasim.service import preprocessing as utils, symbolic
from fpgasim.service.bundles import as_path
from fpgasim.service.servables import warn_seeded
from fpgasim.service.symbolic import Operation, Session, Shape, Tensor
from fpgasim.zoo.azure import DENSENET121, RESNET50, RESNET152, SSD_VGG, VGG16, Azure, AzureModel, Dims

if TYPE_CHECKING:
    from fpgasim.service.registry import Model

__all__ = [
    "MODELS",
    "BrainwaveModel",
    "Densenet121",
    "QuantizedDensenet121",
    "QuantizedResnet50",
    "QuantizedResnet152",
    "QuantizedSsdVgg",
    "QuantizedVgg16",
    "Resnet50",
    "Resnet152",
    "SsdVgg",
    "Vgg16",
    "utils",
]

#: How files of weights end; of TensorFlow's checkpoints the index stands for all.
ENDINGS = (".npz", ".safetensors", ".pth", ".pt", ".onnx", ".h5", ".ckpt", ".index")


class _DefaultClassifier:
    """`get_default_classifier` of a model, which gives a tensor, and of a class, which gives two."""

    def __get__(self, model: BrainwaveModel | None, kind: type[BrainwaveModel]) -> Callable[..., Any]:
        return partial(_standalone_classifier, kind) if model is None else partial(_default_classifier, model)


class BrainwaveModel:
    """A featurizer for the FPGA, whose files lie in the folder `model_base_path`.

    Its weights are `weights`: the path of a checkpoint of any library that `fpgasim.zoo` reads, a URL, a registered
    Model, or a mapping from name to array; files are checked against `sha256`, if given. Without any, they are the
    newest checkpoint in `custom_weights_directory`, where that is given, else in `model_path`, as `save_weights` left
    it, else drawn from `seed`, with a SeededWeightsWarning. `is_frozen` says that they will not change:
    `restore_weights` then takes no others. Raises InputError for arguments that cannot be, WeightsError for weights
    that do not fit.
    """

    network: ClassVar[Azure]
    quantized: ClassVar[bool]

    def __init__(
        self,
        model_base_path: str | os.PathLike[str],
        is_frozen: bool = False,
        custom_weights_directory: str | os.PathLike[str] | None = None,
        *,
        weights: str | os.PathLike[str] | Model | Mapping[str, Any] | None = None,
        sha256: str | None = None,
        seed: int = 0,
    ) -> None:
        self._base, self.is_frozen = os.path.expanduser(as_path(model_base_path)), bool(is_frozen)
        self._custom = None if custom_weights_directory is None else Path(as_path(custom_weights_directory))
        self._given, self._sha256, self.seed = weights, sha256, seed
        self._arrays: Mapping[str, Any] | None = None
        self._graphs: dict[str, Graph] = {}
        self._warned = False
        self._input = self.network.input
        #: What makes its features in a pipeline; None until the graph is imported.
        self.operation: Operation | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base!r}, is_frozen={self.is_frozen})"

    @property
    def model_ref(self) -> str:
        return self._names.ref

    @property
    def version(self) -> str:
        return self._names.version

    @property
    def model_version(self) -> str:
        return self._names.version

    @property
    def model_path(self) -> str:
        """Where its files belong."""
        return os.path.join(self._base, self.model_ref, self.version)

    @property
    def input_tensor_list(self) -> list[str]:
        """The name of what it takes."""
        return [self._input]

    @property
    def output_tensor_list(self) -> list[str]:
        """The names of what it makes."""
        return list(self.network.features)

    @property
    def input_dims(self) -> list[int | None]:
        return self.get_input_dims()

    @property
    def output_dims(self) -> list[int | None]:
        return self.get_output_dims()

    def get_input_dims(self, index: int = 0) -> list[int | None]:
        """The sizes of its input, None the batch: [None, 224, 224, 3]. InputError for another index than 0."""
        return _indexed([self.network.input_dims], index, "input")

    def get_output_dims(self, index: int = 0) -> list[int | None]:
        """The sizes of an output: [None, 1, 1, 2048]. InputError for an index that no output has."""
        return _indexed(list(self.network.feature_dims), index, "output")

    def import_graph_def(self, input_tensor: Tensor | None = None, is_training: bool = True) -> Any:
        """The feature tensor made of `input_tensor`, by default of a placeholder; of an SSD the list of its twelve.

        The weights are looked for now, as the class says. `is_training` has no meaning here. Raises InputError for a
        tensor of other sizes than `get_input_dims` tells.
        """
        del is_training
        dims = Shape(self.network.input_dims)
        if input_tensor is None:
            input_tensor = symbolic.placeholder("float32", dims, self.network.input)
        if not isinstance(input_tensor, Tensor):
            raise InputError(f"input_tensor is a {type(input_tensor).__name__}; a symbolic tensor would do")
        shape = input_tensor.shape
        fits = shape is None or (
            len(shape) == len(dims) and all(a == b or None in (a, b) for a, b in zip(shape, dims, strict=True))
        )
        if input_tensor.dtype != symbolic.float32 or not fits:
            raise InputError(f"{type(self).__name__} takes float32 of shape {dims}; got {input_tensor!r}")
        self._load()
        self._input = input_tensor.name
        own = self._zoo.features
        self.operation = Operation(
            "featurizer", "fpga", lambda: self.graph, {"input": input_tensor},
            dict(zip(own, self.network.features, strict=True)), "NHWC", exact=not self.quantized, owner=self,
        )  # fmt: skip
        made = [
            Tensor(name, symbolic.float32, Shape(dims), self.operation)
            for name, dims in zip(self.network.features, self.network.feature_dims, strict=True)
        ]
        return made if len(made) > 1 else made[0]

    get_default_classifier = _DefaultClassifier()

    @property
    def graph(self) -> Graph:
        """The featurizer as an ONNX graph (n, c, h, w), made once for the weights."""
        from fpgasim import zoo

        if "featurizer" not in self._graphs:
            graph = zoo.featurizer(self.network.network, self._arrays, self.seed)
            flat = len(graph.outputs) == 1 and len(graph.outputs[0].shape or ()) == 2
            self._graphs["featurizer"] = with_places(graph, at_input=False) if flat else graph
        return self._graphs["featurizer"]

    @property
    def classifier_graph(self) -> Graph:
        """The default classifier as an ONNX graph. InputError for an SSD, WeightsError for weights without one."""
        from fpgasim import zoo

        if "classifier" not in self._graphs:
            graph = zoo.classifier(self.network.network, self._arrays, self.seed)
            flat = len(graph.inputs[0].shape or ()) == 2
            self._graphs["classifier"] = with_places(graph, at_input=True) if flat else graph
        return self._graphs["classifier"]

    def restore_weights(
        self, session: Session | None = None, weights: Any = None, *, sha256: str | None = None
    ) -> None:
        """Looks for the weights once more and takes them, or takes `weights`, given as to the class.

        `session` has no meaning here. Raises InputError before the graph is imported, and for others if it is frozen.
        """
        del session
        if self.operation is None:
            raise InputError(
                f"{type(self).__name__} has no graph yet; import_graph_def(input) comes before its weights"
            )
        if weights is not None:
            if self.is_frozen:
                raise InputError(
                    f"{type(self).__name__} is frozen and takes no other weights; is_frozen=False would do"
                )
            self._given, self._sha256 = weights, sha256
        self._load()

    def save_weights(self, path: str | os.PathLike[str], session: Session | None = None) -> str:
        """Writes the weights as npz and returns where: `path`, with .npz after it where it has no such ending; a folder
        gets a file called after the network, which `custom_weights_directory` finds.

        Raises InputError before the graph is imported, WeightsError where it cannot be written.
        """
        del session
        if self.operation is None:
            raise InputError(f"{type(self).__name__} has no weights yet; import_graph_def(input) gives it some")
        target = Path(as_path(path))
        if target.is_dir():
            target /= f"{self.network.save_name}.npz"
        elif target.suffix != ".npz":
            target = target.with_name(f"{target.name}.npz")
        arrays = self._arrays if self._arrays is not None else _drawn(self.network.network, self.seed)
        partial_file = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial_file.open("wb") as file:
                named: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
                np.savez(file, **named)
            os.replace(partial_file, target)
        except OSError as error:
            partial_file.unlink(missing_ok=True)
            raise WeightsError(f"weights {str(target)!r} cannot be written: {error.strerror or error}") from error
        return str(target)

    @property
    def _names(self) -> AzureModel:
        return self.network.quantized if self.quantized else self.network.model

    @property
    def _zoo(self) -> Any:
        from fpgasim import zoo

        return zoo.NETWORKS[self.network.network]

    def _load(self) -> None:
        """Finds the weights; warns where there are none."""
        self._graphs.clear()
        self._arrays = self._found()
        if self._arrays is None and not self._warned:
            self._warned = True
            warn_seeded(type(self).__name__, self.seed)

    def _found(self) -> Mapping[str, Any] | None:
        from fpgasim import zoo

        given = self._given
        if isinstance(given, Mapping):
            return given
        if isinstance(given, str) and "://" in given:
            return zoo.read_checkpoint(zoo.fetch(given, sha256=self._sha256, folder=self.model_path))
        if isinstance(given, str | os.PathLike):
            return zoo.read_checkpoint(_hashed(Path(given), self._sha256))
        if given is not None:
            from fpgasim.service.registry import Model

            if not isinstance(given, Model):
                raise InputError(
                    f"weights is a {type(given).__name__}; a path, a URL, a registered Model or a mapping would do"
                )
            return zoo.read_checkpoint(_hashed(given.path, self._sha256 or given.sha256))
        if self._custom is not None:
            newest = _newest(self._custom)
            if newest is None:
                raise WeightsError(
                    f"custom_weights_directory {str(self._custom)!r} holds no checkpoint ({', '.join(ENDINGS)})"
                )
            return zoo.read_checkpoint(newest)
        there = _newest(Path(self.model_path))
        return None if there is None else zoo.read_checkpoint(_hashed(there, self._sha256))


class Resnet50(BrainwaveModel):
    """TF-Slim's ResNet-50 v1, in float32 until it is served."""

    network, quantized = RESNET50, False


class QuantizedResnet50(BrainwaveModel):
    """TF-Slim's ResNet-50 v1 as the FPGA computes it."""

    network, quantized = RESNET50, True


class Resnet152(BrainwaveModel):
    """TF-Slim's ResNet-152 v1, in float32 until it is served."""

    network, quantized = RESNET152, False


class QuantizedResnet152(BrainwaveModel):
    """TF-Slim's ResNet-152 v1 as the FPGA computes it."""

    network, quantized = RESNET152, True


class Densenet121(BrainwaveModel):
    """DenseNet-121, in float32 until it is served; pictures with scaling_factor=0.017."""

    network, quantized = DENSENET121, False


class QuantizedDensenet121(BrainwaveModel):
    """DenseNet-121 as the FPGA computes it; pictures with scaling_factor=0.017."""

    network, quantized = DENSENET121, True


class Vgg16(BrainwaveModel):
    """VGG-16 up to fc7, in float32 until it is served; its default classifier gives logits."""

    network, quantized = VGG16, False


class QuantizedVgg16(BrainwaveModel):
    """VGG-16 up to fc7 as the FPGA computes it; its default classifier gives logits."""

    network, quantized = VGG16, True


class SsdVgg(BrainwaveModel):
    """SSD-300 on VGG-16, in float32 until it is served; pictures of 300 by 300, stretched, twelve tensors out."""

    network, quantized = SSD_VGG, False


class QuantizedSsdVgg(BrainwaveModel):
    """SSD-300 on VGG-16 as the FPGA computes it; pictures of 300 by 300, stretched, twelve tensors out."""

    network, quantized = SSD_VGG, True


_FLOAT = (Resnet50, Resnet152, Densenet121, Vgg16, SsdVgg)
_QUANTIZED = (QuantizedResnet50, QuantizedResnet152, QuantizedDensenet121, QuantizedVgg16, QuantizedSsdVgg)
#: Every class by the reference that its files are filed under.
MODELS: dict[str, type[BrainwaveModel]] = {
    **{kind.network.model.ref: kind for kind in _FLOAT},
    **{kind.network.quantized.ref: kind for kind in _QUANTIZED},
}


def _default_classifier(model: BrainwaveModel, input_tensor: Tensor, prefix: str = "classifier") -> Tensor:
    """The result of the default classifier on the features `input_tensor`, called after `prefix`.

    Its weights are the model's. Raises InputError for an SSD, which has no classifier, and for what are no features.
    """
    result = _checked_features(type(model), input_tensor)
    if model.operation is None:
        model._load()
    here = model._zoo
    operation = Operation(
        prefix, "cpu", lambda: model.classifier_graph, {here.features[0]: input_tensor},
        {"probabilities" if model.network.probabilities else "logits": f"{prefix}/{result}"}, "NHWC", owner=model,
    )  # fmt: skip
    return Tensor(f"{prefix}/{result}", symbolic.float32, Shape((None, len(here.labels()))), operation)


def _standalone_classifier(
    kind: type[BrainwaveModel], feature_tensor: Tensor, model_path: str | os.PathLike[str], prefix: str = "classifier"
) -> tuple[Tensor, Tensor]:
    """The input and the result of the default classifier for `feature_tensor`, the one fed by the other.

    Its weights are those of the model that makes the features, if that is of the same network, else what `kind` finds
    in the folder `model_path`.
    """
    _checked_features(kind, feature_tensor)
    owner = feature_tensor.operation.owner if feature_tensor.operation else None
    model = owner if isinstance(owner, BrainwaveModel) and owner.network is kind.network else kind(model_path)
    source = Tensor("Input:0", symbolic.float32, Shape(kind.network.feature_dims[0]), source=feature_tensor)
    return source, _default_classifier(model, source, prefix)


def _checked_features(kind: type[BrainwaveModel], features: Tensor) -> str:
    """What the classifier's result is called. InputError where there is none, or `features` are not what it takes."""
    result = kind.network.classifier_output
    if result is None:
        raise InputError(f"{kind.__name__} has no classifier: fpgasim.zoo.detect reads its twelve tensors")
    dims = Shape(kind.network.feature_dims[0])
    if not isinstance(features, Tensor) or features.shape not in (None, dims):
        raise InputError(f"the classifier of {kind.__name__} takes features of shape {dims}; got {features!r}")
    return result


def with_places(graph: Graph, *, at_input: bool) -> Graph:
    """`graph` with one more reshape: its one output, or input, (n, c) as (n, c, 1, 1), as Azure's features are."""
    import onnx_ir as ir

    model = graph.model.clone()
    inside = model.graph
    if at_input:
        flat = inside.inputs[0]
        name, sizes = flat.name, tuple(flat.shape or ())
        fed = ir.Value(name=name, type=flat.type, shape=ir.Shape([*sizes, 1, 1]))
        node = ir.node("Flatten", [fed], {"axis": 1}, name="places")
        flat.replace_all_uses_with(node.outputs[0])
        node.outputs[0].name = f"{name}_flat"
        inside.inputs[0] = fed
        inside.insert_before(inside[0], node)
    else:
        flat = inside.outputs[0]
        name, sizes = flat.name, tuple(flat.shape or ())
        flat.name = f"{name}_flat"
        shape = ir.tensor(np.array([0, sizes[1], 1, 1], np.int64), name="places_shape")
        constant = ir.Value(
            name="places_shape", const_value=shape, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([4])
        )
        inside.register_initializer(constant)
        node = ir.node("Reshape", [flat, constant], name="places")
        node.outputs[0].name, node.outputs[0].type = name, flat.type
        node.outputs[0].shape = ir.Shape([*sizes, 1, 1])
        inside.append(node)
        inside.outputs[0] = node.outputs[0]
    return Graph(model, optimized=graph.optimized)


def _indexed(dims: list[Dims], index: int, what: str) -> list[int | None]:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(dims):
        raise InputError(f"index={index!r} of an {what}; a whole number from 0 to {len(dims) - 1} would do")
    return list(dims[index])


def _drawn(network: str, seed: int) -> dict[str, Any]:
    """The weights that `seed` draws for the whole network, by the zoo's names."""
    from onnx import numpy_helper

    from fpgasim import zoo

    return {t.name: numpy_helper.to_array(t) for t in zoo.build(network, None, seed).graph.initializer}


def _newest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, if there is any."""
    if not folder.is_dir():
        return None
    there = [path for path in sorted(folder.iterdir()) if path.suffix in ENDINGS and path.is_file()]
    return max(there, key=lambda path: path.stat().st_mtime, default=None)


def _hashed(path: Path, sha256: str | None) -> Path:
    """`path`, once the file's hash is found to begin with `sha256`."""
    if sha256 is None:
        return path
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"weights {str(path)!r} cannot be read: {error.strerror or error}") from error
    if len(sha256) < 8 or not found.startswith(sha256.lower()):
        raise WeightsError(f"weights {str(path)!r} have the SHA-256 {found}, not {sha256}")
    return path
