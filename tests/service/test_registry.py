"""Models in a workspace: versions, tags, files by content, deletion, many writers, and processes that are killed."""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from fpgasim.errors import InputError, ModelNotFoundException, WebserviceException, WorkspaceError
from fpgasim.service import MlflowRegistry, registry
from fpgasim.service.registry import Model
from fpgasim.service.workspace import Workspace

WRITER = """
import pathlib, random, sys
from fpgasim.service.registry import Model
from fpgasim.service.workspace import Workspace
root, writer, count = sys.argv[1:]
workspace = Workspace.open(pathlib.Path(root))
for i in range(int(count)):
    source = pathlib.Path(root, f"source-{writer}-{i}")
    source.mkdir(exist_ok=True)
    for part in range(2):
        (source / f"part{part}").write_bytes(f"{writer} {i} {part}".encode() * 1000)
    model = Model.register(workspace, source, "shared", tags={"writer": writer, "i": i})
    print(model.version, flush=True)
"""


def file(tmp_path, text="weights", name="model.onnx"):
    path = tmp_path / name
    path.write_text(text)
    return path


def write(root, writer, count):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root), str(writer), str(count)], stdout=subprocess.PIPE, text=True
    )


def assert_consistent(workspace):
    """Every model is whole, every content is what its hash says, and nothing unfinished is left after a sweep."""
    workspace.store.sweep()
    models = Model.list(workspace)
    hashes = set()
    for model in models:
        parts = model.contents
        assert [part.path for part in parts] == ["part0", "part1"]
        for number, part in enumerate(parts):
            text = f"{model.tags['writer']} {model.tags['i']} {number}"
            assert workspace.store.path_of(part).read_text() == text * 1000
            hashes.add(part.sha256)
    assert {path.name for path in (workspace.root / "files").glob("*/*")} == hashes
    assert not list((workspace.root / "incoming").iterdir())
    assert workspace.store.read("PRAGMA integrity_check")[0][0] == "ok"
    return models


def test_versions_count_from_one_and_the_latest_is_found_by_name(workspace, tmp_path):
    first = Model.register(workspace, file(tmp_path, "one"), "resnet50")
    second = Model.register(workspace, file(tmp_path, "two"), "resnet50", description="better")
    assert (first.version, second.version, second.id) == (1, 2, "resnet50:2")
    assert Model(workspace, "resnet50").description == "better"
    assert Model(workspace, "resnet50", version=1).path.read_text() == "one"
    assert Model(workspace, id="resnet50:1").description is None
    assert [model.id for model in Model.list(workspace)] == ["resnet50:2", "resnet50:1"]
    assert [model.id for model in Model.list(workspace, latest=True)] == ["resnet50:2"]


def test_a_deleted_version_is_gone_and_its_number_is_not_given_again(workspace, tmp_path):
    for text in ("one", "two"):
        Model.register(workspace, file(tmp_path, text), "m")
    second = Model(workspace, "m")
    second.delete()
    with pytest.raises(ModelNotFoundException, match=r"ModelNotFound: Model with name='m', version=2 not found.*m:1"):
        Model(workspace, "m", version=2)
    with pytest.raises(WebserviceException, match="deleted already"):
        second.delete()
    with pytest.raises(ModelNotFoundException, match="was deleted"):
        second.download(tmp_path / "out")
    assert Model.register(workspace, file(tmp_path, "three"), "m").version == 3


def test_contents_are_kept_once_and_removed_with_the_last_that_has_them(workspace, tmp_path):
    models = [Model.register(workspace, file(tmp_path, "same"), name) for name in ("a", "b")]
    kept = workspace.root / "files"
    assert len(list(kept.glob("*/*"))) == 1
    models[0].delete()
    assert models[1].path.read_text() == "same"
    models[1].delete()
    assert not list(kept.glob("*/*"))


