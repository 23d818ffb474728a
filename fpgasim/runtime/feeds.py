"""The check of what a caller feeds into a session."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fpgasim.errors import InputError
from fpgasim.graph import Tensor

Array = npt.NDArray[Any]


def check_feeds(inputs: Sequence[Tensor], feeds: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
    """The fed arrays by name, of the dtypes that `inputs` declare; lists of arrays for sequences, None for nothing.

    Floating-point numbers of another precision are converted, and whole numbers of another size if they fit; nothing
    else is. Raises InputError naming the input, what was fed and what would do. Symbolic dimensions take any size;
    whether those of several inputs agree is for the graph to say.
    """
    if not isinstance(feeds, Mapping):
        raise InputError(f"feeds is a {type(feeds).__name__}; a mapping from input name to array would do")
    names = [tensor.name for tensor in inputs]
    for name in feeds:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"no input {name!r}; {hint}the inputs are {', '.join(map(repr, names)) or 'none'}")
    missing = [tensor for tensor in inputs if tensor.name not in feeds]
    if missing:
        raise InputError(f"input {missing[0].name!r} is not fed; {_wanted(missing[0])} would do")
    return {tensor.name: _checked(tensor, feeds[tensor.name]) for tensor in inputs}


def _checked(tensor: Tensor, value: npt.ArrayLike) -> Array:
    if tensor.container:
        return cast(Array, _contained(tensor, value))
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"input {tensor.name!r} is no array ({error}); {_wanted(tensor)} would do") from error
    array = _with_dtype(tensor, array)
    if tensor.shape is None:
        return array
    fits = len(array.shape) == len(tensor.shape) and all(
        actual == dim or not isinstance(dim, int) for dim, actual in zip(tensor.shape, array.shape, strict=True)
    )
    if not fits:
        hint = "; a single one needs an axis for the batch" if len(array.shape) == len(tensor.shape) - 1 else ""
        raise InputError(f"input {tensor.name!r} has shape {array.shape}; {_wanted(tensor)} would do{hint}")
    return array


def _contained(tensor: Tensor, value: Any) -> Any:
    """A sequence as a list of arrays; an optional as what it holds or None. ONNX Runtime checks the elements."""
    if isinstance(value, list | tuple) and "sequence" in tensor.container:
        return [element if isinstance(element, list) else np.asarray(element) for element in value]
    if not tensor.container.startswith("optional") or ("sequence" in tensor.container and value is not None):
        raise InputError(f"input {tensor.name!r} is a {type(value).__name__}; {_wanted(tensor)} would do")
    return None if value is None else np.asarray(value)


def _with_dtype(tensor: Tensor, array: Array) -> Array:
    wanted = tensor.dtype
    if array.dtype == wanted:
        return array
    if array.dtype.kind == wanted.kind == "f":
        with np.errstate(over="ignore"):
            return array.astype(wanted)
    if array.dtype.kind in "iu" and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if not array.size or (array.min() >= limits.min and array.max() <= limits.max):
            return array.astype(wanted)
    if wanted.kind == "O" and array.dtype.kind in "OUS":
        return array.astype(object)
    raise InputError(f"input {tensor.name!r} has dtype {array.dtype}; {_wanted(tensor)} would do")


def _wanted(tensor: Tensor) -> str:
    if tensor.container:
        what = "a list of arrays" if "sequence" in tensor.container else "an array"
        return f"{what}{' or None' * tensor.container.startswith('optional')}, {tensor.container},"
    kind = "strings" if tensor.dtype.kind == "O" else str(tensor.dtype)
    if tensor.shape is None:
        return kind
    return f"{kind} of shape ({', '.join('?' if dim is None else str(dim) for dim in tensor.shape)})"
