"""Which backends there are and how one is chosen."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

import fpgasim.kernels.registry as registry
from fpgasim.errors import UnknownNameError
from fpgasim.kernels import available, backend


def test_all_backends_are_here_slowest_first_and_native_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    # The extension is optional at install; here it must have been built.
    monkeypatch.delenv("FPGASIM_KERNELS", raising=False)
    assert list(available())[:3] == ["reference", "numba", "native-portable"]
    assert backend().name == list(available())[-1]
    assert backend().name.startswith("native-")


def test_the_native_kernels_are_the_sanitized_ones_where_those_are_asked_for() -> None:
    found = importlib.util.find_spec("fpgasim.kernels._native")
    assert found is not None
    assert "build/sanitized" in str(found.origin) or "FPGASIM_SANITIZED" not in os.environ


def test_the_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPGASIM_KERNELS", "numba")
    assert backend().name == "numba"
    assert backend("reference").name == "reference"


def test_an_unknown_backend_lists_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPGASIM_KERNELS", "tpu")
    with pytest.raises(UnknownNameError, match="no kernel backend 'tpu'; there are reference, numba, native-portable"):
        backend()


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    found = registry.importlib.util.find_spec
    monkeypatch.setattr(
        registry.importlib.util, "find_spec", lambda name: None if name.endswith("._native") else found(name)
    )
    available.cache_clear()
    yield
    available.cache_clear()


@pytest.mark.usefixtures("without_extension")
def test_without_the_extension_numba_takes_over_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(available()) == ["reference", "numba"]
    assert backend().name == backend().name == "numba"
    assert capsys.readouterr().err == (
        "using the numba kernels: the native extension is not there (installed without a C compiler, "
        "or its build failed); `pip install .` with a compiler builds it\n"
    )


def test_numba_is_not_imported_before_it_is_used() -> None:
    code = "import sys; from fpgasim.kernels import available; available(); assert 'numba' not in sys.modules"
    environment = {k: v for k, v in os.environ.items() if k != "FPGASIM_KERNELS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
