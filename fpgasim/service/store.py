"""Files by their content and facts in SQLite, in one folder: what registry, images and services are kept in.

    registry.db     facts; one transaction for everything that belongs together (write-ahead log, synced)
    files/ab/abcd…  contents by SHA-256, never changed
    incoming/       contents that are being written

A file is whole and on disk before a transaction speaks of it, so whatever a process that is killed leaves behind is at
worst a content that nobody speaks of; `sweep` removes those. Writers hold `lock` shared, `sweep` holds it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sqlite3
import stat
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fpgasim.errors import WorkspaceError

#: Raised by one, with a step below, whenever the tables change.
SCHEMA_VERSION = 1
_TABLES = """
CREATE TABLE versions (kind TEXT NOT NULL, name TEXT NOT NULL, last INTEGER NOT NULL, PRIMARY KEY (kind, name));
CREATE TABLE items (
  kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, facts TEXT NOT NULL,
  PRIMARY KEY (kind, name, version)
);
CREATE TABLE contents (
  kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
  path TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
  PRIMARY KEY (kind, name, version, path),
  FOREIGN KEY (kind, name, version) REFERENCES items ON DELETE CASCADE
);
CREATE INDEX contents_by_hash ON contents (sha256);
CREATE TABLE uses (
  kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
  used_kind TEXT NOT NULL, used_name TEXT NOT NULL, used_version INTEGER NOT NULL,
  PRIMARY KEY (kind, name, version, used_kind, used_name, used_version),
  FOREIGN KEY (kind, name, version) REFERENCES items ON DELETE CASCADE,
  FOREIGN KEY (used_kind, used_name, used_version) REFERENCES items ON DELETE RESTRICT
);
CREATE INDEX uses_by_used ON uses (used_kind, used_name, used_version);
"""
#: How long a writer waits for the others.
BUSY_S = 60.0
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Content:
    """One file of an item: its path within the item, what it holds and how many bytes."""

    path: str
    sha256: str
    size: int


class Store:
    """The store in the folder `root`, made if it is not there. Any number of processes and threads may use one."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._files, self._incoming = self.root / "files", self.root / "incoming"
        self._local = threading.local()
        try:
            for folder in (self._files, self._incoming):
                folder.mkdir(parents=True, exist_ok=True)
            (self.root / "lock").touch()
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise WorkspaceError(f"the workspace in {str(self.root)!r} cannot be used: {error}") from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection on which everything happens, on disk, when the block ends, or nothing if it raises."""
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """The rows of a query that writes nothing."""
        return self._connection().execute(query, values).fetchall()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Within it the contents that `put` makes are safe from `sweep`: what speaks of them goes in before it ends."""
        with self._locked(fcntl.LOCK_SH):
            yield

    def put(self, source: str | os.PathLike[str]) -> list[Content]:
        """The contents of a file (one, by its name) or a folder (all below it, sorted), kept by their hashes.

        Links are refused, since what they lead to may change or not be meant. Raises WorkspaceError naming the path.
        """
        source = Path(source)
        try:
            mode = source.stat().st_mode
            if stat.S_ISREG(mode):
                return [self._put_file(source, source.name)]
            if not stat.S_ISDIR(mode):
                raise WorkspaceError(f"{str(source)!r} is neither a file nor a folder")
            found = []
            for path in sorted(source.rglob("*")):
                if path.is_symlink() or not (path.is_file() or path.is_dir()):
                    raise WorkspaceError(f"{str(path)!r} is neither a file nor a folder; links are not followed")
                if path.is_file():
                    found.append(self._put_file(path, path.relative_to(source).as_posix()))
        except OSError as error:
            raise WorkspaceError(f"{str(source)!r} cannot be read: {error.strerror or error}") from error
        if not found:
            raise WorkspaceError(f"the folder {str(source)!r} holds no file")
        return found

    def put_bytes(self, data: bytes, path: str) -> Content:
        """The content `data`, kept by its hash, as a file of that path."""
        with self._new_file() as (file, temporary):
            file.write(data)
        return self._keep(temporary, path, hashlib.sha256(data).hexdigest(), len(data))

    def path_of(self, content: Content) -> Path:
        """Where `content` lies: to be read, never to be written. WorkspaceError if it is gone or of another size."""
        path = self._home(content.sha256)
        try:
            size = path.stat().st_size
        except OSError:
            size = -1
        if size != content.size:
            raise WorkspaceError(
                f"the content {content.sha256[:12]}… of {content.path!r} is damaged or gone from {str(self.root)!r}"
            )
        return path

    def copy_out(self, contents: list[Content], target: Path) -> None:
        """Writes `contents` below the folder `target`, each checked against its hash. WorkspaceError if one differs."""
        for content in contents:
            relative = PurePosixPath(content.path)
            if relative.is_absolute() or ".." in relative.parts:
                raise WorkspaceError(f"the path {content.path!r} leads out of the folder it belongs to")
            path = target / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            try:
                shutil.copyfile(self.path_of(content), temporary)
                if _hash(temporary) != content.sha256:
                    raise WorkspaceError(
                        f"the content of {content.path!r} is not what was registered: its hash differs"
                    )
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def sweep(self) -> int:
        """Removes contents that nothing speaks of, unless others write just now; returns how many."""
        with contextlib.suppress(BlockingIOError), self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            known = {row[0] for row in self.read("SELECT DISTINCT sha256 FROM contents")}
            unknown = [path for path in self._files.glob("*/*") if path.name not in known]
            for path in (*unknown, *self._incoming.iterdir()):
                path.unlink(missing_ok=True)
            return len(unknown)
        return 0

    def _put_file(self, source: Path, path: str) -> Content:
        digest, size = hashlib.sha256(), 0
        with source.open("rb") as reader, self._new_file() as (file, temporary):
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
                size += len(chunk)
        return self._keep(temporary, path, digest.hexdigest(), size)

    @contextlib.contextmanager
    def _new_file(self) -> Iterator[tuple[Any, Path]]:
        temporary = self._incoming / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:
                yield file, temporary
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _keep(self, temporary: Path, path: str, sha256: str, size: int) -> Content:
        home = self._home(sha256)
        home.parent.mkdir(exist_ok=True)
        temporary.chmod(0o444)
        os.replace(temporary, home)  # the same bytes, if somebody was quicker
        for folder in (home.parent, self._files):
            _sync(folder)
        return Content(path, sha256, size)

    def _home(self, sha256: str) -> Path:
        return self._files / sha256[:2] / sha256

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with (self.root / "lock").open("rb") as lock:
            fcntl.flock(lock, how)
            yield

    def _connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None or self._local.process != os.getpid():  # a connection must not cross a fork
            found = sqlite3.connect(self.root / "registry.db", timeout=BUSY_S, isolation_level=None)
            found.row_factory = sqlite3.Row
            found.execute("PRAGMA foreign_keys = ON")
            found.execute("PRAGMA synchronous = FULL")
            self._local.connection, self._local.process = found, os.getpid()
        return found

    def _prepare(self) -> None:
        """Makes the tables in a new database; refuses one of a later version."""
        with self._locked(fcntl.LOCK_EX):
            connection = self._connection()
            connection.execute("PRAGMA journal_mode = WAL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise WorkspaceError(
                    f"the workspace in {str(self.root)!r} is of version {version}; this fpgasim knows {SCHEMA_VERSION}"
                )
            if version == 0:
                connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
