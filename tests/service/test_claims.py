"""Which service holds an FPGA: the next is refused with its name, takes its place, or waits. No process starts here."""

import json
import re

import pytest

from fpgasim.errors import InputError, WebserviceException, WorkspaceError
from fpgasim.service import (
    AccelContainerImage,
    AksCompute,
    AksWebservice,
    BrainwaveWebservice,
    ComputeTarget,
    DeploymentConfig,
    Image,
    LocalWebservice,
    Model,
    Webservice,
    processes,
    tls,
)
from fpgasim.service.processes import ServiceConfig

from .deploying import registered


@pytest.fixture
def launched(monkeypatch):
    """The folders of services that would be started."""
    found = []
    monkeypatch.setattr(processes, "launch", lambda folder: found.append(folder.name))
    monkeypatch.setenv("FPGASIM_FPGAS", "2")
    return found


@pytest.fixture
def model(workspace, tmp_path, launched):
    return registered(workspace, tmp_path)


def deploy(workspace, name, model, replicas=1, **options):
    return Webservice.deploy_from_model(
        workspace, name, [model], deployment_config=DeploymentConfig(num_replicas=replicas), **options
    )


@pytest.fixture
def image(workspace, tmp_path):
    """Makes an image of a model, with next to nothing beside it."""
    program = tmp_path / "root" / "usr" / "local" / "bin" / "fpgasim"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    config = AccelContainerImage.image_configuration(root=tmp_path / "root")
    return lambda model: Image.create(workspace, "img", [model], config)


def test_a_service_that_finds_no_fpga_names_the_holders(workspace, model, launched):
    deploy(workspace, "one", model, 2)
    with pytest.raises(WebserviceException, match=r"'two' needs 1 FPGA and 0 of 2 are free: service 'one' holds 2 sin"):
        deploy(workspace, "two", model)
    assert [service.name for service in Webservice.list(workspace)] == launched == ["one"]
    with pytest.raises(WebserviceException, match=r"'two' needs 3 FPGAs, one for each replica, and there are 2"):
        deploy(workspace, "two", model, 3, replace=True)


def test_replace_stops_the_oldest_and_no_more_than_needed(workspace, model, launched):
    for name in ("one", "two"):
        deploy(workspace, name, model)
    deploy(workspace, "three", model, replace=True)
    assert launched == ["one", "two", "three"]
    assert [Webservice(workspace, name).state for name in ("one", "two")] == ["Stopped", "Unhealthy"]
    Webservice(workspace, "one").start(replace=True)
    assert Webservice(workspace, "two").state == "Stopped"


def test_a_queue_is_served_in_order_as_fpgas_become_free(workspace, model, launched):
    one = deploy(workspace, "one", model, 2)
    two = deploy(workspace, "two", model, 2, queue=True)
    three = deploy(workspace, "three", model, queue=True)
    assert two.state == three.state == "Unschedulable"
    assert "service 'one' holds 2 since" in two.error
    with pytest.raises(WebserviceException, match="still Unschedulable after 0 s"):
        two.wait_for_deployment(timeout_sec=0)
    one.stop()
    assert launched == ["one", "two"]
    assert three.state == "Unschedulable"
    two.delete()
    assert launched == ["one", "two", "three"]
    one.start(queue=True)
    assert one.state == "Unschedulable"
    three.delete()
    assert launched[-1] == "one"


def test_who_looks_at_a_queued_service_starts_it_if_there_are_fpgas_by_now(workspace, model, launched, monkeypatch):
    deploy(workspace, "one", model, 2)
    two = deploy(workspace, "two", model, queue=True)
    assert two.state == "Unschedulable"
    monkeypatch.setenv("FPGASIM_FPGAS", "3")
    assert two.state == "Unhealthy"  # nothing runs in this test
    assert launched == ["one", "two"]


def test_more_replicas_need_more_fpgas(workspace, model, launched):
    one = deploy(workspace, "one", model)
    deploy(workspace, "two", model)
    with pytest.raises(WebserviceException, match=r"needs 1 FPGA and 0 of 2 are free"):
        one.update(num_replicas=2)
    assert Webservice(workspace, "one").num_replicas == 1
    Webservice(workspace, "two").delete()
    one.update(num_replicas=2)
    assert Webservice(workspace, "one").num_replicas == 2


def test_the_number_of_fpgas_must_be_one(workspace, model, monkeypatch):
    monkeypatch.setenv("FPGASIM_FPGAS", "many")
    with pytest.raises(WorkspaceError, match="FPGASIM_FPGAS='many' must be a whole number"):
        deploy(workspace, "one", model)
    assert Webservice.list(workspace) == []


def test_a_service_goes_before_its_image_and_that_before_its_model(workspace, model, launched, image):
    first = image(model)
    made = Webservice.deploy_from_image(workspace, "one", first)
    assert (made.image_id, made.model_id) == ("img:1", model.id)
    with pytest.raises(WebserviceException, match="DeletionRequired: model linear:1 is used by image img:1"):
        model.delete()
    with pytest.raises(WebserviceException, match="DeletionRequired: image img:1 is used by service one:1"):
        first.delete()
    second = image(registered(workspace, workspace.root / "files", 2.0))
    made.update(image=second)
    assert (made.image_id, made.model_id, made.version) == ("img:2", "linear:2", 2)
    first.delete()
    model.delete()
    made.delete()
    with pytest.raises(WebserviceException, match="WebserviceNotFound: Webservice with name 'one' not found"):
        Webservice(workspace, "one")
    assert not made.folder.exists()


