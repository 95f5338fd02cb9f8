"""Operators that look at many elements of a tensor at once: reductions, softmax, norms."""

from __future__ import annotations

import math

from kvant.errors import GraphError
from kvant.graph import Node, evaluate, ops
from kvant.runtime import places, steps
from kvant.runtime.arithmetic import multiplier, scale_of, target_of, zero_of
from kvant.runtime.lower.context import Context, Order, natural
from kvant.runtime.lower.elementwise import rescale

# Beyond this many elements the exact sum of 16-bit squares might leave int64.
_MAX_NORMALIZED = 2**31


def reduce(context: Context, node: Node, op: ops.Reduce) -> None:
    if not op.axes:
        raise GraphError("it reduces no axis")
    source, order = _neighbours(context, node, op.axes)
    shape = tuple(context.shapes[source][axis] for axis in order)
    first, count = min(order.index(axis) for axis in op.axes), len(op.axes)
    size = math.prod(shape[first : first + count])
    outer, inner = math.prod(shape[:first]), math.prod(shape[first + count :])
    left = order if op.keepdims else _without(order, op.axes)
    if op.fn == "mean" or op.fn == "sum":
        x, y = context.quantized(source), context.quantized(node.output)
        factor = float(multiplier(scale_of(x), scale_of(y) * (size if op.fn == "mean" else 1)))
        context.emit(node, steps.Sum(outer, size, inner, zero_of(x), factor, target_of(y)), (source,), order=left)
        return
    context.quantized(source)
    moved = node.output
    if context.type(source) != context.type(node.output):
        moved = context.add_temporary(node, context.type(source), context.shapes[node.output])
    context.emit(node, steps.Extreme(op.fn, outer, size, inner), (source,), moved, left)
    if moved != node.output:
        rescale(context, node, moved, node.output)


def _neighbours(context: Context, node: Node, axes: tuple[int, ...]) -> tuple[str, Order]:
    """The input, copied so that ``axes`` come last where they are not neighbours in memory, and its order."""
    source = node.inputs[0]
    order = context.order(source)
    places = sorted(order.index(axis) for axis in axes)
    if places != list(range(places[0], places[0] + len(places))):
        order = (*(axis for axis in order if axis not in axes), *axes)
        source = context.read(node, source, order)
    return source, order


def _without(order: Order, axes: tuple[int, ...]) -> Order:
    """The order of what is left when axes are gone."""
    kept = [axis for axis in order if axis not in axes]
    return tuple(sorted(kept).index(axis) for axis in kept)


def softmax(context: Context, node: Node, op: ops.Softmax) -> None:
    x, y = context.quantized(node.inputs[0]), context.quantized(node.output)
    if len(node.inputs) != 2:
        raise GraphError("softmax of integers needs its table of exponentials as second input")
    table = context.graph.constants.get(node.inputs[1])
    low, high = x.stored_range()
    if table is None or table.dtype.name != "int32" or table.shape != (high - low + 1,):
        raise GraphError(f"its table must be a constant of {high - low + 1} int32 entries")
    if table.min() < 0 or table[0] < 1:
        raise GraphError("its table holds a negative exponential, or none for the maximum")
    work = steps.Softmax(*context.around(node.inputs[0], op.axis), float(multiplier(1.0, scale_of(y))), target_of(y))
    context.emit(node, work, node.inputs, order=context.order(node.inputs[0]))


def layer_norm(context: Context, node: Node, op: ops.LayerNorm) -> None:
    source = node.inputs[0]
    shape, order = context.shapes[source], context.order(source)
    first = len(shape) - op.rank
    if order[first:] != tuple(range(first, len(shape))):
        source, order = context.read(node, source), natural(len(shape))
    _emit_normalize(context, node, source, math.prod(shape[:first]), 1, math.prod(shape[first:]), 1, op.eps, order)


def group_norm(context: Context, node: Node, op: ops.GroupNorm) -> None:
    source = context.read(node, node.inputs[0])
    shape = context.shapes[source]
    inner = math.prod(shape[2:])
    size = shape[1] // op.groups * inner
    rows = shape[0] * op.groups
    _emit_normalize(context, node, source, rows, op.groups, size, inner, op.eps, natural(len(shape)))


def _emit_normalize(
    context: Context, node: Node, source: str, rows: int, groups: int, size: int, inner: int, eps: float, order: Order
) -> None:
    x, y = context.quantized(source), context.quantized(node.output)
    if size >= _MAX_NORMALIZED:
        raise GraphError(f"it normalizes {size} elements together; at most {_MAX_NORMALIZED - 1} are allowed")
    if any(context.type(name).dtype != "float32" for name in node.inputs[1:]):
        raise GraphError("its gamma and beta must be float32")
    work = steps.Normalize(rows, groups, size, inner, scale_of(x), eps, zero_of(x), scale_of(y), target_of(y))
    context.emit(node, work, (source, *node.inputs[1:]), order=order)


def arg_max(context: Context, node: Node, op: ops.ArgMax) -> None:
    if context.type(node.inputs[0]).dtype != "int64":
        context.quantized(node.inputs[0])
    if context.type(node.output).dtype != "int64":
        raise GraphError(f"its output is {context.type(node.output).dtype}, expected int64")
    order = context.order(node.inputs[0])
    left = order if op.keepdims else _without(order, (op.axis,))
    context.emit(node, steps.ArgMax(*context.around(node.inputs[0], op.axis)), node.inputs, order=left)


def top_k(context: Context, node: Node, op: ops.TopK) -> None:
    context.quantized(node.inputs[0])
    around = context.around(node.inputs[0], op.axis)
    work = places.TopK(*around, evaluate(op.count, context.bindings), op.largest)
    context.emit(node, work, node.inputs, order=context.order(node.inputs[0]))


def cum_sum(context: Context, node: Node, op: ops.CumSum) -> None:
    (source,) = node.inputs
    around = context.around(source, op.axis)
    work = places.CumSum(*around)
    if context.type(source).dtype != "int64":
        x, y = context.quantized(source), context.quantized(node.output)
        work = places.CumSum(*around, zero_of(x), float(multiplier(scale_of(x), scale_of(y))), target_of(y))
    context.emit(node, work, node.inputs, order=context.order(source))
