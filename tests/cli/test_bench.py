"""`fpgasim bench`: what it prints, and that wrong bits stop it."""

import json

import onnx
import pytest

from fpgasim.bench import measure_layers
from fpgasim.errors import FpgasimError
from fpgasim.kernels import available
from fpgasim.kernels.reference import Reference

from .conftest import classifier


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(classifier(), path)
    return path


def test_bench_prints_rates_ratios_and_the_profile(fpgasim, model):
    text = fpgasim("bench", model, "--rounds", 1).stdout
    assert "bits checked" in text
    expected = ("onnxruntime fp32", "onnxruntime int8", "100 % of the multiply-accumulates", "matrix", "32x32x3-16")
    assert [words for words in expected if words not in text] == []


def test_bench_as_json_has_every_figure(fpgasim, model):
    options = ("--rounds", 1, "--json", "--threads", 2, "--accumulator", "fp32")
    report = json.loads(fpgasim("bench", model, *options).stdout)
    assert report["provenance"]["threads"] == 2
    network, layers = report[str(model)]["network"], report[str(model)]["layers"]
    assert network["macs"] == sum(layer["macs"] * layer["count"] for layer in layers)
    assert min(network["seconds"], network["seconds_fp32"], network["seconds_int8"]) > 0
    assert {"enter", "matrix", "pool", "cpu"} <= set(network["profile"])
    assert [layer["shape"] for layer in layers] == ["32x32x3-16 3x3/2", "1x1x16-10"]
    assert all(min(layer["rate"], layer["rate_fp32"], layer["rate_int8"]) > 0 for layer in layers)


def test_bench_leaves_int8_out(fpgasim, model):
    options = ("--rounds", 1, "--no-int8")
    text = fpgasim("bench", model, *options).stdout
    assert [words for words in ("times fp32", "times int8", "onnxruntime int8") if words in text] == ["times fp32"]
    report = json.loads(fpgasim("bench", model, *options, "--json").stdout)[str(model)]
    assert report["network"]["seconds_int8"] is None
    assert [layer["rate_int8"] for layer in report["layers"]] == [None, None]


class Wrong(Reference):
    """Differs from the reference in one number of each layer."""

    name = "wrong"

    def chain(self, source, steps, results, *rest):
        saturated = super().chain(source, steps, results, *rest)
        results[len(steps) - 1][-1, -1] += 1
        return saturated


def test_wrong_bits_stop_it_before_anything_is_timed(fpgasim, refused, model, monkeypatch):
    import fpgasim as fs

    backends = {**available(), "wrong": Wrong()}
    for module in ("kernels.registry", "bench.layers", "bench.networks"):
        monkeypatch.setattr(f"fpgasim.{module}.available", lambda: backends)
    message = refused("bench", model, "--rounds", 1, exit_code=3)
    assert message == "wrong and reference differ in layer 5x5x3-16 3x3/2; no speed is worth printing"
    options = ("--rounds", 1, "--no-layers", "--kernels", "wrong")
    assert "differ in an output" in refused("bench", model, *options, exit_code=3)
    plan = fs.partition(fs.load(str(model)), "bw_a10", "msfp16", objective="coverage")
    with pytest.raises(FpgasimError, match="wrong and reference differ"):
        next(measure_layers(plan.graph, plan.device, plan.numbers, available()["reference"]))
