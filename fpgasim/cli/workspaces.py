"""`fpgasim workspace`, and the option of every command that works in one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fpgasim.report.provenance import to_json
from fpgasim.report.text import scaled, show, table

if TYPE_CHECKING:
    from fpgasim.service import Workspace

Command = Callable[..., Any]


def workspace_option(command: Command) -> Command:
    """The option --workspace, given to the command as `workspace_`."""
    return click.option(
        "--workspace",
        "workspace_",
        metavar="NAME|FOLDER",
        help="Where models, images and services are kept; default: what config.json names, else `fpgasim`.",
    )(command)


def json_option(command: Command) -> Command:
    return click.option("--json", "json_", is_flag=True, help="Print one JSON value.")(command)


def open_workspace(given: str | None) -> Workspace:
    """The workspace of that name or in that folder, which has a / in it; without either the one of `from_config`."""
    from fpgasim.service import Workspace

    if given is None:
        return Workspace.from_config()
    return Workspace.open(given) if os.sep in given or given in (".", "..") else Workspace.get(given)


@click.group()
def workspace() -> None:
    """Make the place where models, images and services are kept, or show it."""


@workspace.command()
@click.argument("name", default="fpgasim")
@click.option("--folder", help="Where; default: one of its NAME in $FPGASIM_WORKSPACES or ~/.fpgasim/workspaces.")
@click.option("--resource-group", help="A word for yourself; nothing depends on it.")
@click.option("--location", help="Another.")
@click.option("--exist-ok", is_flag=True, help="One that is there already is fine.")
@click.option("--write-config", is_flag=True, help="Write ./config.json, so that commands here use it.")
@json_option
def create(
    name: str,
    folder: str | None,
    resource_group: str | None,
    location: str | None,
    exist_ok: bool,
    write_config: bool,
    json_: bool,
) -> None:
    """Make the workspace NAME."""
    from fpgasim.service import Workspace

    made = Workspace.create(name, path=folder, resource_group=resource_group, location=location, exist_ok=exist_ok)
    if write_config:
        made.write_config()
    _show(made, json_)


@workspace.command("show")
@workspace_option
@json_option
def show_(workspace_: str | None, json_: bool) -> None:
    """Show where the workspace is and what is in it."""
    _show(open_workspace(workspace_), json_)


def _show(found: Workspace, json_: bool) -> None:
    store = found.store
    counts = {
        str(kind): int(n) for kind, n in store.read("SELECT kind, count(*) FROM items GROUP BY kind ORDER BY kind")
    }
    (size,) = store.read("SELECT coalesce(sum(size), 0) FROM (SELECT DISTINCT sha256, size FROM contents)")[0]
    facts = {
        "name": found.name,
        "folder": str(found.root.absolute()),
        "resource_group": found.resource_group,
        "location": found.location,
        "subscription_id": found.subscription_id,
    }
    if json_:
        click.echo(to_json({**facts, "items": counts, "bytes": size}))
        return
    there = ", ".join(f"{n} {kind}{'s' * (n != 1)}" for kind, n in counts.items()) or "nothing"
    show(table(("", ""), [*facts.items(), ("holds", f"{there}, {scaled(size, 'B')}")]))
