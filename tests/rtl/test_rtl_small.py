"""A small array and a small core in SystemVerilog give the bits and the cycles that the package says.

The full set is in full/, run by `make test-rtl`.
"""

import itertools

import pytest

from . import verilating
from .comparing import compare_array, compare_overlapping_array, compare_program
from .devices import CORES
from .networks import NETWORKS, feeds
from .random_programs import arithmetic, random_program

#: Around the size of the array, and beyond.
SIZES = [(1, 1, 1), (3, 4, 5), (4, 4, 4), (5, 9, 7), (2, 17, 12), (30, 3, 8)]
CASES = [(flow, *sizes) for flow, sizes in itertools.product(("os", "ws", "is"), SIZES)]


@pytest.mark.slow
def test_a_small_array_computes_products_in_the_cycles_of_the_formula() -> None:
    assert all(product.equal for product in compare_array(4, 3, CASES))


@pytest.mark.slow
def test_a_small_array_that_overlaps_its_folds_takes_the_cycles_of_the_model() -> None:
    assert all(product.equal for product in compare_overlapping_array(4, 3, CASES))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "tap_convolution", "pools", "gru"])
def test_a_small_core_runs_compiled_networks_bit_by_bit_and_cycle_by_cycle(name: str) -> None:
    program = NETWORKS[name](*CORES["plain"])
    assert compare_program(program, feeds(program)).equal


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_small_core_runs_random_chains_bit_by_bit_and_cycle_by_cycle(seed: int) -> None:
    assert compare_program(*random_program(*CORES["plain"], chains=40, seed=seed)).equal


@pytest.mark.slow
def test_the_pointwise_units_round_numbers_of_every_size_once() -> None:
    assert compare_program(arithmetic(*CORES["plain"]), {}).equal


@pytest.mark.parametrize("tool", ["g++", "make"])
def test_a_missing_tool_is_named(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verilating.shutil, "which", lambda name: None if name == tool else f"/bin/{name}")
    with pytest.raises(RuntimeError, match=f"the RTL tests need {tool.replace('+', '.')}, which is not there"):
        verilating.find_verilator()
