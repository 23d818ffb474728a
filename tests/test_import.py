"""`import fpgasim` stays light: what is heavy waits until it is asked for."""

import subprocess
import sys

import pytest

HEAVY = ("matplotlib", "numba", "onnx", "onnx_ir", "onnxruntime", "PIL", "rich", "scipy")


@pytest.mark.parametrize(
    "statement", ["import fpgasim", "import fpgasim.cli", "import fpgasim.npu, fpgasim.ops, fpgasim.zoo"]
)
def test_importing_loads_no_heavy_package(statement: str) -> None:
    code = f"import sys; {statement}; print(*sorted(sys.modules.keys() & {set(HEAVY)!r}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_every_public_name_is_there() -> None:
    import fpgasim

    for name in fpgasim.__all__:
        assert getattr(fpgasim, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    import fpgasim

    with pytest.raises(AttributeError, match="has no attribute 'brainwave'"):
        fpgasim.brainwave  # noqa: B018


def test_without_pytorch_its_room_says_in_one_line_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None; import fpgasim.torch"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == "ImportError: fpgasim.torch needs PyTorch: pip install 'fpgasim[torch]'"
    assert "During handling" not in answer.stderr
