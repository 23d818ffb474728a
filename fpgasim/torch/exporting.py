"""`export`: from a PyTorch module to a Graph."""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from fpgasim.errors import InputError
from fpgasim.graph import Graph, load, optimize
from fpgasim.torch.preparing import Prepared, convert, first_line, fold_norms

BATCH = "batch"


def export(module: nn.Module, example: torch.Tensor | Sequence[torch.Tensor], *, dynamic_batch: bool = False) -> Graph:
    """The graph of `module` in evaluation for inputs like `example`, a tensor or one for each argument of forward.

    Inputs are named after forward's arguments, weights after the module's parameters, operators and what they make
    after the submodule that computes them: `layer1.0.conv1`, `layer1.0.add`. Batch norms are folded as in `load`. With
    `dynamic_batch` the first dimension of every input is the symbol `batch`. `module` is not changed. One that
    `prepare` made is converted first; a session of its graph gives the same bits as the module in evaluation.

    Raises InputError for a module that PyTorch cannot export, one that takes or gives anything but tensors, and a
    prepared one that computes with weights outside nn.Conv2d and nn.Linear; ModelError and WeightsError as `load`.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"module is a {type(module).__name__}; a torch.nn.Module would do")
    name, tensors = type(module).__name__, _tensors(example)
    if isinstance(module, Prepared):
        plain, name = convert(module), type(module).__mro__[2].__name__
    else:
        plain = copy.deepcopy(module)
        with contextlib.suppress(InputError):  # where it is hard to follow, PyTorch's own folding will do
            fold_norms(plain.eval())
    plain.eval()
    if dynamic_batch:  # a size of 1 would be taken for a constant
        tensors = tuple(torch.cat([x, x]) if x.ndim and len(x) == 1 else x for x in tensors)
    _try(plain, name, tensors)
    program = _program(plain, name, tensors, dynamic_batch)
    model = program.model
    _name_nodes(model.graph, plain)
    model.graph.name = name
    graph = load(ir.to_proto(model), optimize=False)
    return _optimized(graph, plain) if isinstance(module, Prepared) else optimize(graph)


def _tensors(example: Any) -> tuple[torch.Tensor, ...]:
    given = (example,) if isinstance(example, torch.Tensor) else example
    if not isinstance(given, list | tuple) or not given or not all(isinstance(x, torch.Tensor) for x in given):
        what = f"a {type(example).__name__}"
        if isinstance(given, list | tuple):
            what += f" of {', '.join(type(x).__name__ for x in given) or 'nothing'}"
        raise InputError(f"example is {what}; a tensor, or a tuple with one for each argument of forward, would do")
    return tuple(given)


def _try(module: nn.Module, name: str, tensors: tuple[torch.Tensor, ...]) -> None:
    """Runs `module`: what it makes of the example must be tensors."""
    shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
    try:
        with torch.no_grad():
            outputs = module(*tensors)
    except Exception as error:  # whatever the module's own code raises
        raise InputError(f"{name} does not take an example of {shapes}: {first_line(error)}") from error
    listed = outputs if isinstance(outputs, list | tuple) else [outputs]
    wrong = [type(x).__name__ for x in listed if not isinstance(x, torch.Tensor)]
    if wrong or not listed:
        raise InputError(f"{name} returns {wrong[0] if wrong else 'nothing'}; a tensor or a tuple of tensors would do")


def _program(module: nn.Module, name: str, tensors: tuple[torch.Tensor, ...], dynamic_batch: bool) -> Any:
    """What PyTorch's exporter makes, silently."""
    dims = tuple({0: torch.export.Dim(BATCH)} if x.ndim else {} for x in tensors) if dynamic_batch else None
    try:
        with _silent():
            return torch.onnx.export(module, tensors, dynamo=True, dynamic_shapes=dims, verbose=False)
    except ModuleNotFoundError as error:
        raise InputError(f"export needs {error.name}: pip install 'fpgasim[torch]'") from error
    except torch.onnx.OnnxExporterError as error:
        reason = error.__cause__ or error
        raise InputError(f"{name} cannot be exported: {first_line(reason)}") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without PyTorch's remarks on absent packages, on its own deprecated parts, and on what it cannot trace."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _name_nodes(graph: ir.Graph, module: nn.Module) -> None:
    """Names operators and their results after the submodules they came from, and forgets where the source code lies."""
    leaves = {name for name, child in module.named_modules() if name and not list(child.children())}
    taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        path = _path(node)
        kind = node.op_type.lower()
        base = path if path in leaves else f"{path}.{kind}" if path else kind
        name = base
        for n in itertools.count(1):
            if name not in taken:
                break
            name = f"{base}_{n}"
        taken.add(name)
        node.name = node.outputs[0].name = name
        for i, value in enumerate(node.outputs[1:], start=1):
            value.name = f"{name}_output{i}"
            taken.add(value.name)
    for thing in (graph, *graph, *graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)):
        thing.metadata_props.clear()


def _path(node: ir.Node) -> str:
    """The submodule that a node came from, '' where that is the module itself or unknown."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _optimized(graph: Graph, module: nn.Module) -> Graph:
    """`optimize`, after which a session computes what the prepared module did; InputError where it would not."""
    held = {
        f"{name}.weight"
        for name, child in module.named_modules(remove_duplicate=False)
        if isinstance(child, nn.Conv2d | nn.Linear)
    }
    before = graph

    def check(after: Graph, name: str) -> None:
        nonlocal before
        if name == "fold_batch_norms":
            gone = {node.name for node in before.nodes} - {node.name for node in after.nodes}
            raise InputError(
                f"{min(gone)!r} scales or shifts what a layer makes, and loading folds that into the layer's weights, "
                "which were trained without it; a layer that holds the constant itself would do"
            )
        before = after

    result = optimize(graph, check)
    for node in result.nodes:
        if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        rank, weights = len(result.tensor(node.inputs[0]).shape or ()), node.inputs[1]
        if rank != (4 if node.op_type == "Conv" else 2):
            continue  # the CPU's
        if result.constant(weights) is not None and weights not in held:
            raise InputError(
                f"{node.name!r} multiplies by {weights!r} outside nn.Conv2d and nn.Linear, which prepare does not see; "
                "a layer of its own would do"
            )
    return result
