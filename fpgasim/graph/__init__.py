"""ONNX files as verified graphs: loading, the passes that normalise them, and cutting them apart again."""

from fpgasim.graph.loading import load
from fpgasim.graph.passes import PASSES, optimize
from fpgasim.graph.structure import Graph, Node, Tensor
from fpgasim.graph.verifier import verify

__all__ = ["PASSES", "Graph", "Node", "Tensor", "load", "optimize", "verify"]
