"""Services in a workspace's database: what they use, and which of them hold its FPGAs and ports.

A workspace has `$FPGASIM_FPGAS` virtual FPGAs, 4 unless said. Each replica holds one for as long as its service is
deployed and not stopped, whether it runs at the moment or not. A service that finds too few free is refused with the
names of those that hold them, or stops the oldest of these (`replace`), or waits for its turn (`queue`). Ports are held
by the services that hold FPGAs or wait for them.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpgasim.errors import WebserviceException, WorkspaceError
from fpgasim.service import processes
from fpgasim.service.deployments import DeploymentConfig
from fpgasim.service.registry import Model, add_item, next_version
from fpgasim.service.workspace import Workspace

KIND = "service"
#: How many FPGAs a workspace has.
FPGAS, DEFAULT_FPGAS = "FPGASIM_FPGAS", 4
#: Phases of a service: the first two hold FPGAs, the third waits for them, the fourth has none.
RUNNING, DELETING, QUEUED, STOPPED = "running", "deleting", "queued", "stopped"
Uses = list[tuple[str, str, int]]
_EVERYWHERE = {"0.0.0.0", "::"}


def add(
    workspace: Workspace,
    name: str,
    model: Model,
    image: Any,
    wanted: DeploymentConfig,
    staged: Path,
    *,
    replace: bool = False,
    queue: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Adds the service and puts its folder `staged` in place, once it may have its FPGAs, or its place in the queue.

    What comes back is empty then; else the services that must stop first, one of that name to be overwritten among
    them: from then on it is being deleted, and what it holds is its successor's. WebserviceException, which changes
    nothing, for a name or port that is taken and, without `replace` and `queue`, for too few FPGAs.
    """
    with workspace.store.transaction() as connection:
        former = row(workspace, name)
        if former is not None and not overwrite:
            raise WebserviceException(
                f"there is a service {name!r} already; update changes it, overwrite=True replaces it"
            )
        others = in_the_way(connection, wanted.num_replicas, name, may_wait=replace or queue)
        ports = range(wanted.port, wanted.port + wanted.num_replicas) if wanted.port else ()
        check_ports(workspace, connection, name, wanted.host, ports, without=() if queue else others)
        if others and not queue:
            return others
        if former is not None:
            if processes.runs(folder(workspace, name)):
                held = sum(holder.fpgas for holder in holders(connection) if holder.name == name)
                facts = {**json.loads(former["facts"]), "phase": DELETING}
                facts["replicas"] = held if others else max(held, wanted.num_replicas)
                query = "UPDATE items SET facts = ? WHERE kind = ? AND name = ?"
                connection.execute(query, (json.dumps(facts), KIND, name))
                return [name]
            connection.execute("DELETE FROM items WHERE kind = ? AND name = ?", (KIND, name))
        time = now()
        facts = {
            "tags": dict(wanted.tags),
            "properties": dict(wanted.properties),
            "description": wanted.description,
            "flavor": wanted.flavor,
            "host": wanted.host,
            "port": wanted.port,
            "replicas": wanted.num_replicas,
            "phase": QUEUED if others else RUNNING,
            "since": time,
            "created_time": time,
            "updated_time": time,
            "model_id": model.id,
            "image_id": image_id(image),
        }
        version = next_version(connection, KIND, name)
        add_item(connection, KIND, name, version, facts, uses=uses(model, image))
        shutil.rmtree(folder(workspace, name), ignore_errors=True)  # of the former, or a deletion that was cut short
        os.rename(staged, folder(workspace, name))
    return []


def row(workspace: Workspace, name: str) -> sqlite3.Row | None:
    """The service of that name, if there is one."""
    query = "SELECT * FROM items WHERE kind = ? AND name = ? ORDER BY version DESC"
    return next(iter(workspace.store.read(query, KIND, name)), None)


def names(workspace: Workspace) -> list[str]:
    """The services of the workspace, sorted."""
    rows = workspace.store.read("SELECT DISTINCT name FROM items WHERE kind = ? ORDER BY name", KIND)
    return [found["name"] for found in rows]


def folder(workspace: Workspace, name: str) -> Path:
    """Where the files of the service `name` are."""
    return workspace.root.resolve() / "services" / name


def uses(model: Model, image: Any) -> Uses:
    """What a service uses, and so keeps from being deleted."""
    return [("model", model.name, model.version) if image is None else ("image", image.name, image.version)]


def used(facts: Mapping[str, Any]) -> Uses:
    """The same, of a service that is there."""
    kind, id_ = ("model", facts["model_id"]) if facts["image_id"] is None else ("image", facts["image_id"])
    name, _, version = id_.rpartition(":")
    return [(kind, name, int(version))]


