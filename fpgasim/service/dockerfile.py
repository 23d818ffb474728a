"""The Dockerfile of an image, for those who have a container engine: it makes the same image of the same layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def generated(layers: Sequence[tuple[str, str]], config: Mapping[str, Any]) -> str:
    """The Dockerfile that adds `layers` (what each is, its path in the layout) to nothing and has that OCI `config`.

    Its context is the folder that `Image.export` writes. ADD unpacks a tar, compressed or not, whatever its name.
    """
    lines = [
        "# docker build -t NAME FOLDER, where FOLDER is the image as `fpgasim image export` wrote it",
        "FROM scratch",
    ]
    for what, path in layers:
        lines += [f"# {what}", f"ADD {path} /"]
    lines += [f"ENV {name}={_quoted(value)}" for name, value in (item.split("=", 1) for item in config["Env"])]
    lines += [f"LABEL {name}={_quoted(value)}" for name, value in config["Labels"].items()]
    lines += [f"EXPOSE {port}" for port in config["ExposedPorts"]]
    lines += [
        f"WORKDIR {config['WorkingDir']}",
        f"USER {config['User']}",
        f"STOPSIGNAL {config['StopSignal']}",
        f"ENTRYPOINT {json.dumps(config['Entrypoint'])}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    """The value as a word of a Dockerfile: one line, nothing expanded."""
    for special in ("\\", '"', "$"):
        value = value.replace(special, f"\\{special}")
    return '"' + " ".join(value.splitlines()) + '"'
