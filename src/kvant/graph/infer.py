"""Shapes of every tensor, from the shapes of the inputs: one short rule for each operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kvant.errors import GraphError, ShapeError
from kvant.graph import ops
from kvant.graph.dims import evaluate, is_symbol, show_shape
from kvant.graph.graph import Graph, Node

Shape = tuple[int, ...]
Bindings = Mapping[str, int]
MAX_RANK = 8


def bind(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The size of every symbol, from concrete input shapes.

    Raises:
        ShapeError: a rank or a fixed dimension differs, or one symbol would have two sizes.
    """
    bindings: dict[str, int] = {}
    for entry in graph.inputs:
        given = tuple(shapes[entry.name])
        if len(given) != len(entry.shape):
            raise ShapeError(
                f"input {entry.name!r} has rank {len(given)} (shape {show_shape(given)}), "
                f"expected rank {len(entry.shape)}: {show_shape(entry.shape)}"
            )
        for dim, size in zip(entry.shape, given, strict=True):
            if size < 1:
                raise ShapeError(f"input {entry.name!r} has an empty dimension: {show_shape(given)}")
            if is_symbol(dim):
                known = bindings.setdefault(str(dim[0]), size)  # type: ignore[index]
                if known != size:
                    raise ShapeError(
                        f"input {entry.name!r} has shape {show_shape(given)}, but {dim[0]!r} is {known} elsewhere "  # type: ignore[index]
                        f"(expected {show_shape(entry.shape)})"
                    )
            elif dim != size:
                raise ShapeError(
                    f"input {entry.name!r} has shape {show_shape(given)}, expected {show_shape(entry.shape)}"
                )
    return bindings


def example_shapes(graph: Graph) -> dict[str, Shape]:
    """The shapes of the inputs that the graph was captured with."""
    return {entry.name: tuple(evaluate(dim, graph.example) for dim in entry.shape) for entry in graph.inputs}


