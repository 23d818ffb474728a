"""`Server`: servables behind one port, for TensorFlow Serving's clients and those of the Open Inference Protocol."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Mapping
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from fpgasim.errors import InputError, ServiceError
from fpgasim.service import auth, tls, wire
from fpgasim.service.doors import Doorman, Gate, Handlers, Opens, health_checks, reflection_calls, unary
from fpgasim.service.hosting import Host, Model
from fpgasim.service.inference import inference_service
from fpgasim.service.json_api import TEXT_SHARE, metrics_routes, routes
from fpgasim.service.limits import Admission, Refusal
from fpgasim.service.metrics import Metrics
from fpgasim.service.predict import model_service, prediction_service
from fpgasim.service.reloading import Load, models_of
from fpgasim.service.rest import RestServer
from fpgasim.service.servables import Servable, servable
from fpgasim.service.steps import Limits, Pace, VirtualFpga

#: Places for calls that do not compute: health, metadata, reflection.
_LIGHT_PLACES = 64
#: For how long no call must come before a server that takes none any more ends, and how long it waits for that at most.
_QUIET_S, _CLOSING_S = 0.05, 2.0
#: A health check comes whole in one packet, so whoever waits for one has no claim to a place, and none is refused.
_HEALTH_RECEIVE_S, _HEALTH_PATIENCE_S = 5.0, 0.0
_SPARE_THREADS = 32
#: glibc's numbers for mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: How often calls whose message does not come are looked for.
_SWEEP_S = 0.25
_LOWEST = {"max_message_bytes": 1024, "max_pixels": 1, "max_batch": 1, "max_concurrent": 1, "max_queue": 0}
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True)
class ServerConfig:
    """Where a server listens, whom it lets in and how much.

    `port` 0 takes any free one. With `tls_cert` and `tls_key` (PEM files, followed when they change) it speaks TLS, and
    with `client_ca` only to callers with a certificate of that CA. With `auth_keys` (primary, secondary or None) or a
    `keys_file` every call but health needs one of the keys.

    At most `max_concurrent` calls run at a time and `max_queue` more wait; a message may have `max_message_bytes` and
    has `receive_s` to come; its tensors may take no more when unpacked, nor may the tensor that is made of its
    pictures, which are `max_batch` at most and have `max_pixels` all together. A call to a model is answered
    `deadline_s` after its message came at the latest, whatever its caller allows; what it computes ends soon after.
    `pace` is the engine's, `both_names` answers under aliases and tensor names at once. `service` is another name for
    the whole, as the route header of Azure's clients says it. Models may be loaded by a call
    (HandleReloadConfigRequest) from under `model_root` alone, and with a `reload_key` only by who has that.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    rest_port: int | None = None
    metrics_port: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    auth_keys: tuple[str, str | None] | None = None
    keys_file: Path | None = None
    max_message_bytes: int = 64 << 20
    max_pixels: int = 50_000_000
    max_batch: int = 64
    max_concurrent: int = 4
    max_queue: int = 60
    receive_s: float = 30.0
    deadline_s: float = 60.0
    pace: Pace = "host"
    both_names: bool = False
    reflection: bool = True
    service: str | None = None
    model_root: Path | None = None
    reload_key: str | None = None

    def __post_init__(self) -> None:
        for name, low in _LOWEST.items():
            if getattr(self, name) < low:
                raise InputError(f"{name}={getattr(self, name)}; at least {low} would do")
        for name in ("receive_s", "deadline_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)}; more than 0 would do")
        for name in ("port", "rest_port", "metrics_port"):
            port = getattr(self, name)
            if port is not None and not 0 <= port <= 65535:
                raise InputError(f"{name}={port}; 0 to 65535 would do")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("TLS needs both, tls_cert and tls_key; one of them is not given")
        if self.client_ca is not None and self.tls_cert is None:
            raise InputError(f"client_ca={str(self.client_ca)!r} needs TLS; give tls_cert and tls_key too")
        if self.auth_keys is not None and self.keys_file is not None:
            raise InputError("auth_keys and keys_file are both given; one of them would do")


