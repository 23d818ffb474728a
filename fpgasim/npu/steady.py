"""Loops whose turns come to repeat: stepped until they do, the rest added exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Protocol


class Clockwork(Protocol):
    """Something that moves through time. `tally` counts what it did; `steps` how many turns were stepped."""

    tally: Counter[str]

    @property
    def now(self) -> int:
        """The time from which the others are seen."""
        ...

    def relative(self) -> Hashable:
        """Everything that what comes later can depend on, seen from `now`."""
        ...

    def skip(self, duration: int) -> None:
        """Moves all times forward."""
        ...


def repeat(work: Clockwork, turn: Callable[[], None], times: int) -> None:
    """Does `turn` `times` times, with the same result for `work` as doing each.

    As soon as a turn starts in the relative state in which an earlier one did, the turns between the two repeat for
    ever: their duration and tallies are added as often as they fit, and only what is left is stepped.
    """
    seen: dict[Hashable, tuple[int, int, Counter[str]]] = {}
    done = 0
    while done < times:
        state = work.relative()
        if state in seen:
            before, then, tally = seen[state]
            period = done - before
            periods = (times - done) // period
            growth = {name: count - tally[name] for name, count in work.tally.items()}
            work.skip(periods * (work.now - then))
            for name, count in growth.items():
                work.tally[name] += periods * count
            done += periods * period
            seen.clear()
            for _ in range(times - done):
                turn()
            return
        seen[state] = done, work.now, Counter(work.tally)
        turn()
        done += 1
