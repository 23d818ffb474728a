"""From ONNX nodes to layers of the engine (`lower_node`), to a segment (`lower`), to instructions (`emit`)."""

from fpgasim.compiler.capability import Unsupported, UnsupportedCode
from fpgasim.compiler.emission import Weights, emit
from fpgasim.compiler.fusion import fuse
from fpgasim.compiler.nodes import choose_packing, lower_node
from fpgasim.compiler.segments import lower, segment_layers

__all__ = [
    "Unsupported",
    "UnsupportedCode",
    "Weights",
    "choose_packing",
    "emit",
    "fuse",
    "lower",
    "lower_node",
    "segment_layers",
]
