"""`fpgasim devices`, `formats`, `kernels`, `doctor`: what they list is what the library has."""

import json
import re
from pathlib import Path

import pytest

from fpgasim.kernels import available
from fpgasim.npu import DEVICES
from fpgasim.numerics import CATALOGUE
from fpgasim.report import machine


def test_devices_lists_every_device(fpgasim):
    output = fpgasim("devices").stdout
    assert [line.split()[0] for line in output.splitlines()[1 : 1 + len(DEVICES)]] == list(DEVICES)


def test_a_device_marks_what_is_assumed_and_cites_what_is_not(fpgasim):
    lines = fpgasim("devices", "bw_a10").stdout.splitlines()
    by_field = {line.split()[0]: line for line in lines}
    assert "assumed" in by_field["dram_bytes_per_s"]
    assert "assumed" not in by_field["native_dim"]
    assert "ISCA 2018" in by_field["native_dim"]


def test_devices_as_json_say_what_is_assumed(fpgasim):
    listed = json.loads(fpgasim("devices", "--json").stdout)
    assert listed.keys() == DEVICES.keys()
    assert set(listed["bw_s10"]["assumed"]) == DEVICES["bw_s10"].assumed
    one = json.loads(fpgasim("devices", "bw_s10", "--json").stdout)
    assert {row["field"] for row in one["fields"] if row["source"] == "assumed"} == DEVICES["bw_s10"].assumed


def test_an_unknown_device_is_one_line_that_lists_the_known_ones(refused):
    known = ", ".join((*DEVICES, "systolic_RxC_(os|ws|is)", "FILE.yaml"))
    assert refused("devices", "bw_x", exit_code=4) == f"no device 'bw_x'; there are {known}"


def test_formats_lists_every_format_with_its_bits(fpgasim):
    lines = {line.split()[0]: line.split() for line in fpgasim("formats").stdout.splitlines() if line}
    for name, fmt in CATALOGUE.items():
        assert lines[name][-1] == f"{fmt.bits_per_element:g}"


def test_formats_as_json_have_the_fields_of_a_block_format(fpgasim):
    listed = json.loads(fpgasim("formats", "--json").stdout)
    assert listed["msfp16"]["mantissa_bits"] == 7
    assert listed["msfp16"]["bits_per_element"] == 8.5


def test_kernels_lists_what_runs_here_and_marks_the_default(fpgasim):
    listed = json.loads(fpgasim("kernels", "--json", env={"FPGASIM_KERNELS": "reference"}).stdout)
    assert listed == {"available": list(available()), "default": "reference"}
    assert "default" in fpgasim("kernels").stdout


@pytest.mark.parametrize("command", ["kernels", "doctor"])
def test_an_unknown_backend_in_the_environment_is_a_warning_beside_those_there_are(fpgasim, command):
    result = fpgasim(command, env={"FPGASIM_KERNELS": "tpu"})
    warning = "fpgasim: warning: FPGASIM_KERNELS: no kernel backend 'tpu'; there are reference"
    assert result.stderr.startswith(warning)
    assert result.stderr.count("\n") == 1
    assert all(name in result.stdout for name in available())
    listed = json.loads(fpgasim(command, "--json", env={"FPGASIM_KERNELS": "tpu"}).stdout)
    assert listed.get("kernels", listed) == {"available": list(available()), "default": None}


def test_fetching_an_unknown_source_of_weights_is_one_line_and_no_bar(refused):
    assert refused("zoo", "fetch", "nope", exit_code=4).startswith("no source of weights 'nope'; there are resnet50")


def test_doctor_tells_the_processor_the_compiler_and_the_versions(fpgasim, tmp_path):
    report = json.loads(fpgasim("doctor", "--json", env={"FPGASIM_CACHE_DIR": str(tmp_path)}).stdout)
    assert report["cache_dir"] == str(tmp_path)
    assert report["environment"]["FPGASIM_CACHE_DIR"] == str(tmp_path)
    assert report["kernels"]["available"] == list(available())
    numpy = next(p for p in report["packages"] if p["name"] == "numpy")
    assert numpy["installed"] is not None
    assert numpy["extra"] == ""
    text = fpgasim("doctor").stdout
    assert report["processor"]["level"] in text
    assert "C compiler" in text


def test_doctor_without_compiler_and_native_kernels_says_how_to_get_them(fpgasim, monkeypatch):
    monkeypatch.setattr(machine, "compiler", lambda: None)
    monkeypatch.setattr("fpgasim.kernels.available", lambda: {"reference": available()["reference"]})
    text = fpgasim("doctor").stdout
    assert re.search(r"^C compiler +none$", text, re.MULTILINE)
    assert "native kernels: results are the same without them, slower" in text
    assert "apt install gcc" in text


def test_doctor_names_a_missing_extra_and_the_command_that_brings_it():
    known = [
        machine.Package("numpy", ">=2", "2.4.0", ""),
        machine.Package("rich", ">=13", None, ""),
        machine.Package("weights", ">=1", None, "demo"),
    ]
    assert machine.missing("cc 12", ["reference", "numba", "native-portable"], known) == [
        "rich: fpgasim needs it; pip install 'rich>=13'",
        "extra [demo] (optional): weights; pip install 'fpgasim[demo]'",
    ]


@pytest.mark.parametrize(
    ("flags", "level", "extensions"),
    [
        ("sse2", "x86_64", ()),
        ("cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3 avx", "x86-64-v2", ()),
        (
            "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3 abm avx avx2 bmi1 bmi2 f16c fma movbe xsave avx_vnni",
            "x86-64-v3",
            ("avx_vnni",),
        ),
    ],
)
def test_the_level_of_a_processor_is_read_from_its_flags(tmp_path: Path, monkeypatch, flags, level, extensions):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    cpu = machine.processor(cpuinfo)
    assert (cpu.model, cpu.level, cpu.extensions) == ("Some CPU", level, extensions)
    assert cpu.cores >= 1


def test_a_processor_that_is_not_described_still_has_a_name_and_cores(tmp_path):
    cpu = machine.processor(tmp_path / "none")
    assert cpu.model
    assert cpu.cores >= 1


def test_the_resources_of_a_device_are_estimated_in_a_format(fpgasim, refused):
    from fpgasim.npu.resources import estimate_resources

    found = json.loads(fpgasim("devices", "bw_a10", "--resources", "--format", "bw_1s5e3m", "--json").stdout)
    expected = estimate_resources("bw_a10", "bw_1s5e3m")
    assert (found["alms"], found["m20ks"], found["dsps"]) == (expected.alms, expected.m20ks, expected.dsps)
    assert f"{expected.alms:,}" in fpgasim("devices", "bw_a10", "--resources", "--format", "bw_1s5e3m").stdout
    assert "matvec engines only" in refused("devices", "intel_4t120d40l", "--resources", exit_code=10)
    assert "needs the NAME" in fpgasim("devices", "--resources", exit_code=2).stderr
