"""Servers of a small pipeline (`fpgasim serve`), one in the clear and one with TLS and a key, and what they answer."""

import contextlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.service import CpuStage, FpgaStage, ModelDefinition

from ..service.small import PICTURES, featurizer, model, picture, strings

KEY, KEY2 = "primary-key-1", "secondary-key-2"
SERVE = (sys.executable, "-c", "from fpgasim.cli import main; main()", "serve")


@dataclass(frozen=True)
class Service:
    """Where a server is, the certificate to trust (None: no TLS) and its keys (): none."""

    address: str
    ca: Path | None = None
    keys: tuple[str, ...] = ()


@pytest.fixture(scope="session")
def clients():
    """The folder that install.sh has filled."""
    return Path(os.environ["FPGASIM_CLIENTS"]).resolve()


@pytest.fixture(scope="session")
def definition(tmp_path_factory):
    """Pictures of any size to the probabilities of 1000 classes."""
    weights = ", ".join(f"{((i * 37) % 4001 - 2000) / 400:.4f}" for i in range(4000))
    classifier = model(f"""classifier (float[N, 4, 1, 1] features) => (float[N, 1000] probabilities)
        <float[4, 1000] w = {{{weights}}}> {{
            f = Flatten (features)
            l = MatMul (f, w)
            probabilities = Softmax <axis = 1> (l)
        }}""")
    made = ModelDefinition("pictures")
    made.pipeline += [
        CpuStage(PICTURES, output="tensors:0"),
        FpgaStage(featurizer(), name="features", layout="NHWC"),
        CpuStage(fs.load(classifier), layout="NHWC", name="classes"),
    ]
    path = tmp_path_factory.mktemp("definition") / "service_def.zip"
    made.save(path)
    return path


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    path.write_bytes(picture(3))
    return path


@pytest.fixture(scope="session")
def expected(definition, image):
    """The five best classes, (index, score), as they are printed."""
    servable = ModelDefinition.load(definition).servable()
    (scores,) = servable.run({"images": strings(image.read_bytes())}).outputs["output_alias"]
    best = np.argsort(-scores, kind="stable")[:5]
    assert scores[best[4]] - np.sort(scores)[-6] > 1e-3  # no ties to break
    return [(int(i), f"{scores[i]:.6f}") for i in best]


@contextlib.contextmanager
def serving(definition, *options, **keys):
    """A server process; the host and port it says."""
    command = [*SERVE, str(definition), "--port", "0", "--name", "pictures", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **keys}) as process:
        try:
            line = process.stdout.readline()
            yield "localhost:" + re.match(r"SERVING pictures on 127\.0\.0\.1:(\d+) ", line)[1]
        finally:
            process.terminate()
            assert process.wait(40) == 0


@pytest.fixture(scope="session")
def open_service(definition):
    with serving(definition) as address:
        yield Service(address)


@pytest.fixture(scope="session")
def locked_service(definition, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    keys = {"FPGASIM_AUTH_KEY": KEY, "FPGASIM_AUTH_KEY2": KEY2}
    with serving(definition, "--self-signed", str(folder), **keys) as address:
        yield Service(address, folder / "server.pem", (KEY, KEY2))


@pytest.fixture(params=["open", "locked"])
def service(request):
    return request.getfixturevalue(f"{request.param}_service")
