"""What all protocols of a server share: which model a call means, its turn to run, and what an error is called."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fpgasim.errors import FpgasimError, InputError, status
from fpgasim.service import tensors
from fpgasim.service.limits import Refusal, Ticket
from fpgasim.service.metrics import Metrics
from fpgasim.service.servables import Result, Servable
from fpgasim.service.steps import GoOn, Limits, VirtualFpga

Array = Any
#: The only signature of every servable, under TensorFlow's name for it.
SIGNATURE = "serving_default"
#: Errors are told in a header, which has a limit.
_LONGEST_TEXT = 1000
_log = logging.getLogger("fpgasim.service")
_ROUTE = re.compile(r"/api/v1/service/([^/]*)(/.*)?")


@dataclass
class Call:
    """One call, whichever protocol it came by. `deadline` is of time.monotonic; `facts` go along with the answer."""

    deadline: float
    ticket: Ticket
    alive: Callable[[], bool]
    route: str = ""
    facts: dict[str, str] = field(default_factory=dict)


#: Method -> what answers a request of it.
Methods = Mapping[str, Callable[[Any, Call], Any]]


@dataclass(frozen=True)
class Model:
    """The versions of a model that are served, and their labels."""

    versions: Mapping[int, Servable]
    labels: Mapping[str, int] = field(default_factory=dict)

    @property
    def latest(self) -> Servable:
        return self.versions[max(self.versions)]


class Host:
    """Models that are served on one engine.

    The table of models is exchanged as a whole, so a call sees the old or the new one and ends on what it began with.
    """

    def __init__(
        self,
        fpga: VirtualFpga,
        metrics: Metrics,
        *,
        limits: Limits,
        max_input_bytes: int,
        both_names: bool = False,
        service: str | None = None,
    ) -> None:
        self.models: Mapping[str, Model] = {}
        self.draining = False
        self.metrics = metrics
        self.max_input_bytes = max_input_bytes
        self._fpga, self._limits = fpga, limits
        self._both_names, self._service = both_names, service

    @property
    def ready(self) -> bool:
        """Whether there is anything to call, and will be."""
        return bool(self.models) and not self.draining

    def prepare(self, servable: Servable) -> Servable:
        """`servable` on this host's engine and within its limits, warmed up."""
        servable.fpga, servable.limits = self._fpga, self._limits
        servable.warm_up()
        return servable

    def find(self, name: str, version: int | None = None, label: str = "", route: str = "") -> Servable:
        """The servable that a call means: by name, else by the service that its `route` names, else the only one.

        Raises Refusal with the texts and codes of TensorFlow Serving for a name, version or label that is not there.
        """
        title, model = self.model(name, route)
        if label:
            if label not in model.labels:
                raise Refusal("INVALID_ARGUMENT", f"Unrecognized servable version label: {label}")
            version = model.labels[label]
        if version is None:
            return model.latest
        if version not in model.versions:
            raise Refusal("NOT_FOUND", f"Servable not found for request: Specific({title}, {version})")
        return model.versions[version]

    def model(self, name: str, route: str = "") -> tuple[str, Model]:
        """The model that a call means, all versions of it, and its name; errors as above."""
        models = self.models
        if not models:
            raise Refusal("UNAVAILABLE", "no model is loaded yet; come again later", 1000)
        name = name or self._routed(route, models)
        if name:
            if name not in models:
                raise Refusal("NOT_FOUND", f"Servable not found for request: Latest({name})")
            return name, models[name]
        if len(models) > 1:
            raise Refusal("INVALID_ARGUMENT", f"Missing ModelSpec: name one of the models {_listed(models)}")
        return next(iter(models.items()))

    def run(
        self,
        servable: Servable,
        read: Callable[[], Mapping[str, Array]],
        outputs: Sequence[str],
        call: Call,
    ) -> Result:
        """The answer of `servable` once it is the call's turn; only then are the inputs read."""

        def compute(go_on: GoOn) -> Result:
            result = servable.run(read(), outputs, both_names=self._both_names, go_on=go_on)
            self.metrics.ran(servable.name, result)
            return result

        result = call.ticket.compute(compute, call.deadline, call.alive, f"{servable.name}:{servable.version}")
        call.facts["x-fpgasim-cycles"] = str(result.cycles)
        call.facts["x-fpgasim-fpga-us"] = f"{result.fpga_seconds * 1e6:.3f}"
        return result

    def _routed(self, route: str, models: Mapping[str, Model]) -> str:
        """The model that the header x-ms-aml-grpc-service-route names; '' where it names none or the whole service."""
        found = _ROUTE.fullmatch(route)
        if route and found is None:
            raise Refusal("INVALID_ARGUMENT", f"route {route!r}; /api/v1/service/NAME would do")
        name = found[1] if found else ""
        if not name or (name == self._service and name not in models):
            return ""
        if name not in models:
            there = _listed(models if self._service is None else (self._service, *models))
            raise Refusal("INVALID_ARGUMENT", f"no service {name!r} here; there are {there}")
        return name


class Inputs:
    """Reads the tensors of a request: known names only, and no more than `max_bytes` in memory all together."""

    def __init__(self, servable: Servable, max_bytes: int) -> None:
        self._known, self._left = servable.signature.input_names, max_bytes
        self.arrays: dict[str, Array] = {}

    def add(self, name: str, read: Callable[[int], Array]) -> None:
        """Adds the tensor `name`, which `read` makes within a number of bytes. Raises InputError."""
        if name in self.arrays:
            raise InputError(f"input {name!r} is given twice; once would do")
        # a name that is not known is refused by the servable, which says which are; its values are not unpacked
        self.arrays[name] = read(self._left) if name in self._known else None
        if name in self._known:
            self._left = max(0, self._left - tensors.size_of(self.arrays[name]))


def refusal(error: Exception, request_id: str) -> Refusal:
    """What a caller is told of `error`: one line; what was not foreseen is logged, and told by the request's id."""
    if isinstance(error, Refusal):
        return Refusal(error.code, one_line(error.text), error.pushback_ms)
    if isinstance(error, FpgasimError):
        return Refusal(status(error).grpc, one_line(str(error)))
    if isinstance(error, MemoryError):
        return Refusal("RESOURCE_EXHAUSTED", "the call needs more memory than there is; a smaller batch would do")
    _log.error("request %s failed", request_id, exc_info=error)
    return Refusal("INTERNAL", f"the server failed on this call; its log says why under request {request_id}")


def one_line(text: str) -> str:
    """`text` as a header may carry it: one line, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 1] + "…"


def new_request_id() -> str:
    """An id for one call."""
    return secrets.token_hex(16)


def deadline_after(seconds: float | None, longest_s: float) -> float:
    """The time (of time.monotonic) when a call that has `seconds` left (None: no limit) ends."""
    return time.monotonic() + (longest_s if seconds is None else min(seconds, longest_s))


def _listed(names: Any) -> str:
    return ", ".join(map(repr, list(names)[:12]))
