"""The Open Inference Protocol, version 2, as Triton's and KServe's clients speak it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

import fpgasim
from fpgasim.errors import InputError
from fpgasim.service import tensors, wire
from fpgasim.service.hosting import Array, Call, Host, Inputs, Methods
from fpgasim.service.limits import Refusal
from fpgasim.service.servables import Servable
from fpgasim.service.steps import TensorSpec

PLATFORM = "fpgasim"
EXTENSIONS = ("classification", "binary_tensor_data")
#: The datatypes of each list of InferTensorContents; the others come and go raw alone.
_CONTENTS = {
    "bool_contents": ("BOOL",),
    "int_contents": ("INT8", "INT16", "INT32"),
    "int64_contents": ("INT64",),
    "uint_contents": ("UINT8", "UINT16", "UINT32"),
    "uint64_contents": ("UINT64",),
    "fp32_contents": ("FP32",),
    "fp64_contents": ("FP64",),
    "bytes_contents": ("BYTES",),
}
_LIST_OF = {datatype: field for field, datatypes in _CONTENTS.items() for datatype in datatypes}
_SHARED_MEMORY = "shared_memory_region"


def inference_service(host: Host) -> Methods:
    """The methods of GRPCInferenceService on the models of `host`."""
    answers = {name: answer for name, (_, answer) in wire.methods(wire.INFERENCE_SERVICE).items()}

    def infer(request: Any, call: Call) -> Any:
        servable = find(host, request.model_name, request.model_version, call.route)
        raw = request.raw_input_contents
        if raw and len(raw) != len(request.inputs):
            raise InputError(f"{len(request.inputs)} inputs and {len(raw)} raw_input_contents; one for each would do")

        def read() -> Mapping[str, Array]:
            inputs = Inputs(servable, host.max_input_bytes)
            for i, tensor in enumerate(request.inputs):
                inputs.add(tensor.name, partial(_read, tensor, raw[i] if raw else None))
            return inputs.arrays

        classes = {output.name: class_count(output.name, _value(output.parameters)) for output in request.outputs}
        result = host.run(servable, read, list(classes), call)
        made = answers["ModelInfer"](model_name=servable.name, model_version=str(servable.version), id=request.id)
        arrays = {name: classified(a, classes.get(name, 0), servable.labels) for name, a in result.outputs.items()}
        for name, array in arrays.items():
            kind = tensors.kind_of(array.dtype)
            made.outputs.add(name=name, datatype=kind.datatype, shape=array.shape)
        if raw or not all(output.datatype in _LIST_OF for output in made.outputs):
            made.raw_output_contents.extend(map(tensors.to_raw, arrays.values()))
        else:  # in the form that the request had
            for output, array in zip(made.outputs, arrays.values(), strict=True):
                getattr(output.contents, _LIST_OF[output.datatype]).extend(array.reshape(-1).tolist())
        return made

    def model_metadata(request: Any, call: Call) -> Any:
        return answers["ModelMetadata"](**metadata(host, find(host, request.name, request.version, call.route)))

    def model_ready(request: Any, call: Call) -> Any:
        try:
            find(host, request.name, request.version, call.route)
        except Refusal:
            return answers["ModelReady"](ready=False)
        return answers["ModelReady"](ready=True)

    return {
        "ServerLive": lambda request, call: answers["ServerLive"](live=True),
        "ServerReady": lambda request, call: answers["ServerReady"](ready=host.ready),
        "ServerMetadata": lambda request, call: answers["ServerMetadata"](**server_metadata()),
        "ModelReady": model_ready,
        "ModelMetadata": model_metadata,
        "ModelInfer": infer,
    }


def find(host: Host, name: str, version: str, route: str = "") -> Servable:
    """The servable of that name and version, '' being the only one and the latest. Raises Refusal."""
    if version and not (version.isascii() and version.isdecimal() and len(version) < 20):
        raise Refusal("INVALID_ARGUMENT", f"model_version={version!r}; a whole number, or nothing, would do")
    return host.find(name, int(version) if version else None, route=route)


def server_metadata() -> dict[str, Any]:
    """What ServerMetadata tells."""
    return {"name": PLATFORM, "version": fpgasim.__version__, "extensions": list(EXTENSIONS)}


def metadata(host: Host, servable: Servable) -> dict[str, Any]:
    """What ModelMetadata tells: the tensors under their own names."""
    _, model = host.model(servable.name)

    def told(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [
            {
                "name": spec.name,
                "datatype": tensors.kind_of(spec.dtype).datatype,
                "shape": [-1] if spec.shape is None else [-1 if size is None else size for size in spec.shape],
            }
            for spec in specs
        ]

    return {
        "name": servable.name,
        "versions": [str(version) for version in sorted(model.versions)],
        "platform": PLATFORM,
        "inputs": told(servable.signature.inputs),
        "outputs": told(servable.signature.outputs),
    }


def class_count(output: str, parameters: Mapping[str, Any]) -> int:
    """How many classes are asked for instead of the numbers of an output; 0 for the numbers. Raises InputError."""
    if _SHARED_MEMORY in parameters:
        raise InputError(f"output {output!r} is to go to shared memory, which this server does not have; leave it out")
    count = parameters.get("classification", 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise InputError(f"output {output!r} has classification={count!r}; a number of classes would do")
    return count


def classified(scores: Array, count: int, labels: Sequence[str] | None) -> Array:
    """The `count` best classes of each row as strings `score:index:label`; `scores` themselves for no count."""
    if not count:
        return scores
    if scores.dtype.kind != "f" or scores.ndim < 1:
        raise InputError(f"classes of a tensor of {scores.dtype} {scores.shape} are asked for; it must hold scores")
    rows = scores.reshape(scores.shape[0] if scores.ndim > 1 else 1, -1)
    best = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    made = np.empty(best.shape, object)
    for at, i in np.ndenumerate(best):
        label = f":{labels[int(i)]}" if labels is not None and len(labels) == rows.shape[1] else ""
        made[at] = f"{rows[at[0], i]:f}:{i}{label}".encode()
    return made if scores.ndim > 1 else made[0]


def refuse_shared_memory(name: str, parameters: Any) -> None:
    """Raises InputError for an input that is not in the message."""
    if _SHARED_MEMORY in parameters:
        raise InputError(f"input {name!r} is in shared memory, which this server does not read; send it along")


def _value(parameters: Any) -> dict[str, Any]:
    found = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[name] = getattr(parameter, choice) if choice else None
    return found


def _read(tensor: Any, raw: bytes | None, max_bytes: int) -> Array:
    """The array of an InferInputTensor, from its part of raw_input_contents or its own contents."""
    refuse_shared_memory(tensor.name, tensor.parameters)
    if raw is not None:
        if tensor.HasField("contents"):
            raise InputError(f"input {tensor.name!r} has contents beside raw_input_contents; one of them would do")
        return tensors.from_raw(raw, tensor.datatype, tensor.shape, tensor.name, max_bytes)
    kind = tensors.datatype_kind(tensor.datatype, tensor.name)
    if kind.datatype not in _LIST_OF:
        raise InputError(f"input {tensor.name!r} of {kind.datatype} must be in raw_input_contents")
    # checked first: the list of values is as long as the message, the shape may claim anything
    sizes = tensors.checked_shape(tensor.shape, kind, tensor.name, max_bytes)
    values = getattr(tensor.contents, _LIST_OF[kind.datatype])
    if len(values) != math.prod(sizes):
        field = _LIST_OF[kind.datatype]
        raise InputError(f"input {tensor.name!r} of shape {sizes} has {len(values)} values in {field}")
    return tensors.from_values(values, tensor.datatype, sizes, tensor.name, max_bytes)
