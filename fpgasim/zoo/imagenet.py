"""The 1000 classes of ImageNet-1k (ILSVRC 2012) in the usual order, and the best of a network's logits."""

import functools
from importlib import resources

import numpy as np
from numpy.typing import ArrayLike

from fpgasim.errors import InputError


@functools.cache
def _labels() -> tuple[str, ...]:
    text = resources.files("fpgasim.zoo").joinpath("imagenet_labels.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def labels() -> list[str]:
    """The 1000 class names by index, each once: 0 is "tench", 652 "military uniform"."""
    return list(_labels())


def top_k(logits: ArrayLike, k: int = 5) -> list[tuple[int, str, float]]:
    """The k likeliest classes as (index, label, probability), best first, equal ones by index.

    `logits` holds 1000 values, shape (1000,) or (1, 1000); the softmax is taken in float64.
    Raises InputError for another size, a k outside 1…1000 or logits that are not finite.
    """
    values = np.asarray(logits, np.float64)
    if values.shape not in ((1000,), (1, 1000)):
        raise InputError(f"logits of shape {values.shape}; top_k takes one picture's 1000, shape (1000,) or (1, 1000)")
    if not 1 <= k <= 1000:
        raise InputError(f"k={k}; top_k takes 1 to 1000")
    values = values.reshape(1000)
    if not np.isfinite(values).all():
        raise InputError(f"logits hold {(~np.isfinite(values)).sum()} NaN or Inf; top_k cannot rank them")
    powers = np.exp(values - values.max())
    probabilities = powers / powers.sum()
    order = np.argsort(-values, kind="stable")[:k]
    return [(int(i), _labels()[i], float(probabilities[i])) for i in order]
