"""What the clients of a service have in common: where they call, what they send, what they make of an answer."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from os import PathLike
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fpgasim.errors import CallError, InputError
from fpgasim.service import tensors, wire
from fpgasim.service.servables import IMAGES

Array = np.ndarray[Any, Any]
#: A picture: where it is, its bytes, or an open file with them.
Picture = str | PathLike[str] | bytes | Any
#: Which outputs are wanted: one, several, or all there are.
Wanted = str | Sequence[str] | None
#: Certificates or a key in PEM, or the path of a file with them.
Pem = bytes | str | PathLike[str]
#: A picture's or tensor's seconds, and those of arrays, as Azure's clients have them.
TIMEOUT_S, ARRAYS_TIMEOUT_S = 10.0, 30.0
#: How often a call is tried, the seconds before the second time, which then double, and their limit.
ATTEMPTS = 5
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
#: What gRPC does by itself: it goes from replica to replica.
SERVICE_CONFIG: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
_METHOD = f"/{wire.PREDICTION_SERVICE}/Predict"
_HTTPS_PORT, _HTTP_PORT = 443, 80


@dataclass(frozen=True)
class Reply:
    """The outputs of a call by name, the id that the server knows it by, and what it says of its engine:
    `x-fpgasim-cycles` and `x-fpgasim-fpga-us` (microseconds)."""

    outputs: Mapping[str, Array]
    request_id: str | None
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Line:
    """Where a client calls and what it says there; `line` makes it of a client's arguments."""

    target: str
    name: str
    options: tuple[tuple[str, Any], ...]
    credentials: Any
    metadata: tuple[tuple[str, str], ...]
    attempts: int

    def channel(self, library: Any) -> Any:
        """A channel of `library`, which is grpc or grpc.aio."""
        if self.credentials is None:
            return library.insecure_channel(self.target, options=self.options)
        return library.secure_channel(self.target, self.credentials, options=self.options)

    def predict(self, channel: Any) -> Any:
        """The callable of Predict on a channel."""
        request, response = wire.methods(wire.PREDICTION_SERVICE)["Predict"]
        return channel.unary_unary(
            _METHOD, request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )


class Caller:
    """What the clients share: whom they call and with what; `metadata` are the headers of every call."""

    def __init__(
        self,
        address: str,
        port: int | None = None,
        use_ssl: bool = False,
        access_token: str = "",
        service_name: str = "",
        channel_shutdown_timeout: timedelta = timedelta(minutes=2),
        *,
        root_certificates: Pem | None = None,
        server_name: str | None = None,
        client_certificate: tuple[Pem, Pem] | None = None,
        replicas: Sequence[str] = (),
        attempts: int = ATTEMPTS,
    ) -> None:
        self._line = line(
            address,
            port,
            use_ssl,
            access_token,
            service_name,
            channel_shutdown_timeout,
            root_certificates,
            server_name,
            client_certificate,
            replicas,
            attempts,
        )
        self.metadata = list(self._line.metadata)
        self._channel: Any = None
        self._predict: Any = None
        self._open()

    def _open(self) -> None:
        """Makes the channel, where that needs no event loop."""


def line(
    address: str,
    port: int | None,
    use_ssl: bool,
    access_token: str,
    service_name: str,
    channel_shutdown_timeout: timedelta,
    root_certificates: Pem | None,
    server_name: str | None,
    client_certificate: tuple[Pem, Pem] | None,
    replicas: Sequence[str],
    attempts: int,
) -> Line:
    """The Line that these say. Raises InputError, also for a name of several replicas that has no address."""
    if attempts < 1:
        raise InputError(f"attempts={attempts}; at least 1 would do")
    default = _HTTPS_PORT if use_ssl else _HTTP_PORT
    places = [_place(address, port, default), *(_place(replica, None, default) for replica in replicas)]
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # a connection that nobody uses goes before a firewall in between forgets it without a word
        ("grpc.client_idle_timeout_ms", max(1, int(channel_shutdown_timeout.total_seconds() * 1e3))),
        # a replica that comes back is found soon
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]
    name = joined(*places[0])
    if replicas:
        options.append(("grpc.default_authority", name))
    credentials = None
    if use_ssl:
        roots = None if root_certificates is None else _pem("root_certificates", root_certificates)
        own = [_pem("client_certificate", part) for part in client_certificate or ()]
        credentials = grpc.ssl_channel_credentials(roots, *reversed(own))  # which takes the key first
        if server_name is not None:
            options.append(("grpc.ssl_target_name_override", server_name))
    elif root_certificates is not None or server_name is not None or client_certificate is not None:
        raise InputError("root_certificates, server_name and client_certificate are of TLS; give use_ssl=True too")
    return Line(
        target=_addresses(places) if replicas else f"dns:///{name}",
        name=", ".join(joined(*place) for place in places),
        options=tuple(options),
        credentials=credentials,
        metadata=_metadata(access_token, service_name),
        attempts=attempts,
    )


