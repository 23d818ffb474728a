"""`fpgasim run`, `partition`, `simulate`: they print what the library says, as text and as JSON."""

import json
import os

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.report.comparison import difference, probabilities, rank


def test_run_prints_classes_placement_and_cycles(fpgasim, model, photo):
    output = fpgasim("run", model, "--image", photo, "--device", "bw_a10", "--format", "msfp16").stdout
    assert "small on bw_a10 in msfp16" in output
    assert "FPGA msfp16" in output
    assert "the same class is likeliest" in output
    assert "unsupported-op" in output
    assert "Assumed, since nobody published them" in output
    cycles = fs.compile(fs.partition(fs.load(model), "bw_a10", "msfp16")).timing().cycles
    assert f"{cycles:,}" in output


def test_run_as_json_holds_everything_and_agrees_with_the_library(fpgasim, model, photo):
    command = ("run", model, "--image", photo, "--format", "msfp16", "--objective", "coverage", "--top", 3, "--json")
    got = json.loads(fpgasim(*command).stdout)
    plan = fs.partition(fs.load(model), "bw_a10", "msfp16", objective="coverage")
    session = fs.compile(plan)
    spec = fs.zoo.Preprocessing(32, *_torchvision(), "center_crop", shorter_side=36)
    output = session.run({"image": fs.zoo.preprocess(spec, photo)})["probabilities"][0]
    best = int(np.argmax(output))
    classes = {row["index"]: row for row in got["outputs"]["probabilities"]["classes"]}
    assert classes[best]["rank"] == 1
    assert classes[best]["probability"] == float(output[best])
    assert got["plan"]["fpga_mac_share"] == plan.fpga_mac_share == 1
    assert [n["device"] for n in got["plan"]["nodes"]] == [d.device for d in plan.decisions]
    assert got["timing"]["cycles"] == session.timing().cycles
    assert sum(s["cycles"] for s in got["timing"]["segments"]) == got["timing"]["cycles"]
    assert set(got["timing"]["assumed"]) == plan.device.assumed
    assert got["provenance"]["graph"] == plan.graph.fingerprint()
    assert got["provenance"]["kernels"] == session.kernels.name
    assert got["host"]["run_s"] > 0


def _torchvision():
    from fpgasim.zoo.images import IMAGENET_MEAN, IMAGENET_STD

    return IMAGENET_MEAN, IMAGENET_STD


def test_run_feeds_arrays_to_a_model_that_takes_no_picture(fpgasim, vectors, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((5, 16), np.float32))
    command = ("run", vectors, "--input", f"x={tmp_path / 'x.npy'}", "--format", "fp32", "--objective", "coverage")
    assert "y: float32 (5, 4)" in fpgasim(*command).stdout
    got = json.loads(fpgasim(*command, "--json").stdout)
    assert got["outputs"]["y"]["shape"] == [5, 4]
    assert got["outputs"]["y"]["against_fp32"]["relative_error"] < 1e-6
    assert got["provenance"]["numbers"]["format"]["name"] == "fp32"


def test_run_takes_preprocessing_from_a_zoo_network_or_from_words(fpgasim, model, vectors, photo, refused):
    spelled = "size=32,mean=127,std=128,interpolation=bicubic"
    words = json.loads(fpgasim("run", model, "--image", photo, "--preprocess", spelled, "--json").stdout)
    spec = fs.zoo.Preprocessing(32, (127.0,) * 3, (128.0,) * 3, interpolation="bicubic")
    session = fs.compile(fs.partition(fs.load(model), "bw_a10", "bw_1s5e5m"))
    output = session.run({"image": fs.zoo.preprocess(spec, photo)})["probabilities"]
    best = max(words["outputs"]["probabilities"]["classes"], key=lambda row: row["probability"])
    assert best["probability"] == float(output.max())
    message = refused("run", model, "--image", photo, "--preprocess", "efficientnet_lite0", exit_code=4)
    assert message == "input 'image' has shape (1, 3, 224, 224); float32 of shape (N, 3, 32, 32) would do"


def test_run_shows_every_node_or_layer_when_asked(fpgasim, model, photo):
    assert "cheaper-on" in fpgasim("run", model, "--image", photo, "--all").stdout
    assert "compute cycles" in fpgasim("run", model, "--image", photo, "--objective", "coverage", "--layers").stdout


def test_run_obeys_kernels_and_threads(fpgasim, model, photo, monkeypatch):
    monkeypatch.setenv("FPGASIM_NUM_THREADS", "2")  # and undoes what --threads sets
    command = ("run", model, "--image", photo, "--json", "--threads", 1, "--kernels", "reference")
    assert json.loads(fpgasim(*command).stdout)["provenance"]["kernels"] == "reference"
    assert os.environ["FPGASIM_NUM_THREADS"] == "1"


