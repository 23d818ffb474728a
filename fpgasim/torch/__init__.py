"""From PyTorch: modules as graphs, and training that sees the engine's numbers. Needs the extra `torch`.

`export` makes a Graph of a module. `prepare` swaps its convolutions and linear layers for twins that compute what the
engine computes, to the last bit, and let gradients through; `convert` and `export` turn what was trained back.
"""

try:
    import torch as _pytorch  # noqa: F401
except ImportError:
    raise ImportError("fpgasim.torch needs PyTorch: pip install 'fpgasim[torch]'") from None

from fpgasim.torch.exporting import export
from fpgasim.torch.preparing import convert, prepare
from fpgasim.torch.straight_through import fake_quantize

__all__ = ["convert", "export", "fake_quantize", "prepare"]
