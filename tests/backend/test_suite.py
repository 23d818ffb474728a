"""Every case of ONNX's backend test suite that ONNX Runtime passes passes here, and none crashes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
import pytest

from fpgasim import onnx_backend
from fpgasim.report.operators import operators

from .suite import CRASHED, DIFFERENT, KINDS, PASSED, cases, outcome, run_onnx_runtime

SLOW = ("node", "real")


def on_the_cpu(model: onnx.ModelProto) -> Callable[[list[Any]], Sequence[Any]]:
    return onnx_backend.prepare(model, "CPU").run


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in KINDS])
def test_what_onnx_runtime_passes_passes(kind):
    theirs, ours = {}, {}
    for case in cases(kind):
        theirs[case.name] = outcome(case, run_onnx_runtime)
        ours[case.name] = outcome(case, on_the_cpu)
    passed, passed_here = (sum(how == PASSED for how, _ in ends.values()) for ends in (theirs, ours))
    print(f"{kind}: {len(theirs)} cases, ONNX Runtime passes {passed}, fpgasim {passed_here}")
    for name, (how, words) in theirs.items():
        if how != PASSED:
            print(f"  {name}: not passed by ONNX Runtime ({one_line(words)}); here {ours[name][0]}")

    lost = {name: ours[name] for name, (how, _) in theirs.items() if how == PASSED != ours[name][0]}
    assert passed
    assert lost == {}
    assert [(name, words) for name, (how, words) in ours.items() if how == CRASHED] == []
    # Other numbers than expected only where ONNX Runtime has other numbers too.
    wrong = {name for name, (how, _) in ours.items() if how == DIFFERENT}
    assert wrong <= {name for name, (how, _) in theirs.items() if how == DIFFERENT}


@pytest.mark.slow
def test_the_table_of_operators_says_of_no_passed_case_that_it_does_not_run():
    """Those ways of an operator that the table says ONNX Runtime does not run: no case of them passes."""
    not_run = {(row.domain, row.name, version) for row in operators() for version in row.not_run}
    of_them = [case for case in cases("node") if not_run & set(used(case.model))]
    assert len({case.model.graph.node[0].op_type for case in of_them}) > 3
    assert [case.name for case in of_them if outcome(case, run_onnx_runtime)[0] == PASSED] == []


def used(model: onnx.ModelProto) -> Iterator[tuple[str, str, int]]:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for node in model.graph.node:
        yield node.domain, node.op_type, versions.get(node.domain, 0)


def one_line(words: str) -> str:
    return " ".join(words.split())[:120]
