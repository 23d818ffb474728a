"""`PredictionClient`: scores pictures and arrays on a service, as Azure's clients of 2018 and 2019 did."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

import grpc

from fpgasim.errors import InputError
from fpgasim.service import calls
from fpgasim.service.calls import ARRAYS_TIMEOUT_S, TIMEOUT_S, Picture, Reply, Wanted
from fpgasim.service.servables import IMAGES

__all__ = ["PredictionClient", "client_from_service", "service_arguments"]


class PredictionClient(calls.Caller):
    """Calls the service at `address` (a host, or HOST:PORT; `port` defaults to 443 with `use_ssl`, else to 80).

    `access_token` is one of its keys, and is sent. `root_certificates` (PEM, or the path of such a file) says whom to
    trust instead of the system's, `server_name` what its certificate calls it if not `address`, `client_certificate`
    (chain, key) who calls, for a server that asks. Calls go to `replicas` (more HOST:PORTs) by turns, so that one that
    ends is not missed; their certificates bear the name of the first.

    A call that fails raises CallError, with the server's reason and the id of the request. It is tried again, up to
    `attempts` times within its timeout, only if the server cannot be reached, is not ready or says when to come again.
    A client may be used by several threads at once; it is closed by `close()` or a `with` statement.

    What is asked for by name as `outputs` comes as one array, a list of names as a list of arrays; without `outputs` it
    is the one output there is, else a list of all by their names. InputError is what could not be sent.
    """

    def _open(self) -> None:
        self._channel = self._line.channel(grpc)
        self._predict = self._line.predict(self._channel)

    def predict(self, inputs: Mapping[str, Any], outputs: Wanted = None, timeout: float = ARRAYS_TIMEOUT_S) -> Reply:
        """The Reply to arrays by name: all its outputs by name, or those asked for, and what the server says of it."""
        return self._call(calls.predict_request(inputs, outputs), timeout)

    def score_file(
        self, path: Picture, input_name: str = IMAGES, outputs: Wanted = None, timeout: float = TIMEOUT_S
    ) -> Any:
        """The score of one picture (a path, bytes or an open file), without a batch axis; in a list they keep it."""
        reply = self.predict(calls.picture_input(path, input_name), outputs, timeout)
        return calls.unbatched(calls.chosen(reply, outputs))

    def score_image(self, path: Picture, timeout: float = TIMEOUT_S) -> Any:
        """The score of one picture, without a batch axis."""
        return self.score_file(path, timeout=timeout)

    def score_numpy_array(self, npdata: Any, timeout: float = ARRAYS_TIMEOUT_S) -> Any:
        """The scores of a batch, sent as float32; with its batch axis."""
        return calls.chosen(self.predict(calls.images_input(npdata), None, timeout), None)

    def score_numpy_arrays(
        self, input_map: Mapping[str, Any], outputs: Wanted = None, timeout: float = ARRAYS_TIMEOUT_S
    ) -> Any:
        """The scores of arrays by name, in their own dtypes; with their batch axes."""
        return calls.chosen(self.predict(input_map, outputs, timeout), outputs)

    def score_tensors(
        self,
        input_map: Mapping[str, tuple[Any, Sequence[int], Any]],
        outputs: Wanted = None,
        timeout: float = TIMEOUT_S,
    ) -> Any:
        """The scores of tensors by name, each (bytes, shape, datatype): 7 or "DT_STRING" for a picture, or several in a
        list; of numbers their little-endian bytes. With their batch axes."""
        return calls.chosen(self.predict(calls.tensors_input(input_map), outputs, timeout), outputs)

    def score_tensor(self, data: Any, shape: Sequence[int], datatype: Any, timeout: float = TIMEOUT_S) -> Any:
        """The scores of one tensor as the TensorProto that came (`tensors.from_proto` makes an array of it)."""
        return calls.only_tensor(self.predict(calls.images_tensor(data, shape, datatype), None, timeout))

    def close(self) -> None:
        """Ends the connection; calls that are on their way fail."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, request: Any, timeout: float) -> Reply:
        attempts = calls.Attempts(self._line, timeout)
        while True:
            try:
                response, call = self._predict.with_call(
                    request, timeout=attempts.left_s(), metadata=self._line.metadata
                )
                return calls.reply(response, call.initial_metadata(), call.trailing_metadata())
            except grpc.RpcError as error:
                pause = attempts.failed(error)
            time.sleep(pause)


def service_arguments(service: Any) -> dict[str, Any]:
    """The arguments of a client of a deployed `service`: where it is by its `scoring_uri`, TLS, key and name."""
    uri = service.scoring_uri
    parts = urlsplit(uri if "//" in str(uri) else f"//{uri}")
    if uri is None or parts.hostname is None:
        raise InputError(f"service {service.name!r} has scoring_uri={uri!r}, which names no host; is it deployed?")
    use_ssl = parts.scheme in ("https", "grpcs") or bool(getattr(service, "ssl", False))
    certificate = getattr(service, "server_certificate", None)
    others = [port for port in getattr(service, "ports", None) or () if port not in (0, parts.port)]
    made = {
        "address": parts.hostname,
        "port": parts.port,
        "use_ssl": use_ssl,
        "access_token": service.get_keys()[0] if service.auth_enabled else "",
        "service_name": service.name,
        "replicas": [calls.joined(parts.hostname, port) for port in others],
    }
    if use_ssl and certificate is not None:
        from fpgasim.service.replicas import certified_name

        # this very certificate is trusted, whatever name it bears
        made |= {"root_certificates": certificate, "server_name": certified_name(certificate)}
    return made


def client_from_service(service: Any) -> PredictionClient:
    """A client of a deployed service, with its primary key where it asks for one, and of all its replicas."""
    return PredictionClient(**service_arguments(service))
