"""How fast the emulation is beside ONNX Runtime in the same process, bits checked first."""

from fpgasim.bench.layers import LayerSpeed, measure_layers
from fpgasim.bench.networks import NetworkSpeed, measure_network
from fpgasim.bench.timing import peak_rate

__all__ = ["LayerSpeed", "NetworkSpeed", "measure_layers", "measure_network", "peak_rate"]
