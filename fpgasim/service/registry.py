"""`Model`: a named and versioned file or folder in a workspace's registry."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fpgasim.errors import InputError, ModelNotFoundException, WebserviceException
from fpgasim.service.store import Content
from fpgasim.service.workspace import Workspace

#: Azure's rule for the names of models.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9\-._]{0,254}")
KIND = "model"
#: No version is beyond what SQLite can hold.
_LAST = 2**63 - 1
_LONGEST_NUMBER = 1000
#: Endings of files that hold all of a model, so that one of them in a folder is what the folder is for.
SELF_CONTAINED = (".zip", ".fpgaplan")
Filter = str | Sequence[str | Sequence[str]] | Mapping[str, str]
Facts = Mapping[str, Any]
Changes = Facts | Callable[[Facts], Facts]
#: One item.
_THIS = "kind = ? AND name = ? AND version = ?"


class Model:
    """The model of that name or id ("name:version"), the latest unless a `version` is said.

    With `tags` ("key", ("key", "value"), or a mapping) the latest that has them all. Raises ModelNotFoundException if
    there is none, InputError where name and id are both or neither given.

    Attributes: name, version (from 1), id, description, tags, properties, created_time, url, sha256 (of all its files),
    size (bytes), mime_type, unpack (whether it is a folder), parent_id, derived_model_ids.
    """

    def __init__(
        self,
        workspace: Workspace,
        name: str | None = None,
        id: str | None = None,
        tags: Filter | None = None,
        properties: Filter | None = None,
        version: int | None = None,
    ) -> None:
        if (name is None) == (id is None):
            raise InputError(f"Model takes either name or id; got name={name!r}, id={id!r}")
        if id is not None:
            name, version = parse_id(id)
        found = _rows(workspace, name, version)
        matching = [row for row in found if _matches(row, tags, properties)]
        if not matching:
            wanted = f"name={name!r}" + (f", version={version}" if version is not None else "")
            known = ", ".join(f"{row['name']}:{row['version']}" for row in _rows(workspace, name, None)[:5])
            hint = f"there are {known}" if known else f"Model.list shows what workspace {workspace.name!r} has"
            asked = "" if not tags and not properties else f" and tags={tags!r}, properties={properties!r}"
            raise ModelNotFoundException(f"ModelNotFound: Model with {wanted}{asked} not found; {hint}")
        self._fill(workspace, matching[0])

    def _fill(self, workspace: Workspace, row: sqlite3.Row) -> None:
        facts = json.loads(row["facts"])
        self.workspace = workspace
        self.name: str = row["name"]
        self.version: int = row["version"]
        self.description: str | None = facts["description"]
        self.tags: dict[str, str] = facts["tags"]
        self.properties: dict[str, str] = facts["properties"]
        self.created_time = datetime.datetime.fromisoformat(facts["created_time"])
        self.unpack: bool = facts["unpack"]
        self.mime_type: str = facts["mime_type"]
        self.sha256: str = facts["sha256"]
        self.size: int = facts["size"]
        self.parent_id: str | None = facts["parent_id"]

    def __repr__(self) -> str:
        return f"Model({self.workspace.name!r}, id={self.id!r})"

    @property
    def id(self) -> str:
        return f"{self.name}:{self.version}"

    @property
    def url(self) -> str:
        return f"fpgasim://{self.workspace.name}/models/{self.name}/{self.version}"

    @property
    def derived_model_ids(self) -> list[str]:
        """The models that were made from this one by conversion."""
        query = (
            "SELECT name, version FROM items WHERE kind = ? AND json_extract(facts, '$.parent_id') = ? "
            "ORDER BY name, version"
        )
        return [f"{row['name']}:{row['version']}" for row in self.workspace.store.read(query, KIND, self.id)]

    @staticmethod
    def register(
        workspace: Workspace,
        model_path: str | os.PathLike[str],
        model_name: str,
        tags: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
        description: str | None = None,
        *,
        parent: Model | None = None,
    ) -> Model:
        """The model made of the file or folder `model_path`, as the next version of `model_name`, from 1.

        Either all of it is registered when this returns, or nothing. A number is never given twice, not even after a
        deletion. Raises InputError for a name or tags that cannot be, WorkspaceError for a path that cannot be read.
        """
        check_registration(model_path, model_name, description)
        facts: dict[str, Any] = {
            "description": description,
            "tags": texts("tags", tags),
            "properties": texts("properties", properties),
            "unpack": Path(model_path).is_dir(),
            "mime_type": "application/x-folder" if Path(model_path).is_dir() else "application/octet-stream",
            "parent_id": None if parent is None else parent.id,
        }
        store = workspace.store
        with store.writing():
            contents = store.put(model_path)
            facts |= {"sha256": digest(contents), "size": sum(content.size for content in contents)}
            with store.transaction() as connection:
                facts["created_time"] = datetime.datetime.now(datetime.UTC).isoformat()
                version = next_version(connection, KIND, model_name)
                add_item(connection, KIND, model_name, version, facts, contents)
        return Model(workspace, name=model_name, version=version)

    @staticmethod
    def list(
        workspace: Workspace,
        name: str | None = None,
        tags: Filter | None = None,
        properties: Filter | None = None,
        latest: bool = False,
    ) -> list[Model]:
        """The models of the workspace, newest version first; only those of `name` and with all `tags`, if given."""
        found, seen = [], set()
        for row in _rows(workspace, name, None):
            if not _matches(row, tags, properties):
                continue
            if latest and row["name"] in seen:
                continue
            seen.add(row["name"])
            model = Model.__new__(Model)
            model._fill(workspace, row)
            found.append(model)
        return found

    @property
    def contents(self) -> Sequence[Content]:
        """Its files. ModelNotFoundException if it was deleted meanwhile."""
        found = contents_of(self.workspace, KIND, self.name, self.version)
        if not found:
            raise ModelNotFoundException(f"ModelNotFound: Model with id={self.id!r} was deleted")
        return found

    @property
    def path(self) -> Path:
        """Where the file of this model lies, to be read only: of a folder the one service definition or plan in it.

        Raises WebserviceException for a folder that has none or several.
        """
        contents = self.contents
        if self.unpack:
            contents = [c for c in contents if c.path.endswith(SELF_CONTAINED) and "/" not in c.path]
        if len(contents) != 1:
            raise WebserviceException(
                f"model {self.id} is a folder of {len(self.contents)} files; download writes it out"
            )
        return self.workspace.store.path_of(contents[0])

    def file(self, path: str) -> Path:
        """Where its file of that path lies, to be read only; WebserviceException if it has none."""
        for content in self.contents:
            if content.path == path:
                return self.workspace.store.path_of(content)
        raise WebserviceException(f"model {self.id} has no file {path!r}; there are {_listed(self.contents)}")

    def download(self, target_dir: str | os.PathLike[str] = ".", exist_ok: bool = False) -> str:
        """Writes the model below `target_dir` and returns where: the file, or the folder, called by the model's name.

        Every file is checked against its hash, and no link below `target_dir` is followed. Raises WebserviceException
        where something is there already and `exist_ok` is false; else its files are replaced, others in a folder stay.
        """
        contents = list(self.contents)
        if self.unpack:
            contents = [dataclasses.replace(content, path=f"{self.name}/{content.path}") for content in contents]
        target = Path(target_dir, self.name if self.unpack else contents[0].path)
        if os.path.lexists(target) and not exist_ok:
            raise WebserviceException(f"{str(target)!r} is there already; exist_ok=True replaces it")
        with self.workspace.store.writing():  # whoever deletes the model meanwhile leaves its files until then
            self.workspace.store.copy_out(contents, Path(target_dir))
        return str(target)

    def delete(self) -> None:
        """Removes this version. WebserviceException lists the images and services that use it: delete those first."""
        delete_item(self.workspace, KIND, self.name, self.version)

    def add_tags(self, tags: Mapping[str, Any]) -> None:
        """Adds `tags`, replacing those of the same keys."""
        added = texts("tags", tags)
        self._change(lambda facts: {"tags": {**facts["tags"], **added}})

    def remove_tags(self, tags: Iterable[str]) -> None:
        """Removes the tags of these keys."""
        keys = {tags} if isinstance(tags, str) else set(tags)
        self._change(lambda facts: {"tags": {key: facts["tags"][key] for key in facts["tags"] if key not in keys}})

    def update(self, tags: Mapping[str, Any] | None = None, description: str | None = None) -> None:
        """Replaces all tags, the description, or both."""
        changes: dict[str, Any] = {} if tags is None else {"tags": texts("tags", tags)}
        if description is not None:
            changes["description"] = _described(description)
        self._change(changes)

    def serialize(self) -> dict[str, Any]:
        """All that is known of the model, as JSON takes it."""
        names = ("id", "name", "version", "description", "tags", "properties", "url", "sha256", "size", "mime_type")
        facts = {name: getattr(self, name) for name in (*names, "unpack", "parent_id", "derived_model_ids")}
        return {**facts, "created_time": self.created_time.isoformat()}

    def _change(self, changes: Changes) -> None:
        change_item(self.workspace, KIND, self.name, self.version, changes)
        self.__init__(self.workspace, id=self.id)  # type: ignore[misc]


def next_version(connection: sqlite3.Connection, kind: str, name: str) -> int:
    """The next number of that kind and name, from 1; taken if the transaction succeeds, and never given again."""
    connection.execute("INSERT OR IGNORE INTO versions VALUES (?, ?, 0)", (kind, name))
    query = "UPDATE versions SET last = last + 1 WHERE kind = ? AND name = ? RETURNING last"
    return int(connection.execute(query, (kind, name)).fetchone()["last"])


def add_item(
    connection: sqlite3.Connection,
    kind: str,
    name: str,
    version: int,
    facts: Mapping[str, Any],
    contents: Iterable[Content] = (),
    uses: Iterable[tuple[str, str, int]] = (),
) -> None:
    """Adds an item with its facts, its files and what it uses (kind, name, version), which then cannot be deleted.

    WebserviceException names what was deleted already.
    """
    uses = list(uses)
    for used in uses:
        if not connection.execute(f"SELECT 1 FROM items WHERE {_THIS}", used).fetchone():
            raise WebserviceException(f"{used[0]} {used[1]}:{used[2]}, which {kind} {name}:{version} uses, was deleted")
    connection.execute("INSERT INTO items VALUES (?, ?, ?, ?)", (kind, name, version, json.dumps(facts)))
    rows = [(kind, name, version, content.path, content.sha256, content.size) for content in contents]
    connection.executemany("INSERT INTO contents VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.executemany(
        "INSERT INTO uses VALUES (?, ?, ?, ?, ?, ?)", [(kind, name, version, *used) for used in uses]
    )


def change_item(workspace: Workspace, kind: str, name: str, version: int, changes: Changes) -> None:
    """Changes facts of an item; a function makes the changes of the facts there are. WebserviceException if it is gone.

    No other change comes between what the function sees and what it makes.
    """
    with workspace.store.transaction() as connection:
        row = connection.execute(f"SELECT facts FROM items WHERE {_THIS}", (kind, name, version)).fetchone()
        if row is None:
            raise WebserviceException(f"{kind} {name}:{version} was deleted")
        facts = json.loads(row["facts"])
        changed = {**facts, **(changes(facts) if callable(changes) else changes)}
        connection.execute(f"UPDATE items SET facts = ? WHERE {_THIS}", (json.dumps(changed), kind, name, version))


def delete_item(workspace: Workspace, kind: str, name: str, version: int) -> None:
    """Deletes an item and what only it kept; WebserviceException if it is gone, or lists by whom it is used."""
    with workspace.store.transaction() as connection:
        query = (
            "SELECT * FROM uses WHERE used_kind = ? AND used_name = ? AND used_version = ? ORDER BY kind, name, version"
        )
        users = [
            f"{row['kind']} {row['name']}:{row['version']}" for row in connection.execute(query, (kind, name, version))
        ]
        if users:
            raise WebserviceException(
                f"DeletionRequired: {kind} {name}:{version} is used by {', '.join(users)}; "
                "delete services first, then images, then models"
            )
        deleted = connection.execute(f"DELETE FROM items WHERE {_THIS}", (kind, name, version)).rowcount
        if not deleted:
            raise WebserviceException(f"{kind} {name}:{version} was deleted already")
    workspace.store.sweep()


def contents_of(workspace: Workspace, kind: str, name: str, version: int) -> list[Content]:
    """The files of an item, by path."""
    query = f"SELECT path, sha256, size FROM contents WHERE {_THIS} ORDER BY path"
    return [Content(*row) for row in workspace.store.read(query, kind, name, version)]


def _rows(workspace: Workspace, name: str | None, version: int | None) -> list[sqlite3.Row]:
    query, values = "SELECT * FROM items WHERE kind = ?", [KIND]
    if name is not None:
        query, values = f"{query} AND name = ?", [*values, name]
    if not isinstance(name, str | None):
        raise InputError(f"name={name!r}; a text would do")
    if isinstance(version, bool) or not isinstance(version, int | None):
        raise InputError(f"version={version!r} must be a whole number")
    if (name is not None and not _NAME.fullmatch(name)) or (version is not None and version > _LAST):
        return []
    if version is not None:
        return workspace.store.read(f"{query} AND version = ?", *values, version)
    return workspace.store.read(f"{query} ORDER BY name, version DESC", *values)


def _matches(row: sqlite3.Row, tags: Filter | None, properties: Filter | None) -> bool:
    facts = json.loads(row["facts"])
    return has(facts["tags"], tags) and has(facts["properties"], properties)


def has(found: Mapping[str, str], wanted: Filter | None) -> bool:
    """Whether `found` has all that is wanted: a key, keys, or keys with their values. InputError for anything else."""
    return all(key in found and (not value or found[key] == str(value[0])) for key, *value in _pairs(wanted))


def _pairs(wanted: Filter | None) -> Iterator[Sequence[Any]]:
    """(key,) or (key, value) of all that is wanted; InputError for what means neither."""
    if isinstance(wanted, Mapping):
        yield from wanted.items()
        return
    if wanted is not None and not isinstance(wanted, Iterable):
        raise InputError(
            f"tags or properties {wanted!r}; a key, a list of keys and (key, value), or a mapping would do"
        )
    for pair in (wanted,) if isinstance(wanted, str) else wanted or ():
        made = (pair,) if isinstance(pair, str) else pair
        if not isinstance(made, Sequence) or len(made) not in (1, 2) or not isinstance(made[0], str):
            raise InputError(f"tags or properties hold {pair!r}; a key or (key, value) would do")
        yield made


def parse_id(id: str) -> tuple[str, int]:
    """Name and version of "name:version"; InputError for anything else."""
    name, _, number = id.rpartition(":") if isinstance(id, str) else ("", "", "")
    if not name or not number.isascii() or not number.isdecimal() or len(number) > _LONGEST_NUMBER:
        raise InputError(f"id={str(id)[:300]!r} must be name:version")
    return name, int(number)


def texts(field: str, given: Mapping[str, Any] | None) -> dict[str, str]:
    """Tags or properties as they are kept; InputError for what is no mapping from names."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) and key for key in given):
        raise InputError(f"{field}={given!r} must be a mapping from names to values")
    return {key: str(value) for key, value in given.items()}


def check_registration(model_path: object, model_name: object, description: object) -> None:
    """Raises InputError for a name that no model can have, a path that is none or a description that is no text."""
    if not isinstance(model_name, str) or not _NAME.fullmatch(model_name):
        raise InputError(
            f"model_name={model_name!r} must begin with a letter or digit and hold 1 to 255 of a-z A-Z 0-9 . _ -"
        )
    if not isinstance(model_path, str | os.PathLike) or not os.fspath(model_path):
        raise InputError(f"model_path={model_path!r}; the path of a file or folder would do")
    _described(description)


def digest(contents: Sequence[Content]) -> str:
    """The hash of one file, or of the list of the hashes of several."""
    if len(contents) == 1:
        return contents[0].sha256
    lines = "".join(f"{content.sha256}  {content.path}\n" for content in contents)
    return hashlib.sha256(lines.encode()).hexdigest()


def _described(given: object) -> str | None:
    if given is None or isinstance(given, str):
        return given
    raise InputError(f"description={given!r}; a text would do")


def _listed(contents: Sequence[Content]) -> str:
    return ", ".join(repr(content.path) for content in contents[:20]) or "none"
