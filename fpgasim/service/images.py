"""`Image`: models of a workspace with all that serving them takes, as a container image that no engine had to build."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fpgasim.errors import InputError, WebserviceException
from fpgasim.service import dockerfile, image_runtime, oci
from fpgasim.service.deployments import only
from fpgasim.service.registry import (
    Filter,
    Model,
    add_item,
    contents_of,
    delete_item,
    has,
    next_version,
    parse_id,
    texts,
)
from fpgasim.service.store import Content
from fpgasim.service.workspace import Workspace

KIND = "image"
#: Azure's rule for the names of images.
_NAME = re.compile(r"(?=.{3,32}\Z)[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
_LOG, _DOCKERFILE = "build.log", "Dockerfile"
_SERVING = re.compile(r"SERVING \S+ on (\S+:\d+) ")


@dataclass(frozen=True)
class ImageConfiguration:
    """What an image is to be: words to find it by, and what it runs on.

    `root` is a folder with a root filesystem of your own that has /usr/local/bin/fpgasim; without one the image has the
    Python, the libraries and the packages of this process.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    description: str | None = None
    root: Path | None = None


class AccelContainerImage:
    """Azure's name for images of models that run on its FPGA."""

    @staticmethod
    def image_configuration(
        tags: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
        description: str | None = None,
        *,
        root: str | os.PathLike[str] | None = None,
    ) -> ImageConfiguration:
        """The configuration that `Image.create` takes. InputError for what are no tags or properties."""
        if not isinstance(description, str | None):
            raise InputError(f"description={description!r}; a text would do")
        where = None if root is None else Path(root)
        return ImageConfiguration(texts("tags", tags), texts("properties", properties), description, where)


class BrainwaveImage(AccelContainerImage):
    """The same, as it was called before."""


