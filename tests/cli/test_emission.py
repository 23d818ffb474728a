"""`fpgasim emit` compiles, counts and writes; `disasm` reads what it wrote."""

import json

import numpy as np
import onnx
import pytest

import fpgasim as fs
from fpgasim.npu import Program, simulate

from .conftest import classifier


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(classifier(), path)
    return path


def test_a_program_is_compiled_written_and_printed_again(fpgasim, model, tmp_path):
    out, trace = tmp_path / "p.fpgaprog", tmp_path / "t.json"
    options = ("--objective", "coverage", "-o", out, "--trace", trace)
    printed = fpgasim("emit", model, *options).stdout
    program = Program.load(out)
    timing = simulate(program)
    assert f"{timing.cycles:,} cycles" in printed
    assert f"wrote {out}" in printed
    text = fpgasim("disasm", out).stdout
    assert text.count("mv_mul") == 2
    events = json.loads(trace.read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {"weights", "MVM", "MFU"} <= names
    assert sum(event["ph"] == "X" for event in events) >= len(timing.chains)


def test_the_program_of_the_command_computes_what_the_session_does(fpgasim, model, tmp_path):
    out = tmp_path / "p.fpgaprog"
    fpgasim("emit", model, "--objective", "coverage", "-o", out)
    program = Program.load(out)
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    plan = fs.partition(fs.load(model), "bw_a10", "bw_1s5e5m", objective="coverage")
    expected = fs.compile(plan).run({"image": x}, outputs=["logits"])["logits"]
    state = fs.npu.initial_state(program, {"image": x})
    assert np.array_equal(fs.npu.execute(program, state)["logits"], expected)


def test_as_json_the_lost_cycles_add_up(fpgasim, model):
    result = json.loads(fpgasim("emit", model, "--objective", "coverage", "--json").stdout)
    assert sum(result["losses"].values()) == result["cycles"]
    streamed = json.loads(
        fpgasim("emit", model, "--objective", "coverage", "--keep-weights", "stream", "--json").stdout
    )
    assert streamed["dram_bytes"] > result["dram_bytes"]


def test_a_segment_that_is_not_there_is_refused(refused, model):
    message = refused("emit", model, "--objective", "coverage", "--segment", "2", exit_code=4)
    assert message.startswith("--segment 2: ")
    assert message.endswith(" has 1 FPGA segment")


def test_a_network_that_stays_on_the_cpu_has_no_program(refused, model):
    message = refused("emit", model, exit_code=4)
    assert "is on the FPGA; --objective coverage may change that" in message
