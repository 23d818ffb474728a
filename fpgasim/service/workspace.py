"""`Workspace`: the place where models, images and services are kept, on this machine."""

from __future__ import annotations

import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from fpgasim.errors import InputError, WorkspaceError
from fpgasim.service.store import Store

#: Where `config.json` says which workspace is meant, from the folder of the work upwards.
CONFIG = "config.json"
#: What a workspace says of itself, written once it can be used.
_FACTS = "workspace.json"
_CONFIG_FOLDERS = ("", ".azureml", "aml_config", ".fpgasim")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{1,32}")
_FIELDS = ("subscription_id", "resource_group", "location")
#: What Azure would tell of an account; here there is none, and the fields say so.
_LOCAL = {"subscription_id": "none", "resource_group": "local", "location": "local"}


class Workspace:
    """A workspace of that `name`, kept in the folder `root`.

    `resource_group`, `location` and `subscription_id` are words that a caller may give and read; nothing depends on
    them.
    """

    def __init__(self, name: str, root: Path, facts: dict[str, str]) -> None:
        self.name, self.root = name, root
        self.subscription_id, self.resource_group, self.location = (facts[field] for field in _FIELDS)

    def __repr__(self) -> str:
        return f"Workspace({self.name!r}, {str(self.root)!r})"

    @cached_property
    def store(self) -> Store:
        """What it is kept in."""
        return Store(self.root, make=False)

    @classmethod
    def create(
        cls,
        name: str = "fpgasim",
        *,
        path: str | os.PathLike[str] | None = None,
        subscription_id: str | None = None,
        resource_group: str | None = None,
        location: str | None = None,
        exist_ok: bool = False,
        **ignored: Any,
    ) -> Workspace:
        """A new workspace in the folder `path`, by default one of its name beside the others (`workspaces_folder`).

        Further arguments of Azure's `create` are accepted and have no meaning here. Raises InputError for a name that
        no workspace can have, WorkspaceError where there is one already and `exist_ok` is false.
        """
        del ignored
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"name={name!r} of a workspace must be 2 to 33 letters, digits, _ or -")
        root = workspaces_folder() / name if path is None else Path(path)
        given = {"subscription_id": subscription_id, "resource_group": resource_group, "location": location}
        facts = {"name": name, **_LOCAL, **{field: value for field, value in given.items() if value is not None}}
        settled = root / _FACTS
        if not settled.exists():
            with Store(root).alone():  # of several processes one makes it
                if not settled.exists():
                    return cls._make(root, facts)
        if not exist_ok:
            raise WorkspaceError(f"there is a workspace in {str(root)!r} already; exist_ok=True takes it")
        return cls.open(root)

    @classmethod
    def _make(cls, root: Path, facts: dict[str, str]) -> Workspace:
        partial = root / f".{_FACTS}"
        try:
            partial.write_text(json.dumps(facts, indent=1))
            os.replace(partial, root / _FACTS)
        except OSError as error:
            raise WorkspaceError(f"the workspace in {str(root)!r} cannot be made: {error.strerror}") from error
        return cls(facts["name"], root, facts)

    @classmethod
    def get(cls, name: str, **ignored: Any) -> Workspace:
        """The workspace of that name; WorkspaceError if there is none."""
        del ignored
        return cls.open(workspaces_folder() / name)

    @classmethod
    def from_config(cls, path: str | os.PathLike[str] | None = None) -> Workspace:
        """The workspace that a `config.json` names, looked for at `path` or from the folder of the work upwards.

        As Azure's: keys `workspace_name`, `resource_group`, `subscription_id`; here also `path`, the folder that holds
        it. It is made if it is not there, and without any config.json it is the one called `fpgasim`. Raises
        WorkspaceError for a file that is not there or says no name.
        """
        found = _config_file(None if path is None else Path(path))
        if found is None:
            return cls.create(exist_ok=True)
        try:
            config = json.loads(found.read_text())
        except (OSError, ValueError) as error:
            raise WorkspaceError(f"the configuration {str(found)!r} cannot be read: {error}") from error
        if not isinstance(config, dict) or not isinstance(config.get("workspace_name"), str):
            raise WorkspaceError(f"the configuration {str(found)!r} must name a workspace_name")
        folder = config.get("path")
        if not isinstance(folder, str | None):
            raise WorkspaceError(f"the configuration {str(found)!r} has path {folder!r}; that of a folder would do")
        given = {field: config[field] for field in _FIELDS if isinstance(config.get(field), str)}
        return cls.create(
            config["workspace_name"], path=None if folder is None else found.parent / folder, exist_ok=True, **given
        )

    def write_config(self, path: str | os.PathLike[str] = ".") -> Path:
        """Writes the `config.json` that `from_config` reads into the folder `path`; returns where it is."""
        target = Path(path) / CONFIG
        facts = {field: getattr(self, field) for field in _FIELDS}
        target.write_text(
            json.dumps({"workspace_name": self.name, **facts, "path": str(self.root.resolve())}, indent=1)
        )
        return target

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Workspace:
        """The workspace in the folder `path`; WorkspaceError if there is none, or a damaged one."""
        root = Path(path)
        try:
            facts = json.loads((root / _FACTS).read_text())
            return cls(facts["name"], root, facts)
        except FileNotFoundError:
            raise WorkspaceError(f"there is no workspace in {str(root)!r}; Workspace.create makes one") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WorkspaceError(f"the workspace in {str(root)!r} is damaged: {error}") from error


def workspaces_folder() -> Path:
    """Where workspaces are kept: `$FPGASIM_WORKSPACES`, else `~/.fpgasim/workspaces`."""
    given = os.environ.get("FPGASIM_WORKSPACES")
    return Path(given) if given else Path.home() / ".fpgasim" / "workspaces"


def _config_file(path: Path | None) -> Path | None:
    if path is not None:
        found = path / CONFIG if path.is_dir() else path
        if not found.is_file():
            raise WorkspaceError(f"there is no configuration {str(found)!r}")
        return found
    here = Path.cwd()
    for folder in (here, *here.parents):
        for inner in _CONFIG_FOLDERS:
            found = folder / inner / CONFIG
            if found.is_file() and '"workspace_name"' in found.read_text(errors="replace"):
                return found
    return None
