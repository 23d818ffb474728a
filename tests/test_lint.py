"""Rules of the house that ruff and mypy do not know."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("fpgasim/**/*.py"), *ROOT.glob("kernels/**/*.py")])

#: Room -> the rooms it may import, itself and errors left out. Downwards only.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "machine": set(),
    "numerics": set(),
    "kernels": {"numerics"},
    "ops": {"kernels", "numerics"},
    "npu": {"kernels", "numerics"},
    "graph": set(),
    "compiler": {"npu", "graph", "ops", "kernels", "numerics"},
    "placement": {"compiler", "graph", "npu", "ops", "kernels", "numerics", "machine"},
    "runtime": {"placement", "compiler", "npu", "ops", "kernels", "graph", "numerics"},
    "zoo": {"graph", "machine"},
    "bench": {"runtime", "placement", "compiler", "npu", "graph", "ops", "kernels", "numerics", "zoo"},
    "service": {"runtime", "placement", "compiler", "npu", "graph", "ops", "kernels", "numerics", "zoo", "machine"},
    "onnx_backend": {"runtime", "placement", "graph"},
    "torch": {"compiler", "npu", "graph", "ops", "kernels", "numerics"},
    "report": {"runtime", "placement", "compiler", "npu", "graph", "ops", "kernels", "numerics", "zoo", "machine"},
}
#: Nothing imports these but each other and the entry points.
TOP = {"cli", "demo", "__main__"}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "kernels" if parts[0] == "kernels" else parts[1].removesuffix(".py")


def imported_rooms(tree: ast.AST) -> set[str]:
    """The rooms named by imports at any depth, those for type checkers only included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "fpgasim":
            names = [f"fpgasim.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("fpgasim.")}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_downwards_only(path: Path) -> None:
    room = room_of(path)
    if room == "__init__" or room in TOP:
        return
    allowed = ROOMS[room] | {"errors", room}
    assert imported_rooms(ast.parse(path.read_text())) <= allowed


def test_no_module_is_named_like_a_function_its_package_exports() -> None:
    for init in (p for p in SOURCES if p.name == "__init__.py"):
        package = ".".join(("fpgasim", *init.relative_to(ROOT).parts[:-1])).replace("fpgasim.fpgasim", "fpgasim")
        imports = [n for n in ast.walk(ast.parse(init.read_text())) if isinstance(n, ast.ImportFrom)]
        exported = {alias.asname or alias.name for n in imports if n.module != package for alias in n.names}
        modules = {p.stem for p in init.parent.glob("*.py")} | {
            p.parent.name for p in init.parent.glob("*/__init__.py")
        }
        assert not exported & modules, init


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_longer_than_600_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in (ROOT / "README.md").read_text()
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), re.MULTILINE)


def test_make_prints_its_targets_without_installing() -> None:
    answer = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "test-quick", "lint", "clean"):
        assert f"make {target} " in answer
