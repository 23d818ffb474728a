"""`Graph`, `Node` and `Tensor`: a read-only view of an onnx-ir model.

Nobody mutates the model under a `Graph`: whatever changes a graph clones the model first (weights are shared, not
copied) and returns a new `Graph`.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from fpgasim.errors import InputError

if TYPE_CHECKING:
    import onnx

Dim = int | str | None

#: How many names an error lists where none is close to the one asked for.
_FIRST_NAMES = 5


@dataclass(frozen=True)
class Tensor:
    """A value of the graph.

    `dtype` is `object` for strings, for what is not a tensor, and where no type could be inferred. In `shape` a `str`
    is a symbolic dimension and `None` an unknown one; the whole `shape` is `None` if not even the rank is known.
    `container` is empty for a tensor; else it says what the value is, as in `sequence(tensor(float))`.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...] | None
    container: str = ""

    @property
    def static(self) -> bool:
        """Whether every dimension is a number."""
        return self.shape is not None and all(isinstance(dim, int) for dim in self.shape)


@dataclass(frozen=True)
class Node:
    """An operator: `inputs` and `outputs` are tensor names ('' = absent).

    `attributes` holds int, float, str, list, ndarray; the body of a control flow operator stays an `onnx_ir.Graph`.
    """

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(compare=False)


