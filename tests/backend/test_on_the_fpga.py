"""The suite's cases of operators that the engine computes, forced onto it: exact in fp32, bounded in block formats.

The suite feeds weights; the engine wants them constant. So each case is tried with all inputs but one made constants,
too; and where the engine has nothing against an elementwise operator but the number of dimensions, as one row.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fpgasim import onnx_backend
from fpgasim.compiler.nodes import LOWERINGS
from fpgasim.numerics import get_format

from .suite import PASSED, Case, cases, outcome, run_onnx_runtime

#: The operators for which the suite has no case of their own that the engine takes: its shapes have three or more than
#: four dimensions, or the result is no row.
WITHOUT_A_CASE = {"ReduceMean", "Reshape", "Squeeze", "Unsqueeze"}
ELEMENTWISE = {"Add", "Clip", "Max", "Mul", "Relu", "Sigmoid", "Sub", "Sum", "Tanh"}
FP32 = {"format": "fp32", "accumulator": "fp32", "pointwise": "fp32"}


@dataclass(frozen=True, eq=False)
class Forced:
    """A case whose only operator is on the FPGA; `arrays` are what the case feeds, by name."""

    case: Case
    model: onnx.ModelProto
    arrays: dict[str, np.ndarray]

    @property
    def node(self) -> onnx.NodeProto:
        return self.case.model.graph.node[0]

    def run(self, **options: str) -> list[np.ndarray]:
        rep = onnx_backend.prepare(self.model, "FPGA", **options)
        assert set(rep.session.plan.assignment.values()) == {"fpga"}
        outputs = rep.run([self.arrays[info.name].reshape(_dims(info)) for info in self.model.graph.input])
        return [y.reshape(expected.shape) for y, expected in zip(outputs, self.case.data[0][1], strict=True)]


def _dims(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)


@functools.cache
def forced() -> list[Forced]:
    found = []
    for case in cases("node"):
        (node, *more) = case.model.graph.node
        if more or node.domain or node.op_type not in LOWERINGS:
            continue
        inputs = case.data[0][0]
        arrays = {info.name: array for info, array in zip(case.model.graph.input, inputs, strict=True)}
        found += [Forced(case, model, arrays) for model in variants(case.model, arrays) if on_the_fpga(model)]
    return found


def on_the_fpga(model: onnx.ModelProto) -> bool:
    try:
        plan = onnx_backend.prepare(model, "FPGA", **FP32).session.plan
    except ValueError:  # a constant where ONNX Runtime has no kernel for one, or that an operator must not have
        return False
    return set(plan.assignment.values()) == {"fpga"}


def variants(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> Iterator[onnx.ModelProto]:
    """The model as it is; with all inputs but one constant; and both with everything in one row."""
    shapes = {array.shape for array in arrays.values() if array.size > 1}
    models = [model]
    if model.graph.node[0].op_type in ELEMENTWISE and len(shapes) == 1:
        models.append(as_a_row(model, math.prod(*shapes)))
    for form in models:
        yield form
        for kept in form.graph.input if len(arrays) > 1 else ():
            fixed = onnx.ModelProto()
            fixed.CopyFrom(form)
            del fixed.graph.input[:]
            fixed.graph.input.append(kept)
            for info in form.graph.input:
                if info.name != kept.name:
                    array = arrays[info.name].reshape(_dims(info))
                    fixed.graph.initializer.append(numpy_helper.from_array(array, info.name))
            yield fixed


def as_a_row(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    row = onnx.ModelProto()
    row.CopyFrom(model)
    for info in (*row.graph.input, *row.graph.output):
        tensor = info.type.tensor_type
        if len(tensor.shape.dim) != 0 or info in row.graph.output:
            info.CopyFrom(helper.make_tensor_value_info(info.name, tensor.elem_type, [1, size]))
    return row


def operators(found: list[Forced]) -> set[str]:
    return {case.node.op_type for case in found}


@pytest.mark.slow
def test_whatever_of_a_case_the_engine_can_compute_is_computed_there_in_fp32():
    """Most of these cases are functions: ONNX writes one operator as many."""
    computed: set[str] = set()

    def prepare(model: onnx.ModelProto):
        rep = onnx_backend.prepare(model, "FPGA", **FP32)
        plan = rep.session.plan
        computed.update(node.op_type for node in plan.graph.nodes if plan.assignment[node.name] == "fpga")
        return rep.run

    tried = [case for case in cases("node") if LOWERINGS.keys() & {node.op_type for node in case.model.graph.node}]
    lost = [
        (case.name, how)
        for case in tried
        if outcome(case, run_onnx_runtime)[0] == PASSED and (how := outcome(case, prepare))[0] != PASSED
    ]
    assert lost == []
    assert {"Reshape", "ReduceMean", "Mul", "Sub", "Tanh"} <= computed


@pytest.mark.slow
def test_every_operator_of_the_engine_meets_the_suites_tolerance_in_fp32():
    assert operators(forced()) == set(LOWERINGS) - WITHOUT_A_CASE
    for case in forced():
        case.case.check(case.run(**FP32), case.case.data[0][1])


# The bound, as docs/operators.md states and derives it.


def error_bound(case: Forced, format: str) -> float:
    """Of the greatest error of an output in `format` with fp16 between layers."""
    delta = 0.0
    if case.node.op_type in ("Conv", "Gemm", "MatMul"):
        delta = 1 / (2 ** get_format(format).mantissa_bits - 0.5)
    return float((1 + delta) ** 2 * (1 + 2.0**-11) ** (4 + averaged(case)) - 1) * magnitude(case)


def averaged(case: Forced) -> int:
    """How many numbers go into an average."""
    x = case.arrays[case.node.input[0]]
    if case.node.op_type in ("GlobalAveragePool", "ReduceMean"):
        return math.prod(x.shape[2:])
    return math.prod(attributes(case)["kernel_shape"]) if case.node.op_type == "AveragePool" else 0


def magnitude(case: Forced) -> float:
    """What the output can be at most, by the greatest magnitudes of the operands."""
    given = attributes(case)
    tops = [float(np.abs(case.arrays[name]).max()) if name else 0.0 for name in case.node.input if name != "roi"]
    match case.node.op_type:
        case "Conv":
            return math.prod(case.arrays[case.node.input[1]].shape[1:]) * tops[0] * tops[1] + sum(tops[2:])
        case "MatMul" | "Gemm":
            length = case.arrays[case.node.input[0]].shape[0 if given.get("transA") else 1]
            bias = given.get("beta", 1.0) * sum(tops[2:])
            return length * tops[0] * tops[1] * given.get("alpha", 1.0) + bias
        case "Add" | "Sub" | "Sum":
            return sum(tops)
        case "Mul":
            return math.prod(tops)
        case "BatchNormalization":
            _, scale, shift, mean, variance = (case.arrays[name] for name in case.node.input)
            scale = scale / np.sqrt(variance + given.get("epsilon", 1e-5))
            return float(np.abs(scale).max() * tops[0] + np.abs(shift - mean * scale).max())
        case "Sigmoid":
            return tops[0] + 1
        case "Max" | "Concat" | "Clip":
            return max(tops)
        case _:
            return tops[0]


def attributes(case: Forced) -> dict:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in case.node.attribute}


def errors(format: str) -> Iterator[tuple[Forced, float]]:
    for case in forced():
        for got, expected in zip(case.run(format=format), case.case.data[0][1], strict=True):
            yield case, float(np.abs(got.astype(np.float64) - expected).max(initial=0))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["msfp16", "bw_1s5e5m"])
def test_every_operator_of_the_engine_keeps_the_stated_bound_in_block_formats(format):
    beyond = [(case.case.name, error) for case, error in errors(format) if error > error_bound(case, format)]
    assert beyond == []


@pytest.mark.slow
def test_the_bound_of_one_format_is_too_strict_for_one_with_fewer_bits():
    """Or the bound would say nothing."""
    assert any(error > error_bound(case, "msfp16") for case, error in errors("msfp11"))