def test_a_folder_comes_back_as_it_was(workspace, tmp_path):
    source = tmp_path / "saved_model"
    (source / "variables").mkdir(parents=True)
    (source / "graph.pb").write_bytes(b"\x00\xff")
    (source / "variables" / "index").write_text("i")
    model = Model.register(workspace, source, "tf")
    assert model.unpack
    target = model.download(tmp_path / "out")
    assert target == str(tmp_path / "out" / "tf")
    assert (tmp_path / "out/tf/graph.pb").read_bytes() == b"\x00\xff"
    assert (tmp_path / "out/tf/variables/index").read_text() == "i"
    with pytest.raises(WebserviceException, match="is there already; exist_ok=True"):
        model.download(tmp_path / "out")
    model.download(tmp_path / "out", exist_ok=True)
    with pytest.raises(WebserviceException, match="is a folder of 2 files"):
        assert model.path


def test_tags_filter_and_change(workspace, tmp_path):
    Model.register(workspace, file(tmp_path), "m", tags={"area": "vision", "n": 1})
    Model.register(workspace, file(tmp_path), "m", tags={"area": "text"}, properties={"p": "q"})
    assert Model(workspace, "m", tags={"area": "vision"}).version == 1
    assert Model(workspace, "m", tags=[["area", "vision"], "n"]).version == 1
    assert [m.version for m in Model.list(workspace, tags=["area"])] == [2, 1]
    assert [m.version for m in Model.list(workspace, properties={"p": "q"})] == [2]
    model = Model(workspace, "m")
    model.add_tags({"new": 3})
    model.remove_tags("area")
    assert Model(workspace, "m", version=2).tags == {"new": "3"}
    model.update(tags={}, description="d")
    assert json.loads(json.dumps(Model(workspace, "m").serialize()))["description"] == "d"
    with pytest.raises(ModelNotFoundException, match="tags=\\['area'\\]"):
        Model(workspace, id="m:2", tags=["area"])


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a b", "a" * 256, None, 3, "../x"])
def test_names_that_no_model_can_have_are_refused(workspace, tmp_path, name):
    with pytest.raises(InputError, match="model_name="):
        Model.register(workspace, file(tmp_path), name)
    assert Model.list(workspace) == []


def test_what_cannot_be_read_is_refused_and_leaves_nothing(workspace, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "passwd").symlink_to("/etc/passwd")
    (tmp_path / "empty").mkdir()
    for path, says in (("missing", "cannot be read"), ("links", "links are not followed"), ("empty", "holds no file")):
        with pytest.raises(WorkspaceError, match=says):
            Model.register(workspace, tmp_path / path, "m")
    with pytest.raises(WorkspaceError, match="neither a file nor a folder"):
        Model.register(workspace, "/dev/null", "m")
    assert Model.list(workspace) == []
    assert Model.register(workspace, file(tmp_path), "m").version == 1


def test_an_item_in_use_lists_its_users(workspace, tmp_path):
    model = Model.register(workspace, file(tmp_path), "m")
    with workspace.store.transaction() as connection:
        registry.add_item(connection, "image", "im", 1, {}, uses=[("model", "m", 1)])
    with pytest.raises(WebserviceException, match="DeletionRequired: model m:1 is used by image im:1; delete services"):
        model.delete()
    registry.delete_item(workspace, "image", "im", 1)
    model.delete()


