"""Operators that move elements and never change them: any dtype will do."""

from __future__ import annotations

import math

import numpy as np

from kvant.errors import GraphError
from kvant.graph import Node, evaluate, ops, slice_bounds
from kvant.runtime import steps
from kvant.runtime.arithmetic import Int64, quantize_real
from kvant.runtime.lower.context import Context, Shape, contiguous, join_axes


def reshape(context: Context, node: Node, op: ops.Reshape) -> None:
    context.aliases[node.output] = node.inputs[0]


def slice_(context: Context, node: Node, op: ops.Slice) -> None:
    shape = context.shapes[node.inputs[0]]
    strides = list(contiguous(shape))
    start, _, step = slice_bounds(op, shape[op.axis], context.bindings)
    offset = start * strides[op.axis]
    strides[op.axis] *= step
    _copy(context, node, context.shapes[node.output], tuple(strides), offset)


def transpose(context: Context, node: Node, op: ops.Transpose) -> None:
    strides = contiguous(context.shapes[node.inputs[0]])
    _copy(context, node, context.shapes[node.output], tuple(strides[axis] for axis in op.permutation), 0)


def expand(context: Context, node: Node, op: ops.Expand) -> None:
    shape, wanted = context.shapes[node.inputs[0]], context.shapes[node.output]
    padded = (1,) * (len(wanted) - len(shape)) + shape
    strides = tuple(0 if size == 1 else step for size, step in zip(padded, contiguous(padded), strict=True))
    _copy(context, node, wanted, strides, 0)


def _copy(context: Context, node: Node, shape: Shape, strides: tuple[int, ...], offset: int) -> None:
    joined, (steps_x,) = _join(shape, strides)
    context.emit(node, steps.Copy(joined, steps_x, offset), node.inputs)


def _join(shape: Shape, strides: tuple[int, ...]) -> tuple[Shape, list[tuple[int, ...]]]:
    return join_axes(shape, strides)


def concat(context: Context, node: Node, op: ops.Concat) -> None:
    outer, _, inner = context.around(node.output, op.axis)
    sizes = tuple(context.shapes[name][op.axis] * inner for name in node.inputs)
    context.emit(node, steps.Concat(outer, sizes), node.inputs)


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
    shape = context.shapes[node.inputs[0]]
    whole = 0
    while whole < len(shape) - 1 and _is_identity(tables[whole], shape[whole]):
        whole += 1
    if whole > 1:
        outer = math.prod(shape[:whole])
        shape = (outer, *shape[whole:])
        tables = (np.arange(outer, dtype=np.int64), *tables[whole:])
    context.emit(node, steps.Index(shape, tables, fill), node.inputs)


def _is_identity(table: Int64, size: int) -> bool:
    return len(table) == size and bool((table == np.arange(size)).all())


def gather(context: Context, node: Node, op: ops.Gather) -> None:
    if context.type(node.inputs[1]).dtype != "int64":
        raise GraphError(f"its indices are {context.type(node.inputs[1]).dtype}, expected int64")
    outer, size, inner = context.around(node.inputs[0], op.axis)
    count = math.prod(context.shapes[node.inputs[1]])
    context.emit(node, steps.Gather(outer, size, inner, count), node.inputs)
