"""Which operator can run where: asked of the engine, of ONNX's schemas and of ONNX Runtime's kernels.

An operator runs on the CPU where ONNX Runtime has a kernel for it there, or ONNX defines it as a function of others
that run.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from fpgasim.compiler.capability import UnsupportedCode
from fpgasim.compiler.nodes import LOWERINGS
from fpgasim.compiler.probing import Trial, trials
from fpgasim.errors import UnknownNameError
from fpgasim.graph.opsets import OPSETS
from fpgasim.npu import Device, get_device

#: The end of a kernel's range of versions that says: this version and none that comes later.
_OPEN = 2**31 - 1
RUNTIME_DOMAIN = "com.microsoft"
Schema = Any  #: onnx.defs.OpSchema, whose stubs know nothing of functions


@dataclass(frozen=True)
class Operator:
    """An operator and the versions of its domain that know it: those ONNX Runtime has a kernel for, those it runs as a
    function, and those it does not run. `trials` are empty for what the engine does not compute at all."""

    domain: str
    name: str
    by_kernel: tuple[int, ...]
    by_function: tuple[int, ...]
    not_run: tuple[int, ...]
    trials: tuple[Trial, ...] = ()

    @property
    def runs(self) -> tuple[int, ...]:
        return tuple(sorted(self.by_kernel + self.by_function))


def operators(device: str | Device = "bw_a10") -> tuple[Operator, ...]:
    """Every operator of ONNX in the opsets that are taken, of its other domains, and of ONNX Runtime's own domain.

    Sorted by domain and name. `device` is the engine that is asked. Raises UnknownNameError for one there is not.
    """
    engine = get_device(device)
    rows = (_operator(domain, name, engine) for domain, name in _names())
    return tuple(row for row in rows if row.runs or row.not_run)


def operator(name: str, device: str | Device = "bw_a10") -> Operator:
    """The row of `operators` called `name`, as in `Conv` or `com.microsoft.Gelu`; else UnknownNameError."""
    names = {full_name(*key): key for key in _names()}
    if name not in names:
        raise UnknownNameError("operator", name, difflib.get_close_matches(name, names) or ("Add", "Conv", "…"))
    return _operator(*names[name], get_device(device))


def full_name(domain: str, name: str) -> str:
    return f"{domain}.{name}" if domain else name


def _names() -> list[tuple[str, str]]:
    known = {(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas_with_history()}
    return sorted(known | {(domain, name) for domain, name in _runtime_operators() if domain == RUNTIME_DOMAIN})


def _operator(domain: str, name: str, device: Device) -> Operator:
    if domain == RUNTIME_DOMAIN:
        has_kernel = _has_kernel(domain, name, 1)
        return Operator(domain, name, (1,) if has_kernel else (), (), () if has_kernel else (1,))
    versions: dict[str, list[int]] = {"kernel": [], "function": [], "": []}
    for version in _versions(domain):
        if (schema := _schema(domain, name, version)) is not None:
            versions[_how(schema, version)].append(version)
    kernel, function, none = map(tuple, versions.values())
    probed = tuple(trials(name, device)) if domain == "" and name in LOWERINGS else ()
    return Operator(domain, name, kernel, function, none, probed)


def _versions(domain: str) -> range:
    """The versions of `domain` that are taken."""
    if domain == "":
        return OPSETS
    return range(1, 1 + max(s.since_version for s in onnx.defs.get_all_schemas() if s.domain == domain))


def _schema(domain: str, name: str, version: int) -> Schema | None:
    """The operator as that version has it; None where it does not."""
    try:
        schema = onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def _how(schema: Schema, version: int) -> str:
    """How ONNX Runtime runs the operator on the CPU: by "kernel" or "function", or "" not at all."""
    if schema.name == "Constant" or _has_kernel(schema.domain, schema.name, schema.since_version):
        return "kernel"  # a Constant becomes an initializer
    has_body = schema.has_function or schema.has_context_dependent_function
    if has_body and (schema.domain, schema.name) in _runtime_operators():
        inner = (_schema(n.domain, n.op_type, version) for n in _body(schema, version))
        if all(s is not None and _how(s, version) for s in inner):
            return "function"
    return ""


def _has_kernel(domain: str, name: str, since_version: int) -> bool:
    ranges = _kernels().get((domain, name), ())
    return any(first == since_version or first <= since_version <= last < _OPEN for first, last in ranges)


@functools.cache
def _kernels() -> dict[tuple[str, str], list[tuple[int, int]]]:
    """The versions that ONNX Runtime's CPU kernels are for."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for kernel in get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            found.setdefault((kernel.domain, kernel.op_name), []).append(tuple(kernel.version_range))
    return found


