"""Pools that round the number of their windows up.

ONNX Runtime drops a last window that begins behind the image and its padding, and makes ceil(size / stride) windows
where `auto_pad` is SAME. ONNX's inference does so from opset 22 on.
"""

import onnx
import onnx_ir as ir

from fpgasim.graph.structure import shape_of


def ceil_padding(size: int, begin: int, end: int, reach: int, stride: int) -> int:
    """How much padding at the end makes rounding down give as many outputs as `ceil_mode` wants."""
    span = size + begin + end
    outputs = -(-(span - reach) // stride) + 1
    if (outputs - 1) * stride >= size + begin:
        outputs -= 1
    return max((outputs - 1) * stride + reach - span, 0)


def rounding_up(graph: ir.Graph) -> list[ir.Node]:
    """The pools whose shape ONNX may infer wrong."""
    pools = (node for node in graph if node.domain == "" and node.op_type in ("MaxPool", "AveragePool"))
    return [node for node in pools if node.attributes.get_int("ceil_mode", 0)]


def round_down(pool: ir.Node, proto: onnx.NodeProto) -> None:
    """Makes `proto`, which is `pool`, one that rounds down to the same shape: by padding, which may change its values.

    The padding is right once the size of the image is known.
    """
    shape = None if pool.inputs[0] is None else shape_of(pool.inputs[0])
    size = () if shape is None else shape[2:]
    rank = len(size)
    kernel, stride, dilation = (
        pool.attributes.get_ints(name) or [1] * rank for name in ("kernel_shape", "strides", "dilations")
    )
    rule = pool.attributes.get_string("auto_pad", "NOTSET")
    pads = (pool.attributes.get_ints("pads") if rule == "NOTSET" else None) or [0] * (2 * rank)
    if {len(kernel), len(stride), len(dilation), len(pads) / 2} != {rank} or min(stride, default=1) < 1:
        return  # the rank is not known, or inference will complain
    _set(proto, "ceil_mode", 0)
    if rule not in ("NOTSET", "VALID"):
        return
    ends = list(pads[rank:])
    for i, dim in enumerate(size):
        if isinstance(dim, int):
            ends[i] += ceil_padding(dim, pads[i], ends[i], dilation[i] * (kernel[i] - 1) + 1, stride[i])
    _set(proto, "auto_pad", "NOTSET")
    _set(proto, "pads", [*pads[:rank], *ends])


def _set(proto: onnx.NodeProto, name: str, value: object) -> None:
    kept = [attribute for attribute in proto.attribute if attribute.name != name]
    del proto.attribute[:]
    proto.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
