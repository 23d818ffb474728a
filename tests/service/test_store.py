"""The store under what disks, links, forks and other processes do to it."""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings, strategies as st

from fpgasim.errors import FpgasimError, InputError, ModelNotFoundException, WebserviceException, WorkspaceError
from fpgasim.service import registry
from fpgasim.service.registry import Model
from fpgasim.service.store import Content, Store
from fpgasim.service.workspace import Workspace

PRELUDE = """
import pathlib, sys
from fpgasim.service.registry import Model
from fpgasim.service.workspace import Workspace
root = pathlib.Path(sys.argv[1])
"""


def process(code, *args):
    """A Python process that runs `code`, with `root` as its first argument."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, *map(str, args)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@contextlib.contextmanager
def ended(*processes):
    """Whatever happens, none of them is left."""
    try:
        yield
    finally:
        for one in processes:
            one.kill()
            one.communicate()


def file(tmp_path, text="weights", name="model.onnx"):
    path = tmp_path / name
    path.write_text(text)
    return path


def kept(workspace):
    return sorted(path.name for path in (workspace.root / "files").glob("*/*"))


def assert_nothing_is_left(workspace):
    assert kept(workspace) == []
    assert list((workspace.root / "incoming").iterdir()) == []


# Other processes


def test_a_sweep_leaves_what_another_process_is_about_to_register(workspace, tmp_path):
    writer = process(
        """
store = Workspace.open(root).store
with store.writing():
    content = store.put_bytes(b"new", "f")
    print(content.sha256, flush=True)
    sys.stdin.readline()
""",
        workspace.root,
    )
    with ended(writer):
        sha256 = writer.stdout.readline().strip()
        assert workspace.store.sweep() == 0
        assert kept(workspace) == [sha256]
        writer.communicate("go on\n")
    assert workspace.store.sweep() == 1
    assert_nothing_is_left(workspace)


def test_a_writer_waits_for_a_sweep_of_another_process(workspace, tmp_path):
    sweeper = process(
        """
store = Workspace.open(root).store
with store.alone():
    print("alone", flush=True)
    sys.stdin.readline()
""",
        workspace.root,
    )
    with ended(sweeper):
        assert sweeper.stdout.readline() == "alone\n"
        thread = threading.Thread(target=Model.register, args=(workspace, file(tmp_path), "m"))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert Model.list(workspace) == []
        sweeper.communicate("go on\n")
        thread.join(60)
    assert Model(workspace, "m").path.read_text() == "weights"


def test_registering_deleting_and_sweeping_at_once_loses_nothing(workspace):
    churn = """
workspace = Workspace.open(root)
for i in range(15):
    source = root / f"{sys.argv[2]}-{i}"
    source.write_text(f"{i % 3}")  # the same contents as the others'
    model = Model.register(workspace, source, sys.argv[2])
    if i % 2:
        model.delete()
    workspace.store.sweep()
"""
    churners = [process(churn, workspace.root, f"writer{i}") for i in range(3)]
    with ended(*churners):
        for one in churners:
            assert one.communicate(timeout=120)[1] == ""
    models = Model.list(workspace)
    assert len(models) == 3 * 8
    for model in models:
        assert model.path.read_text() == str((model.version - 1) % 3)
    workspace.store.sweep()
    assert len(kept(workspace)) == len({model.sha256 for model in models})


def test_of_processes_that_make_one_workspace_at_once_one_does(tmp_path):
    make = """
try:
    workspace = Workspace.create("w" + sys.argv[2], path=root, exist_ok=sys.argv[3] == "ok")
    print("made", workspace.name, flush=True)
except Exception as error:
    print(type(error).__name__, flush=True)
