"""`WeightCache`: what a backend made of its weight operands, so that a layer's weights are laid out once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary

from fpgasim.kernels.contract import Operand

T = TypeVar("T")
_NOTHING: Any = object()


#: Input shapes for which a layer's place is kept: more than a session keeps, as several may share its weights.
PLACES_KEPT = 32


class WeightCache(Generic[T]):
    """Remembers a value for each operand and key while the operand lives: its arrays must not change meanwhile.

    With `most`, only that many of each operand: the oldest goes first.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._known: WeakKeyDictionary[Operand, dict[Hashable, T]] = WeakKeyDictionary()

    def get(self, w: Operand, key: Hashable, make: Callable[[], T]) -> T:
        known = self._known.setdefault(w, {})
        found = known.get(key, _NOTHING)
        if found is _NOTHING:
            found = known[key] = make()
            for old in list(known)[: -self._most] if self._most else ():
                known.pop(old, None)  # another thread may have been quicker
        return cast(T, found)
