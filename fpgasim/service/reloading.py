"""The models that a call wants to have served: TensorFlow Serving's ModelServerConfig, read from one folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fpgasim.errors import InputError
from fpgasim.service.hosting import Model
from fpgasim.service.limits import Refusal
from fpgasim.service.servables import Servable

#: Path, name and version -> the servable.
Load = Callable[[Path, str, int], Servable]
_MOST = 16


def models_of(config: Any, root: Path | None, load: Load) -> dict[str, Model]:
    """The models that a ModelServerConfig names, by name, all of them loaded.

    `base_path` is a model file or folder, or holds folders called by version numbers, as TensorFlow Serving has it; of
    these the policy chooses, by default the latest. Raises Refusal for paths that are not in `root`, or where that is
    None, and InputError, ModelError, … for what cannot be loaded.
    """
    if root is None:
        raise Refusal("FAILED_PRECONDITION", "this server loads no models by a call; --model-root would let it")
    if config.WhichOneof("config") != "model_config_list":
        raise Refusal("INVALID_ARGUMENT", "the config must be a model_config_list")
    wanted = config.model_config_list.config
    names = [one.name for one in wanted]
    if not 1 <= len(names) <= _MOST or len(set(names)) < len(names):
        raise Refusal("INVALID_ARGUMENT", f"the config must name 1 to {_MOST} models, each once; it names {names[:20]}")
    return {one.name: _model(one, root.resolve(), load) for one in wanted}


def _model(config: Any, root: Path, load: Load) -> Model:
    what = f"base_path {config.base_path!r} of {config.name!r}"
    try:
        path = (root / config.base_path).resolve()
        if not path.is_relative_to(root):
            raise Refusal("PERMISSION_DENIED", f"{what} is not under --model-root")
        if not path.exists():
            raise Refusal("NOT_FOUND", f"{what} is not there")
        found = _versions(path) or {1: path}
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, a loop of links, a NUL
        raise Refusal("INVALID_ARGUMENT", f"{what} cannot be read: {error}") from None
    versions = {v: load(found[v], config.name, v) for v in _chosen(config, sorted(found))}
    for label, version in config.version_labels.items():
        if version not in versions:
            raise Refusal(
                "FAILED_PRECONDITION",
                f"Request to assign label {label} to version {version} of model {config.name}, which is not served",
            )
    return Model(versions, dict(config.version_labels))


def _versions(path: Path) -> dict[int, Path]:
    """The folders in `path` that are called by a number from 1."""
    folders = [p for p in path.iterdir() if p.is_dir()] if path.is_dir() else []
    numbers = (p for p in folders if p.name.isascii() and p.name.isdecimal() and len(p.name) < 19)  # an int64
    return {int(p.name): p for p in numbers if int(p.name) > 0}


def _chosen(config: Any, found: list[int]) -> list[int]:
    policy = config.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return found
    if choice == "specific":
        missing = sorted(set(policy.specific.versions) - set(found))
        if missing or not policy.specific.versions:
            raise InputError(f"model {config.name!r} has versions {found}, and {missing or 'none'} is asked for")
        return sorted(set(policy.specific.versions))
    return found[-max(1, policy.latest.num_versions) :]
