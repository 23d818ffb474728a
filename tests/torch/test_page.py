"""What docs/torch.md shows is what happens."""

import contextlib
import io
import runpy
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def test_the_programs_of_the_page_print_what_it_says() -> None:
    torch.set_num_threads(1)
    pages = runpy.run_path(str(ROOT / "tests/test_docs.py"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    listed = pages["blocks"](ROOT / "docs/torch.md")
    assert len([block for block in listed if block.language == "py"]) == 4
    for block, after in zip(listed, [*listed[1:], None], strict=True):
        if block.language != "py":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (block.line - 1) + block.text, "torch.md", "exec"), namespace)
        assert after is not None
        assert after.follows
        pages["check"](after.text, printed.getvalue(), f"torch.md:{block.line}")