"""
    makers = [process(make, tmp_path / "w", i, "no") for i in range(4)]
    with ended(*makers):
        lines = [maker.communicate(timeout=120)[0].split() for maker in makers]
    assert sorted(line[0] for line in lines) == ["WorkspaceError", "WorkspaceError", "WorkspaceError", "made"]
    (name,) = [line[1] for line in lines if line[0] == "made"]
    assert Workspace.open(tmp_path / "w").name == name
    takers = [process(make, tmp_path / "w", i, "ok") for i in range(2)]
    with ended(*takers):
        assert {taker.communicate(timeout=120)[0] for taker in takers} == {f"made {name}\n"}


def test_tags_that_two_processes_add_are_both_kept(workspace, tmp_path):
    model = Model.register(workspace, file(tmp_path), "m")
    stale = Model(workspace, "m")
    model.add_tags({"a": 1})
    stale.add_tags({"b": 2})
    assert Model(workspace, "m").tags == {"a": "1", "b": "2"}


def test_a_forked_process_has_a_connection_of_its_own(workspace, tmp_path):
    Model.register(workspace, file(tmp_path), "parent")
    own = workspace.store._connection()
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            assert workspace.store._connection() is not own
            Model.register(workspace, file(tmp_path, "other"), "child")
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert workspace.store._connection() is own
    assert [model.id for model in Model.list(workspace)] == ["child:1", "parent:1"]
    Model.register(workspace, file(tmp_path), "parent")
    assert workspace.store.read("PRAGMA integrity_check")[0][0] == "ok"


def test_threads_share_a_store(workspace, tmp_path):
    def register(number):
        path = file(tmp_path, f"{number}", f"f{number}")
        for _ in range(3):
            Model.register(workspace, path, "m")

    threads = [threading.Thread(target=register, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [model.version for model in Model.list(workspace)] == list(range(18, 0, -1))


# Disks


def test_a_disk_that_is_full_for_contents_is_told_and_leaves_nothing(workspace, tmp_path):
    path = file(tmp_path, "x" * 100_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # the kernel refuses as it does on a full disk
    try:
        with pytest.raises(WorkspaceError, match=r"'model.onnx' cannot be kept in .*: File too large"):
            Model.register(workspace, path, "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Model.list(workspace) == []
    assert_nothing_is_left(workspace)
    assert Model.register(workspace, path, "m").version == 1


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_end_is_told_and_leaves_nothing(workspace, tmp_path, monkeypatch, function):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(f"os.{function}", full)
        with pytest.raises(WorkspaceError, match=r"cannot be kept in .*: No space left on device"):
            Model.register(workspace, file(tmp_path), "m")
        with pytest.raises(WorkspaceError, match="No space left"):
            workspace.store.put_bytes(b"data", "f")
    assert Model.list(workspace) == []
    workspace.store.sweep()
    assert_nothing_is_left(workspace)


def test_a_disk_that_is_full_for_the_database_is_told_and_ends_the_transaction(workspace, tmp_path):
    connection = workspace.store._connection()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(WorkspaceError, match="cannot be used: database or disk is full"):
        Model.register(workspace, file(tmp_path), "m", tags={"long": "x" * 100_000})
    connection.execute("PRAGMA max_page_count = 100000")
    assert Model.list(workspace) == []
    assert Model.register(workspace, file(tmp_path), "m").version == 1


def test_a_downloads_disk_that_is_full_is_told_and_leaves_no_part(workspace, tmp_path):
    model = Model.register(workspace, file(tmp_path, "x" * 100_000), "m")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(WorkspaceError, match="cannot be written: File too large"):
            model.download(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_place_where_nothing_can_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere", "/dev/null/x", "nul\0"):
        with pytest.raises(WorkspaceError, match="cannot be used"):
            Store(root)
        with pytest.raises(WorkspaceError, match="cannot be used"):
            Workspace.create("w1", path=root)


def test_a_folder_that_may_only_be_read_says_so(workspace, tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.open", refused)
    with pytest.raises(WorkspaceError, match="Read-only file system"):
        Model.register(workspace, file.__globals__["__file__"], "m")
    monkeypatch.setattr("pathlib.Path.mkdir", refused)
    with pytest.raises(WorkspaceError, match="Read-only file system"):
        Store(tmp_path / "new")


def test_a_database_that_is_held_too_long_is_told(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr("fpgasim.service.store.BUSY_S", 0.05)
    patient = Store(workspace.root, make=False)
    with workspace.store.transaction():
        thread_error = []

        def write():
            try:
                with patient.transaction():
                    pass
            except WorkspaceError as error:
                thread_error.append(str(error))

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert "database is locked" in thread_error[0]


# Damage


def test_a_damaged_database_is_told(workspace, tmp_path):
    Model.register(workspace, file(tmp_path), "m")
    for name in ("registry.db-wal", "registry.db-shm"):
        (workspace.root / name).unlink(missing_ok=True)
    (workspace.root / "registry.db").write_bytes(b"no database" * 1000)
    with pytest.raises(WorkspaceError, match="cannot be used: file is not a database"):
        Model.list(Workspace.open(workspace.root))
    with pytest.raises(WorkspaceError, match="cannot be used"):
        Workspace.create("tests", path=workspace.root, exist_ok=True).store.read("SELECT 1 FROM items")


@pytest.mark.parametrize("damage", ["unlink", "truncate"])
def test_a_lost_database_is_never_replaced_by_an_empty_one(workspace, tmp_path, damage):
    Model.register(workspace, file(tmp_path), "m")
    path = workspace.root / "registry.db"
    for name in ("registry.db", "registry.db-wal", "registry.db-shm"):
        (workspace.root / name).unlink(missing_ok=True)
    if damage == "truncate":
        path.touch()
    for _ in range(2):
        with pytest.raises(WorkspaceError, match=r"registry\.db is empty|cannot be used: No such file"):
            Model.list(Workspace.create("tests", path=workspace.root, exist_ok=True))
    assert path.exists() == (damage == "truncate")
    if damage == "unlink":  # one that is open notices too
        with pytest.raises(WorkspaceError, match="No such file"):
            Model.list(workspace)


def test_a_workspace_that_is_made_anew_in_its_place_is_seen_by_who_has_it_open(workspace, tmp_path):
    Model.register(workspace, file(tmp_path), "m")
    shutil.rmtree(workspace.root)
    Workspace.create("tests", path=workspace.root)
    assert Model.list(workspace) == []
    assert Model.register(workspace, file(tmp_path), "m").version == 1


def test_a_workspace_that_is_renamed_works_under_its_new_name_and_fails_under_its_old(workspace, tmp_path):
    Model.register(workspace, file(tmp_path), "m")
    moved = workspace.root.with_name("moved")
    workspace.root.rename(moved)
    with pytest.raises(WorkspaceError, match="cannot be used: No such file"):
        Model.register(workspace, file(tmp_path), "m")
    with pytest.raises(WorkspaceError, match="cannot be used: No such file"):
        Model.list(workspace)
    with pytest.raises(WorkspaceError, match="there is no workspace"):
        Workspace.open(workspace.root)
    assert not workspace.root.exists()
    assert Model(Workspace.open(moved), "m").path.read_text() == "weights"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "n"}', "\x00", "nonsense"])
def test_damaged_facts_of_a_workspace_are_told(workspace, text):
    (workspace.root / "workspace.json").write_text(text)
    with pytest.raises(WorkspaceError, match="is damaged"):
        Workspace.open(workspace.root)


@pytest.mark.parametrize("config", [[], {}, {"workspace_name": 3}, {"workspace_name": "w1", "path": 3}])
def test_a_configuration_that_says_nothing_is_refused(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorkspaceError, match="configuration"):
        Workspace.from_config(tmp_path / "config.json")


def test_a_damaged_content_is_healed_by_registering_it_again(workspace, tmp_path):
    model = Model.register(workspace, file(tmp_path, "good"), "m")
    model.path.chmod(0o644)
    model.path.write_text("evil")
    Model.register(workspace, file(tmp_path, "good"), "m")
    assert model.path.read_text() == "good"


def test_an_item_that_uses_what_was_deleted_is_refused(workspace, tmp_path):
    Model.register(workspace, file(tmp_path), "m").delete()
    with (
        pytest.raises(WebserviceException, match="model m:1, which image im:1 uses, was deleted"),
        workspace.store.transaction() as connection,
    ):
        registry.add_item(connection, "image", "im", 1, {}, uses=[("model", "m", 1)])
    assert workspace.store.read("SELECT * FROM items") == []


# Downloads


def outside(tmp_path):
    """A folder that no download may touch, and what is in it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text("untouched")
    return folder


