"""`fpgasim image`: registered models as container images."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fpgasim.cli.registry import pairs
from fpgasim.cli.workspaces import json_option, open_workspace, workspace_option
from fpgasim.report.provenance import to_json
from fpgasim.report.text import scaled, show, table

if TYPE_CHECKING:
    from fpgasim.service import Image


@click.group()
def image() -> None:
    """Pack registered models as container images, without an engine; list, export, run and delete them.

    An IMAGE is name:version, or a name, whose latest version is meant.
    """


@image.command()
@click.argument("name")
@click.argument("model")
@click.option("--tag", "tags", metavar="KEY=VALUE", multiple=True, help="A tag to find it by.")
@click.option("--property", "properties", metavar="KEY=VALUE", multiple=True, help="A property.")
@click.option("--description", help="A text.")
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="A root filesystem with /usr/local/bin/fpgasim; default: this Python and its packages.",
)
@workspace_option
@json_option
def create(
    name: str,
    model: str,
    tags: tuple[str, ...],
    properties: tuple[str, ...],
    description: str | None,
    root: Path | None,
    workspace_: str | None,
    json_: bool,
) -> None:
    """Make the next version of the image NAME of MODEL, a registered model: name:version or a name."""
    from fpgasim.service import AccelContainerImage, Image, Model

    workspace = open_workspace(workspace_)
    served = Model(workspace, id=model) if ":" in model else Model(workspace, name=model)
    config = AccelContainerImage.image_configuration(
        pairs("--tag", tags), pairs("--property", properties), description, root=root
    )
    made = Image.create(workspace, name, served, config)
    click.echo(made.build_log, err=True, nl=False)
    _show(made, json_)


@image.command("list")
@click.option("--name", help="Only those of this name.")
@click.option("--model", help="Only those of this model: name:version or a name.")
@click.option("--tag", "tags", metavar="KEY[=VALUE]", multiple=True, help="Only those with this tag.")
@workspace_option
@json_option
def list_(name: str | None, model: str | None, tags: tuple[str, ...], workspace_: str | None, json_: bool) -> None:
    """List the images, newest version first."""
    from fpgasim.service import Image

    model_id = model if model is not None and ":" in model else None
    found = Image.list(
        open_workspace(workspace_),
        name,
        model_name=model if model_id is None else None,
        model_id=model_id,
        tags=[tag.split("=", 1) for tag in tags],
    )
    if json_:
        click.echo(to_json([one.serialize() for one in found]))
        return
    rows = [
        (i.id, ", ".join(i.model_ids), f"{i.created_time:%Y-%m-%d %H:%M}", scaled(i.size, "B"), i.digest[7:19])
        for i in found
    ]
    show(table(("image", "models", "created (UTC)", ">size", "digest"), rows))


@image.command("show")
@click.argument("image_", metavar="IMAGE")
@click.option("--dockerfile", is_flag=True, help="Print its Dockerfile, for the folder that export writes.")
@workspace_option
@json_option
def show_(image_: str, dockerfile: bool, workspace_: str | None, json_: bool) -> None:
    """Show all that is known of IMAGE."""
    found = _image(workspace_, image_)
    if dockerfile:
        click.echo(found.generated_dockerfile, nl=False)
    else:
        _show(found, json_)


@image.command()
@click.argument("image_", metavar="IMAGE")
@click.argument("target", type=click.Path(path_type=Path))
@workspace_option
def export(image_: str, target: Path, workspace_: str | None) -> None:
    """Write IMAGE to TARGET, one tar if it ends with .tar, else an OCI layout in a folder, and print where.

    \b
    skopeo copy oci-archive:TARGET.tar docker-daemon:NAME:TAG
    docker build -t NAME:TAG TARGET
    """
    click.echo(_image(workspace_, image_).export(target))


@image.command()
@click.argument("image_", metavar="IMAGE|PATH")
@workspace_option
@json_option
def verify(image_: str, workspace_: str | None, json_: bool) -> None:
    """Check every hash of IMAGE, or of the layout folder or tar at PATH if there is one."""
    from fpgasim.service import oci

    path = Path(image_)
    found = oci.verify(path) if path.exists() else _image(workspace_, image_).verify()
    layers = [{"digest": f"sha256:{layer.sha256}", "size": layer.size} for layer in found.layers]
    if json_:
        click.echo(to_json({"digest": f"sha256:{found.sha256}", "layers": layers}))
        return
    click.echo(f"sound: sha256:{found.sha256}, {len(layers)} layers")


@image.command()
@click.argument("image_", metavar="IMAGE")
@click.option("--port", default=50051, show_default=True, help="Port of gRPC; 0 takes a free one.")
@workspace_option
def run(image_: str, port: int, workspace_: str | None) -> None:
    """Serve what is in IMAGE on this machine until SIGTERM or Ctrl-C, and print where."""
    found = _image(workspace_, image_)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with found.run(port) as running:
        click.echo(f"SERVING {found.id} on {running.address}")
        sys.stdout.flush()
        while not stop.wait(0.2):
            running.check()


@image.command()
@click.argument("image_", metavar="IMAGE")
@workspace_option
def delete(image_: str, workspace_: str | None) -> None:
    """Delete one version, which no service uses any more."""
    found = _image(workspace_, image_)
    found.delete()
    click.echo(f"deleted {found.id}")


def _image(workspace_: str | None, name: str) -> Image:
    from fpgasim.service import Image

    workspace = open_workspace(workspace_)
    return Image(workspace, id=name) if ":" in name else Image(workspace, name=name)


def _show(found: Image, json_: bool) -> None:
    facts = found.serialize()
    if json_:
        click.echo(to_json(facts))
        return
    told = {name: value for name, value in facts.items() if value not in (None, [], {})}
    for name in ("tags", "properties"):
        if name in told:
            told[name] = ", ".join(f"{key}={value}" for key, value in facts[name].items())
    told["size"] = scaled(found.size, "B")
    show(table(("", ""), [(name, ", ".join(v) if isinstance(v, list) else v) for name, v in told.items()]))
