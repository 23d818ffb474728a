"""Clients that others wrote, unmodified, and those of docs/examples/clients, on servers as a user starts them."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: Client program -> the environment it runs in.
PROGRAMS = {
    "tensorflow_serving_stubs": "then",
    "azure_accel": "then",
    "azure_brainwave": "then",
    "triton": "today",
}
REFUSED = re.compile(r"no key, or a wrong one|UNAUTHENTICATED|Unauthenticated", re.IGNORECASE)


def run(command, **more):
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, env=environment, **more)


def best(done):
    """The (class, score) pairs that a client printed."""
    assert done.returncode == 0, done.stderr
    return [(int(line.split("\t")[0]), line.split("\t")[1]) for line in done.stdout.splitlines()]


def options(service, key, dash="--"):
    return [
        *([f"{dash}ca", service.ca] if service.ca else []),
        *([f"{dash}key", key] if key else []),
    ]


def keys_of(service):
    return service.keys or ("",)


def program(clients, name, service, image, key):
    python = clients / PROGRAMS[name] / "bin/python"
    return run([python, HERE / "programs" / f"{name}.py", service.address, image, *options(service, key)])


def node(clients, service, image, key):
    protos = ["--protos", ROOT / "fpgasim/service/protos"]
    command = ["node", clients / "node/score.js", service.address, image, *protos, *options(service, key)]
    return run([*command, "--labels", ROOT / "fpgasim/zoo/imagenet_labels.txt"])


def go(clients, service, image, key):
    labels = ["-labels", ROOT / "fpgasim/zoo/imagenet_labels.txt"]
    return run([clients / "score", *options(service, key, "-"), *labels, service.address, image])


@pytest.mark.parametrize("name", ["tensorflow_serving_stubs", "azure_accel", "triton"])
def test_clients_of_others_score_with_either_key(clients, service, image, expected, name):
    for key in keys_of(service):
        assert best(program(clients, name, service, image, key)) == expected


@pytest.mark.parametrize("name", ["tensorflow_serving_stubs", "triton"])
@pytest.mark.parametrize("key", ["", "not-the-key"])
def test_clients_of_others_are_refused_without_a_key(clients, locked_service, image, name, key):
    done = program(clients, name, locked_service, image, key)
    assert done.returncode
    assert not done.stdout
    assert REFUSED.search(done.stderr)


def test_the_client_of_2018_scores_where_no_key_is_asked_for(clients, open_service, image, expected):
    assert best(program(clients, "azure_brainwave", open_service, image, "")) == expected


def test_the_client_of_2018_never_sends_its_key_and_is_told_the_requests_that_failed(clients, locked_service, image):
    done = program(clients, "azure_brainwave", locked_service, image, locked_service.keys[0])
    assert done.returncode
    assert len(re.findall(r"<[0-9A-F]{32}>", done.stderr)) == 5


@pytest.mark.parametrize("client", [node, go])
def test_our_clients_in_other_languages_print_the_best_classes(clients, service, image, expected, client):
    labels = (ROOT / "fpgasim/zoo/imagenet_labels.txt").read_text(encoding="utf-8").splitlines()
    for key in keys_of(service):
        done = client(clients, service, image, key)
        assert best(done) == expected
        assert [line.split("\t")[2] for line in done.stdout.splitlines()] == [labels[i] for i, _ in expected]


@pytest.mark.parametrize("client", [node, go])
def test_our_clients_in_other_languages_say_why_they_are_refused(clients, locked_service, image, client):
    done = client(clients, locked_service, image, "")
    assert done.returncode == 1
    assert re.search(r"answers UNAUTHENTICATED: no key, .* \(request [0-9a-f]{32}\)", done.stderr, re.IGNORECASE)


def test_the_command_scores(service, image, expected):
    for key in keys_of(service):
        command = [sys.executable, "-c", "from fpgasim.cli import main; main()", "score", service.address]
        done = run([*command, "--image", image, "--json", *options(service, key)])
        assert done.returncode == 0, done.stderr
        classes = json.loads(done.stdout)["outputs"]["output_alias"]["classes"]
        assert [(row["index"], f"{row['score']:.6f}") for row in classes] == expected


def by_reflection(clients, service, key, method="", data=None):
    """protodial, which knows nothing of our messages but what the server tells it, and is called as grpcurl is; without
    a method it lists the services."""
    trust = ["--cacert", service.ca] if service.ca else []
    header = ["-H", f"authorization: Bearer {key}"] if key else []
    sent = ["-d", f"@{data}"] if data else []
    url = f"{'grpcs' if service.ca else 'grpc'}://{service.address}{method}"
    return run([clients / "today/bin/protodial", *([] if method else ["list"]), *trust, *header, *sent, url])


def test_a_client_that_knows_no_message_finds_them_by_reflection(clients, service, image, expected, tmp_path):
    picture = base64.b64encode(image.read_bytes()).decode()
    tensor = {"dtype": "DT_STRING", "tensorShape": {"dim": [{"size": "1"}]}, "stringVal": [picture]}
    asked = tmp_path / "request.json"
    asked.write_text(json.dumps({"inputs": {"images": tensor}}))
    for key in keys_of(service):
        listed = by_reflection(clients, service, key)
        assert "tensorflow.serving.PredictionService" in listed.stdout, listed.stderr
        done = by_reflection(clients, service, key, "/tensorflow.serving.PredictionService/Predict", asked)
        assert done.returncode == 0, done.stderr
        scores = json.loads(done.stdout)["outputs"]["output_alias"]["floatVal"]
        order = sorted(range(1000), key=lambda i: -scores[i])[:5]
        assert [(i, f"{scores[i]:.6f}") for i in order] == expected


def test_nothing_is_told_by_reflection_without_a_key(clients, locked_service):
    done = by_reflection(clients, locked_service, "")
    assert done.returncode
    assert "PredictionService" not in done.stdout + done.stderr
