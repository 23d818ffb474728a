"""What REST answers: TensorFlow Serving's paths under /v1, the Open Inference Protocol's under /v2, and /metrics."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

import numpy as np
from google.protobuf import json_format  # type: ignore[import-untyped]

from fpgasim.errors import InputError
from fpgasim.service import inference, tensors
from fpgasim.service.hosting import SIGNATURE, Array, Call, Host, Inputs
from fpgasim.service.limits import Admission, Refusal
from fpgasim.service.metrics import CONTENT_TYPE
from fpgasim.service.predict import classify_examples, signature_defs
from fpgasim.service.rest import Reply, Request, Route, json_reply
from fpgasim.service.servables import Servable
from fpgasim.service.steps import TensorSpec

#: A JSON text may be this part of a message: its numbers take that much more memory as Python has them.
TEXT_SHARE = 4
_MODEL = r"/models/(?P<name>[^/:]+)(/versions/(?P<version>[0-9]{1,18}))?"
_LABELLED = r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?"
_HEADER_LENGTH = "inference-header-content-length"


def routes(host: Host, calls: Admission, light: Admission, max_text_bytes: int) -> tuple[Route, ...]:
    """All routes to the models of `host`; a JSON text may have `max_text_bytes`."""
    v1, v2 = _Serving(host, max_text_bytes), _Inference(host, max_text_bytes)
    return (
        _route("rest_predict", "POST", _LABELLED + ":predict", v1.predict, calls),
        _route("rest_classify", "POST", _LABELLED + ":classify", v1.classify, calls),
        _route("rest_status", "GET", _LABELLED, v1.status, light),
        _route("rest_metadata", "GET", _LABELLED + "/metadata", v1.metadata, light),
        _route("rest_infer", "POST", "/v2" + _MODEL + "/infer", v2.infer, calls),
        _route("rest_model", "GET", "/v2" + _MODEL, v2.model, light),
        _route("rest_model_ready", "GET", "/v2" + _MODEL + "/ready", v2.model_ready, light),
        _route("rest_server", "GET", "/v2", lambda r, c: json_reply(inference.server_metadata()), light),
        _route("rest_live", "GET", "/v2/health/live", lambda r, c: json_reply({"live": True}), light, keyed=False),
        _route("rest_ready", "GET", "/v2/health/ready", v2.ready, light, keyed=False),
        *metrics_routes(host, light),
    )


def metrics_routes(host: Host, light: Admission) -> tuple[Route, ...]:
    """The route of /metrics alone."""
    return (_route("metrics", "GET", "/metrics", lambda r, c: Reply(host.metrics.text(), CONTENT_TYPE), light),)


class _Serving:
    """TensorFlow Serving's REST."""

    def __init__(self, host: Host, max_text_bytes: int) -> None:
        self._host, self._max_text_bytes = host, max_text_bytes

    def predict(self, request: Request, call: Call) -> Reply:
        servable = self._find(request)
        by_row = False

        def read() -> Mapping[str, Array]:
            nonlocal by_row
            body = _object(request.body, self._max_text_bytes)
            _check_signature(body)
            if ("instances" in body) == ("inputs" in body):
                raise InputError("the body must have either instances or inputs")
            by_row = "instances" in body
            given = _of_rows(body["instances"], servable) if by_row else _of_columns(body["inputs"], servable)
            inputs = Inputs(servable, self._host.max_input_bytes)
            for name, value in given.items():
                spec = servable.signature.input_names.get(name)
                inputs.add(name, partial(_array, value, spec, name))
            return inputs.arrays

        outputs = self._host.run(servable, read, (), call).outputs
        if by_row:
            return json_reply({"predictions": _rows(outputs)})
        values = {name: _values(array) for name, array in outputs.items()}
        return json_reply({"outputs": next(iter(values.values())) if len(values) == 1 else values})

    def classify(self, request: Request, call: Call) -> Reply:
        servable = self._find(request)

        def read() -> list[Mapping[str, Any]]:
            body = _object(request.body, self._max_text_bytes)
            _check_signature(body)
            examples, context = body.get("examples"), body.get("context", {})
            shaped = isinstance(examples, list) and all(isinstance(one, dict) for one in (*examples, context))
            if not isinstance(examples, list) or not shaped:
                raise InputError("the body must have examples, a list of objects")
            return [{name: _feature(value) for name, value in (context | one).items()} for one in examples]

        return json_reply({"results": classify_examples(self._host, servable, read, call)})

    def status(self, request: Request, call: Call) -> Reply:
        _, model = self._host.model(unquote(request.parts["name"]))
        versions = sorted(model.versions, reverse=True)
        if request.parts.get("version") or request.parts.get("label"):
            versions = [self._find(request).version]
        told = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        return json_reply({"model_version_status": [{"version": str(version), **told} for version in versions]})

    def metadata(self, request: Request, call: Call) -> Reply:
        servable = self._find(request)
        defined = json_format.MessageToDict(signature_defs(servable), preserving_proto_field_name=True)
        spec = {"name": servable.name, "signature_name": "", "version": str(servable.version)}
        return json_reply({"model_spec": spec, "metadata": {"signature_def": defined}})

    def _find(self, request: Request) -> Servable:
        parts = request.parts
        version = int(parts["version"]) if parts.get("version") else None
        return self._host.find(unquote(parts["name"]), version, unquote(parts.get("label") or ""))


