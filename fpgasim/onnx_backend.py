"""fpgasim as a backend of ONNX (`onnx.backend.base`), for tools that run any of them.

    import fpgasim.onnx_backend as backend

    outputs = backend.prepare(model, "FPGA:bw_a10", format="msfp16").run([x])

Device `CPU` leaves every node to ONNX Runtime. `FPGA` puts every node on the emulated engine that it can compute, and
leaves the others to ONNX Runtime; after a colon, `FPGA:bw_s10` say, comes the engine's name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.backend.base import Backend, BackendRep, namedtupledict

from fpgasim import graph
from fpgasim.errors import InputError, UnknownNameError
from fpgasim.graph.opsets import OPSETS
from fpgasim.placement import partition
from fpgasim.runtime import Session, compile

#: What `FPGA` without a name means, and in which format it computes unless told.
ENGINE = "bw_a10"
FORMAT = "bw_1s5e5m"


class FpgasimRep(BackendRep):
    """A model that is ready to run; `session` is its Session."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The model's outputs in order; by their names too, as in `outputs["scores"]`.

        `inputs` are the inputs in the model's order, or by name, or the only one itself: arrays, lists of arrays for
        sequences, None for an optional that holds nothing. Raises InputError where they do not fit.
        """
        if kwargs:
            raise InputError(f"run takes no {', '.join(kwargs)}; inputs would do")
        outputs = self.session.run(self._feeds(inputs))
        names = [tensor.name for tensor in self.session.outputs]
        return namedtupledict("Outputs", names)(*(outputs[name] for name in names))

    def _feeds(self, inputs: Any) -> Mapping[str, Any]:
        if isinstance(inputs, Mapping):
            return inputs
        tensors = self.session.inputs
        if isinstance(inputs, np.ndarray) or not isinstance(inputs, Sequence):
            inputs = [inputs]
        if len(inputs) != len(tensors):
            names = ", ".join(repr(tensor.name) for tensor in tensors) or "none"
            raise InputError(f"run got {len(inputs)} inputs; the model has {len(tensors)}: {names}")
        return {tensor.name: value for tensor, value in zip(tensors, inputs, strict=True)}


class FpgasimBackend(Backend):
    """What the functions of this module do, as the class that ONNX's tools ask for."""

    @classmethod
    def prepare(
        cls,
        model: onnx.ModelProto | str | os.PathLike[str],
        device: str = "CPU",
        *,
        format: str = FORMAT,
        kernels: str | None = None,
        **options: Any,
    ) -> FpgasimRep:
        """`model`, or the one in that file, ready to run on `device`.

        `format` is that of the engine, `kernels` a backend of the emulation, `options` are those of
        `fpgasim.partition`. Raises ModelError for a model that is broken or that ONNX Runtime does not take,
        UnknownNameError for an unknown device.
        """
        kind, _, engine = device.partition(":")
        if not cls.supports_device(device):
            raise UnknownNameError("device", device, ("CPU", "FPGA", "FPGA:ENGINE"))
        network = graph.load(model)
        if kind == "CPU":
            chosen: dict[str, Any] = {"force": {"*": "cpu"}} if network.nodes else {}
        else:
            chosen = {"objective": "coverage"}
        return FpgasimRep(compile(partition(network, engine or ENGINE, format, **{**chosen, **options}), kernels))

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto | str | os.PathLike[str], inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """What `model` makes of `inputs`: `prepare`, then `run`."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype[Any], tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """What one operator makes of `inputs`, which are in its order without those it leaves out.

        `outputs_info` (dtype and shape of each output) is needed where ONNX cannot infer it. `opset_version` is by
        default the first that has the operator as it is now; the other arguments are those of `prepare`.
        """
        names = [name for name in node.input if name]
        if len(inputs) != len(names):
            raise InputError(
                f"{node.op_type} got {len(inputs)} inputs; the node reads {len(names)}: {', '.join(names)}"
            )
        made = [name for name in node.output if name]
        infos = [onnx.ValueInfoProto(name=name) for name in made]
        if outputs_info is not None:
            infos = [_info(name, np.dtype(d), shape) for name, (d, shape) in zip(made, outputs_info, strict=True)]
        standard = node.domain in ("", "ai.onnx")
        since = onnx.defs.get_schema(node.op_type).since_version if standard and onnx.defs.has(node.op_type) else 0
        opsets = [helper.make_opsetid("", kwargs.pop("opset_version", max(OPSETS.start, since)))]
        if not standard:
            known = [s.since_version for s in onnx.defs.get_all_schemas() if s.domain == node.domain]
            opsets.append(helper.make_opsetid(node.domain, max(known, default=1)))
        read = [_input_info(name, value) for name, value in zip(names, inputs, strict=True)]
        ir_version = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
        body = helper.make_graph([node], node.op_type, read, infos)
        return cls.run_model(
            helper.make_model(body, opset_imports=opsets, ir_version=ir_version), inputs, device, **kwargs
        )

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether `device` is `CPU`, `FPGA` or `FPGA:` and the name of an engine."""
        kind, colon, engine = device.partition(":")
        return kind in ("CPU", "FPGA") and (not colon or (kind == "FPGA" and bool(engine)))


def _input_info(name: str, value: Any) -> onnx.ValueInfoProto:
    if isinstance(value, list):
        dtype = np.asarray(value[0]).dtype if value else np.dtype(np.float32)
        return helper.make_tensor_sequence_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None)
    array = np.asarray(value)
    return _info(name, array.dtype, array.shape)


def _info(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


prepare = FpgasimBackend.prepare
run_model = FpgasimBackend.run_model
run_node = FpgasimBackend.run_node
supports_device = FpgasimBackend.supports_device