def test_a_damaged_content_is_never_handed_out(workspace, tmp_path):
    model = Model.register(workspace, file(tmp_path, "good"), "m")
    path = model.path
    path.chmod(0o644)
    path.write_text("evil")
    with pytest.raises(WorkspaceError, match="its hash differs"):
        model.download(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    path.write_text("longer")
    with pytest.raises(WorkspaceError, match="damaged or gone"):
        assert model.path


def test_a_transaction_that_raises_leaves_nothing(workspace):
    def fail_half_way():
        with workspace.store.transaction() as connection:
            registry.add_item(connection, "model", "m", registry.next_version(connection, "model", "m"), {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert workspace.store.read("SELECT * FROM items") == []
    assert workspace.store.read("SELECT * FROM versions") == []


def test_a_workspace_of_a_later_version_is_refused(workspace):
    with workspace.store.transaction() as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(WorkspaceError, match="version 99"):
        assert Workspace.open(workspace.root).store


def test_a_config_file_names_the_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("FPGASIM_WORKSPACES", str(tmp_path / "all"))
    made = Workspace.create("mine", resource_group="rg", location="here")
    work = tmp_path / "project" / "deep"
    work.mkdir(parents=True)
    made.write_config(tmp_path / "project")
    monkeypatch.chdir(work)
    found = Workspace.from_config()
    assert (found.name, found.root, found.resource_group, found.location) == ("mine", made.root, "rg", "here")
    assert Workspace.get("mine").name == "mine"
    with pytest.raises(WorkspaceError, match="already; exist_ok=True"):
        Workspace.create("mine")
    with pytest.raises(WorkspaceError, match="no workspace"):
        Workspace.get("other")
    with pytest.raises(InputError, match="name='a/b'"):
        Workspace.create("a/b")
    with pytest.raises(WorkspaceError, match="no configuration"):
        Workspace.from_config(tmp_path / "nowhere.json")


def test_without_a_config_file_there_is_one_workspace_for_all(tmp_path, monkeypatch):
    monkeypatch.setenv("FPGASIM_WORKSPACES", str(tmp_path / "all"))
    monkeypatch.chdir(tmp_path)
    assert Workspace.from_config().name == "fpgasim"
    assert Workspace.from_config().root == tmp_path / "all" / "fpgasim"


def test_writers_at_once_get_every_number_once(workspace):
    writers = [write(workspace.root, writer, 5) for writer in range(4)]
    versions = [int(line) for writer in writers for line in writer.communicate()[0].split()]
    assert sorted(versions) == list(range(1, 21))
    assert len(assert_consistent(workspace)) == 20


def kill_writers(workspace, writers, each, kills, seed):
    """Runs `writers` processes of `each` registrations, killing random ones; the versions that were acknowledged."""
    draw = random.Random(seed)
    running = {writer: write(workspace.root, writer, each) for writer in range(writers)}
    acknowledged = []
    for number in range(kills):
        time.sleep(draw.uniform(0.3, 1.0))
        victim = draw.choice(list(running))
        process = running.pop(victim)
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += process.communicate()[0].split()
        fresh = writers + number
        running[fresh] = write(workspace.root, fresh, each)
    for process in running.values():
        acknowledged += process.communicate()[0].split()
    return [int(version) for version in acknowledged]


def check_after_kills(workspace, acknowledged):
    models = assert_consistent(workspace)
    versions = [model.version for model in models]
    assert len(set(acknowledged)) == len(acknowledged)
    assert set(acknowledged) <= set(versions)
    assert max(collections.Counter((m.tags["writer"], m.tags["i"]) for m in models).values()) == 1
    assert max(versions) == len(versions)


def test_killed_writers_lose_nothing_registered_and_leave_nothing_half_registered(workspace):
    check_after_kills(workspace, kill_writers(workspace, writers=2, each=8, kills=3, seed=1))


@pytest.mark.slow
def test_a_thousand_versions_by_eight_writers_of_which_some_are_killed(workspace):
    acknowledged = kill_writers(workspace, writers=8, each=120, kills=8, seed=2)
    check_after_kills(workspace, acknowledged)
    assert len(acknowledged) >= 900


def test_without_the_extra_mlflows_registry_says_what_is_missing():
    with pytest.raises(ModuleNotFoundError, match=r"needs the package 'mlflow'; pip install 'fpgasim\[mlflow\]'"):
        MlflowRegistry("sqlite:///mlflow.db")


def test_questions_that_mean_nothing_are_told_so_in_one_line(workspace, tmp_path):
    (tmp_path / "file.onnx").write_bytes(b"x")
    Model.register(workspace, tmp_path / "file.onnx", "net", tags={"area": "vision"})
    assert [model.id for model in Model.list(workspace, tags="area")] == ["net:1"]
    for ask, says in (
        (lambda: Model(workspace, 5), "name=5; a text would do"),
        (lambda: Model.list(workspace, name=5), "name=5; a text would do"),
        (lambda: Model(workspace, id=5), "id='5' must be name:version"),
        (lambda: Model(workspace, id="net:" + "9" * 5000), "must be name:version"),
        (lambda: Model.list(workspace, tags=5), "tags or properties 5; a key, a list of keys"),
        (lambda: Model.list(workspace, tags=[5]), r"hold 5; a key or \(key, value\) would do"),
        (lambda: Model.list(workspace, tags=[[]]), r"hold \[\]; a key or \(key, value\) would do"),
    ):
        with pytest.raises(InputError, match=says):
            ask()
