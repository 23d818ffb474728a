"""Container images without a container engine: the OCI image layout, written and checked with the standard library.

Sources: OCI Image Format Specification 1.0 (image layout, manifest, config, layer). The same entries give the same
bytes: names sorted, owner root, time 0, no name or time in gzip's header.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import platform
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from fpgasim.errors import InputError, ServiceError

LAYOUT, INDEX, BLOBS = "oci-layout", "index.json", "blobs/sha256"
#: The annotation of a manifest in index.json that names the image, which tools take as its tag.
REF = "org.opencontainers.image.ref.name"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
#: What the image says of the time it was made: always the same, so that its bytes are.
_EPOCH = "1970-01-01T00:00:00Z"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
#: Of gzip: a runtime's 400 MB in seconds, at a tenth more bytes than by its default.
_COMPRESSION = 1
#: No manifest, config or index is larger.
_DOCUMENT = 4 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One entry of a layer: a file with the bytes of `source`, a link to `link`, or with neither a folder."""

    source: Path | bytes | None = None
    mode: int = 0o644
    link: str | None = None


#: Path from the root, without a leading slash -> what is there. Folders on the way need no entry.
Entries = Mapping[str, Entry]


@dataclass(frozen=True)
class Layer:
    """A layer that was written: the hashes of its bytes and of the tar in them (hexadecimal), its size and its type."""

    sha256: str
    diff_id: str
    size: int
    media_type: str


@dataclass(frozen=True)
class Verified:
    """An image whose every hash is right: its reference, the hash of its manifest, its config and its layers."""

    reference: str
    sha256: str
    config: Mapping[str, Any]
    layers: Sequence[Layer]


def tree(folder: Path, prefix: str = "", leave: Callable[[str], bool] = lambda path: False) -> dict[str, Entry]:
    """The entries of all that is in `folder`, as it lies there, below `prefix`; without paths that `leave` tells.

    Links stay links. InputError for a folder that is not there.
    """
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is no folder")
    found: dict[str, Entry] = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).as_posix()
        if leave(inner):
            continue
        name = str(PurePosixPath(prefix, inner))
        if path.is_symlink():
            found[name] = Entry(link=str(path.readlink()), mode=0o777)
        elif path.is_dir():
            found[name] = Entry(mode=path.stat().st_mode & 0o1777)
        elif path.is_file():
            found[name] = Entry(path, 0o755 if path.stat().st_mode & 0o100 else 0o644)
        else:
            raise InputError(f"{str(path)!r} is neither a file, a folder nor a link")
    return found


def key(entries: Entries, compress: bool = True) -> str:
    """The hash of what the entries are: layers with the same key are the same bytes."""
    digest = hashlib.sha256(f"{compress}\n".encode())
    for name, entry in sorted(entries.items()):
        content = "" if entry.source is None else _hash(entry.source)
        digest.update(f"{name!r} {entry.mode:o} {entry.link!r} {content}\n".encode())
    return digest.hexdigest()


def write_layer(entries: Entries, target: IO[bytes], compress: bool = True) -> Layer:
    """Writes the entries as one layer. InputError for a path that leads out of the root."""
    written = _Hashing(target)
    with contextlib.ExitStack() as ends:
        packed = None
        if compress:
            packed = ends.enter_context(
                gzip.GzipFile(filename="", mode="wb", fileobj=written, compresslevel=_COMPRESSION, mtime=0)
            )
        plain: Any = _Hashing(packed or written)  # writes as a file does
        with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK) as tar:
            for name, entry in sorted(_with_folders(entries).items()):
                _add(tar, name, entry)
    media_type = f"{_LAYER}+gzip" if compress else _LAYER
    return Layer(written.sha256, plain.sha256, written.size, media_type)


def documents(layers: Sequence[Layer], config: Mapping[str, Any], reference: str) -> dict[str, bytes]:
    """What an image layout holds beside its layers, by path: config, manifest, index and version.

    `config` are the fields of the OCI config's `config`: Env, Entrypoint, User, Labels, ….
    """
    machine = platform.machine()
    image = {
        "created": _EPOCH,
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in layers]},
        "history": [{"created": _EPOCH, "created_by": "fpgasim image create"} for _ in layers],
    }
    packed = _json(image)
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, _hash(packed), len(packed)),
            "layers": [_descriptor(layer.media_type, layer.sha256, layer.size) for layer in layers],
        }
    )
    described = _descriptor(_MANIFEST, _hash(manifest), len(manifest)) | {"annotations": {REF: reference}}
    return {
        LAYOUT: _json({"imageLayoutVersion": "1.0.0"}),
        INDEX: _json({"schemaVersion": 2, "manifests": [described]}),
        blob(_hash(packed)): packed,
        blob(_hash(manifest)): manifest,
    }


