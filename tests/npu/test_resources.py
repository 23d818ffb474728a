"""FPGA resources of an engine, held to the three published instances."""

import dataclasses

import pytest

from fpgasim.errors import DeviceError
from fpgasim.npu import get_device
from fpgasim.npu.resources import PUBLISHED, Resources, estimate_resources, fit, left_out

A10 = get_device("bw_a10")
FIGURES = ("alms", "m20ks", "dsps")


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_an_instance_left_out_of_the_fit_is_estimated_within_15_percent(name, figure):
    assert getattr(left_out(name), figure) == pytest.approx(getattr(PUBLISHED[name], figure), rel=0.15)


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_fit_to_all_three_is_within_5_percent_of_each(name, figure):
    assert getattr(estimate_resources(name), figure) == pytest.approx(getattr(PUBLISHED[name], figure), rel=0.05)


@pytest.mark.parametrize("names", [("bw_s5", "bw_a10"), ("bw_s10", "bw_a10")])
def test_two_instances_fix_the_two_coefficients_of_alms_and_dsps_exactly(names):
    for name in names:
        got = estimate_resources(name, coefficients=fit(names))
        assert (got.alms, got.dsps) == (PUBLISHED[name].alms, PUBLISHED[name].dsps)


def test_memory_bits_are_those_of_the_register_files():
    matrix = 512 * 128 * 128 * 3
    assert estimate_resources(A10).memory_bits == matrix + 5 * 512 * 128 * 16
    assert estimate_resources("bw_s10").memory_bits < 8192 * 512 * 40  # fits into the published M20Ks


def test_the_matrix_file_takes_the_blocks_that_its_ports_need():
    more = dataclasses.replace(A10, mrf_tiles=520)  # one word beyond 512 a tile engine
    extra = estimate_resources(more).m20ks - estimate_resources(A10).m20ks
    assert extra == 8 * -(-128 * 16 * 3 // 40)


def test_vector_files_whose_depth_is_given_count_in_full():
    given = dataclasses.replace(A10, initial_vrf=2048, assumed=A10.assumed - {"initial_vrf"})
    assert estimate_resources(given).m20ks - estimate_resources(A10).m20ks == 3 * -(-128 * 16 // 40)


@pytest.mark.parametrize(
    "larger",
    [{"tiles": 16}, {"lanes": 32}, {"native_dim": 256}, {"mrf_tiles": 2048}, {"mfus": 4}],
    ids=str,
)
def test_a_larger_engine_takes_no_less_of_anything(larger):
    small, large = estimate_resources(A10), estimate_resources(dataclasses.replace(A10, **larger))
    assert all(b >= a for a, b in zip(dataclasses.astuple(small), dataclasses.astuple(large), strict=True))
    assert large != small


def test_wider_mantissas_take_more_of_everything():
    by_width = [estimate_resources(A10, key) for key in ("bw_1s5e2m", "bw_1s5e3m", "bw_1s5e5m", "msfp16")]
    for figure in ("alms", "m20ks"):
        values = [getattr(r, figure) for r in by_width]
        assert values == sorted(set(values))
    assert [r.dsps for r in by_width] == sorted(r.dsps for r in by_width)


@pytest.mark.parametrize(
    ("device", "fmt", "words"),
    [
        ("systolic_8x8_ws", "bw_1s5e2m", "is of the kind systolic; resources are estimated of matvec engines only"),
        ("intel_4t120d40l", "bw_1s5e2m", "is of the kind overlay"),
        ("bw_a10", "fp32", "format 'fp32' has no integer elements"),
        ("bw_a10", "mxfp8_e4m3", "format 'mxfp8_e4m3' has no integer elements"),
    ],
)
def test_what_the_formulas_do_not_cover_is_refused(device, fmt, words):
    with pytest.raises(DeviceError, match=words):
        estimate_resources(device, fmt)


def test_the_published_instances_are_those_of_the_paper():
    assert PUBLISHED["bw_a10"] == Resources(216_602, 2_171, 1_518)
