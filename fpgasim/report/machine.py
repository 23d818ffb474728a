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
from pathlib import Path

#: The x86-64 levels of the psABI by the flags /proc/cpuinfo shows for them, each on top of the one before.
LEVELS = {
    "x86-64-v2": {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
    "x86-64-v3": {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"},
    "x86-64-v4": {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"},
}
#: Flags beyond the levels that matter for integer dot products and half precision.
EXTRAS = ("avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve")
#: The environment variables that the library obeys.
VARIABLES = ("FPGASIM_KERNELS", "FPGASIM_NUM_THREADS", "FPGASIM_CACHE_DIR", "FPGASIM_DATA")


@dataclass(frozen=True)
class Processor:
    """The processor: its name, architecture level, further instruction sets and the cores this process may use."""

    model: str
    level: str
    extensions: tuple[str, ...]
    cores: int


@dataclass(frozen=True)
class Package:
    """A package that fpgasim names; `installed` is its version or None, `extra` the extra that asks for it or ''."""

    name: str
    required: str
    installed: str | None
    extra: str


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """This machine's processor, as Linux describes it; elsewhere only what Python knows."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    fields: dict[str, str] = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text.partition("\n\n")[0], re.MULTILINE))
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    level = platform.machine()
    for name, needed in LEVELS.items():
        if not needed <= flags:
            break
        level = name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    model = fields.get("model name") or platform.processor() or "unknown"
    return Processor(model, level, tuple(f for f in EXTRAS if f in flags), cores)


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
