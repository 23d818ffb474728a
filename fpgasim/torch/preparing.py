"""Swapping layers for their twins, and back."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn

from fpgasim.errors import InputError
from fpgasim.kernels.contract import check_alike
from fpgasim.npu import Device, Numbers, get_device, resolve_numbers
from fpgasim.numerics import BlockFormat, get_format
from fpgasim.torch.arithmetic import PointwiseUnit
from fpgasim.torch.straight_through import Matrix
from fpgasim.torch.twins import TWINS, QuantizedConv2d, QuantizedLinear, ScaleAndShift, folded, scale_and_shift

Norms = nn.BatchNorm1d | nn.BatchNorm2d
Hosts = nn.Conv2d | nn.Linear


class Prepared(nn.Module):
    """What every prepared module is besides what it was: its forward runs in the pointwise unit's arithmetic."""

    fpgasim_numbers: Numbers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with PointwiseUnit(self.fpgasim_numbers.pointwise, self):
            return super().forward(*args, **kwargs)


def prepare(
    module: nn.Module,
    format: str | BlockFormat,
    weight_format: str | BlockFormat | None = None,
    *,
    device: str | Device | None = None,
    accumulator: str | None = None,
    order: str | None = None,
    pointwise: str | None = None,
) -> nn.Module:
    """A copy of `module` that computes as the engine does, to the last bit, and can be trained.

    Parameters and buffers keep their names. Each nn.Conv2d and nn.Linear becomes a twin that quantizes what it reads
    and its weights to `format`; batch norms are folded as `twins` says; activations, sums and pools between the layers
    round to the pointwise type. Accumulator, order and pointwise type are the `device`'s, as in `fpgasim.partition`,
    or `fp32`, `khwc` and `fp32` without one. `weight_format`, another one for weights, is for studies: no device has
    two. In evaluation the outputs are those of a session of `export(prepared, …)` with everything on the FPGA.

    Raises InputError for a module that has nothing to quantize, holds something that is not float32 on the CPU,
    subclasses a layer, or whose batch norms `torch.fx` cannot place; UnknownNameError, FormatError and DeviceError as
    `fpgasim.partition`.
    """
    _check(module)
    if isinstance(module, Prepared):
        raise InputError(f"{type(module).__name__} is prepared already; convert(module) gives back what it was")
    if device is None:
        given = (accumulator or "fp32", order or "khwc", pointwise or "fp32")
        numbers = Numbers(get_format(format), *cast(Any, given))
        weights = numbers.format if weight_format is None else get_format(weight_format)
    else:
        numbers = resolve_numbers(device, format, accumulator, order, pointwise)
        weights = numbers.format if weight_format is None else get_device(device).resolve_format(weight_format)
    check_alike(numbers.format, weights)
    result = copy.deepcopy(module)
    norms = dict(norm_pairs(result))
    matrix = Matrix(numbers, weights)
    for name, child in list(result.named_modules()):
        if type(child) not in TWINS:
            _check_layer(name, child)
            continue
        if isinstance(child, Norms) and child.running_var is None:
            raise InputError(f"batch norm {name!r} keeps no running statistics; track_running_stats=True would do")
        if isinstance(child, Hosts):
            child.matrix, child.norm = matrix, (norms[child],) if child in norms else ()
        else:
            child.folded, child.pointwise = child in norms.values(), numbers.pointwise
        child.__class__ = TWINS[type(child)]
    if not any(isinstance(child, QuantizedConv2d | QuantizedLinear) for child in result.modules()):
        raise InputError(f"{type(module).__name__} has no nn.Conv2d and no nn.Linear; there is nothing to quantize")
    result.fpgasim_numbers = numbers
    result.__class__ = type(f"Prepared{type(module).__name__}", (Prepared, type(result)), {})
    return result


