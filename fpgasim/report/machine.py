"""What this machine offers: processor, compiler, kernel backends, packages, and what is missing."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata

from fpgasim.machine import Processor as Processor, processor as processor

#: The environment variables that the library obeys.
VARIABLES = ("FPGASIM_KERNELS", "FPGASIM_NUM_THREADS", "FPGASIM_CACHE_DIR", "FPGASIM_DATA")


@dataclass(frozen=True)
class Package:
    """A package that fpgasim names; `installed` is its version or None, `extra` the extra that asks for it or ''."""

    name: str
    required: str
    installed: str | None
    extra: str


def compiler() -> str | None:
    """The first line of `cc --version` of the C compiler that builds extensions here, or None without one."""
    command = shlex.split(os.environ.get("CC") or str(sysconfig.get_config_var("CC")))
    for name in (*command[:1], "cc", "gcc", "clang"):
        if path := shutil.which(name):
            answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            return (answer.stdout or answer.stderr).partition("\n")[0] or path
    return None


def packages() -> list[Package]:
    """What the installed fpgasim requires, the core first and then extra by extra, with the versions there are."""
    found = []
    for requirement in metadata.requires("fpgasim") or ():
        spec, _, marker = requirement.partition(";")
        name, bounds = re.match(r"\s*([\w.-]+)\s*(.*)", spec).groups()  # type: ignore[union-attr]
        extra = re.search(r"extra == [\"'](\w+)[\"']", marker)
        found.append(Package(name, bounds.strip(), _version(name), extra.group(1) if extra else ""))
    return sorted(found, key=lambda p: p.extra)


def python() -> str:
    """Which Python this is and where."""
    return f"{platform.python_version()} ({sys.executable})"


def missing(compiler_line: str | None, backends: list[str], known: list[Package]) -> list[str]:
    """One line for everything that is not there, with what it would bring and how to get it."""
    lines = []
    if not any(name.startswith("native") for name in backends):
        remedy = "reinstall fpgasim and read the compiler's messages (pip install -v)" if compiler_line else "see below"
        lines.append(f"native kernels: results are the same without them, slower; {remedy}")
    if compiler_line is None:
        lines.append("C compiler: install one (Debian: apt install gcc python3-dev), then reinstall fpgasim")
    if "numba" not in backends:
        lines.append("numba kernels: results are the same without them, slower; pip install numba")
    absent_core = [p for p in known if not p.extra and not p.installed]
    lines += [f"{p.name}: fpgasim needs it; pip install '{p.name}{p.required}'" for p in absent_core]
    for extra in dict.fromkeys(p.extra for p in known if p.extra):
        absent = [p.name for p in known if p.extra == extra and not p.installed]
        if absent:
            lines.append(f"extra [{extra}] (optional): {', '.join(absent)}; pip install 'fpgasim[{extra}]'")
    return lines


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