class Attempts:
    """The attempts of one call: how long is left, and after a failure whether to try again and when."""

    def __init__(self, line: Line, timeout_s: float) -> None:
        if not timeout_s > 0:
            raise InputError(f"timeout={timeout_s}; more than 0 seconds would do")
        self._line, self._end, self._made = line, time.monotonic() + timeout_s, 0

    def left_s(self) -> float:
        """The seconds that the next attempt has."""
        return max(0.001, self._end - time.monotonic())

    def failed(self, error: Any) -> float:
        """The seconds to wait before the next attempt. Raises CallError if another one is hopeless, or too late.

        Only what may be over soon is tried again: a server that cannot be reached or is not ready (UNAVAILABLE), and
        one that says when to come again (grpc-retry-pushback-ms, gRPC's A6). Each pause is longer than the one before.
        """
        self._made += 1
        code, pushback = error.code(), _text(error.trailing_metadata(), "grpc-retry-pushback-ms")
        if pushback is None:
            again, soonest_s = code is grpc.StatusCode.UNAVAILABLE and not _hopeless(error), 0.0
        else:  # a negative number says never
            again = pushback.isdecimal()
            soonest_s = float(pushback) / 1e3 if again else 0.0
        later_s = min(_PAUSE_S * 2.0 ** (self._made - 1), _LONGEST_PAUSE_S) * random.uniform(0.8, 1.2)
        pause_s = max(later_s, soonest_s)
        if not again or self._made >= self._line.attempts or time.monotonic() + pause_s >= self._end:
            raise self._given_up(error)
        return pause_s

    def _given_up(self, error: Any) -> CallError:
        details = " ".join((error.details() or "no reason given").split())
        request_id = _text(error.initial_metadata(), "request_id")
        hint = _hint(error, self._line)
        return CallError(self._line.name, error.code().name, details, request_id, self._made, hint)


def predict_request(inputs: Mapping[str, Any], outputs: Wanted) -> Any:
    """A PredictRequest of arrays, or TensorProtos, by name. Raises InputError for what is no tensor of the wire."""
    request = wire.message("tensorflow.serving.PredictRequest")()
    request.output_filter.extend(_names(outputs))
    proto_class = wire.message("tensorflow.TensorProto")
    for name, value in inputs.items():
        if not isinstance(value, proto_class):
            value = tensors.to_proto(_array(value), content=True)
        request.inputs[name].CopyFrom(value)
    return request


def reply(response: Any, initial: Any, trailing: Any) -> Reply:
    """The Reply in a PredictResponse and the metadata around it."""
    outputs = {name: tensors.from_proto(response.outputs[name], name) for name in sorted(response.outputs)}
    facts = {str(key): str(value) for key, value in trailing or () if str(key).startswith("x-fpgasim-")}
    return Reply(outputs, _text(initial, "request_id"), facts)


def chosen(reply: Reply, outputs: Wanted) -> Any:
    """What a score is: the array asked for by name, or the only one; a list for a list of names, or for several.

    Raises InputError for a name that is not in the reply.
    """
    names = _names(outputs) or list(reply.outputs)
    for name in names:
        if name not in reply.outputs:
            raise InputError(f"no output {name!r} in the reply; there are {', '.join(map(repr, reply.outputs))}")
    arrays = [reply.outputs[name] for name in names]
    return arrays[0] if isinstance(outputs, str) or (not outputs and len(arrays) == 1) else arrays


