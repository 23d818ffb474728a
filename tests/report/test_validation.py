"""Published figures beside what the models say."""

import dataclasses

import pytest

from fpgasim.npu.references import REFERENCES, UNITS, Reference
from fpgasim.report import validation
from fpgasim.report.validation import MEASURES, Result, result_json, steps_of_cells, validate

ROW = Reference("a paper", "bw_s10", "gru:1024:10", "cycles", 6320, 0.01, "consistent")


def test_every_unit_of_a_row_can_be_measured():
    assert set(MEASURES) == set(UNITS)


def test_every_row_is_within_its_bound():
    assert [r.reference for r in validate() if r.holds is False] == []


def test_the_rows_kept_aside_are_within_4_percent_in_the_mean():
    errors = [
        abs(r.error) for r in validate(REFERENCES[:18]) if r.reference.word == "validated"
    ]  # register transfer code of GRU, LSTM and MLP
    assert len(errors) == 8
    assert sum(errors) / 8 < 0.04


@pytest.mark.parametrize(
    ("low", "high", "error"), [(90, 90, -0.1), (110, 110, 0.1), (90, 110, 0), (110, 120, 0.1), (70, 80, -0.2)]
)
def test_the_error_is_that_of_the_nearest_figure(low, high, error):
    row = dataclasses.replace(ROW, expected=100)
    assert Result(row, low, high).error == pytest.approx(error)


def test_the_steps_of_cells_are_set_beside_the_best_constants():
    published = {"gru": (600, 660), "lstm": (700, 720, 1000)}
    rows = [
        dataclasses.replace(ROW, workload=f"{kind}:{128 * (i + 1)}:50", unit="cycles a step", expected=steps)
        for kind, values in published.items()
        for i, steps in enumerate(values)
    ]
    in_ms = dataclasses.replace(rows[0], unit="ms", expected=600 * 50 / 250e3)
    elsewhere = dataclasses.replace(rows[0], device="bw_a10", expected=1)
    without = dataclasses.replace(rows[0], bound=None, expected=1)
    count, (model, one, each) = steps_of_cells(
        [Result(row, 1.1 * row.expected, 1.1 * row.expected) for row in (in_ms, *rows[1:], elsewhere, without)]
    )
    assert count == 5
    assert (model.mean_error, model.largest_error) == (pytest.approx(0.1), pytest.approx(0.1))
    every = [600, 660, 700, 720, 1000]
    best = min(sum(abs(c / v - 1) for v in every) / 5 for c in range(500, 1101))
    assert one.mean_error == pytest.approx(best)
    assert one.by == "the best constant, 700"
    assert each.by == "the best one for each kind of cell, 600 and 720"
    errors = [0, 1 - 600 / 660, 720 / 700 - 1, 0, 1 - 720 / 1000]
    assert each.mean_error == pytest.approx(sum(errors) / 5)
    assert each.largest_error == pytest.approx(0.28)
    assert steps_of_cells([]) == (0, [])


def test_where_nothing_is_expected_the_error_is_absolute():
    row = dataclasses.replace(ROW, expected=0, bound=0.0)
    assert Result(row, 3, 3).error == 3
    assert Result(row, 3, 3).holds is False
    assert Result(row, 0, 0).holds is True


def test_a_bound_from_below_misses_only_above_the_figure():
    row = dataclasses.replace(ROW, unit="ms, compute alone", expected=1.0, bound=0.0)
    assert (Result(row, 0.5, 0.5).holds, Result(row, 1.1, 1.1).holds) == (True, False)


def test_a_row_is_measured_and_judged():
    (result,) = validate([ROW])
    assert (result.low, result.high, result.error, result.holds) == (6320, 6320, 0, True)
    (missed,) = validate([dataclasses.replace(ROW, expected=7000)])
    assert missed.holds is False
    (open_,) = validate([dataclasses.replace(ROW, expected=7000, bound=None)])
    assert open_.holds is None
    assert result_json(result)["got"] == 6320
    assert result_json(Result(ROW, 1, 2))["got"] == [1, 2]


def test_the_scale_of_a_row_multiplies_its_time():
    slower = dataclasses.replace(ROW, scale=2.0)
    assert validate([slower])[0].low == 2 * 6320


def test_serial_folds_of_networks_are_held_to_a_count_that_can_differ(monkeypatch):
    row = Reference("SCALE-Sim", "", "squeezenet", "cycles off", 0, 0.0, "consistent")
    assert validate([row])[0].low == 0
    monkeypatch.setattr(validation, "systolic_cycles", lambda *shape: 1)
    assert validate([row])[0].low > 0
