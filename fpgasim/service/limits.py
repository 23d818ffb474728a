"""How much is let in: calls that are received, that wait and that run; the rest is refused at once."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import TypeVar

T = TypeVar("T")

#: What a refused caller is told to wait, in milliseconds.
_PUSHBACK_MS = (20, 10_000)
_TOO_LATE = "the deadline passed while the call was computed; fewer pictures in a call would take less"
#: Calls to what took less than this share of the time that is left are computed in place. The limits of a message and a
#: batch let a call grow by less.
_IN_PLACE = 1e-3
#: What a call leaves of the time of the longest before it.
_FORGETS = 0.99


class Refusal(Exception):
    """What a caller gets instead of an answer: the name of a gRPC status, a text, and when to come again, if ever."""

    def __init__(self, code: str, text: str, pushback_ms: int | None = None) -> None:
        super().__init__(text)
        self.code, self.text, self.pushback_ms = code, text, pushback_ms


class Ticket:
    """The place of one call, from its first byte to its last."""

    def __init__(self, admission: Admission, cancel: Callable[[], None]) -> None:
        self._admission, self.cancel = admission, cancel
        self.receiving = True
        self.since = time.monotonic()

    def receive(self) -> None:
        """Says that the call waits for a message, as it does when it comes."""
        self.since, self.receiving = time.monotonic(), True

    def received(self) -> None:
        """Says that its message is there."""
        self.receiving = False

    def compute(
        self, work: Callable[[Callable[[], None]], T], deadline: float, alive: Callable[[], bool], what: str = ""
    ) -> T:
        """What `work` gives, once it is the call's turn; `what` it asks, to know how long that takes.

        Raises Refusal at the `deadline` (of time.monotonic), whether the call waits or computes, and if the caller has
        gone before its turn comes. What `work` is given raises too, once nobody waits for it any more: it is to call
        that between the parts of what it does, and keeps its turn until it ends.
        """
        turns = self._admission.turns
        if not turns.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise Refusal("DEADLINE_EXCEEDED", "the deadline passed while the call waited for its turn")

        def go_on() -> None:
            if time.monotonic() >= deadline:
                raise Refusal("DEADLINE_EXCEEDED", _TOO_LATE)
            if not alive():
                raise Refusal("CANCELLED", "the caller went away while the call was computed")

        def run() -> T:
            start = time.monotonic()
            made = work(go_on)
            self._admission.took(what, time.monotonic() - start)
            return made

        try:
            if not alive():
                raise Refusal("CANCELLED", "the caller went away while the call waited for its turn")
            if self._admission.longest(what) < _IN_PLACE * (deadline - time.monotonic()):
                in_place = run()  # another thread would take longer to begin
                turns.release()
                return in_place
            made = self._admission.threads.submit(run)
        except BaseException:
            turns.release()
            raise
        made.add_done_callback(lambda _: turns.release())
        futures.wait((made,), max(0.0, deadline - time.monotonic()))
        if not made.done():
            raise Refusal("DEADLINE_EXCEEDED", _TOO_LATE)
        return made.result()


class Admission:
    """At most `running` calls run and `waiting` more are received or wait for their turn.

    A call has `receive_s` for its message to come. Where all places are taken, the one that has waited longest for its
    message loses its own if that has taken `patience_s` already: so slow callers do not keep others out.
    """

    def __init__(self, running: int, waiting: int, receive_s: float, patience_s: float = 1.0) -> None:
        self.turns = threading.BoundedSemaphore(running)
        self.threads = futures.ThreadPoolExecutor(running, "fpgasim-compute")
        self.places = running + waiting
        self._running, self._receive_s, self._patience_s = running, receive_s, patience_s
        self._lock = threading.Lock()
        self._inside: dict[Ticket, None] = {}  # in the order in which they came
        self._seconds = 0.0
        self._longest: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._inside)

    @contextlib.contextmanager
    def admitted(self, cancel: Callable[[], None]) -> Iterator[Ticket]:
        """The place of a call; `cancel` ends it from outside. Raises Refusal (RESOURCE_EXHAUSTED) if there is none."""
        ticket = Ticket(self, cancel)
        with self._lock:
            loser = self._slowest() if len(self._inside) >= self.places else None
            if loser is not None:
                del self._inside[loser]
            if len(self._inside) >= self.places:
                raise Refusal(
                    "RESOURCE_EXHAUSTED",
                    f"all {self.places} places for calls are taken; come again later",
                    self._pushback_ms(),
                )
            self._inside[ticket] = None
        if loser is not None:
            loser.cancel()
        try:
            yield ticket
        finally:
            with self._lock:
                self._inside.pop(ticket, None)

    def sweep(self) -> None:
        """Cancels the calls whose message has not come in time; a thread of the server does so again and again."""
        with self._lock:
            late = [t for t in self._inside if t.receiving and time.monotonic() - t.since > self._receive_s]
        for ticket in late:
            ticket.cancel()

    def took(self, what: str, seconds: float) -> None:
        """Remembers how long a call to `what` took, to tell others how long to wait."""
        with self._lock:
            self._seconds += (seconds - self._seconds) / 8
            self._longest[what] = max(seconds, _FORGETS * self._longest.get(what, 0.0))

    def longest(self, what: str) -> float:
        """Seconds of the longest call to `what` of late; of what none came to its end yet, infinity."""
        return self._longest.get(what, math.inf)

    def _slowest(self) -> Ticket | None:
        slow = [t for t in self._inside if t.receiving and time.monotonic() - t.since >= self._patience_s]
        return min(slow, key=lambda ticket: ticket.since, default=None)

    def _pushback_ms(self) -> int:
        shortest, longest = _PUSHBACK_MS
        return round(min(max(1e3 * self._seconds * len(self._inside) / self._running, shortest), longest))