def unbatched(score: Any) -> Any:
    """The score of one picture: a single array without its batch axis; a list keeps them, as Azure's client has it."""
    return score if isinstance(score, list) else score[0]


def picture(source: Picture) -> bytes:
    """The bytes of a picture. Raises InputError for a file that cannot be read.

    A file that was opened as text is read by its name, since the picture is not in its text.
    """
    try:
        if isinstance(source, bytes | bytearray | memoryview):
            return bytes(source)
        if isinstance(source, str | PathLike):
            return Path(source).read_bytes()
        if isinstance(getattr(source, "encoding", None), str) and isinstance(getattr(source, "name", None), str):
            return Path(source.name).read_bytes()
        data = source.read()
    except OSError as error:
        raise InputError(f"picture {getattr(error, 'filename', None)!r} cannot be read: {error.strerror}") from error
    except AttributeError:
        data = source
    if not isinstance(data, bytes):
        raise InputError(f"a picture is a {type(data).__name__}; a path, bytes or a file opened with 'rb' would do")
    return data


def picture_input(source: Picture, input_name: str) -> dict[str, Array]:
    """The input of a score of one picture."""
    if not isinstance(input_name, str):
        raise InputError(f"input_name={input_name!r}; the name of an input would do (a timeout is timeout=)")
    batch = np.empty(1, object)
    batch[0] = picture(source)
    return {input_name: batch}


def images_input(array: Any) -> dict[str, Array]:
    """The input of a score of an array of pictures or features, as float32."""
    try:
        return {IMAGES: np.asarray(array, np.float32)}
    except (TypeError, ValueError) as error:
        raise InputError(f"npdata is no array of numbers: {error}") from None


def tensor(data: bytes | Sequence[bytes], shape: Sequence[int], datatype: Any, name: str) -> Any:
    """The TensorProto of `data`: one string or several, else the elements in row-major order, little-endian.

    `datatype` is TensorFlow's number or name (1, "DT_FLOAT") or a NumPy dtype. Raises InputError where they do not fit.
    """
    kind = next((kind for kind in tensors.KINDS if datatype in (kind.number, kind.name)), None)
    if kind is None:
        try:
            kind = tensors.kind_of(np.dtype(datatype))
        except TypeError:
            raise InputError(f"tensor {name!r} has datatype {datatype!r}; 'DT_FLOAT' or a dtype would do") from None
    proto = wire.message("tensorflow.TensorProto")(dtype=kind.number)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    if kind.name == "DT_STRING":
        proto.string_val.extend([data] if isinstance(data, bytes) else data)
    elif isinstance(data, bytes):
        proto.tensor_content = data
    else:
        raise InputError(f"tensor {name!r} of {kind.name} takes its elements as bytes, not {type(data).__name__}")
    tensors.from_proto(proto, name)  # raises where they do not fit
    return proto


def images_tensor(data: Any, shape: Sequence[int], datatype: Any) -> dict[str, Any]:
    """The input of a score of one tensor."""
    return {IMAGES: tensor(data, shape, datatype, IMAGES)}


def only_tensor(reply: Reply) -> Any:
    """The one output of a reply as a TensorProto; InputError for another number of them."""
    if len(reply.outputs) != 1:
        raise InputError(f"the reply has {len(reply.outputs)} outputs; score_tensors gives them all")
    return tensors.to_proto(next(iter(reply.outputs.values())))


def tensors_input(input_map: Mapping[str, tuple[Any, Sequence[int], Any]]) -> dict[str, Any]:
    """The inputs of a score of tensors: name -> (data, shape, datatype)."""
    made = {}
    for name, given in input_map.items():
        if not isinstance(given, tuple | list) or len(given) != 3:
            raise InputError(f"input {name!r} is {type(given).__name__}; (bytes, shape, datatype) would do")
        made[name] = tensor(*given, name)
    return made


