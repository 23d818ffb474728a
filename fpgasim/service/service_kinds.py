"""`AksWebservice`, `BrainwaveWebservice`, `LocalWebservice`: the ways in which Azure's SDKs say what to deploy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fpgasim.errors import WebserviceException
from fpgasim.service.deployments import DeploymentConfig, certificate_of, texts
from fpgasim.service.webservices import Webservice


class AksWebservice(Webservice):
    """A service with Azure's defaults of 2019: it asks for keys unless told otherwise."""

    @staticmethod
    def deploy_configuration(
        autoscale_enabled: bool | None = None,
        *,
        num_replicas: int | None = None,
        auth_enabled: bool = True,
        primary_key: str | None = None,
        secondary_key: str | None = None,
        scoring_timeout_ms: int = 60_000,
        replica_max_concurrent_requests: int | None = None,
        tags: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
        description: str | None = None,
        **ignored: Any,
    ) -> DeploymentConfig:
        """What to deploy with. Arguments that size a cluster are accepted and have no meaning here.

        Raises WebserviceException for `autoscale_enabled`: there are as many replicas as `num_replicas` says.
        """
        del ignored
        if autoscale_enabled:
            raise WebserviceException("autoscale_enabled=True: nothing scales by itself here; num_replicas would do")
        more: dict[str, Any] = {}
        if replica_max_concurrent_requests is not None:
            more["max_concurrent"] = replica_max_concurrent_requests
        return DeploymentConfig(
            "aks",
            1 if num_replicas is None else num_replicas,
            **texts({"tags": tags or {}, "properties": properties or {}, "description": description}),
            auth_enabled=auth_enabled,
            primary_key=primary_key,
            secondary_key=secondary_key,
            deadline_s=scoring_timeout_ms / 1000,
            **more,
        )


class BrainwaveWebservice(Webservice):
    """A service with Azure's defaults of 2018: it asks for keys where it speaks TLS."""

    @staticmethod
    def deploy_configuration(
        num_replicas: int | None = None,
        tags: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
        description: str | None = None,
        ssl_enabled: bool = False,
        ssl_cert_pem_file: str | os.PathLike[str] | None = None,
        ssl_key_pem_file: str | os.PathLike[str] | None = None,
    ) -> DeploymentConfig:
        """What to deploy with; errors as Azure's."""
        return LocalWebservice.deploy_configuration(
            num_replicas, tags, properties, description, ssl_enabled, ssl_cert_pem_file, ssl_key_pem_file,
            flavor="brainwave",
        )  # fmt: skip


class LocalWebservice(Webservice):
    """A service with all that a deployment on this machine can be told."""

    @staticmethod
    def deploy_configuration(
        num_replicas: int | None = None,
        tags: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
        description: str | None = None,
        ssl_enabled: bool = False,
        ssl_cert_pem_file: str | os.PathLike[str] | None = None,
        ssl_key_pem_file: str | os.PathLike[str] | None = None,
        **more: Any,
    ) -> DeploymentConfig:
        """What to deploy with; `more` are further fields of DeploymentConfig.

        Raises WebserviceException for replicas that are not positive and for a certificate without `ssl_enabled` or the
        other way round, FileNotFoundError for PEM files that are not there.
        """
        return DeploymentConfig(
            num_replicas=1 if num_replicas is None else num_replicas,
            **texts({"tags": tags or {}, "properties": properties or {}, "description": description}),
            certificate=certificate_of(ssl_enabled, ssl_cert_pem_file, ssl_key_pem_file),
            **more,
        )
