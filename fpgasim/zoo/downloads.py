"""Public weights by URL: resumed where they were cut, checked by hash, moved into place whole."""

import hashlib
import logging
import os
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpgasim.errors import DownloadError, InputError, UnknownNameError
from fpgasim.machine import cache_dir

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

CHUNK_BYTES = 1 << 18
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Source:
    """Where weights of a network are published; `sha256` is as much of the hash as the publisher gives."""

    name: str
    network: str
    url: str
    sha256: str
    note: str


def _torchvision(name: str, file: str, note: str) -> Source:
    # PyTorch puts the first eight digits of a file's SHA-256 into its name.
    return Source(name, name.partition("-")[0], f"https://download.pytorch.org/models/{file}", file[-12:-4], note)


SOURCES = {
    source.name: source
    for source in (
        _torchvision("resnet50", "resnet50-0676ba61.pth", "torchvision IMAGENET1K_V1"),
        _torchvision("resnet50-v2", "resnet50-11ad3fa6.pth", "torchvision IMAGENET1K_V2"),
        _torchvision("resnet50-2017", "resnet50-19c8e357.pth", "torchvision before 0.9"),
        _torchvision("resnet152", "resnet152-394f9c45.pth", "torchvision IMAGENET1K_V1"),
        _torchvision("resnet152-v2", "resnet152-f82ba261.pth", "torchvision IMAGENET1K_V2"),
        _torchvision("densenet121", "densenet121-a639ec97.pth", "torchvision IMAGENET1K_V1"),
        _torchvision("vgg16", "vgg16-397923af.pth", "torchvision IMAGENET1K_V1"),
    )
}


def sources() -> list[Source]:
    """What `fetch` knows by name."""
    return list(SOURCES.values())


def fetch(
    name_or_url: str,
    *,
    sha256: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """The path of the downloaded file, in `folder`, else $FPGASIM_CACHE_DIR, else ~/.cache/fpgasim.

    `sha256` is the hash or its first digits (at least 8); a name of `sources` brings its own. A file that is there and
    fits the hash is not fetched again, and one that was cut short is resumed from its `.part`. Without a hash neither
    can be trusted, so it is fetched anew and a warning is logged. `progress` gets the bytes there and the bytes in all
    (None if the server does not say). Raises UnknownNameError for a name, InputError for a malformed hash,
    DownloadError for all that can go wrong on the way.
    """
    if not isinstance(name_or_url, str):
        raise InputError(f"name_or_url={name_or_url!r} is no text; the name of a source or a URL would do")
    if "://" in name_or_url:
        url = name_or_url
    elif name_or_url in SOURCES:
        url, sha256 = SOURCES[name_or_url].url, sha256 or SOURCES[name_or_url].sha256
    else:
        raise UnknownNameError("source of weights", name_or_url, SOURCES)
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch("[0-9a-fA-F]{8,64}", sha256)):
        raise InputError(f"sha256={sha256!r}; 8 to 64 hexadecimal digits would do")
    if folder is not None and not isinstance(folder, str | os.PathLike):
        raise InputError(f"folder={folder!r} is no path; a str or a pathlib.Path would do")
    target = (Path(folder) if folder else cache_dir()) / _file_name(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return _fetch(url, sha256 and sha256.lower(), target, progress or (lambda done, total: None))
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{url} cannot be stored as {str(target)!r}: {error.strerror or error}") from error


def _file_name(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DownloadError(f"{url}: only http and https are fetched")
    name = urllib.parse.unquote(parts.path).rpartition("/")[2]
    if name in ("", ".", "..") or "\0" in name:
        raise DownloadError(f"{url}: names no file")
    return name


def _fetch(url: str, sha256: str | None, target: Path, progress: Callable[[int, int | None], None]) -> Path:
    if sha256 is not None and target.is_file() and _digest(target).hexdigest().startswith(sha256):
        return target
    part = target.with_name(target.name + ".part")
    if sha256 is None:
        part.unlink(missing_ok=True)
    digest = _digest(part) if part.is_file() else hashlib.sha256()
    if not (part.is_file() and digest.hexdigest().startswith(str(sha256))):
        digest = _receive(url, part, digest, progress)
    if sha256 is None:
        logging.getLogger(__name__).warning("%s: no known hash; its SHA-256 is %s", url, digest.hexdigest())
    elif not digest.hexdigest().startswith(sha256):
        part.unlink()
        raise DownloadError(f"{url}: its SHA-256 is {digest.hexdigest()}, not {sha256}…; what was fetched is removed")
    part.replace(target)
    return target


def _receive(url: str, part: Path, digest: Any, progress: Callable[[int, int | None], None]) -> Any:
    """Appends to `part` what it lacks and returns the digest of the whole; `digest` is of what is there."""
    import http.client
    import urllib.error
    import urllib.request

    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "fpgasim", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with _opener().open(request, timeout=TIMEOUT_SECONDS) as response:
            if start and not (response.status == 206 and _range_start(response.headers) == start):
                if response.status != 200:
                    raise DownloadError(f"{url}: the server sent HTTP {response.status} of another range than asked")
                start, digest = 0, hashlib.sha256()  # the server knows no ranges and sends the whole file
            length = response.headers.get("Content-Length")
            total = start + int(length) if length is not None and length.isdecimal() else None
            done = start
            with part.open("ab" if start else "wb") as file:
                while chunk := response.read(CHUNK_BYTES):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    progress(done, total)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the part is longer than the file, so it is of another one
            part.unlink()
            return _receive(url, part, hashlib.sha256(), progress)
        raise DownloadError(f"{url}: HTTP {error.code} {error.reason}") from error
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and TLS failures are OSErrors
        raise DownloadError(f"{url}: {error or type(error).__name__}; fetch it again") from error
    if total is not None and done != total:
        raise DownloadError(f"{url}: the connection ended after {done} of {total} bytes; fetch it again")
    return digest


def _opener() -> "OpenerDirector":
    """urllib's opener without the handlers of file:, ftp: and data:, so that no redirect leads there."""
    from urllib import request

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler, request.UnknownHandler, request.HTTPHandler, request.HTTPSHandler,
        request.HTTPDefaultErrorHandler, request.HTTPRedirectHandler, request.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _range_start(headers: Any) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _digest(path: Path) -> Any:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")
