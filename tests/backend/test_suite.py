"""Every case of ONNX's backend test suite that ONNX Runtime passes passes here, and none crashes."""

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import pytest

from fpgasim import onnx_backend

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


def one_line(words: str) -> str:
    return " ".join(words.split())[:120]
