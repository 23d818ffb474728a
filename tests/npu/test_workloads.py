"""Workloads by their text, and what they cost on the overlay engine."""

import dataclasses
from fractions import Fraction

import pytest

from fpgasim.errors import DeviceError, InputError
from fpgasim.kernels.contract import Window
from fpgasim.npu import Layer, get_device, resolve_numbers, segment_timing, workloads
from fpgasim.npu.overlay import Overlay
from fpgasim.npu.simulation import CYCLES
from fpgasim.npu.systolic import Array, array_timing
from fpgasim.npu.timing import bits_per_element
from fpgasim.npu.workloads import overlay_timing, parse_workload, segment_losses, workload_timing

NPU = get_device("intel_npu_7t40d40l")


def cycles(text: str, batch: int | None = None) -> int:
    return overlay_timing(parse_workload(text), NPU, batch).cycles


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        ("gemv:30:50", 30 * 50),
        ("rnn:64:3", 2 * 64 * 64 * 3),
        ("gru:64:3", 6 * 64 * 64 * 3),
        ("lstm:64:3", 8 * 64 * 64 * 3),
        ("mlp:10-20-30", 10 * 20 + 20 * 30),
        ("conv:8:10:3:16:3:3:2:1", 4 * 5 * 3 * 16 * 9),
    ],
)
def test_a_workload_knows_its_multiply_accumulates(text, macs):
    assert parse_workload(text).macs == macs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gemm:3:4", "one of gemv:IN:OUT, rnn:H:T"),
        ("gru:1024", "has 1 numbers; gru:H:T would do"),
        ("gru:a:8", "one of gemv"),
        ("gemv:0:8", "every number but a padding must be 1 or more"),
        ("mlp:512", "has 1 numbers; mlp:A-B-C"),
        ("conv:8:8:3:16:9:9:1:0", "the window does not fit"),
        ("conv:8:8:3:16:3:3:0:1", "must be 1 or more"),
        ("", "one of gemv"),
        ("gru:\u0663:\u0664", "one of gemv"),  # digits, but of another script
    ],
)
def test_what_is_no_workload_is_refused_with_the_forms_that_are(text, words):
    with pytest.raises(InputError, match=words):
        parse_workload(text)


def test_the_simulated_npu_takes_as_long_as_the_published_register_transfer_code_it_was_fitted_to():
    published = {  # github.com/intel/fpga-npu, scripts/rtl_baseline: cycles from TOPS at 300 MHz
        "gemv:512:512": 266, "gemv:1024:1024": 389, "gemv:1152:1152": 460, "gemv:1536:1536": 564, "gemv:1792:1792": 684,
        "rnn:512:8": 2021, "rnn:1024:8": 3044, "rnn:1152:8": 3623, "rnn:1536:8": 4543, "rnn:1792:8": 5585,
    }  # fmt: skip
    assert {text: cycles(text) for text in published} == {
        text: pytest.approx(count, abs=1) for text, count in published.items()
    }


def test_one_product_takes_its_load_its_rows_and_the_results_of_its_last_chunk():
    # 13 rows in one chunk, 2 passes over 280 inputs, 3 vectors a weight read
    theta = 2 + 2 * (21 + 4) + 5
    assert cycles("gemv:512:512") == 29 + 3 * 7 * 2 + 13 * 2 + 3 * 13 + 73 + theta


def test_layers_of_a_perceptron_follow_one_another():
    first, both = cycles("gemv:512:512"), cycles("mlp:512-512-512")
    assert both == first + 13 * 2 + 3 * 13 + 73 + 57


def test_a_second_batch_costs_less_than_the_first_since_its_load_overlaps():
    one, two = cycles("gemv:1024:1024"), cycles("gemv:1024:1024", batch=12)
    assert one < two < 2 * one
    assert cycles("gemv:1024:1024", batch=7) == two