class _Inference:
    """The Open Inference Protocol in JSON, with Triton's extension for tensors behind it."""

    def __init__(self, host: Host, max_text_bytes: int) -> None:
        self._host, self._max_text_bytes = host, max_text_bytes

    def infer(self, request: Request, call: Call) -> Reply:
        servable = self._find(request)
        length = request.headers.get(_HEADER_LENGTH, str(len(request.body)))
        if not (length.isascii() and length.isdecimal() and len(length) < 19 and int(length) <= len(request.body)):
            raise InputError(f"{_HEADER_LENGTH}={length!r} of a body of {len(request.body)} bytes")
        body = _object(request.body[: int(length)], self._max_text_bytes)
        asked = {name: _parameters(one) for name, one in _tensors(body, "outputs").items()}
        classes = {name: inference.class_count(name, parameters) for name, parameters in asked.items()}

        def read() -> Mapping[str, Array]:
            inputs, at = Inputs(servable, self._host.max_input_bytes), int(length)
            for name, one in _tensors(body, "inputs").items():
                parameters = _parameters(one)
                inference.refuse_shared_memory(name, parameters)
                size = parameters.get("binary_data_size", 0)
                if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(request.body) - at:
                    raise InputError(f"input {name!r} has binary_data_size={size!r}; that much does not follow")
                raw, at = request.body[at : at + size] if "binary_data_size" in parameters else None, at + size
                inputs.add(name, partial(_tensor, one, raw, name))
            if at != len(request.body):
                raise InputError(f"{len(request.body) - at} bytes of the body belong to no input")
            return inputs.arrays

        outputs = self._host.run(servable, read, list(asked), call).outputs
        default = bool(_parameters(body).get("binary_data_output", False))
        told, behind = [], []
        for name, array in outputs.items():
            array = inference.classified(array, classes.get(name, 0), servable.labels)
            entry = {"name": name, "datatype": tensors.kind_of(array.dtype).datatype, "shape": array.shape}
            if asked.get(name, {}).get("binary_data", default):
                behind.append(tensors.to_raw(array))
                entry["parameters"] = {"binary_data_size": len(behind[-1])}
            else:
                entry["data"] = _values(array.reshape(-1))
            told.append(entry)
        made = {"model_name": servable.name, "model_version": str(servable.version), "outputs": told}
        if "id" in body:
            made["id"] = str(body["id"])
        text = json.dumps(made).encode()
        if not behind:
            return Reply(text)
        return Reply(b"".join((text, *behind)), "application/octet-stream", {_HEADER_LENGTH: str(len(text))})

    def model(self, request: Request, call: Call) -> Reply:
        return json_reply(inference.metadata(self._host, self._find(request)))

    def model_ready(self, request: Request, call: Call) -> Reply:
        servable = self._find(request)
        return json_reply({"name": servable.name, "ready": True})

    def ready(self, request: Request, call: Call) -> Reply:
        if not self._host.ready:
            raise Refusal("UNAVAILABLE", "not ready")
        return json_reply({"ready": True})

    def _find(self, request: Request) -> Servable:
        return inference.find(self._host, unquote(request.parts["name"]), request.parts.get("version") or "")


def _route(
    name: str,
    verb: str,
    pattern: str,
    answer: Callable[[Request, Call], Reply],
    admission: Admission,
    *,
    keyed: bool = True,
) -> Route:
    compiled = re.compile(pattern + "/?")

    def match(path: str) -> Mapping[str, str] | None:
        found = compiled.fullmatch(path)
        return None if found is None else {key: value for key, value in found.groupdict().items() if value is not None}

    return Route(name, verb, match, answer, admission, keyed)


def _object(text: bytes, max_bytes: int) -> dict[str, Any]:
    """The JSON object in `text`; InputError for anything else."""
    if len(text) > max_bytes:
        raise Refusal("RESOURCE_EXHAUSTED", f"the JSON text has {len(text)} bytes; at most {max_bytes} are taken")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"the body is a JSON {type(found).__name__}; an object would do")
    return found


def _check_signature(body: Mapping[str, Any]) -> None:
    name = body.get("signature_name", SIGNATURE)
    if name not in ("", SIGNATURE):
        raise Refusal("INVALID_ARGUMENT", f'Serving signature name: "{name}" not found in signature def')


def _only_input(servable: Servable) -> str:
    inputs = servable.signature.inputs
    if len(inputs) != 1:
        raise InputError(f"model {servable.name!r} has {len(inputs)} inputs; give an object of them by name")
    return inputs[0].name


