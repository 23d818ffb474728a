"""Files by their content and facts in SQLite, in one folder: what registry, images and services are kept in.

    registry.db     facts; one transaction for everything that belongs together (write-ahead log, synced)
    files/ab/abcd…  contents by SHA-256, never changed
    incoming/       contents that are being written
    scratch/        folders of processes that make something of contents

A file is whole and on disk before a transaction speaks of it, so whatever a process that is killed leaves behind is at
worst a content that nobody speaks of; `sweep` removes those. Writers hold `lock` shared, `sweep` holds it alone.

Both locks, `flock` and SQLite's own, are the kernel's: they end with the process that holds them, and they need a disk
of this machine. A folder that several machines mount is no place for a store.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import shutil
import sqlite3
import stat
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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
    """The store in the folder `root`; any number of processes and threads may use one.

    With `make` it is made if it is not there. WorkspaceError for a folder that cannot be used, or that is damaged.
    """

    def __init__(self, root: str | os.PathLike[str], *, make: bool = True) -> None:
        self.root = Path(root)
        self._files, self._incoming = self.root / "files", self.root / "incoming"
        self._local = threading.local()
        try:
            if make:
                for folder in (self._files, self._incoming):
                    folder.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self.root / "lock", os.O_CREAT | os.O_RDONLY, 0o666))
        except (OSError, ValueError) as error:  # a NUL in the path
            raise self._unusable(error) from error
        with self._telling():
            self._prepare(make)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection on which everything happens, on disk, when the block ends, or nothing if it raises.

        What SQLite raises becomes a WorkspaceError: a full disk, a damaged database, a minute of others' writing.
        """
        with self._telling():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # some failures have ended it already
                    connection.execute("ROLLBACK")
                raise

    def read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """The rows of a query that writes nothing."""
        with self._telling():
            return self._connection().execute(query, values).fetchall()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Within it the contents that `put` makes are safe from `sweep`: what speaks of them goes in before it ends."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within it nobody else writes contents, and nobody else is alone."""
        with self._locked(fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new folder on the store's disk, gone at the end; what processes that were killed have left goes as well."""
        base = self.root / "scratch"
        try:
            base.mkdir(exist_ok=True)
            lock = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for left in base.iterdir():
                    shutil.rmtree(left, ignore_errors=True)
            fcntl.flock(lock, fcntl.LOCK_SH)  # from here on nobody takes what is made for left
            made = Path(tempfile.mkdtemp(dir=base))
            try:
                yield made
            finally:
                shutil.rmtree(made, ignore_errors=True)
        finally:
            os.close(lock)

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
        except (OSError, ValueError) as error:  # a NUL in the path
            reason = getattr(error, "strerror", None) or error
            raise WorkspaceError(f"{str(source)!r} cannot be read: {reason}") from error
        if not found:
            raise WorkspaceError(f"the folder {str(source)!r} holds no file")
        return found

    def put_bytes(self, data: bytes, path: str) -> Content:
        """The content `data`, kept by its hash, as a file of that path."""
        return self._put(io.BytesIO(data), path)

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

    def copy_out(self, contents: Iterable[Content], target: Path) -> None:
        """Writes `contents` below the folder `target`, each checked against its hash, and nothing anywhere else.

        A link within `target` is never followed: one in a file's place is replaced, one in a folder's place refused.
        Raises WorkspaceError for that, for a content that is not what it was, and where it cannot be written.
        """
        try:
            target.mkdir(parents=True, exist_ok=True)
            for content in contents:
                self._copy_out(content, target)
        except OSError as error:
            raise WorkspaceError(f"{str(target)!r} cannot be written: {error.strerror or error}") from error

    def sweep(self) -> int:
        """Removes contents that nothing speaks of, unless others write just now; returns how many."""
        with contextlib.suppress(BlockingIOError), self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            known = {row[0] for row in self.read("SELECT DISTINCT sha256 FROM contents")}
            unknown = [path for path in self._files.glob("*/*") if path.name not in known]
            for path in (*unknown, *self._incoming.iterdir()):
                path.unlink(missing_ok=True)
            return len(unknown)
        return 0

    def _copy_out(self, content: Content, target: Path) -> None:
        *folders, name = content.path.split("/")
        if not all(part not in ("", ".", "..") and "\0" not in part for part in (*folders, name)):
            raise WorkspaceError(f"the path {content.path!r} leads out of the folder it belongs to")
        source, partial = self.path_of(content), f".{uuid.uuid4().hex}"
        with contextlib.ExitStack() as opened:
            folder = _open_folder(opened, target)
            for part in folders:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=folder)
                try:
                    folder = _open_folder(opened, part, folder)
                except OSError as error:
                    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                        raise
                    raise WorkspaceError(f"{part!r} of {content.path!r} in {str(target)!r} is no folder") from error
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            try:
                with source.open("rb") as reader, open(os.open(partial, flags, 0o644, dir_fd=folder), "wb") as file:
                    digest, _ = _copy(reader, file)
                if digest != content.sha256:
                    raise WorkspaceError(
                        f"the content of {content.path!r} is not what was registered: its hash differs"
                    )
                os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(partial, dir_fd=folder)

    def _put_file(self, source: Path, path: str) -> Content:
        with source.open("rb") as reader:
            return self._put(reader, path)

    def _put(self, reader: IO[bytes], path: str) -> Content:
        if not path.isprintable():  # not UTF-8, or what no list of files can show
            raise WorkspaceError(f"the file name {path!r} cannot be kept; printable characters would do")
        temporary = self._incoming / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:
                sha256, size = _copy(reader, file)
                file.flush()
                os.fsync(file.fileno())
            self._keep(temporary, sha256)
        except OSError as error:
            raise WorkspaceError(f"{path!r} cannot be kept in {str(self.root)!r}: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return Content(path, sha256, size)

    def _keep(self, temporary: Path, sha256: str) -> None:
        home = self._home(sha256)
        home.parent.mkdir(exist_ok=True)
        temporary.chmod(0o444)
        os.replace(temporary, home)  # the same bytes, if somebody was quicker
        for folder in (home.parent, self._files):
            _sync(folder)

    def _home(self, sha256: str) -> Path:
        return self._files / sha256[:2] / sha256

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        try:
            lock = (self.root / "lock").open("rb")
        except OSError as error:
            raise self._unusable(error) from error
        with lock:
            fcntl.flock(lock, how)
            yield

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """What SQLite raises, as one line that names the workspace."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> WorkspaceError:
        return WorkspaceError(f"{self._where} cannot be used: {getattr(error, 'strerror', None) or error}")

    @property
    def _where(self) -> str:
        return f"the workspace in {str(self.root)!r}"

    def _connection(self, make: bool = False) -> sqlite3.Connection:
        """This thread's connection, to the database that is there now."""
        path = self.root / "registry.db"
        found: _Opened | None = getattr(self._local, "opened", None)
        if found is not None and found.process != os.getpid():
            _INHERITED.append(found)
            found = None
        try:
            if found is None or found.file != _file(path):
                found = self._local.opened = _Opened(path, make)
        except OSError as error:
            raise self._unusable(error) from error
        return found.connection

    def _prepare(self, make: bool) -> None:
        """Makes the tables in a new database; refuses one of a later version."""
        if self._version(make) == SCHEMA_VERSION:
            return
        with self.alone():
            connection, version = self._connection(make), self._version(make)
            if version > SCHEMA_VERSION:
                raise WorkspaceError(f"{self._where} is of version {version}; this fpgasim knows {SCHEMA_VERSION}")
            if version == 0 and not make:
                raise WorkspaceError(f"{self._where} is damaged: its registry.db is empty")
            if version == 0:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")

    def _version(self, make: bool) -> int:
        (version,) = self._connection(make).execute("PRAGMA user_version").fetchone()
        return int(version)


class _Opened:
    """A connection, the file it was opened on and the process that did: one must not cross a fork."""

    def __init__(self, path: Path, make: bool) -> None:
        if not make:
            _file(path)  # SQLite would make it
        self.connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        self.connection.row_factory = sqlite3.Row
        self.connection.execute("PRAGMA foreign_keys = ON")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.file, self.process = _file(path), os.getpid()

    def __del__(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()


#: Connections of the process that this one was forked from: to be closed by that one.
_INHERITED: list[_Opened] = []


def _file(path: Path) -> tuple[int, int]:
    """What tells the file at `path` from another that takes its place."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _copy(reader: IO[bytes], writer: IO[bytes]) -> tuple[str, int]:
    """Copies all there is; its SHA-256 and size."""
    digest, size = hashlib.sha256(), 0
    while chunk := reader.read(_CHUNK):
        digest.update(chunk)
        writer.write(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _open_folder(opened: contextlib.ExitStack, path: str | Path, within: int | None = None) -> int:
    """A descriptor of the folder, until `opened` ends; one within another must not be a link."""
    follow = 0 if within is None else os.O_NOFOLLOW
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | follow, dir_fd=within)
    opened.callback(os.close, descriptor)
    return descriptor


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
