"""TensorFlow Serving's PredictionService and ModelService."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fpgasim.errors import InputError
from fpgasim.service import tensors, wire
from fpgasim.service.hosting import SIGNATURE, Call, Host, Inputs, Methods
from fpgasim.service.limits import Refusal
from fpgasim.service.servables import Servable
from fpgasim.service.steps import TensorSpec

#: What a server does to serve the models of a ModelServerConfig in place of those it has.
Reload = Callable[[Any], None]
_METHOD_NAME = "tensorflow/serving/predict"


def prediction_service(host: Host) -> Methods:
    """The methods of PredictionService on the models of `host`."""
    response = wire.message("tensorflow.serving.PredictResponse")

    def predict(request: Any, call: Call) -> Any:
        servable = find(host, request.model_spec, call)

        def read() -> Mapping[str, Any]:
            inputs = Inputs(servable, host.max_input_bytes)
            for name, proto in request.inputs.items():
                inputs.add(name, partial(tensors.from_proto, proto, name))
            return inputs.arrays

        result = host.run(servable, read, request.output_filter, call)
        made = response(model_spec=_spec(servable))
        for name, array in result.outputs.items():
            made.outputs[name].CopyFrom(tensors.to_proto(array))
        return made

    def metadata(request: Any, call: Call) -> Any:
        servable = find(host, request.model_spec, call)
        fields = list(request.metadata_field)
        if not fields:
            raise Refusal("INVALID_ARGUMENT", "GetModelMetadataRequest must specify at least one metadata_field")
        for field in fields:
            if field != "signature_def":
                raise Refusal("INVALID_ARGUMENT", f"MetadataField {field} is not supported")
        made = wire.message("tensorflow.serving.GetModelMetadataResponse")(model_spec=_spec(servable))
        made.metadata["signature_def"].Pack(signature_defs(servable))
        return made

    def classify(request: Any, call: Call) -> Any:
        servable = find(host, request.model_spec, call)
        kind = request.input.WhichOneof("kind")
        if kind is None:
            raise Refusal("INVALID_ARGUMENT", "Input is empty")
        examples = getattr(request.input, kind).examples
        made = wire.message("tensorflow.serving.ClassificationResponse")(model_spec=_spec(servable))
        for row in classify_examples(host, servable, lambda: [_features(example) for example in examples], call):
            classes = made.result.classifications.add().classes
            for label, score in row:
                classes.add(label=label, score=score)
        return made

    return {"Predict": predict, "GetModelMetadata": metadata, "Classify": classify}


def model_service(host: Host, reload: Reload) -> Methods:
    """The methods of ModelService on the models of `host`."""
    messages = wire.message("tensorflow.serving.ModelVersionStatus").State.items()
    available = dict(messages)["AVAILABLE"]

    def model_status(request: Any, call: Call) -> Any:
        spec = request.model_spec
        name, model = host.model(spec.name, call.route)
        versions = sorted(model.versions, reverse=True)
        if spec.WhichOneof("version_choice") is not None:
            wanted = spec.version.value if spec.HasField("version") else model.labels.get(spec.version_label)
            if wanted not in versions:
                raise Refusal("NOT_FOUND", f"Could not find version {wanted} of model {name}")
            versions = [wanted]
        made = wire.message("tensorflow.serving.GetModelStatusResponse")()
        for version in versions:
            made.model_version_status.add(version=version, state=available).status.error_code = 0
        return made

    def handle_reload(request: Any, call: Call) -> Any:
        made = wire.message("tensorflow.serving.ReloadConfigResponse")()
        reload(request.config)
        made.status.error_code = 0
        return made

    return {"GetModelStatus": model_status, "HandleReloadConfigRequest": handle_reload}


def find(host: Host, spec: Any, call: Call) -> Servable:
    """The servable that a ModelSpec means, absent or empty ones included. Raises Refusal."""
    signature = spec.signature_name
    version = spec.version.value if spec.HasField("version") else None
    servable = host.find(spec.name, version, spec.version_label, call.route)
    if signature not in ("", SIGNATURE):
        raise Refusal("FAILED_PRECONDITION", f'Serving signature key "{signature}" not found.')
    return servable


def signature_defs(servable: Servable) -> Any:
    """The servable's SignatureDefMap: one signature, its tensors under their aliases where they have any."""
    signature = servable.signature
    alias_of = {name: alias for alias, name in signature.aliases.items()}
    made = wire.message("tensorflow.serving.SignatureDefMap")()
    defined = made.signature_def[SIGNATURE]
    defined.method_name = _METHOD_NAME
    for specs, infos in ((signature.inputs, defined.inputs), (signature.outputs, defined.outputs)):
        for spec in specs:
            _describe(spec, infos[alias_of.get(spec.name, spec.name)])
    return made


