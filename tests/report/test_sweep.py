"""A sweep: one tidy row a combination, the ones that none beats marked."""

import dataclasses

import pytest

import fpgasim as fs
from fpgasim.errors import DeviceError, InputError, UnknownNameError
from fpgasim.report.sweep import draw_pareto, mark_pareto, sweep


@pytest.fixture(scope="module")
def rows():
    axes = {"native_dim": [64, 128], "tiles": [4, 8], "lanes": [16, 24]}
    return sweep(fs.zoo.load("efficientnet_lite0"), "bw_a10", ["bw_1s5e5m", "msfp16"], axes)


def test_every_combination_has_a_row_with_its_figures_or_the_reason_why_not(rows):
    assert len(rows) == 2 * 2 * 2 * 2
    assert len({(row.format, row.native_dim, row.lanes, row.tiles) for row in rows}) == len(rows)
    for row in rows:
        if row.lanes == 24:  # divides neither 64 nor 128
            assert f"lanes=24 must be a divisor of native_dim={row.native_dim}" in row.note
            assert (row.cycles, row.alms, row.pareto) == (None, None, False)
        else:
            assert row.note == ""
            assert row.cycles > 0
            assert row.alms > 0


def test_a_row_has_the_figures_of_its_engine_alone(rows):
    row = next(r for r in rows if (r.native_dim, r.lanes, r.tiles, r.format) == (128, 16, 8, "msfp16"))
    plan = fs.partition(fs.zoo.load("efficientnet_lite0"), "bw_a10", "msfp16", objective="coverage")
    timing = fs.runtime.plan_timing(plan)
    assert (row.cycles, row.total_ms, row.utilization) == (timing.cycles, timing.total_ms, timing.utilization)


def test_no_row_beats_one_that_is_marked_and_one_that_is_marked_beats_every_other(rows):
    shown = [row for row in rows if row.total_ms is not None]
    front = [row for row in shown if row.pareto]
    assert front

    def beats(a, b) -> bool:
        return a.total_ms <= b.total_ms and a.area <= b.area and (a.total_ms, a.area) != (b.total_ms, b.area)

    for row in shown:
        assert row.pareto == (not any(beats(other, row) for other in shown))
    same = mark_pareto([front[0], dataclasses.replace(front[0], device="twin")])
    assert [row.pareto for row in same] == [True, True]


def test_the_picture_is_drawn_and_one_without_figures_is_refused(rows, tmp_path):
    draw_pareto(rows, "title", tmp_path / "p.svg")
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
    without = [row for row in rows if row.total_ms is None]
    with pytest.raises(InputError, match=r"none of the 8 .* has a time and an area; the first says: .*lanes=24"):
        draw_pareto(without, "title", tmp_path / "q.svg")


def test_a_format_without_an_area_keeps_its_time_and_is_beside_the_front(rows):
    (floats,) = sweep(fs.zoo.load("efficientnet_lite0"), "bw_a10", ["mxfp8_e4m3"], {})
    assert floats.total_ms > 0
    assert floats.utilization > 0
    assert (floats.alms, floats.m20ks, floats.dsps, floats.area) == (None, None, None, float("inf"))
    assert "'mxfp8_e4m3' has no integer elements" in floats.note
    quick = dataclasses.replace(floats, total_ms=1e-9)  # quicker than all, of unknown size
    assert [row.pareto for row in mark_pareto([*rows, quick])] == [*(row.pareto for row in rows), False]


@pytest.mark.parametrize(
    ("device", "formats", "error", "words"),
    [
        ("bw_a10", ["msfp16", "zz"], UnknownNameError, "no format 'zz'; there are msfp11"),
        ("bw_zz", ["msfp16"], UnknownNameError, "no device 'bw_zz'"),
        ("intel_npu_7t40d40l", ["msfp16"], DeviceError, "'intel_npu_7t40d40l' is of the kind overlay; a sweep starts"),
        ("systolic_8x8_ws", ["msfp16"], DeviceError, "'systolic_8x8_ws' is of the kind systolic; a sweep starts"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_any_work(device, formats, error, words):
    with pytest.raises(error, match=words):
        sweep(None, device, formats, {"tiles": [4, 8]})  # the graph is not looked at


def test_an_axis_that_is_none_is_refused():
    with pytest.raises(InputError, match="no axis 'mfus'; there are native_dim, lanes, tiles, bandwidth, clock"):
        sweep(fs.zoo.load("resnet50"), "bw_a10", ["msfp16"], {"mfus": [1]})
