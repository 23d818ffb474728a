"""What this machine asks a server of its own: how it is, and to serve another model from now on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpgasim.errors import NoAnswer, WebserviceException
from fpgasim.service import auth
from fpgasim.service.processes import CERTIFICATE, KEYS, ServiceConfig

_ANY_SIZE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_MODEL_PLATFORM = "fpgasim"
#: These say something of the moment, not of what was asked.
_OF_THE_MOMENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "UNAUTHENTICATED")
_PUSHBACK = "grpc-retry-pushback-ms"


@dataclass(frozen=True)
class Address:
    """Where a replica listens, the certificate it shows (PEM; None: no TLS) and the key that it asks for, if any."""

    host: str
    port: int
    certificate: bytes | None = None
    key: str | None = None

    @staticmethod
    def of(folder: Path, config: ServiceConfig, port: int) -> Address:
        """That of a replica of the service in `folder` that runs `config`."""
        certificate = (folder / CERTIFICATE).read_bytes() if config.tls else None
        key = auth.read_keys(folder / KEYS)[0] if config.auth else None
        return Address(config.host, port, certificate, key)

    @property
    def target(self) -> str:
        host = reachable(self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def channel(self) -> Any:
        """A gRPC channel; the certificate itself is trusted, and nothing else."""
        import grpc

        if self.certificate is None:
            return grpc.insecure_channel(self.target, options=_ANY_SIZE)
        name = [("grpc.ssl_target_name_override", certified_name(self.certificate))]
        return grpc.secure_channel(self.target, grpc.ssl_channel_credentials(self.certificate), [*_ANY_SIZE, *name])

    def call(self, service: str, method: str, request: Any, response: Any, timeout_s: float) -> Any:
        """The reply to `request`. Raises WebserviceException, which is what the replica says instead, or NoAnswer."""
        import grpc

        metadata = [] if self.key is None else [("authorization", f"Bearer {self.key}")]
        with self.channel() as channel:
            ask = channel.unary_unary(
                f"/{service}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
            try:
                return ask(request, timeout=timeout_s, metadata=metadata)
            except grpc.RpcError as error:
                code, later = error.code().name, _PUSHBACK in dict(error.trailing_metadata() or ())
                text = f"{self.target} answers {code}: {error.details()}"
                if code in _OF_THE_MOMENT or later:
                    raise NoAnswer(text, code == "DEADLINE_EXCEEDED") from error
                raise WebserviceException(text) from error


def health(address: Address, timeout_s: float) -> str:
    """What the server says of its health: SERVING, or what it is instead. Raises WebserviceException."""
    from grpc_health.v1 import health_pb2

    request, response = health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse
    status = address.call("grpc.health.v1.Health", "Check", request, response, timeout_s).status
    return str(response.ServingStatus.Name(status))


def is_well(address: Address, timeout_s: float = 10.0) -> str | None:
    """None if the server says that it is SERVING, else what it says."""
    try:
        said = health(address, timeout_s)
    except WebserviceException as error:
        return str(error)
    return None if said == "SERVING" else f"{address.target} is {said}"


def takes_key(address: Address, timeout_s: float = 10.0) -> bool:
    """Whether the server lets in who has the key of `address`."""
    from fpgasim.service import wire

    request, response = wire.methods(wire.MODEL_SERVICE)["GetModelStatus"]
    try:
        address.call(wire.MODEL_SERVICE, "GetModelStatus", request(), response, timeout_s)
    except NoAnswer:
        return False
    except WebserviceException:  # let in, and refused for another reason
        return True
    return True


def load_model(address: Address, config: ServiceConfig, timeout_s: float = 600.0) -> None:
    """Makes the server serve the model of `config` and no other, with no call lost. Raises WebserviceException."""
    from fpgasim.service import wire

    request, response = wire.methods(wire.MODEL_SERVICE)["HandleReloadConfigRequest"]
    asked = request()
    model = asked.config.model_config_list.config.add(
        name=config.model, base_path=config.model, model_platform=_MODEL_PLATFORM
    )
    model.model_version_policy.specific.versions.append(config.model_version)
    status = address.call(wire.MODEL_SERVICE, "HandleReloadConfigRequest", asked, response, timeout_s).status
    if status.error_code:
        raise WebserviceException(f"{address.target} does not take the model: {status.error_message}")


def reachable(host: str) -> str:
    """`host` as this machine calls it: a server that listens everywhere is also here."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def certified_name(certificate: bytes) -> str:
    """A name or address that the certificate (PEM) is for; the last resort is its subject's."""
    from cryptography import x509

    found = x509.load_pem_x509_certificates(certificate)[0]
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = found.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(common[0].value) if common else "localhost"
    every = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return every[0].replace("*", "any") if every else "localhost"
