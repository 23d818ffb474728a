"""TensorFlow's SavedModels: their names read without TensorFlow, and they themselves made ONNX by tf2onnx."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpgasim.errors import InputError, ModelError
from fpgasim.graph import Graph, load

FILE = "saved_model.pb"
#: What the extra brings, by the names of its modules.
_NEEDED = ("tensorflow", "tf2onnx")
_OPSET = 17
_LOGGED = re.compile(r"^\S+ \S+ - (INFO|WARNING|ERROR) - (.+)$")
_LISTED = 12


@dataclass(frozen=True)
class SavedModel:
    """The names of a SavedModel: signature -> (its inputs, its outputs), key -> tensor; and its graph's nodes."""

    signatures: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]]
    nodes: frozenset[str]


@dataclass(frozen=True)
class Selection:
    """What is to be made ONNX: a whole signature, or what lies between tensors; name asked for -> name in ONNX."""

    signature: str | None
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def read(path: Path) -> SavedModel:
    """The names in the file saved_model.pb at `path`; ModelError for a file that is none."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    from fpgasim.service import wire

    saved = wire.message("tensorflow.SavedModel")()
    try:
        saved.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise ModelError(f"{FILE} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    found = [meta for meta in saved.meta_graphs if "serve" in meta.meta_info_def.tags]
    if not found:
        raise ModelError(f"{FILE} holds no graph with the tag 'serve'")
    signatures = {
        key: (_tensors(signature.inputs), _tensors(signature.outputs))
        for key, signature in sorted(found[0].signature_def.items())
        if signature.method_name
    }
    return SavedModel(signatures, frozenset(node.name for node in found[0].graph_def.node))


def select(saved: SavedModel, inputs: Sequence[str], outputs: Sequence[str]) -> Selection:
    """What the names ask for: keys or tensors of one signature, else tensors of the graph, with or without ":0".

    Raises InputError for names of neither, listing what there is.
    """
    for signature, ports in saved.signatures.items():
        keys = [_keys(names) for names in ports]
        if all(name in keys[0] for name in inputs) and all(name in keys[1] for name in outputs):
            chosen = ({name: keys[side][name] for name in names} for side, names in enumerate((inputs, outputs)))
            return Selection(signature, *chosen)
    tensors = ({name: _tensor(saved, role, name) for name in names} for role, names in _roles(inputs, outputs))
    return Selection(None, *tensors)


def check_extra() -> None:
    """Raises ModelError where the packages that make ONNX of TensorFlow's models are not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"a TensorFlow SavedModel needs {' and '.join(missing)} to become ONNX; "
            "pip install 'fpgasim[tensorflow]' brings them, or register the ONNX file itself"
        )


def to_onnx(folder: Path, selection: Selection, target: Path, say: Callable[[str], None]) -> Graph:
    """The graph of the SavedModel in `folder`, not optimized, by way of the new ONNX file `target`.

    `say` takes what tf2onnx tells meanwhile. TensorFlow runs in a process of its own and leaves with it. Raises
    ModelError with the reason where that fails, or where ONNX has not what the model is made of.
    """
    if selection.signature is not None:
        chosen = ["--signature_def", selection.signature]
    else:
        chosen = ["--inputs", ",".join(selection.inputs.values()), "--outputs", ",".join(selection.outputs.values())]
    command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(folder), "--tag", "serve", *chosen]
    command += ["--opset", str(_OPSET), "--output", str(target)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    last, errors = "", []
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            last = line.strip() or last
            if logged := _LOGGED.match(last if line.strip() else ""):
                say(f"tf2onnx: {logged[2]}")
                if logged[1] == "ERROR":
                    errors.append(logged[2])
    if process.returncode != 0 or not target.exists():
        raise ModelError(f"tf2onnx failed: {(errors or [last])[0]}")
    try:
        return load(target, optimize=False)
    except ModelError as error:
        told = errors[0] if errors else error
        raise ModelError(f"{told}; an input_node behind it, or other output_nodes, leave it out") from error


def _tensors(ports: Any) -> dict[str, str]:
    return {str(name): str(info.name) for name, info in sorted(ports.items())}


def _roles(inputs: Sequence[str], outputs: Sequence[str]) -> Iterable[tuple[str, Sequence[str]]]:
    return (("input_node", inputs), ("output_nodes", outputs))


def _keys(names: Mapping[str, str]) -> dict[str, str]:
    """Key, tensor and the tensor's node -> key."""
    return {
        **{tensor.removesuffix(":0"): key for key, tensor in names.items()},
        **{tensor: key for key, tensor in names.items()},
        **{key: key for key in names},
    }


def _tensor(saved: SavedModel, role: str, name: str) -> str:
    node, _, number = name.rpartition(":")
    if node in saved.nodes and number.isdecimal():
        return name
    if name in saved.nodes:
        return f"{name}:0"
    close = difflib.get_close_matches(node or name, saved.nodes, n=1)
    hint = f"did you mean {close[0] + ':0'!r}? " if close else ""
    told = "; ".join(
        f"signature {key!r} has {_listed(ports[0])} -> {_listed(ports[1])}" for key, ports in saved.signatures.items()
    )
    raise InputError(f"{role}: no tensor {name!r}; {hint}{told or 'it has no signature'}")


def _listed(names: Mapping[str, str]) -> str:
    texts = [f"{tensor!r} ({key!r})" for key, tensor in list(names.items())[:_LISTED]]
    return ", ".join(texts) or "nothing"