def image_id(image: Any) -> str | None:
    return None if image is None else f"{image.name}:{image.version}"


@dataclass(frozen=True)
class Holder:
    """A service that holds `fpgas` FPGAs since then."""

    name: str
    fpgas: int
    since: str

    def __str__(self) -> str:
        return f"service {self.name!r} holds {self.fpgas} since {self.since[:19].replace('T', ' ')}"


def fpgas() -> int:
    """How many FPGAs a workspace has; WorkspaceError for a FPGASIM_FPGAS that is no number from 1."""
    given = os.environ.get(FPGAS) or str(DEFAULT_FPGAS)
    if not given.isascii() or not given.isdecimal() or int(given) < 1:
        raise WorkspaceError(f"{FPGAS}={given!r} must be a whole number from 1")
    return int(given)


def holders(connection: sqlite3.Connection) -> list[Holder]:
    """Who holds FPGAs, the oldest first."""
    found = [
        Holder(row["name"], facts["replicas"], facts["since"])
        for row, facts in _services(connection)
        if facts["phase"] in (RUNNING, DELETING)
    ]
    return sorted(found, key=lambda holder: holder.since)


def queued(connection: sqlite3.Connection) -> list[str]:
    """The services that wait, in the order of their turns."""
    waiting = [(facts["since"], row["name"]) for row, facts in _services(connection) if facts["phase"] == QUEUED]
    return [name for _, name in sorted(waiting)]


def free(connection: sqlite3.Connection) -> int:
    """How many FPGAs nobody holds."""
    return fpgas() - sum(holder.fpgas for holder in holders(connection))


def in_the_way(connection: sqlite3.Connection, wanted: int, name: str, *, may_wait: bool) -> list[str]:
    """The oldest services that must stop so that `wanted` FPGAs are free for `name`, those it holds included; none if
    they are. If it may not wait for that, WebserviceException says who holds them.
    """
    others, found = [holder for holder in holders(connection) if holder.name != name], []
    lacking = wanted - fpgas() + sum(holder.fpgas for holder in others)
    for holder in others:
        if lacking > 0:
            found.append(holder.name)
            lacking -= holder.fpgas
    if found and not may_wait:
        raise WebserviceException(no_room(connection, wanted, name))
    return found


def no_room(connection: sqlite3.Connection, wanted: int, name: str) -> str:
    """Why `wanted` more FPGAs cannot be had for `name`, by whom, and what would do."""
    who = "; ".join(str(holder) for holder in holders(connection))
    left, total = free(connection), fpgas()
    return (
        f"service {name!r} needs {wanted} FPGA{'s' if wanted > 1 else ''} and {left} of {total} "
        f"{'is' if left == 1 else 'are'} free: {who}; replace=True stops the oldest, queue=True waits, "
        f"and {FPGAS} says how many there are"
    )


def check_ports(
    workspace: Workspace,
    connection: sqlite3.Connection,
    name: str,
    host: str,
    ports: Sequence[int],
    without: Sequence[str] = (),
) -> None:
    """WebserviceException where one of `ports`, which `name` asks for, is another service's, `without` those."""
    for other, facts in _services(connection):
        if not ports or other["name"] in (name, *without) or facts["phase"] == STOPPED:
            continue
        theirs = fixed_ports(facts) or processes.ports(folder(workspace, other["name"]))
        both = sorted(set(ports) & set(theirs))
        if both and (host == facts["host"] or {host, facts["host"]} & _EVERYWHERE):
            raise WebserviceException(
                f"service {name!r} cannot have port {both[0]}, which is that of service {other['name']!r}; another "
                "port, or port 0 for any that is free, would do"
            )


def fixed_ports(facts: Mapping[str, Any]) -> Sequence[int]:
    """The ports that a service must have; none if any would do."""
    return range(facts["port"], facts["port"] + facts["replicas"]) if facts["port"] else ()


def check_total(wanted: int, name: str) -> None:
    """WebserviceException where there will never be `wanted` FPGAs."""
    if wanted > fpgas():
        raise WebserviceException(
            f"service {name!r} needs {wanted} FPGAs, one for each replica, and there are {fpgas()}; "
            f"fewer replicas or a larger {FPGAS} would do"
        )


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()


def _services(connection: sqlite3.Connection) -> list[tuple[sqlite3.Row, dict[str, Any]]]:
    rows = connection.execute("SELECT name, facts FROM items WHERE kind = ?", (KIND,)).fetchall()
    return [(row, json.loads(row["facts"])) for row in rows]
