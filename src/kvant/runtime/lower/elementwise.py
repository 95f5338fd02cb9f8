"""Operators that treat every element alike."""

from __future__ import annotations

import math

from kvant.errors import GraphError
from kvant.graph import Node, TensorType, ops
from kvant.runtime import places, steps
from kvant.runtime.arithmetic import multiplier, scale_of, target_of, zero_of
from kvant.runtime.lower.context import Context, Order, Shape, channels_last, join_axes, natural


def quantize(context: Context, node: Node, op: ops.Quantize) -> None:
    (x,) = node.inputs
    if context.type(x).dtype != "float32":
        raise GraphError(f"its input {x!r} is {context.type(x).dtype}, expected float32")
    output, shape, order = context.quantized(node.output), context.shapes[x], context.order(x)
    outer, channels, inner = 1, 1, math.prod(shape)
    if order == natural(len(shape)) and len(shape) > 2 and _is_image(context, node.output):
        order = channels_last(len(shape))
        outer, channels, inner = shape[0], shape[1], math.prod(shape[2:])
    given = x if any(entry.name == x for entry in context.graph.inputs) else ""
    work = steps.Quantize(outer, channels, inner, scale_of(output), target_of(output), given)
    context.emit(node, work, node.inputs, order=order)


def _is_image(context: Context, name: str) -> bool:
    """Whether the first operator that reads a tensor wants its channels last."""
    reader = next((node.op for node in context.graph.nodes if name in node.inputs), None)
    return isinstance(reader, ops.Conv | ops.ConvTranspose | ops.MaxPool | ops.AveragePool | ops.AdaptivePool)


def dequantize(context: Context, node: Node, op: ops.Dequantize) -> None:
    x = context.quantized(node.inputs[0])
    # Real numbers leave the network here, mostly: in the graph's order, while they are still small.
    source = context.read(node, node.inputs[0])
    if context.type(node.output).dtype != "float32":
        raise GraphError(f"its output is {context.type(node.output).dtype}, expected float32")
    context.emit(node, steps.Dequantize(scale_of(x), zero_of(x)), (source,))


def requantize(context: Context, node: Node, op: ops.Requantize) -> None:
    rescale(context, node, node.inputs[0], node.output)


def rescale(context: Context, node: Node, source: str, output: str) -> None:
    """Emit the step that brings ``source`` to the type of ``output``."""
    x, y = context.quantized(source), context.quantized(output)
    factor = float(multiplier(scale_of(x), scale_of(y)))
    context.emit(node, steps.Rescale(zero_of(x), factor, target_of(y)), (source,), output, context.order(source))


def table(context: Context, node: Node, op: ops.Table) -> None:
    x = context.quantized(node.inputs[0])
    values = context.graph.constants.get(node.inputs[1])
    if values is None or values.dtype != context.type(node.output).numpy:
        raise GraphError("its table must be a constant of the output's type")
    low, high = x.stored_range()
    outer, channels, inner = (1, 1, 1) if op.axis is None else context.around(node.inputs[0], op.axis)
    expected = (high - low + 1,) if op.axis is None else (channels, high - low + 1)
    if values.shape != expected:
        raise GraphError(f"its table has shape {values.shape}, expected {expected}")
    if op.axis is None:
        inner = math.prod(context.shapes[node.output])
    context.emit(node, steps.Table(outer, channels, inner, low), node.inputs, order=context.order(node.inputs[0]))


def binary(context: Context, node: Node, op: ops.Binary) -> None:
    a, b = (context.quantized(name) for name in node.inputs)
    y = context.quantized(node.output)
    order = _common_order(context, node)
    shape = context.shapes[node.output]
    strides = [_broadcast_strides(context, name, shape) for name in node.inputs]
    laid_out = [tuple(steps[axis] for axis in order) for steps in strides]
    joined, (strides_a, strides_b) = join_axes(tuple(shape[axis] for axis in order), *laid_out)
    factor_a, factor_b = _factors(op.fn, a, b, y)
    context.emit(
        node,
        steps.Binary(
            op.fn, joined, strides_a, strides_b, zero_of(a), zero_of(b), factor_a, factor_b, target_of(y, op.clamp)
        ),
        node.inputs,
        order=order,
    )


def int_binary(context: Context, node: Node, op: ops.IntBinary) -> None:
    shape = context.shapes[node.output]
    joined, strides = join_axes(shape, *(_broadcast_strides(context, name, shape) for name in node.inputs))
    context.emit(node, places.IntBinary(op.fn, joined, *strides), node.inputs)


def real(context: Context, node: Node, op: ops.Real) -> None:
    context.emit(node, places.Real(), node.inputs, order=context.order(node.inputs[0]))


def _common_order(context: Context, node: Node) -> Order:
    """The order of the operand that the output resembles most, so that memory is walked as it lies."""
    shape = context.shapes[node.output]
    alike = [name for name in node.inputs if context.shapes[name] == shape and name not in context.graph.constants]
    return context.order(alike[0]) if alike else natural(len(shape))


def _factors(fn: ops.BinaryFunction, a: TensorType, b: TensorType, y: TensorType) -> tuple[float, float]:
    """Multipliers of the two operands; mul and div have one for the result, and 1."""
    sa, sb, sy = scale_of(a), scale_of(b), scale_of(y)
    if fn == "mul":
        return float(multiplier(sa * sb, sy)), 1.0
    if fn == "div":
        return float(multiplier(sa, sb * sy)), 1.0
    return float(multiplier(sa, sy)), float(multiplier(sb, sy))


def _broadcast_strides(context: Context, name: str, target: Shape) -> tuple[int, ...]:
    missing = len(target) - len(context.shapes[name])
    strides = zip(context.shapes[name], context.strides(name), strict=True)
    return (0,) * missing + tuple(0 if size == 1 else stride for size, stride in strides)
