"""Services that run: what they answer; models, keys and TLS exchanged under way; folders that run elsewhere."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from fpgasim.cli import main
from fpgasim.errors import FpgasimError, InputError, NoAnswer, WebserviceException
from fpgasim.service import (
    AksWebservice,
    DeploymentClient,
    DeploymentConfig,
    EdgeTarget,
    PredictionClient,
    Webservice,
    client_from_service,
    processes,
    replicas,
    rollout,
    tls,
)
from fpgasim.service.servables import servable

from . import calling, small
from .deploying import PATIENCE_S, X, answer, cleaned, pictures, processes as running, registered

pytestmark = pytest.mark.slow
DEVICE = Path(__file__).parents[2] / "docs" / "examples" / "mine.yaml"


@pytest.fixture
def workspace(workspace):
    with cleaned(workspace):
        yield workspace


def deployed(workspace, name, model, **config):
    service = Webservice.deploy_from_model(workspace, name, [model], deployment_config=DeploymentConfig(**config))
    service.wait_for_deployment(timeout_sec=PATIENCE_S)
    return service


def test_a_picture_is_scored_by_its_path_its_bytes_and_its_file_even_one_opened_as_text(workspace, tmp_path, capsys):
    model = pictures(workspace, tmp_path)
    service = Webservice.deploy_from_model(workspace, "pictures", [model], object())
    service.wait_for_deployment(True, PATIENCE_S)
    assert re.fullmatch("(Transitioning: .*\n)*Healthy\n", capsys.readouterr().out)
    picture = tmp_path / "picture.png"
    picture.write_bytes(small.picture())
    expected = servable(tmp_path / "service_def.zip").run({"images": small.strings(small.picture())}).outputs
    with picture.open("rb") as file, picture.open() as text:
        for given in (picture, str(picture), small.picture(), file, text):
            assert (service.run(given) == expected["output_alias"][0]).all()
    with pytest.raises(InputError, match="a picture is a int"):
        service.run(3)
    assert service.scoring_uri == f"127.0.0.1:{service.port}"
    assert (service.ip_address, service.ipAddress, service.error) == ("127.0.0.1", "127.0.0.1", None)
    assert json.loads(json.dumps(service.serialize()))["state"] == "Healthy"
    left = running(service)
    with pytest.raises(WebserviceException, match="DeletionRequired: model pictures:1 is used by service pictures:1"):
        model.delete()
    service.delete()
    assert not any(process.alive for process in left)
    model.delete()


def test_models_keys_and_certificates_are_exchanged_under_load_with_no_call_lost_and_none_answered_wrong(
    workspace, tmp_path
):
    certificate = tls.self_signed()
    service = deployed(workspace, "svc", registered(workspace, tmp_path), certificate=certificate, flavor="aks")
    assert service.scoring_uri == f"https://127.0.0.1:{service.port}/api/v1/service/svc/score"
    primary, secondary = service.get_keys()
    second = registered(workspace, tmp_path, 2.0)
    scores, failures, stop = [], [], threading.Event()

    def call():
        credentials = grpc.ssl_channel_credentials(certificate.chain)
        with grpc.secure_channel(f"localhost:{service.port}", credentials) as channel:
            predict = calling.stub(channel, "Predict")
            while not stop.is_set():
                try:
                    reply = predict(calling.request(x=X), timeout=60, metadata=calling.bearer(secondary))
                    scores.append((reply.model_spec.version.value, calling.arrays(reply)["y"]))
                except grpc.RpcError as error:
                    failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        service.update(models=[second])
        service.regen_key("Primary", "a-new-primary-key")
        renewed = tls.self_signed()
        service.update(ssl_certificate=renewed.chain.decode(), ssl_key=renewed.key.decode())
        service.wait_for_deployment(timeout_sec=PATIENCE_S)
        with client_from_service(service) as client:  # the new key and the new certificate
            assert (client.score_numpy_arrays({"x": X}) == answer(2.0)).all()
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not failures
    assert all((score == answer(version)).all() for version, score in scores)
    assert {version for version, _ in scores} == {1, 2}
    with (
        PredictionClient("127.0.0.1", service.port, True, primary, root_certificates=renewed.chain) as client,
        pytest.raises(FpgasimError, match="UNAUTHENTICATED"),
    ):
        client.score_numpy_arrays({"x": X})

    (tmp_path / "junk.onnx").write_bytes(b"junk")
    junk = type(second).register(workspace, tmp_path / "junk.onnx", "linear")
    with pytest.raises(WebserviceException, match="is not a whole ONNX model"):
        service.update(models=[junk])
    service.wait_for_deployment(timeout_sec=PATIENCE_S)
    assert (service.model_id, service.run(X).tolist()) == ("linear:2", answer(2.0).tolist())
    junk.delete()
    ours = rollout.addresses(service.folder)[0]  # with a key: not even who has one chooses what is served
    for caller in (ours, dataclasses.replace(ours, key=None)):
        with pytest.raises(NoAnswer, match="UNAUTHENTICATED"):
            replicas.load_model(caller, processes.ServiceConfig("svc", "linear", 2))
    assert service.state == "Healthy"


def test_a_running_service_goes_over_to_tls_with_keys_at_its_port_and_back(workspace, tmp_path):
    service = deployed(workspace, "svc", registered(workspace, tmp_path))
    port, certificate = service.port, tls.self_signed()
    assert (service.ssl, service.auth_enabled, service.server_certificate) == (False, False, None)
    with pytest.raises(ValueError, match="needs both"):
        service.update(ssl_enabled=True, ssl_certificate=certificate.chain.decode())
    service.update(ssl_enabled=True, ssl_certificate=certificate.chain.decode(), ssl_key=certificate.key.decode())
    service.wait_for_deployment(timeout_sec=PATIENCE_S)
    assert (service.port, service.ssl, service.auth_enabled) == (port, True, True)
    assert (service.run(X) == answer(1.0)).all()
    with (
        PredictionClient("localhost", port, True, root_certificates=certificate.chain) as client,
        pytest.raises(FpgasimError, match="UNAUTHENTICATED"),
    ):
        client.score_numpy_arrays({"x": X})
    service.update(ssl_enabled=False)
    service.wait_for_deployment(timeout_sec=PATIENCE_S)
    assert (service.port, service.ssl, service.auth_enabled) == (port, False, False)
    assert (service.run(X) == answer(1.0)).all()


def test_the_client_of_2018_creates_updates_and_deletes_a_service(workspace, tmp_path):
    client = DeploymentClient("subscription", "group", "account", "eastus2", workspace=workspace)
    certificate = tls.self_signed()
    cert, key = certificate.chain.decode(), certificate.key.decode()
    model_id = client.register_model("linear", calling.linear(tmp_path / "linear.onnx"))
    with pytest.raises(ValueError, match="needs both"):
        client.create_service("quickstart-service", model_id, ssl_enabled=True)
    service = client.create_service("quickstart-service", model_id, ssl_enabled=True, ssl_certificate=cert, ssl_key=key)
    assert client.get_auth_keys(service.id) == {
        "primaryKey": service.primary_key,
        "secondaryKey": service.secondary_key,
    }
    for access_token in (service.primary_key, service.secondary_key):
        with PredictionClient(
            service.ipAddress, service.port, use_ssl=True, access_token=access_token,
            root_certificates=certificate.chain,
        ) as scoring:  # fmt: skip
            assert (scoring.score_numpy_array(X) == answer(1.0)).all()
    assert [found.name for found in client.list_services()] == ["quickstart-service"]
    assert [found.id for found in client.list_models()] == [model_id]
    old = service.get_keys()
    assert set(client.regenerate_auth_keys(service.id).values()).isdisjoint(old)
    assert client.get_service_by_name("another") is None
    client.delete_service(client.get_service_by_name("quickstart-service").id)
    client.delete_model(model_id)
    assert not [*client.list_services(), *client.list_models()]


def test_a_folder_for_the_edge_runs_by_its_script_wherever_it_is(workspace, tmp_path):
    config = AksWebservice.deploy_configuration()
    made = Webservice.deploy_from_model(
        workspace, "edge", [registered(workspace, tmp_path)], None, config, EdgeTarget(tmp_path / "edge")
    )
    assert Webservice.list(workspace) == []
    with pytest.raises(WebserviceException, match="is not empty"):
        Webservice.deploy_from_model(workspace, "edge", ["linear:1"], None, config, EdgeTarget(tmp_path / "edge"))
    elsewhere = made.folder.rename(tmp_path / "elsewhere")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [elsewhere / "run.sh"],
        env={**os.environ, "PATH": path, "HOST": "127.0.0.1", "PORT": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(re.match(r"SERVING linear on 127\.0\.0\.1:(\d+) \(plain, key\)", process.stdout.readline())[1])
        key = json.loads((elsewhere / processes.KEYS).read_text())["secondary"]
        with PredictionClient("127.0.0.1", port, access_token=key, service_name="edge") as client:
            assert (client.score_numpy_array(X) == answer(1.0)).all()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()


def test_services_are_deployed_shown_changed_and_ended_from_the_command_line(workspace, tmp_path):
    def fpgasim(*arguments, fails=0):
        found = CliRunner().invoke(main, ["service", *arguments, "--workspace", f"{workspace.root}/"])
        assert found.exit_code == fails, found.output
        return found.output

    model = registered(workspace, tmp_path)
    options = ("--auth", "--tag", "a=b", "--device", str(DEVICE), "--json")
    made = json.loads(fpgasim("deploy", "svc", "--model", "linear", *options))
    assert (made["state"], made["model_id"], made["auth_enabled"], made["tags"]) == (
        "Healthy", model.id, True, {"a": "b"},
    )  # fmt: skip
    assert "is there a service" not in fpgasim("show", "svc")
    assert json.loads(fpgasim("list", "--json"))[0]["port"] == made["port"]
    assert re.search(r"svc +Healthy +127", fpgasim("list"))
    keys = json.loads(fpgasim("keys", "svc", "--json"))
    changed = json.loads(fpgasim("regen-key", "svc", "secondary", "--key", "my-own-key", "--json"))
    assert changed == {"primary": keys["primary"], "secondary": "my-own-key"}
    assert "SERVING linear" in fpgasim("logs", "svc", "--lines", "5")
    registered(workspace, tmp_path, 2.0)
    assert json.loads(fpgasim("update", "svc", "--model", "linear:2", "--json"))["model_id"] == "linear:2"
    assert (Webservice(workspace, "svc").run(np.float64(X)) == answer(2.0)).all()
    watcher = running(Webservice(workspace, "svc"))[0]
    watcher.signal(signal.SIGKILL)
    assert watcher.wait(PATIENCE_S)
    assert fpgasim("start", "--all") == "svc is Healthy\n"
    assert "give either" in fpgasim("stop", fails=4)
    assert fpgasim("stop", "svc") == "svc is Stopped\n"
    assert fpgasim("start", "--all") == ""  # it was stopped on purpose
    assert "linear:2 is used" in fpgasim_error(workspace, "model", "delete", "linear:2")
    assert fpgasim("delete", "svc") == "deleted svc\n"
    assert json.loads(fpgasim("list", "--json")) == []
    assert "WebserviceNotFound" in fpgasim("show", "svc", fails=14)


def fpgasim_error(workspace, *arguments):
    found = CliRunner().invoke(main, [*arguments, "--workspace", f"{workspace.root}/"])
    assert found.exit_code == 14, found.output
    return found.output