def test_a_name_is_taken_once_unless_it_is_overwritten(workspace, model, launched):
    first = deploy(workspace, "one", model)
    keys = first.get_keys()
    with pytest.raises(WebserviceException, match="there is a service 'one' already"):
        deploy(workspace, "one", model, queue=True)
    second = deploy(workspace, "one", model, overwrite=True)
    assert second.version == 2
    assert second.get_keys() != keys


def test_a_service_is_overwritten_only_by_one_that_gets_its_fpgas(workspace, model, launched):
    one = deploy(workspace, "one", model)
    two = deploy(workspace, "two", model)
    with pytest.raises(WebserviceException, match=r"'one' needs 2 FPGAs and 0 of 2 are free: .* service 'two' holds 1"):
        deploy(workspace, "one", model, 2, overwrite=True)
    assert Webservice(workspace, "one").version == 1
    assert ServiceConfig.read(one.folder).replicas == 1
    deploy(workspace, "one", model, overwrite=True)  # its own is enough
    two.stop()
    assert deploy(workspace, "one", model, 2, overwrite=True).version == 3
    with pytest.raises(WebserviceException, match="service 'one' holds 2"):
        two.start()


def test_a_port_is_of_one_service_at_a_time(workspace, model, launched, monkeypatch):
    monkeypatch.setenv("FPGASIM_FPGAS", "3")

    def at(name, port, host="127.0.0.1", **options):
        config = DeploymentConfig(port=port, host=host)
        return Webservice.deploy_from_model(workspace, name, [model], deployment_config=config, **options)

    one = at("one", 7001)
    for host in ("127.0.0.1", "0.0.0.0"):
        with pytest.raises(WebserviceException, match="'two' cannot have port 7001, which is that of service 'one'"):
            at("two", 7001, host)
    two = at("two", 7001, "127.0.0.2")
    two.delete()
    two = at("two", 7002)
    two.stop()
    one.update(num_replicas=2)
    with pytest.raises(WebserviceException, match="'two' cannot have port 7002, which is that of service 'one'"):
        two.start()
    at("one", 7001, overwrite=True)
    two.start()
    with pytest.raises(WebserviceException, match="'one' cannot have port 7002, which is that of service 'two'"):
        one.update(num_replicas=2)
    assert Webservice(workspace, "one").num_replicas == 1


@pytest.mark.parametrize("name", ["a", "ab", "A-b-c", "1abc", "abc-", "a" * 33, "a/b", "../abc", "", None])
def test_names_that_no_service_can_have_are_refused(workspace, model, launched, name):
    with pytest.raises(InputError, match="of a service must be 3 to 32"):
        deploy(workspace, name, model)
    assert launched == []


def test_what_is_deployed_is_exactly_one_model_that_is_there(workspace, model, launched):
    for models, says in (([], "0 models"), ([model, model], "2 models"), (["linear:7"], "ModelNotFound")):
        with pytest.raises(WebserviceException, match=says):
            Webservice.deploy_from_model(workspace, "one", models)
    assert Webservice.deploy_from_model(workspace, "one", ["linear:1"]).model_id == model.id
    (workspace.root / "saved").mkdir()
    (workspace.root / "saved" / "saved_model.pb").write_bytes(b"x")
    saved = Model.register(workspace, workspace.root / "saved", "saved")
    with pytest.raises(WebserviceException, match="saved:1 cannot be served as it is"):
        Webservice.deploy_from_model(workspace, "two", [saved])
    assert launched == ["one"]
    assert [path.name for path in (workspace.root / "services").iterdir() if path.name != ".locks"] == ["one"]


def test_keys_and_private_keys_are_for_their_owner_alone(workspace, model, launched):
    made = tls.self_signed()
    config = DeploymentConfig(certificate=made, primary_key="a-primary-key")
    service = Webservice.deploy_from_model(workspace, "one", [model], deployment_config=config)
    modes = {path.name: path.stat().st_mode & 0o777 for path in service.folder.iterdir() if path.is_file()}
    assert modes["keys.json"] == modes["server.key"] == 0o600
    assert service.get_keys()[0] == "a-primary-key"
    assert "a-primary-key" not in json.dumps(service.serialize())
    service.regen_key("Secondary", "another-secondary")
    assert service.get_keys() == ("a-primary-key", "another-secondary")
    service.regen_key("primary")
    assert re.fullmatch("[0-9a-f]{32}", service.get_keys()[0])
    for arguments, says in ((("third",), "'Primary' or 'Secondary' would do"), (("primary", "short"), "8 to 512")):
        with pytest.raises(InputError, match=says):
            service.regen_key(*arguments)


