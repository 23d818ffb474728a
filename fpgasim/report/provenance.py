"""Where a result comes from: what every JSON object carries beside its figures."""

from __future__ import annotations

import json
import math
from typing import Any

import fpgasim


def provenance(**what: Any) -> dict[str, Any]:
    """The tool, its version and the kernel backend, and `what` else decided the result (device, format, …)."""
    from importlib.metadata import version

    from fpgasim.kernels import backend

    return {
        "fpgasim": fpgasim.__version__,
        "kernels": backend().name,
        "numpy": version("numpy"),
        "onnxruntime": version("onnxruntime"),
        **what,
    }


def to_json(value: Any) -> str:
    """`value` as indented JSON; NumPy numbers and arrays become plain ones, NaN and infinities null."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(k): _plain(v) for k, v in value.items()}
        case list() | tuple():
            return [_plain(v) for v in value]
        case set() | frozenset():
            return sorted(_plain(v) for v in value)
        case float() if not math.isfinite(value):
            return None
        case bool() | int() | float() | str() | None:
            return value
        case _ if hasattr(value, "tolist"):
            return _plain(value.tolist())
    raise TypeError(f"{type(value).__name__} {value!r} has no JSON form")
