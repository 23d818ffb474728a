"""The systolic array: the serial convention, and the engine's own mode with its memories."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st

from fpgasim.errors import DeviceError, InputError, UnknownNameError
from fpgasim.npu import steady, systolic, systolic_cycles
from fpgasim.npu.systolic import DATAFLOWS, Array, array_timing

PLENTY = 1 << 40


def skewed(m: int, n: int, k: int, rows: int, cols: int, dataflow: str) -> tuple[int, np.ndarray]:
    """Cell by cell and cycle by cycle, full-size folds one after the other: the cycles and which products were made."""
    down, across, time = {"os": (m, n, k), "ws": (k, n, m), "is": (k, m, n)}[dataflow]
    made = np.zeros((down, across, time), int)
    cycles = 0
    for top, left in itertools.product(range(0, down, rows), range(0, across, cols)):
        cycles += 0 if dataflow == "os" else rows  # the operand that lies still comes in row by row
        last = 0
        for r, c, t in itertools.product(range(rows), range(cols), range(time)):
            last = max(last, t + r + c)  # operands enter skewed and move one cell in a cycle
            if top + r < down and left + c < across:
                made[top + r, left + c, t] += 1
        cycles += last + 1
    return cycles, made


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("shape", [(5, 7, 9), (1, 8, 4), (12, 3, 2), (4, 4, 4)])
@pytest.mark.parametrize("array", [(2, 3), (4, 4), (1, 5)])
def test_the_closed_form_counts_what_an_array_of_cells_takes(shape, array, dataflow):
    cycles, made = skewed(*shape, *array, dataflow)
    assert systolic_cycles(*shape, *array, dataflow) == cycles
    assert (made == 1).all()


@pytest.mark.parametrize(
    ("shape", "array", "cycles"),
    [  # counts of version 3 of SCALE-Sim, weights stationary, plus its missing last cycle
        ((12100, 64, 147), (16, 16), 10 * 4 * (12100 + 46)),
        ((3136, 64, 256), (32, 32), 8 * 2 * (3136 + 94)),
    ],
)
def test_known_layers_take_what_the_convention_says(shape, array, cycles):
    assert systolic_cycles(*shape, *array, "ws") == cycles


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((0, 1, 1, 1, 1, "ws"), InputError, "m=0 will not do; a whole number from 1 up would"),
        ((1, 1, 1, 1, 2.0, "ws"), InputError, "cols=2.0 will not do"),
        ((1, 1, 1, 1, 1, "xs"), UnknownNameError, "no dataflow 'xs'; there are os, ws, is"),
    ],
)
def test_what_is_no_product_or_array_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        systolic_cycles(*arguments)


arrays = st.builds(
    Array,
    rows=st.integers(1, 9),
    cols=st.integers(1, 9),
    dataflow=st.sampled_from(DATAFLOWS),
    input_bytes=st.sampled_from([100, 400, 3000, PLENTY]),
    weight_bytes=st.sampled_from([200, 600, 3000, PLENTY]),
    output_bytes=st.sampled_from([700, 4000, PLENTY]),
    bits_per_cycle=st.fractions(Fraction(1, 7), 500, max_denominator=9),
)
shapes = st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))


@given(shapes, arrays)
def test_every_cycle_has_a_name_and_no_word_is_moved_faster_than_the_bandwidth(shape, array):
    m, n, k = shape
    try:
        timing = array_timing(m, n, k, array, 8, 6, 32)
    except DeviceError as error:
        assert "memory holds" in str(error)  # noqa: PT017
        return
    assert timing.useful + sum(timing.losses.values()) == timing.cycles
    assert min(timing.losses.values()) >= 0
    assert timing.cycles >= timing.bits / array.bits_per_cycle
    assert timing.bits >= m * k * 8 + n * k * 6 + m * n * 32  # each word at least once
    assert timing.macs == m * n * k
    assert timing.utilization == pytest.approx(m * n * k / (timing.cycles * array.rows * array.cols))


@given(shapes, arrays)
def test_turns_that_repeat_are_added_as_if_each_had_been_stepped(shape, array):
    def step_all(_, turn, times):
        for _ in range(times):
            turn()

    try:
        skipped = array_timing(*shape, array, 8, 8, 32)
    except DeviceError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systolic, "repeat", step_all)
        assert array_timing(*shape, array, 8, 8, 32) == skipped


@given(shapes, arrays)
def test_a_memory_that_never_waits_makes_the_engine_no_slower_than_serial_folds(shape, array):
    fast = Array(array.rows, array.cols, array.dataflow, PLENTY, PLENTY, PLENTY, Fraction(10**9))
    serial = systolic_cycles(*shape, array.rows, array.cols, array.dataflow)
    timing = array_timing(*shape, fast, 8, 8, 32)
    assert timing.cycles <= serial + 1  # the first word takes a fraction of a cycle
    assert timing.losses["dram"] <= 1


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_a_product_that_dram_holds_up_takes_what_its_words_take_at_the_bandwidth(dataflow):
    array = Array(8, 8, dataflow, 4096, 4096, 4096, Fraction(1, 3))
    timing = array_timing(64, 64, 64, array, 8, 8, 32)
    words = timing.bits / array.bits_per_cycle
    assert words <= timing.cycles <= words * 1.02
    assert timing.losses["dram"] > timing.cycles / 2


def test_an_operand_that_fits_its_memory_is_loaded_once_and_another_each_time():
    def loaded(input_bytes: int) -> int:
        array = Array(8, 8, "ws", input_bytes, 4096, PLENTY, Fraction(8))
        return array_timing(32, 64, 64, array, 8, 8, 32).bits - 64 * 64 * 8 - 32 * 64 * 32

    assert loaded(32 * 64) == 32 * 64 * 8
    assert loaded(32 * 64 - 1) == 8 * 32 * 64 * 8  # once a column of folds


def test_a_memory_that_is_too_small_is_named_with_the_size_that_would_do():
    array = Array(8, 8, "ws", 4096, 100, 4096, Fraction(8))
    with pytest.raises(
        DeviceError, match="half of the weight memory holds 50 bytes and a fold needs 64; a memory of 128"
    ):
        array_timing(64, 64, 64, array, 8, 8, 32)
    enough = Array(8, 8, "ws", 4096, 128, 4096, Fraction(8))
    assert array_timing(64, 64, 64, enough, 8, 8, 32).folds == 64


def test_the_time_of_a_large_product_does_not_come_from_stepping_its_folds():
    array = Array(16, 16, "ws", 1 << 16, 1 << 16, 1 << 16, Fraction(500))

    class Counting(systolic._Work):
        steps = 0

        def fold(self, f):
            Counting.steps += 1
            super().fold(f)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systolic, "_Work", Counting)
        timing = array_timing(50176, 4096, 25088, array, 8, 8, 32)
    assert timing.folds > 1_000_000
    assert Counting.steps < 10_000


def test_a_loop_that_never_repeats_is_stepped_to_its_end():
    class Drifting:
        def __init__(self) -> None:
            self.tally = Counter()
            self.now = 0

        def relative(self):
            return self.now

        def skip(self, duration):
            raise AssertionError(duration)

        def turn(self):
            self.now += 1 + self.now % 7
            self.tally["turns"] += 1

    work = Drifting()
    steady.repeat(work, work.turn, 50)
    assert work.tally["turns"] == 50
