"""`PointwiseUnit`: while it is entered, PyTorch's pointwise operators and pools round as the engine's do.

It works below autograd, so that gradients are PyTorch's own for the operator, at the rounded values. What the engine
has no operator for is computed as PyTorch does, in fp32, as the CPU of a session would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fpgasim.kernels import Window, backend, pointwise as unit
from fpgasim.kernels.contract import Pointwise
from fpgasim.ops import num_threads
from fpgasim.torch.straight_through import Array


class PointwiseUnit(TorchDispatchMode):
    """Rounds to `kind`. The parameters and buffers of `module` are the constants that an operand may be."""

    def __init__(self, kind: Pointwise, module: torch.nn.Module) -> None:
        super().__init__()
        self.kind = kind
        self.constants = {_storage(t) for t in (*module.parameters(), *module.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        rule = RULES.get(name.removesuffix("_"))
        if rule is None or "out" in kwargs or not any(map(_is_image_or_rows, args[:2])):
            return func(*args, **kwargs)
        result = rule(self, func, *args, **kwargs)
        return args[0].copy_(result) if name.endswith("_") else result

    def entered(self, x: Any) -> Array:
        """`x`, a tensor or a number, rounded to the type."""
        return unit.round_to(
            x.detach().numpy() if isinstance(x, torch.Tensor) else np.array([x], np.float32), self.kind
        )

    def takes(self, x: Any, beside: Any) -> bool:
        """Whether `x` can be an operand beside a tensor: one as large, or constants for its channels."""
        if not _is_image_or_rows(beside):
            return False
        if not isinstance(x, torch.Tensor):
            return True
        if x.dtype != torch.float32:
            return False
        shape = beside.shape
        if x.shape == shape:
            return True
        aligned = (1,) * (len(shape) - x.ndim) + tuple(x.shape)
        channels = (1, shape[1], *(1,) * (len(shape) - 2))
        return x.numel() == 1 or (_storage(x) in self.constants and aligned == channels)


def _storage(x: torch.Tensor) -> int:
    return int(x.untyped_storage().data_ptr())


def _is_image_or_rows(x: Any) -> bool:
    """Whether `x`, or each of a list, is what the engine's tensors are: float32 of rank 2 or 4."""
    tensors = x if isinstance(x, list | tuple) else [x]
    return bool(tensors) and all(
        isinstance(t, torch.Tensor) and t.dtype == torch.float32 and t.ndim in (2, 4) and t.device.type == "cpu"
        for t in tensors
    )


