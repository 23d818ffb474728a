"""Zip files that can be trusted: written with the same bytes each time, checked before anything is read.

Names must stay inside, occur once and be files; sizes, their sum and their growth have limits; what a file's size
claims is what is read, and no byte more. Nothing is ever unpacked to a path that an archive chooses.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fpgasim.errors import InputError, ModelError

#: Of all that an archive may hold. Growth is that of one entry, above what is always allowed.
MAX_ENTRIES, MAX_BYTES, MAX_GROWTH, FREE_BYTES = 1000, 8 << 30, 100, 1 << 20
MAX_JSON_BYTES, MAX_NAME = 4 << 20, 255
_EPOCH = (1980, 1, 1, 0, 0, 0)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


def write(path: str | os.PathLike[str], entries: Iterable[tuple[str, bytes]]) -> None:
    """Writes `entries` (name, content) as a zip to `path`, replacing it only once that is whole.

    Stored without compression, whose bytes would depend on the library. Raises ModelError if it cannot be written.
    """
    target = Path(as_path(path)).absolute()
    partial = None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".bundle-", delete=False) as file:
            partial = file.name
            with zipfile.ZipFile(file, "w") as archive:
                for name, content in entries:
                    info = zipfile.ZipInfo(name, _EPOCH)
                    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                    archive.writestr(info, content)
        os.chmod(partial, 0o644)
        os.replace(partial, target)
    except OSError as error:
        raise ModelError(f"{str(target)!r} cannot be written: {error.strerror or error}") from error
    finally:
        if partial is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)


def as_path(path: object) -> str:
    """`path` as text; InputError for what is none."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path={path!r} is no path; a str or a pathlib.Path would do")
    return os.fsdecode(path)


class Bundle:
    """The checked zip at `path`, open until `close` or the end of a with block.

    Raises ModelError, naming the file and the entry, for one that is broken or could do harm.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = as_path(path)
        self._where = f"archive {self.path!r}"
        with self._reading():
            self._archive = zipfile.ZipFile(self.path)
        try:
            self._entries = self._checked(self._archive.infolist())
        except BaseException:
            self._archive.close()
            raise

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._archive.close()

    @property
    def sizes(self) -> Mapping[str, int]:
        """The files in it: name -> bytes."""
        return {name: info.file_size for name, info in self._entries.items()}

    def read(self, name: str, sha256: str | None = None) -> bytes:
        """The content of the entry `name`, which must have that hash if one is given."""
        info = self._entries.get(name)
        if info is None:
            raise ModelError(f"{self._where} lacks {name!r}")
        with self._reading(), self._archive.open(info) as file:
            data = file.read(info.file_size + 1)
        if len(data) != info.file_size:
            raise ModelError(f"{self._where}: {name!r} holds {len(data)} bytes and says {info.file_size}")
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise ModelError(f"{self._where}: {name!r} is not what the manifest says: its hash differs")
        return data

    def read_json(self, name: str) -> dict[str, Any]:
        """The object that the JSON file `name` holds."""
        if self.sizes.get(name, 0) > MAX_JSON_BYTES:
            raise ModelError(f"{self._where}: {name!r} of {self.sizes[name]} bytes is larger than {MAX_JSON_BYTES}")
        try:
            found = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{self._where}: {name!r} is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise ModelError(f"{self._where}: {name!r} must be a JSON object; it is a {type(found).__name__}")
        return found

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ModelError(f"{self._where} cannot be read: {error.strerror or error}") from error
        except _BROKEN as error:
            raise ModelError(f"{self._where} is damaged: {error}") from error

    def _checked(self, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        if len(infos) > MAX_ENTRIES:
            raise ModelError(f"{self._where} has {len(infos)} entries; at most {MAX_ENTRIES} are taken")
        total = sum(info.file_size for info in infos)
        if total > MAX_BYTES:
            raise ModelError(f"{self._where} would unpack to {total} bytes; at most {MAX_BYTES} are taken")
        entries: dict[str, zipfile.ZipInfo] = {}
        seen: set[str] = set()
        for info in infos:
            if refusal := _refusal(info):
                raise ModelError(f"{self._where}: entry {info.filename[:MAX_NAME]!r} {refusal}")
            folded = info.filename.rstrip("/").casefold()
            if folded in seen:
                raise ModelError(f"{self._where} has two entries {info.filename!r}")
            seen.add(folded)
            if not info.is_dir():
                entries[info.filename] = info
        return entries


def _refusal(info: zipfile.ZipInfo) -> str:
    """Why an entry is not taken, or ''."""
    name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
    # zipfile itself cuts a name at its first NUL, so the original is looked at too
    if not name or len(name) > MAX_NAME or not (name + info.orig_filename).isprintable() or "\\" in info.orig_filename:
        return "has a name that is refused"
    if name.startswith("/") or ":" in name.partition("/")[0] or any(p in ("", ".", "..") for p in _parts(name)):
        return "leads out of the archive"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in _METHODS:
        return f"is compressed by method {info.compress_type}; stored or deflated would do"
    if info.file_size > MAX_GROWTH * info.compress_size + FREE_BYTES:
        return f"would grow from {info.compress_size} to {info.file_size} bytes"
    return ""


def _parts(name: str) -> list[str]:
    return name.removesuffix("/").split("/")