def blob(sha256: str) -> str:
    """Where the layout has the blob of that hash."""
    return f"{BLOBS}/{sha256}"


def archive(files: Mapping[str, Path], target: IO[bytes]) -> None:
    """Writes the layout `files` (path in it -> where it lies) as one tar, which tools call oci-archive."""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entries = {name: Entry(path) for name, path in files.items()}
        for name, entry in sorted(_with_folders(entries).items()):
            _add(tar, name, entry)


def verify(path: str | Path) -> Verified:
    """The image in the layout folder or tar at `path`, once every hash and size in it is right.

    Checked are index, manifest, config, all layers as they are stored and unpacked, and that no other blob is there
    whose name is not its hash. InputError for what is no image layout, ServiceError naming the blob that is damaged.
    """
    with _opened(Path(path)) as layout:
        try:
            return _verified(layout)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise ServiceError(f"{str(path)!r} is no sound image layout: {error}") from error
        except (OSError, EOFError, tarfile.TarError) as error:  # gzip raises the first two
            raise ServiceError(f"{str(path)!r} is damaged: {error}") from error


def unpack(path: str | Path, target: str | Path) -> Verified:
    """Unpacks the layers of the image at `path` into the folder `target`, for a runtime; what was checked of it.

    Raises as `verify`, and InputError where something is at `target`. Whiteouts are refused: our layers have none.
    """
    target = Path(target)
    if target.exists():
        raise InputError(f"{str(target)!r} is there already")
    found = verify(path)
    target.mkdir(parents=True)
    with _opened(Path(path)) as layout:
        for layer in found.layers:
            with (
                layout.open(blob(layer.sha256)) as packed,
                _plain(packed, layer.media_type) as plain,
                tarfile.open(fileobj=plain, mode="r|") as tar,
            ):
                for member in tar:
                    if PurePosixPath(member.name).name.startswith(".wh."):
                        raise ServiceError(f"{member.name!r} of layer {layer.sha256[:12]}… is a whiteout")
                    tar.extract(member, target, filter=_within)
    return found


class _Layout(Protocol):
    def names(self) -> list[str]: ...
    def open(self, name: str) -> IO[bytes]: ...


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        return [path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()]

    def open(self, name: str) -> IO[bytes]:
        path = self.root / name
        if path.is_symlink() or not path.is_file():
            raise ServiceError(f"{str(self.root)!r} has no file {name!r}")
        return path.open("rb")


class _Archive:
    def __init__(self, tar: tarfile.TarFile, where: Path) -> None:
        self.tar, self.where = tar, where
        files = [member for member in tar.getmembers() if not member.isdir()]
        self.members = {member.name.removeprefix("./"): member for member in files}
        if len(self.members) != len(files):
            raise ServiceError(f"{str(where)!r} has a file twice")

    def names(self) -> list[str]:
        return list(self.members)

    def open(self, name: str) -> IO[bytes]:
        member = self.members.get(name)
        found = self.tar.extractfile(member) if member is not None and member.isfile() else None
        if found is None:
            raise ServiceError(f"{str(self.where)!r} has no file {name!r}")
        return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Layout]:
    if path.is_dir():
        yield _Folder(path)
        return
    try:
        with tarfile.open(path, "r:") as tar:
            yield _Archive(tar, path)
    except (OSError, tarfile.ReadError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(path)!r} is neither an image layout nor its tar: {reason}") from error


def _verified(layout: _Layout) -> Verified:
    if json.loads(_read(layout, LAYOUT))["imageLayoutVersion"] != "1.0.0":
        raise InputError(f"{LAYOUT} is of another version than 1.0.0")
    index = json.loads(_read(layout, INDEX))
    (described,) = index["manifests"]
    manifest = json.loads(_blob(layout, described))
    for name, version in ((INDEX, index["schemaVersion"]), ("the manifest", manifest["schemaVersion"])):
        if version != 2:
            raise ServiceError(f"{name} is of schemaVersion {version!r}; 2 would do")
    config = json.loads(_blob(layout, manifest["config"]))
    diff_ids = [_digest(diff_id) for diff_id in config["rootfs"]["diff_ids"]]
    layers = []
    for descriptor, diff_id in zip(manifest["layers"], diff_ids, strict=True):
        layer = Layer(_digest(descriptor["digest"]), diff_id, descriptor["size"], descriptor["mediaType"])
        _check_layer(layout, layer)
        layers.append(layer)
    known = {_digest(described["digest"]), _digest(manifest["config"]["digest"]), *(layer.sha256 for layer in layers)}
    for name in layout.names():
        if name.startswith(BLOBS) and (sha256 := name.rpartition("/")[2]) not in known:
            with layout.open(name) as file:
                if _drain(file)[0] != sha256:
                    raise ServiceError(f"blob {name!r} is damaged: its hash differs")
    reference = described.get("annotations", {}).get(REF, "")
    return Verified(reference, _digest(described["digest"]), config, layers)


