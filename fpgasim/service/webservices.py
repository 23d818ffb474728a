"""`Webservice`: a registered model behind a port of this machine, as many times as it has replicas."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from fpgasim.errors import InputError, WebserviceException
from fpgasim.service import auth, claims, deployments, processes, replicas, rollout
from fpgasim.service.claims import KIND
from fpgasim.service.compute import AksCompute
from fpgasim.service.deployments import DeploymentConfig, certificate_of
from fpgasim.service.edge import EdgeTarget
from fpgasim.service.processes import ServiceConfig, Status
from fpgasim.service.registry import Filter, Model, add_item, change_item, delete_item, has, next_version
from fpgasim.service.replicas import Address
from fpgasim.service.workspace import Workspace

#: Azure's rule for the names of services.
_NAME = re.compile(r"[a-z]([-a-z0-9]{1,30}[a-z0-9])")
_POLL_S = 0.2


class Webservice:
    """The deployed service of that name. Raises WebserviceException ("WebserviceNotFound: …") if there is none.

    Attributes: name, version (how many models it has been given), description, tags, properties, created_time,
    updated_time, num_replicas, models, image_id (None if it was made from a model), compute_type. What may change while
    it runs is asked for anew: state, error, ports, ssl, auth_enabled.
    """

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace = workspace
        self.name = name
        self._refresh()

    def __repr__(self) -> str:
        return f"Webservice({self.workspace.name!r}, {self.name!r})"

    def _refresh(self) -> None:
        row = claims.row(self.workspace, self.name)
        if row is None:
            known = ", ".join(repr(name) for name in claims.names(self.workspace)[:12])
            hint = f"there are {known}" if known else f"workspace {self.workspace.name!r} has no services"
            raise WebserviceException(f"WebserviceNotFound: Webservice with name {self.name!r} not found; {hint}")
        facts = self._facts = json.loads(row["facts"])
        self.version: int = row["version"]
        self.description: str | None = facts["description"]
        self.tags: dict[str, str] = facts["tags"]
        self.properties: dict[str, str] = facts["properties"]
        self.created_time = datetime.datetime.fromisoformat(facts["created_time"])
        self.updated_time = datetime.datetime.fromisoformat(facts["updated_time"])
        self.num_replicas: int = facts["replicas"]
        self.image_id: str | None = facts["image_id"]
        self.model_id: str = facts["model_id"]
        self.compute_type: str = facts["flavor"].upper()

    @property
    def models(self) -> Sequence[Model]:
        """The model that is served."""
        return [Model(self.workspace, id=self.model_id)]

    @property
    def folder(self) -> Path:
        """Where its configuration, keys and log are."""
        return claims.folder(self.workspace, self.name)

    @property
    def state(self) -> str:
        """Healthy, Transitioning, Unhealthy, Failed, Unschedulable (waits for an FPGA), Stopped or Deleting.

        Healthy: all replicas run as they should and have just said that they serve.
        """
        return self._look()[0]

    @property
    def error(self) -> str | None:
        """Why it is not Healthy, in one line; None if there is nothing to say."""
        return self._look()[1]

    @property
    def ssl(self) -> bool:
        """Whether it speaks TLS."""
        return self._config().tls

    ssl_enabled = ssl

    @property
    def auth_enabled(self) -> bool:
        """Whether calls need a key."""
        return self._config().auth

    @property
    def ports(self) -> Sequence[int]:
        """The port of each replica; it has none (0) before its first start."""
        return processes.ports(self.folder)

    @property
    def host(self) -> str:
        """The address at which this machine reaches it."""
        return replicas.reachable(self._config().host)

    ip_address = ipAddress = host

    @property
    def port(self) -> int | None:
        """The port of the first replica."""
        return next((port for port in self.ports if port), None)

    @property
    def scoring_uri(self) -> str | None:
        """Where the first replica answers: `host:port`, or for AKS an URL with Azure's route; None before it does."""
        port, config = self.port, self._config()
        if port is None:
            return None
        where = Address(config.host, port).target
        if self._facts["flavor"] != "aks":
            return where
        return f"{'https' if config.tls else 'http'}://{where}/api/v1/service/{self.name}/score"

    @property
    def server_certificate(self) -> bytes | None:
        """The certificate (PEM) that it shows; None without TLS."""
        return (self.folder / processes.CERTIFICATE).read_bytes() if self.ssl else None

    @classmethod
    def list(
        cls,
        workspace: Workspace,
        *,
        image_name: str | None = None,
        model_name: str | None = None,
        model_id: str | None = None,
        tags: Filter | None = None,
        properties: Filter | None = None,
    ) -> list[Self]:
        """The services of `workspace` by name; only those of this image or model, and with all these tags, if given."""
        found = []
        for name in claims.names(workspace):
            with contextlib.suppress(WebserviceException):  # deleted meanwhile
                found.append(cls(workspace, name))
        return [
            service
            for service in found
            if (image_name is None or (service.image_id or "").rpartition(":")[0] == image_name)
            and (model_name is None or service.model_id.rpartition(":")[0] == model_name)
            and (model_id is None or service.model_id == model_id)
            and has(service.tags, tags)
            and has(service.properties, properties)
        ]

    @classmethod
    def deploy_from_model(
        cls,
        workspace: Workspace,
        name: str,
        models: Sequence[Model | str],
        image_config: object = None,
        deployment_config: DeploymentConfig | None = None,
        deployment_target: AksCompute | EdgeTarget | None = None,
        overwrite: bool = False,
        *,
        replace: bool = False,
        queue: bool = False,
    ) -> Any:
        """The service `name` of the one model in `models`, starting; `wait_for_deployment` waits until it answers.

        A model is an object or its id, "name:version". No image is made, so `image_config` has no meaning here. With
        `overwrite` it takes the place of a service of that name, which goes on if the new one is refused. One that
        finds too few FPGAs free is refused with the names of those that hold them; with `replace` the oldest of these
        are stopped, with `queue` it waits. With an EdgeTarget an EdgeService comes back, whose folder is to be copied.
        Raises WebserviceException or InputError.
        """
        del image_config
        model = deployments.only(models, "models")
        found = model if isinstance(model, Model) else Model(workspace, id=model)
        return cls._deploy(
            workspace, name, found, None, deployment_config, deployment_target, overwrite, replace, queue
        )

    @classmethod
    def deploy_from_image(
        cls,
        workspace: Workspace,
        name: str,
        image: Any,
        deployment_config: DeploymentConfig | None = None,
        deployment_target: AksCompute | EdgeTarget | None = None,
        overwrite: bool = False,
        *,
        replace: bool = False,
        queue: bool = False,
    ) -> Any:
        """The service `name` of the model in `image`, as `deploy_from_model` otherwise."""
        model = deployments.only(image.models, f"image {image.name}:{image.version}")
        return cls._deploy(
            workspace, name, model, image, deployment_config, deployment_target, overwrite, replace, queue
        )

    @classmethod
    def _deploy(
        cls,
        workspace: Workspace,
        name: str,
        model: Model,
        image: Any,
        wanted: DeploymentConfig | None,
        target: AksCompute | EdgeTarget | None,
        overwrite: bool,
        replace: bool,
        queue: bool,
    ) -> Any:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(
                f"name={name!r} of a service must be 3 to 32 of a-z 0-9 -, begin with a letter and not end with -"
            )
        if replace and queue:
            raise InputError("replace and queue are both True; one of them would do")
        wanted = wanted or DeploymentConfig()
        if isinstance(target, EdgeTarget):
            return target.write(name, model, wanted)
        if target is not None and target.certificate is not None and wanted.certificate is None:
            wanted = dataclasses.replace(wanted, certificate=target.certificate)
        claims.check_total(wanted.num_replicas, name)
        claims.folder(workspace, name).parent.mkdir(exist_ok=True)
        with workspace.store.scratch() as scratch:
            staged = scratch / name
            deployments.write_service(staged, wanted.service_config(name, model), wanted, model)
            options = {"replace": replace, "queue": queue, "overwrite": overwrite}
            while others := claims.add(workspace, name, model, image, wanted, staged, **options):
                for other in others:
                    Webservice(workspace, other)._stop(claims.DELETING if other == name else claims.STOPPED)
        service = cls(workspace, name)
        with service._locked():
            service._launch_if_due()
        start_queued(workspace)
        return service

    def wait_for_deployment(self, show_output: bool = False, timeout_sec: float | None = None) -> None:
        """Returns once the service is Healthy. Raises WebserviceException if it gets another state, or time is over.

        With `show_output` it prints every state that it sees.
        """
        end = None if timeout_sec is None else time.monotonic() + timeout_sec
        shown = None
        while True:
            state, error = self._look()
            if show_output and state != shown:
                print(state if error is None else f"{state}: {error}", flush=True)
                shown = state
            if state == "Healthy":
                return
            if state not in ("Transitioning", "Unschedulable"):
                raise WebserviceException(f"service {self.name!r} is {state}: {error}; get_logs() says more")
            if end is not None and time.monotonic() >= end:
                raise WebserviceException(f"service {self.name!r} is still {state} after {timeout_sec} s: {error}")
            time.sleep(_POLL_S)

    def run(self, input_data: Any) -> Any:
        """What the model makes of a picture (path, bytes, or an open file, in text mode too), array or {name: array}.

        The only output, or a list of all by their names: of a picture without the batch's axis (1000 numbers for a
        classifier), else with it. Raises CallError with what the service says, InputError for what cannot be sent.
        """
        from fpgasim.service.client import client_from_service

        if not rollout.addresses(self.folder):
            state, error = self._look()
            raise WebserviceException(f"service {self.name!r} is {state}: {error}")
        with client_from_service(self) as client:
            if isinstance(input_data, Mapping):
                return client.score_numpy_arrays(input_data)
            if isinstance(input_data, np.ndarray):
                return client.score_numpy_array(input_data)
            return client.score_file(input_data)

    def update(
        self,
        image: Any = None,
        num_replicas: int | None = None,
        tags: Mapping[str, Any] | None = None,
        description: str | None = None,
        ssl_enabled: bool | None = None,
        ssl_certificate: str | os.PathLike[str] | None = None,
        ssl_key: str | os.PathLike[str] | None = None,
        *,
        models: Sequence[Model | str] | None = None,
        ssl_cert_pem_file: str | os.PathLike[str] | None = None,
        ssl_key_pem_file: str | os.PathLike[str] | None = None,
        auth_enabled: bool | None = None,
        properties: Mapping[str, Any] | None = None,
    ) -> None:
        """Changes what is given and nothing else; address and ports stay.

        - `image`, `models`: another model, or version. Running servers load it and change over when it is ready, with
          no call lost; if it cannot be loaded the old one stays and WebserviceException says why.
        - `ssl_enabled` True with certificate and key (PEM text or path), False without: the replicas start anew at
          their ports, one after another, with keys as soon as there is TLS. A service that speaks TLS may be given a
          new certificate alone; it is taken within a second, and no connection ends.
        - `num_replicas`: more or fewer; each needs an FPGA.

        `wait_for_deployment` waits until all of it has come through. Raises WebserviceException where nothing is given.
        """
        given = (image, num_replicas, tags, description, ssl_enabled, ssl_certificate, ssl_key, models, auth_enabled)
        if all(value is None for value in (*given, ssl_cert_pem_file, ssl_key_pem_file, properties)):
            raise WebserviceException(f"update of service {self.name!r} is given nothing to change")
        with self._locked():
            self._refresh()
            self._update(
                deployments.only(image.models, f"image {image.name}:{image.version}") if image is not None else models,
                image,
                num_replicas,
                {"tags": tags, "properties": properties, "description": description},
                ssl_enabled,
                (ssl_certificate or ssl_cert_pem_file, ssl_key or ssl_key_pem_file),
                auth_enabled,
            )
        start_queued(self.workspace)

    def _update(
        self,
        wanted: Any,
        image: Any,
        num_replicas: int | None,
        texts: Mapping[str, Any],
        ssl_enabled: bool | None,
        pem: tuple[str | os.PathLike[str] | None, str | os.PathLike[str] | None],
        auth_enabled: bool | None,
    ) -> None:
        old = self._config()
        enabled = old.tls if ssl_enabled is None and any(pem) else ssl_enabled
        certificate = certificate_of(enabled, *pem, error=InputError)
        tls = certificate is not None or (old.tls and ssl_enabled is not False)
        keyed = tls if auth_enabled is None and tls != old.tls and self._facts["flavor"] != "aks" else auth_enabled
        new = dataclasses.replace(
            old,
            replicas=old.replicas if num_replicas is None else deployments.checked_replicas(num_replicas),
            tls=tls,
            auth=old.auth if keyed is None else keyed,
            revision=old.revision + 1,
        )
        claims.check_total(new.replicas, self.name)
        uses = None
        if wanted is not None:
            model = wanted if isinstance(wanted, Model) else deployments.only(wanted, "models")
            model = model if isinstance(model, Model) else Model(self.workspace, id=model)
            new = dataclasses.replace(new, model=model.name, model_version=model.version)
            if new.model_path != old.model_path:
                deployments.write_model(self.folder / new.model_path, model)
            uses = claims.uses(model, image)
        before = self._facts
        facts = {**before, **deployments.texts(texts), "replicas": new.replicas, "updated_time": claims.now()}
        if uses is not None:
            facts |= {"model_id": f"{new.model}:{new.model_version}", "image_id": claims.image_id(image)}
        self._write(facts, uses)
        if certificate is not None:
            deployments.write_certificate(self.folder, certificate)
        refused = rollout.apply(self.folder, new)
        if refused is not None:
            self._write({**before, "updated_time": claims.now()}, claims.used(before))
            rollout.apply(self.folder, dataclasses.replace(old, revision=new.revision + 1))
        rollout.forget_models(self.folder)
        if refused is not None:
            raise WebserviceException(f"service {self.name!r} stays as it was: {refused}")
        if certificate is not None and new.serve() == old.serve():
            rollout.await_certificate(self.folder)

    def regen_key(self, key: str, set_key: str | None = None) -> None:
        """Exchanges the `Primary` or the `Secondary` key for `set_key`, else for a new one; the other stays in force.

        When this returns the replicas have it, and no call was dropped. Raises InputError for another name or a key
        that cannot be.
        """
        name = str(key).lower()
        if name not in ("primary", "secondary"):
            raise InputError(f"key={key!r}; 'Primary' or 'Secondary' would do")
        with self._locked():
            primary, secondary = self.get_keys()
            made = auth.make_key() if set_key is None else auth.checked_key(set_key, f"{name} key")
            pair = (made, secondary) if name == "primary" else (primary, made)
            auth.write_keys(self.folder / processes.KEYS, *pair)
            processes.reread(self.folder)
            rollout.await_key(self.folder)

    def get_keys(self) -> tuple[str, str]:
        """The primary and the secondary key; the service asks for one of them if `auth_enabled`."""
        primary, secondary = auth.read_keys(self.folder / processes.KEYS)
        return primary, secondary or primary

    def get_logs(self, num_lines: int = 5000) -> str:
        """The last lines of what the replicas have printed ("[0] …") and of what was done with them."""
        return "".join(f"{line}\n" for line in processes.log_lines(self.folder, num_lines))

    def stop(self) -> None:
        """Ends the processes, calls that are in first, and frees the FPGAs; `start` brings it back as it was."""
        self._stop()
        start_queued(self.workspace)

    def _stop(self, phase: str = claims.STOPPED) -> None:
        with self._locked():
            self._refresh()
            processes.stop(self.folder, self._config().grace_s)
            self._change(phase=phase)

    def start(self, *, replace: bool = False, queue: bool = False) -> None:
        """Starts what does not run: after `stop`, or after the machine has been started anew.

        Raises WebserviceException where too few FPGAs are free; `replace` and `queue` as when deploying.
        """
        if replace and queue:
            raise InputError("replace and queue are both True; one of them would do")
        while True:
            with self.workspace.store.transaction() as connection:
                self._refresh()
                if self._facts["phase"] == claims.DELETING:
                    raise WebserviceException(f"service {self.name!r} is being deleted")
                if self._facts["phase"] == claims.RUNNING:
                    break
                others = claims.in_the_way(connection, self.num_replicas, self.name, may_wait=replace or queue)
                self._check_ports(connection, self._facts, without=() if queue else others)
                if not others or queue:
                    phase = claims.QUEUED if others else claims.RUNNING
                    self._put(connection, {**self._facts, "phase": phase, "since": claims.now()})
                    break
            for other in others:
                Webservice(self.workspace, other)._stop()
        with self._locked():
            self._refresh()
            self._launch_if_due()
        start_queued(self.workspace)

    def delete(self) -> None:
        """Ends the service, calls that are in first, and removes all of it; its image and model stay."""
        with self._locked():
            self._refresh()
            self._change(phase=claims.DELETING)
            if self.folder.exists():
                processes.stop(self.folder, _grace_s(self.folder))
            delete_item(self.workspace, KIND, self.name, self.version)
            shutil.rmtree(self.folder, ignore_errors=True)
        start_queued(self.workspace)

    def serialize(self) -> dict[str, Any]:
        """All that is known of the service but its keys, as JSON takes it."""
        state, error = self._look()
        names = ("name", "version", "description", "tags", "properties", "num_replicas", "compute_type", "model_id")
        more = ("image_id", "ssl", "auth_enabled", "scoring_uri", "ip_address", "port", "ports")
        return {
            **{name: getattr(self, name) for name in (*names, *more)},
            "state": state,
            "error": error,
            "phase_since": self._facts["since"],
            "certificate": str(self.folder / processes.CERTIFICATE) if self.ssl else None,
            "folder": str(self.folder),
            "created_time": self.created_time.isoformat(),
            "updated_time": self.updated_time.isoformat(),
        }

    def _look(self) -> tuple[str, str | None]:
        self._refresh()
        phase = self._facts["phase"]
        if phase == claims.DELETING:
            return "Deleting", "its processes end"
        if phase == claims.STOPPED:
            return "Stopped", "start() brings it back"
        if phase == claims.QUEUED:  # who should have started it may have been killed, or there are more FPGAs by now
            start_queued(self.workspace)
            self._refresh()
        if self._facts["phase"] == claims.QUEUED:
            with self.workspace.store.transaction() as connection:
                return "Unschedulable", claims.no_room(connection, self.num_replicas, self.name)
        return rollout.state(self.folder, self._wanted(self._config()))

    def _config(self) -> ServiceConfig:
        return ServiceConfig.read(self.folder)

    def _launch_if_due(self) -> None:
        """Starts what does not run, if the service holds its FPGAs: the watcher, or replicas that it has given up."""
        if self._facts["phase"] != claims.RUNNING:
            return
        config, status = self._config(), Status.read(self.folder)
        wanted = self._wanted(config)
        given_up = status is not None and any(replica.state == "failed" for replica in status.replicas)
        if wanted != config or given_up:  # an update was cut short, or all is to be tried again
            dataclasses.replace(wanted, revision=config.revision + 1).write(self.folder)
        if not processes.reread(self.folder):
            processes.launch(self.folder)

    def _wanted(self, config: ServiceConfig) -> ServiceConfig:
        """`config` as the workspace has the service; an update that is cut short may leave another."""
        model, _, version = self.model_id.rpartition(":")
        return dataclasses.replace(config, model=model, model_version=int(version), replicas=self.num_replicas)

    def _change(self, **facts: Any) -> None:
        change_item(self.workspace, KIND, self.name, self.version, facts)
        self._refresh()

    def _write(self, facts: dict[str, Any], uses: claims.Uses | None) -> None:
        """Writes `facts` if as many FPGAs can be had; with `uses` as a new version of the service."""
        with self.workspace.store.transaction() as connection:
            more = facts["replicas"] - self._facts["replicas"]
            if self._facts["phase"] == claims.RUNNING and more > 0 and more > claims.free(connection):
                raise WebserviceException(claims.no_room(connection, more, self.name))
            if self._facts["phase"] != claims.STOPPED:
                self._check_ports(connection, facts)
            self._put(connection, facts, uses)
        self._refresh()

    def _check_ports(
        self, connection: sqlite3.Connection, facts: Mapping[str, Any], without: Sequence[str] = ()
    ) -> None:
        ports = claims.fixed_ports(facts)
        claims.check_ports(self.workspace, connection, self.name, facts["host"], ports, without)

    def _put(self, connection: sqlite3.Connection, facts: dict[str, Any], uses: claims.Uses | None = None) -> None:
        this = (KIND, self.name, self.version)
        if uses is None:
            query = "UPDATE items SET facts = ? WHERE kind = ? AND name = ? AND version = ?"
            connection.execute(query, (json.dumps(facts), *this))
            return
        add_item(connection, KIND, self.name, next_version(connection, KIND, self.name), facts, uses=uses)
        connection.execute("DELETE FROM items WHERE kind = ? AND name = ? AND version = ?", this)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Within it nobody else starts, stops, updates or deletes this service."""
        folder = claims.folder(self.workspace, ".locks")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / self.name).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def start_queued(workspace: Workspace) -> None:
    """Starts the services that wait for FPGAs, in their order, as long as there are enough."""
    while True:
        with workspace.store.transaction() as connection:
            waiting = claims.queued(connection)
            if not waiting:
                return
            service = Webservice(workspace, waiting[0])
            if service.num_replicas > claims.free(connection):
                return
            service._put(connection, {**service._facts, "phase": claims.RUNNING, "since": claims.now()})
        with contextlib.suppress(WebserviceException), service._locked():  # its own state says so
            service._refresh()
            service._launch_if_due()


def _grace_s(folder: Path) -> float:
    try:
        return ServiceConfig.read(folder).grace_s
    except WebserviceException:
        return ServiceConfig.grace_s
