"""Reductions over axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from kvant.capture.builder import Activation, Builder, Operand, Size, need_activation
from kvant.capture.operators.elementwise import binary
from kvant.capture.operators.integers import are_integers
from kvant.capture.operators.shape import reshape_to, slice_axis
from kvant.capture.registry import UnsupportedError, handles
from kvant.graph import ops
from kvant.graph.ops import Step

Axes = int | Sequence[int] | None


def axes_of(x: Activation, dim: Axes) -> tuple[int, ...]:
    """The axes that ``dim`` names, from the front and sorted; None and an empty list mean all."""
    if isinstance(dim, int):
        return (x.axis(dim),)
    return tuple(sorted(x.axis(axis) for axis in dim)) if dim else tuple(range(x.rank))


def reduced(x: Activation, axes: Sequence[int], keepdim: bool) -> tuple[Size, ...]:
    """The traced shape of ``x`` after a reduction."""
    sizes = ((axis, size) for axis, size in enumerate(x.shape))
    return tuple(1 if axis in axes else size for axis, size in sizes if keepdim or axis not in axes)


def reduce(t: Builder, x: Activation, fn: str, dim: Axes, keepdim: bool) -> Activation:
    """A mean, sum, maximum or minimum of ``x`` over some axes."""
    axes = axes_of(x, dim)
    if fn == "sum" and are_integers(t, x):
        return _count(t, x, axes, keepdim)
    return t.emit(ops.Reduce(fn, axes, keepdim), x, shape=reduced(x, axes, keepdim))  # type: ignore[arg-type]


def _count(t: Builder, x: Activation, axes: Sequence[int], keepdim: bool) -> Activation:
    """Sums of integers: the last of their running sums."""
    x = t.counted(x) if x.dtype == torch.bool else x
    final = reduced(x, axes, keepdim)
    for axis in axes:
        sums = t.emit(ops.CumSum(axis), x, shape=x.shape)
        x = slice_axis(t, sums, axis, -1, None, 1)
    return x if keepdim else need_activation(reshape_to(t, x, final), "the sum")


def _register(operator: str, fn: str) -> None:
    def handler(t: Builder, x: Operand, dim: Axes = None, keepdim: bool = False) -> Activation:
        return reduce(t, need_activation(x, "the operand"), fn, dim, keepdim)

    handles(operator)(handler)


for _operator, _fn in (
    ("mean.dim", "mean"), ("mean.default", "mean"), ("sum.dim_IntList", "sum"), ("sum.default", "sum"),
    ("amax.default", "max"), ("amin.default", "min"), ("max.default", "max"), ("min.default", "min"),
):  # fmt: skip
    _register(_operator, _fn)


@handles("max.dim")
def max_dim(t: Builder, x: Activation, dim: int, keepdim: bool) -> list[Activation]:
    return [reduce(t, x, "max", dim, keepdim), _argmax(t, x, dim, keepdim)]


@handles("min.dim")
def min_dim(t: Builder, x: Activation, dim: int, keepdim: bool) -> list[Activation]:
    negative = t.pointwise(x, Step("neg"))
    return [reduce(t, x, "min", dim, keepdim), _argmax(t, negative, dim, keepdim)]


def _argmax(t: Builder, x: Activation, dim: int, keepdim: bool) -> Activation:
    axis = x.axis(dim)
    return t.emit(ops.ArgMax(axis, keepdim), x, shape=reduced(x, (axis,), keepdim))


@handles("argmax.default")
def argmax(t: Builder, x: Activation, dim: int | None, keepdim: bool) -> Operand:
    if dim is None:
        flat = need_activation(reshape_to(t, x, (_elements(x),)), "the operand")
        return reshape_to(t, _argmax(t, flat, 0, keepdim=False), t.shape)
    return _argmax(t, x, dim, keepdim)


@handles("argmin.default")
def argmin(t: Builder, x: Activation, dim: int | None, keepdim: bool) -> Operand:
    return argmax(t, t.pointwise(x, Step("neg")), dim, keepdim)


def _elements(x: Activation) -> Size:
    count: Size = 1
    for size in x.shape:
        count = count * size
    return count


@handles("linalg_vector_norm.default", "norm.ScalarOpt_dim", "norm.Scalar")
def vector_norm(
    t: Builder, x: Activation, ord: float | None = None, p: float | None = None, dim: Axes = None, keepdim: bool = False
) -> Activation:
    order = float(p if ord is None and p is not None else 2.0 if ord is None else ord)
    absolute = t.pointwise(x, Step("abs"))
    if order == 1:
        return reduce(t, absolute, "sum", dim, keepdim)
    if math.isinf(order):
        return reduce(t, absolute, "max" if order > 0 else "min", dim, keepdim)
    if order != 2:
        raise UnsupportedError(f"the norm of order {order}")
    return t.pointwise(reduce(t, t.pointwise(x, Step("square")), "sum", dim, keepdim), Step("sqrt"))


@handles("var.correction", "var.dim")
def variance(
    t: Builder,
    x: Activation,
    dim: Axes,
    correction: float | None = None,
    unbiased: bool = True,
    keepdim: bool = False,
) -> Activation:
    axes = axes_of(x, dim)
    lost = float(unbiased) if correction is None else float(correction)
    centred = need_activation(binary(t, "sub", x, reduce(t, x, "mean", axes, True)), "the operand")
    mean = reduce(t, t.pointwise(centred, Step("square")), "mean", axes, keepdim)
    if lost == 0:
        return mean
    count = math.prod(x.fixed(axis) for axis in axes)
    return t.pointwise(mean, Step("const", count / (count - lost)), Step("mul"))