def _tensor(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def _binary(compute: Callable[[Array, Array, Pointwise], Array]) -> Callable[..., torch.Tensor]:
    def rule(engine: PointwiseUnit, func: Any, x: torch.Tensor, y: Any, alpha: float = 1) -> torch.Tensor:
        if not engine.takes(y, x) and not engine.takes(x, y):
            result: torch.Tensor = func(x, y) if alpha == 1 else func(x, y, alpha=alpha)
            return result
        operand = engine.entered(y)
        if alpha != 1:
            operand = unit.mul(operand, engine.entered(alpha), engine.kind)
        return _tensor(compute(engine.entered(x), operand, engine.kind))

    return rule


def _subtracted_from(engine: PointwiseUnit, func: Any, x: torch.Tensor, y: float, alpha: float = 1) -> torch.Tensor:
    """y − x."""
    if alpha != 1:
        result: torch.Tensor = func(x, y, alpha)
        return result
    return _tensor(unit.add(engine.entered(y), -engine.entered(x), engine.kind))


def _maximum(a: Array, b: Array, kind: Pointwise) -> Array:
    return np.maximum(a, b) + np.float32(0.0)


def _relu(engine: PointwiseUnit, func: Any, x: torch.Tensor) -> torch.Tensor:
    return _tensor(unit.relu(engine.entered(x)))


def _clip(engine: PointwiseUnit, func: Any, x: torch.Tensor, low: Any = None, high: Any = None) -> torch.Tensor:
    if isinstance(low, torch.Tensor) or isinstance(high, torch.Tensor):
        result: torch.Tensor = func(x, low, high)
        return result
    bounds = [engine.entered(-np.inf if low is None else low), engine.entered(np.inf if high is None else high)]
    return _tensor(unit.clip(engine.entered(x), float(bounds[0][0]), float(bounds[1][0])))


def _hardtanh(engine: PointwiseUnit, func: Any, x: torch.Tensor, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
    return _clip(engine, func, x, low, high)


def _sigmoid(engine: PointwiseUnit, func: Any, x: torch.Tensor) -> torch.Tensor:
    return _tensor(unit.sigmoid(engine.entered(x), engine.kind))


def _tanh(engine: PointwiseUnit, func: Any, x: torch.Tensor) -> torch.Tensor:
    return _tensor(unit.tanh(engine.entered(x), engine.kind))


def _silu(engine: PointwiseUnit, func: Any, x: torch.Tensor) -> torch.Tensor:
    entered = engine.entered(x)
    return _tensor(unit.mul(entered, unit.sigmoid(entered, engine.kind), engine.kind))


def _max_pool(engine: PointwiseUnit, func: Any, x: torch.Tensor, *settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = func(_tensor(engine.entered(x)), *settings)
    return values + 0.0, indices


def _average_pool(
    engine: PointwiseUnit,
    func: Any,
    x: torch.Tensor,
    kernel: list[int],
    stride: list[int] | tuple[()] = (),
    padding: list[int] | tuple[int, ...] = (0,),
    ceil_mode: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> torch.Tensor:
    result: torch.Tensor = func(x, kernel, stride or kernel, padding, ceil_mode, count_padding, divisor)
    (kh, kw), (sh, sw), (top, left) = (_pair(value) for value in (kernel, stride or kernel, padding))
    more = [
        max((outputs - 1) * step + size - 2 * pad - n, 0)
        for outputs, step, size, pad, n in zip(
            result.shape[2:], (sh, sw), (kh, kw), (top, left), x.shape[2:], strict=True
        )
    ]
    if divisor is not None or (count_padding and any(more)):  # no pool of the engine
        return result
    window = Window((kh, kw), (sh, sw), (top, left, top + more[0], left + more[1]))
    return _pooled(engine, x, window, count_padding)


def _adaptive_average_pool(engine: PointwiseUnit, func: Any, x: torch.Tensor, size: list[int]) -> torch.Tensor:
    kernel = (x.shape[2] // size[0], x.shape[3] // size[1])
    if (kernel[0] * size[0], kernel[1] * size[1]) != tuple(x.shape[2:]):  # windows of several sizes
        result: torch.Tensor = func(x, size)
        return result
    return _pooled(engine, x, Window(kernel, kernel), count_padding=False)


def _mean(
    engine: PointwiseUnit, func: Any, x: torch.Tensor, axes: list[int] | None = None, keep: bool = False, **types: Any
) -> torch.Tensor:
    if x.ndim != 4 or {axis % 4 for axis in axes or ()} != {2, 3} or types.get("dtype") is not None:
        result: torch.Tensor = func(x, **types) if axes is None else func(x, axes, keep, **types)
        return result
    mean = _pooled(engine, x, Window((x.shape[2], x.shape[3])), count_padding=False)
    return mean if keep else mean.reshape(mean.shape[:2])


def _pooled(engine: PointwiseUnit, x: torch.Tensor, window: Window, count_padding: bool) -> torch.Tensor:
    pixels = np.ascontiguousarray(engine.entered(x).transpose(0, 2, 3, 1))
    means = backend().average_pool(pixels, window, engine.kind, count_padding, num_threads())
    return _tensor(means.transpose(0, 3, 1, 2))


def _concat(engine: PointwiseUnit, func: Any, tensors: list[torch.Tensor], axis: int = 0) -> torch.Tensor:
    on_engine = axis % tensors[0].ndim == 1
    result: torch.Tensor = func([_tensor(engine.entered(t)) for t in tensors] if on_engine else tensors, axis)
    return result


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[-1]) if isinstance(value, list | tuple) else (value, value)


#: ATen's operators, those in place included, that the engine computes.
RULES: Mapping[str, Callable[..., Any]] = {
    "add": _binary(unit.add),
    "sub": _binary(lambda a, b, kind: unit.add(a, -b, kind)),
    "rsub": _subtracted_from,
    "mul": _binary(unit.mul),
    "maximum": _binary(_maximum),
    "relu": _relu,
    "hardtanh": _hardtanh,
    "clamp": _clip,
    "clamp_min": _clip,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "silu": _silu,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _average_pool,
    "_adaptive_avg_pool2d": _adaptive_average_pool,
    "mean": _mean,
    "cat": _concat,
}
