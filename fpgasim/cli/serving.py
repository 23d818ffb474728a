"""`fpgasim serve`: a model behind a port."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fpgasim.service import Servable

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=50051, show_default=True, help="Port of gRPC; 0 takes a free one.")
@click.option("--rest-port", type=int, help="Port of REST; none unless given.")
@click.option("--metrics-port", type=int, help="Port of /metrics alone, which the REST port has too.")
@click.option("--tls-cert", type=_FILE, metavar="FILE", help="Certificate chain in PEM: speak TLS.")
@click.option("--tls-key", type=_FILE, metavar="FILE", help="Its private key in PEM.")
@click.option("--client-ca", type=_FILE, metavar="FILE", help="Only callers with a certificate of this CA.")
@click.option(
    "--self-signed",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Speak TLS with FOLDER/server.pem and server.key, made there if they are not.",
)
@click.option("--auth-key", metavar="KEY", envvar="FPGASIM_AUTH_KEY", help="Primary key: calls need it, or the other.")
@click.option("--auth-key2", metavar="KEY", envvar="FPGASIM_AUTH_KEY2", help="Secondary key.")
@click.option("--keys-file", type=_FILE, metavar="FILE", help='{"primary": …, "secondary": …}; followed as it changes.')
@click.option("--device", default="bw_a10", show_default=True, help="See `fpgasim devices`; or a .yaml file.")
@click.option("--format", "format_", default="bw_1s5e5m", show_default=True, help="See `fpgasim formats`.")
@click.option("--name", help="What it is called; default: after the model.")
@click.option("--model-version", default=1, show_default=True, type=click.IntRange(1), help="Its version.")
@click.option("--service", help="Another name of the whole, as the route of Azure's clients says it.")
@click.option("--weights", metavar="FILE", help="A network's checkpoint, or `pretrained`; without one, random weights.")
@click.option("--seed", default=0, show_default=True, help="Of random weights.")
@click.option("--objective", default="coverage", show_default=True, help="Of the placement; see `fpgasim partition`.")
@click.option("--pace", default="host", show_default=True, help="hardware: no sooner than the simulated engine.")
@click.option("--max-message-bytes", default=64 << 20, show_default=True, help="Largest message.")
@click.option("--max-pixels", default=50_000_000, show_default=True, help="All pictures of a call, decoded.")
@click.option("--max-batch", default=64, show_default=True, help="Pictures of a call, encoded or as tensors.")
@click.option("--max-concurrent", default=4, show_default=True, help="Calls that run at a time.")
@click.option("--max-queue", default=60, show_default=True, help="Calls that wait; more are refused at once.")
@click.option("--deadline", default=60.0, show_default=True, metavar="SECONDS", help="Longest time of any call.")
@click.option("--grace", default=30.0, show_default=True, metavar="SECONDS", help="For calls that are in, at the end.")
@click.option("--both-names", is_flag=True, help="Answer under aliases and tensor names at once.")
@click.option("--no-reflection", is_flag=True, help="Do not tell the protocol's messages to those who ask.")
@click.option(
    "--model-root", type=click.Path(path_type=Path), metavar="FOLDER", help="Load models from here by a call."
)
@click.option("--reload-key", metavar="KEY", envvar="FPGASIM_RELOAD_KEY", help="Such calls need this key instead.")
@click.option("--audit-log", type=_FILE, metavar="FILE", help="Refused keys, REST handshakes; default: standard error.")
def serve(
    model: str,
    host: str,
    port: int,
    rest_port: int | None,
    metrics_port: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    client_ca: Path | None,
    self_signed: Path | None,
    auth_key: str | None,
    auth_key2: str | None,
    keys_file: Path | None,
    device: str,
    format_: str,
    name: str | None,
    model_version: int,
    service: str | None,
    weights: str | None,
    seed: int,
    objective: Any,
    pace: Any,
    max_message_bytes: int,
    max_pixels: int,
    max_batch: int,
    max_concurrent: int,
    max_queue: int,
    deadline: float,
    grace: float,
    both_names: bool,
    no_reflection: bool,
    model_root: Path | None,
    reload_key: str | None,
    audit_log: Path | None,
) -> None:
    """Serve MODEL, a network's name, an ONNX file, a plan or a service_def.zip, to clients of TensorFlow Serving.

    Prints one line that begins with SERVING once it answers. SIGTERM ends it when the calls that are in are answered;
    SIGHUP has it read keys and certificates anew, which it also does by itself.

    Other users of this machine see --auth-key in the list of processes. FPGASIM_AUTH_KEY, FPGASIM_AUTH_KEY2 and
    --keys-file do not show.
    """
    from fpgasim.cli.inputs import checkpoint_of
    from fpgasim.errors import InputError
    from fpgasim.service import Server, ServerConfig, servable
    from fpgasim.service.server import keep_memory

    keep_memory()
    _log_to(audit_log)
    if self_signed is not None:
        if tls_cert is not None or tls_key is not None:
            raise InputError("--self-signed and --tls-cert are both given; one of them would do")
        tls_cert, tls_key = _self_signed(self_signed, host)
    if auth_key is None and auth_key2 is not None:
        raise InputError("--auth-key2 is given without --auth-key; give that too")
    config = ServerConfig(
        host=host,
        port=port,
        rest_port=rest_port,
        metrics_port=metrics_port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        client_ca=client_ca,
        auth_keys=None if auth_key is None else (auth_key, auth_key2),
        keys_file=keys_file,
        max_message_bytes=max_message_bytes,
        max_pixels=max_pixels,
        max_batch=max_batch,
        max_concurrent=max_concurrent,
        max_queue=max_queue,
        deadline_s=deadline,
        pace=pace,
        both_names=both_names,
        reflection=not no_reflection,
        service=service,
        model_root=model_root,
        reload_key=reload_key,
    )

    def load(source: str | Path, name: str | None, version: int = 1, **weights: Any) -> Servable:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_: click.echo(f"fpgasim: warning: {message}", err=True)
            return servable(
                source, name=name, version=version, device=device, format=format_, objective=objective, **weights
            )

    server = Server({}, config, load)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))  # nothing has been let in yet
    signal.signal(signal.SIGHUP, lambda *_: server.refresh())
    server.start()
    made = load(model, name, model_version, weights=checkpoint_of(model, weights), seed=seed)
    server.replace(made.name, made)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    more = "".join(f", {name} on {address}" for name, address in server.http.items())
    click.echo(f"SERVING {made.name} on {server.address} ({', '.join(server.facts)}){more}")
    sys.stdout.flush()
    # of two signals that come at once a thread of gRPC may take one, which does not wake this one
    while not stop.wait(0.5):
        pass
    server.drain(grace)


def _log_to(audit_log: Path | None) -> None:
    """The service's log on standard error, and refused keys in `audit_log` or there too."""
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("fpgasim").addHandler(shown)
    if audit_log is not None:
        audits = logging.getLogger("fpgasim.audit")
        audits.addHandler(logging.FileHandler(audit_log))
        audits.propagate = False


def _self_signed(folder: Path, host: str) -> tuple[Path, Path]:
    """The certificate and key in `folder`, made there if they are not."""
    from fpgasim.service import tls

    chain, key = folder / "server.pem", folder / "server.key"
    if not (chain.exists() and key.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        made = tls.self_signed(list(dict.fromkeys(["localhost", "127.0.0.1", socket.gethostname(), *_name(host)])))
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(made.key)
        chain.write_bytes(made.chain)
    return chain, key


def _name(host: str) -> tuple[str, ...]:
    return () if host in ("0.0.0.0", "::") else (host,)
