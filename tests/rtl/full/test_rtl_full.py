"""Every core and network, and arrays up to 16x16, against the RTL: run by `make test-rtl`, which prints all cycles."""

import dataclasses
import itertools
from collections.abc import Callable

import pytest

from ..comparing import Comparison, compare_array, compare_overlapping_array, compare_program
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


@pytest.fixture
def hold(record_property: Callable[[str, object], None]) -> Callable[[str, Comparison], None]:
    """Notes a comparison under a heading for the table at the end, and asserts that no cycle is off."""

    def note(heading: str, found: Comparison) -> None:
        record_property("cycles", (heading, found.name, found.rtl, found.model))
        assert found.equal, found.name

    return note


@pytest.mark.parametrize("shape", ARRAYS, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("compare", [compare_array, compare_overlapping_array])
def test_arrays(shape: tuple[int, int], compare: Callable[..., list[Comparison]], hold: Callable[..., None]) -> None:
    for found in compare(*shape, [(flow, *sizes) for flow, sizes in itertools.product(FLOWS, ARRAYS[shape])]):
        hold("array", found)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("core", CORES)
def test_compiled_networks(core: str, network: str, hold: Callable[..., None]) -> None:
    program = dataclasses.replace(NETWORKS[network](*CORES[core]), name=f"{core} {network}")
    hold("compiled", compare_program(program, feeds(program)))


@pytest.mark.parametrize("seed", range(100, 106))
@pytest.mark.parametrize("core", CORES)
def test_random_chains(core: str, seed: int, hold: Callable[..., None]) -> None:
    program, given = random_program(*CORES[core], chains=60, seed=seed)
    hold("random", compare_program(dataclasses.replace(program, name=f"{core} random {seed}"), given))


@pytest.mark.parametrize("core", CORES)
def test_arithmetic(core: str, hold: Callable[..., None]) -> None:
    program = dataclasses.replace(arithmetic(*CORES[core]), name=f"{core} arithmetic")
    hold("random", compare_program(program, {}))
