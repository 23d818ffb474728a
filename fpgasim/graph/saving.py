"""Writing graphs: a ModelProto, or a file with its weights inside or beside it."""

import contextlib
import os
from typing import TYPE_CHECKING

import onnx_ir as ir

from fpgasim.errors import InputError, ModelError

if TYPE_CHECKING:
    import onnx

    from fpgasim.graph.structure import Graph

#: More weights than this do not go into one protobuf message: its limit is 2 GiB, and the nodes need room too.
INLINE_LIMIT_BYTES = 2_000_000_000


def to_proto(graph: "Graph") -> "onnx.ModelProto":
    """A ModelProto with the weights inside: see `Graph.to_proto`."""
    size_bytes = _weight_bytes(graph)
    if size_bytes > INLINE_LIMIT_BYTES:
        raise ModelError(
            f"graph {graph.name!r} has {size_bytes} bytes of weights, more than the {INLINE_LIMIT_BYTES} "
            "that fit into one protobuf message; save(path) puts them into a file of their own"
        )
    return ir.to_proto(graph.model)


def save(graph: "Graph", path: str | os.PathLike[str]) -> None:
    """Writes `path`, replacing it only once the new file is whole: see `Graph.save`."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path={path!r} is no path; a str or a pathlib.Path would do")
    path = os.fspath(path)
    partial = f"{path}.part"
    external = f"{os.path.basename(path)}.data" if _weight_bytes(graph) > INLINE_LIMIT_BYTES else None
    try:
        ir.save(graph.model, partial, format="protobuf", external_data=external)
        os.replace(partial, path)
    except OSError as error:
        raise ModelError(f"cannot write {path!r}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _weight_bytes(graph: "Graph") -> int:
    tensors = (value.const_value for value in graph.model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
