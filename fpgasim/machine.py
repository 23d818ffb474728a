"""The machine this process runs on: its processor, and where fpgasim keeps files between runs."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

#: The x86-64 levels of the psABI by the flags /proc/cpuinfo shows for them, each on top of the one before.
LEVELS = {
    "x86-64-v2": {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
    "x86-64-v3": {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"},
    "x86-64-v4": {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"},
}
#: Flags beyond the levels that matter for integer dot products and half precision.
EXTRAS = ("avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve")


@dataclass(frozen=True)
class Processor:
    """The processor: its name, architecture level, further instruction sets and the cores this process may use."""

    model: str
    level: str
    extensions: tuple[str, ...]
    cores: int


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


def cache_dir() -> Path:
    """Where fetched weights and measured costs are kept: $FPGASIM_CACHE_DIR, else ~/.cache/fpgasim."""
    return Path(os.environ.get("FPGASIM_CACHE_DIR") or Path.home() / ".cache" / "fpgasim")