class Graph:
    """A verified network: nodes in topological order, tensors by name, constants as arrays."""

    def __init__(self, model: ir.Model, *, optimized: bool = False) -> None:
        self.model = model
        #: Whether `optimize` made this graph; then `bind` folds again what the bound shapes make constant.
        self.optimized = optimized

    def __repr__(self) -> str:
        return f"Graph({self.name!r}, {len(self.model.graph)} nodes)"

    @property
    def name(self) -> str:
        return self.model.graph.name or ""

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All operators, each after those it reads from."""
        return tuple(_node(node) for node in self.model.graph)

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a caller feeds; initializers are not among them."""
        return tuple(_tensor(value) for value in self.model.graph.inputs)

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        return tuple(_tensor(value) for value in self.model.graph.outputs)

    @cached_property
    def opset(self) -> Mapping[str, int]:
        """Operator domain ('' is ai.onnx) to version."""
        return MappingProxyType(dict(self.model.opset_imports))

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The symbolic dimensions of the inputs, in order of appearance."""
        dims = (dim for tensor in self.inputs for dim in tensor.shape or ())
        return tuple(dict.fromkeys(dim for dim in dims if isinstance(dim, str)))

    def tensor(self, name: str) -> Tensor:
        """The dtype and shape of any tensor; InputError if there is none of that name."""
        return _tensor(self._value(name))

    def constant(self, name: str) -> np.ndarray | None:
        """The read-only array of an initializer or Constant node; None if the tensor is computed."""
        return constant_array(self._value(name))

    def node(self, name: str) -> Node:
        """The operator of that name; InputError if there is none."""
        if name not in self._nodes_by_name:
            raise InputError(f"no node {name!r} in graph {self.name!r}; {self._hint(name, self._nodes_by_name)}")
        return self._nodes_by_name[name]

    def producer(self, name: str) -> Node | None:
        """The operator that computes a tensor; None for inputs and initializers."""
        producer = self._value(name).producer()
        return None if producer is None else self._nodes_by_name[producer.name or ""]

    def consumers(self, name: str) -> tuple[Node, ...]:
        """The operators that read a tensor, in graph order; also those whose bodies capture it."""
        self._value(name)
        return self._consumers.get(name, ())

    def macs(self, node: Node) -> int:
        """Multiply-accumulates of a Conv, ConvTranspose, Gemm or MatMul, padded positions counted; else 0.

        Also 0 where a shape it needs is not a number: `bind` first.
        """
        from fpgasim.graph.counting import macs

        return macs(self, node)

    def weight_elements(self, node: Node) -> int:
        """Elements of the constant matrices that a Conv, ConvTranspose, Gemm or MatMul multiplies by; else 0."""
        from fpgasim.graph.counting import weight_elements

        return weight_elements(self, node)

    def bind(self, dims: Mapping[str, int] | None = None, *, default: int = 1) -> "Graph":
        """The graph with every symbolic dimension of the inputs bound, `default` where `dims` has none.

        Shapes are inferred anew. UnknownNameError for a symbol that is not there, InputError for a size below 1.
        """
        from fpgasim.graph.binding import bind

        return bind(self, {} if dims is None else dims, default)

    def with_input_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> "Graph":
        """The graph bound to these input shapes; inputs left out keep theirs but for symbols bound by the others.

        InputError where a shape contradicts the model or two of them disagree about a symbol.
        """
        from fpgasim.graph.binding import with_input_shapes

        return with_input_shapes(self, shapes)

    def extract(self, inputs: Sequence[str], outputs: Sequence[str]) -> "Graph":
        """The part that computes `outputs` from `inputs`, with the initializers it needs.

        InputError names a tensor that is not there, or a graph input that would be needed too.
        """
        from fpgasim.graph.extraction import extract

        return extract(self, inputs, outputs)

    def to_proto(self) -> "onnx.ModelProto":
        """A ModelProto of its own, weights inside; ModelError if they exceed the 2 GB protobuf can hold."""
        from fpgasim.graph.saving import to_proto

        return to_proto(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an ONNX file; weights too big for protobuf go to `<file name>.data` beside it."""
        from fpgasim.graph.saving import save

        save(self, path)

    def fingerprint(self) -> str:
        """SHA-256, in hex, over operators, names, shapes and weights: the same in every run."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        from fpgasim.graph.hashing import fingerprint

        return fingerprint(self.model)

    @cached_property
    def _nodes_by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _values(self) -> dict[str, ir.Value]:
        return {value.name: value for value in graph_values(self.model.graph) if value.name}

    @cached_property
    def _consumers(self) -> dict[str, tuple[Node, ...]]:
        readers: dict[str, dict[Node, None]] = {}
        for view, node in zip(self.nodes, self.model.graph, strict=True):
            for value in (*node.inputs, *captured_values(node)):
                if value is not None and value.name:
                    readers.setdefault(value.name, {})[view] = None
        return {name: tuple(nodes) for name, nodes in readers.items()}

    def _value(self, name: str) -> ir.Value:
        if name not in self._values:
            raise InputError(f"no tensor {name!r} in graph {self.name!r}; {self._hint(name, self._values)}")
        return self._values[name]

    def _hint(self, name: str, known: Mapping[str, object]) -> str:
        close = difflib.get_close_matches(name, known, n=3)
        names = ", ".join(map(repr, close or list(known)[:_FIRST_NAMES]))
        if close:
            hint = f"close to it are {names}"
        elif len(known) > _FIRST_NAMES:
            hint = f"the first of its {len(known)} are {names}"
        else:
            hint = f"there are {names}" if known else "there are none"
        folded = "; loading may have folded it away: fs.load(..., optimize=False) keeps all that the file has"
        return hint + (folded if self.optimized else "")


def graph_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value that `graph` itself defines: inputs, initializers, outputs of its nodes."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The subgraphs of a control flow operator."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def captured_values(node: ir.Node) -> list[ir.Value]:
    """The values of the node's own graph that its subgraphs, at any depth, read by name; each once."""
    captured: dict[ir.Value, None] = {}
    for body in bodies(node):
        for inner in ir.traversal.RecursiveGraphIterator(body):
            captured.update((v, None) for v in inner.inputs if v is not None and v.graph is node.graph)
    return list(captured)


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer or Constant node; None if the value is absent or computed."""
    if value is None:
        return None
    if value.is_initializer() and value.const_value is not None:
        return value.const_value.numpy()
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and producer.domain == "":
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()
    return None


def shape_of(value: ir.Value) -> tuple[Dim, ...] | None:
    """The dimensions of a value; None if the rank is unknown, or it is no tensor."""
    if value.shape is None or _container(value):
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def is_of_numpy(dtype: np.dtype[Any]) -> bool:
    """Whether NumPy has the type itself; those of ml_dtypes are registered with it."""
    return dtype.isbuiltin != 2


def _tensor(value: ir.Value) -> Tensor:
    known = isinstance(value.type, ir.TensorType) and value.type.dtype != ir.DataType.UNDEFINED
    dtype = np.dtype(value.type.dtype.numpy()) if known and value.type is not None else np.dtype(object)
    return Tensor(value.name or "", dtype, shape_of(value), _container(value))


def _container(value: ir.Value) -> str:
    return "" if value.type is None or isinstance(value.type, ir.TensorType) else str(value.type).lower()


def _node(node: ir.Node) -> Node:
    return Node(
        name=node.name or "",
        op_type=node.op_type,
        domain=node.domain,
        inputs=tuple("" if value is None else value.name or "" for value in node.inputs),
        outputs=tuple(value.name or "" for value in node.outputs),
        attributes=MappingProxyType({name: _attribute(attribute) for name, attribute in node.attributes.items()}),
    )


def _attribute(attribute: ir.Attr) -> Any:
    kind = ir.AttributeType
    if attribute.type == kind.TENSOR:
        return attribute.as_tensor().numpy()
    if attribute.type == kind.TENSORS:
        return [tensor.numpy() for tensor in attribute.as_tensors()]
    if attribute.type in (kind.INTS, kind.FLOATS, kind.STRINGS, kind.GRAPHS):
        return list(attribute.value)
    return attribute.value
