"""The gRPC side of a server: every call is let in, read, answered and counted here, whatever its method.

All methods are registered as ones that stream their requests, which is the same on the wire: so the key is asked for
and a place given before a byte of the message is taken, and a message that does not come can be given up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fpgasim.service import auth, wire
from fpgasim.service.hosting import Call, deadline_after, new_request_id, refusal
from fpgasim.service.limits import Admission, Refusal
from fpgasim.service.metrics import Metrics

ROUTE_HEADER = "x-ms-aml-grpc-service-route"
#: What a call without a deadline has left, at least.
_FOREVER_S = 1e8


class Opens(Protocol):
    """What tells whether a call may come in: auth.Keys, auth.KeysFile."""

    def opens(self, metadata: Any) -> bool:
        """Whether a call with this metadata is let in."""


@dataclass(frozen=True)
class Gate:
    """What every call passes: its key, if there are keys, and the counters; no call takes longer than `deadline_s`."""

    keys: Opens | None
    metrics: Metrics
    deadline_s: float

    @contextlib.contextmanager
    def passed(self, method: str, context: Any, *, keyed: bool = True) -> Iterator[None]:
        """The frame of a gRPC call: an id in its initial metadata, its errors as statuses."""
        request_id, start, code = new_request_id(), time.perf_counter(), "OK"
        self.metrics.in_flight.inc()
        try:
            context.send_initial_metadata((("request_id", request_id),))
            if keyed:
                self.check(context.invocation_metadata(), method, context.peer(), request_id)
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

    def check(self, metadata: Any, method: str, peer: str, request_id: str) -> None:
        """Raises Refusal, UNAUTHENTICATED, for a call without a key that opens, and writes a line about it."""
        if self.keys is not None and not self.keys.opens(metadata):
            auth.audit("refused", method=method, peer=peer, request_id=request_id)
            raise Refusal("UNAUTHENTICATED", "no key, or a wrong one; authorization: Bearer KEY would do")


@dataclass(frozen=True)
class Door:
    """One method: its request's parser, what answers it, which places it takes and whether it asks for a key."""

    parse: Callable[[bytes], Any]
    answer: Callable[[Any, Call], Any]
    admission: Admission
    keyed: bool = True


def doors(service: str, methods: Mapping[str, Callable[[Any, Call], Any]], admission: Admission) -> dict[str, Door]:
    """The doors of `methods` of a `service` of the wire, by their paths."""
    requests = wire.methods(service)
    return {f"/{service}/{name}": Door(requests[name][0].FromString, run, admission) for name, run in methods.items()}


class Doorman(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The gRPC handler of all `doors`, by the path of the method."""

    def __init__(self, doors: Mapping[str, Door], gate: Gate) -> None:
        self._handlers = {
            path: grpc.stream_unary_rpc_method_handler(_behavior(path.rpartition("/")[2], door, gate))
            for path, door in doors.items()
        }

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method; None for one that is not there."""
        return self._handlers.get(handler_call_details.method)


def _behavior(method: str, door: Door, gate: Gate) -> Callable[[Iterator[bytes], Any], bytes]:
    def behavior(requests: Iterator[bytes], context: Any) -> bytes:
        with gate.passed(method, context, keyed=door.keyed), door.admission.admitted(context.cancel) as ticket:
            data = next(requests, None)
            ticket.received()
            if data is None:
                raise Refusal("INVALID_ARGUMENT", f"{method} takes one message and none came")
            left = context.time_remaining()
            deadline = deadline_after(left if left < _FOREVER_S else None, gate.deadline_s)
            metadata = dict(context.invocation_metadata())
            call = Call(deadline, ticket, context.is_active, str(metadata.get(ROUTE_HEADER, "")))
            try:
                request = door.parse(data)
            except DecodeError:
                raise Refusal("INVALID_ARGUMENT", f"the message is no request of {method}") from None
            answer: bytes = door.answer(request, call).SerializeToString()
            context.set_trailing_metadata(tuple(call.facts.items()))
        return answer

    return behavior
