"""The gRPC side of a server: every call is let in, read, answered and counted here, whatever its method.

All methods are registered as ones that stream their requests, which is the same on the wire: so the key is asked for
and a place given before a byte of the message is taken, and a message that does not come can be given up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from fpgasim.service import auth, wire
from fpgasim.service.hosting import Call, Methods, deadline_after, new_request_id, refusal
from fpgasim.service.limits import Admission, Refusal, Ticket
from fpgasim.service.metrics import Metrics

ROUTE_HEADER = "x-ms-aml-grpc-service-route"
#: Path of a method -> its gRPC handler.
Handlers = Mapping[str, Any]
#: Longer than the quiet that a server waits for before it ends.
_CLOSED_PUSHBACK_MS = 200
#: What a call without a deadline has left, at least.
_FOREVER_S = 1e8


class Opens(Protocol):
    """What tells whether a call may come in: auth.Keys, auth.KeysFile."""

    def opens(self, metadata: Any) -> bool:
        """Whether a call with this metadata is let in."""


class Gate:
    """What every call passes: its key, if there are keys, and the counters; no call takes longer than `deadline_s`."""

    def __init__(self, keys: Opens | None, metrics: Metrics, deadline_s: float) -> None:
        self.metrics, self.deadline_s = metrics, deadline_s
        self._keys = keys
        self._closed, self._refused_at = False, 0.0

    def close(self) -> None:
        """Refuses all calls from now on, but those that ask for health."""
        self._closed, self._refused_at = True, time.monotonic()

    @property
    def quiet_s(self) -> float:
        """For how long none has been refused since it closed."""
        return time.monotonic() - self._refused_at

    @contextlib.contextmanager
    def passed(self, method: str, context: Any, *, keyed: bool = True, keys: Opens | None = None) -> Iterator[None]:
        """The frame of a gRPC call: an id in its initial metadata, its errors as statuses. `keys` are other ones."""
        request_id, start, code = new_request_id(), time.perf_counter(), "OK"
        self.metrics.in_flight.inc()
        try:
            context.send_initial_metadata((("request_id", request_id),))
            if keyed:
                self.check(context.invocation_metadata(), method, context.peer(), request_id, keys)
            yield
        except grpc.RpcError:  # the caller, or a limit, has ended the call
            code = "CANCELLED"
            raise
        except Exception as error:
            refused = refusal(error, request_id)
            code = refused.code
            if refused.pushback_ms is not None:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", str(refused.pushback_ms)),))
            context.abort(grpc.StatusCode[code], refused.text)
        finally:
            self.metrics.in_flight.dec()
            self.metrics.answered(method, code, time.perf_counter() - start)

    def check(self, metadata: Any, method: str, peer: str, request_id: str, keys: Opens | None = None) -> None:
        """Raises Refusal: UNAUTHENTICATED, with a line in the audit log, for a call without a key that opens, and
        UNAVAILABLE once closed."""
        keys = keys or self._keys
        if keys is not None and not keys.opens(metadata):
            auth.audit("refused", method=method, peer=peer, request_id=request_id)
            raise Refusal("UNAUTHENTICATED", "no key, or a wrong one; authorization: Bearer KEY would do")
        if self._closed:
            self._refused_at = time.monotonic()
            raise Refusal("UNAVAILABLE", "the server is shutting down; another one would do", _CLOSED_PUSHBACK_MS)


def unary(
    gate: Gate, admission: Admission, service: str, methods: Methods, *, keyed: bool = True, keys: Opens | None = None
) -> Handlers:
    """The handlers of `methods` of a `service` of the wire, which take their places in `admission`.

    `keys` open them instead of those of the gate.
    """
    messages = wire.methods(service)

    def behavior(method: str) -> Callable[[Iterator[bytes], Any], bytes]:
        parse, answer = messages[method][0].FromString, methods[method]

        def run(requests: Iterator[bytes], context: Any) -> bytes:
            with gate.passed(method, context, keyed=keyed, keys=keys), admission.admitted(context.cancel) as ticket:
                request = _message(requests, ticket, parse, method)
                left = context.time_remaining()
                deadline = deadline_after(left if left < _FOREVER_S else None, gate.deadline_s)
                route = next((value for name, value in context.invocation_metadata() if name == ROUTE_HEADER), "")
                call = Call(deadline, ticket, context.is_active, str(route))
                data: bytes = answer(request, call).SerializeToString()
                context.set_trailing_metadata(tuple(call.facts.items()))
            return data

        return run

    return {f"/{service}/{method}": grpc.stream_unary_rpc_method_handler(behavior(method)) for method in methods}


def health_checks(gate: Gate, admission: Admission, servicer: Any) -> Handlers:
    """The handlers of grpc.health.v1, open to all; who watches holds no thread."""
    parse = health_pb2.HealthCheckRequest.FromString

    def check(requests: Iterator[bytes], context: Any) -> bytes:
        with gate.passed("Check", context, keyed=False), admission.admitted(context.cancel) as ticket:
            request = _message(requests, ticket, parse, "Check")
            found = servicer.Check(request, context)
            if found.status == found.SERVICE_UNKNOWN:  # a model that is no longer served, as one that never was
                raise Refusal("NOT_FOUND", f"no service {request.service!r} here")
            data: bytes = found.SerializeToString()
        return data

    def watch(requests: Iterator[bytes], context: Any, send: Callable[[Any], None]) -> None:
        with gate.passed("Watch", context, keyed=False):
            with admission.admitted(context.cancel) as ticket:
                request = _message(requests, ticket, parse, "Watch")
            servicer.Watch(request, context, send)

    watch.experimental_non_blocking = True  # type: ignore[attr-defined]
    return {
        f"/{health.SERVICE_NAME}/Check": grpc.stream_unary_rpc_method_handler(check),
        f"/{health.SERVICE_NAME}/Watch": grpc.stream_stream_rpc_method_handler(
            watch, response_serializer=health_pb2.HealthCheckResponse.SerializeToString
        ),
    }


def reflection_calls(gate: Gate, admission: Admission, services: Sequence[str]) -> Handlers:
    """The handler of grpc.reflection.v1alpha, which tells what is in our pool; it asks for the key like the others."""
    service = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    method = service.methods[0]
    servicer = reflection.ReflectionServicer((*services, service.full_name), pool=wire.pool())

    def told(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        with gate.passed(method.name, context), admission.admitted(context.cancel) as ticket:
            yield from servicer.ServerReflectionInfo(_each(requests, ticket), context)

    handler = grpc.stream_stream_rpc_method_handler(
        told,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return {f"/{service.full_name}/{method.name}": handler}


class Doorman(grpc.GenericRpcHandler):  # type: ignore[misc]
    """What gRPC asks for the handler of a method; one that is not there is refused within the same frame."""

    def __init__(self, handlers: Handlers, gate: Gate) -> None:
        def unknown(_: Any, context: Any) -> None:
            with gate.passed("unknown", context):
                raise Refusal("UNIMPLEMENTED", "this server has no such method; its reflection tells which it has")

        self._handlers, self._unknown = handlers, grpc.stream_unary_rpc_method_handler(unknown)

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method."""
        return self._handlers.get(handler_call_details.method, self._unknown)


def _message(requests: Iterator[bytes], ticket: Ticket, parse: Callable[[bytes], Any], method: str) -> Any:
    """The one message of a call."""
    data = next(requests, None)
    ticket.received()
    if data is None:
        raise Refusal("INVALID_ARGUMENT", f"{method} takes one message and none came")
    try:
        return parse(data)
    except DecodeError:
        raise Refusal("INVALID_ARGUMENT", f"the message is no request of {method}") from None


def _each(requests: Iterator[Any], ticket: Ticket) -> Iterator[Any]:
    for request in requests:
        ticket.received()
        yield request
        ticket.receive()
