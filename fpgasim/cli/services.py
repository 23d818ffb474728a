"""`fpgasim service`: models that are deployed on this machine."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fpgasim.cli.registry import pairs
from fpgasim.cli.workspaces import json_option, open_workspace, workspace_option
from fpgasim.errors import InputError
from fpgasim.report.provenance import to_json
from fpgasim.report.text import show, table

if TYPE_CHECKING:
    from fpgasim.service import Image, Model, Webservice, Workspace
    from fpgasim.service.tls import Certificate

Command = Callable[..., Any]
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def service() -> None:
    """Deploy registered models behind ports of this machine, change them while they run, and end them.

    Each replica holds one of the workspace's virtual FPGAs, of which FPGASIM_FPGAS says how many there are (4).
    """


def certificate_options(command: Command) -> Command:
    for decorate in (
        click.option("--self-signed", is_flag=True, help="Speak TLS with a certificate that is made for this machine."),
        click.option("--tls-key", type=_FILE, metavar="FILE", help="Its private key in PEM."),
        click.option("--tls-cert", type=_FILE, metavar="FILE", help="Certificate chain in PEM: speak TLS."),
    ):
        command = decorate(command)
    return command


def room_options(command: Command) -> Command:
    for decorate in (
        click.option("--queue", is_flag=True, help="Wait if too few FPGAs are free."),
        click.option("--replace", is_flag=True, help="Stop the oldest services if too few FPGAs are free."),
    ):
        command = decorate(command)
    return command


def wait_options(command: Command) -> Command:
    for decorate in (
        click.option("--timeout", default=600.0, show_default=True, metavar="SECONDS", help="How long to wait for it."),
        click.option("--wait/--no-wait", default=True, help="Return when it answers (default), or at once."),
    ):
        command = decorate(command)
    return command


@service.command()
@click.argument("name")
@click.option("--model", "model_id", metavar="NAME[:VERSION]", help="The registered model.")
@click.option("--image", "image_id", metavar="NAME[:VERSION]", help="An image, whose model it is.")
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(1), help="How many servers.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=0, help="Port of the first replica, others behind it; default: any free ones.")
@certificate_options
@click.option("--auth/--no-auth", default=None, help="Whether calls need a key; default: with TLS they do.")
@click.option("--auth-key", metavar="KEY", envvar="FPGASIM_AUTH_KEY", help="Primary key; default: a new one.")
@click.option("--auth-key2", metavar="KEY", envvar="FPGASIM_AUTH_KEY2", help="Secondary key; default: a new one.")
@click.option("--device", default="bw_a10", show_default=True, help="For models that are not planned yet.")
@click.option("--format", "format_", default="bw_1s5e5m", show_default=True, help="The same.")
@click.option("--pace", default="host", show_default=True, help="hardware: no sooner than the simulated engine.")
@click.option("--tag", "tags", metavar="KEY=VALUE", multiple=True, help="A tag.")
@click.option("--description", help="A text.")
@click.option("--overwrite", is_flag=True, help="Take the place of a service of that name.")
@click.option("--edge", type=click.Path(path_type=Path), metavar="FOLDER", help="Write it there, to be copied and run.")
@room_options
@wait_options
@workspace_option
@json_option
def deploy(
    name: str,
    model_id: str | None,
    image_id: str | None,
    replicas: int,
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    self_signed: bool,
    auth: bool | None,
    auth_key: str | None,
    auth_key2: str | None,
    device: str,
    format_: str,
    pace: str,
    tags: tuple[str, ...],
    description: str | None,
    overwrite: bool,
    edge: Path | None,
    replace: bool,
    queue: bool,
    wait: bool,
    timeout: float,
    workspace_: str | None,
    json_: bool,
) -> None:
    """Deploy a registered model, or that of an image, as the service NAME."""
    from fpgasim.service import DeploymentConfig, EdgeTarget, Webservice

    if (model_id is None) == (image_id is None):
        raise InputError("give either --model or --image")
    workspace = open_workspace(workspace_)
    wanted = DeploymentConfig(
        num_replicas=replicas,
        tags=pairs("--tag", tags),
        description=description,
        certificate=_certificate(tls_cert, tls_key, self_signed, host),
        auth_enabled=auth,
        primary_key=auth_key,
        secondary_key=auth_key2,
        host=host,
        port=port,
        device=device,
        format=format_,
        pace=pace,
    )
    target = None if edge is None else EdgeTarget(edge)
    given = (wanted, target, overwrite)
    if image_id is not None:
        image = _image(workspace, image_id)
        made = Webservice.deploy_from_image(workspace, name, image, *given, replace=replace, queue=queue)
    else:
        model = _model(workspace, str(model_id))
        made = Webservice.deploy_from_model(workspace, name, [model], None, *given, replace=replace, queue=queue)
    if edge is not None:
        facts = {"name": name, "folder": str(made.folder), "model_id": made.model_id, "command": made.command}
        click.echo(to_json(facts) if json_ else f"wrote {name} to {made.folder}; {' '.join(made.command)} serves it")
        return
    _waited(made, wait and not queue, timeout)
    _show(made, json_)


@service.command()
@click.argument("name")
@click.option("--model", "model_id", metavar="NAME[:VERSION]", help="Serve this one; no call is lost.")
@click.option("--image", "image_id", metavar="NAME[:VERSION]", help="Serve that of this image.")
@click.option("--replicas", type=click.IntRange(1), help="How many servers.")
@certificate_options
@click.option("--no-tls", is_flag=True, help="Speak TLS no longer.")
@click.option("--auth/--no-auth", default=None, help="Whether calls need a key.")
@click.option("--tag", "tags", metavar="KEY=VALUE", multiple=True, help="A tag; all together replace those there are.")
@click.option("--description", help="A text.")
@wait_options
@workspace_option
@json_option
def update(
    name: str,
    model_id: str | None,
    image_id: str | None,
    replicas: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    self_signed: bool,
    no_tls: bool,
    auth: bool | None,
    tags: tuple[str, ...],
    description: str | None,
    wait: bool,
    timeout: float,
    workspace_: str | None,
    json_: bool,
) -> None:
    """Change the service NAME while it runs; its ports stay."""
    found = _find(workspace_, name)
    if model_id is not None and image_id is not None:
        raise InputError("--model and --image are both given; one of them would do")
    certificate = _certificate(tls_cert, tls_key, self_signed, found.host)
    if no_tls and certificate is not None:
        raise InputError("--no-tls is given with a certificate; one of them would do")
    found.update(
        image=None if image_id is None else _image(found.workspace, image_id),
        models=None if model_id is None else [_model(found.workspace, model_id)],
        num_replicas=replicas,
        tags=pairs("--tag", tags) if tags else None,
        description=description,
        ssl_enabled=False if no_tls else (None if certificate is None else True),
        ssl_certificate=None if certificate is None else certificate.chain.decode(),
        ssl_key=None if certificate is None else certificate.key.decode(),
        auth_enabled=auth,
    )
    _waited(found, wait, timeout)
    _show(found, json_)


@service.command("list")
@workspace_option
@json_option
def list_(workspace_: str | None, json_: bool) -> None:
    """List the services and how they are."""
    from fpgasim.service import Webservice

    found = Webservice.list(open_workspace(workspace_))
    facts = [one.serialize() for one in found]
    if json_:
        click.echo(to_json(facts))
        return
    rows = [
        (f["name"], f["state"], f["scoring_uri"] or "", f["num_replicas"], f["model_id"], "tls" if f["ssl"] else "")
        for f in facts
    ]
    show(table(("service", "state", "where", ">replicas", "model", ""), rows))


@service.command("show")
@click.argument("name")
@workspace_option
@json_option
def show_(name: str, workspace_: str | None, json_: bool) -> None:
    """Show all that is known of the service NAME but its keys."""
    _show(_find(workspace_, name), json_)


@service.command()
@click.argument("names", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All that should run and do not: after the machine was started anew.")
@room_options
@wait_options
@workspace_option
def start(
    names: tuple[str, ...],
    all_: bool,
    replace: bool,
    queue: bool,
    wait: bool,
    timeout: float,
    workspace_: str | None,
) -> None:
    """Start the services NAMES, which were stopped or whose processes are gone."""
    found = _chosen(workspace_, names, all_)
    if all_:  # those that were stopped on purpose, or wait for their turn, stay so
        found = [one for one in found if one.state not in ("Stopped", "Unschedulable", "Deleting")]
    for one in found:
        one.start(replace=replace, queue=queue)
    for one in found:
        _waited(one, wait and not queue, timeout)
        click.echo(f"{one.name} is {one.state}")


@service.command()
@click.argument("names", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All of them.")
@workspace_option
def stop(names: tuple[str, ...], all_: bool, workspace_: str | None) -> None:
    """Stop the services NAMES, when the calls that are in are answered; `start` brings them back."""
    for one in _chosen(workspace_, names, all_):
        one.stop()
        click.echo(f"{one.name} is {one.state}")


@service.command()
@click.argument("names", nargs=-1, required=True)
@workspace_option
def delete(names: tuple[str, ...], workspace_: str | None) -> None:
    """End the services NAMES, when the calls that are in are answered, and remove them."""
    for one in _chosen(workspace_, names, False):
        one.delete()
        click.echo(f"deleted {one.name}")


@service.command()
@click.argument("name")
@click.option("--lines", default=5000, show_default=True, type=click.IntRange(1), help="The last so many.")
@workspace_option
def logs(name: str, lines: int, workspace_: str | None) -> None:
    """Print what the replicas of NAME have printed ("[0] …"), and what was done with them."""
    click.echo(_find(workspace_, name).get_logs(lines), nl=False)


@service.command()
@click.argument("name")
@workspace_option
@json_option
def keys(name: str, workspace_: str | None, json_: bool) -> None:
    """Print the primary and the secondary key of NAME."""
    _show_keys(_find(workspace_, name), json_)


@service.command("regen-key")
@click.argument("name")
@click.argument("which", type=click.Choice(["primary", "secondary"]))
@click.option("--key", help="The new key; default: a random one.")
@workspace_option
@json_option
def regen_key(name: str, which: str, key: str | None, workspace_: str | None, json_: bool) -> None:
    """Exchange one key of NAME; the other stays in force, and no call is dropped."""
    found = _find(workspace_, name)
    found.regen_key(which, key)
    _show_keys(found, json_)


def _model(workspace: Workspace, name: str) -> Model:
    from fpgasim.service import Model

    return Model(workspace, id=name) if ":" in name else Model(workspace, name=name)


def _image(workspace: Workspace, name: str) -> Image:
    from fpgasim.service import Image

    return Image(workspace, id=name) if ":" in name else Image(workspace, name=name)


def _find(workspace_: str | None, name: str) -> Webservice:
    from fpgasim.service import Webservice

    return Webservice(open_workspace(workspace_), name)


def _chosen(workspace_: str | None, names: Sequence[str], all_: bool) -> list[Webservice]:
    from fpgasim.service import Webservice

    if bool(names) == all_:
        raise InputError("give either the names of services or --all")
    workspace = open_workspace(workspace_)
    return Webservice.list(workspace) if all_ else [Webservice(workspace, name) for name in names]


def _certificate(chain: Path | None, key: Path | None, self_signed: bool, host: str) -> Certificate | None:
    from fpgasim.service import deployments, tls

    if not self_signed:
        given = chain is not None or key is not None
        return deployments.certificate_of(given, chain, key, error=InputError)
    if chain is not None or key is not None:
        raise InputError("--self-signed and --tls-cert are both given; one of them would do")
    own = () if host in ("0.0.0.0", "::") else (host,)
    return tls.self_signed(list(dict.fromkeys(["localhost", "127.0.0.1", socket.gethostname(), *own])))


def _waited(found: Webservice, wait: bool, timeout: float) -> None:
    if wait:
        found.wait_for_deployment(timeout_sec=timeout)


def _show(found: Webservice, json_: bool) -> None:
    facts = found.serialize()
    if json_:
        click.echo(to_json(facts))
        return
    facts["tags"] = ", ".join(f"{key}={value}" for key, value in facts["tags"].items())
    facts["properties"] = ", ".join(f"{key}={value}" for key, value in facts["properties"].items())
    facts["ports"] = ", ".join(map(str, facts["ports"]))
    show(table(("", ""), [(name, value) for name, value in facts.items() if value not in (None, "")]))


def _show_keys(found: Webservice, json_: bool) -> None:
    primary, secondary = found.get_keys()
    if json_:
        click.echo(to_json({"primary": primary, "secondary": secondary}))
        return
    click.echo(f"primary    {primary}\nsecondary  {secondary}")