def test_random_weights_of_the_zoo_are_said_to_be_random_and_trained_ones_are_found(fpgasim, photo):
    said = "The weights are random"
    assert said in fpgasim("run", "efficientnet_lite0", "--image", photo).stdout
    assert said not in fpgasim("run", "efficientnet_lite0", "--weights", "pretrained", "--image", photo).stdout


def test_partition_prints_the_plans_own_words_and_saves_it(fpgasim, model, tmp_path):
    plan = fs.partition(fs.load(model), "bw_s10", "bw_1s5e5m", objective="coverage")
    saved = tmp_path / "model.fpgaplan"
    command = ("partition", model, "--device", "bw_s10", "--objective", "coverage")
    output = fpgasim(*command, "--save", saved).stdout
    assert output.startswith(plan.explain().splitlines()[0])
    assert output.endswith(f"wrote {saved}\n")
    assert fs.Plan.load(saved) == plan
    got = json.loads(fpgasim(*command, "--json").stdout)
    assert got["plan"]["reasons"] == {"fpga: coverage": 5, "cpu: unsupported-op": 1}


def test_a_saved_plan_is_a_model_for_every_command(fpgasim, model, photo, tmp_path):
    saved, options = tmp_path / "plan", ("--device", "bw_s10", "--format", "msfp12", "--objective", "coverage")
    fpgasim("partition", model, *options, "--save", saved)
    for command in (("run", "--image", photo), ("simulate",), ("partition",)):
        name, *rest = command
        of_model, of_plan = (json.loads(fpgasim(name, *what, *rest, "--json").stdout)
                             for what in ((model, *options), (saved,)))  # fmt: skip
        assert of_plan["provenance"] == of_model["provenance"] | {"model": str(saved)}
        assert {**of_plan, "provenance": 0, "host": 0} == {**of_model, "provenance": 0, "host": 0}


def test_a_saved_plan_is_replanned_for_another_batch_and_fed_like_its_network(fpgasim, vectors, photo, tmp_path):
    saved, x = tmp_path / "plan", tmp_path / "x.npy"
    fpgasim("partition", vectors, "--objective", "coverage", "--save", saved)
    np.save(x, np.ones((5, 16), np.float32))
    assert "y: float32 (5, 4)" in fpgasim("run", saved, "--input", f"x={x}").stdout
    fpgasim("partition", "efficientnet_lite0", "--save", saved)
    options = ("--image", photo, "--json")
    of_plan, of_network = (json.loads(fpgasim("run", what, *options).stdout) for what in (saved, "efficientnet_lite0"))
    assert of_plan["outputs"] == of_network["outputs"]


def test_simulate_counts_the_cycles_of_the_session_without_running_it(fpgasim, model):
    timing = fs.compile(fs.partition(fs.load(model), "bw_a10", "msfp12", objective="coverage")).timing()
    command = ("simulate", model, "--format", "msfp12", "--objective", "coverage")
    assert f"{timing.cycles:,}" in fpgasim(*command).stdout
    got = json.loads(fpgasim(*command, "--json").stdout)["timing"]
    assert got["cycles"] == timing.cycles
    assert got["total_ms"] == timing.total_ms
    assert [layer["name"] for layer in got["segments"][0]["layers"]] == [
        layer.name for layer in timing.segments[0].layers
    ]


def test_the_commands_tell_of_their_options(fpgasim):
    overview = fpgasim("--help").stdout
    for command in (
        "run",
        "partition",
        "simulate",
        "quantize",
        "devices",
        "formats",
        "kernels",
        "doctor",
        "zoo",
        "demo",
    ):
        assert command in overview
        assert "Usage: fpgasim " + command in fpgasim(command, "--help").stdout
    assert "--image" in fpgasim("run", "--help").stdout
    assert fpgasim("--version").stdout == f"fpgasim, version {fs.__version__}\n"


def test_a_distribution_is_taken_as_it_is_and_logits_go_through_softmax():
    np.testing.assert_array_equal(probabilities(np.array([[0.25, 0.75]])), [0.25, 0.75])
    np.testing.assert_allclose(probabilities(np.array([[0.0, np.log(3)]])), [0.25, 0.75])


def test_ranks_of_both_sides_stand_side_by_side_with_ties_by_index():
    rows = rank(np.array([[3.0, 1.0, 2.0, 0.0]]), np.array([[1.0, 1.0, 2.0, 0.0]]), top=1)
    assert [(r.index, r.fp32_rank, r.rank) for r in rows] == [(0, 1, 2), (2, 2, 1)]


def test_the_difference_of_equal_outputs_is_nothing_and_of_others_is_relative_to_the_largest():
    x = np.array([4.0, -2.0])
    assert difference(x, x).sqnr_db == np.inf
    d = difference(x, np.array([4.0, -1.0]))
    assert (d.max_error, d.relative_error) == (1.0, 0.25)
    assert d.sqnr_db == pytest.approx(10 * np.log10(20))
