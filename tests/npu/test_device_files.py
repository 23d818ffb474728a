"""Devices from YAML files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.errors import DeviceError
from fpgasim.npu import device_rows, get_device, load_device
from fpgasim.npu.device import described
from fpgasim.npu.workloads import parse_workload, workload_timing

A10 = get_device("bw_a10")
#: All that has no default.
WHOLE = "native_dim: 64\nlanes: 8\ntiles: 2\nmrf_tiles: 99\nmfus: 1\nclock_hz: 1.0e+8\nmvm_latency: 20\n"
EXAMPLE = Path(__file__).parents[2] / "docs/examples/mine.yaml"


@pytest.fixture
def file(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "file.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_file_changes_what_it_gives_and_keeps_the_rest_of_its_base():
    mine = load_device(EXAMPLE)
    given = {"tiles": 16, "mrf_tiles": 1024, "clock_hz": 250_000_000, "dram_bytes_per_s": 38.4e9}
    assert mine == dataclasses.replace(A10, name="mine", assumed=A10.assumed - given.keys(), **given)
    assert isinstance(mine.clock_hz, int)
    assert {row.field: row.source for row in device_rows(mine)}["dram_bytes_per_s"] == "given"


def test_a_file_without_a_base_gives_what_has_no_default_and_assumes_the_rest(file):
    device = load_device(file(WHOLE))
    assert (device.name, device.native_dim, device.clock_hz) == ("file", 64, 100_000_000)
    assert device.assumed == {f.name for f in described("matvec")} - {line.split(":")[0] for line in WHOLE.split()}
    array = load_device(file(f"{WHOLE}engine: systolic\narray_rows: 8\n"))
    assert (array.engine, array.array_rows, array.lanes) == ("systolic", 8, 8)


def test_an_engine_that_is_another_than_the_base_s_brings_its_own_assumed_fields(file):
    device = load_device(file("base: bw_a10\nengine: systolic\narray_rows: 8\n"))
    assert device.macs_per_cycle == 8 * 128
    assert "weight_sram_bytes" in device.assumed
    assert not {"lanes", "array_rows", "engine", "instruction_cycles"} & device.assumed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: bw_a10\nlane: 4\n", "no key 'lane'; there are name, base, native_dim, lanes"),
        ("base: bw_a10\nlanes: 48\n", "lanes=48 must be a divisor of native_dim=128"),
        ("base: bw_a10\ntiles: 0\n", "tiles=0 must be a whole number from 1 up"),
        ("base: bw_a10\ntiles: 1.5\n", "tiles=1.5 must be a whole number from 1 up"),
        ("base: bw_a10\ntiles: many\n", "tiles='many' must be a whole number from 1 up"),
        ("base: bw_a10\ntiles: true\n", "tiles=True must be a whole number"),
        ("base: bw_a10\ndram_efficiency: 1.5\n", "dram_efficiency=1.5 must be above 0 and at most 1"),
        ("base: bw_a10\nlaunch_s: .nan\n", "launch_s=nan must be a finite time, 0 or more"),
        ("base: bw_a10\nhazard: none\n", "no hazard rule 'none'; there are in_order, data"),
        ("base: bw_a10\naccumulator: fp8\n", "accumulator"),
        ("base: bw_a10\nhazard: yes\n", "hazard=True (YAML reads yes and on as true, no and off as false) must be a"),
        ("base: bw_a10\nengine: 5\n", "engine=5 must be a name"),
        ("base: bw_a10\nengine: odd\narray_rows: 4\n", "no engine 'odd'; there are matvec, systolic, overlay"),
        ("base: bw_a10\npointwise:\n", "pointwise=None must be a name"),
        ("base: bw_a10\norder: tree(0)\n", "order tree(0): 0 engines will not do; 1 to 1024 would"),
        ("base: bw_a10\naccumulator: fixed(99,3,wrap)\n", "accumulator fixed(99,3,wrap): 99 bits will not do"),
        ("base: bw_a10\nmfus: 5\n", "mfus=5 must be from 1 to 4"),
        ("base: bw_a10\narray_rows: 4\n", "array_rows=4 is of systolic engines, and this one is matvec; leave it out"),
        ("base: bw_a10\nengine: overlay\nqueue_chains: 4\n", "queue_chains=4 is of matvec engines, and this one is ov"),
        ("base: bw_a10\nengine: systolic\nlanes: 4\n", "lanes=4 is of matvec and overlay engines, and this one is sys"),
        ("base: systolic_4x4_ws\ntiles: 4\n", "or give engine: matvec"),
        (f"{WHOLE}engine: systolic\ncores: 2\n", "cores=2 is of overlay engines, and this one is systolic"),
        (f"{WHOLE}array_rows: 2\n", "array_rows=2 is of systolic engines, and this one is matvec"),
        ("base: bw_a10\ntiles: [8]\n", "tiles must be one value"),
        ("base: bw_a10\ntiles: 8\ntiles: 9\n", "key 'tiles' is given twice"),
        ("base: bw_z\n", "no device 'bw_z'; there are bw_s5"),
        ("base: other.yaml\n", "base='other.yaml' must be the name of a preset"),
        ("base: bw_a10\nname: bw_a10\n", "name='bw_a10' must be a text and no preset's name"),
        ("base: bw_a10\nassumed: lanes\n", "no key 'assumed'"),
        ("lanes: 8\n", "native_dim, tiles, mrf_tiles, mfus, clock_hz, mvm_latency must be given, or a base"),
        ("- lanes\n", "holds no keys"),
        ("", "holds no keys"),
        ("lanes: {", "is no YAML"),
        (b"\xff\xfe\x00", "is no YAML"),
        ("lanes: !!python/name:os.system\n", "is no YAML"),
        ("clock_hz: 2020-02-31\n", "clock_hz='2020-02-31' is no YAML timestamp; a value as in `lanes: 16` would do"),
        ("lanes: !!timestamp abc\n", "lanes='abc' is no YAML timestamp"),
        ("lanes: !!bool abc\n", "lanes='abc' is no YAML bool"),
        ("lanes: !!int abc\n", "lanes='abc' is no YAML int"),
        (f"lanes: {'9' * 5000}\n", "lanes='999999999999...9999999999999' is no YAML int"),
        ("clock_hz: .inf\nbase: bw_a10\n", "clock_hz=inf must be a whole number"),
    ],
)
def test_a_file_that_describes_no_device_is_refused_by_the_key_its_value_and_what_would_do(file, text, words):
    path = file(text)
    with pytest.raises(DeviceError) as error:
        load_device(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DeviceError, match="No such file or directory; give the path of a YAML file"):
        get_device(str(tmp_path / "missing.yaml"))


def test_a_file_is_taken_wherever_a_name_is(tmp_path):
    w = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    path = tmp_path / "small.onnx"
    import onnx
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(w, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    plan = fs.partition(fs.load(path), str(EXAMPLE), "bw_1s5e5m", objective="coverage")
    assert plan.device == load_device(EXAMPLE)
    plan.save(tmp_path / "small.fpgaplan")
    assert fs.Plan.load(tmp_path / "small.fpgaplan").device == plan.device
    gru = parse_workload("gru:256:4")
    assert workload_timing(gru, plan.device).seconds != workload_timing(gru, A10).seconds
