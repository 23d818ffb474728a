"""The table of operators is what the engine and ONNX Runtime say."""

import json
from importlib.metadata import version
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from fpgasim.cli import main
from fpgasim.compiler.nodes import LOWERINGS
from fpgasim.compiler.probing import PROBES, trials
from fpgasim.errors import UnknownNameError
from fpgasim.npu import get_device
from fpgasim.report.operators import markdown, operator, operators, spans

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
DEVICE = get_device("bw_a10")


def test_the_page_is_what_the_command_prints():
    """With another version of onnx or ONNX Runtime than it was made with, the engine's part still is."""
    page, now = PAGE.read_text(encoding="utf-8"), CliRunner().invoke(main, ["operators", "--markdown"]).output
    asked = f"Asked of onnx {version('onnx')}, ONNX Runtime {version('onnxruntime')} and the engine bw_a10."
    if asked in page:
        assert now == page
    engine, engine_now = (text[text.index("## On the FPGA") : text.index("## On the CPU")] for text in (page, now))
    assert engine_now == engine


def test_every_operator_of_the_engine_is_probed_with_every_attribute():
    assert PROBES.keys() == LOWERINGS.keys()
    for name, probe in PROBES.items():
        tried = {*probe.attributes, *probe.values, *(key for others in probe.others.values() for key in others)}
        assert onnx.defs.get_schema(name, probe.opset).attributes.keys() <= tried, name


@pytest.mark.parametrize("name", PROBES)
def test_the_engine_takes_the_model_as_it_is_and_says_why_not_what_it_refuses(name):
    first, *others = trials(name, DEVICE)
    assert (first.change, first.refused) == ("", None)
    refused = [trial.refused for trial in others if trial.refused is not None]
    assert {reason.code for reason in refused} >= {"unsupported-dtype", "dynamic-shape", "unsupported-attr"}
    assert "unsupported-op" not in {reason.code for reason in refused}
    assert all(reason.message for reason in refused)


def test_a_row_says_who_runs_the_operator():
    conv, mish, align, decoder = (operator(name) for name in ("Conv", "Mish", "RoiAlign", "ImageDecoder"))
    assert conv.runs[:20] == tuple(range(7, 27))  # and as many as the ONNX Runtime that is here takes
    assert not set(conv.not_run) & set(range(7, 27))
    assert conv.trials
    assert (mish.by_kernel, mish.by_function[:9]) == ((), tuple(range(18, 27)))
    assert 16 in align.by_kernel
    assert (decoder.runs, decoder.trials) == ((), ())
    gelu = operator("com.microsoft.Gelu")
    assert (gelu.domain, gelu.runs, gelu.trials) == ("com.microsoft", (1,), ())
    with pytest.raises(UnknownNameError, match="no operator 'Konv'; there are Conv"):
        operator("Konv")


def test_another_engine_takes_other_sizes():
    rows = {row.change: row.refused for row in operator("Conv", "systolic_32x32_ws").trials}
    assert rows["rows of 16,384 pixels"] is None
    page = markdown(operators("systolic_32x32_ws"), "systolic_32x32_ws")
    assert "the engine systolic_32x32_ws" in page
    assert "the initial VRF holds" not in page


def test_the_command_lists_tells_and_prints_json():
    listed = CliRunner().invoke(main, ["operators"])
    assert listed.exit_code == 0
    (conv,) = (line.split() for line in listed.output.splitlines() if line.startswith("Conv "))
    assert conv[:2] == ["Conv", "yes"]
    assert conv[2].startswith("7-2")
    told = CliRunner().invoke(main, ["operators", "Gemm"]).output
    assert "on ONNX Runtime: kernel, 7-2" in told
    assert "transA=1 would transpose the activations" in told
    assert "not an operator of the engine" in CliRunner().invoke(main, ["operators", "Softmax"]).output
    (row,) = json.loads(CliRunner().invoke(main, ["operators", "MaxPool", "--json"]).output)["operators"]
    assert (row["domain"], row["kernel"][0]) == ("ai.onnx", 7)
    assert {"change": "ceil_mode=1", "code": None, "reason": None} in row["fpga"]
    assert CliRunner().invoke(main, ["operators", "--json", "--markdown"]).exit_code == 2


def test_versions_are_spans():
    assert [spans(versions) for versions in ((), (7,), (7, 8, 9, 11, 13, 14))] == ["", "7", "7-9, 11, 13-14"]
