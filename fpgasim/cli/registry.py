"""`fpgasim model` and `fpgasim convert`: what the registry keeps, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from fpgasim.cli.workspaces import json_option, open_workspace, workspace_option
from fpgasim.errors import InputError
from fpgasim.report.provenance import to_json
from fpgasim.report.text import scaled, show, table

if TYPE_CHECKING:
    from fpgasim.service import Model


@click.group()
def model() -> None:
    """Register models under names and versions, list, fetch and delete them.

    A MODEL is name:version, or a name, whose latest version is meant.
    """


@model.command()
@click.argument("path")
@click.option("--name", required=True, help="What it is to be called; the next version of that name is made.")
@click.option("--tag", "tags", metavar="KEY=VALUE", multiple=True, help="A tag; may be changed later.")
@click.option("--property", "properties", metavar="KEY=VALUE", multiple=True, help="A property; stays as it is.")
@click.option("--description", help="A text.")
@workspace_option
@json_option
def register(
    path: str,
    name: str,
    tags: tuple[str, ...],
    properties: tuple[str, ...],
    description: str | None,
    workspace_: str | None,
    json_: bool,
) -> None:
    """Register the file or folder PATH as the next version of a name."""
    from fpgasim.service import Model

    made = Model.register(
        open_workspace(workspace_),
        path,
        name,
        tags=pairs("--tag", tags),
        properties=pairs("--property", properties),
        description=description,
    )
    _show(made, json_)


@model.command("list")
@click.option("--name", help="Only those of this name.")
@click.option("--tag", "tags", metavar="KEY[=VALUE]", multiple=True, help="Only those with this tag.")
@click.option("--latest", is_flag=True, help="Only the latest version of each name.")
@workspace_option
@json_option
def list_(name: str | None, tags: tuple[str, ...], latest: bool, workspace_: str | None, json_: bool) -> None:
    """List the models, newest version first."""
    from fpgasim.service import Model

    wanted = [tag.split("=", 1) for tag in tags]
    found = Model.list(open_workspace(workspace_), name=name, tags=wanted, latest=latest)
    if json_:
        click.echo(to_json([one.serialize() for one in found]))
        return
    rows = [(m.id, f"{m.created_time:%Y-%m-%d %H:%M}", scaled(m.size, "B"), m.sha256[:12], _tags(m)) for m in found]
    show(table(("model", "created (UTC)", ">size", "SHA-256", "tags"), rows))


@model.command("show")
@click.argument("model_", metavar="MODEL")
@workspace_option
@json_option
def show_(model_: str, workspace_: str | None, json_: bool) -> None:
    """Show all that is known of MODEL."""
    _show(_model(workspace_, model_), json_)


@model.command()
@click.argument("model_", metavar="MODEL")
@click.option("--to", "folder", default=".", show_default=True, help="The folder to write it into.")
@click.option("--exist-ok", is_flag=True, help="Replace files that are there.")
@workspace_option
def download(model_: str, folder: str, exist_ok: bool, workspace_: str | None) -> None:
    """Write the file or folder of MODEL, checked against its hashes, and print where."""
    click.echo(_model(workspace_, model_).download(folder, exist_ok=exist_ok))


@model.command()
@click.argument("model_", metavar="MODEL")
@workspace_option
def delete(model_: str, workspace_: str | None) -> None:
    """Delete one version, which no image or service uses any more."""
    found = _model(workspace_, model_)
    found.delete()
    click.echo(f"deleted {found.id}")


@model.command()
@click.argument("model_", metavar="MODEL")
@click.argument("tags", metavar="[KEY=VALUE]…", nargs=-1)
@click.option("--remove", metavar="KEY", multiple=True, help="Remove a tag.")
@workspace_option
@json_option
def tag(model_: str, tags: tuple[str, ...], remove: tuple[str, ...], workspace_: str | None, json_: bool) -> None:
    """Add tags to MODEL, or replace those of the same keys."""
    found = _model(workspace_, model_)
    if remove:
        found.remove_tags(remove)
    if tags:
        found.add_tags(pairs("tag", tags))
    _show(found, json_)


@click.command()
@click.argument("model_", metavar="MODEL")
@click.option("--input", "inputs", metavar="NAME,…", required=True, help="Tensors to begin at.")
@click.option("--output", "outputs", metavar="NAME,…", required=True, help="Tensors to end at.")
@click.option(
    "--require-fpga/--no-require-fpga",
    default=True,
    help="Fail unless every layer that multiplies is on the FPGA (default), or leave on the CPU what cannot be there.",
)
@click.option("--device", default="bw_a10", show_default=True, help="See `fpgasim devices`; or a .yaml file.")
@click.option("--format", "format_", default="bw_1s5e5m", show_default=True, help="See `fpgasim formats`.")
@click.option("--objective", default="coverage", show_default=True, help="As of `fpgasim partition`.")
@workspace_option
@json_option
def convert(
    model_: str,
    inputs: str,
    outputs: str,
    require_fpga: bool,
    device: str,
    format_: str,
    objective: str,
    workspace_: str | None,
    json_: bool,
) -> None:
    """Plan the registered MODEL for the FPGA and register the result as "<its name>.accelonnx".

    MODEL is an ONNX file, a service definition, or a TensorFlow SavedModel where tf2onnx is installed. Its log goes to
    standard error.
    """
    from fpgasim.service import AccelOnnxConverter

    source = _model(workspace_, model_)
    operation = AccelOnnxConverter.convert_model(
        source.workspace,
        source,
        inputs,
        outputs,
        require_fpga,
        device=device,
        format=format_,
        objective=objective,
    )
    for line in operation.lines():
        click.echo(line, err=True)
    if operation.error is not None:
        raise operation.error
    _show(operation.result, json_)


def _model(workspace_: str | None, name: str) -> Model:
    from fpgasim.service import Model

    workspace = open_workspace(workspace_)
    return Model(workspace, id=name) if ":" in name else Model(workspace, name=name)


def _show(found: Model, json_: bool) -> None:
    facts = found.serialize()
    if json_:
        click.echo(
            to_json({**facts, "files": [{"path": c.path, "sha256": c.sha256, "size": c.size} for c in found.contents]})
        )
        return
    told = {name: value for name, value in facts.items() if value not in (None, [], {})}
    for name in ("tags", "properties"):
        if name in told:
            told[name] = ", ".join(f"{key}={value}" for key, value in facts[name].items())
    told["size"] = scaled(found.size, "B")
    told["files"] = ", ".join(content.path for content in found.contents)
    show(table(("", ""), [(name, ", ".join(v) if isinstance(v, list) else v) for name, v in told.items()]))


def _tags(found: Model) -> str:
    return ", ".join(f"{key}={value}" if value else key for key, value in found.tags.items())


def pairs(option: str, items: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise InputError(f"{option} {item!r}; KEY=VALUE would do")
        pairs[key] = value
    return pairs
