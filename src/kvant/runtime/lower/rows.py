"""Operators that look at many elements of a tensor at once: reductions, softmax, norms."""

from __future__ import annotations

import math

from kvant.errors import GraphError
from kvant.graph import Node, ops
from kvant.runtime import steps
from kvant.runtime.arithmetic import multiplier, scale_of, target_of, zero_of
from kvant.runtime.lower.context import Context, contiguous
from kvant.runtime.lower.elementwise import rescale

# Beyond this many elements the exact sum of 16-bit squares might leave int64.
_MAX_NORMALIZED = 2**31


def reduce(context: Context, node: Node, op: ops.Reduce) -> None:
    if not op.axes:
        raise GraphError("it reduces no axis")
    source = _gather_axes(context, node, op.axes)
    shape = context.shapes[source]
    first = min(op.axes) if source == node.inputs[0] else len(shape) - len(op.axes)
    size = math.prod(shape[first : first + len(op.axes)])
    outer, inner = math.prod(shape[:first]), math.prod(shape[first + len(op.axes) :])
    if op.fn == "mean" or op.fn == "sum":
        x, y = context.quantized(source), context.quantized(node.output)
        factor = float(multiplier(scale_of(x), scale_of(y) * (size if op.fn == "mean" else 1)))
        context.emit(node, steps.Sum(outer, size, inner, zero_of(x), factor, target_of(y)), (source,))
        return
    context.quantized(source)
    moved = node.output
    if context.type(source) != context.type(node.output):
        moved = context.add_temporary(node, context.type(source), context.shapes[node.output])
    context.emit(node, steps.Extreme(op.fn, outer, size, inner), (source,), moved)
    if moved != node.output:
        rescale(context, node, moved, node.output)


def _gather_axes(context: Context, node: Node, axes: tuple[int, ...]) -> str:
    """The input, transposed so that ``axes`` come last where they are not neighbours already."""
    source = node.inputs[0]
    if axes == tuple(range(min(axes), min(axes) + len(axes))):
        return source
    shape = context.shapes[source]
    order = (*(axis for axis in range(len(shape)) if axis not in axes), *axes)
    strides = contiguous(shape)
    moved = tuple(shape[axis] for axis in order)
    name = context.add_temporary(node, context.type(source), moved)
    context.emit(node, steps.Copy(moved, tuple(strides[axis] for axis in order), 0), (source,), name)
    return name


def softmax(context: Context, node: Node, op: ops.Softmax) -> None:
    x, y = context.quantized(node.inputs[0]), context.quantized(node.output)
    if len(node.inputs) != 2:
        raise GraphError("softmax of integers needs its table of exponentials as second input")
    table = context.graph.constants.get(node.inputs[1])
    low, high = x.integer_range()
    if table is None or table.dtype.name != "int32" or table.shape != (high - low + 1,):
        raise GraphError(f"its table must be a constant of {high - low + 1} int32 entries")
    if table.min() < 0 or table[0] < 1:
        raise GraphError("its table holds a negative exponential, or none for the maximum")
    work = steps.Softmax(*context.around(node.inputs[0], op.axis), float(multiplier(1.0, scale_of(y))), target_of(y))
    context.emit(node, work, node.inputs)


def layer_norm(context: Context, node: Node, op: ops.LayerNorm) -> None:
    shape = context.shapes[node.inputs[0]]
    first = len(shape) - op.rank
    _emit_normalize(context, node, math.prod(shape[:first]), 1, math.prod(shape[first:]), 1, op.eps)


def group_norm(context: Context, node: Node, op: ops.GroupNorm) -> None:
    shape = context.shapes[node.inputs[0]]
    inner = math.prod(shape[2:])
    size = shape[1] // op.groups * inner
    _emit_normalize(context, node, shape[0] * op.groups, op.groups, size, inner, op.eps)


def _emit_normalize(
    context: Context, node: Node, rows: int, groups: int, size: int, inner: int, eps: float
) -> None:  # fmt: skip
    x, y = context.quantized(node.inputs[0]), context.quantized(node.output)
    if size >= _MAX_NORMALIZED:
        raise GraphError(f"it normalizes {size} elements together; at most {_MAX_NORMALIZED - 1} are allowed")
    if any(context.type(name).dtype != "float32" for name in node.inputs[1:]):
        raise GraphError("its gamma and beta must be float32")
    work = steps.Normalize(rows, groups, size, inner, scale_of(x), eps, zero_of(x), scale_of(y), target_of(y))
    context.emit(node, work, node.inputs)


def arg_max(context: Context, node: Node, op: ops.ArgMax) -> None:
    context.quantized(node.inputs[0])
    if context.type(node.output).dtype != "int64":
        raise GraphError(f"its output is {context.type(node.output).dtype}, expected int64")
    context.emit(node, steps.ArgMax(*context.around(node.inputs[0], op.axis)), node.inputs)