@functools.cache
def _runtime_operators() -> frozenset[tuple[str, str]]:
    """The operators that ONNX Runtime knows, with a kernel or without."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    return frozenset((schema.domain, schema.name) for schema in get_all_operator_schema())


def _body(schema: Schema, version: int) -> Sequence[onnx.NodeProto]:
    """The nodes of the function that ONNX defines the operator as, for float32 where that matters."""
    nodes: Sequence[onnx.NodeProto]
    if schema.has_function:
        nodes = schema.function_body.node
        return nodes
    wanted = {a.name: _EXAMPLES[a.type] for a in schema.attributes.values() if a.required}
    inputs, outputs = ([value.name for value in values] for values in (schema.inputs, schema.outputs))
    node = helper.make_node(schema.name, inputs, outputs, **wanted)
    float32 = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    types = [
        float32 if any(name.startswith("tensor") for name in value.types) else helper.make_sequence_type_proto(float32)
        for value in schema.inputs
    ]
    of_version = max(v for v in schema.context_dependent_function_opset_versions if v <= version)
    body = schema.get_context_dependent_function_with_opset_version(
        of_version, node.SerializeToString(), [kind.SerializeToString() for kind in types]
    )
    nodes = onnx.FunctionProto.FromString(body).node
    return nodes


_KINDS = onnx.defs.OpSchema.AttrType
#: A value for each kind of attribute that an operator must have.
_EXAMPLES: dict[Any, Any] = {
    _KINDS.INT: 1,
    _KINDS.INTS: [1],
    _KINDS.FLOAT: 1.0,
    _KINDS.STRING: "",
    _KINDS.GRAPH: onnx.GraphProto(
        name="body",
        node=[helper.make_node("Identity", ["x"], ["y"])],
        input=[onnx.ValueInfoProto(name="x")],
        output=[onnx.ValueInfoProto(name="y")],
    ),
}


def spans(versions: Iterable[int]) -> str:
    """7, 8, 9, 11 as "7-9, 11"."""
    found: list[list[int]] = []
    for version in versions:
        if found and found[-1][1] == version - 1:
            found[-1][1] = version
        else:
            found.append([version, version])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def to_dict(row: Operator) -> dict[str, Any]:
    """`row` for JSON; `trials` as [{change, code, reason}], the last two null where the engine takes it."""
    return {
        "domain": row.domain or "ai.onnx",
        "name": row.name,
        "kernel": row.by_kernel,
        "function": row.by_function,
        "not_run": row.not_run,
        "fpga": [
            {
                "change": trial.change,
                "code": None if trial.refused is None else trial.refused.code,
                "reason": None if trial.refused is None else trial.refused.message,
            }
            for trial in row.trials
        ],
    }


def markdown(rows: Sequence[Operator], device: str) -> str:
    """The page docs/operators.md."""
    from importlib.metadata import version

    with_trials = [row for row in rows if row.trials]
    standard = [row for row in rows if row.domain == ""]
    counted = {
        "operators of ONNX, opsets 7 to 28": len(standard),
        "that the engine computes": len(with_trials),
        "that ONNX Runtime runs in some opset": sum(bool(row.runs) for row in standard),
    }
    lines = [
        "# Operators",
        "",
        "<!-- Made by `fpgasim operators --markdown`; a test makes it again and compares. -->",
        "",
        f"Asked of onnx {version('onnx')}, ONNX Runtime {version('onnxruntime')} and the engine {device}.",
        "",
        "| | |",
        "|---|--:|",
        *(f"| {what} | {number} |" for what, number in counted.items()),
        "",
        _INTRODUCTION,
        "## On the FPGA",
        "",
        "Each operator was given to the engine as a small model, then with one thing changed. `x computed` means that",
        "an operand comes out of another operator or is fed; `x constant`, that it is in the model.",
        "",
    ]
    for row in with_trials:
        lines += _section(row)
    lines += ["## On the CPU", "", "What ONNX Runtime runs, by the versions of the domain.", ""]
    lines += ["| operator | kernel | function of others | not |", "|---|---|---|---|"]
    for row in rows:
        if row.runs:
            cells = (
                f"`{full_name(row.domain, row.name)}`",
                spans(row.by_kernel),
                spans(row.by_function),
                spans(row.not_run),
            )
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
    lines += ["", "## Nowhere", "", "ONNX or ONNX Runtime knows these operators; on the CPU it does not run them.", ""]
    lines.append(", ".join(f"`{full_name(row.domain, row.name)}`" for row in rows if not row.runs) + ".")
    return "\n".join(lines) + "\n"


def taken_and_refused(row: Operator) -> tuple[list[str], list[tuple[str, UnsupportedCode, str]]]:
    """The changes the engine takes, and (change, code, reason) for those it refuses."""
    taken = [trial.change for trial in row.trials if trial.refused is None and trial.change]
    refused = [(t.change, t.refused.code, t.refused.message) for t in row.trials if t.refused is not None]
    return taken, refused


def _section(row: Operator) -> Iterator[str]:
    taken, refused = taken_and_refused(row)
    yield f"### {row.name}"
    yield ""
    if taken:
        yield f"With {', '.join(f'`{change}`' for change in taken)}; not with"
        yield ""
    yield "| change | code | reason |"
    yield "|---|---|---|"
    for change, code, reason in refused:
        yield f"| `{change}` | {code} | {reason} |"
    yield ""


_INTRODUCTION = """\
Whatever the engine does not compute runs on ONNX Runtime: `fpgasim partition MODEL` says for every node of a model
where it goes and why, in the words below. Domains beside ONNX's own, types beside float32, strings, sequences,
optionals and control flow are the CPU's. `fpgasim operators Conv` prints one section of this page.