def infer_shapes(graph: Graph, inputs: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """The shape of every tensor of ``graph`` when its inputs have the shapes ``inputs``.

    Args:
        inputs: a shape for every graph input, by name.

    Raises:
        ShapeError: naming the node, its module path and the shapes that do not fit.
    """
    bindings = bind(graph, inputs)
    shapes: dict[str, Shape] = {name: value.shape for name, value in graph.constants.items()}
    shapes |= {entry.name: tuple(inputs[entry.name]) for entry in graph.inputs}
    for node in graph.nodes:
        given = [shapes[name] for name in node.inputs]
        shapes[node.output] = infer_node(node, given, bindings)
    return shapes


def infer_node(node: Node, given: Sequence[Shape], bindings: Bindings) -> Shape:
    """The output shape of one node whose inputs have the shapes ``given``."""
    try:
        shape = _RULES[type(node.op)](node.op, given, bindings)
    except (ShapeError, GraphError, IndexError, ValueError) as error:
        shown = ", ".join(show_shape(shape) for shape in given)
        raise ShapeError(f"{node.describe()} cannot take inputs of shape {shown}: {error}") from error
    if len(shape) > MAX_RANK or any(size < 1 for size in shape):
        shown = ", ".join(show_shape(shape) for shape in given)
        raise ShapeError(
            f"{node.describe()}: inputs of shape {shown} give {show_shape(shape)}, empty or of rank > {MAX_RANK}"
        )
    return shape


def _same(op: ops.AnyOp, given: Sequence[Shape], bindings: Bindings) -> Shape:
    return given[0]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ShapeError(message)


def window_count(size: int, kernel: int, stride: int, begin: int, end: int, dilation: int, ceil_mode: bool) -> int:
    """How many windows fit: PyTorch's rule, by which the last one must start inside the input or its left padding."""
    span = size + begin + end - dilation * (kernel - 1) - 1
    if span < 0 and not ceil_mode:
        return 0
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + begin:
        count -= 1
    return count


def _conv(op: ops.Conv, given: Sequence[Shape], bindings: Bindings) -> Shape:
    x, weight = given[0], given[1]
    rank = len(op.strides)
    _require(len(x) == rank + 2 and len(weight) == rank + 2, f"expected rank {rank + 2}")
    _require(x[1] == weight[1] * op.groups, f"x has {x[1]} channels, the weight wants {weight[1] * op.groups}")
    _require(weight[0] % op.groups == 0, f"{weight[0]} output channels are not divisible by {op.groups} groups")
    _check_bias(given, weight[0])
    spatial = (
        window_count(size, kernel, stride, begin, end, dilation, False)
        for size, kernel, stride, begin, end, dilation in zip(
            x[2:], weight[2:], op.strides, op.pads_begin, op.pads_end, op.dilations, strict=True
        )
    )
    return (x[0], weight[0], *spatial)


def _check_bias(given: Sequence[Shape], channels: int) -> None:
    if len(given) > 2:
        _require(given[2] == (channels,), f"the bias has shape {show_shape(given[2])}, expected {channels}")


def _conv_transpose(op: ops.ConvTranspose, given: Sequence[Shape], bindings: Bindings) -> Shape:
    x, weight = given[0], given[1]
    rank = len(op.strides)
    _require(len(x) == rank + 2 and len(weight) == rank + 2, f"expected rank {rank + 2}")
    _require(x[1] == weight[1] * op.groups, f"x has {x[1]} channels, the weight wants {weight[1] * op.groups}")
    _require(weight[0] % op.groups == 0, f"{weight[0]} output channels are not divisible by {op.groups} groups")
    _check_bias(given, weight[0])
    spatial = (
        (size - 1) * stride - begin - end + dilation * (kernel - 1) + extra + 1
        for size, kernel, stride, begin, end, dilation, extra in zip(
            x[2:], weight[2:], op.strides, op.pads_begin, op.pads_end, op.dilations, op.output_padding, strict=True
        )
    )
    return (x[0], weight[0], *spatial)


def _linear(op: ops.Linear, given: Sequence[Shape], bindings: Bindings) -> Shape:
    x, weight = given[0], given[1]
    _require(len(weight) == 2 and len(x) >= 1, "expected a weight of rank 2")
    _require(x[-1] == weight[1], f"x has {x[-1]} features, the weight wants {weight[1]}")
    _check_bias(given, weight[0])
    return (*x[:-1], weight[0])


def _matmul(op: ops.MatMul, given: Sequence[Shape], bindings: Bindings) -> Shape:
    a, b = given
    _require(len(a) >= 2 and len(b) >= 2, "expected matrices")
    _require(a[-1] == b[-2], f"inner sizes {a[-1]} and {b[-2]} differ")
    return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])


def _batch_norm(op: ops.BatchNorm, given: Sequence[Shape], bindings: Bindings) -> Shape:
    _require(all(shape == (given[0][1],) for shape in given[1:]), f"expected {given[0][1]} channels")
    return given[0]


def _binary(op: ops.Binary, given: Sequence[Shape], bindings: Bindings) -> Shape:
    return tuple(np.broadcast_shapes(*given))


def _concat(op: ops.Concat, given: Sequence[Shape], bindings: Bindings) -> Shape:
    first = given[0]
    _require(0 <= op.axis < len(first), f"axis {op.axis} is out of range")
    for shape in given[1:]:
        rest = (*shape[: op.axis], *shape[op.axis + 1 :])
        _require(rest == (*first[: op.axis], *first[op.axis + 1 :]), "the other axes differ")
    return (*first[: op.axis], sum(shape[op.axis] for shape in given), *first[op.axis + 1 :])


def slice_bounds(op: ops.Slice, size: int, bindings: Bindings) -> tuple[int, int, int]:
    """Start, stop and step of ``op`` on an axis of ``size``, all within it."""
    start = evaluate(op.start, bindings)
    stop = None if op.stop is None else evaluate(op.stop, bindings)
    return slice(start, stop, op.step).indices(size)


def _slice(op: ops.Slice, given: Sequence[Shape], bindings: Bindings) -> Shape:
    _require(op.step >= 1, f"step {op.step} is not positive")
    count = len(range(*slice_bounds(op, given[0][op.axis], bindings)))
    return (*given[0][: op.axis], count, *given[0][op.axis + 1 :])


