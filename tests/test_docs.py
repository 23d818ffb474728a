"""What README.md and docs/ show is what happens.

```python``` blocks of a page are run one after another in one namespace; what they print must be the ```text``` block
that follows at once, if there is one. In ```console``` blocks each `$ fpgasim …` line is run and the lines up to the
next `$` must be its output. `...` in expected output stands for anything. Of ```sh``` blocks only those files are made
that `cat > NAME <<'END'` makes. Blocks of another language are not run: `py` is Python that needs the network or
PyTorch. The programs in docs/examples/ are run too; what they print must be the .txt file beside them. All run in a
folder with the files of `sandbox`.
"""

import contextlib
import doctest
import io
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from fpgasim.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
EXAMPLES = sorted(ROOT.glob("docs/examples/*.py"))


class Block(NamedTuple):
    language: str
    text: str
    line: int
    follows: bool  # only blank lines between the block before and this one


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a Markdown page."""
    text, found, end = page.read_text(encoding="utf-8"), [], -1
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        follows = end >= 0 and not text[end : match.start()].strip()
        found.append(Block(match[1], match[2], text.count("\n", 0, match.start()) + 2, follows))
        end = match.end()
    return found


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """The (command, expected output) pairs of a console block."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def check(expected: str, got: str, where: str) -> None:
    def tidy(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"

    if not doctest.OutputChecker().check_output(tidy(expected), tidy(got), doctest.ELLIPSIS):
        pytest.fail(f"{where} prints\n{tidy(got)}\nand the page says\n{tidy(expected)}")


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with what the pages speak of: a photograph, an array, ResNet-50 as ONNX without its weights."""
    import matplotlib.cbook
    import numpy as np
    import onnx

    photograph = Path(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    shutil.copy(photograph, tmp_path / "photo.jpg")
    shutil.copy(photograph, tmp_path / "picture.jpg")
    light = Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"
    shutil.copy(light, tmp_path / "resnet50.onnx")
    np.save(tmp_path / "weights.npy", np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FPGASIM_KERNELS", raising=False)


def runnable(language: str) -> list[Any]:
    return [
        pytest.param(page, id=str(page.relative_to(ROOT)))
        for page in PAGES
        if page.exists() and any(block.language == language for block in blocks(page))
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("page", runnable("python"))
def test_the_python_of_a_page_runs_and_prints_what_the_page_says(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    listed = blocks(page)
    for block, after in zip(listed, [*listed[1:], None], strict=True):
        if block.language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
        if after is not None and after.language == "text" and after.follows:
            check(after.text, printed.getvalue(), f"{page.name}:{block.line}")


@pytest.mark.slow
@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("page", runnable("console"))
def test_the_commands_of_a_page_print_what_the_page_says(page: Path) -> None:
    for block in blocks(page):
        if block.language == "sh":
            for name, text in re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", block.text, re.MULTILINE | re.DOTALL):
                Path(name).write_text(text)
        if block.language != "console":
            continue
        for command, expected in commands(block):
            program, *arguments = shlex.split(command, comments=True)
            assert program == "fpgasim", (
                f"{page.name}:{block.line}: only fpgasim is run here; use ```sh for {command!r}"
            )
            result = CliRunner().invoke(main, arguments, prog_name="fpgasim")
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            check(expected, result.output, f"{page.name}:{block.line}: $ {command}")


@pytest.mark.slow
@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("program", EXAMPLES, ids=lambda p: p.name)
def test_an_example_prints_what_stands_beside_it(program: Path) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(program), run_name="__main__")
    check(program.with_suffix(".txt").read_text(encoding="utf-8"), printed.getvalue(), program.name)


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