class Image:
    """The image of that name or id ("name:version"), the latest unless a `version` is said.

    With `tags` ("key", ("key", "value"), or a mapping) the latest that has them all. Raises WebserviceException if
    there is none, InputError where name and id are both or neither given.

    Attributes: name, version (from 1), id, description, tags, properties, created_time, creation_state ("Succeeded": an
    image is there when it is whole), digest (of its manifest), size (bytes as kept), image_flavor, model_ids, models,
    image_location, image_build_log_uri, generated_dockerfile_uri, ports.
    """

    def __init__(
        self,
        workspace: Workspace,
        name: str | None = None,
        id: str | None = None,
        tags: Filter | None = None,
        version: int | None = None,
    ) -> None:
        if (name is None) == (id is None):
            raise InputError(f"Image takes either name or id; got name={name!r}, id={id!r}")
        if id is not None:
            name, version = parse_id(id)
        for row in _rows(workspace, name):
            if version in (None, row["version"]) and has(json.loads(row["facts"])["tags"], tags):
                self._fill(workspace, row)
                return
        wanted = f"name={name!r}" + (f", version={version}" if version is not None else "")
        known = ", ".join(f"{row['name']}:{row['version']}" for row in _rows(workspace, None)[:5])
        asked = "" if not tags else f" and tags={tags!r}"
        raise WebserviceException(f"ImageNotFound: Image with {wanted}{asked} not found; there are {known or 'none'}")

    def _fill(self, workspace: Workspace, row: sqlite3.Row) -> None:
        facts = json.loads(row["facts"])
        self.workspace = workspace
        self.name: str = row["name"]
        self.version: int = row["version"]
        self.description: str | None = facts["description"]
        self.tags: dict[str, str] = facts["tags"]
        self.properties: dict[str, str] = facts["properties"]
        self.created_time = datetime.datetime.fromisoformat(facts["created_time"])
        self.digest: str = facts["digest"]
        self.size: int = facts["size"]
        self.model_ids: list[str] = facts["model_ids"]
        self.creation_state = "Succeeded"
        self.image_flavor = "AccelContainer"
        self.ports = [image_runtime.PORT]

    def __repr__(self) -> str:
        return f"Image({self.workspace.name!r}, id={self.id!r})"

    @property
    def id(self) -> str:
        return f"{self.name}:{self.version}"

    @property
    def models(self) -> list[Model]:
        """What it serves."""
        return [Model(self.workspace, id=id) for id in self.model_ids]

    @property
    def image_location(self) -> str:
        """What it is called; `export` writes it to where tools find it."""
        return f"fpgasim://{self.workspace.name}/images/{self.name}/{self.version}"

    @property
    def image_build_log_uri(self) -> str:
        """Where a text lies that says what is in it."""
        return self._uri(_LOG)

    @property
    def generated_dockerfile_uri(self) -> str:
        """Where the Dockerfile lies that makes the same image of the layout that `export` writes."""
        return self._uri(_DOCKERFILE)

    @property
    def generated_dockerfile(self) -> str:
        """The text of that Dockerfile."""
        return self._text(_DOCKERFILE)

    @property
    def build_log(self) -> str:
        """What was put into the image, layer by layer."""
        return self._text(_LOG)

    @staticmethod
    def create(
        workspace: Workspace, name: str, models: Model | Sequence[Model], image_config: ImageConfiguration | None = None
    ) -> Image:
        """The next version of the image `name` that serves `models`, one model or a list of one: an FPGA runs one.

        It is whole when this returns, or not there at all. The first image of a workspace takes a minute, since it
        packs this Python; the others take those layers from it. Made again of the same things it has the same digest.
        Raises InputError for a name that no image can have, WebserviceException for models that are none, several or
        deleted, or that are a folder without one file to serve.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(
                f"name={name!r} of an image must be 3 to 32 of a-z 0-9 . -, a letter or digit at both ends"
            )
        model = only(models, f"image {name!r}")
        if isinstance(model, str):
            model = Model(workspace, id=model)
        if not isinstance(model, Model):
            raise InputError(f"models={models!r}; a Model or a list of one would do")
        config = image_config or ImageConfiguration()
        if not isinstance(config, ImageConfiguration):
            raise InputError(f"image_config={config!r}; AccelContainerImage.image_configuration makes one")
        with workspace.store.writing(), workspace.store.scratch() as scratch:
            packed = [
                _layer(workspace, what, entries, scratch) for what, entries in image_runtime.layers(model, config.root)
            ]
            facts, contents = _image(workspace, model, config, packed)
            with workspace.store.transaction() as connection:
                version = next_version(connection, KIND, name)
                facts["created_time"] = datetime.datetime.now(datetime.UTC).isoformat()
                uses = [("model", model.name, model.version)]
                add_item(connection, KIND, name, version, facts, contents, uses)
        return Image(workspace, name=name, version=version)

    @staticmethod
    def list(
        workspace: Workspace,
        image_name: str | None = None,
        model_name: str | None = None,
        model_id: str | None = None,
        tags: Filter | None = None,
        properties: Filter | None = None,
    ) -> list[Image]:
        """The images of the workspace, newest version first; only those for which all that is given holds."""
        found = []
        for row in _rows(workspace, image_name):
            facts = json.loads(row["facts"])
            names = [parse_id(id)[0] for id in facts["model_ids"]]
            if (
                (model_name is None or model_name in names)
                and (model_id is None or model_id in facts["model_ids"])
                and has(facts["tags"], tags)
                and has(facts["properties"], properties)
            ):
                image = Image.__new__(Image)
                image._fill(workspace, row)
                found.append(image)
        return found

    def wait_for_creation(self, show_output: bool = False) -> None:
        """Returns at once, since `create` made it whole; `show_output` prints what was put into it."""
        if show_output:
            print(self.build_log, end="")
            print(f"Image creation operation finished for image {self.id}, operation {self.creation_state!r}")

    def export(self, target: str | os.PathLike[str]) -> Path:
        """Writes the image to `target` and returns where: one tar (oci-archive) if it ends with .tar, else a folder.

        The folder is an OCI image layout that also has the Dockerfile. WebserviceException if something is there.
        """
        path = Path(target)
        if path.exists():
            raise WebserviceException(f"{str(path)!r} is there already; another path would do")
        with self.workspace.store.writing():  # whoever deletes it meanwhile leaves its files until then
            contents = [content for content in self._contents() if content.path != _LOG]
            if path.suffix != ".tar":
                self.workspace.store.copy_out(contents, path)
                return path
            if not path.parent.is_dir():
                raise WebserviceException(f"there is no folder {str(path.parent)!r}; one that is there would do")
            files = {
                content.path: self.workspace.store.path_of(content)
                for content in contents
                if content.path != _DOCKERFILE
            }
            partial = path.with_name(f".{path.name}.part")
            try:
                with partial.open("wb") as file:
                    oci.archive(files, file)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        return path

    def verify(self) -> oci.Verified:
        """What is in it, once every hash is right; ServiceError or WorkspaceError names what is not."""
        with self.workspace.store.scratch() as scratch:
            return oci.verify(self.export(scratch / "image"))

    def run(self, port: int = 0, *, timeout_s: float = 120.0, options: Sequence[str] = ()) -> RunningImage:
        """Serves what is in the image on this machine, with this process's fpgasim instead of the image's.

        `port` 0 takes a free one; `options` are further ones of `fpgasim serve`. It holds none of the workspace's FPGAs
        and serves until `stop`, or the end of a with-block. Raises WebserviceException with what the server said if it
        does not come up.
        """
        (model,) = self.models
        served = image_runtime.arguments(model, str(model.path))
        command = [sys.executable, "-m", "fpgasim.cli.tied", str(os.getpid()), "serve", *served]
        return RunningImage.start([*command, "--port", str(port), *options], self.id, timeout_s)

    def delete(self) -> None:
        """Removes this version. WebserviceException (DeletionRequired) lists services that use it: delete those first.

        The layers that other images have too stay.
        """
        delete_item(self.workspace, KIND, self.name, self.version)

    def serialize(self) -> dict[str, Any]:
        """All that is known of the image, as JSON takes it."""
        names = ("id", "name", "version", "description", "tags", "properties", "creation_state", "digest", "size")
        more = ("image_flavor", "model_ids", "image_location", "image_build_log_uri", "generated_dockerfile_uri")
        facts = {name: getattr(self, name) for name in (*names, *more)}
        return {**facts, "created_time": self.created_time.isoformat()}

    def _contents(self) -> Sequence[Content]:
        found = contents_of(self.workspace, KIND, self.name, self.version)
        if not found:
            raise WebserviceException(f"ImageNotFound: Image with id={self.id!r} was deleted")
        return found

    def _path(self, name: str) -> Path:
        (content,) = [content for content in self._contents() if content.path == name]
        return self.workspace.store.path_of(content)

    def _uri(self, name: str) -> str:
        return self._path(name).resolve().as_uri()

    def _text(self, name: str) -> str:
        return self._path(name).read_text()


@dataclass
class RunningImage:
    """A server of an image: `address` is where it answers, until `stop`, the end of a with-block or of this process."""

    process: subprocess.Popen[str]
    address: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @classmethod
    def start(cls, command: Sequence[str], what: str, timeout_s: float) -> RunningImage:
        """The server that `command` starts, once it says that it is serving."""
        descriptor, name = tempfile.mkstemp(prefix="fpgasim-", suffix=".log")
        log = Path(name)
        with os.fdopen(descriptor, "w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        running = cls(process, "", log)
        try:
            running.address = _address(process, timeout_s)
        except BaseException as error:
            said = running.stop(grace_s=0.0)
            if isinstance(error, TimeoutError | EOFError):
                raise WebserviceException(f"image {what} does not serve: {error}; {said[-500:].strip()}") from error
            raise
        return running

    def check(self) -> None:
        """Raises WebserviceException with what the server said if it has ended."""
        if self.process.poll() is not None:
            raise WebserviceException(f"the server of {self.address} has ended: {self.logs()[-500:].strip()}")

    def logs(self) -> str:
        """What the server has said on standard error."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self, grace_s: float = 30.0) -> str:
        """Ends the server, calls that are in first; returns what it said on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        said = self.logs()
        self.log.unlink(missing_ok=True)
        return said

    def __enter__(self) -> RunningImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class _Packed:
    """A layer of an image, where it is kept, what is in it and the key of that."""

    layer: oci.Layer
    content: Content
    what: str
    key: str
    known: bool


def _address(process: subprocess.Popen[str], timeout_s: float) -> str:
    """Where the server answers, as the line that begins with SERVING says it."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], timeout_s)
    if not ready:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    line = process.stdout.readline()
    found = _SERVING.match(line)
    if found is None:
        raise EOFError(f"it said {line.strip()!r}" if line else "it ended")
    return found[1]


