"""What a backend remembers about weights."""

from typing import Any

import numpy as np

from fpgasim.kernels import Backend, Window
from fpgasim.kernels.native import Native
from fpgasim.kernels.numba_ import Numba
from fpgasim.kernels.weights import PLACES_KEPT, WeightCache
from fpgasim.numerics import CATALOGUE


def test_a_cache_makes_a_value_once_and_forgets_the_oldest_beyond_its_size(blocked: Any) -> None:
    w, made = blocked(np.ones((1, 1, 1, 16), np.float32), CATALOGUE["msfp16"]), []

    def make(key: int) -> int | None:
        made.append(key)
        return key or None

    for cache, again in ((WeightCache[int | None](3), [0, 1]), (WeightCache[int | None](), [])):
        made.clear()
        for key in (0, 0, 1, 2, 3, 4, 4, 2, 0, 1):
            assert cache.get(w, key, lambda k=key: make(k)) == (key or None)  # type: ignore[misc]
        assert made == [0, 1, 2, 3, 4, *again]


def test_a_layer_of_ever_new_shapes_keeps_the_places_of_a_few(kernels: Backend, blocked: Any) -> None:
    fmt, window = CATALOGUE["msfp16"], Window((2, 2), pads=(1, 1, 0, 0))
    w = blocked(np.ones((3, 2, 2, 16), np.float32), fmt)
    for width in range(1, PLACES_KEPT + 9):
        x = blocked(np.ones((1, 1, width, 16), np.float32), fmt)
        assert kernels.conv2d(x, w, window, 1, "fp32", "khwc", 1).shape == (1, 1, width, 3)
    assert isinstance(kernels, Numba | Native)
    places = (kernels.tiles if isinstance(kernels, Numba) else kernels.bytes_convolution)._places
    known = places._known.get(w, {})
    assert len(known) == (PLACES_KEPT if isinstance(kernels, Numba) or kernels.bytes_convolution.there else 0)
