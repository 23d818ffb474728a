"""Images of registered models: what is in them, how they are found, run and deleted. Their system is a small folder."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fpgasim.cli import main
from fpgasim.errors import InputError, ServiceError, WebserviceException, WorkspaceError
from fpgasim.service import (
    AccelContainerImage,
    BrainwaveImage,
    Image,
    Model,
    PredictionClient,
    Workspace,
    image_runtime,
    oci,
)

from .calling import WEIGHTS, linear


@pytest.fixture
def root(tmp_path):
    """A root filesystem of one command."""
    command = tmp_path / "root" / "usr/local/bin/fpgasim"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    return tmp_path / "root"


@pytest.fixture
def model(workspace, tmp_path):
    return Model.register(workspace, linear(tmp_path / "linear.onnx"), "linear")


@pytest.fixture
def create(workspace, model, root):
    """Makes an image of the model, or another."""

    def create(name="pictures", models=model, **config):
        return Image.create(workspace, name, models, AccelContainerImage.image_configuration(**config, root=root))

    return create


def test_versions_count_from_one_and_the_latest_is_meant(workspace, create):
    first, second = create(tags={"area": "cats"}), create()
    assert (first.id, second.id) == ("pictures:1", "pictures:2")
    assert Image(workspace, "pictures").version == 2
    assert Image(workspace, name="pictures", version=1).id == Image(workspace, id="pictures:1").id == first.id
    assert Image(workspace, "pictures", tags=[["area", "cats"]]).version == 1
    second.delete()
    assert create().version == 3


def test_an_image_tells_what_it_is(create, model):
    made = create(tags={"a": 1}, properties={"b": "c"}, description="of cats")
    assert (made.creation_state, made.model_ids, made.description) == ("Succeeded", ["linear:1"], "of cats")
    assert (made.tags, made.properties, [one.id for one in made.models]) == ({"a": "1"}, {"b": "c"}, [model.id])
    facts = json.loads(json.dumps(made.serialize()))
    assert facts["id"] == "pictures:1"
    for uri, text in (
        (facts["generated_dockerfile_uri"], made.generated_dockerfile),
        (facts["image_build_log_uri"], made.build_log),
    ):
        assert Path(uri.removeprefix("file://")).read_text() == text
    assert made.image_location == "fpgasim://tests/images/pictures/1"


def test_waiting_shows_what_was_put_in(create, capsys):
    create().wait_for_creation(show_output=True)
    assert re.fullmatch(
        r"packed root filesystem: .*\npacked model linear:1: .*\nImage creation .*'Succeeded'\n",
        capsys.readouterr().out,
    )
    create().wait_for_creation()
    assert capsys.readouterr().out == ""


def test_the_same_things_again_are_the_same_bytes_in_another_workspace_too(create, root, tmp_path):
    made = create()
    other = Workspace.create("other", path=tmp_path / "other")
    model = Model.register(other, tmp_path / "linear.onnx", "linear")
    same = Image.create(other, "called-otherwise", [model], BrainwaveImage.image_configuration(root=root))
    assert same.export(tmp_path / "b.tar").read_bytes() == made.export(tmp_path / "a.tar").read_bytes()
    assert create().digest == made.digest == same.digest


def test_images_of_a_workspace_share_what_lies_below_the_model(workspace, create, tmp_path):
    create()
    scaled = Model.register(workspace, linear(tmp_path / "scaled.onnx", 2.0), "scaled")
    log = create("scaled", scaled).build_log
    assert re.fullmatch(r"taken root filesystem.*\npacked model scaled:1.*\n", log)


def test_an_exported_image_is_sound_and_serves_its_model_as_nobody(create, tmp_path):
    made = create()
    found = oci.verify(made.export(tmp_path / "layout"))
    assert found == oci.verify(made.export(tmp_path / "image.tar")) == made.verify()
    assert f"sha256:{found.sha256}" == made.digest
    config = found.config["config"]
    assert config["Entrypoint"][:3] == ["/usr/local/bin/fpgasim", "serve", "/model/linear.onnx"]
    assert config["User"] == "10001:10001"
    assert config["ExposedPorts"] == {"50051/tcp": {}}
    assert config["Labels"]["io.fpgasim.model"] == "linear:1"
    oci.unpack(tmp_path / "layout", tmp_path / "system")
    assert (tmp_path / "system/model/linear.onnx").read_bytes() == (tmp_path / "linear.onnx").read_bytes()
    assert stat.S_IMODE((tmp_path / "system/model/linear.onnx").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "system/usr/local/bin/fpgasim").stat().st_mode) == 0o755
    with pytest.raises(WebserviceException, match="already"):
        made.export(tmp_path / "image.tar")
    with pytest.raises(WebserviceException, match="there is no folder"):
        made.export(tmp_path / "nowhere" / "image.tar")


def test_the_dockerfile_adds_the_layers_of_the_exported_folder(create, tmp_path):
    made = create(description='a "quoted" $text\nof two lines')
    folder = made.export(tmp_path / "layout")
    lines = (folder / "Dockerfile").read_text().splitlines()
    added = [line.split()[1] for line in lines if line.startswith("ADD ")]
    assert added == [oci.blob(layer.sha256) for layer in oci.verify(folder).layers]
    assert all((folder / path).is_file() for path in added)
    assert 'LABEL org.opencontainers.image.description="a \\"quoted\\" \\$text of two lines"' in lines
    entrypoint = json.loads(lines[-1].removeprefix("ENTRYPOINT "))
    assert entrypoint == oci.verify(folder).config["config"]["Entrypoint"]


def test_a_damaged_blob_of_the_workspace_is_found(workspace, create):
    made = create()
    layer = made.verify().layers[0]
    path = workspace.root / "files" / layer.sha256[:2] / layer.sha256
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises((WorkspaceError, ServiceError)):
        made.verify()


def test_lists_are_by_name_model_tags_and_properties(workspace, create, tmp_path):
    other = Model.register(workspace, linear(tmp_path / "other.onnx", 2.0), "other")
    create("cats", tags={"area": "cats"})
    create("dogs", other, tags={"area": "dogs"}, properties={"p": "1"})
    create("cats")

    def ids(**wanted):
        return [image.id for image in Image.list(workspace, **wanted)]

    assert ids() == ["cats:2", "cats:1", "dogs:1"]
    assert ids(image_name="cats") == ["cats:2", "cats:1"]
    assert ids(model_name="other") == ids(model_id="other:1") == ids(properties={"p": "1"}) == ["dogs:1"]
    assert ids(tags=["area"]) == ["cats:1", "dogs:1"]
    assert ids(tags={"area": "cats"}) == ids(tags=[("area", "cats")]) == ["cats:1"]
    assert ids(image_name="nothing") == []


def test_deletion_goes_from_the_image_to_the_model(workspace, create, model):
    made = create()
    with pytest.raises(WebserviceException, match="DeletionRequired: model linear:1 is used by image pictures:1"):
        model.delete()
    made.delete()
    model.delete()
    assert Image.list(workspace) == []
    assert list((workspace.root / "files").glob("*/*")) == []
    for call in (made.delete, lambda: made.build_log, lambda: made.export(workspace.root / "x")):
        with pytest.raises(WebserviceException, match="deleted"):
            call()


def test_a_deletion_leaves_the_layers_that_other_images_have(create):
    first, second = create("first"), create("second")
    first.delete()
    second.verify()


@pytest.mark.parametrize("name", ["ab", "a" * 33, "Upper", "-abc", "abc-", "a_bc", "abc\n", 7, None])
def test_a_name_that_no_image_can_have_is_refused(create, name):
    with pytest.raises(InputError, match="of an image must be 3 to 32"):
        create(name)


def test_what_cannot_be_packed_is_refused(workspace, create, model, tmp_path):
    for models in ([], [model, model]):
        with pytest.raises(WebserviceException, match="exactly one"):
            create(models=models)
    with pytest.raises(InputError, match="models="):
        create(models=7)
    with pytest.raises(InputError, match="image_config="):
        Image.create(workspace, "pictures", model, {"tags": {}})
    with pytest.raises(WebserviceException, match="has no usr/local/bin/fpgasim"):
        Image.create(workspace, "pictures", model, AccelContainerImage.image_configuration(root=tmp_path))
    with pytest.raises(InputError, match="tags="):
        AccelContainerImage.image_configuration(tags=["a"])
    with pytest.raises(
        WebserviceException, match=r"ImageNotFound: Image with name='pictures' not found; there are none"
    ):
        Image(workspace, "pictures")
    assert Image.list(workspace) == []
    model.delete()
    with pytest.raises(WebserviceException, match="deleted"):
        create()


def test_an_image_runs_here_and_answers_until_it_is_stopped(create):
    with create().run() as running:
        client = PredictionClient("127.0.0.1", running.port)
        x = np.float32([[1, 2, 3, 4]])
        assert np.array_equal(client.score_numpy_arrays({"x": x}), x @ WEIGHTS)
        running.check()
    assert running.process.poll() == 0
    assert not running.log.exists()


def test_an_image_that_cannot_serve_says_why(create):
    with pytest.raises(WebserviceException, match=r"image pictures:1 does not serve: it ended; .*no device 'bw_none'"):
        create().run(options=["--device", "bw_none"])


def test_all_of_it_works_from_the_command_line(workspace, model, root, tmp_path):
    def run(*arguments):
        where = ["--workspace", f"{workspace.root}{os.sep}"]
        result = CliRunner().invoke(main, ["image", *map(str, arguments), *where], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    made = json.loads(run("create", "pictures", "linear", "--tag", "a=b", "--root", root, "--json"))
    assert (made["id"], made["tags"], made["model_ids"]) == ("pictures:1", {"a": "b"}, ["linear:1"])
    assert json.loads(run("list", "--tag", "a", "--model", "linear:1", "--json")) == [made]
    assert "pictures:1" in run("list")
    assert "linear:1" in run("show", "pictures:1")
    assert run("show", "pictures", "--dockerfile").startswith("# docker build")
    assert run("export", "pictures", tmp_path / "x.tar") == f"{tmp_path / 'x.tar'}\n"
    digest = json.loads(run("verify", "pictures", "--json"))["digest"]
    assert digest == json.loads(run("verify", tmp_path / "x.tar", "--json"))["digest"] == made["digest"]
    assert run("delete", "pictures:1") == "deleted pictures:1\n"
    assert json.loads(run("list", "--json")) == []


def test_serving_imports_nothing_that_is_left_out():
    """Of all that is installed only the distributions of an image can be imported, and a server comes up."""
    program = """
