"""Folding of explicit zero padding into convolutions.

Rule: Conv(Pad(x, constant 0)) = Conv(x) with the pads added, if the Conv alone reads the padded tensor, states its
pads (auto_pad NOTSET or VALID), and the Pad adds to spatial axes only and takes nothing away.
"""

import onnx_ir as ir

from fpgasim.graph.passes.identity_removal import pad_amounts
from fpgasim.graph.passes.rewriting import is_op, only_reader, rewrite
from fpgasim.graph.structure import Graph, constant_array, shape_of


def fold_pads(graph: Graph) -> tuple[Graph, bool]:
    """`graph` with zero padding moved into the convolutions that read it."""
    return rewrite(graph, _rules)


def _rules(model: ir.Model) -> bool:
    changed = False
    for conv in model.graph:
        if not is_op(conv, "Conv") or conv.inputs[0] is None:
            continue
        padded = conv.inputs[0]
        pad = padded.producer()
        if pad is None or not is_op(pad, "Pad") or only_reader(padded) is not conv:
            continue
        amounts = _spatial_amounts(pad)
        if amounts is None or conv.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            continue
        own = conv.attributes.get_ints("pads") or [0] * len(amounts)
        if len(own) != len(amounts):
            continue
        conv.attributes.pop("auto_pad", None)
        conv.attributes.add(ir.AttrInt64s("pads", [a + b for a, b in zip(amounts, own, strict=True)]))
        conv.replace_input_with(0, pad.inputs[0])
        model.graph.remove(pad, safe=True)
        changed = True
    return changed


def _spatial_amounts(pad: ir.Node) -> list[int] | None:
    """Begins then ends of the spatial axes, if this Pad does nothing but add zeros there."""
    source = pad.inputs[0]
    amounts = pad_amounts(pad)
    shape = None if source is None else shape_of(source)
    if amounts is None or shape is None or pad.attributes.get_string("mode", "constant") != "constant":
        return None
    if not _pads_with_zero(pad):
        return None
    rank = len(shape)
    axes = list(range(rank))
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:  # opset 18
        given = constant_array(pad.inputs[3])
        if given is None:
            return None
        axes = [int(axis) % rank for axis in given]
    begins, ends = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        begins[axis], ends[axis] = amounts[i], amounts[i + len(axes)]
    if any(begins[:2] + ends[:2]) or min(begins + ends) < 0:
        return None
    return begins[2:] + ends[2:]


def _pads_with_zero(pad: ir.Node) -> bool:
    if "pads" in pad.attributes:  # before opset 11
        return pad.attributes.get_float("value", 0.0) == 0.0
    if len(pad.inputs) < 3 or pad.inputs[2] is None:
        return True
    value = constant_array(pad.inputs[2])
    return value is not None and not value.any()