@pytest.mark.parametrize("text", ["gemv:300:700", "rnn:512:5", "gru:256:7", "lstm:100:3", "mlp:64-128-32"])
@pytest.mark.parametrize("key", ["intel_npu_7t40d40l", "intel_4t120d40l", "bw_6t400d40l"])
def test_every_cycle_has_a_name(text, key):
    device = get_device(key)
    timing = overlay_timing(parse_workload(text), device)
    assert sum(timing.losses.values()) == timing.cycles
    assert min(timing.losses.values()) >= 0
    assert timing.losses.keys() <= set(CYCLES)
    assert timing.losses["idle"] == 0
    assert timing.macs == parse_workload(text).macs * device.batch
    assert timing.utilization == pytest.approx(timing.macs / (timing.cycles * device.macs_per_cycle))
    assert timing.losses["useful"] == -(-timing.macs // device.macs_per_cycle)


def test_only_the_inputs_that_were_asked_for_count_as_useful():
    six, seven, twelve = (overlay_timing(parse_workload("gemv:512:512"), NPU, n) for n in (6, 7, 12))
    assert (seven.cycles, seven.macs) == (twelve.cycles, 7 * 512 * 512)
    assert seven.utilization < six.utilization < twelve.utilization


def test_a_long_sequence_costs_a_constant_number_of_cycles_a_step():
    counts = [cycles(f"gru:512:{time}") for time in (20, 21, 22)]
    assert counts[2] - counts[1] == counts[1] - counts[0]


def test_an_operand_holds_a_chain_up_until_it_is_written():
    engine = Overlay(NPU)
    engine.load("x", 280)
    engine.constant("late")
    engine.product("x", 280, 40, ["y"])
    without = engine.end
    engine = Overlay(NPU)
    engine.load("x", 280)
    engine.ready["late"] = 500
    engine.product("x", 280, 40, ["y"], ["late"])
    assert without < engine.end == 500 + 3 + 57


def test_the_overlay_runs_no_convolutions():
    with pytest.raises(DeviceError, match="'intel_npu_7t40d40l' runs no convolutions; gemv:IN:OUT, rnn:H:T"):
        overlay_timing(parse_workload("conv:8:8:3:16:3:3:1:1"), NPU)


def test_a_cell_on_a_matrix_vector_engine_takes_its_products_or_the_floor_whichever_is_more():
    s10 = get_device("bw_s10")

    def step(text: str) -> float:
        workload = parse_workload(text)
        return workload_timing(workload, s10).cycles / workload.sizes[1]

    assert step("gru:1024:1500") == 632  # fitted
    assert step("lstm:256:150") == 708  # fitted
    assert step("gru:512:100") == 632
    assert step("lstm:2000:50") == pytest.approx(718, rel=0.02)  # ISCA 2018, Table I
    assert step("gru:2800:50") == pytest.approx(662, rel=0.03)  # ISCA 2018, Table I
    assert step("gru:2800:50") > 6 * 49 / 6 * 10  # no quicker than its tiles


def test_weights_that_do_not_fit_on_the_chip_are_refused_unless_packing_them_helps():
    s10 = get_device("bw_s10")
    assert workload_timing(parse_workload("gru:2816:2"), s10).cycles > 0
    assert workload_timing(parse_workload("gru:2824:2"), s10).cycles > 0
    with pytest.raises(DeviceError, match="the gru needs 384"):  # 25 above, a sixteenth of N
        workload_timing(parse_workload("gru:2825:2"), s10)
    with pytest.raises(DeviceError, match="'bw_s10' holds 306 native tiles of 400x400 weights, the gru needs 384"):
        workload_timing(parse_workload("gru:3100:2"), s10)


@pytest.mark.parametrize("tiles", [1, 2, 5, 6, 7, 48, 49, 50])
def test_a_packed_cell_has_no_more_useful_cycles_than_its_steps_can_hold(tiles):
    device = dataclasses.replace(get_device("bw_s10"), tiles=tiles, gru_floor=0)
    room = -(-49 // tiles) * tiles * 400 * 400
    if room < 2816 * 2816:
        with pytest.raises(DeviceError, match="the gru does not fit on the chip"):
            workload_timing(parse_workload("gru:2816:3"), device)
        return
    timing = workload_timing(parse_workload("gru:2816:3"), device)
    steps = 3 * 6 * -(-49 // tiles) * device.cycles_per_mvm
    assert timing.losses["useful"] == -(-timing.macs // device.macs_per_cycle) <= steps
    assert timing.losses["useful"] + timing.losses["padding"] == steps


@pytest.mark.parametrize("text", ["lstm:999999:9", "gemv:999999:999999", "mlp:999999-999999-5"])
def test_what_is_far_too_large_says_so_and_not_that_a_field_is_too_narrow(text):
    with pytest.raises(DeviceError, match="does not fit on the chip: device 'bw_s10' holds 306 native tiles"):
        workload_timing(parse_workload(text), get_device("bw_s10"))


@pytest.mark.parametrize("key", ["bw_s10", "bw_a10", "bw_s5", "systolic_16x16_os", "intel_4t120d40l"])
@pytest.mark.parametrize("text", ["gemv:128:256", "mlp:64-128-64", "rnn:128:3", "conv:8:8:32:16:3:3:1:1"])
def test_every_engine_runs_what_it_can_and_names_every_cycle(text, key):
    device, workload = get_device(key), parse_workload(text)
    if (device.engine, workload.kind) in {("systolic", "rnn"), ("overlay", "conv")}:
        with pytest.raises(DeviceError, match="would do"):
            workload_timing(workload, device)
        return
    timing = workload_timing(workload, device, batch=2 * device.batch)
    assert sum(timing.losses.values()) == timing.cycles
    assert timing.macs == workload.macs * 2 * device.batch
    assert timing.cycles >= timing.macs / device.macs_per_cycle


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
def test_an_array_behind_a_slow_memory_loses_its_cycles_to_dram_and_one_behind_a_quick_one_does_not(dataflow):
    array = get_device(f"systolic_16x16_{dataflow}")
    slow, quick = (
        workload_timing(parse_workload("gemv:1024:1024"), dataclasses.replace(array, dram_bytes_per_s=rate))
        for rate in (1e8, 1e18)
    )
    assert slow.losses["dram"] > 0.9 * slow.cycles
    assert quick.losses["dram"] <= 1
    assert slow.losses["useful"] == quick.losses["useful"] == 1024 * 1024 // 256
    assert sum(slow.losses.values()) == slow.cycles


def test_the_named_cycles_of_an_array_are_those_of_its_products_group_by_group():
    device = get_device("systolic_16x16_ws")
    numbers = resolve_numbers(device, "bw_1s5e5m")
    window = Window((3, 3), (1, 1), (1, 1, 1, 1))
    shape = (1, 9, 9, 40)
    grouped = Layer("c", "conv", ("c",), ("x",), "y", shape, shape, window=window, groups=2, weight="w")
    timing = segment_timing([grouped], device, numbers)
    bits = bits_per_element(numbers)
    rate = Fraction(device.dram_bytes_per_s * device.dram_efficiency * 8) / device.clock_hz
    memories = device.input_sram_bytes, device.weight_sram_bytes, device.output_sram_bytes
    one = array_timing(81, 20, 180, Array(16, 16, "ws", *memories, rate), bits, bits, 32)
    (row,) = timing.layers
    assert row.array_cycles == {"useful": 2 * one.useful} | {name: 2 * n for name, n in one.losses.items()}
    assert sum(row.array_cycles.values()) == row.mvm_cycles
    losses = segment_losses(timing)
    assert sum(losses.values()) == timing.cycles
    assert losses["drain"] == 2 * one.losses["drain"] > 0
    assert losses["padding"] == 2 * one.losses["padding"] > 0
    assert losses.keys() <= set(CYCLES)


def test_a_batch_below_one_is_refused():
    with pytest.raises(InputError, match="batch=0 will not do"):
        workload_timing(parse_workload("gemv:8:8"), NPU, batch=0)


@pytest.mark.parametrize("key", ["intel_npu_7t40d40l", "intel_4t120d40l", "bw_6t400d40l"])
@pytest.mark.parametrize("text", ["rnn:300:90", "gru:700:90", "lstm:1100:90", "gru:40:90", "mlp:64-700-32"])
def test_what_repeats_is_added_exactly(text, key, monkeypatch):
    def stepped(work, turn, times):
        for _ in range(times):
            turn()

    device, workload = get_device(key), parse_workload(text)
    quick = overlay_timing(workload, device, 4 * device.batch)
    monkeypatch.setattr(workloads, "repeat", stepped)
    assert overlay_timing(workload, device, 4 * device.batch) == quick


def test_the_longest_sequence_takes_no_longer_to_count():
    assert cycles("lstm:256:999999") > 999_999 * 8


def test_a_second_batch_of_a_cell_begins_with_a_new_state():
    one, two = cycles("rnn:512:8"), cycles("rnn:512:8", batch=12)
    assert two < 2 * one