def _reshape(op: ops.Reshape, given: Sequence[Shape], bindings: Bindings) -> Shape:
    shape = [evaluate(dim, bindings) for dim in op.shape]
    total = math.prod(given[0])
    _require(all(size > 0 or size == -1 for size in shape) and shape.count(-1) <= 1, f"bad shape {shape}")
    if -1 in shape:
        known = math.prod(size for size in shape if size != -1)
        _require(total % known == 0, f"{total} elements do not fill {shape}")
        shape[shape.index(-1)] = total // known
    _require(math.prod(shape) == total, f"{total} elements do not fill {shape}")
    return tuple(shape)


def _transpose(op: ops.Transpose, given: Sequence[Shape], bindings: Bindings) -> Shape:
    _require(sorted(op.permutation) == list(range(len(given[0]))), f"{op.permutation} is no permutation")
    return tuple(given[0][axis] for axis in op.permutation)


def _expand(op: ops.Expand, given: Sequence[Shape], bindings: Bindings) -> Shape:
    wanted = [evaluate(dim, bindings) for dim in op.shape]
    padded = (1,) * (len(wanted) - len(given[0])) + given[0]
    _require(len(padded) == len(wanted), "the rank cannot shrink")
    shape = tuple(have if want == -1 else want for want, have in zip(wanted, padded, strict=True))
    _require(
        all(have in (1, want) for want, have in zip(shape, padded, strict=True)),
        f"cannot expand to {show_shape(shape)}",
    )
    return shape


def _pad(op: ops.Pad, given: Sequence[Shape], bindings: Bindings) -> Shape:
    shape = []
    for size, before, after in zip(given[0], op.begin, op.end, strict=True):
        begin, end = evaluate(before, bindings), evaluate(after, bindings)
        limit = {"reflect": size - 1, "circular": size}.get(op.mode)
        if limit is not None:
            _require(max(begin, end) <= limit, f"{op.mode} padding of {max(begin, end)} exceeds {limit}")
        shape.append(size + begin + end)
    return tuple(shape)


def _pool(op: ops.MaxPool | ops.AveragePool, given: Sequence[Shape], bindings: Bindings) -> Shape:
    x = given[0]
    rank = len(op.kernel)
    _require(len(x) > rank, f"expected more than {rank} axes")
    dilations = op.dilations if isinstance(op, ops.MaxPool) else (1,) * rank
    spatial = (
        window_count(size, kernel, stride, begin, end, dilation, op.ceil_mode)
        for size, kernel, stride, begin, end, dilation in zip(
            x[-rank:], op.kernel, op.strides, op.pads_begin, op.pads_end, dilations, strict=True
        )
    )
    return (*x[:-rank], *spatial)


def _adaptive(op: ops.AdaptivePool, given: Sequence[Shape], bindings: Bindings) -> Shape:
    rank = len(op.output_size)
    _require(len(given[0]) > rank, f"expected more than {rank} axes")
    return (*given[0][:-rank], *(evaluate(dim, bindings) for dim in op.output_size))


def _reduce(op: ops.Reduce, given: Sequence[Shape], bindings: Bindings) -> Shape:
    _require(all(0 <= axis < len(given[0]) for axis in op.axes), f"axes {op.axes} are out of range")
    return _drop(given[0], op.axes, op.keepdims)


def _drop(shape: Shape, axes: Sequence[int], keepdims: bool) -> Shape:
    if keepdims:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _resize(op: ops.Resize, given: Sequence[Shape], bindings: Bindings) -> Shape:
    if (op.size is None) == (op.scale is None):
        raise ShapeError("give either size or scale")
    if op.size is not None:
        spatial = tuple(evaluate(dim, bindings) for dim in op.size)
    else:
        scales = op.scale or ()
        spatial = tuple(math.floor(size * scale) for size, scale in zip(given[0][-len(scales) :], scales, strict=True))
    _require(len(given[0]) == len(spatial) + 2, f"expected rank {len(spatial) + 2}")
    return (*given[0][: -len(spatial)], *spatial)