def assert_untouched(folder):
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("precious", "untouched")]


def test_a_link_in_a_files_place_is_replaced_not_followed(workspace, tmp_path):
    away, target = outside(tmp_path), tmp_path / "out"
    target.mkdir()
    (target / "model.onnx").symlink_to(away / "precious")
    model = Model.register(workspace, file(tmp_path), "m")
    with pytest.raises(WebserviceException, match="is there already"):
        model.download(target)
    model.download(target, exist_ok=True)
    assert_untouched(away)
    assert not (target / "model.onnx").is_symlink()
    (target / "model.onnx").unlink()
    (target / "model.onnx").symlink_to(tmp_path / "nowhere")
    with pytest.raises(WebserviceException, match="is there already"):
        model.download(target)


@pytest.mark.parametrize("place", ["folder", "folder/sub"])
def test_a_link_in_a_folders_place_is_refused(workspace, tmp_path, place):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "precious").write_text("new")
    model = Model.register(workspace, source, "folder")
    away, target = outside(tmp_path), tmp_path / "out"
    (target / place).parent.mkdir(parents=True)
    (target / place).symlink_to(away)
    with pytest.raises(WorkspaceError, match="is no folder"):
        model.download(target, exist_ok=True)
    assert_untouched(away)
    (target / place).unlink()
    (target / place).write_text("a file")
    with pytest.raises(WorkspaceError, match="is no folder"):
        model.download(target, exist_ok=True)


