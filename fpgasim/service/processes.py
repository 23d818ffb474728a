"""The processes of a deployed service: a watcher that keeps its servers, the replicas, running.

A service is a folder. `config.json` says what should run, `status.json` what does; the watcher alone writes the second.

    config.json             ServiceConfig
    keys.json               primary and secondary key; only the owner reads it
    server.pem, server.key  certificate, where the service speaks TLS
    models/NAME/VERSION/    the model's files
    device.yaml             the device, where a file describes it
    status.json             watcher, replicas, their ports, which stay what they were at the first start
    log.txt, log.1.txt      what replicas print, and what the watcher does

The watcher is in a session of its own, so it outlives whoever deploys. A replica that ends is started again, at once
if it had served for a while, later and later if not, and not at all where its error would only come again. The
replicas end with their watcher, even when that is killed. SIGTERM ends all, calls that are in first; SIGHUP makes the
watcher read `config.json` anew, and replicas that were started otherwise make way one after another.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import datetime
import fcntl
import json
import os
import re
import select
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fpgasim.errors import STATUS, ServiceError, WebserviceException

CONFIG, STATUS_FILE, KEYS, LOG, OLD_LOG = "config.json", "status.json", "keys.json", "log.txt", "log.1.txt"
CERTIFICATE, PRIVATE_KEY, MODELS = "server.pem", "server.key", "models"
#: Larger logs are put aside, and what was put aside before is lost.
LOG_BYTES = 4 << 20
#: Who has served so long may start again at once.
_STEADY_S = 5.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 30.0
#: Beyond the time that calls which are in are given.
_KILL_AFTER_S = 5.0
#: Exit codes that the next start would have again: the model or the configuration is to blame, not the moment.
_HOPELESS = {status.exit_code for error, status in STATUS.items() if error is not ServiceError} | {2}
_READY = re.compile(r"SERVING .* on .*:(\d+) \(")
_PR_SET_PDEATHSIG = 1
#: The environment must not let in keys that the service does not have.
_OWN_KEYS = ("FPGASIM_AUTH_KEY", "FPGASIM_AUTH_KEY2")
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
            "--grace", str(self.grace_s), "--model-root", MODELS,
        ]  # fmt: skip
        if self.tls:
            texts += ["--tls-cert", CERTIFICATE, "--tls-key", PRIVATE_KEY]
        return [*texts, "--keys-file", KEYS] if self.auth else texts

    def served_model(self) -> list[str]:
        """The arguments that say which model, and what it is called."""
        return [self.model_path, "--name", self.model, "--model-version", str(self.model_version)]

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
    """One server of a service. `current`: it runs, or will, as the configuration says. `error` is of its last end."""

    process: Process | None
    port: int
    state: State
    current: bool
    restarts: int
    served: bool
    error: str | None


@dataclass(frozen=True)
class Status:
    """What runs: the watcher, the revision of the configuration that it has read, and the replicas."""

    watcher: Process
    revision: int
    replicas: tuple[ReplicaStatus, ...]

    @staticmethod
    def read(folder: Path) -> Status | None:
        """The status in `folder`; None if the service has never been started."""
        try:
            found = json.loads((folder / STATUS_FILE).read_text())
            replicas = tuple(ReplicaStatus(**{**one, "process": _process(one["process"])}) for one in found["replicas"])
            return Status(Process(**found["watcher"]), found["revision"], replicas)
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
    command = [sys.executable, "-m", "fpgasim.service.processes", str(folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise WebserviceException(f"the service in {str(folder)!r} cannot be started: {reason}")


def reread(folder: Path) -> bool:
    """Makes the watcher read the configuration, and the replicas keys and certificates; whether one runs."""
    status = Status.read(folder)
    return status is not None and status.watcher.signal(signal.SIGHUP)


def stop(folder: Path, grace_s: float) -> None:
    """Ends watcher and replicas; calls that are in have `grace_s`. Raises WebserviceException if they stay."""
    status = Status.read(folder)
    if status is None:
        return
    status.watcher.signal(signal.SIGTERM)
    if not status.watcher.wait(grace_s + 2 * _KILL_AFTER_S):
        raise WebserviceException(f"process {status.watcher.pid} of the service in {str(folder)!r} does not end")
    for replica in status.replicas:  # where the watcher was killed they end by themselves
        if replica.process is not None and not replica.process.wait(grace_s + _KILL_AFTER_S):
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


@dataclass
class _Replica:
    """A place for a server, and the server in it, if any."""

    index: int
    port: int
    state: State = "waiting"
    child: subprocess.Popen[bytes] | None = None
    started_with: list[str] = field(default_factory=list)
    due: float = 0.0
    serving_since: float | None = None
    served: bool = False
    failures: int = 0
    restarts: int = -1
    error: str | None = None
    unfinished: bytes = b""
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=20))


class _Watcher:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = os.open(folder / "watcher.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WebserviceException(f"the service in {str(folder)!r} runs already") from None
        before = Status.read(folder)
        self._ports = [] if before is None else [replica.port for replica in before.replicas]
        self._config = ServiceConfig.read(folder)
        self._replicas: list[_Replica] = []
        self._leaving: list[_Replica] = []
        self._stopping = self._asked = False
        self._selector = selectors.DefaultSelector()
        self._written: Any = None
        own = Process.of(os.getpid())
        assert own is not None
        self._own = own
        self._libc = ctypes.CDLL(None)
        self._wake_up()
        self._fit()
        self._write_status()

    def run(self) -> None:
        self._note(f"watches {self._config.name}, {self._config.replicas} replicas")
        while not (self._stopping and not self._children()):
            self._wait()
            for replica in [*self._replicas, *self._leaving]:
                if replica.child is not None and replica.child.poll() is not None:
                    self._ended(replica)
            if self._asked and not self._stopping:
                self._asked = False
                self._read_config()
            if self._stopping:
                for replica in self._replicas:
                    self._make_leave(replica)
            else:
                self._make_one_way()
                for replica in self._replicas:
                    if replica.state == "waiting" and time.monotonic() >= replica.due:
                        self._start(replica)
            self._leaving = [replica for replica in self._leaving if replica.child is not None]
            self._kill_late()
            self._write_status()
        self._note("ends")

    def _wake_up(self) -> None:
        reader, writer = os.pipe()
        for descriptor in (reader, writer):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._selector.register(reader, selectors.EVENT_READ)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, self._on_hup)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _on_term(self, *_: object) -> None:
        self._stopping = True

    def _on_hup(self, *_: object) -> None:
        self._asked = True

    def _children(self) -> list[_Replica]:
        return [replica for replica in (*self._replicas, *self._leaving) if replica.child is not None]

    def _wait(self) -> None:
        """Until something is printed, a signal comes or a start is due."""
        due = [r.due for r in (*self._replicas, *self._leaving) if r.state in ("waiting", "stopping")]
        for key, _ in self._selector.select(max(0.0, min(due) - time.monotonic()) if due else None):
            if key.data is None:
                os.read(key.fd, 4096)
            else:
                self._read(key.data)

    def _read_config(self) -> None:
        try:
            self._config = ServiceConfig.read(self._folder)
        except WebserviceException as error:
            self._note(f"goes on as before: {error}")
            return
        self._fit()
        for replica in self._replicas:
            if replica.state == "serving" and replica.child is not None:
                if replica.started_with == self._config.serve():
                    replica.child.send_signal(signal.SIGHUP)
            elif replica.state in ("waiting", "failed"):
                replica.state, replica.failures, replica.due, replica.served = "waiting", 0, 0.0, False

    def _fit(self) -> None:
        """As many places as there should be replicas."""
        config = self._config
        for index in range(len(self._replicas), config.replicas):
            fixed = config.port + index if config.port else 0
            self._replicas.append(_Replica(index, fixed or (self._ports[index] if index < len(self._ports) else 0)))
        for replica in self._replicas[config.replicas :]:
            self._make_leave(replica)
            self._leaving.append(replica)
        del self._replicas[config.replicas :]

    def _make_one_way(self) -> None:
        """Ends the first replica that was started otherwise, once all others that should serve do."""
        wanted = self._config.serve()
        old = [r for r in self._replicas if r.child is not None and r.started_with != wanted]
        new = [r for r in self._replicas if r not in old]
        if old and all(r.state in ("serving", "failed") for r in new) and all(r.state != "stopping" for r in old):
            self._make_leave(old[0])

    def _make_leave(self, replica: _Replica) -> None:
        if replica.child is None:
            replica.state = "failed" if self._stopping else replica.state
        elif replica.state != "stopping":
            replica.child.terminate()
            replica.state, replica.due = "stopping", time.monotonic() + self._config.grace_s + _KILL_AFTER_S

    def _kill_late(self) -> None:
        for replica in self._children():
            if replica.state == "stopping" and time.monotonic() >= replica.due and replica.child is not None:
                self._note(f"kills replica {replica.index}, which does not end")
                replica.child.kill()
                replica.due += _KILL_AFTER_S

    def _start(self, replica: _Replica) -> None:
        config, wanted = self._config, self._config.serve()
        address = ["--host", config.host, "--port", str(replica.port)]
        command = [sys.executable, "-u", "-m", "fpgasim", "serve", *config.served_model(), *address, *wanted]
        environment = {key: value for key, value in os.environ.items() if key not in _OWN_KEYS}
        replica.child = subprocess.Popen(
            command,
            cwd=self._folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=self._tie,
        )
        assert replica.child.stdout is not None
        os.set_blocking(replica.child.stdout.fileno(), False)
        self._selector.register(replica.child.stdout, selectors.EVENT_READ, replica)
        replica.state, replica.started_with, replica.serving_since = "starting", wanted, None
        replica.restarts += 1
        replica.last_lines.clear()
        self._note(f"starts replica {replica.index} as process {replica.child.pid}")

    def _tie(self) -> None:
        """In the new process: end when the watcher does, even if that is killed."""
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != self._own.pid:
            os._exit(1)

    def _read(self, replica: _Replica) -> None:
        assert replica.child is not None
        assert replica.child.stdout is not None
        data = replica.child.stdout.read(1 << 16)
        if data is None:
            return
        if not data:
            self._selector.unregister(replica.child.stdout)
            replica.child.stdout.close()
            return
        *lines, replica.unfinished = (replica.unfinished + data).split(b"\n")
        if len(replica.unfinished) > 1 << 16:
            lines, replica.unfinished = [*lines, replica.unfinished], b""
        for line in lines:
            self._line(replica, line.decode(errors="replace"))

    def _line(self, replica: _Replica, line: str) -> None:
        self._log(f"[{replica.index}] {line}")
        replica.last_lines.append(line)
        ready = _READY.match(line)
        if ready and replica.state == "starting":
            replica.state, replica.port, replica.serving_since = "serving", int(ready[1]), time.monotonic()
            replica.served, replica.error = True, None

    def _ended(self, replica: _Replica) -> None:
        assert replica.child is not None
        assert replica.child.stdout is not None
        while not replica.child.stdout.closed:
            self._read(replica)
        code, now = replica.child.returncode, time.monotonic()
        meant = replica.state == "stopping"
        steady = replica.serving_since is not None and now - replica.serving_since >= _STEADY_S
        replica.child, replica.serving_since, replica.unfinished = None, None, b""
        replica.served = replica.served and not meant
        replica.failures = 0 if meant or steady else replica.failures + 1
        delay = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** (replica.failures - 1)) if replica.failures else 0.0
        replica.state, replica.due = "waiting", now + delay
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if not meant:
            said = [line for line in replica.last_lines if line.startswith("fpgasim: error: ")]
            replica.error = said[-1].removeprefix("fpgasim: error: ") if said else f"it ended with {how}"
            if code in _HOPELESS:
                replica.state = "failed"
        again = "no start would help" if replica.state == "failed" else f"starts again in {delay:g} s"
        self._note(f"replica {replica.index} ended with {how}; {'ends' if self._stopping else again}")

    def _write_status(self) -> None:
        wanted = self._config.serve()
        replicas = tuple(
            ReplicaStatus(
                Process.of(r.child.pid) if r.child is not None else None,
                r.port,
                r.state,
                r.child is None or r.started_with == wanted,
                max(0, r.restarts),
                r.served,
                r.error,
            )
            for r in self._replicas
        )
        status = dataclasses.asdict(Status(self._own, self._config.revision, replicas))
        if status != self._written:
            with contextlib.suppress(OSError):  # on a full disk the service goes on, and this is written later
                write_json(self._folder / STATUS_FILE, status)
                self._written = status

    def _note(self, text: str) -> None:
        self._log(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} watcher {text}")

    def _log(self, line: str) -> None:
        path = self._folder / LOG
        with contextlib.suppress(OSError):  # a full disk costs lines, not the service
            if path.exists() and path.stat().st_size > LOG_BYTES:
                os.replace(path, self._folder / OLD_LOG)
            with path.open("a") as file:
                file.write(f"{line}\n")


def _process(found: Any) -> Process | None:
    return None if found is None else Process(**found)


def main() -> None:
    """Watches the service in the folder `sys.argv[1]`, in the background once that works."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        sys.exit(0 if os.read(reader, 1) else 1)
    os.close(reader)
    os.setsid()
    try:
        watcher = _Watcher(Path(sys.argv[1]).resolve())
    except (WebserviceException, OSError) as error:
        sys.exit(str(error))
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.write(writer, b"1")
    os.close(writer)
    watcher.run()


if __name__ == "__main__":
    main()
