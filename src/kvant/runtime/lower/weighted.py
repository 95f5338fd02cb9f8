"""Operators that multiply and accumulate: what depends on weights is prepared once, the rest for each input size."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from kvant.errors import AccumulatorOverflowError, GraphError
from kvant.graph import Graph, Node, TensorType, ops
from kvant.runtime import steps
from kvant.runtime.arithmetic import (
    INT64_MAX,
    Int64,
    accumulator_bound,
    exact_terms,
    furthest,
    multiplier,
    scale_of,
    target_of,
    zero_of,
)
from kvant.runtime.lower.context import Context, channels_last, natural
from kvant.runtime.lower.transposed import Axis, axes_of, grown_weights, to_rows_and_columns
from kvant.runtime.steps import AnyWeights, DynamicWeights, FloatWeights, Pair, Weights

Scales = npt.NDArray[np.float64]


def prepare(graph: Graph) -> dict[str, AnyWeights]:
    """Weights, multipliers and proven accumulator bounds of every convolution and linear layer, by output name.

    Raises:
        AccumulatorOverflowError: naming a node whose sums int64 might not hold.
        GraphError: naming a node whose scales or types the runtime cannot use.
    """
    prepared: dict[str, AnyWeights] = {}
    for node in graph.nodes:
        if isinstance(node.op, ops.WEIGHTED):
            try:
                real = graph.types[node.inputs[0]].dtype == "float32"
                prepared[node.output] = _float_weights(graph, node) if real else _weights(graph, node)
            except (GraphError, AccumulatorOverflowError) as error:
                raise type(error)(f"{node.describe()}: {error}") from error
    return prepared


def _weights(graph: Graph, node: Node) -> Weights:
    x, weight, output = (graph.types[name] for name in (*node.inputs[:2], node.output))
    if x.quantization is None or weight.quantization is None or output.quantization is None:
        raise GraphError("its input, weight or output is not quantized; quantize the graph before running it")
    values = np.ascontiguousarray(graph.constants[node.inputs[1]])
    if values.dtype not in (np.int8, np.int16):
        raise GraphError(f"its weight is {values.dtype}, expected int8 or int16")
    bias = np.zeros(values.shape[0], np.int64)
    if len(node.inputs) > 2:
        bias = graph.constants[node.inputs[2]].astype(np.int64)
    bound = accumulator_bound(x, values, bias)
    largest = furthest(x) * (128 if values.dtype == np.int8 else int(np.abs(values.astype(np.int32)).max(initial=0)))
    groups = getattr(node.op, "groups", 1)
    multipliers = _multipliers(x, weight.quantization.scales().astype(np.float64), output, len(bias))
    signs, axes = _are_signs(graph, node, values), _grows(graph, node)
    weights = Weights(values, bias, multipliers, bound, exact_terms(largest), groups, x.dtype, zero_of(x), signs)
    return weights if axes is None else grown_weights(weights, axes)


def _float_weights(graph: Graph, node: Node) -> FloatWeights | DynamicWeights:
    """Weights of a layer that takes and gives float32: integers are widened, or kept for rows of integers."""
    values, type = graph.constants.get(node.inputs[1]), graph.types[node.inputs[1]]
    if values is None or isinstance(node.op, ops.ConvTranspose):
        raise GraphError("it takes float32; quantize the graph before running it")
    bias = np.zeros(len(values), np.float32)
    if len(node.inputs) > 2:
        bias = np.require(graph.constants[node.inputs[2]], np.float32, ["C", "A"])
    if type.quantization is None:
        return FloatWeights(_taps_first(node, values), bias)
    scales = np.ascontiguousarray(np.broadcast_to(type.quantization.scales(), (len(values),)))
    if isinstance(node.op, ops.Linear) and node.op.dynamic:
        largest = 255 * int(np.abs(values.astype(np.int32)).max(initial=1))
        return DynamicWeights(values.astype(np.int16), scales, bias, exact_terms(largest))
    column = scales.reshape(-1, *[1] * (values.ndim - 1))
    return FloatWeights(_taps_first(node, values.astype(np.float32) * column), bias)


def _taps_first(node: Node, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(O, C / groups, ...) -> (groups, KH, KW, C / groups, O / groups)."""
    groups = getattr(node.op, "groups", 1)
    kernel = _pair(values.shape[2:], 1) if values.ndim > 2 else (1, 1)
    shaped = values.reshape(groups, -1, values.shape[1], *kernel)
    return np.require(shaped.transpose(0, 3, 4, 2, 1), np.float32, ["C", "A"])