def _layer(workspace: Workspace, what: str, entries: oci.Entries, scratch: Path) -> _Packed:
    """The layer of these entries: that of another image of the workspace, if one has it, else a new one."""
    key = oci.key(entries)
    for row in workspace.store.read("SELECT * FROM items WHERE kind = ? ORDER BY name, version", KIND):
        for known in json.loads(row["facts"])["layers"]:
            if known["key"] == key:
                layer = oci.Layer(known["sha256"], known["diff_id"], known["size"], known["media_type"])
                content = Content(oci.blob(layer.sha256), layer.sha256, layer.size)
                workspace.store.path_of(content)
                return _Packed(layer, content, what, key, known=True)
    partial = scratch / "layer"
    with partial.open("wb") as file:
        layer = oci.write_layer(entries, file)
    if oci.key(entries) != key:
        raise WebserviceException(f"files of {what} changed while the image was made; create it again")
    (content,) = workspace.store.put(partial)
    return _Packed(layer, replace(content, path=oci.blob(layer.sha256)), what, key, known=False)


def _image(
    workspace: Workspace, model: Model, config: ImageConfiguration, packed: Sequence[_Packed]
) -> tuple[dict[str, Any], list[Content]]:
    """Facts and contents of the image of these layers; neither its name nor its version is in its bytes."""
    settings = image_runtime.settings(model, config.description)
    found = oci.documents([one.layer for one in packed], settings, reference="latest")
    log = "".join(
        f"{'taken' if one.known else 'packed'} {one.what}: {one.layer.size:,} bytes, sha256:{one.layer.sha256}\n"
        for one in packed
    )
    text = dockerfile.generated([(one.what, oci.blob(one.layer.sha256)) for one in packed], settings)
    files = {**found, _DOCKERFILE: text.encode(), _LOG: log.encode()}
    contents = [one.content for one in packed]
    contents += [workspace.store.put_bytes(data, path) for path, data in files.items()]
    (manifest,) = json.loads(found[oci.INDEX])["manifests"]
    facts = {
        "description": config.description,
        "tags": dict(config.tags),
        "properties": dict(config.properties),
        "model_ids": [model.id],
        "digest": manifest["digest"],
        "size": sum(content.size for content in contents),
        "layers": [
            {
                "key": one.key,
                "sha256": one.layer.sha256,
                "diff_id": one.layer.diff_id,
                "size": one.layer.size,
                "media_type": one.layer.media_type,
            }
            for one in packed
        ],
    }
    return facts, contents


def _rows(workspace: Workspace, name: str | None) -> list[sqlite3.Row]:
    query = "SELECT * FROM items WHERE kind = ?"
    if not isinstance(name, str | None):
        raise InputError(f"name={name!r}; a text would do")
    if name is None:
        return workspace.store.read(f"{query} ORDER BY name, version DESC", KIND)
    return workspace.store.read(f"{query} AND name = ? ORDER BY version DESC", KIND, name)
