"""Arithmetic and comparison of integers: token ids, positions, and places that the network computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kvant.capture.builder import Activation, Builder, Operand, Size
from kvant.capture.registry import UnsupportedError
from kvant.graph import ops
from kvant.graph.ops import IntFunction

_INTEGERS = (torch.int64, torch.int32)
_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1}


def broadcast(left: Sequence[Size], right: Sequence[Size]) -> tuple[Size, ...]:
    """The shape of two traced shapes broadcast against each other; torch has checked that they fit."""
    rank = max(len(left), len(right))
    pairs = zip([1] * (rank - len(left)) + [*left], [1] * (rank - len(right)) + [*right], strict=True)
    return tuple(b if isinstance(a, int) and a == 1 else a for a, b in pairs)


def are_integers(t: Builder, *operands: object) -> bool:
    """Whether the current operator computes integers from integers that depend on the inputs."""
    computed = [value for value in operands if isinstance(value, Activation)]
    return t.dtype in _INTEGERS and any(value.dtype in (*_INTEGERS, torch.bool) for value in computed)


def integers(t: Builder, fn: IntFunction, a: object, b: object) -> Activation:
    """``fn`` of two operands of which at least one is an activation, in int64."""
    left, right = _whole(t, a), _whole(t, b)
    if isinstance(left, Activation) and isinstance(b, int) and _NEUTRAL.get(fn) == b:
        return left
    masks = all(isinstance(value, Activation) and value.name in t.masks for value in (left, right))
    result = t.emit(ops.IntBinary(fn), left, right, shape=broadcast(left.shape, right.shape))
    if masks and fn in ("mul", "min", "max"):
        t.masks.add(result.name)
    return result


def _whole(t: Builder, value: object) -> Operand:
    """An operand as int64."""
    if isinstance(value, Activation):
        if value.dtype == torch.bool:
            return t.counted(value)
        if value.dtype != torch.int64:
            raise UnsupportedError(f"integer arithmetic on {str(value.dtype).removeprefix('torch.')}, expected int64")
        return value
    if isinstance(value, Tensor) and not value.is_floating_point():
        return value.to(torch.int64)
    if isinstance(value, int):
        return torch.tensor(int(value))
    raise UnsupportedError("integer arithmetic with the input's size or with numbers that are no integers", static=True)


def chosen(t: Builder, mask: Operand, one: object, other: object) -> Activation:
    """Integers ``one`` where ``mask``, else ``other``."""
    return integers(t, "add", other, integers(t, "mul", _whole(t, mask), _difference(t, one, other)))


def _difference(t: Builder, one: object, other: object) -> Operand:
    if isinstance(one, Activation) or isinstance(other, Activation):
        return integers(t, "sub", one, other)
    left, right = _whole(t, one), _whole(t, other)
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left - right
    raise UnsupportedError("a choice between what are no integers")


def order(t: Builder, a: object, b: object, function: Callable[[Tensor, int], Tensor]) -> Activation:
    """A mask, as float32: what ``function`` says of -1, 0 and 1 and zero where a is below b, equal, and above."""
    apart = integers(t, "sub", a, b)
    place = integers(t, "max", integers(t, "min", integers(t, "add", apart, 1), 2), 0)
    table = function(torch.tensor([-1, 0, 1]), 0).to(torch.float32)
    return t.emit(ops.Gather(0), table, place, shape=place.shape)