def _along_axis(op: ops.Softmax | ops.CumSum, given: Sequence[Shape], bindings: Bindings) -> Shape:
    _require(0 <= op.axis < len(given[0]), f"axis {op.axis} is out of range")
    return given[0]


def _layer_norm(op: ops.LayerNorm, given: Sequence[Shape], bindings: Bindings) -> Shape:
    wanted = given[0][len(given[0]) - op.rank :]
    _require(given[1] == wanted and given[2] == wanted, f"gamma and beta must have shape {show_shape(wanted)}")
    return given[0]


def _group_norm(op: ops.GroupNorm, given: Sequence[Shape], bindings: Bindings) -> Shape:
    channels = given[0][1]
    _require(op.groups >= 1 and channels % op.groups == 0, f"{channels} channels do not divide into {op.groups} groups")
    _require(given[1] == (channels,) and given[2] == (channels,), f"gamma and beta must have {channels} elements")
    return given[0]


def _gather(op: ops.Gather, given: Sequence[Shape], bindings: Bindings) -> Shape:
    _require(0 <= op.axis < len(given[0]), f"axis {op.axis} is out of range")
    return (*given[0][: op.axis], *given[1], *given[0][op.axis + 1 :])


def _argmax(op: ops.ArgMax, given: Sequence[Shape], bindings: Bindings) -> Shape:
    _require(0 <= op.axis < len(given[0]), f"axis {op.axis} is out of range")
    return _drop(given[0], (op.axis,), op.keepdims)


def _gather_elements(op: ops.GatherElements, given: Sequence[Shape], bindings: Bindings) -> Shape:
    x, indices = given
    _require(0 <= op.axis < len(x), f"axis {op.axis} is out of range")
    _require(len(x) == len(indices), "the indices have another rank")
    others = [pair for axis, pair in enumerate(zip(x, indices, strict=True)) if axis != op.axis]
    _require(all(count in (1, size) for size, count in others), f"the indices differ beside axis {op.axis}")
    return (*x[: op.axis], indices[op.axis], *x[op.axis + 1 :])


def _top_k(op: ops.TopK, given: Sequence[Shape], bindings: Bindings) -> Shape:
    x, count = given[0], evaluate(op.count, bindings)
    _require(0 <= op.axis < len(x), f"axis {op.axis} is out of range")
    _require(1 <= count <= x[op.axis], f"{count} elements are wanted of {x[op.axis]}")
    return (*x[: op.axis], count, *x[op.axis + 1 :])


def _grid_sample(op: ops.GridSample, given: Sequence[Shape], bindings: Bindings) -> Shape:
    x, grid = given
    _require(len(x) == 4 and len(grid) == 4 and grid[3] == 2, "expected an image and a grid of rank 4, its last axis 2")
    _require(x[0] == grid[0], f"there are {x[0]} images and {grid[0]} grids")
    return (x[0], x[1], grid[1], grid[2])


_RULES: dict[type, Callable[..., Shape]] = {
    ops.Conv: _conv, ops.ConvTranspose: _conv_transpose, ops.Linear: _linear, ops.MatMul: _matmul,
    ops.BatchNorm: _batch_norm, ops.Binary: _binary, ops.Pointwise: _same, ops.Table: _same, ops.Concat: _concat,
    ops.Slice: _slice, ops.Reshape: _reshape, ops.Transpose: _transpose, ops.Expand: _expand, ops.Pad: _pad,
    ops.MaxPool: _pool, ops.AveragePool: _pool, ops.AdaptivePool: _adaptive, ops.Reduce: _reduce,
    ops.Resize: _resize, ops.Softmax: _along_axis, ops.LayerNorm: _layer_norm, ops.GroupNorm: _group_norm,
    ops.Gather: _gather, ops.ArgMax: _argmax, ops.GatherElements: _gather_elements, ops.TopK: _top_k,
    ops.CumSum: _along_axis, ops.IntBinary: _binary, ops.Real: _same, ops.GridSample: _grid_sample,
    ops.Quantize: _same, ops.Dequantize: _same, ops.Requantize: _same,
}  # fmt: skip
