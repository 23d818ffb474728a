"""Giving numbers to the symbolic dimensions of a graph."""

from collections.abc import Mapping

import onnx_ir as ir

from fpgasim.errors import InputError, UnknownNameError
from fpgasim.graph.passes import optimize
from fpgasim.graph.passes.shape_inference import infer
from fpgasim.graph.structure import Graph, graph_values


def bind(graph: Graph, dims: Mapping[str, int], default: int) -> Graph:
    """`graph` with all symbols bound: see `Graph.bind`."""
    if not isinstance(dims, Mapping):
        raise InputError(f"dims={dims!r} must map symbolic dimensions to sizes, as in {{'N': 8}}")
    for symbol, size in {**dict.fromkeys(graph.symbols, default), **dims}.items():
        if symbol not in graph.symbols:
            raise UnknownNameError("symbolic dimension", symbol, graph.symbols or ("none",))
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"dimension {symbol!r} is bound to {size!r}; a whole number from 1 up would do")
    if not graph.symbols:
        return graph
    return _bound(graph, {symbol: dims.get(symbol, default) for symbol in graph.symbols}, {})


def with_input_shapes(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """`graph` bound to `shapes`: see `Graph.with_input_shapes`."""
    tensors = {tensor.name: tensor for tensor in graph.inputs}
    bound: dict[str, int] = {}
    whole: dict[str, tuple[int, ...]] = {}
    for name, given in shapes.items():
        if name not in tensors:
            raise UnknownNameError("graph input", name, tensors)
        shape = tuple(int(dim) for dim in given)
        declared = tensors[name].shape
        if declared is None:
            whole[name] = shape
            continue
        fits = len(shape) == len(declared) and all(
            actual == dim if isinstance(dim, int) else actual >= 0 for dim, actual in zip(declared, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join(map(str, declared))
            raise InputError(f"input {name!r} has shape {shape}; the model takes ({wanted})")
        for dim, actual in zip(declared, shape, strict=True):
            if isinstance(dim, str) and bound.setdefault(dim, actual) != actual:
                raise InputError(
                    f"input {name!r} of shape {shape} makes dimension {dim!r} {actual}, another input {bound[dim]}; "
                    "they must agree"
                )
    return _bound(graph, bound, whole) if bound or whole else graph


def _bound(graph: Graph, sizes: Mapping[str, int], whole: Mapping[str, tuple[int, ...]]) -> Graph:
    model = graph.model.clone()
    for value in model.graph.inputs:
        if (given := whole.get(value.name or "")) is not None:
            value.shape = ir.Shape(given)
    for value in graph_values(model.graph):
        if value.shape is not None and not value.is_initializer():
            dims = (dim if isinstance(dim, int) else dim.value for dim in value.shape)
            value.shape = ir.Shape([sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in dims])
    infer(model)
    bound = Graph(model, optimized=graph.optimized)
    return optimize(bound) if graph.optimized else bound
