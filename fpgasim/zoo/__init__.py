"""The networks as graphs, their weights, and what stands before and after them: pictures in, class names out."""

from fpgasim.zoo.checkpoints import read_checkpoint
from fpgasim.zoo.imagenet import labels, top_k
from fpgasim.zoo.images import Preprocessing, preprocess
from fpgasim.zoo.networks import NETWORKS, Network, build, load, names

__all__ = [
    "NETWORKS",
    "Network",
    "Preprocessing",
    "build",
    "labels",
    "load",
    "names",
    "preprocess",
    "read_checkpoint",
    "top_k",
]
