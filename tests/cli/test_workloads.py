"""`fpgasim simulate --workload` and `validate`."""

import json

import pytest

from fpgasim.npu import get_device, references
from fpgasim.npu.references import REFERENCES, Reference
from fpgasim.npu.workloads import parse_workload, workload_timing

NPU = "intel_npu_7t40d40l"


def found(fpgasim, *args):
    return json.loads(fpgasim("simulate", *args, "--json").stdout)


@pytest.mark.parametrize("device", [NPU, "bw_s10", "intel_4t120d40l"])
@pytest.mark.parametrize("spec", ["gru:128:3", "mlp:64-64-32", "gemv:100:200"])
def test_a_workload_costs_what_the_library_says(fpgasim, spec, device):
    got = found(fpgasim, "--workload", spec, "--device", device)
    timing = workload_timing(parse_workload(spec), get_device(device))
    assert (got["cycles"], got["ms"], got["macs"]) == (timing.cycles, timing.seconds * 1e3, timing.macs)
    assert (got["utilization"], got["losses"]) == (timing.utilization, timing.losses)
    assert (got["batch"], got["device"], got["workload"]) == (get_device(device).batch, device, spec)
    assert got["provenance"]["fpgasim"]
    text = fpgasim("simulate", "--workload", spec, "--device", device).stdout
    assert f"{timing.cycles:,} cycles" in text
    assert all(name in text for name, cycles in timing.losses.items() if cycles)


def test_a_batch_is_the_device_s_own_unless_it_is_given(fpgasim):
    own, twelve = (
        found(fpgasim, "--workload", "gemv:512:512", "--device", NPU, *more) for more in ((), ("--batch", 12))
    )
    assert (own["batch"], twelve["batch"]) == (6, 12)
    assert own["cycles"] < twelve["cycles"]


def test_a_network_says_as_much_as_a_workload_however_it_is_given(fpgasim, model):
    named = found(fpgasim, model, "--objective", "coverage")
    assert named == found(fpgasim, "--workload", model, "--objective", "coverage")
    assert sum(named["losses"].values()) == named["cycles"] == named["timing"]["cycles"]
    assert named["ms"] == named["timing"]["fpga_ms"]
    assert named["batch"] == 1
    assert min(named["losses"].values()) >= 0


def test_a_batch_of_a_network_is_bound_to_its_inputs(fpgasim, model, tmp_path):
    one, four = (found(fpgasim, model, "--batch", n, "--objective", "coverage") for n in (1, 4))
    assert (one["batch"], four["batch"]) == (1, 4)
    assert four["macs"] == 4 * one["macs"]
    plan = tmp_path / "net.fpgaplan"
    fpgasim("partition", model, "--objective", "coverage", "--save", plan)
    assert found(fpgasim, plan, "--batch", 4)["cycles"] == four["cycles"]


def test_a_device_file_is_taken(fpgasim, tmp_path):
    file = tmp_path / "half.yaml"
    file.write_text(f"base: {NPU}\nclock_hz: 150e6\n")
    whole = found(fpgasim, "--workload", "gru:128:3", "--device", NPU)
    half = found(fpgasim, "--workload", "gru:128:3", "--device", file)
    assert half["cycles"] == whole["cycles"]
    assert half["ms"] == pytest.approx(2 * whole["ms"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--workload", "gru:1024"), "has 1 numbers; gru:H:T would do"),
        (("--workload", "lstn:3:4"), "is no file and no network of the zoo; one of gemv:IN:OUT, rnn:H:T"),
        (
            ("--workload", "gru:1234567:8"),
            "gru:H:T, lstm:H:T, mlp:A-B-C..., conv:H:W:C:K:KH:KW:S:P with numbers of up to",
        ),
        (("--workload", "."), "model file '.' cannot be read"),
        (("--workload", "conv:8:8:3:16:3:3:1:1", "--device", NPU), "runs no convolutions"),
        (("--workload", "gru:8:8", "--format", "msfp12"), "--format is for networks; leave it out"),
        (("--workload", "gru:8:8", "--layers"), "--layers is for networks"),
        (("--workload", "gru:8:8", "--device", "npu"), "no device 'npu'"),
        (("--workload", "gru:8:8", "--device", "npu.yaml"), "device file 'npu.yaml': No such file"),
    ],
)
def test_what_will_not_do_is_refused_in_one_line(refused, args, words):
    code = 10 if "convolutions" in words or "yaml" in words else 6 if "model file" in words else 4
    assert words in refused("simulate", *args, exit_code=code)


def test_a_model_and_a_workload_together_or_neither_are_a_wrong_use(fpgasim, model):
    assert "Give either a MODEL or --workload" in fpgasim("simulate", exit_code=2).stderr
    assert "Give either" in fpgasim("simulate", model, "--workload", "gru:8:8", exit_code=2).stderr


ROWS = (
    Reference("a paper", "bw_s10", "gru:1024:10", "cycles", 6320, 0.01, "validated"),
    Reference("a paper", "bw_s10", "resources", "DSPs", 5245, 0.1, "validated", note="a note"),
    Reference("a paper", "bw_s10", "lstm:256:10", "ms", 1.0, None, "consistent", note="a note"),
)


def test_validate_prints_every_row_and_succeeds_where_all_hold(fpgasim, monkeypatch):
    monkeypatch.setattr(references, "REFERENCES", ROWS)
    text = fpgasim("validate").stdout
    assert [line.split()[1] for line in text.splitlines() if line.startswith("  bw_s10")] == [
        "gru:1024:10", "resources", "lstm:256:10",
    ]  # fmt: skip
    assert "3 rows: 2 within their bounds, 0 not, 1 without one." in text
    rows = json.loads(fpgasim("validate", "--json").stdout)["rows"]
    assert [row["holds"] for row in rows] == [True, True, None]
    assert rows[0]["expected"] == rows[0]["got"] == 6320


def test_validate_fails_where_a_row_misses_its_bound(fpgasim, monkeypatch):
    wrong = Reference("a paper", "bw_s10", "gru:1024:10", "cycles", 7000, 0.01, "validated")
    monkeypatch.setattr(references, "REFERENCES", (*ROWS, wrong))
    assert "misses its bound" in fpgasim("validate", exit_code=1).stdout
    assert json.loads(fpgasim("validate", "--json", exit_code=1).stdout)["missed"] == 1


def test_the_command_knows_all_rows(fpgasim):
    assert len(json.loads(fpgasim("validate", "--json").stdout)["rows"]) == len(REFERENCES)
