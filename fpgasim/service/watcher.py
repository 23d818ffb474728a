"""`python -m fpgasim.service.watcher FOLDER`: keeps the servers of a service, its replicas, as its configuration says.

One rule holds for every replica at every moment: what it runs is compared with all of `config.json`, model included.

- One that does not run yet is started with what is wanted now; one that is starting with anything else is ended.
- One that serves another model loads the wanted one while it serves. What it says if it does not take it stands in the
  status, and no other is asked; if it cannot be asked it starts anew.
- One that serves otherwise in any other respect (TLS, keys) ends and starts anew, one replica after another.

A replica that ends is started again, at once if it had served for a while, later and later if not. One that has never
served as it should is given up where its error would only come again, and else after 6 starts. One that serves and
answers no question about its health for `unresponsive_s` is killed. All end with the watcher, even when that is killed.

What takes time, questions to replicas, is done in threads; only the main thread reads and changes what is known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import os
import queue
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fpgasim.errors import STATUS, FpgasimError, NoAnswer, ServiceError, WebserviceException
from fpgasim.service import auth, replicas
from fpgasim.service.processes import (
    KILL_AFTER_S,
    LOG,
    OLD_LOG,
    STATUS_FILE,
    Process,
    ReplicaStatus,
    ServiceConfig,
    State,
    Status,
    write_json,
)

#: Larger logs are put aside, and what was put aside before is lost.
LOG_BYTES = 4 << 20
#: Who has served so long may start again at once.
_STEADY_S = 5.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 30.0
#: Starts of a replica that never serves, before it is given up.
MOST_STARTS = 6
#: Exit codes that the next start would have again: the model or the configuration is to blame, not the moment.
_HOPELESS = {status.exit_code for error, status in STATUS.items() if error is not ServiceError} | {2}
#: A replica that cannot be asked to load a model is asked again, and then started anew.
_MOST_ASKED, _ASK_AGAIN_S = 5, 1.0
#: A replica is hung when it has let so many questions in a row go unanswered, each for that part of `unresponsive_s`.
_UNANSWERED = 3
#: Before gRPC gives up to connect, which would not tell a hung server from one that is not there.
_LONGEST_QUESTION_S = 10.0
_READY = re.compile(r"SERVING .* on .*:(\d+) \(")
#: The environment must not let in keys that the service does not have.
_OWN_KEYS = ("FPGASIM_AUTH_KEY", "FPGASIM_AUTH_KEY2")
#: Lets in who makes a replica load a model: the watcher alone has it.
_RELOAD_KEY = "FPGASIM_RELOAD_KEY"


@dataclass(eq=False)
class _Replica:
    """A place for a server, and the server in it, if any.

    `runs` is what it was started with, or serves by now; `served_as` the command of the last that came to serve here;
    `loading` what it is asked to serve.
    """

    index: int
    port: int
    state: State = "waiting"
    child: subprocess.Popen[bytes] | None = None
    runs: ServiceConfig | None = None
    loading: ServiceConfig | None = None
    due: float = 0.0
    serving_since: float | None = None
    served_as: list[str] | None = None
    failures: int = 0
    restarts: int = -1
    error: str | None = None
    #: A question to it is under way; how many went wrong; when the next one may come.
    asked: bool = False
    loads: int = 0
    load_due: float = 0.0
    unanswered: int = 0
    health_due: float = 0.0
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
        self._reload_key = auth.make_key()
        self._refused: str | None = None
        self._replicas: list[_Replica] = []
        self._leaving: list[_Replica] = []
        self._stopping = self._reread = False
        self._selector = selectors.DefaultSelector()
        self._answers: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._written: Any = None
        own = Process.of(os.getpid())
        assert own is not None
        self._own = own
        self._waker = self._wake_up()
        self._fit()
        self._write_status()

    def run(self) -> None:
        self._note(f"watches {self._config.name}, {self._config.replicas} replicas")
        while not (self._stopping and not self._children()):
            self._wait()
            for replica in self._children():
                if replica.child is not None and replica.child.poll() is not None:
                    self._ended(replica)
            while not self._answers.empty():
                self._answers.get()()
            if self._reread and not self._stopping:
                self._reread = False
                self._read_config()
            if self._stopping:
                for replica in self._replicas:
                    self._make_leave(replica)
            else:
                self._converge()
            self._leaving = [replica for replica in self._leaving if replica.child is not None]
            self._kill_late()
            self._write_status()
        self._note("ends")

    def _wake_up(self) -> int:
        """Signals, and threads that write to what comes back, end the wait of the loop."""
        reader, writer = os.pipe()
        for descriptor in (reader, writer):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._selector.register(reader, selectors.EVENT_READ)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, self._on_hup)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        return writer

    def _on_term(self, *_: object) -> None:
        self._stopping = True

    def _on_hup(self, *_: object) -> None:
        self._reread = True

    def _children(self) -> list[_Replica]:
        return [replica for replica in (*self._replicas, *self._leaving) if replica.child is not None]

    def _wait(self) -> None:
        """Until something is printed, a signal or an answer comes, or something is due."""
        due = [r.due for r in (*self._replicas, *self._leaving) if r.state in ("waiting", "stopping")]
        serving = [replica for replica in self._replicas if replica.state == "serving" and not replica.asked]
        due += [replica.health_due for replica in serving]
        if (next_ := self._next_to_load()) is not None:
            due.append(next_.load_due)
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
        self._refused = None
        self._fit()
        for replica in self._replicas:
            replica.loads, replica.load_due = 0, 0.0
            if replica.state == "serving" and replica.child is not None and replica.runs is not None:
                if replica.runs.serve() == self._config.serve():
                    replica.child.send_signal(signal.SIGHUP)
            elif replica.state in ("waiting", "failed"):
                replica.state, replica.failures, replica.due, replica.served_as = "waiting", 0, 0.0, None

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

    def _converge(self) -> None:
        """Does the next thing that brings every replica to what is wanted, and asks those that serve how they are."""
        now = time.monotonic()
        for replica in self._replicas:
            if replica.state == "starting" and self._runs_otherwise(replica):
                self._note(f"ends replica {replica.index}, which starts as the service was before")
                self._make_leave(replica)
            elif replica.state == "waiting" and now >= replica.due:
                self._start(replica)
        serving = [replica for replica in self._replicas if replica.state == "serving"]
        if (next_ := self._next_to_load()) is not None and now >= next_.load_due:
            self._load(next_)
        for replica in serving:
            tried = replica.loads >= _MOST_ASKED and replica.loading is None
            ready = tried if self._has_other_model(replica) else self._runs_otherwise(replica)
            if ready and self._refused is None and self._others_serve(replica):
                self._make_leave(replica)
            if replica.state == "serving" and not replica.asked and now >= replica.health_due:
                self._ask(replica)

    def _next_to_load(self) -> _Replica | None:
        """The replica that is to load the wanted model next, one at a time, when its `load_due` comes."""
        if self._refused is not None or any(replica.loading is not None for replica in self._replicas):
            return None
        may = (r for r in self._replicas if r.state == "serving" and not r.asked and r.loads < _MOST_ASKED)
        return next((replica for replica in may if self._has_other_model(replica)), None)

    def _has_other_model(self, replica: _Replica) -> bool:
        return replica.runs is not None and replica.runs.model_path != self._config.model_path

    def _runs_otherwise(self, replica: _Replica) -> bool:
        return replica.runs is not None and replica.runs.command() != self._config.command()

    def _others_serve(self, replica: _Replica) -> bool:
        return all(other.state in ("serving", "failed") for other in self._replicas if other is not replica)

    def _make_leave(self, replica: _Replica) -> None:
        if replica.child is None:
            replica.state = "failed" if self._stopping else replica.state
        elif replica.state != "stopping":
            grace = self._config.grace_s if replica.state == "serving" else 0.0  # else it has let nobody in
            replica.child.terminate()
            replica.state, replica.due = "stopping", time.monotonic() + grace + KILL_AFTER_S

    def _kill_late(self) -> None:
        for replica in self._children():
            if replica.state == "stopping" and time.monotonic() >= replica.due and replica.child is not None:
                self._note(f"kills replica {replica.index}, which does not end")
                replica.child.kill()
                replica.due += KILL_AFTER_S

    def _start(self, replica: _Replica) -> None:
        config = self._config
        command = [sys.executable, "-u", "-m", "fpgasim.cli.tied", str(os.getpid()), "serve"]
        environment = {key: value for key, value in os.environ.items() if key not in _OWN_KEYS}
        environment[_RELOAD_KEY] = self._reload_key
        replica.child = subprocess.Popen(
            [*command, *config.command(), "--port", str(replica.port)],
            cwd=self._folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert replica.child.stdout is not None
        os.set_blocking(replica.child.stdout.fileno(), False)
        self._selector.register(replica.child.stdout, selectors.EVENT_READ, replica)
        replica.state, replica.runs, replica.serving_since = "starting", config, None
        replica.loads, replica.load_due = 0, 0.0
        replica.restarts += 1
        replica.last_lines.clear()
        self._note(f"starts replica {replica.index} as process {replica.child.pid}")

    def _load(self, replica: _Replica) -> None:
        """Has `replica` load the wanted model, once it has said how it is: while it loads nobody asks it that."""
        config, runs, patience_s = self._config, replica.runs, self._patience_s
        assert runs is not None
        replica.loading = config
        begun = threading.Event()

        def load() -> None:
            address = self._address(replica, runs)
            replicas.health(address, min(patience_s, _LONGEST_QUESTION_S))
            begun.set()
            replicas.load_model(dataclasses.replace(address, key=self._reload_key), config)

        def loaded(error: FpgasimError | None) -> None:
            now = time.monotonic()
            replica.loading, replica.load_due, replica.health_due = None, now + _ASK_AGAIN_S, now + patience_s
            if error is None:
                replica.runs = dataclasses.replace(runs, model=config.model, model_version=config.model_version)
                replica.served_as = replica.runs.command()
                self._note(f"replica {replica.index} serves {config.model_path}")
            elif not isinstance(error, NoAnswer):
                self._note(f"replica {replica.index} does not take {config.model_path}: {error}")
                if self._config.model_path == config.model_path:
                    self._refused = str(error)
            else:
                self._note(f"replica {replica.index} cannot be asked to load {config.model_path}: {error}")
                if error.timed_out and not begun.is_set():
                    self._heard(replica, error)
                else:
                    replica.loads = _MOST_ASKED if error.timed_out else replica.loads + 1

        self._in_thread(replica, load, loaded)

    def _ask(self, replica: _Replica) -> None:
        """Asks `replica` how it is; whatever it says, it is not hung."""
        runs, patience_s = replica.runs, self._patience_s
        assert runs is not None

        def said(error: FpgasimError | None) -> None:
            replica.health_due = time.monotonic() + patience_s
            self._heard(replica, error)

        def ask() -> None:
            replicas.health(self._address(replica, runs), min(patience_s, _LONGEST_QUESTION_S))

        self._in_thread(replica, ask, said)

    @property
    def _patience_s(self) -> float:
        return self._config.unresponsive_s / _UNANSWERED

    def _heard(self, replica: _Replica, error: FpgasimError | None) -> None:
        """Takes note of what came of a question, and kills a replica that has said nothing for too long."""
        silent = isinstance(error, NoAnswer) and error.timed_out
        replica.unanswered = replica.unanswered + 1 if silent else 0
        if replica.unanswered >= _UNANSWERED and replica.state == "serving" and replica.child is not None:
            replica.error = f"it did not answer for {self._config.unresponsive_s:g} s and was killed"
            self._note(f"replica {replica.index} is killed: {replica.error}")
            replica.child.kill()

    def _address(self, replica: _Replica, runs: ServiceConfig) -> replicas.Address:
        return replicas.Address.of(self._folder, runs, replica.port)

    def _in_thread(
        self, replica: _Replica, work: Callable[[], object], then: Callable[[FpgasimError | None], None]
    ) -> None:
        """Does `work`, and in the main thread `then` with its error, if the server that it was about still runs."""
        child, replica.asked = replica.child, True

        def answered(error: FpgasimError | None) -> None:
            if replica.child is child:
                replica.asked = False
                then(error)

        def run() -> None:
            error: FpgasimError | None = None
            try:
                work()
            except FpgasimError as raised:
                error = raised
            except Exception as raised:  # keys that cannot be read now, say: the main thread has to hear that it ended
                error = NoAnswer(str(raised) or type(raised).__name__)
            self._answers.put(lambda: answered(error))
            with contextlib.suppress(BlockingIOError):  # it wakes up anyway
                os.write(self._waker, b"\0")

        threading.Thread(target=run, daemon=True).start()

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
            now = time.monotonic()
            replica.state, replica.port, replica.serving_since = "serving", int(ready[1]), now
            replica.served_as, replica.error = None if replica.runs is None else replica.runs.command(), None
            replica.health_due = now + self._patience_s

    def _ended(self, replica: _Replica) -> None:
        assert replica.child is not None
        assert replica.child.stdout is not None
        while not replica.child.stdout.closed:
            self._read(replica)
        code, now = replica.child.returncode, time.monotonic()
        meant = replica.state == "stopping"
        steady = replica.serving_since is not None and now - replica.serving_since >= _STEADY_S
        hung = replica.unanswered >= _UNANSWERED
        replica.child, replica.serving_since, replica.unfinished = None, None, b""
        replica.asked, replica.loading, replica.unanswered = False, None, 0
        replica.failures = 0 if meant or steady else replica.failures + 1
        delay = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** (replica.failures - 1)) if replica.failures else 0.0
        replica.state, replica.due = "waiting", now + delay
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        again = f"starts again in {delay:g} s"
        if not meant and not hung:
            said = [line for line in replica.last_lines if line.startswith("fpgasim: error: ")]
            replica.error = said[-1].removeprefix("fpgasim: error: ") if said else f"it ended with {how}"
        if not meant and replica.served_as != self._config.command():
            if code in _HOPELESS:
                replica.state, again = "failed", "no start would help"
            elif replica.failures >= MOST_STARTS:
                replica.state, again = "failed", f"it is given up after {MOST_STARTS} starts"
                replica.error = f"{replica.error}; given up after {MOST_STARTS} starts, start() tries again"
        self._note(f"replica {replica.index} ended with {how}; {'ends' if self._stopping else again}")

    def _write_status(self) -> None:
        wanted = self._config.command()
        found = tuple(
            ReplicaStatus(
                Process.of(r.child.pid) if r.child is not None else None,
                r.port,
                r.state,
                r.child is None or (r.loading is None and not self._runs_otherwise(r)),
                None if r.child is None or r.runs is None else r.runs.model_path,
                max(0, r.restarts),
                r.served_as == wanted,
                r.error,
            )
            for r in self._replicas
        )
        status = dataclasses.asdict(Status(self._own, self._config.revision, found, self._refused))
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
    os._exit(0)  # threads may still wait for an answer


if __name__ == "__main__":
    main()