def convert(module: nn.Module) -> nn.Module:
    """A copy of a prepared `module` with PyTorch's own layers and nothing quantized: batch norms are folded.

    Raises InputError for a module that `prepare` has not made.
    """
    _check(module)
    if not isinstance(module, Prepared):
        raise InputError(f"{type(module).__name__} is not prepared; prepare(module, format) makes what convert takes")
    result = copy.deepcopy(module)
    result.__class__ = type(result).__mro__[2]
    del result.fpgasim_numbers
    originals = {twin: original for original, twin in TWINS.items()}
    layers = [child for child in result.modules() if isinstance(child, QuantizedConv2d | QuantizedLinear)]
    for child in layers:
        take_in(child, child.norm)
        del child.matrix, child.norm
        child.__class__ = originals[type(child)]
    for child in [child for child in result.modules() if type(child) in originals]:
        if not child.folded:
            child.scale, child.shift = (v.detach().float() for v in scale_and_shift(child))
        _forget(child, nn.Identity if child.folded else ScaleAndShift)
    return result


def fold_norms(module: nn.Module) -> None:
    """Folds the batch norms of `module` in place, where they are behind a layer that can take them in."""
    for host, norm in norm_pairs(module):
        take_in(host, (norm,))
        _forget(norm, nn.Identity)


def take_in(host: Any, norm: tuple[nn.Module, ...]) -> None:
    """Gives a layer the weights and bias that take in `norm`."""
    with torch.no_grad():
        weight, bias = folded(host.weight, host.bias, norm)
    host.weight = nn.Parameter(weight.detach().clone())
    host.bias = None if bias is None else nn.Parameter(bias.detach().clone())


def norm_pairs(module: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Each layer with the batch norm that alone reads its result; InputError where torch.fx cannot follow `module`."""
    if not any(isinstance(child, Norms) for child in module.modules()):
        return []
    try:
        graph = torch.fx.Tracer().trace(module)
    except Exception as error:  # whatever the module's own code makes of a proxy
        raise InputError(
            f"torch.fx cannot follow {type(module).__name__}, which has batch norms ({first_line(error)}); "
            "fold them first with torch.nn.utils.fusion.fuse_conv_bn_eval"
        ) from error
    calls = [node for node in graph.nodes if node.op == "call_module"]
    called = [node.target for node in calls]
    pairs = []
    for node in calls:
        norm = module.get_submodule(node.target)
        if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d) or norm.running_var is None:
            continue
        before = _source(node)
        while _passes_on(module, before):
            before = _source(before)
        if before is None or before.op != "call_module":
            continue
        host = module.get_submodule(before.target)
        once = called.count(node.target) == called.count(before.target) == len(before.users) == 1
        if once and type(host) in (nn.Conv2d, nn.Linear):
            pairs.append((host, norm))
    return pairs


def _source(node: Any) -> Any:
    """The node whose result a module is called with; None where that is not plain to see."""
    return node.args[0] if len(node.args) == 1 and isinstance(node.args[0], torch.fx.Node) else None


def _passes_on(module: nn.Module, node: Any) -> bool:
    """Whether a call is of a module that changes nothing outside training, and nobody else reads its result."""
    if node is None or node.op != "call_module" or len(node.users) != 1:
        return False
    return isinstance(module.get_submodule(node.target), nn.Identity | nn.Dropout | nn.Dropout2d)


def _forget(child: nn.Module, cls: type[nn.Module]) -> None:
    """Makes a batch norm a `cls`, in place, since it may have several names."""
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        delattr(child, name)
    child.__class__ = cls


def _check(module: object) -> None:
    if not isinstance(module, nn.Module):
        raise InputError(f"module is a {type(module).__name__}; a torch.nn.Module would do")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise InputError(f"{name!r} is {tensor.dtype} on {tensor.device}; torch.float32 on the CPU would do")


def _check_layer(name: str, child: nn.Module) -> None:
    """Refuses what would be quantized if it were not a subclass with a forward of its own."""
    if isinstance(child, Hosts | Norms) and not isinstance(child, nn.modules.linear.NonDynamicallyQuantizableLinear):
        base = next(cls for cls in TWINS if isinstance(child, cls))
        raise InputError(f"layer {name!r} is a {type(child).__name__}; nn.{base.__name__} itself would do")


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