def _array(value: Any) -> Array:
    if isinstance(value, bytes | str):
        made = np.empty((), object)
        made[()] = value
        return made
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"an input is no array: {error}") from None


def _names(outputs: Wanted) -> list[str]:
    return [outputs] if isinstance(outputs, str) else list(outputs or ())


def _place(address: str, port: int | None, default: int) -> tuple[str, int]:
    """Host and port of `address`, which may have the port in it."""
    if not isinstance(address, str) or not address or "/" in address:
        raise InputError(f"address={address!r}; a host such as 127.0.0.1, or HOST:PORT, would do")
    host, colon, end = address.rpartition(":")
    if not colon or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        host, end = address, ""  # no port in it: a name, an address, or IPv6 without brackets
    if end:
        if not end.isdecimal():
            raise InputError(f"address={address!r} has port {end!r}; a number from 1 to 65535 would do")
        if port is not None and port != int(end):
            raise InputError(f"address={address!r} has another port than port={port}; one of them would do")
        port = int(end)
    port = default if port is None else port
    if not isinstance(port, int) or not 1 <= port <= 65535:
        raise InputError(f"port={port!r}; 1 to 65535 would do")
    return host.removeprefix("[").removesuffix("]"), port


def joined(host: str, port: int) -> str:
    """Host and port as gRPC writes them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _addresses(places: Sequence[tuple[str, int]]) -> str:
    """The target of several places, all by IPv4 or all by IPv6."""
    found: dict[Any, list[str]] = {socket.AF_INET: [], socket.AF_INET6: []}
    for host, port in places:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise InputError(f"address {host!r} is not known here: {error.strerror}") from None
        for family, made in found.items():
            made.extend(dict.fromkeys(joined(str(i[4][0]), port) for i in infos if i[0] == family))
    counts = {family: len(made) for family, made in found.items()}
    for family, scheme in ((socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6")):
        if counts[family] >= len(places):
            return f"{scheme}:{','.join(found[family])}"
    raise InputError("some replicas have only IPv4 addresses, others only IPv6; one kind for all would do")


def _metadata(access_token: str, service_name: str) -> tuple[tuple[str, str], ...]:
    for what, value in (("access_token", access_token), ("service_name", service_name)):
        if not isinstance(value, str) or not value.isascii() or not value.isprintable() or value != value.strip():
            raise InputError(f"{what} has characters that no header carries; printable ASCII would do")
    made = []
    if access_token:
        made.append(("authorization", f"Bearer {access_token}"))
    if service_name:
        made.append(("x-ms-aml-grpc-service-route", f"/api/v1/service/{service_name}"))
    return tuple(made)


def _pem(what: str, given: Pem) -> bytes:
    if isinstance(given, bytes):
        return given
    try:
        return Path(given).read_bytes()
    except OSError as error:
        raise InputError(f"{what} {str(given)!r} cannot be read: {error.strerror}") from error


def _text(metadata: Any, key: str) -> str | None:
    return next((str(value) for name, value in metadata or () if name == key), None)


def _hopeless(error: Any) -> bool:
    """Whether the server cannot be reached for a reason that does not go away: its certificate."""
    return any(word in (error.details() or "") for word in ("CERTIFICATE_VERIFY_FAILED", "Peer name", "WRONG_VERSION"))


def _hint(error: Any, line: Line) -> str:
    code, details = error.code().name, error.details() or ""
    if code == "UNAUTHENTICATED":
        sent = any(name == "authorization" for name, _ in line.metadata)
        return "the access_token given is not one of its keys" if sent else "no access_token was given"
    if code != "UNAVAILABLE":
        return ""
    if "WRONG_VERSION" in details:
        return "it does not speak TLS; use_ssl=False would do"
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return "its certificate is not trusted here; give root_certificates, or server_name if it is for another name"
    if "Peer name" in details:
        return "its certificate is for another name; give server_name"
    if line.credentials is None and "refused" not in details:
        return "if it speaks TLS, use_ssl=True would do"
    return ""
