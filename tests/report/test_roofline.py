"""No layer lies above the roof."""

import dataclasses

import pytest

import fpgasim as fs
from fpgasim.errors import InputError
from fpgasim.report.layers import layer_rows
from fpgasim.report.roofline import attainable, attainable_corner, draw_roofline
from fpgasim.runtime import plan_timing

DEVICE = fs.npu.get_device("bw_a10")


@pytest.fixture(scope="module")
def rows():
    plan = fs.partition(fs.zoo.load("resnet50"), DEVICE, "bw_1s5e5m", objective="coverage")
    return layer_rows(plan_timing(plan))


def test_no_layer_is_above_the_roof(rows):
    for row in rows:
        if row.macs and row.dram_bytes:
            reached = row.macs * DEVICE.clock_hz / max(row.compute_cycles, row.load_cycles)
            assert reached <= attainable(DEVICE, row.macs / row.dram_bytes) * (1 + 1e-9)


def test_the_roof_is_the_bandwidth_below_the_corner_and_the_peak_above():
    corner, peak = attainable_corner(DEVICE), DEVICE.macs_per_cycle * DEVICE.clock_hz
    assert attainable(DEVICE, corner / 2) == pytest.approx(peak / 2)
    assert attainable(DEVICE, corner * 2) == peak


@pytest.mark.parametrize(("name", "magic"), [("r.png", b"\x89PNG"), ("r.svg", b"<?xml")])
def test_the_picture_is_written_in_the_form_of_its_suffix(rows, tmp_path, name, magic):
    draw_roofline(rows, DEVICE, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_the_picture_says_what_a_dot_s_time_is_and_how_many_there_are(rows, tmp_path):
    some = [row for row in rows if row.macs and row.dram_bytes]
    for name, shown, words in (("one.svg", some[:1], "GB/s, 1 layer "), ("all.svg", some, f"{len(some)} layers ")):
        draw_roofline(shown, DEVICE, tmp_path / name)
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert words in text  # the text of a path stands in a comment
        assert "work or weight transfer, whichever takes a layer longer" in text


def test_layers_without_products_make_no_roofline(rows, tmp_path):
    pools = [dataclasses.replace(row, macs=0) for row in rows]
    with pytest.raises(InputError, match="no layer of the FPGA has products and weights"):
        draw_roofline(pools, DEVICE, tmp_path / "r.png")
    assert list(tmp_path.iterdir()) == []
