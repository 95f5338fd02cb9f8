"""Masks that depend on inputs: zeros and ones in float32, which torch takes for booleans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kvant.capture.builder import INTEGERS, NUMBERS, Activation, Builder, Operand, is_activation, need_activation
from kvant.capture.operators.integers import order
from kvant.capture.registry import UnsupportedError, handles
from kvant.graph import ops
from kvant.graph.ops import Step

_ZERO_AND_ONE = torch.tensor([0, 1])


def as_float(mask: Activation) -> Activation:
    """The zeros and ones of a mask as numbers."""
    return replace(mask, dtype=torch.float32)


def _as_mask(x: Activation) -> Activation:
    return replace(x, dtype=torch.bool)


def converted(t: Builder, x: Activation, dtype: torch.dtype) -> Activation:
    """``x`` as ``dtype``, where that is a mask or comes from one, or ``x`` are an input's numbers.

    Raises:
        UnsupportedError: it is another conversion.
    """
    if dtype == torch.bool and _are_any_integers(t, x):
        return _as_mask(order(t, x, 0, torch.ne))
    if dtype == torch.bool:
        return _of_values(t, x, lambda values: values != 0)
    if dtype == torch.float32 and x.dtype in NUMBERS:
        return t.real(x)
    if dtype in INTEGERS and (_is_argmax(t, x) or (x.dtype == torch.int64 and dtype == torch.int32)):
        return x
    if dtype in (torch.int64, torch.int32) and x.dtype == torch.bool:
        return t.counted(x)
    if dtype == torch.float32 and x.dtype == torch.bool:
        return as_float(x)
    if dtype == torch.float32 and x.name in t.masks:
        return as_float(_of_values(t, x, lambda values: values != 0))
    if dtype == torch.float32 and x.dtype == torch.int64:
        return t.real(x)
    raise UnsupportedError(f"a conversion from {x.dtype} to {dtype}")


def _are_any_integers(t: Builder, x: Activation) -> bool:
    """Whether ``x`` is int64 of other values than 0 and 1."""
    return x.dtype == torch.int64 and x.name not in t.masks


def _is_argmax(t: Builder, x: Activation) -> bool:
    """Whether ``x`` are places of maxima, which stay int64 whatever integer type they are converted to."""
    return any(node.output == x.name and isinstance(node.op, ops.ArgMax) for node in t.graph.nodes)


def _of_values(t: Builder, x: Activation, function: Callable[[Tensor], Tensor]) -> Activation:
    """The mask that ``function`` makes of the two values of a mask, or of numbers when it asks for zero."""
    if x.dtype == torch.float32:
        nonzero = t.pointwise(x, Step("abs"), Step("sign"))
        return _of_values(t, _as_mask(nonzero), function)
    if x.dtype != torch.bool and x.name not in t.masks:
        raise UnsupportedError(f"a mask made of {x.dtype} that hold other values than 0 and 1 in the example")
    low, high = (float(value) for value in function(_ZERO_AND_ONE).to(torch.float32))
    if x.dtype != torch.bool:
        table = torch.tensor([low, high])
        return _as_mask(t.emit(ops.Gather(0), table, x, shape=x.shape))
    if (low, high) == (0.0, 1.0):
        return x
    return _as_mask(t.pointwise(as_float(x), Step("const", high - low), Step("mul"), Step("const", low), Step("add")))


def _comparison(operator: str, function: Callable[[Tensor, float], Tensor]) -> None:
    @handles(f"{operator}.Scalar")
    def compare(t: Builder, x: Operand, other: float) -> Activation:
        x = need_activation(x, "the operand")
        numbers = x.dtype == torch.float32 or x.dtype in NUMBERS
        if numbers and (other != 0 or operator not in ("eq", "ne")):
            return _compared(t, t.real(x) if x.dtype in NUMBERS else x, operator, float(other))
        if _are_any_integers(t, x):
            return _as_mask(order(t, x, other, function))
        return _of_values(t, x, lambda values: function(values, other))

    @handles(f"{operator}.Tensor")
    def compare_both(t: Builder, x: Operand, other: Operand) -> Activation:
        if any(value.dtype not in (torch.int64, torch.bool) for value in (x, other)):
            raise UnsupportedError("a comparison of numbers that are no integers with each other")
        return _as_mask(order(t, x, other, function))


def _compared(t: Builder, x: Activation, operator: str, bound: float) -> Activation:
    """Where ``x`` is above or below ``bound``; ``ge`` is all that is not below, and ``le`` all that is not above."""
    if operator in ("eq", "ne"):
        raise UnsupportedError("computed numbers asked whether they equal another one than zero")
    above = (Step("neg"), Step("above", -bound, 1.0)) if operator in ("lt", "ge") else (Step("above", bound, 1.0),)
    rest = (Step("neg"), Step("const", 1.0), Step("add")) if operator in ("ge", "le") else ()
    return _as_mask(t.pointwise(x, *above, *rest))


for _name, _compare in (
    ("eq", torch.eq), ("ne", torch.ne), ("gt", torch.gt), ("ge", torch.ge), ("lt", torch.lt), ("le", torch.le),
):  # fmt: skip
    _comparison(_name, _compare)


@handles("logical_not.default", "bitwise_not.default")
def invert(t: Builder, x: Operand) -> Activation:
    return _of_values(t, _mask(x), lambda values: values == 0)


def _mask(x: Operand) -> Activation:
    x = need_activation(x, "the mask")
    if x.dtype != torch.bool:
        raise UnsupportedError(f"logic on {x.dtype}")
    return x


@handles("logical_and.default", "bitwise_and.Tensor")
def both(t: Builder, x: Operand, other: Operand) -> Operand:
    return _joined(t, "mul", x, other, neutral=True)


@handles("logical_or.default", "bitwise_or.Tensor")
def either(t: Builder, x: Operand, other: Operand) -> Operand:
    return _joined(t, "max", x, other, neutral=False)


def _joined(t: Builder, fn: ops.BinaryFunction, x: Operand, other: Operand, neutral: bool) -> Operand:
    for constant, rest in ((x, other), (other, x)):
        if isinstance(constant, Tensor) and bool((constant == neutral).all()) and len(rest.shape) >= constant.dim():
            return rest
    masks = [as_float(_mask(entry)) if is_activation(entry) else entry for entry in (x, other)]
    return _as_mask(t.emit(ops.Binary(fn), *masks))
