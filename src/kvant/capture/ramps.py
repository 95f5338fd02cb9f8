"""Counting along an axis of free size, as code that makes attention masks does.

``arange(batch)`` has no constant value, but of what masks ask it only few things matter: that no entry is below its
start, and that it selects the whole of an axis. Where they ask for more, the integers are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvant.capture.builder import Activation, Builder, Operand, Size, need_activation
from kvant.capture.operators.indexing import need_grid, take
from kvant.capture.operators.integers import integers
from kvant.capture.operators.shape import reshape_to, slice_axis
from kvant.capture.registry import UnsupportedError
from kvant.graph import ops


@dataclass(frozen=True)
class Ramp:
    """The integers ``start``, ``start + 1``... along ``axis`` of a tensor whose other axes have one entry."""

    start: int
    shape: tuple[Size, ...]
    axis: int = 0


def ramp(target: Any, arguments: Mapping[str, Any], shape: Sequence[Size]) -> Ramp | None:
    """What ``arange`` of a free size is, if it counts by one."""
    counts = str(target).startswith("aten.arange") and arguments.get("step", 1) == 1
    start = arguments.get("start", 0)
    return Ramp(start, tuple(shape)) if counts and isinstance(start, int) else None


def of_ramps(t: Builder, name: str, arguments: Mapping[str, Any]) -> Operand | Ramp:
    """The result of an operator with ramps among its arguments.

    Raises:
        UnsupportedError: it asks for more than a ramp tells.
    """
    handler = _HANDLERS.get(name.removeprefix("aten."))
    first, *others = arguments.values()
    if handler is None or not (isinstance(first, Ramp) or handler is _index):
        raise _unknown()
    result: Operand | Ramp = handler(t, first, *others)
    return result


def counted(t: Builder, x: Ramp) -> Activation:
    """The integers of a ramp, computed: sums of ones."""
    size = x.shape[x.axis]
    ones = t.emit(ops.Expand((t.dim(size),)), torch.ones(1, dtype=torch.int64), shape=(size,))
    count = integers(t, "add", t.emit(ops.CumSum(0), ones, shape=(size,)), x.start - 1)
    return need_activation(reshape_to(t, count, x.shape) if len(x.shape) != 1 else count, "the count")


def _unknown() -> UnsupportedError:
    return UnsupportedError("a constant whose shape depends on the input's", static=True)


def _moved(t: Builder, x: Ramp, *others: Any) -> Ramp:
    """Ramps stay ramps where axes of one entry come and go."""
    free = [axis for axis, size in enumerate(t.shape) if not isinstance(size, int)]
    if len(free) != 1 or any(size != 1 for size in t.shape if isinstance(size, int)):
        raise _unknown()
    return replace(x, shape=t.shape, axis=free[0])


def _slice(t: Builder, x: Ramp, dim: int = 0, start: Size | None = 0, end: Size | None = None, step: int = 1) -> Ramp:
    if (start or 0) != 0 or step != 1 or (isinstance(end, int) and end < 2**31):
        raise UnsupportedError("a part of a constant whose shape depends on the input's", static=True)
    return x


def _add(t: Builder, x: Ramp, other: Any, alpha: int = 1) -> Ramp:
    if not isinstance(other, int) or not isinstance(alpha, int):
        raise _unknown()
    return replace(x, start=x.start + other * alpha)


def _at_least(t: Builder, x: Ramp, other: Any) -> Operand:
    if not isinstance(other, int) or other > x.start:
        raise _unknown()
    return torch.ones([1] * len(x.shape), dtype=torch.bool)


def _ones(t: Builder, x: Ramp, size: Sequence[Size], *others: Any) -> Operand:
    if not all(isinstance(entry, int) for entry in size):
        raise _unknown()
    return torch.ones([int(entry) for entry in size], dtype=t.dtype)


def _index(t: Builder, x: Any, indices: Sequence[Any]) -> Operand:
    """``x`` with axes spread over those of a grid, as in ``mask[batch[:, None], positions[None]]``; ramps are all."""
    if not isinstance(x, Activation) or not all(isinstance(entry, Ramp | Tensor) for entry in indices):
        raise UnsupportedError("selection by indices that depend on the input's size", static=True)
    need_grid([entry.shape for entry in indices])
    for axis, entry in enumerate(indices):
        x = take(t, x, axis, entry.reshape(-1)) if isinstance(entry, Tensor) else _first(t, x, axis, entry)
    return reshape_to(t, x, t.shape)


def _first(t: Builder, x: Activation, axis: int, entries: Ramp) -> Activation:
    """The first entries along ``axis``, as many as a ramp has."""
    size = entries.shape[entries.axis]
    if entries.start:
        raise UnsupportedError("a part of a size that depends on the input's", static=True)
    return x if t.dim(size) == t.dim(x.shape[axis]) else slice_axis(t, x, axis, 0, t.dim(size), size)


_HANDLERS: dict[str, Callable[..., Any]] = {
    "slice.Tensor": _slice, "unsqueeze.default": _moved, "squeeze.dim": _moved, "view.default": _moved,
    "reshape.default": _moved, "add.Tensor": _add, "ge.Scalar": _at_least, "new_ones.default": _ones,
    "index.Tensor": _index,
}  # fmt: skip
