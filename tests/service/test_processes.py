"""The watcher of a service: replicas that are killed come back, a hopeless model does not, nothing outlives its end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from fpgasim.errors import FpgasimError, WebserviceException
from fpgasim.service import DeploymentConfig, Model, Webservice, client_from_service, processes
from fpgasim.service.processes import Process, ServiceConfig, Status

from .deploying import PATIENCE_S, X, answer, cleaned, processes as running, registered


@pytest.fixture
def workspace(workspace):
    with cleaned(workspace):
        yield workspace


def ended(process):
    """Waits for the end of a process that may have ended already."""
    assert process.wait(PATIENCE_S)


def test_a_process_is_told_from_a_later_one_of_its_number():
    own = Process.of(os.getpid())
    assert own.alive
    assert not Process(own.pid, f"{own.started}0").alive
    assert not Process(own.pid, "of another boot").signal(signal.SIGKILL)


def test_the_end_of_a_process_is_seen_before_anybody_has_taken_note_of_it():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = Process.of(child.pid)
        assert not process.wait(0)
        child.stdin.close()
        ended(process)  # a zombie, since nobody has asked for its exit code
        assert not process.alive
    assert Process.of(child.pid) is None
    assert process.wait(0)


def test_a_configuration_is_what_was_written_and_says_what_to_serve(tmp_path):
    config = ServiceConfig("svc", "net", 3, replicas=2, tls=True, auth=True)
    config.write(tmp_path)
    assert ServiceConfig.read(tmp_path) == config
    assert config.served_model() == ["models/net/3", "--name", "net", "--model-version", "3"]
    assert config.serve()[-6:] == ["--tls-cert", "server.pem", "--tls-key", "server.key", "--keys-file", "keys.json"]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WebserviceException, match="cannot be read"):
        ServiceConfig.read(tmp_path)
    with pytest.raises(WebserviceException, match="cannot be started"):
        processes.launch(tmp_path)


def test_logs_are_read_over_the_place_where_they_were_put_aside(tmp_path):
    assert processes.log_lines(tmp_path, 5) == []
    (tmp_path / "log.1.txt").write_text("a\nb\n")
    (tmp_path / "log.txt").write_bytes(b"c\n\xff\n")
    assert processes.log_lines(tmp_path, 3) == ["b", "c", "\ufffd"]


@pytest.mark.slow
def test_replicas_come_back_and_end_with_their_watcher_and_the_service_with_its_start(workspace, tmp_path):
    model = registered(workspace, tmp_path)
    service = Webservice.deploy_from_model(
        workspace, "svc", [model], deployment_config=DeploymentConfig(num_replicas=2, auth_enabled=True)
    )
    service.wait_for_deployment(timeout_sec=PATIENCE_S)
    ports = list(service.ports)
    assert len(set(ports)) == 2

    with calling_all_the_time(service) as (scores, failures):
        victim = Status.read(service.folder).replicas[0].process
        victim.signal(signal.SIGKILL)
        ended(victim)
        assert until(lambda: service.state == "Healthy" and len(scores) > 50)
    assert not failures
    assert all((score == answer(1.0)).all() for score in scores)
    status = Status.read(service.folder)
    assert [replica.restarts for replica in status.replicas] == [1, 0]
    assert service.ports == ports

    with pytest.raises(WebserviceException, match="runs already"):
        processes.launch(service.folder)
    left = running(service)
    assert len(left) == 3
    status.watcher.signal(signal.SIGKILL)
    for process in left:
        ended(process)
    assert (service.state, service.error) == ("Unhealthy", "its processes do not run; start() brings them back")
    with pytest.raises(WebserviceException, match="is Unhealthy"):
        service.run({"x": X})

    again = Webservice(workspace, "svc")  # as after a start of the machine
    again.start()
    again.wait_for_deployment(timeout_sec=PATIENCE_S)
    assert again.ports == ports
    assert (again.run({"x": X}) == answer(1.0)).all()
    again.update(num_replicas=1)
    again.wait_for_deployment(timeout_sec=PATIENCE_S)
    assert again.ports == ports[:1]
    left = running(again)
    again.delete()
    assert not any(process.alive for process in left)


@pytest.mark.slow
def test_a_model_that_cannot_be_served_fails_once_and_says_why(workspace, tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    service = Webservice.deploy_from_model(
        workspace, "svc", [Model.register(workspace, tmp_path / "junk.onnx", "junk")]
    )
    with pytest.raises(WebserviceException, match=r"'svc' is Failed: replica 0: .* is not a whole ONNX model"):
        service.wait_for_deployment(timeout_sec=PATIENCE_S)
    log = service.get_logs()
    assert log.count("starts replica 0") == 1
    assert "ended with exit code 6; no start would help" in log
    service.update(models=[registered(workspace, tmp_path)])
    service.wait_for_deployment(timeout_sec=PATIENCE_S)
    assert (service.run(X) == answer(1.0)).all()


@pytest.mark.slow
def test_an_update_reaches_replicas_that_start_that_are_down_and_a_hung_one_is_started_again(workspace, tmp_path):
    first, second = registered(workspace, tmp_path), registered(workspace, tmp_path, 2.0)
    service = Webservice.deploy_from_model(
        workspace, "svc", [first], deployment_config=DeploymentConfig(unresponsive_s=6.0)
    )
    service.update(models=[second])  # it is starting
    service.wait_for_deployment(timeout_sec=PATIENCE_S)
    assert (service.run(X) == answer(2.0)).all()

    Status.read(service.folder).replicas[0].process.signal(signal.SIGKILL)
    service.update(models=[first])  # it is down, or about to be started
    service.wait_for_deployment(timeout_sec=PATIENCE_S)
    assert (service.run(X) == answer(1.0)).all()
    assert [path.name for path in (service.folder / "models" / "linear").iterdir()] == ["1"]

    hung = Status.read(service.folder).replicas[0].process
    hung.signal(signal.SIGSTOP)
    ended(hung)
    assert until(lambda: service.state == "Healthy")
    hung = Status.read(service.folder).replicas[0].process
    hung.signal(signal.SIGSTOP)
    service.update(models=[second])  # found out before it is asked to load
    assert not hung.alive
    assert until(lambda: service.state == "Healthy")
    assert (service.run(X) == answer(2.0)).all()
    assert "replica 0 is killed: it did not answer for 6 s" in service.get_logs()


@pytest.mark.slow
def test_a_port_that_another_has_is_given_up_with_the_reason_and_had_later(workspace, tmp_path, monkeypatch):
    change_the_watcher(monkeypatch, "watcher.MOST_STARTS = 2")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = Webservice.deploy_from_model(
            workspace, "svc", [registered(workspace, tmp_path)], deployment_config=DeploymentConfig(port=port)
        )
        says = rf"'svc' is Failed: replica 0: port {port} of .* cannot be had; .*; given up after 2 starts"
        with pytest.raises(WebserviceException, match=says):
            service.wait_for_deployment(timeout_sec=PATIENCE_S)
    service.start()
    service.wait_for_deployment(timeout_sec=PATIENCE_S)
    assert (service.port, service.run(X).tolist()) == (port, answer(1.0).tolist())


@pytest.mark.slow
def test_a_replica_that_cannot_be_asked_starts_anew_and_an_overwritten_one_ends(workspace, tmp_path, monkeypatch):
    change_the_watcher(
        monkeypatch,
        """
