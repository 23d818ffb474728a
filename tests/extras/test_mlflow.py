"""The registry's calls on MLflow's registry, in a database of its own."""

import threading
from pathlib import Path

import pytest

from fpgasim.errors import InputError, ModelNotFoundException, WebserviceException, WorkspaceError
from fpgasim.service.mlflow_registry import EXPERIMENT, MlflowModel, MlflowRegistry
from fpgasim.service.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("default")  # MLflow has its own


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    return MlflowRegistry(f"sqlite:///{folder}/mlflow.db", folder / "artifacts")


@pytest.fixture
def name(request):
    """A name of this test's own: making a registry takes ten seconds, so they share one."""
    return "m" + "".join(c for c in request.node.name if c.isalnum())[:60]


def file(tmp_path, text="weights", name="model.onnx"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_versions_tags_and_properties_are_those_of_the_registry(registry, tmp_path, name):
    first = MlflowModel.register(registry, file(tmp_path, "one"), name, tags={"n": 1}, properties={"p": "q"})
    second = MlflowModel.register(registry, file(tmp_path, "two"), name, description="better")
    assert (first.id, second.id, second.url) == (f"{name}:1", f"{name}:2", f"models:/{name}/2")
    assert (first.tags, first.properties, first.description) == ({"n": "1"}, {"p": "q"}, None)
    assert MlflowModel(registry, name).description == "better"
    assert MlflowModel(registry, id=f"{name}:1").tags == {"n": "1"}
    assert MlflowModel(registry, name, tags=["n"]).version == 1
    assert [m.version for m in MlflowModel.list(registry, name)] == [2, 1]
    assert [m.version for m in MlflowModel.list(registry, name, latest=True)] == [2]
    assert [m.version for m in MlflowModel.list(registry, name, properties={"p": "q"})] == [1]
    first.add_tags({"n": 2, "more": "x"})
    first.remove_tags("n")
    assert MlflowModel(registry, name, version=1).tags == {"more": "x"}


def test_a_file_and_a_folder_come_back_as_they_were(registry, tmp_path, name):
    model = MlflowModel.register(registry, file(tmp_path, "weights"), name)
    assert model.download(tmp_path / "out") == str(tmp_path / "out" / "model.onnx")
    assert (tmp_path / "out" / "model.onnx").read_text() == "weights"
    with pytest.raises(WebserviceException, match="is there already"):
        model.download(tmp_path / "out")
    model.download(tmp_path / "out", exist_ok=True)
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "b").write_bytes(b"\x00\xff")
    (source / "a").write_text("a")
    folder = MlflowModel.register(registry, source, name)
    assert folder.download(tmp_path / "out") == str(tmp_path / "out" / name)
    assert (tmp_path / "out" / name / "sub" / "b").read_bytes() == b"\x00\xff"
    assert (tmp_path / "out" / name / "a").read_text() == "a"


def test_a_model_is_pulled_into_a_workspace(registry, tmp_path, name):
    workspace = Workspace.create("w1", path=tmp_path / "w")
    model = MlflowModel.register(
        registry, file(tmp_path), name, tags={"a": "b"}, properties={"c": "d"}, description="e"
    )
    pulled = model.pull(workspace)
    assert (pulled.name, pulled.tags, pulled.properties, pulled.description) == (name, {"a": "b"}, {"c": "d"}, "e")
    assert (pulled.sha256, pulled.size, pulled.path.read_text()) == (model.sha256, model.size, "weights")


def test_a_deleted_version_is_gone_and_its_number_is_not_given_again(registry, tmp_path, name):
    for _ in range(2):
        model = MlflowModel.register(registry, file(tmp_path), name)
    model.delete()
    with pytest.raises(ModelNotFoundException, match=f"ModelNotFound: Model with name='{name}', version=2 not found"):
        MlflowModel(registry, name, version=2)
    with pytest.raises(ModelNotFoundException, match="MLflow: "):
        model.delete()
    assert MlflowModel.register(registry, file(tmp_path), name).version == 3


def test_files_that_changed_are_not_handed_out(registry, tmp_path, name):
    model = MlflowModel.register(registry, file(tmp_path), name)
    Path(model._source.removeprefix("file://"), "model.onnx").write_text("evil")
    with pytest.raises(WebserviceException, match="the hash differs"):
        model.download(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_is_refused_in_one_line_and_leaves_no_version(registry, tmp_path, name):
    with pytest.raises(InputError, match="model_name='a/b'"):
        MlflowModel.register(registry, file(tmp_path), "a/b")
    with pytest.raises(InputError, match=r"'fpgasim\.facts' is not free"):
        MlflowModel.register(registry, file(tmp_path), name, tags={"fpgasim.facts": "x"})
    with pytest.raises(WorkspaceError, match="cannot be read"):
        MlflowModel.register(registry, tmp_path / "missing", name)
    with pytest.raises(WebserviceException, match="MLflow: Invalid value"):
        MlflowModel.register(registry, file(tmp_path), name, tags={"bad!*": "x"})
    assert MlflowModel.list(registry, name) == []


def test_versions_that_others_registered_are_left_alone(registry, name):
    registry.client.create_registered_model(name)
    run = registry.client.create_run(registry.experiment_id)
    registry.client.create_model_version(name, f"{run.info.artifact_uri}/x", run.info.run_id)
    assert MlflowModel.list(registry, name) == []


def test_writers_at_once_get_every_number_once(registry, tmp_path, name):
    def register(number):
        for _ in range(3):
            MlflowModel.register(registry, file(tmp_path, str(number), f"f{number}"), name)

    threads = [threading.Thread(target=register, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [model.version for model in MlflowModel.list(registry, name)] == list(range(9, 0, -1))


def test_the_experiment_is_made_once(registry):
    again = MlflowRegistry(registry.tracking_uri)
    assert (
        again.experiment_id
        == registry.experiment_id
        == registry.client.get_experiment_by_name(EXPERIMENT).experiment_id
    )
