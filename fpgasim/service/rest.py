"""REST on a port of its own: HTTP/1.1 with the standard library, under the same keys, certificates and limits."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any

from fpgasim.errors import ServiceError
from fpgasim.service import auth
from fpgasim.service.doors import Gate
from fpgasim.service.hosting import Call, new_request_id, refusal
from fpgasim.service.limits import Admission, Refusal
from fpgasim.service.tls import Certificate, CertificateFiles

#: What a gRPC status is in HTTP, as TensorFlow Serving and gRPC's gateways have it.
HTTP_STATUS = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 412,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_MOST_CONNECTIONS = 256
#: How long a connection may be silent before its next request, and take for a handshake.
_IDLE_S, _HANDSHAKE_S = 30.0, 10.0
_log = logging.getLogger("fpgasim.service")


@dataclass(frozen=True)
class Request:
    """What a route is asked: the parts of its path, the headers (names in small letters) and the body."""

    parts: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """What answers the paths that `match` finds the parts of; `admission` is where it takes its place."""

    name: str
    verb: str
    match: Callable[[str], Mapping[str, str] | None]
    answer: Callable[[Request, Call], Reply]
    admission: Admission
    keyed: bool = True


def json_reply(value: Any) -> Reply:
    """`value` as a reply in JSON."""
    return Reply(json.dumps(value).encode())


class RestServer(ThreadingMixIn, HTTPServer):
    """HTTP on `host` and `port` (0: any), which answers `routes`; `.port` is where. Raises ServiceError for none."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        routes: tuple[Route, ...],
        gate: Gate,
        certificate: CertificateFiles | None,
        max_body_bytes: int,
        receive_s: float,
    ) -> None:
        self.routes, self.gate, self.max_body_bytes, self.receive_s = routes, gate, max_body_bytes, receive_s
        self._certificate = certificate
        self._secured: tuple[Certificate, ssl.SSLContext] | None = None
        self._connections = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._idle = threading.Condition()
        self._answering, self.draining = 0, False
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.allow_reuse_address = port != 0
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ServiceError(f"port {port} of {host} cannot be had: {error.strerror or error}") from error
        self.port: int = self.server_address[1]

    def server_bind(self) -> None:
        """As HTTPServer, without asking the resolver for our own name."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def start(self) -> None:
        """Answers from now on."""
        threading.Thread(target=self.serve_forever, args=(0.1,), name="fpgasim-rest", daemon=True).start()

    def drain(self, grace_s: float) -> None:
        """Takes no more calls and ends when those that are in are answered, or `grace_s` is over."""
        self.draining = True
        self.shutdown()
        self.server_close()
        with self._idle:
            self._idle.wait_for(lambda: self._answering == 0, grace_s)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Counts a call as long as it is answered."""
        with self._idle:
            self._answering += 1
        try:
            yield
        finally:
            with self._idle:
                self._answering -= 1
                self._idle.notify_all()

    def secure(self, connection: socket.socket, peer: str) -> socket.socket:
        """The connection with TLS on it, by the certificate that is in force now, where there is one.

        A handshake that fails leaves a line in the audit log.
        """
        if self._certificate is None:
            return connection
        self._certificate.refresh()
        current, secured = self._certificate.current, self._secured
        if secured is None or secured[0] != current:
            secured = self._secured = current, _context(current)
        try:
            return secured[1].wrap_socket(connection, server_side=True)
        except ssl.SSLEOFError:  # closed without a word, as who only asks whether somebody listens does
            raise
        except ssl.SSLError as error:  # plain text, an old TLS, no certificate where one is asked for
            auth.audit("refused", method="handshake", peer=peer, reason=error.reason)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection; none where there are too many, and it is closed."""
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As ThreadingMixIn, with the connection counted."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is not worth a trace."""
        _log.debug("REST connection from %s ended", client_address, exc_info=True)