def test_a_folder_in_a_files_place_is_refused(workspace, tmp_path):
    model = Model.register(workspace, file(tmp_path), "m")
    (tmp_path / "out" / "model.onnx").mkdir(parents=True)
    with pytest.raises(WorkspaceError, match="cannot be written: Is a directory"):
        model.download(tmp_path / "out", exist_ok=True)
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "model.onnx"]


@given(path=st.one_of(st.text(), st.lists(st.sampled_from(["..", ".", "", "a", "/", "b\0"])).map("/".join)))
@settings(max_examples=200, deadline=None)
def test_whatever_path_a_content_has_nothing_is_written_outside(fuzzed, path):
    workspace, source = fuzzed
    with workspace.store.writing():
        content = workspace.store.put_bytes(b"data", "f")
    base = source.with_name("base")
    target = base / "x" / "target"
    target.mkdir(parents=True)
    with contextlib.suppress(WorkspaceError):
        workspace.store.copy_out([Content(path, content.sha256, content.size)], target)
    assert list(base.iterdir()) == [base / "x"]
    assert list((base / "x").iterdir()) == [target]
    shutil.rmtree(base)


# Names


@given(name=st.text(), tag=st.text(), value=st.text(), description=st.none() | st.text())
@settings(max_examples=100, deadline=None)
def test_any_name_and_tag_is_kept_as_it_is_or_refused_in_one_line(fuzzed, name, tag, value, description):
    workspace, source = fuzzed
    try:
        model = Model.register(workspace, source, name, tags={tag: value}, description=description)
    except InputError:
        return
    found = Model(workspace, id=model.id)
    assert (found.name, found.tags, found.description) == (name, {tag: value}, description)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return Workspace.create("fuzz", path=folder / "w"), file(folder)


@given(name=st.text(st.characters(exclude_categories=()), max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_question_for_a_model_has_an_answer_or_one_line(fuzzed, name):
    workspace, _ = fuzzed
    for ask in ({"name": name}, {"id": name}, {"id": f"{name}:1"}, {"name": name, "tags": {name: name}}):
        with contextlib.suppress(FpgasimError):
            assert Model(workspace, **ask).name


@pytest.mark.parametrize("name", [b"\xff\xfe", b"new\nline", b"bell\x07"])
def test_a_file_name_that_cannot_be_shown_is_refused(workspace, tmp_path, name):
    (tmp_path / "folder").mkdir()
    with open(os.path.join(os.fsencode(tmp_path / "folder"), name), "w") as odd:
        odd.write("x")
    with pytest.raises(WorkspaceError, match="cannot be kept; printable characters would do"):
        Model.register(workspace, tmp_path / "folder", "m")
    assert Model.list(workspace) == []


@pytest.mark.parametrize("path", ["", None, 3, b"x"])
def test_a_path_that_is_none_is_refused(workspace, path):
    with pytest.raises(InputError, match="model_path="):
        Model.register(workspace, path, "m")


def test_versions_ids_and_texts_that_are_none_are_refused(workspace, tmp_path):
    for id in ("m", "m:", ":1", "m:x", "m:-1", "m:1:2x"):
        with pytest.raises(InputError, match="must be name:version"):
            Model(workspace, id=id)
    for version in (True, "1", 1.0):
        with pytest.raises(InputError, match="must be a whole number"):
            Model(workspace, "m", version=version)
    with pytest.raises(InputError, match="description=3"):
        Model.register(workspace, file(tmp_path), "m", description=3)
    with pytest.raises(InputError, match="tags="):
        Model.register(workspace, file(tmp_path), "m", tags=["a"])


def test_a_number_too_large_for_the_database_is_no_version(workspace):
    with pytest.raises(ModelNotFoundException, match="not found"):
        Model(workspace, id=f"m:{10**30}")


def test_what_sqlite_raises_is_ours(workspace):
    with pytest.raises(WorkspaceError, match="no such table: nowhere"):
        workspace.store.read("SELECT * FROM nowhere")
    with pytest.raises(WorkspaceError, match="items has 4 columns"), workspace.store.transaction() as connection:
        connection.execute("INSERT INTO items VALUES (1)")


def test_scratch_is_gone_at_its_end_and_after_a_kill_with_the_next(tmp_path):
    store = Store(tmp_path)
    with store.scratch() as made:
        (made / "file").write_text("text")
        with Store(tmp_path).scratch() as other:
            assert made.exists()
            assert other.parent == made.parent
    assert list(made.parent.iterdir()) == []
    made.mkdir()  # as a process leaves it that is killed
    (made / "file").write_text("text")
    with store.scratch() as other:
        assert list(made.parent.iterdir()) == [other]
    with pytest.raises(FileNotFoundError, match="own"), store.scratch():
        raise FileNotFoundError("its own error")
