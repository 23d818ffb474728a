"""The weights of a network: seeded random ones, or those of a checkpoint matched by name."""

import difflib
import math
import zlib
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from fpgasim.errors import WeightsError
from fpgasim.zoo.building import Parameter

Array = np.ndarray[Any, Any]

#: PyTorch counts batches in its BatchNormalization modules; inference needs no such count.
COUNTER = ".num_batches_tracked"


def random_weights(parameters: Mapping[str, Parameter], seed: int) -> dict[str, Array]:
    """A float32 array per parameter: He-normal weights and BatchNormalization statistics that fit them.

    Each array depends on the seed and its own name alone. The running variance is about what the layer before makes,
    so activations stay in a sane range at any depth. He, Zhang, Ren, Sun: Delving Deep into Rectifiers, ICCV 2015,
    equation 10.
    """
    return {name: _random_array(name, parameter, seed) for name, parameter in parameters.items()}


def _random_array(name: str, parameter: Parameter, seed: int) -> Array:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if parameter.role in ("scale", "variance"):
        return (parameter.power * rng.uniform(0.75, 1.25, parameter.shape)).astype(np.float32)
    deviation = {
        "weight": math.sqrt(2 / (math.prod(parameter.shape[1:]) * parameter.power)),
        "bias": 0.01,
        "shift": 0.1,
        "mean": 0.1 * math.sqrt(parameter.power),
    }[parameter.role]
    return rng.standard_normal(parameter.shape, np.float32) * np.float32(deviation)


def match_weights(
    parameters: Mapping[str, Parameter], arrays: Mapping[str, Any], *, what: str, optional: Container[str] = ()
) -> dict[str, Array]:
    """The float32 array of each parameter, found by its name.

    Raises WeightsError for a tensor that is missing, left over, of another shape, not floating point or not finite.
    PyTorch's batch counters and the `optional` names may be there and are left out.
    """
    given = {
        name: np.asarray(array) for name, array in arrays.items() if not (name.endswith(COUNTER) or name in optional)
    }
    missing = [name for name in parameters if name not in given]
    unexpected = [name for name in given if name not in parameters]
    if missing:
        name = missing[0]
        near = _nearest(name, {key: given[key].shape for key in unexpected or given})
        message = f"{what} needs tensor {name!r} ({_by(parameters[name].shape)}), which the weights lack"
        raise WeightsError(message + near + _others(missing, "missing"))
    if unexpected:
        name = unexpected[0]
        near = _nearest(name, {key: parameter.shape for key, parameter in parameters.items()})
        message = f"{what} has no tensor {name!r} ({_by(given[name].shape)}), which the weights hold"
        raise WeightsError(message + near + _others(unexpected, "unexpected"))
    return {name: _fitting(name, parameter, given[name], what) for name, parameter in parameters.items()}


def _fitting(name: str, parameter: Parameter, array: Array, what: str) -> Array:
    if array.shape != parameter.shape:
        raise WeightsError(f"tensor {name!r} is {_by(array.shape)}; {what} needs {_by(parameter.shape)}")
    if array.dtype.kind != "f":
        raise WeightsError(f"tensor {name!r} is {array.dtype}; {what} needs floating point")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf, which is refused next
        single = np.ascontiguousarray(array, np.float32)
    finite = np.isfinite(single)
    if not finite.all():
        at = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise WeightsError(f"tensor {name!r} holds {array[at]} at {list(at)}; weights must be finite in float32")
    if parameter.role == "variance" and (single < 0).any():
        raise WeightsError(f"tensor {name!r} holds {single.min()}; a variance cannot be negative")
    return single


def _nearest(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    close = difflib.get_close_matches(name, shapes, n=1, cutoff=0.0)
    return f"; the nearest name there is {close[0]!r} ({_by(shapes[close[0]])})" if close else "; it has no tensors"


def _others(names: list[str], kind: str) -> str:
    return f"; {len(names) - 1} more {kind}" if len(names) > 1 else ""


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"
