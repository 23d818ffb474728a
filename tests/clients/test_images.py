"""A real image in the hands of the tools that people have: skopeo, umoci, runc and bubblewrap must be installed.

One image is made of the Python that runs this. Nothing in it may need the machine: it runs without network, with no
writable file but those of /tmp, and as a user that no machine has. So the server is asked from within.
"""

import json
import os
import subprocess

import onnx
import onnx.parser
import pytest

from fpgasim.service import Image, Model, Workspace, oci

#: Serves the model as the entrypoint would, asks it once with the image's own client and ends it.
ASK = """
import re, signal, subprocess, sys
import numpy as np
from fpgasim.service import PredictionClient

server = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True)
port = int(re.match(r"SERVING linear on \\S+:(\\d+) ", server.stdout.readline())[1])
answer = PredictionClient("127.0.0.1", port).score_numpy_arrays({"x": np.float32([[1, 2]])}, timeout=60)
server.send_signal(signal.SIGTERM)
print("answer", np.asarray(answer).tolist(), "exit", server.wait(60))
"""
ANSWER = "answer [[7.0, 10.0]] exit 0\n"
TIMEOUT_S = 300


def tool(*command, **options):
    """What the command prints. A tool that is missing, or fails, fails the test."""
    result = subprocess.run(
        [os.fspath(part) for part in command], capture_output=True, text=True, timeout=TIMEOUT_S, **options
    )
    assert result.returncode == 0, (command[0], result.stdout[-2000:], result.stderr[-4000:])
    return result.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The image in the registry."""
    folder = tmp_path_factory.mktemp("images")
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17]>
        linear (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"""
    )
    onnx.save(model, folder / "linear.onnx")
    workspace = Workspace.create("images", path=folder / "workspace")
    return Image.create(workspace, "linear", Model.register(workspace, folder / "linear.onnx", "linear"))


@pytest.fixture(scope="module")
def layout(made, tmp_path_factory):
    return made.export(tmp_path_factory.mktemp("layout") / "layout")


@pytest.fixture(scope="module")
def bundle(layout, tmp_path_factory):
    """The image as umoci unpacks it for a runtime."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    tool("umoci", "unpack", *rootless, "--image", f"{layout}:latest", folder)
    return folder


def test_the_image_made_again_is_the_same_byte_for_byte(made, layout):
    assert Image.create(made.workspace, "again", made.models).digest == made.digest
    assert f"sha256:{oci.verify(layout).sha256}" == made.digest


def test_skopeo_reads_the_layout_and_the_tar_as_the_same_image(made, layout, tmp_path):
    tar = made.export(tmp_path / "image.tar")
    told = [json.loads(tool("skopeo", "inspect", name)) for name in (f"oci:{layout}:latest", f"oci-archive:{tar}")]
    assert told[0]["Digest"] == told[1]["Digest"] == made.digest
    assert told[0]["Labels"]["io.fpgasim.model"] == "linear:1"
    copied = tmp_path / "copied"
    tool("skopeo", "copy", "--insecure-policy", f"oci-archive:{tar}", f"oci:{copied}:latest")
    assert f"sha256:{oci.verify(copied).sha256}" == made.digest


def test_umoci_unpacks_what_we_unpack(layout, bundle, tmp_path):
    oci.unpack(layout, tmp_path / "ours")

    def files(root):
        return {
            path.relative_to(root).as_posix(): path.stat().st_size
            for path in root.rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    assert files(bundle / "rootfs") == files(tmp_path / "ours")


def test_bubblewrap_serves_the_image_without_network_as_nobody(layout, tmp_path):
    root = tmp_path / "root"
    config = oci.unpack(layout, root).config["config"]
    environment = [part for item in config["Env"] for part in ("--setenv", *item.split("=", 1))]
    uid, gid = config["User"].split(":")
    printed = tool(
        *("bwrap", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
        *("--unshare-all", "--uid", uid, "--gid", gid, "--die-with-parent", "--clearenv", *environment),
        *("/usr/local/bin/python3", "-c", ASK, *config["Entrypoint"], "--host", "127.0.0.1"),
    )
    assert printed == ANSWER


def test_runc_serves_the_image_without_network_as_nobody(layout, bundle):
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    entrypoint = config["process"]["args"]
    assert entrypoint[:2] == ["/usr/local/bin/fpgasim", "serve"]
    assert (config["process"]["user"]["uid"], config["process"]["user"]["gid"]) == (10001, 10001)
    config["process"]["terminal"] = False
    config["process"]["args"] = ["/usr/local/bin/python3", "-c", ASK, *entrypoint, "--host", "127.0.0.1"]
    config["root"]["readonly"] = True
    config["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]})
    path.write_text(json.dumps(config))
    assert {"type": "network"} in config["linux"]["namespaces"]
    printed = tool("runc", "--root", bundle / "state", "run", "--bundle", bundle, f"fpgasim-{os.getpid()}")
    assert printed == ANSWER
