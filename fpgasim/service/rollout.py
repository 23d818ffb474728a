"""What runs of a service that should: how it is, where it answers, and how another configuration is brought into it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from fpgasim.service import processes, replicas
from fpgasim.service.processes import ServiceConfig, Status
from fpgasim.service.replicas import Address

_POLL_S = 0.05
#: Servers look at their certificate's files every second.
_FOLLOWED_S = 15.0


def state(folder: Path, wanted: ServiceConfig) -> tuple[str, str | None]:
    """How the service in `folder`, which should run as `wanted`, is, and why it is not Healthy: its state's words.

    Healthy: every replica runs the whole of `wanted`, model included, and has just said that it serves.
    """
    config, status = ServiceConfig.read(folder), Status.read(folder)
    if status is None or not status.watcher.alive:
        return "Unhealthy", "its processes do not run; start() brings them back"
    if wanted != config:
        return "Transitioning", "an update is under way; start() brings one through that was cut short"
    if status.revision < config.revision:
        return "Transitioning", "its replicas start as it was updated"
    if status.refused is not None:
        return "Unhealthy", f"another model would do: {status.refused}"
    for i, replica in enumerate(status.replicas):
        if replica.state == "failed" and not replica.served:
            return "Failed", f"replica {i}: {replica.error}"
    if not all(replica.current for replica in status.replicas):
        return "Transitioning", "its replicas start as it was updated"
    for i, replica in enumerate(status.replicas):
        if replica.state != "serving":
            return "Unhealthy" if replica.served else "Transitioning", f"replica {i}: {replica.error or replica.state}"
    unwell = [said for address in addresses(folder) if (said := replicas.is_well(address)) is not None]
    return ("Unhealthy", unwell[0]) if unwell else ("Healthy", None)


def addresses(folder: Path) -> Sequence[Address]:
    """Where replicas serve now, with the key that they ask for."""
    config, status = ServiceConfig.read(folder), Status.read(folder)
    if status is None or not status.watcher.alive:
        return []
    return [Address.of(folder, config, replica.port) for replica in status.replicas if replica.state == "serving"]


def apply(folder: Path, config: ServiceConfig) -> str | None:
    """Has the watcher bring `config` into what runs. Returns when no replica serves another model any longer, or what
    one says that does not take it. Those that do not serve at the moment start with it."""
    config.write(folder)
    processes.reread(folder)
    while (status := Status.read(folder)) is not None and status.watcher.alive:
        if status.revision >= config.revision:
            if status.refused is not None:
                return status.refused
            if all(replica.model in (None, config.model_path) for replica in status.replicas):
                break
        time.sleep(_POLL_S)
    return None


def forget_models(folder: Path) -> None:
    """Removes the files of models that no replica needs any longer."""
    config, status = ServiceConfig.read(folder), Status.read(folder)
    alive = [] if status is None else [r for r in status.replicas if r.process is not None and r.process.alive]
    needed = {config.model_path, *(replica.model for replica in alive)}
    for path in (folder / processes.MODELS).glob("*/*"):
        if str(path.relative_to(folder)) not in needed:
            shutil.rmtree(path, ignore_errors=True)


def await_key(folder: Path) -> None:
    """Returns when the replicas take the primary key that they were given while they run, if they do soon."""
    end = time.monotonic() + _FOLLOWED_S
    for address in addresses(folder):
        while address.key is not None and not replicas.takes_key(address) and time.monotonic() < end:
            time.sleep(_POLL_S)


def await_certificate(folder: Path) -> None:
    """Returns when the replicas show the certificate that they were given while they run, if they do soon."""
    end = time.monotonic() + _FOLLOWED_S
    for address in addresses(folder):
        while replicas.is_well(address) is not None and time.monotonic() < end:
            time.sleep(_POLL_S)
