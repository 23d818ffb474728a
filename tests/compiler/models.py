"""One-operator models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import fpgasim as fs
from fpgasim.graph import Graph


def one_op(
    op_type: str,
    inputs: Mapping[str, Sequence[int | str] | np.ndarray | np.generic],
    *,
    rank: int = 4,
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
    outputs: int = 1,
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; of `inputs`, in order, arrays are constants and shapes are fed; '_' is left out."""
    names = ["" if name.startswith("_") else name for name in inputs]
    made = ["y", "y2", "y3"][:outputs]
    fed = [
        helper.make_tensor_value_info(name, dtype, shape)
        for name, shape in inputs.items()
        if name in names and not isinstance(shape, np.ndarray | np.generic)
    ]
    arrays = {name: np.asarray(v) for name, v in inputs.items() if isinstance(v, np.ndarray | np.generic)}
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    results = [helper.make_tensor_value_info("y", dtype, [None] * rank)]
    node = helper.make_node(op_type, names, made, name="node", domain=domain, **attributes)
    graph = helper.make_graph([node], "one", fed, results, weights)
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def load_one(*args: Any, **options: Any) -> Graph:
    """`one_op`, loaded as it is and bound."""
    return fs.load(one_op(*args, **options), optimize=False).bind()


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
