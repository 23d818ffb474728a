"""The published figures as data, and the weights that are loaded ahead."""

import dataclasses
import math
from collections import Counter

import pytest

from fpgasim.kernels.contract import Window
from fpgasim.npu import Layer, Stage, get_device, layer_timing, resolve_numbers, segment_timing
from fpgasim.npu.prefetch import prefetched_cycles
from fpgasim.npu.references import BOARD_SCALE, REFERENCES, UNITS, WORDS
from fpgasim.npu.workloads import KINDS, parse_workload, workload_timing

CNN = get_device("bw_cnn_a10")
NUMBERS = resolve_numbers(CNN, "bw_1s5e5m")


def test_a_row_that_was_used_to_fit_validates_nothing():
    assert {row.word for row in REFERENCES if row.used_for} == {"consistent"}


def test_every_row_is_one_figure_with_a_known_word_and_unit():
    figures = Counter((row.source, row.device, row.workload, row.unit) for row in REFERENCES)
    assert set(figures.values()) == {1}
    assert {row.word for row in REFERENCES} <= set(WORDS)
    assert {row.unit for row in REFERENCES} == set(UNITS)


def test_a_row_without_a_bound_says_why():
    assert all(row.note for row in REFERENCES if row.bound is None)


def test_devices_and_workloads_of_the_rows_are_there():
    for row in REFERENCES:
        if row.workload.partition(":")[0] in KINDS:
            parse_workload(row.workload)
        if row.source != "SCALE-Sim":
            get_device(row.device)


def test_the_scale_of_the_board_is_the_mean_ratio_of_the_rows_that_it_was_fitted_to():
    ratios = []
    for row in REFERENCES:
        if row.used_for == "one scale":
            timing = workload_timing(parse_workload(row.workload), get_device(row.device))
            ratios.append(2 * timing.macs / timing.seconds / 1e12 / row.expected)
    assert len(ratios) == 5
    assert math.exp(sum(map(math.log, ratios)) / 5) == pytest.approx(BOARD_SCALE, abs=0.0005)


def test_of_two_published_sets_of_latencies_each_device_has_the_one_that_fits_its_row():
    """Of the register transfer code and of the cycle model of github.com/intel/fpga-npu."""
    names = ("mvm_latency", "mfu_latency", "external_latency", "loader_latency", "start_cycles")
    sets = [dict(zip(names, values, strict=True)) for values in ((73, 21, 11, 5, 29), (30, 9, 1, 5, 0))]
    rows = [row for row in REFERENCES if row.used_for == "choice of latencies"]
    errors = []
    for row in rows:
        devices = [dataclasses.replace(get_device(row.device), **latencies) for latencies in sets]
        seconds = [workload_timing(parse_workload(row.workload), device).seconds for device in devices]
        errors.append([1e3 * time / row.expected - 1 for time in seconds])
    assert errors == [
        [pytest.approx(0.079, abs=1e-3), pytest.approx(-0.218, abs=1e-3)],
        [pytest.approx(0.798, abs=1e-3), pytest.approx(-0.039, abs=1e-3)],
    ]


def conv(name: str, channels: int, filters: int, side: int) -> Layer:
    shapes = (1, side, side, channels), (1, side, side, filters)
    window = Window((1, 1), (1, 1), (0, 0, 0, 0))
    return Layer(name, "conv", (name,), ("x",), name, *shapes, (Stage("bias", name, "b"),), window, weight="w")


LAYERS = [conv("a", 128, 128, 14), conv("b", 512, 2048, 7), conv("c", 2048, 512, 7), conv("d", 128, 128, 14)]


def test_with_a_memory_without_limits_prefetching_costs_what_the_work_takes():
    device = dataclasses.replace(CNN, dram_bytes_per_s=1e18)
    timing = segment_timing(LAYERS, device, NUMBERS)
    assert prefetched_cycles(LAYERS, device, NUMBERS) == pytest.approx(timing.compute_cycles, abs=50)


def test_with_a_slow_memory_prefetching_costs_the_loads_and_the_work_on_the_last_row():
    device = dataclasses.replace(CNN, dram_bytes_per_s=1e8)
    timing = segment_timing(LAYERS, device, NUMBERS)
    last = layer_timing(LAYERS[-1], device, NUMBERS)
    assert prefetched_cycles(LAYERS, device, NUMBERS) == pytest.approx(
        timing.load_cycles + last.compute_cycles, rel=1e-4
    )


@pytest.mark.parametrize("rate", [5e9, 19.2e9, 40e9])
def test_prefetching_is_no_slower_than_one_layer_ahead_and_faster_with_more_room(rate):
    device = dataclasses.replace(CNN, dram_bytes_per_s=rate)
    roomy = dataclasses.replace(device, mrf_tiles=512)
    ahead = prefetched_cycles(LAYERS, device, NUMBERS)
    assert prefetched_cycles(LAYERS, roomy, NUMBERS) <= ahead <= segment_timing(LAYERS, device, NUMBERS).cycles
    assert prefetched_cycles([], device, NUMBERS) == 0


def test_a_load_waits_until_what_it_overwrites_is_done():
    # Room for one layer's 16 tiles at a time: load, work, load, work.
    device = dataclasses.replace(CNN, mrf_tiles=4)
    layers = [conv("a", 512, 128, 7), conv("b", 512, 128, 7)]
    rows = [layer_timing(layer, device, NUMBERS) for layer in layers]
    assert prefetched_cycles(layers, device, NUMBERS) == sum(row.load_cycles + row.compute_cycles for row in rows)