def _check_layer(layout: _Layout, layer: Layer) -> None:
    with layout.open(blob(layer.sha256)) as file:
        if _drain(file) != (layer.sha256, layer.size):
            raise ServiceError(f"layer {layer.sha256[:12]}… is damaged: its hash or size differs")
    with layout.open(blob(layer.sha256)) as file, _plain(file, layer.media_type) as plain:
        if _drain(plain)[0] != layer.diff_id:
            raise ServiceError(f"layer {layer.sha256[:12]}… is not what its config says: the hash of its tar differs")


@contextlib.contextmanager
def _plain(packed: IO[bytes], media_type: str) -> Iterator[IO[bytes]]:
    if media_type not in (_LAYER, f"{_LAYER}+gzip"):
        raise ServiceError(f"layers of type {media_type!r} cannot be read; {_LAYER} and its +gzip can")
    if media_type == _LAYER:
        yield packed
    else:
        with gzip.GzipFile(fileobj=packed, mode="rb") as plain:
            yield plain  # type: ignore[misc]  # reads as an IO does


def _within(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo:
    """Refuses what would lead out of `target`. Links may be absolute: they mean the image's root, and a file that
    lies beyond one is refused."""
    here = Path(target).resolve()
    if not (here / member.name).parent.resolve().is_relative_to(here) or ".." in PurePosixPath(member.name).parts:
        raise ServiceError(f"{member.name!r} leads out of the image")
    if not (member.isfile() or member.isdir() or member.issym()):
        raise ServiceError(f"{member.name!r} is neither a file, a folder nor a link")
    return member.replace(uid=-1, gid=-1, uname="", gname="", deep=False)


def _blob(layout: _Layout, descriptor: Mapping[str, Any]) -> bytes:
    sha256 = _digest(descriptor["digest"])
    data = _read(layout, blob(sha256))
    if _hash(data) != sha256 or len(data) != descriptor["size"]:
        raise ServiceError(f"blob {sha256[:12]}… is damaged: its hash or size differs")
    return data


def _read(layout: _Layout, name: str) -> bytes:
    with layout.open(name) as file:
        data = file.read(_DOCUMENT + 1)
    if len(data) > _DOCUMENT:
        raise ServiceError(f"{name!r} is larger than {_DOCUMENT} bytes")
    return data


def _digest(text: str) -> str:
    found = _DIGEST.fullmatch(text)
    if found is None:
        raise ServiceError(f"digest {text!r} is no sha256:…")
    return found[1]


def _descriptor(media_type: str, sha256: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": size}


def _with_folders(entries: Entries) -> dict[str, Entry]:
    """The entries and the folders on the way to them."""
    found = dict(entries)
    for name in entries:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or name == ".":
            raise InputError(f"path {name!r} of an entry; one from the root without / before it and .. in it would do")
        for parent in path.parents[:-1]:
            entry = found.setdefault(str(parent), Entry(mode=0o755))
            if entry.source is not None or entry.link is not None:
                raise InputError(f"path {name!r} of an entry lies in {str(parent)!r}, which is no folder")
    return found


def _add(tar: tarfile.TarFile, name: str, entry: Entry) -> None:
    info = tarfile.TarInfo(name)  # owner 0:0, time 0, no names
    info.mode = entry.mode
    if entry.link is not None:
        info.type, info.linkname = tarfile.SYMTYPE, entry.link
        tar.addfile(info)
    elif entry.source is None:
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif isinstance(entry.source, bytes):
        info.size = len(entry.source)
        tar.addfile(info, io.BytesIO(entry.source))
    else:
        info.size = entry.source.stat().st_size
        with entry.source.open("rb") as file:
            tar.addfile(info, file)


class _Hashing:
    """A file to write to that hashes what goes through."""

    def __init__(self, target: Any) -> None:
        self._target, self._digest, self.size = target, hashlib.sha256(), 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.size += len(data)
        self._target.write(data)
        return len(data)

    def flush(self) -> None:
        self._target.flush()


class _Digest:
    """A file to write to of which only hash and size stay."""

    def __init__(self) -> None:
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return len(data)


def _drain(file: IO[bytes]) -> tuple[str, int]:
    sink = _Digest()
    shutil.copyfileobj(file, sink, _CHUNK)
    return sink.digest.hexdigest(), sink.size


def _hash(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
