"""`WeightCache`: what a backend made of its weight operands, so that a layer's weights are laid out once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from fpgasim.kernels.contract import Operand

T = TypeVar("T")


class WeightCache(Generic[T]):
    """Remembers a value for each operand and key while the operand lives: its arrays must not change meanwhile."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Operand, dict[Hashable, T]] = WeakKeyDictionary()

    def get(self, w: Operand, key: Hashable, make: Callable[[], T]) -> T:
        known = self._known.setdefault(w, {})
        if key not in known:
            known[key] = make()
        return known[key]
