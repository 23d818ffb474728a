"""The processes of a deployed service as others see them: what should run, what does, how to start and to end it.

A service is a folder. `config.json` says what should run, `status.json` what does; the watcher alone writes the second.

    config.json             ServiceConfig
    keys.json               primary and secondary key; only the owner reads it
    server.pem, server.key  certificate, where the service speaks TLS
    models/NAME/VERSION/    the model's files
    device.yaml             the device, where a file describes it
    status.json             watcher, replicas, their ports, which stay what they were at the first start
    log.txt, log.1.txt      what replicas print, and what the watcher does

The watcher (watcher.py) is in a session of its own, so it outlives whoever deploys. SIGTERM ends it and its replicas,
calls that are in first; SIGHUP makes it read `config.json` anew, and bring every replica to what that says.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fpgasim.errors import WebserviceException

CONFIG, STATUS_FILE, KEYS, LOG, OLD_LOG = "config.json", "status.json", "keys.json", "log.txt", "log.1.txt"
CERTIFICATE, PRIVATE_KEY, MODELS = "server.pem", "server.key", "models"
#: Beyond the time that calls which are in are given.
KILL_AFTER_S = 5.0
State = Literal["starting", "serving", "waiting", "failed", "stopping"]


@dataclass(frozen=True)
class ServiceConfig:
    """What should run. `revision` is raised by one with every change, so that one can see whether it came through."""

    name: str
    model: str
    model_version: int
    replicas: int = 1
    host: str = "127.0.0.1"
    port: int = 0
    tls: bool = False
    auth: bool = False
    device: str = "bw_a10"
    format: str = "bw_1s5e5m"
    pace: str = "host"
    max_concurrent: int = 4
    deadline_s: float = 60.0
    grace_s: float = 30.0
    unresponsive_s: float = 30.0
    revision: int = 1

    @property
    def model_path(self) -> str:
        """Where the model's files are, in the service's folder."""
        return f"{MODELS}/{self.model}/{self.model_version}"

    def serve(self) -> list[str]:
        """The arguments of `fpgasim serve`, run in the service's folder, but for model, address and port."""
        texts = [
            "--service", self.name, "--device", self.device, "--format", self.format, "--pace", self.pace,
            "--max-concurrent", str(self.max_concurrent), "--deadline", str(self.deadline_s),
            "--grace", str(self.grace_s),
        ]  # fmt: skip
        if self.tls:
            texts += ["--tls-cert", CERTIFICATE, "--tls-key", PRIVATE_KEY]
        return [*texts, "--keys-file", KEYS] if self.auth else texts

    def served_model(self) -> list[str]:
        """The arguments that say which model, and what it is called."""
        return [self.model_path, "--name", self.model, "--model-version", str(self.model_version)]

    def command(self) -> list[str]:
        """All that `fpgasim serve` is told but the port. Two configurations that differ in it need other servers."""
        return [*self.served_model(), "--host", self.host, "--model-root", MODELS, *self.serve()]

    @staticmethod
    def read(folder: Path) -> ServiceConfig:
        """The configuration in `folder`; WebserviceException where there is none."""
        try:
            return ServiceConfig(**json.loads((folder / CONFIG).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise WebserviceException(
                f"{str(folder / CONFIG)!r} cannot be read: {error}; delete the service"
            ) from error

    def write(self, folder: Path) -> None:
        write_json(folder / CONFIG, dataclasses.asdict(self))


@dataclass(frozen=True)
class Process:
    """A process, told from a later one of the same number by when it started."""

    pid: int
    started: str

    @staticmethod
    def of(pid: int) -> Process | None:
        """The process that has this number now; None if none runs."""
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        return None if state in "ZX" else Process(pid, f"{boot}:{fields[18]}")

    @property
    def alive(self) -> bool:
        return Process.of(self.pid) == self

    def signal(self, number: int) -> bool:
        """Sends it the signal `number`; whether it was there."""
        if not self.alive:
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Waits for its end; whether that has come."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            return not self.alive or bool(select.select([descriptor], [], [], timeout_s)[0]) or not self.alive
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class ReplicaStatus:
    """One server of a service. `current`: it runs, or will, as the configuration says, model and all. `model` is the
    path of the one that it serves, or is about to; `served`: it has, as the configuration says; `error` is of its last
    end."""

    process: Process | None
    port: int
    state: State
    current: bool
    model: str | None
    restarts: int
    served: bool
    error: str | None


@dataclass(frozen=True)
class Status:
    """What runs: the watcher, the revision of the configuration that it has read, and the replicas. `refused` is what
    one that serves says to the model of that revision if it does not take it; the others are not asked then."""

    watcher: Process
    revision: int
    replicas: tuple[ReplicaStatus, ...]
    refused: str | None = None

    @property
    def processes(self) -> list[Process]:
        """Watcher and replicas, those that are alive."""
        found = [self.watcher, *(replica.process for replica in self.replicas)]
        return [process for process in found if process is not None and process.alive]

    @staticmethod
    def read(folder: Path) -> Status | None:
        """The status in `folder`; None if the service has never been started."""
        try:
            found = json.loads((folder / STATUS_FILE).read_text())
            replicas = tuple(ReplicaStatus(**{**one, "process": _process(one["process"])}) for one in found["replicas"])
            return Status(Process(**found["watcher"]), found["revision"], replicas, found["refused"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WebserviceException(
                f"{str(folder / STATUS_FILE)!r} cannot be read: {error}; delete the service"
            ) from error


def write_json(path: Path, data: Any) -> None:
    """Writes `data` for its owner's eyes; whoever reads `path` sees the old or the new text whole, at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(data, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def launch(folder: Path) -> None:
    """Starts the watcher of the service in `folder`, which starts the replicas. WebserviceException if it cannot."""
    command = [sys.executable, "-m", "fpgasim.service.watcher", str(folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise WebserviceException(f"the service in {str(folder)!r} cannot be started: {reason}")


def reread(folder: Path) -> bool:
    """Makes the watcher read the configuration, and the replicas keys and certificates; whether one runs."""
    status = Status.read(folder)
    return status is not None and status.watcher.signal(signal.SIGHUP)


def runs(folder: Path) -> bool:
    """Whether the watcher or a replica of the service in `folder` runs."""
    status = Status.read(folder)
    return status is not None and bool(status.processes)


def ports(folder: Path) -> list[int]:
    """The port of each replica of the service in `folder`; it has none (0) before its first start."""
    status = Status.read(folder)
    return [] if status is None else [replica.port for replica in status.replicas]


def stop(folder: Path, grace_s: float) -> None:
    """Ends watcher and replicas; calls that are in have `grace_s`. Raises WebserviceException if they stay."""
    status = Status.read(folder)
    if status is None:
        return
    status.watcher.signal(signal.SIGTERM)
    if not status.watcher.wait(grace_s + 2 * KILL_AFTER_S):
        raise WebserviceException(f"process {status.watcher.pid} of the service in {str(folder)!r} does not end")
    for replica in status.replicas:  # where the watcher was killed they end by themselves
        if replica.process is not None and not replica.process.wait(grace_s + KILL_AFTER_S):
            replica.process.signal(signal.SIGKILL)


def log_lines(folder: Path, count: int) -> list[str]:
    """The last `count` lines of the log."""
    lines: deque[str] = deque(maxlen=count)
    for name in (OLD_LOG, LOG):
        try:
            with (folder / name).open(errors="replace") as file:
                lines.extend(line.rstrip("\n") for line in file)
        except FileNotFoundError:
            continue
    return list(lines)


def _process(found: Any) -> Process | None:
    return None if found is None else Process(**found)
