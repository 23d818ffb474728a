"""Devices: presets, the doors that check them, and the numbers they resolve."""

import dataclasses

import pytest

from fpgasim.errors import DeviceError, UnknownNameError
from fpgasim.npu import DEVICES, device_rows, get_device, resolve_numbers
from fpgasim.numerics import CATALOGUE, WHOLE, BlockFormat

TABLE_III = ("native_dim", "lanes", "tiles", "mrf_tiles", "mfus", "clock_hz")
A10 = get_device("bw_a10")


@pytest.mark.parametrize(
    ("key", "values", "teraflops"),
    [
        ("bw_s5", (100, 10, 6, 306, 2, 200_000_000), 2.4),
        ("bw_a10", (128, 16, 8, 512, 2, 300_000_000), 9.8304),
        ("bw_s10", (400, 40, 6, 306, 2, 250_000_000), 48.0),
    ],
)
def test_a_preset_has_the_published_parameters_and_their_peak(key, values, teraflops):
    device = get_device(key)
    assert tuple(getattr(device, name) for name in TABLE_III) == values
    assert device.peak_flops == teraflops * 1e12
    assert device.name == key


BRAINWAVE = [get_device(key) for key in ("bw_s5", "bw_a10", "bw_s10")]


@pytest.mark.parametrize("device", BRAINWAVE, ids=lambda d: d.name)
def test_the_matrix_registers_of_a_preset_are_what_memories_of_512_words_hold(device):
    assert device.mrf_tiles == device.tiles * (512 // device.cycles_per_mvm)


def test_the_presets_come_in_their_order():
    assert list(DEVICES)[:3] == ["bw_s5", "bw_a10", "bw_s10"]


def test_a_device_passes_through_and_an_unknown_name_lists_those_there_are():
    custom = dataclasses.replace(A10, name="mine", lanes=32)
    assert get_device(custom) is custom
    with pytest.raises(UnknownNameError, match=r"^no device 'bw_x'; there are bw_s5, bw_a10, bw_s10"):
        get_device("bw_x")


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("lanes", 48, "a divisor of native_dim=128"),
        ("lanes", 0, "a whole number from 1 up"),
        ("lanes", 256, "a divisor of native_dim=128"),
        ("native_dim", 1 << 17, "at most 65536"),
        ("native_dim", 128.0, "a whole number from 1 up"),
        ("tiles", -1, "a whole number from 1 up"),
        ("tiles", True, "a whole number from 1 up"),
        ("mfus", 0, "a whole number from 1 up"),
        ("mfus", 5, "from 1 to 4, for which the instructions have register files"),
        ("gru_floor", -1, "a whole number from 0 up"),
        ("lstm_floor", "x", "a whole number from 0 up"),
        ("mrf_tiles", 0, "a whole number from 1 up"),
        ("clock_hz", 0, "a whole number from 1 up"),
        ("mvm_latency", -1, "a whole number from 0 up"),
        ("dram_bytes_per_s", 0.0, "a finite rate above 0"),
        ("dram_bytes_per_s", float("inf"), "a finite rate above 0"),
        ("pcie_bytes_per_s", "fast", "a finite rate above 0"),
        ("dram_efficiency", 1.01, "above 0 and at most 1"),
        ("dram_efficiency", 0, "above 0 and at most 1"),
        ("launch_s", -1e-6, "a finite time, 0 or more"),
        ("pcie_latency_s", float("nan"), "a finite time, 0 or more"),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value_and_what_would_do(field, value, wanted):
    with pytest.raises(DeviceError) as error:
        dataclasses.replace(A10, **{field: value})
    assert str(error.value) == f"device 'bw_a10': {field}={value!r} must be {wanted}"


@pytest.mark.parametrize("field", ["engine", "dataflow", "hazard", "accumulator", "order", "pointwise"])
def test_a_name_that_a_device_cannot_have_is_refused_with_those_it_can(field):
    with pytest.raises(UnknownNameError, match=r"no .* 'odd'; there are "):
        dataclasses.replace(A10, **{field: "odd"})


def test_the_key_of_an_array_says_its_size_and_what_lies_still():
    array = get_device("systolic_24x16_is")
    assert (array.engine, array.array_rows, array.native_dim, array.dataflow) == ("systolic", 24, 16, "is")
    assert array.macs_per_cycle == 24 * 16
    rows = {row.field: row for row in device_rows(array)}
    assert {"lanes", "tiles", "mrf_tiles", "initial_vrf"}.isdisjoint(rows)
    assert {name for name, row in rows.items() if row.source == "given"} == {
        "native_dim", "engine", "array_rows", "dataflow",
    }  # fmt: skip


@pytest.mark.parametrize(
    "key", ["systolic_16x16_xs", "systolic_16_ws", "systolic_x16_ws", "systolic_16x16", "systolic_\u0663x\u0664_ws"]
)
def test_the_key_of_no_array_is_refused_with_the_form_of_one(key):
    with pytest.raises(UnknownNameError, match=r"systolic_RxC_\(os\|ws\|is\)"):
        get_device(key)


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(DeviceError, match=r"^device name 5 must be a text$"):
        dataclasses.replace(A10, name=5)


def test_engines_without_instructions_have_any_number_of_mfus():
    assert dataclasses.replace(get_device("systolic_16x16_ws"), mfus=5).mfus == 5
    assert dataclasses.replace(get_device("intel_4t120d40l"), mfus=5).mfus == 5


def test_an_array_without_rows_is_refused():
    with pytest.raises(DeviceError, match="array_rows=0 must be a whole number from 1 up"):
        get_device("systolic_0x16_ws")


def test_only_fields_can_be_assumed():
    with pytest.raises(DeviceError, match="unlike 'lane'"):
        dataclasses.replace(A10, assumed=frozenset({"lane"}))


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda d: d.name)
def test_every_field_of_a_preset_has_a_source_or_is_marked_assumed(device):
    rows = {row.field: row for row in device_rows(device)}
    assert {name for name, row in rows.items() if row.source == "assumed"} == device.assumed
    assert all(row.source for row in rows.values())


