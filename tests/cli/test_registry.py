"""`fpgasim workspace`, `model` and `convert`: what Python does, without Python."""

import json

import pytest

from fpgasim.service import Model, Workspace, servable

INPUT, MODEL, SERVICE = 4, 6, 14


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    """The only workspace there is, and an empty folder to work in."""
    monkeypatch.setenv("FPGASIM_WORKSPACES", str(tmp_path / "workspaces"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return Workspace.create("mine")


@pytest.fixture
def mine(fpgasim, model):
    """Runs a command in the workspace and gives what it prints; `small:1` is there already."""

    def run(*args, **options):
        return fpgasim(*args, "--workspace", "mine", **options).stdout

    run("model", "register", model, "--name", "small", "--tag", "area=vision", "--description", "a classifier")
    return run


def test_a_model_is_registered_listed_and_shown(mine, model, workspace):
    made = json.loads(mine("model", "register", model, "--name", "small", "--property", "p=q=r", "--json"))
    assert made == {**Model(workspace, "small").serialize(), "files": made["files"]}
    assert (made["id"], made["properties"]) == ("small:2", {"p": "q=r"})
    assert [file["path"] for file in made["files"]] == ["model.onnx"]
    assert [row["id"] for row in json.loads(mine("model", "list", "--json"))] == ["small:2", "small:1"]
    assert [row["id"] for row in json.loads(mine("model", "list", "--latest", "--json"))] == ["small:2"]
    assert [row["id"] for row in json.loads(mine("model", "list", "--tag", "area=vision", "--json"))] == ["small:1"]
    assert [row["id"] for row in json.loads(mine("model", "list", "--tag", "area", "--json"))] == ["small:1"]
    assert json.loads(mine("model", "list", "--name", "other", "--json")) == []
    lines = mine("model", "list").splitlines()
    assert lines[0].split()[0] == "model"
    assert [line.split()[0] for line in lines[1:]] == ["small:2", "small:1"]
    assert lines[2].endswith("area=vision")
    shown = mine("model", "show", "small:1")
    assert "a classifier" in shown
    assert "area=vision" in shown
    assert json.loads(mine("model", "show", "small", "--json"))["version"] == 2


def test_tags_are_added_replaced_and_removed(mine, workspace):
    mine("model", "tag", "small", "area=text", "new=1")
    assert Model(workspace, "small").tags == {"area": "text", "new": "1"}
    assert json.loads(mine("model", "tag", "small:1", "--remove", "area", "more=2", "--json"))["tags"] == {
        "new": "1",
        "more": "2",
    }


def test_a_model_is_downloaded_and_deleted(mine, refused, model, workspace, tmp_path):
    target = tmp_path / "out"
    assert mine("model", "download", "small", "--to", target) == f"{target / 'model.onnx'}\n"
    assert (target / "model.onnx").read_bytes() == model.read_bytes()
    again = ("model", "download", "small", "--to", target, "--workspace", "mine")
    assert "is there already" in refused(*again, exit_code=SERVICE)
    mine("model", "download", "small", "--to", target, "--exist-ok")
    assert mine("model", "delete", "small:1") == "deleted small:1\n"
    assert Model.list(workspace) == []
    assert refused("model", "delete", "small:1", "--workspace", "mine", exit_code=SERVICE).startswith("ModelNotFound")


def test_a_model_is_converted_and_the_result_served(mine, fpgasim, workspace):
    command = ("convert", "small", "--input", "image", "--output", "probabilities", "--workspace", "mine")
    result = fpgasim(*command)
    assert "on the CPU: 'softmax' (Softmax)" in result.stderr
    assert "Succeeded: small.accelonnx:1" in result.stderr
    assert "explanation.json" in result.stdout
    made = json.loads(fpgasim(*command, "--json").stdout)
    assert (made["id"], made["parent_id"]) == ("small.accelonnx:1", "small:1")
    assert servable(Model(workspace, "small.accelonnx").path).plans
    other = json.loads(fpgasim(*command, "--device", "bw_s10", "--format", "msfp12", "--json").stdout)
    assert (other["version"], other["properties"]["device"]) == (2, "bw_s10")


def test_a_conversion_that_fails_ends_with_its_reason(mine, fpgasim, refused):
    command = ("convert", "small", "--input", "logits", "--output", "probabilities", "--workspace", "mine")
    result = fpgasim(*command, exit_code=SERVICE)
    assert result.stderr.splitlines()[-1].startswith(
        "fpgasim: error: 1 of 1 nodes of stage 'fpga' of model small:1 can"
    )
    assert result.stdout == ""
    wrong = ("convert", "small", "--input", "images", "--output", "logits", "--workspace", "mine")
    assert "no tensor 'images'; did you mean 'image'?" in refused(*wrong, exit_code=INPUT)


def test_a_workspace_is_made_shown_and_found_by_its_config(fpgasim, refused, model, tmp_path):
    made = json.loads(fpgasim("workspace", "create", "other", "--location", "here", "--write-config", "--json").stdout)
    assert (made["name"], made["location"], made["items"]) == ("other", "here", {})
    assert made["folder"] == str(tmp_path / "workspaces" / "other")
    fpgasim("model", "register", model, "--name", "m")
    assert json.loads(fpgasim("workspace", "show", "--json").stdout)["items"] == {"model": 1}
    assert "1 model" in fpgasim("workspace", "show").stdout
    assert [m.id for m in Model.list(Workspace.get("other"))] == ["m:1"]
    assert "already; exist_ok=True" in refused("workspace", "create", "other", exit_code=SERVICE)
    fpgasim("workspace", "create", "other", "--exist-ok")


def test_a_workspace_may_be_any_folder(fpgasim, refused, tmp_path):
    fpgasim("workspace", "create", "here", "--folder", tmp_path / "w")
    assert json.loads(fpgasim("workspace", "show", "--workspace", f"{tmp_path}/w", "--json").stdout)["name"] == "here"
    for missing in ("nobody", str(tmp_path / "nobody")):
        message = refused("workspace", "show", "--workspace", missing, exit_code=SERVICE)
        assert message.startswith("there is no workspace in ")


@pytest.mark.parametrize(
    ("args", "message", "code"),
    [
        (("model", "register", "nowhere.onnx", "--name", "m"), "'nowhere.onnx' cannot be read", SERVICE),
        (("model", "register", "/dev/null", "--name", "a/b"), "model_name='a/b'", INPUT),
        (("model", "register", "/dev/null", "--name", "m", "--tag", "t"), "--tag 't'; KEY=VALUE would do", INPUT),
        (("model", "show", "m:x"), "id='m:x' must be name:version", INPUT),
        (("model", "show", "m"), "ModelNotFound", SERVICE),
        (("convert", "m:1", "--input", "a", "--output", "b"), "ModelNotFound", SERVICE),
        (("workspace", "create", "a/b"), "name='a/b' of a workspace", INPUT),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(refused, args, message, code):
    assert message in refused(*args, exit_code=code)
