"""Every core and every network, and arrays up to 16x16, against the RTL: run by `make test-rtl`."""

import itertools
from collections.abc import Callable

import pytest

from ..comparing import check_array, check_overlapping_array, check_program
from ..devices import CORES
from ..networks import NETWORKS, feeds
from ..random_programs import arithmetic, random_program

FLOWS = ("os", "ws", "is")
#: (rows, columns of the array) -> (m, n, k) of products, whole layers of networks among them.
ARRAYS: dict[tuple[int, int], list[tuple[int, int, int]]] = {
    (1, 1): [(1, 1, 1), (3, 4, 5)],
    (3, 7): [(1, 1, 1), (3, 7, 7), (7, 3, 3), (4, 8, 9), (50, 30, 20)],
    (8, 8): [(8, 8, 8), (7, 9, 8), (64, 64, 27), (100, 10, 100), (1, 100, 300)],
    (16, 16): [(16, 16, 16), (196, 64, 256), (784, 64, 64), (49, 512, 128), (1, 1000, 200), (100, 147, 77)],
}


@pytest.mark.parametrize("shape", ARRAYS, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("check", [check_array, check_overlapping_array])
def test_arrays(shape: tuple[int, int], check: Callable[[int, int, list[tuple[str, int, int, int]]], None]) -> None:
    check(*shape, [(flow, *sizes) for flow, sizes in itertools.product(FLOWS, ARRAYS[shape])])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("core", CORES)
def test_compiled_networks(core: str, network: str) -> None:
    program = NETWORKS[network](*CORES[core])
    check_program(program, feeds(program))


@pytest.mark.parametrize("seed", range(100, 112))
@pytest.mark.parametrize("core", CORES)
def test_random_chains(core: str, seed: int) -> None:
    check_program(*random_program(*CORES[core], chains=80, seed=seed))


@pytest.mark.parametrize("core", CORES)
def test_arithmetic(core: str) -> None:
    check_program(arithmetic(*CORES[core]), {})
