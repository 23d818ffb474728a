"""The networks as graphs, their weights, and what stands before and after them: pictures in, class names out."""

from fpgasim.zoo.azure_images import AzurePreprocessing, preprocess_azure, preprocessing_model
from fpgasim.zoo.boxes import Detections, detect, draw_boxes
from fpgasim.zoo.checkpoints import read_checkpoint
from fpgasim.zoo.decoding import decode
from fpgasim.zoo.downloads import Source, fetch, sources
from fpgasim.zoo.imagenet import labels, top_k
from fpgasim.zoo.images import PREPROCESSINGS, Preprocessing, preprocess
from fpgasim.zoo.networks import NETWORKS, Network, build, classifier, featurizer, load, names
from fpgasim.zoo.seeding import seed_weights

__all__ = [
    "NETWORKS",
    "PREPROCESSINGS",
    "AzurePreprocessing",
    "Detections",
    "Network",
    "Preprocessing",
    "Source",
    "build",
    "classifier",
    "decode",
    "detect",
    "draw_boxes",
    "featurizer",
    "fetch",
    "labels",
    "load",
    "names",
    "preprocess",
    "preprocess_azure",
    "preprocessing_model",
    "read_checkpoint",
    "seed_weights",
    "sources",
    "top_k",
]