import importlib.metadata, sys
from fpgasim.service import image_runtime

inside = {d.name for d in image_runtime.distributions()} | {"fpgasim"}
left = {top for top, names in importlib.metadata.packages_distributions().items() if not inside.intersection(names)}
assert {"matplotlib", "numba", "llvmlite", "pytest"} <= left, left

class Left:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in left:
            raise ModuleNotFoundError(f"{name} is not in the image")

find, importlib.util.find_spec = importlib.util.find_spec, lambda name, package=None: (
    None if name.partition(".")[0] in left else find(name, package)
)
assert not left.intersection(sys.modules) - {"_distutils_hack"}, left.intersection(sys.modules)  # by a .pth file
sys.meta_path.insert(0, Left())

import numpy as np
from fpgasim.service import Server, ServerConfig, servable, tls
from tests_small import featurizer, picture
from fpgasim.service import json_api, symbolic, pipeline, models, reloading

made = servable(featurizer(), name="f")
with Server({"f": made}, ServerConfig(port=0, rest_port=0, metrics_port=0)) as server:
    assert server.port
    assert made.run({"input": np.ones((1, 3, 8, 8), np.float32)}).outputs["features"].shape == (1, 4, 1, 1)
    from fpgasim.zoo import decoding
print("served")
"""
    small = os.path.join(os.path.dirname(__file__), "small.py")
    load = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('tests_small', {small!r})\n"
        "sys.modules['tests_small'] = module = importlib.util.module_from_spec(spec)\n"
    )
    program = program.replace("from tests_small", "spec.loader.exec_module(module)\nfrom tests_small")
    result = subprocess.run([sys.executable, "-c", load + program], capture_output=True, text=True, timeout=120)
    assert result.stdout == "served\n", result.stderr


@pytest.mark.slow
def test_a_real_image_has_python_its_libraries_and_nothing_of_this_machine(model):
    found = dict(image_runtime.layers(model))
    system, packages, ours = found["system and Python"], found["packages"], found["fpgasim"]
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert f"usr/local/lib/{python}/os.py" in system
    assert any(re.fullmatch(r"usr/local/lib/libc\.so\.\d+", name) for name in system)
    assert b"fpgasim:x:10001:10001:" in system["etc/passwd"].source
    assert {"onnxruntime", "grpc", "numpy", "scipy", "PIL", "sympy"} <= {name.split("/")[4] for name in packages}
    assert {"usr/local/bin/fpgasim", "usr/local/lib/fpgasim/fpgasim/kernels/reference.py"} <= set(ours)
    every = {**system, **packages, **ours}
    assert not [name for name in every if name.endswith((".pyc", "direct_url.json", "/RECORD"))]
    assert all(not entry.link or not entry.link.startswith("/") for entry in every.values())
