"""What a deployment asks for, and the files of a service: its configuration, model, keys and certificate."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fpgasim.errors import InputError, ModelError, ServiceError, WebserviceException
from fpgasim.service import auth
from fpgasim.service.processes import CERTIFICATE, KEYS, PRIVATE_KEY, ServiceConfig
from fpgasim.service.registry import Model
from fpgasim.service.tls import Certificate

#: `local`: keys where TLS is on, as in 2018 (`brainwave`); `aks`: keys unless told otherwise, as in 2019.
Flavor = Literal["local", "brainwave", "aks"]
#: What a file that describes a device is called in the service's folder.
_DEVICE = "device.yaml"


@dataclass(frozen=True)
class DeploymentConfig:
    """What a service should be. `auth_enabled` None: keys where there is TLS. `port` 0: any free ones, kept from then
    on; else the first replica has it, the others those after it. A replica that serves and says nothing of its health
    for `unresponsive_s` is killed and started anew. The rest as `fpgasim serve` has it.

    Raises WebserviceException or InputError for what cannot be.
    """

    flavor: Flavor = "local"
    num_replicas: int = 1
    tags: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    description: str | None = None
    certificate: Certificate | None = None
    auth_enabled: bool | None = None
    primary_key: str | None = None
    secondary_key: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    device: str = "bw_a10"
    format: str = "bw_1s5e5m"
    pace: str = "host"
    max_concurrent: int = 4
    deadline_s: float = 60.0
    unresponsive_s: float = 30.0

    def __post_init__(self) -> None:
        checked_replicas(self.num_replicas)
        for name, key in (("primary_key", self.primary_key), ("secondary_key", self.secondary_key)):
            if key is not None:
                auth.checked_key(key, name)
        if not self.unresponsive_s > 0:
            raise InputError(f"unresponsive_s={self.unresponsive_s!r}; seconds above 0 would do")
        if not 0 <= self.port <= 65535 - self.num_replicas:
            raise InputError(f"port={self.port}; 0 to {65535 - self.num_replicas} would do")

    def service_config(self, name: str, model: Model) -> ServiceConfig:
        """What the watcher of the service `name` with this model is told."""
        tls = self.certificate is not None
        return ServiceConfig(
            name=name,
            model=model.name,
            model_version=model.version,
            replicas=self.num_replicas,
            host=self.host,
            port=self.port,
            tls=tls,
            auth=tls if self.auth_enabled is None else self.auth_enabled,
            device=_DEVICE if self.own_device else self.device,
            format=self.format,
            pace=self.pace,
            max_concurrent=self.max_concurrent,
            deadline_s=self.deadline_s,
            unresponsive_s=self.unresponsive_s,
        )

    @property
    def own_device(self) -> bool:
        """Whether `device` is a file that describes one."""
        return self.device.endswith((".yaml", ".yml"))

    def keys(self) -> tuple[str, str]:
        """Primary and secondary key, made where none is given."""
        return self.primary_key or auth.make_key(), self.secondary_key or auth.make_key()


def checked_replicas(count: Any) -> int:
    """`count` if there can be so many replicas; WebserviceException as Azure's."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise WebserviceException(f"Invalid configuration, num_replicas={count!r} must be positive")
    return count


def certificate_of(
    enabled: bool | None,
    certificate: str | os.PathLike[str] | None,
    key: str | os.PathLike[str] | None,
    *,
    error: type[ServiceError | InputError] = WebserviceException,
) -> Certificate | None:
    """The certificate that `ssl_enabled` and its two companions mean, each a path or the PEM text itself.

    Raises `error` for a certificate without `ssl_enabled` and for one of the two without the other, FileNotFoundError
    for files that are not there, InputError for what is no PEM or does not belong together.
    """
    if not enabled:
        if certificate is not None or key is not None:
            raise error("a certificate or key is given without ssl_enabled=True; give both or neither")
        return None
    if certificate is None or key is None:
        raise error("ssl_enabled=True needs both, a certificate and its key; one of them is not given")
    return Certificate(_pem(certificate), _pem(key)).checked()


def _pem(given: str | os.PathLike[str]) -> bytes:
    if isinstance(given, str) and "-----BEGIN " in given:
        return given.encode()
    try:
        return Path(given).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"SSL cert or key don't exist: {os.fspath(given)!r}") from None
    except OSError as error:
        raise InputError(f"{os.fspath(given)!r} cannot be read: {error.strerror or error}") from error


def write_certificate(folder: Path, certificate: Certificate) -> None:
    """Writes certificate and key into `folder`; servers that follow the files wait until they belong together."""
    for name, data, mode in ((PRIVATE_KEY, certificate.key, 0o600), (CERTIFICATE, certificate.chain, 0o644)):
        temporary = folder / f".{name}"
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
        os.replace(temporary, folder / name)


def write_service(folder: Path, config: ServiceConfig, deployment: DeploymentConfig, model: Model) -> None:
    """Writes all that the watcher of a new service needs into `folder`."""
    folder.mkdir(parents=True)
    write_model(folder / config.model_path, model)
    if deployment.own_device:
        shutil.copyfile(deployment.device, folder / _DEVICE)
    auth.write_keys(folder / KEYS, *deployment.keys())
    if deployment.certificate is not None:
        write_certificate(folder, deployment.certificate)
    config.write(folder)


def write_model(folder: Path, model: Model) -> None:
    """Writes the files of `model` into `folder`, which then holds one model file; else raises WebserviceException."""
    from fpgasim.service.servables import model_file

    contents = list(model.contents)
    if not model.unpack and Path(contents[0].path).suffix not in (".zip", ".onnx", ".fpgaplan"):
        with model.path.open("rb") as file:  # so that it is found among others whatever it was called
            ending = ".zip" if file.read(2) == b"PK" else ".onnx"
        contents = [dataclasses.replace(contents[0], path=f"model{ending}")]
    with model.workspace.store.writing():
        model.workspace.store.copy_out(contents, folder)
    try:
        model_file(folder)
    except ModelError as error:
        raise WebserviceException(
            f"model {model.id} cannot be served as it is: {error}; AccelOnnxConverter.convert_model makes one that can"
        ) from error


def only(models: Any, what: str) -> Any:
    """The one of `models`, or `models` itself if it is one. WebserviceException for none and for several."""
    found = list(models) if isinstance(models, Sequence) and not isinstance(models, str) else [models]
    if len(found) != 1:
        raise WebserviceException(f"{what} holds {len(found)} models; exactly one, since an FPGA runs one at a time")
    return found[0]


def texts(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is not None of `given`, the mappings in it from texts to texts."""
    return {
        name: {str(key): str(item) for key, item in value.items()} if isinstance(value, Mapping) else value
        for name, value in given.items()
        if value is not None
    }