class Server:
    """Serves `servables` (name -> Servable) as `config` says; more may be put in while it runs.

    `load` makes the servables that a call asks for (HandleReloadConfigRequest), by default on the default device.
    """

    def __init__(
        self, servables: Mapping[str, Servable], config: ServerConfig | None = None, load: Load | None = None
    ) -> None:
        self.config = config = ServerConfig() if config is None else config
        self.metrics = Metrics()
        self._keys = _keys(config)
        self._certificate = _certificate(config)
        self._calls = Admission(config.max_concurrent, config.max_queue, config.receive_s)
        self._light = Admission(_LIGHT_PLACES, 0, config.receive_s)
        self._health_calls = Admission(_LIGHT_PLACES, 0, _HEALTH_RECEIVE_S, _HEALTH_PATIENCE_S)
        self._host = Host(
            VirtualFpga(config.pace),
            self.metrics,
            limits=Limits(config.max_batch, config.max_pixels, config.max_message_bytes),
            max_input_bytes=config.max_message_bytes,
            both_names=config.both_names,
            service=config.service,
        )
        self._waiting = dict(servables)
        self._load = _load if load is None else load
        self._gate = Gate(self._keys, self.metrics, config.deadline_s)
        self._health = health.HealthServicer()
        self._ended = threading.Event()
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._say_health(())
        self._grpc = self._make_grpc()
        self._rest: dict[str, RestServer] = {}
        self.port = 0

    @property
    def address(self) -> str:
        """Where it listens, as a gRPC target."""
        return _address(self.config.host, self.port)

    @property
    def facts(self) -> tuple[str, ...]:
        """What a client has to know: `plain` or `tls`, `client certificate`, `open` or `key`."""
        asked = ("client certificate",) if self.config.client_ca is not None else ()
        return ("plain" if self._certificate is None else "tls", *asked, "open" if self._keys is None else "key")

    @property
    def http(self) -> Mapping[str, str]:
        """Where `rest` and `metrics` are, those of them that were asked for."""
        return {name: _address(self.config.host, rest.port) for name, rest in self._rest.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The models that are served."""
        return tuple(self._host.models)

    def start(self) -> int:
        """The port, once everything is warmed up and answers; until then calls are told UNAVAILABLE.

        Raises ServiceError for a port that cannot be had, and for a server that was started before.
        """
        config = self.config
        if self.port:
            raise ServiceError(f"the server on {self.address} has been started before; a new one would do")
        self.port = self._bind(config.host, config.port)
        self._rest = self._make_rest()
        self._grpc.start()
        for rest in self._rest.values():
            rest.start()
        threading.Thread(target=self._sweep, name="fpgasim-sweep", daemon=True).start()
        for name, given in self._waiting.items():
            self.replace(name, given)
        self._waiting = {}
        return self.port

    def replace(self, name: str, servable: Servable) -> None:
        """Serves `servable` as `name` from now on, once it is warm; calls that are on the old one end there."""
        self.replace_all({name: Model({servable.version: servable})}, keep=True)

    def replace_all(self, models: Mapping[str, Model], *, keep: bool = False) -> None:
        """Serves `models` instead of all others, or besides them (`keep`), at once and when all of them are warm."""
        for name, model in models.items():
            for given in model.versions.values():
                if given.name != name:
                    raise InputError(f"servable {given.name!r} cannot be served as {name!r}; give it that name")
                self._host.prepare(given)
        with self._lock:
            before = self._host.models
            self._host.models = {**before, **models} if keep else dict(models)
            self._say_health(self._host.models)
            for name in before.keys() - self._host.models.keys():
                self._health.set(name, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)

    def reload_keys(self, primary: str, secondary: str | None = None) -> None:
        """Exchanges the keys, those in the keys file too; calls that were let in go on.

        Raises InputError for keys that cannot be, and for a server that was started without.
        """
        if isinstance(self._keys, auth.Keys):
            self._keys.replace(primary, secondary)
        elif isinstance(self._keys, auth.KeysFile) and self.config.keys_file is not None:
            auth.write_keys(self.config.keys_file, primary, secondary)
            self._keys.refresh()
        else:
            raise InputError("this server was started without keys; start it with some")

    def refresh(self) -> None:
        """Reads keys and certificates anew where their files have changed."""
        if isinstance(self._keys, auth.KeysFile):
            self._keys.refresh()
        if self._certificate is not None:
            self._certificate.refresh()

    def drain(self, grace_s: float = 30.0) -> None:
        """Says NOT_SERVING, takes no more calls, and ends when those that are in are answered or `grace_s` is over."""
        end = time.monotonic() + grace_s
        self._health.enter_graceful_shutdown()
        self._host.draining = True
        self._gate.close()
        # gRPC cancels a call that comes just as it stops, which no client may repeat: so it stops when none comes
        latest = min(end, time.monotonic() + _CLOSING_S)
        while time.monotonic() < latest and self._gate.quiet_s < _QUIET_S:
            time.sleep(_QUIET_S / 10)
        stopped = self._grpc.stop(max(0.0, end - time.monotonic()))
        for rest in self._rest.values():
            rest.drain(max(0.0, end - time.monotonic()))
        stopped.wait()
        self._ended.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; whether it has come."""
        return self._ended.wait(timeout_s)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.drain(0.0)

    def _make_grpc(self) -> Any:
        config = self.config
        # a call without a place is refused in no time, so a few threads more than places are enough
        places = self._calls.places + self._light.places + self._health_calls.places
        server = grpc.server(
            futures.ThreadPoolExecutor(places + _SPARE_THREADS, "fpgasim-call"),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", 256),
                ("grpc.server_handshake_timeout_ms", 10_000),
                # who is silent is asked whether it is there; who asks too often is told to calm down
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        server.add_generic_rpc_handlers((Doorman(self._handlers(), self._gate),))
        return server

    def _handlers(self) -> Handlers:
        gate, light = self._gate, self._light
        prediction = prediction_service(self._host)
        inference = inference_service(self._host)
        models = model_service(self._host, self._reload)
        reload_keys = None if self.config.reload_key is None else auth.Keys(self.config.reload_key)
        heavy, alive = {"Predict", "Classify", "ModelInfer"}, {"ServerLive", "ServerReady"}
        table: dict[str, Any] = {}
        for service, methods in (
            (wire.PREDICTION_SERVICE, prediction),
            (wire.MODEL_SERVICE, models),
            (wire.INFERENCE_SERVICE, inference),
        ):
            for name, answer in methods.items():
                if name == "HandleReloadConfigRequest":
                    table |= unary(gate, light, service, {name: answer}, keys=reload_keys)
                elif name in alive:
                    table |= unary(gate, self._health_calls, service, {name: answer}, keyed=False)
                else:
                    table |= unary(gate, self._calls if name in heavy else light, service, {name: answer})
        table |= health_checks(gate, self._health_calls, self._health)
        if self.config.reflection:
            services = (wire.PREDICTION_SERVICE, wire.MODEL_SERVICE, wire.INFERENCE_SERVICE, health.SERVICE_NAME)
            table |= reflection_calls(gate, light, services)
        return table

    def _make_rest(self) -> dict[str, RestServer]:
        config = self.config
        size = config.max_message_bytes
        wanted = {
            "rest": (config.rest_port, routes(self._host, self._calls, self._light, size // TEXT_SHARE)),
            "metrics": (config.metrics_port, metrics_routes(self._host, self._light)),
        }
        return {
            name: RestServer(config.host, port, table, self._gate, self._certificate, size, config.receive_s)
            for name, (port, table) in wanted.items()
            if port is not None
        }

    def _bind(self, host: str, port: int) -> int:
        address = _address(host, port)
        try:
            if self._certificate is None:
                bound = self._grpc.add_insecure_port(address)
            else:
                bound = self._grpc.add_secure_port(address, self._certificate.credentials())
        except RuntimeError:
            bound = 0
        if not bound:
            raise ServiceError(f"port {port} of {host} cannot be had; another may listen there, or it is not ours")
        return int(bound)

    def _say_health(self, names: Any) -> None:
        status = _SERVING if names else _NOT_SERVING
        for service in ("", wire.PREDICTION_SERVICE, wire.MODEL_SERVICE, wire.INFERENCE_SERVICE):
            self._health.set(service, status)
        for name in names:
            self._health.set(name, status)

    def _reload(self, config: Any) -> None:
        if not self._loading.acquire(blocking=False):
            raise Refusal("UNAVAILABLE", "models are being loaded for another call; come again later", 1000)
        try:
            self.replace_all(models_of(config, self.config.model_root, self._load))
        finally:
            self._loading.release()

    def _sweep(self) -> None:
        while not self._ended.wait(_SWEEP_S):
            for admission in (self._calls, self._light, self._health_calls):
                admission.sweep()


def keep_memory() -> None:
    """Has this process keep the memory of large messages instead of giving it back to the system after each, where the
    C library is glibc: halves the processor time of a call. Meant for a process that does nothing but serve."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)
        mallopt(_M_ARENA_MAX, 1)  # else every thread keeps a heap of its own, which the next message finds cold


def _load(path: Path, name: str, version: int) -> Servable:
    return servable(path, name=name, version=version)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _keys(config: ServerConfig) -> Opens | None:
    if config.keys_file is not None:
        return auth.KeysFile(config.keys_file)
    return None if config.auth_keys is None else auth.Keys(*config.auth_keys)


def _certificate(config: ServerConfig) -> tls.CertificateFiles | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    return tls.CertificateFiles(config.tls_cert, config.tls_key, config.client_ca)
