"""What the engine takes of each operator, found by asking `lower_node`: a small model of it, then changes to that."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from fpgasim.compiler.capability import Unsupported
from fpgasim.compiler.nodes import lower_node
from fpgasim.graph import load
from fpgasim.npu import Device

#: An operand: the shape of one that is computed, where a dimension without a number has a name; or a constant.
Operand = tuple[Any, ...] | npt.NDArray[Any]
Operands = Mapping[str, Operand | None]


@dataclass(frozen=True)
class Trial:
    """A change to the model of an operator, and why the engine does not take it; None where it does."""

    change: str
    refused: Unsupported | None


@dataclass(frozen=True, eq=False)
class Probe:
    """A model of one operator; an operand that is None is left out.

    `attributes` are those it has, `values` those to try one at a time; `others` are other operands and attributes, with
    what they are called.
    """

    operands: Operands
    attributes: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    opset: int = 17
    second_output: str = ""


def trials(op_type: str, device: Device) -> Iterator[Trial]:
    """What `device` says to the model of `op_type` in `PROBES`, whose change is '', and to every change of it.

    Operands that are computed instead of constant and the other way round, other dtypes and sizes that are not known
    are tried with every operator.
    """
    probe = PROBES[op_type]

    def trial(change: str, others: Mapping[str, Any] | None = None, dtype: type = np.float32) -> Trial:
        changed = {**probe.operands, **probe.attributes, **(others or {})}
        operands = {name: value for name, value in changed.items() if isinstance(value, tuple | np.ndarray | None)}
        attributes = {name: value for name, value in changed.items() if name not in operands}
        outputs = ["result", *([probe.second_output] if change == second_output else [])]
        if attributes.get("training_mode"):
            outputs += ["running_mean", "running_var"]
        graph = load(_model(op_type, operands, attributes, probe.opset, dtype, outputs), optimize=False)
        try:
            lower_node(graph, graph.nodes[0], device)
        except Unsupported as reason:
            return Trial(change, reason)
        return Trial(change, None)

    second_output = f"{probe.second_output} read too"
    yield trial("")
    for name, values in probe.values.items():
        for value in values:
            yield trial(f"{name}={value}", {name: value})
    for change, others in probe.others.items():
        yield trial(change, others)
    for name, operand in probe.operands.items():
        if isinstance(operand, tuple):
            yield trial(f"{name} constant", {name: _ones(*operand)})
        elif operand is not None:
            yield trial(f"{name} computed", {name: operand.shape})
    if probe.second_output:
        yield trial(second_output)
    for dtype in (np.float16, np.float64):
        yield trial(dtype.__name__, dtype=dtype)
    name, shape = next((name, operand) for name, operand in probe.operands.items() if isinstance(operand, tuple))
    yield trial(f"{name} of a size not known before the run", {name: (*shape[:-1], "W")})


def _model(
    op_type: str, operands: Operands, attributes: Mapping[str, Any], opset: int, dtype: type, outputs: list[str]
) -> onnx.ModelProto:
    names = [name if operand is not None else "" for name, operand in operands.items()]
    while not names[-1]:
        names.pop()
    inputs, constants = [], []
    for name, operand in operands.items():
        like: np.dtype[Any] = np.dtype(_DTYPES.get(name, dtype))
        if isinstance(operand, tuple):
            inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(like), operand))
        elif operand is not None:
            constants.append(numpy_helper.from_array(operand.astype(like), name))
    node = helper.make_node(op_type, names, outputs, name=op_type, **attributes)
    graph = helper.make_graph([node], op_type, inputs, [onnx.ValueInfoProto(name=name) for name in outputs], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


#: Operands whose dtype is not that of the others.
_DTYPES = {"axes": np.int64, "shape": np.int64, "sizes": np.int64, "scales": np.float32}


def _ones(*shape: int) -> npt.NDArray[np.float32]:
    return np.ones(shape, np.float32)


def _factors(*numbers: float) -> npt.NDArray[np.float32]:
    return np.array(numbers, np.float32)


def _whole(*numbers: int) -> npt.NDArray[np.int64]:
    return np.array(numbers, np.int64)


IMAGE: tuple[int, ...] = (1, 4, 6, 6)
_PADDING: dict[str, tuple[Any, ...]] = {
    "auto_pad": ("SAME_UPPER", "SAME_LOWER", "VALID"),
    "pads": ([1, 1, 0, 1],),
    "strides": ([2, 1],),
}
_POOL = {**_PADDING, "ceil_mode": (1,), "kernel_shape": ([3, 3],)}
_RANKS: dict[str, Operands] = {
    f"{len(shape)} dimension{'s' * (len(shape) > 1)}": {"x": shape}
    for shape in ((4,), (1, 4), (1, 4, 6), (1, 4, 6, 6), (1, 4, 6, 6, 6))
}
_LINES_AND_VOLUMES: dict[str, Operands] = {k: _RANKS[k] for k in ("3 dimensions", "5 dimensions")}
_POOLED_LINES_AND_VOLUMES: dict[str, Mapping[str, Any]] = {
    change: {**others, "kernel_shape": [2] * (int(change[0]) - 2)} for change, others in _LINES_AND_VOLUMES.items()
}
_BINARY = Probe(
    {"x": IMAGE, "y": IMAGE},
    others={
        **{name: {**x, "y": x["x"]} for name, x in _RANKS.items() if x["x"] != IMAGE},
        "one number": {"y": _ones(1)},
        "one number a channel": {"y": _ones(4, 1, 1)},
        "one number a column": {"y": _ones(6)},
        "a constant image": {"y": _ones(1, 4, 6, 6)},
        "a constant first": {"x": _ones(1)},
        "a computed number a channel": {"y": (1, 4, 1, 1)},
    },
)
_VARIADIC = dataclasses.replace(
    _BINARY, others={**_BINARY.others, "one operand": {"y": None}, "three operands": {"z": IMAGE}}
)
_UNARY = Probe({"x": IMAGE}, others={k: v for k, v in _RANKS.items() if v["x"] != IMAGE})
_RESIZE_RULES = {
    "mode": ("nearest", "linear", "cubic"),
    "coordinate_transformation_mode": (
        *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners"),
        "tf_crop_and_resize",
    ),
    "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    "antialias": (1,),
    "cubic_coeff_a": (-0.5,),
    "exclude_outside": (1,),
    "extrapolation_value": (1.0,),
}

#: A model of every operator of the engine. Every attribute that ONNX gives one must be tried here.
PROBES: Mapping[str, Probe] = {
    "Conv": Probe(
        {"x": IMAGE, "w": _ones(8, 4, 3, 3), "b": _ones(8)},
        values={**_PADDING, "dilations": ([2, 1],), "kernel_shape": ([3, 3],)},
        others={
            "no bias": {"b": None},
            "group=2": {"w": _ones(8, 2, 3, 3), "group": 2},
            "group=4, depthwise": {"w": _ones(8, 1, 3, 3), "group": 4},
            "3 dimensions": {"x": (1, 4, 6), "w": _ones(8, 4, 3)},
            "5 dimensions": {"x": (1, 4, 6, 6, 6), "w": _ones(8, 4, 3, 3, 3)},
            "rows of 16,384 pixels": {"x": (1, 4, 6, 16384)},
            "131,072 channels": {"x": (1, 131072, 1, 1), "w": np.broadcast_to(_ones(1), (8, 131072, 1, 1))},
        },
    ),
    "Gemm": Probe(
        {"a": (4, 4), "b": _ones(4, 4), "c": _ones(4)},
        values={"alpha": (0.5,), "beta": (0.5, 0.0), "transA": (1,), "transB": (1,)},
        others={
            "no c": {"c": None},
            "c a number": {"c": _ones(1)},
            "c for each row": {"c": _ones(4, 1)},
            "c computed, a number": {"c": (1,)},
            "131,072 inputs": {"a": (4, 131072), "b": np.broadcast_to(_ones(1), (131072, 4))},
        },
    ),
    "MatMul": Probe(
        {"a": (2, 4), "b": _ones(4, 3)},
        others={"3 dimensions": {"a": (1, 2, 4)}, "a constant": {"a": _ones(2, 4), "b": (4, 3)}},
    ),
    "MaxPool": Probe(
        {"x": IMAGE},
        {"kernel_shape": [2, 2]},
        {**_POOL, "dilations": ([2, 1],), "storage_order": (1,)},
        _POOLED_LINES_AND_VOLUMES,
        second_output="indices",
    ),
    "AveragePool": Probe(
        {"x": IMAGE},
        {"kernel_shape": [2, 2]},
        {**_POOL, "dilations": ([2, 1],), "count_include_pad": (1,)},
        _POOLED_LINES_AND_VOLUMES,
        opset=19,
    ),
    "GlobalMaxPool": Probe({"x": IMAGE}, others=_LINES_AND_VOLUMES),
    "GlobalAveragePool": Probe({"x": IMAGE}, others=_LINES_AND_VOLUMES),
    "ReduceMean": Probe(
        {"x": IMAGE, "axes": _whole(2, 3)},
        values={"keepdims": (0,), "noop_with_empty_axes": (1,)},
        others={"axes=[-1, -2]": {"axes": _whole(-1, -2)}, "axes=[1]": {"axes": _whole(1)}, "no axes": {"axes": None}},
        opset=18,
    ),
    "Concat": Probe(
        {"x": IMAGE, "y": IMAGE},
        {"axis": 1},
        {"axis": (-3, 0, 2)},
        {
            "2 dimensions": {"x": (1, 4), "y": (1, 3)},
            "3 dimensions": {"x": (1, 4, 6), "y": (1, 4, 6)},
            "three operands": {"z": IMAGE},
        },
    ),
    "Flatten": Probe({"x": IMAGE}, values={"axis": (0, 2)}),
    "Reshape": Probe(
        {"x": IMAGE, "shape": _whole(1, -1)},
        values={"allowzero": (1,)},
        others={"shape=[0, -1]": {"shape": _whole(0, -1)}, "shape=[1, 4, 36]": {"shape": _whole(1, 4, 36)}},
    ),
    "Squeeze": Probe(
        {"x": (1, 4, 1, 1), "axes": _whole(2, 3)},
        others={"axes=[3]": {"axes": _whole(3)}, "axes=[0]": {"x": (1, 4, 6, 6), "axes": _whole(0)}},
    ),
    "Unsqueeze": Probe(
        {"x": (1, 4), "axes": _whole(2, 3)},
        others={"axes=[2]": {"axes": _whole(2)}, "axes=[0, 1]": {"axes": _whole(0, 1)}},
    ),
    "Resize": Probe(
        {"x": IMAGE, "roi": None, "scales": _factors(1, 1, 2, 3)},
        values=_RESIZE_RULES,
        others={
            "asymmetric with floor": {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            "axes=[2, 3]": {"axes": [2, 3], "scales": _factors(2, 3)},
            "sizes": {"scales": None, "sizes": _whole(1, 4, 12, 18)},
            "keep_aspect_ratio_policy=not_larger": {
                "scales": None,
                "sizes": _whole(12, 18),
                "axes": [2, 3],
                "keep_aspect_ratio_policy": "not_larger",
            },
            "scales of no whole number": {"scales": _factors(1, 1, 1.5, 2)},
            "scales below 1": {"scales": _factors(1, 1, 0.5, 0.5)},
            "channels resized": {"scales": _factors(1, 2, 2, 2)},
        },
        opset=19,
    ),
    "Upsample": Probe(
        {"x": IMAGE, "scales": _factors(1, 1, 2, 3)},
        values={"mode": ("nearest", "linear")},
        others={"scales of no whole number": {"scales": _factors(1, 1, 1.5, 2)}},
        opset=9,
    ),
    "BatchNormalization": Probe(
        {"x": IMAGE, "scale": _ones(4), "shift": _ones(4), "mean": _ones(4), "var": _ones(4)},
        values={"epsilon": (1e-3,), "momentum": (0.5,), "training_mode": (1,)},
        others={k: v for k, v in _RANKS.items() if k in ("2 dimensions", "3 dimensions")},
    ),
    "Add": _BINARY,
    "Sub": _BINARY,
    "Mul": _BINARY,
    "Max": _VARIADIC,
    "Sum": _VARIADIC,
    "Relu": _UNARY,
    "Sigmoid": _UNARY,
    "Tanh": _UNARY,
    "Clip": Probe(
        {"x": IMAGE, "min": np.array(0), "max": np.array(6)},
        others={**_UNARY.others, "no bounds": {"min": None, "max": None}},
    ),
}
