"""Operators that treat every element alike."""

from __future__ import annotations

from kvant.errors import GraphError
from kvant.graph import Node, TensorType, ops
from kvant.runtime import steps
from kvant.runtime.arithmetic import multiplier, scale_of, target_of, zero_of
from kvant.runtime.lower.context import Context, Shape, contiguous, join_axes


def quantize(context: Context, node: Node, op: ops.Quantize) -> None:
    (x,) = node.inputs
    if context.type(x).dtype != "float32":
        raise GraphError(f"its input {x!r} is {context.type(x).dtype}, expected float32")
    output = context.quantized(node.output)
    context.emit(node, steps.Quantize(scale_of(output), target_of(output)), node.inputs)


def dequantize(context: Context, node: Node, op: ops.Dequantize) -> None:
    x = context.quantized(node.inputs[0])
    if context.type(node.output).dtype != "float32":
        raise GraphError(f"its output is {context.type(node.output).dtype}, expected float32")
    context.emit(node, steps.Dequantize(scale_of(x), zero_of(x)), node.inputs)


def requantize(context: Context, node: Node, op: ops.Requantize) -> None:
    rescale(context, node, node.inputs[0], node.output)


def rescale(context: Context, node: Node, source: str, output: str) -> None:
    """Emit the step that brings ``source`` to the type of ``output``."""
    x, y = context.quantized(source), context.quantized(output)
    factor = float(multiplier(scale_of(x), scale_of(y)))
    context.emit(node, steps.Rescale(zero_of(x), factor, target_of(y)), (source,), output)


def table(context: Context, node: Node, op: ops.Table) -> None:
    x = context.quantized(node.inputs[0])
    values = context.graph.constants.get(node.inputs[1])
    if values is None or values.dtype != context.type(node.output).numpy:
        raise GraphError("its table must be a constant of the output's type")
    low, high = x.integer_range()
    outer, channels, inner = (1, 1, 1) if op.axis is None else context.around(node.inputs[0], op.axis)
    expected = (high - low + 1,) if op.axis is None else (channels, high - low + 1)
    if values.shape != expected:
        raise GraphError(f"its table has shape {values.shape}, expected {expected}")
    if op.axis is None:
        inner = _count(context.shapes[node.output])
    context.emit(node, steps.Table(outer, channels, inner, low), node.inputs)


def _count(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def binary(context: Context, node: Node, op: ops.Binary) -> None:
    a, b = (context.quantized(name) for name in node.inputs)
    y = context.quantized(node.output)
    shape = context.shapes[node.output]
    broadcast = [_broadcast_strides(context.shapes[name], shape) for name in node.inputs]
    joined, (strides_a, strides_b) = join_axes(shape, *broadcast)
    factor_a, factor_b = _factors(op.fn, a, b, y)
    context.emit(
        node,
        steps.Binary(
            op.fn, joined, strides_a, strides_b, zero_of(a), zero_of(b), factor_a, factor_b, target_of(y, op.clamp)
        ),
        node.inputs,
    )


def _factors(fn: ops.BinaryFunction, a: TensorType, b: TensorType, y: TensorType) -> tuple[float, float]:
    """Multipliers of the two operands; mul and div have one for the result, and 1."""
    sa, sb, sy = scale_of(a), scale_of(b), scale_of(y)
    if fn == "mul":
        return float(multiplier(sa * sb, sy)), 1.0
    if fn == "div":
        return float(multiplier(sa, sb * sy)), 1.0
    return float(multiplier(sa, sy)), float(multiplier(sb, sy))


def _broadcast_strides(shape: Shape, target: Shape) -> tuple[int, ...]:
    padded = (1,) * (len(target) - len(shape)) + shape
    strides = contiguous(padded)
    return tuple(0 if size == 1 else stride for size, stride in zip(padded, strides, strict=True))