def test_services_are_listed_by_tags_and_models(workspace, model, launched):
    config = LocalWebservice.deploy_configuration(tags={"area": "vision", "n": 1}, description="d")
    Webservice.deploy_from_model(workspace, "one", [model], deployment_config=config)
    Webservice.deploy_from_model(workspace, "two", [registered(workspace, workspace.root / "files", 2.0, "other")])

    def found(**wanted):
        return [service.name for service in Webservice.list(workspace, **wanted)]

    assert found(tags={"area": "vision"}) == found(tags=["n"]) == found(tags=[["n", 1]]) == ["one"]
    assert found(model_name="other") == found(model_id="other:1") == ["two"]
    assert found(tags="n") == ["one"]
    assert found(tags={"n": "2"}) == found(image_name="img") == []
    one = Webservice(workspace, "one")
    one.update(tags={"new": "tag"}, properties={"p": "q"})
    assert (one.tags, one.properties, one.description) == ({"new": "tag"}, {"p": "q"}, "d")
    assert json.loads(json.dumps(one.serialize()))["tags"] == {"new": "tag"}
    with pytest.raises(WebserviceException, match="is given nothing to change"):
        one.update()


def test_configurations_are_spelled_and_refused_as_azure_has_it(tmp_path):
    certificate = tls.self_signed()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(certificate.chain)
    key.write_bytes(certificate.key)
    brainwave, aks = BrainwaveWebservice.deploy_configuration, AksWebservice.deploy_configuration
    assert (brainwave().auth_enabled, brainwave().certificate, brainwave().num_replicas) == (None, None, 1)
    secured = brainwave(2, ssl_enabled=True, ssl_cert_pem_file=cert, ssl_key_pem_file=str(key))
    assert (secured.certificate, secured.num_replicas) == (certificate, 2)
    assert aks(cpu_cores=1, num_replicas=3, scoring_timeout_ms=1500, autoscale_enabled=False).deadline_s == 1.5
    assert (aks().auth_enabled, aks(auth_enabled=False).auth_enabled) == (True, False)
    for make, says in (
        (lambda: brainwave(0), "num_replicas=0 must be positive"),
        (lambda: brainwave(ssl_cert_pem_file=cert, ssl_key_pem_file=key), "without ssl_enabled=True"),
        (lambda: brainwave(ssl_enabled=True, ssl_cert_pem_file=cert), "needs both"),
        (lambda: aks(True), "nothing scales by itself"),
    ):
        with pytest.raises(WebserviceException, match=says):
            make()
    with pytest.raises(FileNotFoundError, match="SSL cert or key don't exist"):
        brainwave(ssl_enabled=True, ssl_cert_pem_file=tmp_path / "missing", ssl_key_pem_file=key)
    with pytest.raises(InputError, match="must be PEM"):
        brainwave(ssl_enabled=True, ssl_cert_pem_file=key, ssl_key_pem_file=key)


def test_a_cluster_is_this_machine_and_brings_its_certificate(workspace, model, launched, tmp_path, capsys):
    certificate = tls.self_signed()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(certificate.chain)
    key.write_bytes(certificate.key)
    config = AksCompute.provisioning_configuration(
        agent_count=3, vm_size="Standard_PB6s", ssl_cert_pem_file=cert, ssl_key_pem_file=key, ssl_cname="x"
    )
    target = ComputeTarget.create(workspace=workspace, name="my-aks-9", provisioning_configuration=config)
    target.wait_for_completion(show_output=True)
    assert capsys.readouterr().out == "Succeeded\n"
    assert (target.provisioning_state, target.provisioning_errors) == ("Succeeded", None)
    assert AksCompute(workspace, "my-aks-9").certificate == certificate
    with pytest.raises(WebserviceException, match="'my-aks-9' already"):
        ComputeTarget.create(workspace, "my-aks-9", config)
    service = Webservice.deploy_from_model(
        workspace, "one", [model], None, AksWebservice.deploy_configuration(), deployment_target=target
    )
    assert (service.ssl, service.auth_enabled) == (True, True)
    assert service.server_certificate == certificate.chain
    target.delete()
    with pytest.raises(WebserviceException, match="ComputeTargetNotFound"):
        AksCompute(workspace, "my-aks-9")


def test_an_update_that_was_cut_short_comes_through_with_the_next_start(workspace, model, launched):
    service = deploy(workspace, "one", model)
    before = ServiceConfig.read(service.folder)
    service.update(models=[registered(workspace, workspace.root / "files", 2.0)], num_replicas=2)
    before.write(service.folder)  # killed before this was written
    service.start()
    after = ServiceConfig.read(service.folder)
    assert (after.model_version, after.replicas, after.revision) == (2, 2, before.revision + 1)


def test_a_deletion_that_was_cut_short_can_be_done_again(workspace, model, launched):
    service = deploy(workspace, "one", model)
    service._change(phase="deleting")
    assert service.state == "Deleting"
    with pytest.raises(WebserviceException, match="is being deleted"):
        service.start()
    for path in sorted(service.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    service.folder.rmdir()
    Webservice(workspace, "one").delete()
    assert Webservice.list(workspace) == []
    assert deploy(workspace, "one", model).version == 2
