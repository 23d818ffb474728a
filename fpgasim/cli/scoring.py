"""`fpgasim score`: what a service says of a picture, or of arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fpgasim.cli.inputs import parse_feeds
from fpgasim.report.provenance import to_json
from fpgasim.report.text import show, table

if TYPE_CHECKING:
    from fpgasim.service import Reply

_FILE = click.Path(exists=True, dir_okay=False)


@click.command()
@click.argument("address")
@click.option("--image", metavar="FILE", type=_FILE, help="The picture to score: JPEG, PNG, …")
@click.option("--input", "inputs", metavar="NAME=FILE.npy", multiple=True, help="An input as an array.")
@click.option("--input-name", default="images", show_default=True, help="What the service calls the picture.")
@click.option("--output", "outputs", metavar="NAME", multiple=True, help="An output; default: all there are.")
@click.option("--key", metavar="KEY", envvar="FPGASIM_AUTH_KEY", help="A key of the service.")
@click.option("--tls", is_flag=True, help="Speak TLS.")
@click.option("--ca", type=_FILE, metavar="FILE", help="Trust these certificates (PEM), not the system's; means --tls.")
@click.option("--server-name", metavar="NAME", help="What the certificate calls the server, if not ADDRESS.")
@click.option("--client-cert", type=_FILE, metavar="FILE", help="Certificate (PEM) for a server that asks for one.")
@click.option("--client-key", type=_FILE, metavar="FILE", help="Its private key (PEM).")
@click.option("--service-name", default="", metavar="NAME", help="Which service, where one address has several.")
@click.option("--replica", "replicas", metavar="ADDRESS", multiple=True, help="Another server of the same service.")
@click.option("--timeout", default=30.0, show_default=True, metavar="SECONDS", help="For all attempts together.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes to print.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object, with all values.")
def score(
    address: str,
    image: str | None,
    inputs: tuple[str, ...],
    input_name: str,
    outputs: tuple[str, ...],
    key: str | None,
    tls: bool,
    ca: str | None,
    server_name: str | None,
    client_cert: str | None,
    client_key: str | None,
    service_name: str,
    replicas: tuple[str, ...],
    timeout: float,
    top: int,
    json_: bool,
) -> None:
    """Score a picture, or arrays, on the service at ADDRESS, which is HOST:PORT, and print the likeliest classes.

    Other users of this machine see --key in the list of processes; FPGASIM_AUTH_KEY does not show.
    """
    from fpgasim.errors import CallError
    from fpgasim.service import PredictionClient
    from fpgasim.service.calls import picture_input

    if (image is None) == (not inputs):
        raise click.UsageError("Give either --image FILE or --input NAME=FILE.npy.")
    if client_cert is not None and client_key is not None:
        own = (client_cert, client_key)
    elif client_cert is None and client_key is None:
        own = None
    else:
        raise click.UsageError("Give both, --client-cert and --client-key.")
    fed = dict(parse_feeds(inputs)) if image is None else picture_input(image, input_name)
    with PredictionClient(
        address,
        None,
        tls or ca is not None,
        key or "",
        service_name,
        root_certificates=ca,
        server_name=server_name,
        client_certificate=own,
        replicas=replicas,
    ) as client:
        try:
            reply = client.predict(fed, list(outputs), timeout)
        except CallError as error:
            if error.code == "UNAVAILABLE" and not (tls or ca) and _speaks_tls(error.target):
                told = (error.target, error.code, error.details, error.request_id, error.attempts)
                raise CallError(*told, "it speaks TLS: --tls, or --ca FILE, would do") from error
            raise
    if json_:
        click.echo(to_json(_facts(reply, top)))
        return
    for name, array in reply.outputs.items():
        rows = _likeliest(array, top)
        if rows:
            show(table(("class", ">score"), [(row["label"] or row["index"], f"{row['score']:.6f}") for row in rows]))
        else:
            from fpgasim.report.runs import value_range

            show(f"{name}: {array.dtype} {array.shape}{value_range(array)}")


def _speaks_tls(target: str) -> bool:
    """Whether the server that a call went to, the first of several, answers in TLS."""
    from fpgasim.service.tls import speaks_tls

    host, _, port = target.partition(", ")[0].rpartition(":")
    return speaks_tls(host.strip("[]"), int(port))


def _facts(reply: Reply, top: int) -> dict[str, Any]:
    return {
        "outputs": {
            name: {
                "dtype": "string" if array.dtype == object else str(array.dtype),
                "shape": array.shape,
                "classes": _likeliest(array, top),
                "values": _plain(array),
            }
            for name, array in reply.outputs.items()
        },
        "request_id": reply.request_id,
        "server": dict(reply.facts),
    }


def _likeliest(array: Any, top: int) -> list[dict[str, Any]]:
    """The best classes of an output of one picture, best first; [] for another kind of output."""
    import numpy as np

    from fpgasim import zoo
    from fpgasim.report.comparison import classes

    count = classes(array)
    if not count:
        return []
    labels = zoo.labels() if count == 1000 else [None] * count
    scores = array.reshape(-1)
    order = np.argsort(-scores, kind="stable")[:top]
    return [{"index": int(i), "label": labels[i], "score": float(scores[i])} for i in order]


def _plain(array: Any) -> Any:
    """The values in lists; bytes as text."""
    values = array.tolist()
    if array.dtype != object:
        return values

    def text(value: Any) -> Any:
        return [text(one) for one in value] if isinstance(value, list) else value.decode(errors="replace")

    return text(values)
