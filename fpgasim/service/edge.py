"""`EdgeTarget`: a service as a folder to copy to another machine, where `fpgasim serve` runs it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fpgasim.errors import WebserviceException
from fpgasim.service import auth, processes

if TYPE_CHECKING:
    from fpgasim.service.deployments import DeploymentConfig
    from fpgasim.service.registry import Model

SCRIPT = "run.sh"
_PORT = 50051


@dataclass(frozen=True)
class EdgeService:
    """A service that was written to `folder`; `run.sh` in it serves the model, wherever the folder is."""

    name: str
    folder: Path
    model_id: str
    ssl: bool
    auth_enabled: bool

    @property
    def command(self) -> list[str]:
        """What starts it."""
        return ["sh", str(self.folder / SCRIPT)]

    def get_keys(self) -> tuple[str, str]:
        """The primary and the secondary key."""
        primary, secondary = auth.read_keys(self.folder / processes.KEYS)
        return primary, secondary or primary


class EdgeTarget:
    """The folder `folder`, which is not there yet or empty, as a place to deploy to.

    A service that is deployed to it is written there, whole: model, keys, certificate and `run.sh`. It depends on this
    machine's registry no longer and holds none of its FPGAs.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def write(self, name: str, model: Model, wanted: DeploymentConfig) -> EdgeService:
        """Writes the service `name` of `model`. WebserviceException for a folder that holds something already."""
        from fpgasim.service.deployments import write_service

        if self.folder.exists():
            if not self.folder.is_dir() or any(self.folder.iterdir()):
                raise WebserviceException(f"{str(self.folder)!r} is not empty; another folder would do")
            self.folder.rmdir()
        config = wanted.service_config(name, model)
        write_service(self.folder, config, wanted, model)
        script = self.folder / SCRIPT
        port = wanted.port or _PORT
        arguments = shlex.join([*config.served_model(), *config.serve()])
        script.write_text(
            "#!/bin/sh\n"
            f"# Serves {model.id} on this machine: ./run.sh, or HOST=127.0.0.1 PORT={port} ./run.sh\n"
            "# It needs fpgasim with its extra: pip install 'fpgasim[serve]'\n"
            'cd "$(dirname "$0")" || exit 1\n'
            f'exec fpgasim serve --host "${{HOST:-0.0.0.0}}" --port "${{PORT:-{port}}}" {arguments} "$@"\n'
        )
        script.chmod(0o755)
        return EdgeService(name, self.folder, model.id, config.tls, config.auth)
