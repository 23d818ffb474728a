"""Who may call: two keys, kept as hashes, compared in constant time, and exchanged while calls go on."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from fpgasim.errors import InputError

KeyName = Literal["primary", "secondary"]
#: One line of JSON for every refusal, without the key.
audit_log = logging.getLogger("fpgasim.audit")
#: What a key may hold: it must go into a header as it is.
_SHORTEST, _LONGEST = 8, 512
_SCHEME = "bearer "


def make_key() -> str:
    """A new random key of 32 letters and digits."""
    return secrets.token_hex(16)


def checked_key(key: str, name: str = "key") -> str:
    """`key` if it may be one: 8 to 512 printable ASCII characters without spaces. Raises InputError, not showing it."""
    fits = isinstance(key, str) and _SHORTEST <= len(key) <= _LONGEST and key.isascii() and key.isprintable()
    if not fits or " " in key:
        raise InputError(f"the {name} must be {_SHORTEST} to {_LONGEST} printable ASCII characters without spaces")
    return key


class Keys:
    """The primary and the secondary key of a service. Each opens it; each is exchanged by itself.

    Only their SHA-256 are kept. A call that was let in stays in when its key is exchanged.
    """

    def __init__(self, primary: str, secondary: str | None = None) -> None:
        self._digests: tuple[bytes, bytes]
        self.replace(primary, secondary)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Keys:
        """The keys in a JSON file {"primary": …, "secondary": …}; InputError for a file that is none."""
        return cls(*read_keys(path))

    def replace(self, primary: str, secondary: str | None = None) -> None:
        """Exchanges both keys at once; without a secondary one only the primary opens."""
        first = _digest(checked_key(primary, "primary key"))
        second = _digest(checked_key(secondary, "secondary key")) if secondary is not None else first
        self._digests = (first, second)  # one assignment, so a reader sees both old or both new

    def opens(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether a call with this metadata is let in: `authorization: Bearer KEY`, `bearer KEY` or just `KEY`.

        The time it takes does not depend on the key, nor on which of the two it is.
        """
        values = [value for name, value in metadata if name.lower() == "authorization"]
        given = values[0] if len(values) == 1 and isinstance(values[0], str) else ""
        if given[: len(_SCHEME)].lower() == _SCHEME:
            given = given[len(_SCHEME) :]
        digest = _digest(given.strip())
        first, second = (hmac.compare_digest(digest, known) for known in self._digests)
        return first | second


class KeysFile:
    """Keys that follow a file: who exchanges a key writes the file anew (by renaming), and no call is dropped.

    A file that cannot be read, or holds no keys, leaves the old ones in force and is logged.
    """

    def __init__(self, path: str | os.PathLike[str], every_s: float = 1.0) -> None:
        self._path, self._every_s = Path(path), every_s
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._keys = Keys.read(self._path)
        self._next = time.monotonic() + every_s

    def opens(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether a call with this metadata is let in, by the keys that the file holds now."""
        if time.monotonic() >= self._next and self._lock.acquire(blocking=False):
            try:
                self.refresh()
            finally:
                self._lock.release()
        return self._keys.opens(metadata)

    def refresh(self) -> None:
        """Reads the file anew if it has changed."""
        self._next = time.monotonic() + self._every_s
        stamp = self._stamp()
        if stamp == self._seen:
            return
        try:
            self._keys.replace(*read_keys(self._path))
        except InputError as error:
            logging.getLogger("fpgasim.service").error("the keys stay as they were: %s", error)
        self._seen = stamp

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


def read_keys(path: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Primary and secondary key from a JSON file; InputError, which shows no key, for a file that is none."""
    where = f"the keys file {os.fspath(path)!r}"
    try:
        found = json.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{where} is not JSON") from None
    if not isinstance(found, dict) or not set(found) <= {"primary", "secondary"} or "primary" not in found:
        raise InputError(f"{where} must be an object with primary and secondary")
    return found["primary"], found.get("secondary")


def write_keys(path: str | os.PathLike[str], primary: str, secondary: str | None) -> None:
    """Writes a keys file that only its owner may read; whoever reads it sees the old or the new one whole."""
    path = Path(path)
    data = {"primary": checked_key(primary, "primary key")}
    if secondary is not None:
        data["secondary"] = checked_key(secondary, "secondary key")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def audit(event: str, **facts: Any) -> None:
    """Writes one line about `event`: what, when, from where; never a key."""
    audit_log.warning("%s", json.dumps({"time": round(time.time(), 3), "event": event, **facts}))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
