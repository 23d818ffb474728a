"""From ONNX nodes to layers of the engine: what it can do (`lower_node`) and one segment made ready (`lower`)."""

from fpgasim.compiler.capability import Unsupported, UnsupportedCode
from fpgasim.compiler.fusion import fuse
from fpgasim.compiler.nodes import choose_packing, lower_node
from fpgasim.compiler.segments import lower, segment_layers

__all__ = ["Unsupported", "UnsupportedCode", "choose_packing", "fuse", "lower", "lower_node", "segment_layers"]