class _Timed(io.RawIOBase):
    """The bytes of a connection, which have to come before `deadline`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self.deadline = connection, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fpgasim", ""
    server: RestServer

    def setup(self) -> None:
        self.request.settimeout(_HANDSHAKE_S)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.request = self.server.secure(self.request, self._peer)
        super().setup()
        self._timed = _Timed(self.connection)
        self.rfile = io.BufferedReader(self._timed)

    @property
    def _peer(self) -> str:
        return f"{self.client_address[0]}:{self.client_address[1]}"

    def finish(self) -> None:
        super().finish()
        self.request.close()  # the server closes the connection without TLS alone

    def handle_one_request(self) -> None:
        self._timed.deadline = time.monotonic() + _IDLE_S
        super().handle_one_request()
        self.close_connection = self.close_connection or self.server.draining

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class finds wrong with a request, in our words."""
        self.close_connection = True
        self._send(code, {"connection": "close"}, Reply(json.dumps({"error": message or "bad request"}).encode()))

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, verb: str) -> None:
        metrics, request_id, start, code = self.server.gate.metrics, new_request_id(), time.perf_counter(), "OK"
        name, self._unread = "rest", True
        with self.server.answering():
            metrics.in_flight.inc()
            try:
                route, parts = self._route(verb)
                name = route.name
                reply = self._reply(route, parts, request_id)
            except Exception as error:
                gone = isinstance(error, OSError)  # the caller is, or its message did not come in time
                refused = Refusal("CANCELLED", "the message did not come") if gone else refusal(error, request_id)
                code, reply = refused.code, _refused(refused)
            finally:
                metrics.in_flight.dec()
                metrics.answered(name, code, time.perf_counter() - start)
            self.close_connection = self.close_connection or self._unread
            headers = {"connection": "close"} if self.close_connection else {}
            with contextlib.suppress(OSError):
                self._send(HTTP_STATUS[code], {"x-request-id": request_id, **headers}, reply)

    def _reply(self, route: Route, parts: Mapping[str, str], request_id: str) -> Reply:
        gate = self.server.gate
        if route.keyed:
            given = [("authorization", value) for value in self.headers.get_all("authorization", ())]
            gate.check(given, route.name, self._peer, request_id)
        size = self._body_size(route.verb)
        with route.admission.admitted(self._cancel) as ticket:
            self._timed.deadline = time.monotonic() + self.server.receive_s
            body = self.rfile.read(size)
            ticket.received()
            if len(body) < size:
                raise Refusal("INVALID_ARGUMENT", f"the body has {len(body)} bytes of {size}")
            self._unread = False
            small = {key.lower(): value for key, value in self.headers.items()}
            call = Call(time.monotonic() + gate.deadline_s, ticket, self._is_there)
            reply = route.answer(Request(parts, small, body), call)
        return replace(reply, headers={**call.facts, **reply.headers})

    def _route(self, verb: str) -> tuple[Route, Mapping[str, str]]:
        path = self.path.partition("?")[0]
        known = [(route, parts) for route in self.server.routes if (parts := route.match(path)) is not None]
        for route, parts in known:
            if route.verb == verb:
                return route, parts
        if known:
            raise Refusal("INVALID_ARGUMENT", f"{path} takes {known[0][0].verb}")
        raise Refusal("NOT_FOUND", f"nothing is at {path[:200]}")

    def _body_size(self, verb: str) -> int:
        length = self.headers.get("content-length", "0" if verb == "GET" else "")
        if self.headers.get("transfer-encoding") or not (length.isascii() and length.isdecimal()):
            raise Refusal("INVALID_ARGUMENT", "a request needs its Content-Length, and comes in one piece")
        if self.headers.get("content-encoding", "identity") != "identity":
            raise Refusal("INVALID_ARGUMENT", "a request comes as it is, without a Content-Encoding")
        if len(length) > 18 or int(length) > self.server.max_body_bytes:
            raise Refusal("RESOURCE_EXHAUSTED", f"the body is larger than {self.server.max_body_bytes} bytes")
        return int(length)

    def _send(self, code: int, headers: Mapping[str, str], reply: Reply) -> None:
        self.connection.settimeout(self.server.receive_s)
        self.send_response(code)
        self.send_header("content-type", reply.content_type)
        self.send_header("content-length", str(len(reply.body)))
        for name, value in (*headers.items(), *reply.headers.items()):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def _is_there(self) -> bool:
        """Whether the caller has not closed the connection, as its system tells."""
        try:
            watched = select.poll()
            watched.register(self.connection, select.POLLRDHUP)
            return not watched.poll(0)
        except (OSError, ValueError):  # closed on our side
            return False

    def _cancel(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)


def _refused(refused: Refusal) -> Reply:
    headers = {}
    if refused.pushback_ms is not None:
        headers["retry-after"] = str(math.ceil(refused.pushback_ms / 1e3))
    if refused.code == "UNAUTHENTICATED":
        headers["www-authenticate"] = "Bearer"
    return replace(json_reply({"error": refused.text}), headers=headers)


def _context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # the standard library reads chains and keys from files alone; this one is in memory and has no name
    with os.fdopen(os.memfd_create("certificate"), "wb") as file:
        file.write(certificate.key + b"\n" + certificate.chain)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    if certificate.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=certificate.client_ca.decode())
    return context