def _are_signs(graph: Graph, node: Node, values: npt.NDArray[np.int8 | np.int16]) -> bool:
    """Whether both operands are -1 and 1 (or the input 0): weights by their values, the input by its table's."""
    x = graph.types[node.inputs[0]]
    if isinstance(node.op, ops.ConvTranspose) or x.dtype != "uint8" or zero_of(x) != 1:
        return False
    made = next((entry for entry in graph.nodes if entry.output == node.inputs[0]), node)
    if not isinstance(made.op, ops.Table) or not (np.abs(values) == 1).all():
        return False
    table = graph.constants.get(made.inputs[1])
    return table is not None and bool(table.max() <= 2)


def _multipliers(x: TensorType, scales: Scales, output: TensorType, channels: int) -> npt.NDArray[np.float32]:
    factors = multiplier(scale_of(x) * scales, scale_of(output))
    return np.ascontiguousarray(np.broadcast_to(factors, (channels,)))


@cache
def _pair(values: tuple[int, ...], lifted: int) -> Pair:
    """Values for (H, W); a single axis is W, and H gets ``lifted``."""
    if len(values) not in (1, 2):
        raise GraphError(f"it works along {len(values)} spatial axes; 1 and 2 are supported")
    return (lifted, values[0]) if len(values) == 1 else (values[0], values[1])


def conv(context: Context, node: Node, op: ops.Conv) -> None:
    _emit_conv(context, node, op, transposed=False)


