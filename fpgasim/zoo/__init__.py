"""The networks as graphs, their weights, and what stands before and after them: pictures in, class names out."""

from fpgasim.zoo.checkpoints import read_checkpoint
from fpgasim.zoo.downloads import Source, fetch, sources
from fpgasim.zoo.imagenet import labels, top_k
from fpgasim.zoo.images import Preprocessing, preprocess
from fpgasim.zoo.networks import NETWORKS, Network, build, load, names
from fpgasim.zoo.seeding import seed_weights

__all__ = [
    "NETWORKS",
    "Network",
    "Preprocessing",
    "Source",
    "build",
    "fetch",
    "labels",
    "load",
    "names",
    "preprocess",
    "read_checkpoint",
    "seed_weights",
    "sources",
    "top_k",
]
