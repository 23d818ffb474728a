"""Compute targets of Azure's SDK: here all of them are this machine, so that what was written for a cluster runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fpgasim.errors import WebserviceException
from fpgasim.service.deployments import certificate_of
from fpgasim.service.processes import write_json
from fpgasim.service.tls import Certificate
from fpgasim.service.workspace import Workspace


@dataclass(frozen=True)
class AksProvisioning:
    """What a target is made with: nothing but a certificate has a meaning here."""

    certificate: Certificate | None


class AksCompute:
    """The compute target of that name in `workspace`: this machine. WebserviceException if none was created.

    Services that are deployed to it speak TLS if it was given a certificate.
    """

    provisioning_state = "Succeeded"
    provisioning_errors: None = None
    type = "AKS"

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace, self.name = workspace, name
        facts = _read(workspace).get(name)
        if facts is None:
            raise WebserviceException(f"ComputeTargetNotFound: Compute Target with name {name} not found")
        self.certificate = None if facts["chain"] is None else _certificate(facts)

    @staticmethod
    def provisioning_configuration(
        agent_count: int | None = None,
        vm_size: str | None = None,
        ssl_cname: str | None = None,
        ssl_cert_pem_file: str | os.PathLike[str] | None = None,
        ssl_key_pem_file: str | os.PathLike[str] | None = None,
        location: str | None = None,
        **ignored: Any,
    ) -> AksProvisioning:
        """What to create a target with; size and place of a cluster are accepted and have no meaning here."""
        del agent_count, vm_size, ssl_cname, location, ignored
        given = ssl_cert_pem_file is not None or ssl_key_pem_file is not None
        return AksProvisioning(certificate_of(given, ssl_cert_pem_file, ssl_key_pem_file))

    def wait_for_completion(self, show_output: bool = False) -> None:
        """Returns at once: there is nothing to wait for."""
        if show_output:
            print(self.provisioning_state)

    def delete(self) -> None:
        """Forgets the target; services go on."""
        targets = _read(self.workspace)
        targets.pop(self.name, None)
        _write(self.workspace, targets)


class ComputeTarget(AksCompute):
    """Azure's base class, which creates targets."""

    @staticmethod
    def create(workspace: Workspace, name: str, provisioning_configuration: AksProvisioning) -> AksCompute:
        """The target `name`, ready; WebserviceException if there is one already."""
        targets = _read(workspace)
        if name in targets:
            raise WebserviceException(f"there is a compute target {name!r} already; AksCompute(workspace, name) is it")
        certificate = provisioning_configuration.certificate
        pair = (None, None) if certificate is None else (certificate.chain.decode(), certificate.key.decode())
        _write(workspace, {**targets, name: dict(zip(("chain", "key"), pair, strict=True))})
        return AksCompute(workspace, name)


def _certificate(facts: Mapping[str, str]) -> Certificate:
    return Certificate(facts["chain"].encode(), facts["key"].encode())


def _read(workspace: Workspace) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((workspace.root / "compute.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def _write(workspace: Workspace, targets: Mapping[str, Any]) -> None:
    write_json(workspace.root / "compute.json", targets)
