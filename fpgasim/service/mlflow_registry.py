"""The registry's calls on an MLflow model registry: for teams that have one (the extra `mlflow`).

    registry = MlflowRegistry("sqlite:///mlflow.db")          # or https://… of a tracking server
    MlflowModel.register(registry, "service_def.zip", "resnet50", tags={"area": "vision"})
    model = MlflowModel(registry, name="resnet50").pull(workspace)

A version is a row of MLflow's registry, written last, whose files are artifacts of a run of the experiment `fpgasim`;
what MLflow has no place for is in the version's tag `fpgasim.facts`. Conversions, images and services work on what
`pull` brings into a workspace.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from fpgasim.errors import InputError, ModelNotFoundException, WebserviceException
from fpgasim.service.registry import Filter, Model, check_registration, digest, has, parse_id, texts
from fpgasim.service.store import Store
from fpgasim.service.workspace import Workspace

EXPERIMENT = "fpgasim"
#: The tag of a version that holds what MLflow has no place for, as JSON.
_FACTS = "fpgasim.facts"
#: The folder of a run's artifacts that holds the model.
_FOLDER = "model"
_GONE = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


class MlflowRegistry:
    """The MLflow registry at `tracking_uri`: a database such as sqlite:///mlflow.db, or the URL of a server.

    `artifacts` is where an experiment that is not there yet keeps its files, by default where MLflow does. Raises
    ModuleNotFoundError, naming the extra, where mlflow is not installed.
    """

    def __init__(self, tracking_uri: str, artifacts: str | os.PathLike[str] | None = None) -> None:
        try:
            from mlflow import MlflowClient
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "MlflowRegistry needs the package 'mlflow'; pip install 'fpgasim[mlflow]' brings it", name=error.name
            ) from error
        self.tracking_uri = tracking_uri
        self._artifacts = artifacts
        with told():
            self.client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)

    def __repr__(self) -> str:
        return f"MlflowRegistry({self.tracking_uri!r})"

    @cached_property
    def experiment_id(self) -> str:
        """The experiment of the runs that hold the files, made if it is not there."""
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        where = None if self._artifacts is None else Path(self._artifacts).absolute().as_uri()
        return str(self.client.create_experiment(EXPERIMENT, artifact_location=where))


class MlflowModel:
    """The model of that name or id in an MLflow registry; arguments, attributes and errors are those of `Model`.

    A deletion leaves the files to MLflow, which marks their run as deleted (`mlflow gc` removes such runs).
    """

    def __init__(
        self,
        registry: MlflowRegistry,
        name: str | None = None,
        id: str | None = None,
        tags: Filter | None = None,
        properties: Filter | None = None,
        version: int | None = None,
    ) -> None:
        if (name is None) == (id is None):
            raise InputError(f"MlflowModel takes either name or id; got name={name!r}, id={id!r}")
        if id is not None:
            name, version = parse_id(id)
        for model in MlflowModel.list(registry, name, tags, properties):
            if version in (None, model.version):
                self.__dict__.update(model.__dict__)
                return
        wanted = f"name={name!r}" + (f", version={version}" if version is not None else "")
        raise ModelNotFoundException(f"ModelNotFound: Model with {wanted} not found in {registry.tracking_uri}")

    def _fill(self, registry: MlflowRegistry, row: Any) -> None:
        facts = json.loads(row.tags[_FACTS])
        self.registry = registry
        self.name, self.version = str(row.name), int(row.version)
        self.description: str | None = row.description or None
        self.tags: dict[str, str] = {key: value for key, value in row.tags.items() if key != _FACTS}
        self.properties: dict[str, str] = facts["properties"]
        self.created_time = datetime.datetime.fromtimestamp(row.creation_timestamp / 1e3, datetime.UTC)
        self.unpack: bool = facts["unpack"]
        self.sha256: str = facts["sha256"]
        self.size: int = facts["size"]
        self._file: str = facts["file"]
        self._source, self._run = str(row.source), str(row.run_id)

    def __repr__(self) -> str:
        return f"MlflowModel({self.registry.tracking_uri!r}, id={self.id!r})"

    @property
    def id(self) -> str:
        return f"{self.name}:{self.version}"

    @property
    def url(self) -> str:
        return f"models:/{self.name}/{self.version}"

    @staticmethod
    def register(
        registry: MlflowRegistry,
        model_path: str | os.PathLike[str],
        model_name: str,
        tags: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
        description: str | None = None,
    ) -> MlflowModel:
        """The model made of the file or folder `model_path`, as the next version of `model_name`, from 1.

        Raises as `Model.register`; WebserviceException for what MLflow refuses.
        """
        check_registration(model_path, model_name, description)
        kept, facts = texts("tags", tags), dict[str, Any](properties=texts("properties", properties))
        if _FACTS in kept:
            raise InputError(f"tags: {_FACTS!r} is not free; another name would do")
        client = registry.client
        with tempfile.TemporaryDirectory() as folder, told():
            store = Store(folder)
            contents = store.put(model_path)  # no links, and no change while it is uploaded
            store.copy_out(contents, Path(folder, _FOLDER))
            facts |= {
                "unpack": Path(model_path).is_dir(),
                "file": contents[0].path,
                "sha256": digest(contents),
                "size": sum(content.size for content in contents),
            }
            run = client.create_run(registry.experiment_id)
            client.log_artifacts(run.info.run_id, str(Path(folder, _FOLDER)), _FOLDER)
            client.set_terminated(run.info.run_id)
            _make_name(client, model_name)
            row = client.create_model_version(
                model_name,
                f"{run.info.artifact_uri}/{_FOLDER}",
                run.info.run_id,
                tags={**kept, _FACTS: json.dumps(facts)},
                description=description,
            )
        return MlflowModel(registry, model_name, version=int(row.version))

    @staticmethod
    def list(
        registry: MlflowRegistry,
        name: str | None = None,
        tags: Filter | None = None,
        properties: Filter | None = None,
        latest: bool = False,
    ) -> list[MlflowModel]:
        """The models that were registered by `register`, newest version first; filters as those of `Model.list`."""
        found: dict[tuple[str, int], MlflowModel] = {}
        token = None
        with told():
            while True:
                page = registry.client.search_model_versions(max_results=1000, page_token=token)
                for row in page:
                    if _FACTS in row.tags and name in (None, row.name):
                        model = MlflowModel.__new__(MlflowModel)
                        model._fill(registry, row)
                        if has(model.tags, tags) and has(model.properties, properties):
                            found[model.name, -model.version] = model
                token = page.token
                if not token:
                    break
        models = [found[key] for key in sorted(found)]
        if latest:
            models = [m for i, m in enumerate(models) if i == 0 or models[i - 1].name != m.name]
        return models

    def download(self, target_dir: str | os.PathLike[str] = ".", exist_ok: bool = False) -> str:
        """Writes the model below `target_dir` and returns where, as `Model.download` does.

        Raises WebserviceException too where the files are not those that were registered.
        """
        target = Path(target_dir, self.name if self.unpack else self._file)
        if os.path.lexists(target) and not exist_ok:
            raise WebserviceException(f"{str(target)!r} is there already; exist_ok=True replaces it")
        with self._fetched() as (store, path):
            contents = store.put(path)
            if self.unpack:
                contents = [dataclasses.replace(content, path=f"{self.name}/{content.path}") for content in contents]
            store.copy_out(contents, Path(target_dir))
        return str(target)

    def pull(self, workspace: Workspace) -> Model:
        """This model in `workspace`, as the next version of its name there, with its tags, properties, description."""
        with self._fetched() as (_, path):
            return Model.register(workspace, path, self.name, self.tags, self.properties, self.description)

    def delete(self) -> None:
        """Removes this version; WebserviceException if it is gone."""
        with told():
            self.registry.client.delete_model_version(self.name, str(self.version))
            self.registry.client.delete_run(self._run)

    def add_tags(self, tags: Mapping[str, Any]) -> None:
        """Adds `tags`, replacing those of the same keys."""
        for key, value in texts("tags", tags).items():
            if key == _FACTS:
                raise InputError(f"tags: {_FACTS!r} is not free; another name would do")
            with told():
                self.registry.client.set_model_version_tag(self.name, str(self.version), key, value)
            self.tags[key] = value

    def remove_tags(self, tags: Iterable[str]) -> None:
        """Removes the tags of these keys."""
        for key in {tags} if isinstance(tags, str) else set(tags):
            if self.tags.pop(key, None) is not None:
                with told():
                    self.registry.client.delete_model_version_tag(self.name, str(self.version), key)

    @contextlib.contextmanager
    def _fetched(self) -> Iterator[tuple[Store, Path]]:
        """A store for a while, and where the file or folder is, fetched and compared with what was registered."""
        from mlflow import artifacts

        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "fetched").mkdir()
            with told():
                got = artifacts.download_artifacts(
                    artifact_uri=self._source,
                    dst_path=str(Path(folder, "fetched")),
                    tracking_uri=self.registry.tracking_uri,
                )
            store, path = Store(Path(folder, "store")), Path(got)
            if not self.unpack:
                path = path / self._file
            if digest(store.put(path)) != self.sha256:
                raise WebserviceException(f"the files of model {self.id} are not what was registered: the hash differs")
            yield store, path


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What MLflow raises, as our errors of one line."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        kind = ModelNotFoundException if error.error_code in _GONE else WebserviceException
        raise kind(f"MLflow: {' '.join(str(error).split())}") from error


def _make_name(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