def nobody(address, config):
    raise replicas.NoAnswer("nobody is there")

replicas.load_model, watcher._ASK_AGAIN_S = nobody, 0.01
""",
    )
    first, second = registered(workspace, tmp_path), registered(workspace, tmp_path, 2.0)
    service = Webservice.deploy_from_model(workspace, "svc", [first])
    service.wait_for_deployment(timeout_sec=PATIENCE_S)
    service.update(models=[second])
    service.wait_for_deployment(timeout_sec=PATIENCE_S)
    assert (service.run(X) == answer(2.0)).all()
    assert service.get_logs().count("nobody is there") == 5

    former = running(service)
    with pytest.raises(WebserviceException, match="needs 5 FPGAs, one for each replica, and there are 4"):
        Webservice.deploy_from_model(
            workspace, "svc", [first], deployment_config=DeploymentConfig(num_replicas=5), overwrite=True
        )
    assert (service.run(X) == answer(2.0)).all()
    successor = Webservice.deploy_from_model(workspace, "svc", [first], overwrite=True)
    assert not any(process.alive for process in former)
    successor.wait_for_deployment(timeout_sec=PATIENCE_S)
    assert (successor.run(X) == answer(1.0)).all()
    assert len(running(successor)) == 2


def change_the_watcher(monkeypatch, code):
    """From here on watchers run `code` before they begin."""
    code = f"from fpgasim.service import replicas, watcher\n{code}\nwatcher.main()"
    monkeypatch.setattr(
        processes, "launch", lambda folder: subprocess.run([sys.executable, "-c", code, folder], check=True)
    )


def until(holds):
    """Whether `holds()` comes true in time."""
    end = time.monotonic() + PATIENCE_S
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return holds()


@contextlib.contextmanager
def calling_all_the_time(service):
    """What comes of calls by the client that is shipped, one after another, and those that failed."""
    scores, failures, stop = [], [], threading.Event()

    def call():
        with client_from_service(service) as client:
            while not stop.is_set():
                try:
                    scores.append(client.score_numpy_arrays({"x": X}))
                except FpgasimError as error:
                    failures.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield scores, failures
    finally:
        stop.set()
        thread.join(PATIENCE_S)