@pytest.mark.parametrize("device", BRAINWAVE, ids=lambda d: d.name)
def test_every_field_of_a_brainwave_is_published_or_marked_assumed(device):
    rows = {row.field: row for row in device_rows(device)}
    assert set(rows) == {f.name for f in dataclasses.fields(device) if device.engine in f.metadata.get("engines", ())}
    assert {name for name, row in rows.items() if row.source == "ISCA 2018, Table III"} == set(TABLE_III)
    assert {name for name, row in rows.items() if row.source == "ISCA 2018, IV"} == {"pointwise", "engine"}
    fitted = {name for name, row in rows.items() if row.source == "fitted to ISCA 2018, Table V"}
    assert fitted == ({"gru_floor", "lstm_floor"} if device.name == "bw_s10" else set())
    assert len({row.source for row in rows.values()}) == (4 if fitted else 3)
    assert all(row.value == getattr(device, name) and row.meaning for name, row in rows.items())


def test_a_changed_value_is_no_longer_called_published():
    changed = dataclasses.replace(A10, lanes=32)
    sources = {row.field: row.source for row in device_rows(changed)}
    assert (sources["lanes"], sources["tiles"]) == ("given", "ISCA 2018, Table III")


def test_formats_that_follow_the_device_get_blocks_of_the_native_dimension():
    assert [d.resolve_format("bw_1s5e5m").block for d in BRAINWAVE] == [100, 128, 400]
    assert A10.resolve_format("bw_1s5e5m") == CATALOGUE["bw_1s5e5m"]


@pytest.mark.parametrize("key", CATALOGUE)
def test_every_format_runs_on_the_device_with_the_dimension_that_all_blocks_divide(key):
    assert A10.native_dim % A10.resolve_format(key).block == 0


def test_a_block_that_does_not_divide_the_native_dimension_is_refused():
    with pytest.raises(DeviceError, match=r"'mxint8' has blocks of 32, .* dimension 100 of device 'bw_s5'"):
        get_device("bw_s5").resolve_format("mxint8")
    assert get_device("bw_s10").resolve_format("msfp16").block == 16
    assert get_device("bw_s5").resolve_format(BlockFormat("mine", 4, 8, 20)).block == 20
    with pytest.raises(DeviceError, match=r"'msfp16' has one block for a whole vector, .* with_block\(128\) would do"):
        A10.resolve_format(CATALOGUE["msfp16"].with_block(WHOLE))


def test_numbers_default_to_the_device():
    numbers = resolve_numbers("bw_s10", "bw_1s5e2m")
    assert numbers.format.block == 400
    assert (numbers.accumulator, numbers.order, numbers.pointwise) == ("exact", "khwc", "fp16")
    assert resolve_numbers("bw_a10", "msfp16", "fp32", "chwk", "bf16") == dataclasses.replace(
        numbers, format=CATALOGUE["msfp16"], accumulator="fp32", order="chwk", pointwise="bf16"
    )


def test_fp32_is_fp32_all_through_unless_asked_otherwise():
    numbers = resolve_numbers("bw_a10", "fp32")
    assert (numbers.accumulator, numbers.order, numbers.pointwise) == ("fp32", "khwc", "fp32")
    assert resolve_numbers("bw_a10", "fp32", accumulator="exact", pointwise="fp16").pointwise == "fp16"
    assert resolve_numbers("bw_a10", "fp32", accumulator="exact").accumulator == "exact"


@pytest.mark.parametrize("argument", ["accumulator", "order", "pointwise"])
def test_an_unknown_way_to_compute_is_refused(argument):
    with pytest.raises(UnknownNameError, match="'odd'"):
        resolve_numbers("bw_a10", "msfp16", **{argument: "odd"})
