"""fpgasim: one ONNX file in; the numbers, cycles and placement of a Brainwave-like FPGA engine out.

The public names are imported when first used, so that `import fpgasim` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Public name -> the module that holds it.
_HOMES = {
    "BlockFormat": "fpgasim.numerics",
    "BlockTensor": "fpgasim.numerics",
    "Device": "fpgasim.npu",
    "FpgasimError": "fpgasim.errors",
    "Graph": "fpgasim.graph",
    "Plan": "fpgasim.placement",
    "Session": "fpgasim.runtime",
    "compile": "fpgasim.runtime",
    "conv2d": "fpgasim.ops",
    "load": "fpgasim.graph",
    "partition": "fpgasim.placement",
    "quantize": "fpgasim.ops",
}
_ROOMS = ("compiler", "errors", "graph", "kernels", "npu", "numerics", "ops", "placement", "runtime", "zoo")

__all__ = [*_HOMES, *_ROOMS, "__version__"]

if TYPE_CHECKING:
    from fpgasim.errors import FpgasimError as FpgasimError
    from fpgasim.graph import Graph as Graph, load as load
    from fpgasim.npu import Device as Device
    from fpgasim.numerics import BlockFormat as BlockFormat, BlockTensor as BlockTensor
    from fpgasim.ops import conv2d as conv2d, quantize as quantize
    from fpgasim.placement import Plan as Plan, partition as partition
    from fpgasim.runtime import Session as Session, compile as compile


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"fpgasim.{name}")
    raise AttributeError(f"module 'fpgasim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