def classify_examples(
    host: Host, servable: Servable, read: Callable[[], Sequence[Mapping[str, Any]]], call: Call
) -> list[list[tuple[str, float]]]:
    """For every example that `read` gives (feature -> values) its classes with their scores, best first.

    An example is the servable's one input under any of its names, or its only feature. Raises InputError for a servable
    that does not classify, and for examples that do not fit.
    """
    inputs, outputs = servable.signature.inputs, servable.signature.outputs
    if len(inputs) != 1 or len(outputs) != 1 or outputs[0].dtype.kind != "f":
        raise InputError(f"model {servable.name!r} does not classify: that takes one input and one output of scores")
    spec, names = inputs[0], servable.signature.input_names
    count = 0

    def batch() -> Mapping[str, Any]:
        nonlocal count
        examples = read()
        count = len(examples)
        if not count:
            raise Refusal("INVALID_ARGUMENT", "Input is empty")
        values = []
        for i, example in enumerate(examples):
            chosen = [name for name in example if name in names] or list(example)
            if len(chosen) != 1:
                raise InputError(f"example {i} has features {list(example)[:12]}; {spec.name!r} must be one")
            values.append(example[chosen[0]])
        return {spec.name: _batch(spec, values, host.max_input_bytes)}

    scores = next(iter(host.run(servable, batch, (), call).outputs.values()))
    if scores.ndim < 2 or scores.shape[0] != count:
        raise InputError(f"model {servable.name!r} does not classify: its output has shape {scores.shape}")
    scores = scores.reshape(count, -1)
    labels = servable.labels
    if labels is None or len(labels) != scores.shape[1]:
        labels = tuple(map(str, range(scores.shape[1])))
    order = np.argsort(-scores, axis=1, kind="stable")
    return [[(labels[i], float(row[i])) for i in best] for row, best in zip(scores, order, strict=True)]


def _batch(spec: TensorSpec, values: list[Any], max_bytes: int) -> Any:
    """The values of examples as one tensor; a single one of text or numbers per example."""
    if spec.is_text:
        texts = [value for row in values for value in row]
        if any(len(row) != 1 or not isinstance(row[0], bytes) for row in values):
            raise InputError(f"input {spec.name!r} takes one string of an example")
        return np.array([*texts, None], object)[:-1]
    shape = () if spec.shape is None else spec.shape[1:]
    if any(size is None for size in shape):
        raise InputError(f"input {spec.name!r} has no fixed shape; call Predict instead")
    count = math.prod(size for size in shape if size is not None)
    if any(len(row) != count for row in values):
        raise InputError(f"input {spec.name!r} takes {count} numbers of an example")
    tensors.check_types((value for row in values for value in row), spec.dtype, spec.name)
    if len(values) * count * spec.dtype.itemsize > max_bytes:
        raise InputError(f"input {spec.name!r} of {len(values)} examples is larger than the {max_bytes} bytes allowed")
    try:
        with np.errstate(over="ignore"):
            made = np.array(values, spec.dtype)
        return made.reshape(len(values), *[size for size in shape if size is not None])
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"input {spec.name!r} has a value that is no {spec.dtype}: {error}") from None


def _features(example: Any) -> Mapping[str, Any]:
    """The values of a tf.train.Example by name."""
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = list(getattr(feature, kind).value) if kind else []
    return found


def _describe(spec: TensorSpec, info: Any) -> None:
    info.name = spec.name
    info.dtype = tensors.kind_of(spec.dtype).number
    info.tensor_shape.unknown_rank = spec.shape is None
    for size in spec.shape or ():
        info.tensor_shape.dim.add(size=-1 if size is None else size)


def _spec(servable: Servable) -> Any:
    spec = wire.message("tensorflow.serving.ModelSpec")(name=servable.name, signature_name=SIGNATURE)
    spec.version.value = servable.version
    return spec
