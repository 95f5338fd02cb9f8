"""Operators that move elements and never change them: any dtype will do."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from kvant.errors import GraphError
from kvant.graph import Node, evaluate, ops, slice_bounds
from kvant.runtime import places, steps
from kvant.runtime.arithmetic import Int64, quantize_real
from kvant.runtime.lower.context import Context, Order, Shape, join_axes, natural


def reshape(context: Context, node: Node, op: ops.Reshape) -> None:
    source, before, after = node.inputs[0], context.shapes[node.inputs[0]], context.shapes[node.output]
    order = _reshaped_order(before, after, context.order(source))
    if order is None:
        together = _order_for_reshape(before, after, context.order(source))
        source, order = context.read(node, source, together), _reshaped_order(before, after, together)
    context.aliases[node.output] = source
    context.set_order(node.output, order or natural(len(after)))


def _order_for_reshape(before: Shape, after: Shape, order: Order) -> Order:
    """The order nearest to the one a tensor has of those in which it can be reshaped as it lies.

    >>> _order_for_reshape((2, 3, 8, 5, 7), (2, 24, 5, 7), (0, 3, 4, 2, 1))
    (0, 3, 4, 1, 2)
    """
    runs = [tuple(old) for old, _ in _matching_runs(before, after) if old]
    runs.sort(key=lambda run: min(order.index(axis) for axis in run))
    return tuple(axis for run in runs for axis in run)


def _reshaped_order(before: Shape, after: Shape, order: Order) -> Order | None:
    """How a reshaped tensor lies if nothing moves; None if that cannot be said in axes.

    Runs of axes with equal products before and after stay together; each must lie in one piece.

    >>> _reshaped_order((2, 6, 5, 7), (2, 3, 2, 5, 7), (0, 2, 3, 1))
    (0, 3, 4, 1, 2)
    """
    if order == natural(len(before)):
        return natural(len(after))
    places = {axis: place for place, axis in enumerate(order)}
    pieces = []
    for old, new in _matching_runs(before, after):
        at = [places[axis] for axis in old if before[axis] != 1]
        if at and at != list(range(at[0], at[0] + len(at))):
            return None
        pieces.append((at[0] if at else -1, new))
    pieces.sort(key=lambda piece: piece[0])
    return tuple(axis for _, new in pieces for axis in new)


def _matching_runs(before: Shape, after: Shape) -> Iterator[tuple[range, range]]:
    """The shortest runs of axes that hold equally many elements before and after."""
    i = j = 0
    while i < len(before) or j < len(after):
        first, second = i, j
        left = right = 1
        while (i == first and j == second) or left != right:
            if j >= len(after) or (i < len(before) and left <= right):
                left *= before[i]
                i += 1
            else:
                right *= after[j]
                j += 1
        yield range(first, i), range(second, j)


def slice_(context: Context, node: Node, op: ops.Slice) -> None:
    source = node.inputs[0]
    strides = list(context.strides(source))
    start, _, step = slice_bounds(op, context.shapes[source][op.axis], context.bindings)
    offset = start * strides[op.axis]
    strides[op.axis] *= step
    _copy(context, node, tuple(strides), offset, context.order(source))


def transpose(context: Context, node: Node, op: ops.Transpose) -> None:
    source = node.inputs[0]
    context.aliases[node.output] = source
    context.set_order(node.output, tuple(op.permutation.index(axis) for axis in context.order(source)))


def expand(context: Context, node: Node, op: ops.Expand) -> None:
    source = node.inputs[0]
    shape, wanted = context.shapes[source], context.shapes[node.output]
    steps_x = (0 if size == 1 else step for size, step in zip(shape, context.strides(source), strict=True))
    strides = (0,) * (len(wanted) - len(shape)) + tuple(steps_x)
    _copy(context, node, strides, 0, natural(len(wanted)))


def _copy(context: Context, node: Node, strides: tuple[int, ...], offset: int, order: Order) -> None:
    """Emit a copy whose output lies in ``order``; ``strides`` are those of the input, by axis of the output."""
    shape = context.shapes[node.output]
    laid_out = tuple(shape[axis] for axis in order)
    joined, (steps_x,) = join_axes(laid_out, tuple(strides[axis] for axis in order))
    context.emit(node, steps.Copy(joined, steps_x, offset), node.inputs, order=order)


def concat(context: Context, node: Node, op: ops.Concat) -> None:
    order = context.order(node.inputs[0])
    names = tuple(context.read(node, name, order) for name in node.inputs)
    around = [context.around(name, op.axis, order) for name in names]
    work = steps.Concat(around[0][0], tuple(size * inner for _, size, inner in around))
    context.emit(node, work, names, order=order)


def pad(context: Context, node: Node, op: ops.Pad) -> None:
    type = context.type(node.inputs[0])
    fill = op.value if type.quantization is None else quantize_real(op.value, type)
    if type.quantization is None and type.dtype != "float32" and op.value != int(op.value):
        raise GraphError(f"it pads integers without a scale with {op.value}")
    shape = context.shapes[node.inputs[0]]
    begins = [evaluate(dim, context.bindings) for dim in op.begin]
    tables = tuple(
        _pad_table(op.mode, size, begin, padded)
        for size, begin, padded in zip(shape, begins, context.shapes[node.output], strict=True)
    )
    emit_index(context, node, tables, fill)


def _pad_table(mode: str, size: int, begin: int, padded: int) -> Int64:
    """Source positions along one axis; -1 stands for the fill value."""
    position = np.arange(-begin, padded - begin, dtype=np.int64)
    if mode == "constant":
        return np.where((position < 0) | (position >= size), -1, position)
    if mode == "replicate":
        return np.clip(position, 0, size - 1)
    if mode == "circular":
        return position % size
    period = max(1, 2 * (size - 1))
    folded = position % period
    return np.where(folded < size, folded, period - folded)


def emit_index(context: Context, node: Node, tables: tuple[Int64, ...], fill: float = 0) -> None:
    """Emit a copy by one table of positions for each axis, leading axes that stay whole joined into one."""
    order = context.order(node.inputs[0])
    shape, tables = context.laid_out(node.inputs[0]), tuple(tables[axis] for axis in order)
    whole = 0
    while whole < len(shape) - 1 and _is_identity(tables[whole], shape[whole]):
        whole += 1
    if whole > 1:
        outer = math.prod(shape[:whole])
        shape = (outer, *shape[whole:])
        tables = (np.arange(outer, dtype=np.int64), *tables[whole:])
    context.emit(node, steps.Index(shape, tables, fill), node.inputs, order=order)


def _is_identity(table: Int64, size: int) -> bool:
    return len(table) == size and bool((table == np.arange(size)).all())


def gather(context: Context, node: Node, op: ops.Gather) -> None:
    if context.type(node.inputs[1]).dtype != "int64":
        raise GraphError(f"its indices are {context.type(node.inputs[1]).dtype}, expected int64")
    names = tuple(context.read(node, name) for name in node.inputs)
    outer, size, inner = context.around(names[0], op.axis)
    count = math.prod(context.shapes[node.inputs[1]])
    context.emit(node, steps.Gather(outer, size, inner, count), names)


def gather_elements(context: Context, node: Node, op: ops.GatherElements) -> None:
    x, indices = node.inputs
    strides_x = list(context.strides(x))
    step, strides_x[op.axis] = strides_x[op.axis], 0
    named = zip(context.shapes[indices], context.strides(indices), strict=True)
    strides_indices = tuple(0 if size == 1 else stride for size, stride in named)
    joined, (steps_x, steps_indices) = join_axes(context.shapes[node.output], tuple(strides_x), strides_indices)
    work = places.Pick(joined, steps_x, steps_indices, context.shapes[x][op.axis], step)
    context.emit(node, work, node.inputs)
