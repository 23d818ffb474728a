"""What a server counts, for Prometheus, in a registry of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import prometheus_client as prometheus

if TYPE_CHECKING:
    from fpgasim.service.servables import Result

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST
#: In seconds: from an echo to a deep network at the engine's pace.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters of one server; `text()` is its page."""

    def __init__(self) -> None:
        self._registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "fpgasim_requests", "Calls answered", ("method", "code"), registry=self._registry
        )
        self._seconds = prometheus.Histogram(
            "fpgasim_request_seconds",
            "Seconds from a call's header to its answer",
            ("method",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._of: dict[tuple[str, str], tuple[Any, Any]] = {}
        self.in_flight = prometheus.Gauge("fpgasim_in_flight", "Calls that are being answered", registry=self._registry)
        self._busy = prometheus.Counter(
            "fpgasim_fpga_busy_seconds", "Seconds of the simulated engine", ("model",), registry=self._registry
        )
        self._cycles = prometheus.Counter(
            "fpgasim_simulated_cycles", "Cycles of the simulated engine", ("model",), registry=self._registry
        )

    def answered(self, method: str, code: str, seconds: float) -> None:
        """Counts a call that ended with the gRPC status `code` after so many seconds."""
        found = self._of.get((method, code))
        if found is None:  # finding a counter by its labels takes longer than counting
            found = self._of[method, code] = self._requests.labels(method, code), self._seconds.labels(method)
        found[0].inc()
        found[1].observe(seconds)

    def ran(self, model: str, result: Result) -> None:
        """Counts what the simulated engine did for a call."""
        self._busy.labels(model).inc(result.fpga_seconds)
        self._cycles.labels(model).inc(result.cycles)

    def text(self) -> bytes:
        """All counters in Prometheus's text format, whose content type is CONTENT_TYPE."""
        return prometheus.generate_latest(self._registry)