def conv_transpose(context: Context, node: Node, op: ops.ConvTranspose) -> None:
    axes, weights = _grows(context.graph, node), context.weights[node.output]
    if axes is None:
        _emit_conv(context, node, op, transposed=True)
        return
    if not isinstance(weights, Weights):
        raise GraphError("it takes float32; quantize the graph before running it")
    order = channels_last(len(context.shapes[node.output]))
    source = context.read(node, node.inputs[0], order)
    x, y = context.shapes[source], context.shapes[node.output]
    size = tuple(each // axis.stride for each, axis in zip(_pair(y[2:], 1), axes, strict=True))
    geometry = steps.Geometry(
        batch=x[0], channels=x[1], size=_pair(x[2:], 1), output_channels=len(weights.values),
        output_size=_pair(size, 1), kernel=_pair(weights.values.shape[2:], 1), strides=(1, 1),
        pads=(-axes[0].first, -axes[1].first), dilations=(1, 1),
    )  # fmt: skip
    work = _work(context, node, weights, geometry, op.clamp)
    if len(weights.values) == y[1]:
        context.emit(node, work, (source,), order=order)
        return
    grown = context.add_temporary(node, context.type(node.output), (x[0], len(weights.values), *size))
    context.emit(node, work, (source,), grown, channels_last(4))
    context.emit(node, to_rows_and_columns(x[0], _pair(size, 1), axes, y[1]), (grown,), order=order)


def _grows(graph: Graph, node: Node) -> tuple[Axis, Axis] | None:
    """How a transposed convolution is computed as a convolution; None: it is not one, or is computed as it is."""
    if not isinstance(node.op, ops.ConvTranspose):
        return None
    return axes_of(node.op, _pair(graph.constants[node.inputs[1]].shape[2:], 1))


def _emit_conv(context: Context, node: Node, op: ops.Conv | ops.ConvTranspose, transposed: bool) -> None:
    order = channels_last(len(context.shapes[node.output]))
    source = context.read(node, node.inputs[0], order)
    x, y = context.shapes[source], context.shapes[node.output]
    weights = context.weights[node.output]
    if isinstance(weights, DynamicWeights):
        raise GraphError("a convolution has no scales at run time")
    kernel = weights.values.shape[1:3] if isinstance(weights, FloatWeights) else weights.values.shape[2:]
    geometry = steps.Geometry(
        batch=x[0], channels=x[1], size=_pair(x[2:], 1), output_channels=y[1], output_size=_pair(y[2:], 1),
        kernel=_pair(kernel, 1), strides=_pair(op.strides, 1), pads=_pair(op.pads_begin, 0),
        dilations=_pair(op.dilations, 1),
    )  # fmt: skip
    context.emit(node, _work(context, node, weights, geometry, op.clamp, transposed), (source,), order=order)


def _work(
    context: Context,
    node: Node,
    weights: Weights | FloatWeights,
    geometry: steps.Geometry,
    clamp: ops.Clamp | None,
    transposed: bool = False,
) -> steps.Conv | steps.FloatConv:
    """The convolution in the arithmetic that its weights are made for."""
    if isinstance(weights, FloatWeights):
        low, high = _float_bounds(clamp)
        return steps.FloatConv(weights=weights, low=low, high=high, **vars(geometry))
    target = target_of(context.quantized(node.output), clamp)
    return steps.Conv(weights=weights, transposed=transposed, target=target, **vars(geometry))


def linear(context: Context, node: Node, op: ops.Linear) -> None:
    """A convolution of one row of pixels with a 1 x 1 kernel."""
    source = node.inputs[0]
    shape, order = context.shapes[source], context.order(source)
    if order[-1] != len(shape) - 1:
        source, order = context.read(node, source), natural(len(shape))
    weights = context.weights[node.output]
    rows, one = (1, math.prod(shape[:-1])), (1, 1)
    if isinstance(weights, DynamicWeights):
        low, high = _float_bounds(op.clamp)
        context.emit(node, steps.DynamicLinear(weights, rows[1], low, high), (source,), order=order)
        return
    geometry = steps.Geometry(
        batch=1, channels=shape[-1], size=rows, output_channels=context.shapes[node.output][-1], output_size=rows,
        kernel=one, strides=one, pads=(0, 0), dilations=one,
    )  # fmt: skip
    context.emit(node, _work(context, node, weights, geometry, op.clamp), (source,), order=order)


def _float_bounds(clamp: ops.Clamp | None) -> tuple[float, float]:
    """Bounds of a float32 result, which is never infinite."""
    low, high = clamp or (None, None)
    largest = float(np.finfo(np.float32).max)
    return (
        -largest if low is None else float(np.float32(low)),
        largest if high is None else float(np.float32(high)),
    )


def matmul(context: Context, node: Node, op: ops.MatMul) -> None:
    a, b = (context.quantized(name) for name in node.inputs)
    y = context.quantized(node.output)
    names = tuple(context.read(node, name) for name in node.inputs)
    shape_a, shape_b = (context.shapes[name] for name in names)
    batch = context.shapes[node.output][:-2]
    largest = furthest(a) * furthest(b)
    bound = largest * shape_a[-1]
    if bound > INT64_MAX:
        raise AccumulatorOverflowError(f"its accumulator can reach {bound}, more than int64 holds")
    work = steps.MatMul(
        m=shape_a[-2], k=shape_a[-1], n=shape_b[-1],
        index_a=_matrix_index(shape_a[:-2], batch), index_b=_matrix_index(shape_b[:-2], batch),
        zero_a=zero_of(a), zero_b=zero_of(b), multiplier=float(multiplier(scale_of(a) * scale_of(b), scale_of(y))),
        bound=bound, terms=exact_terms(largest), target=target_of(y, op.clamp),
    )  # fmt: skip
    context.emit(node, work, names)


def _matrix_index(shape: tuple[int, ...], batch: tuple[int, ...]) -> Int64:
    """For each product of a broadcast batch, the index of the matrix that one operand brings."""
    own = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    return np.ascontiguousarray(np.broadcast_to(own, batch)).reshape(-1)