Loading a model folds constants, batch norms and paddings first, removes what does nothing and unrolls GRU and LSTM, so
the engine sees the operators that are left.

Every case of ONNX's backend test suite that ONNX Runtime passes passes here; `pytest -rP tests/backend/test_suite.py`
counts them and names the others with what ONNX Runtime says to them. `fpgasim.onnx_backend` is the interface that the
suite and other tools call:

```python
import fpgasim.onnx_backend as backend

prepared = backend.prepare("resnet50.onnx", "FPGA:bw_a10", format="msfp16")  # "CPU": ONNX Runtime alone
```

## What comes out

In `fp32` with `accumulator="fp32", pointwise="fp32"` an operator on the FPGA meets the tolerance of ONNX's backend test
suite. In a block format its greatest error keeps to a bound that the suite's cases are held to as well. Let

- m be the mantissa bits of the format (`fpgasim formats`) and δ = 1 / (2^m − ½) for Conv, Gemm and MatMul, which
  quantize both operands; δ = 0 for all others;
- u = 2^−11, what rounding to fp16 between the layers changes by at most;
- n the numbers that are averaged by AveragePool, GlobalAveragePool and ReduceMean; n = 0 for all others;
- M what the output can be at most, computed from the greatest magnitudes ‖·‖ of the operands: K·‖x‖·‖w‖ + ‖b‖ for a
  sum of K products, ‖x‖ + ‖y‖ for Add, Sub and Sum, ‖x‖·‖y‖ for Mul, max(‖scale‖)·‖x‖ + ‖shift‖ for
  BatchNormalization, ‖x‖ + 1 for Sigmoid, the greatest of the operands for all others.

Then

    ‖computed − exact‖ ≤ ((1 + δ)² · (1 + u)^(4 + n) − 1) · M

while ‖x‖ and ‖w‖ are from 2^−14 up, and M is in the range of fp16. A block of greatest magnitude a has steps s with
2^m·s ≤ 2·2^⌊log2 a⌋, so a number in it moves by s/2 ≤ 2^−m·a at most, or, where it would round up to 2^m and stays at
2^m − 1 steps, by less than one step where a ≥ (2^m − ½)·s: by δ·a in either case. A block too small for the exponent's
range moves by less than δ·‖x‖ too. Every number is rounded to fp16 as it enters, as a sum leaves the matrix unit, as
its bias does and as the two are added; an average rounds each of its n sums and the product with 1/n.
"""
