"""`DeploymentClient`: models and services as Azure's first SDK for FPGAs (2018) had them, by ids."""

from __future__ import annotations

import os
from collections.abc import Iterator

from fpgasim.errors import InputError
from fpgasim.service.deployments import DeploymentConfig, certificate_of
from fpgasim.service.registry import Model
from fpgasim.service.webservices import Webservice
from fpgasim.service.workspace import Workspace

Pem = str | os.PathLike[str] | None


class Service(Webservice):
    """A service as DeploymentClient gives it: its `id` is its name, and its keys come along."""

    @property
    def id(self) -> str:
        return self.name

    @property
    def primary_key(self) -> str:
        return self.get_keys()[0]

    @property
    def secondary_key(self) -> str:
        return self.get_keys()[1]


class DeploymentClient:
    """Registers models and deploys services in `workspace`, by default the one of `Workspace.from_config`.

    The words of an account are accepted and have no meaning here. Keys are asked for where TLS is on.
    """

    def __init__(
        self,
        subscription_id: str | None = None,
        resource_group: str | None = None,
        model_management_account: str | None = None,
        location: str | None = None,
        service_principal_params: object = None,
        *,
        workspace: Workspace | None = None,
    ) -> None:
        del subscription_id, resource_group, model_management_account, location, service_principal_params
        self.workspace = Workspace.from_config() if workspace is None else workspace

    def register_model(self, model_name: str, service_def: str | os.PathLike[str]) -> str:
        """The id, "name:version", of the file `service_def` as the next version of that name."""
        return Model.register(self.workspace, service_def, model_name).id

    def create_service(
        self,
        service_name: str,
        model_id: str,
        ssl_enabled: bool = False,
        ssl_certificate: Pem = None,
        ssl_key: Pem = None,
        primary_key: str | None = None,
        secondary_key: str | None = None,
    ) -> Service:
        """The service of that name, once it answers: ipAddress, port, primary_key, secondary_key.

        Certificate and key are PEM texts or paths. Raises InputError (a ValueError) for TLS without both,
        WebserviceException where it cannot be, or does not start.
        """
        wanted = DeploymentConfig(
            certificate=certificate_of(ssl_enabled, ssl_certificate, ssl_key, error=InputError),
            primary_key=primary_key,
            secondary_key=secondary_key,
        )
        made: Service = Service.deploy_from_model(self.workspace, service_name, [model_id], None, wanted)
        made.wait_for_deployment()
        return made

    def update_service(
        self,
        service_id: str,
        model_id: str | None = None,
        ssl_enabled: bool | None = None,
        ssl_certificate: Pem = None,
        ssl_key: Pem = None,
    ) -> Service:
        """The service with another model, another certificate, or TLS turned on or off, once that has come through."""
        found = self.get_service_by_id(service_id)
        found.update(
            models=None if model_id is None else [model_id],
            ssl_enabled=ssl_enabled,
            ssl_certificate=ssl_certificate,
            ssl_key=ssl_key,
        )
        found.wait_for_deployment()
        return found

    def list_models(self) -> Iterator[Model]:
        """The registered models, newest version first."""
        yield from Model.list(self.workspace)

    def list_services(self) -> Iterator[Service]:
        """The services, by name."""
        yield from Service.list(self.workspace)

    def get_service_by_id(self, service_id: str) -> Service:
        """The service with that id. Raises WebserviceException if there is none."""
        return Service(self.workspace, service_id)

    def get_service_by_name(self, service_name: str) -> Service | None:
        """The service of that name, or None."""
        return next(iter(self.get_services_by_name(service_name)), None)

    def get_services_by_name(self, service_name: str) -> list[Service]:
        """The one service of that name in a list, or none."""
        return [service for service in Service.list(self.workspace) if service.name == service_name]

    def delete_service(self, service_id: str) -> None:
        """Ends and removes the service."""
        self.get_service_by_id(service_id).delete()

    def delete_model(self, model_id: str) -> None:
        """Removes the model, which no service may use any more."""
        Model(self.workspace, id=model_id).delete()

    def get_auth_keys(self, service_id: str) -> dict[str, str]:
        """{"primaryKey": …, "secondaryKey": …}"""
        primary, secondary = self.get_service_by_id(service_id).get_keys()
        return {"primaryKey": primary, "secondaryKey": secondary}

    def regenerate_auth_keys(self, service_id: str, key_type: str | None = None) -> dict[str, str]:
        """The keys, after the `Primary`, the `Secondary` or (None) both have been made anew."""
        found = self.get_service_by_id(service_id)
        for name in ("Primary", "Secondary") if key_type is None else (str(key_type),):
            found.regen_key(name)
        return self.get_auth_keys(service_id)