def _of_rows(instances: Any, servable: Servable) -> dict[str, Any]:
    """The values of every input, one for each instance."""
    if not isinstance(instances, list) or not instances:
        raise InputError("instances must be a list that is not empty")
    if not isinstance(instances[0], dict) or _is_text(instances[0]):
        return {_only_input(servable): instances}
    if any(not isinstance(one, dict) or one.keys() != instances[0].keys() for one in instances):
        raise InputError("every instance must have the same names")
    return {name: [one[name] for one in instances] for name in instances[0]}


def _of_columns(inputs: Any, servable: Servable) -> dict[str, Any]:
    if isinstance(inputs, dict) and not _is_text(inputs):
        return inputs
    return {_only_input(servable): inputs}


def _array(value: Any, spec: TensorSpec | None, name: str, max_bytes: int) -> Array:
    """A JSON value as the array that `spec` wants; InputError where it cannot be."""
    assert spec is not None
    try:
        if spec.is_text:
            return _text_array(value, name)
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise InputError(f"input {name!r} is no array: {error}") from None
    if array.dtype.kind not in "iufb":
        raise InputError(f"input {name!r} holds what is no number; {spec.dtype} would do")
    if array.dtype.kind in "iuf" and spec.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(spec.dtype)
    if array.nbytes > max_bytes:
        raise InputError(f"input {name!r} of shape {array.shape} is larger than the {max_bytes} bytes allowed")
    return array


def _text_array(value: Any, name: str) -> Array:
    shape, flat = [], [value]
    while flat and all(isinstance(item, list) for item in flat):
        shape.append(len(flat[0]))
        if any(len(item) != shape[-1] for item in flat) or len(shape) > tensors.MAX_RANK:
            raise InputError(f"input {name!r} is no array: its lists have different lengths")
        flat = [element for item in flat for element in item]
    return np.array([*(_bytes(item, name) for item in flat), None], object)[:-1].reshape(shape)


def _is_text(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["b64"]


def _bytes(value: Any, name: str) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if _is_text(value) and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except ValueError as error:
            raise InputError(f"input {name!r} has b64 that is none: {error}") from None
    raise InputError(f'input {name!r} holds what is no string; text or {{"b64": …}} would do')


def _feature(value: Any) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    return [_bytes(item, "example") if isinstance(item, str | dict) else item for item in values]


def _values(array: Array) -> Any:
    """An array as JSON has it; strings that are no text in base64."""
    if array.dtype == object:
        return _texts(array.tolist())
    return (
        array.astype(np.float32).tolist() if array.dtype.itemsize == 2 and array.dtype.kind in "fV" else array.tolist()
    )


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(item) for item in value]
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _rows(outputs: Mapping[str, Array]) -> list[Any]:
    """The outputs by their first dimension: a value for each instance, or an object where there are several."""
    sizes = {array.shape[:1] for array in outputs.values()}
    if len(sizes) != 1 or sizes == {()}:
        raise InputError("the outputs have no first dimension in common; send inputs instead of instances")
    columns = {name: _values(array) for name, array in outputs.items()}
    if len(columns) == 1:
        return list(next(iter(columns.values())))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _tensors(body: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    """The tensors in a list of the body by their names, in their order."""
    listed = body.get(key, [])
    if not isinstance(listed, list):
        raise InputError(f"{key} must be a list")
    found: dict[str, Mapping[str, Any]] = {}
    for one in listed:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str) or one["name"] in found:
            raise InputError(f"every one of {key} must be an object with a name of its own")
        found[one["name"]] = one
    return found


def _parameters(one: Mapping[str, Any]) -> Mapping[str, Any]:
    found = one.get("parameters", {})
    if not isinstance(found, dict):
        raise InputError("parameters must be an object")
    return found


def _tensor(one: Mapping[str, Any], raw: bytes | None, name: str, max_bytes: int) -> Array:
    """The array of an input, from the bytes behind the JSON or from its data."""
    datatype, shape = one.get("datatype"), one.get("shape")
    whole = isinstance(shape, list) and all(isinstance(size, int) and not isinstance(size, bool) for size in shape)
    if not isinstance(datatype, str) or not isinstance(shape, list) or not whole:
        raise InputError(f"input {name!r} needs a datatype and a shape of whole numbers")
    if raw is not None:
        return tensors.from_raw(raw, datatype, shape, name, max_bytes)
    return tensors.from_values(_flat(one.get("data"), name), datatype, shape, name, max_bytes)


def _flat(data: Any, name: str) -> list[Any]:
    """The data of a tensor in one list, however it is nested."""
    if not isinstance(data, list):
        raise InputError(f"input {name!r} needs data, a list")
    flat = data
    while flat and all(isinstance(item, list) for item in flat):
        flat = [element for item in flat for element in item]
    return flat
