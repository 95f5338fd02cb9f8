"""Pooling, resizing and sampling along trailing axes: which positions an output element covers, by PyTorch's rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from kvant.errors import GraphError
from kvant.graph import Node, ops
from kvant.runtime import places, steps
from kvant.runtime.arithmetic import Int64, multiplier, scale_of, target_of, zero_of
from kvant.runtime.lower.context import Context, Order, channels_last, natural
from kvant.runtime.lower.elementwise import rescale
from kvant.runtime.lower.movement import emit_index
from kvant.runtime.steps import Pair, Taps, Windows

# Interpolation weights are integers out of this many: fine enough for 16-bit activations, small enough for int32 sums.
ONE = places.PHASES
# Column sums of a mean's window surely stay within int32 up to this height.
_MAX_MEAN_HEIGHT = 65_535
_WHOLE_AXIS = Windows(np.zeros(1, np.int64), np.ones(1, np.int64), 1)
_WHOLE_COUNT = np.ones(1, np.int64)
_WHOLE_TAPS = Taps(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64), 1)


@dataclass(frozen=True)
class _Planes:
    """A tensor seen as (outer, H, W, inner); H is 1 where only one axis is worked on."""

    name: str
    order: Order
    outer: int
    size: Pair
    inner: int


def _planes(context: Context, node: Node, rank: int) -> _Planes:
    """The input with its channels last, if it has a batch and channels."""
    source = node.inputs[0]
    shape = context.shapes[source]
    if rank not in (1, 2):
        raise GraphError(f"it works along {rank} spatial axes; 1 and 2 are supported")
    size = (1, shape[-1]) if rank == 1 else (shape[-2], shape[-1])
    order = channels_last(len(shape)) if len(shape) == rank + 2 else natural(len(shape))
    inner = shape[1] if len(shape) == rank + 2 else 1
    outer = math.prod(shape[:-rank]) // inner
    return _Planes(context.read(node, source, order), order, outer, size, inner)


def max_pool(context: Context, node: Node, op: ops.MaxPool) -> None:
    rank = len(op.kernel)
    planes = _planes(context, node, rank)
    shape, output = context.shapes[node.inputs[0]], context.shapes[node.output]
    found = [
        _max_windows(shape[axis], output[axis], *(values[axis] for values in _geometry(op))) for axis in range(-rank, 0)
    ]
    rows, columns = found if rank == 2 else (_WHOLE_AXIS, found[0])
    work = steps.MaxPool(planes.outer, planes.size, planes.inner, rows, columns)
    context.emit(node, work, (planes.name,), order=planes.order)


def _geometry(op: ops.MaxPool) -> tuple[tuple[int, ...], ...]:
    return op.kernel, op.strides, op.pads_begin, op.dilations


def _max_windows(size: int, count: int, kernel: int, stride: int, begin: int, dilation: int) -> Windows:
    first = np.arange(count, dtype=np.int64) * stride - begin
    stop = np.minimum(first + (kernel - 1) * dilation + 1, size)
    start = first + np.maximum(0, -(first // dilation)) * dilation
    if (start >= stop).any():
        raise GraphError("a window lies wholly in the padding, so it has no maximum")
    return Windows(start, stop, dilation)


def average_pool(context: Context, node: Node, op: ops.AveragePool) -> None:
    rank = len(op.kernel)
    shape, output = context.shapes[node.inputs[0]], context.shapes[node.output]
    found = [
        _average_windows(
            shape[axis], output[axis], op.kernel[axis], op.strides[axis], op.pads_begin[axis], op.pads_end[axis],
            op.count_include_pad,
        )
        for axis in range(-rank, 0)
    ]  # fmt: skip
    _emit_mean(context, node, found, op.divisor)


def _average_windows(
    size: int, count: int, kernel: int, stride: int, begin: int, end: int, include_pad: bool
) -> tuple[Windows, Int64]:
    """Windows of one axis, and how many elements each counts."""
    first = np.arange(count, dtype=np.int64) * stride - begin
    last = np.minimum(first + kernel, size + end)
    start, stop = np.maximum(first, 0), np.minimum(last, size)
    counted = last - first if include_pad else stop - start
    return Windows(start, np.maximum(start, stop), 1), np.maximum(counted, 1)


def adaptive_pool(context: Context, node: Node, op: ops.AdaptivePool) -> None:
    rank = len(op.output_size)
    shape, output = context.shapes[node.inputs[0]], context.shapes[node.output]
    found = [_adaptive_windows(shape[axis], output[axis]) for axis in range(-rank, 0)]
    if op.fn == "average":
        _emit_mean(context, node, [(windows, windows.stop - windows.start) for windows in found], None)
        return
    rows, columns = found if rank == 2 else (_WHOLE_AXIS, found[0])
    moved = node.output
    if context.type(node.inputs[0]) != context.type(node.output):
        moved = context.add_temporary(node, context.type(node.inputs[0]), output)
    planes = _planes(context, node, rank)
    work = steps.MaxPool(planes.outer, planes.size, planes.inner, rows, columns)
    context.emit(node, work, (planes.name,), moved, planes.order)
    if moved != node.output:
        rescale(context, node, moved, node.output)


def _adaptive_windows(size: int, count: int) -> Windows:
    index = np.arange(count, dtype=np.int64)
    return Windows(index * size // count, -(-(index + 1) * size // count), 1)


def _emit_mean(context: Context, node: Node, found: Sequence[tuple[Windows, Int64]], divisor: int | None) -> None:
    planes = _planes(context, node, len(found))
    if planes.size[0] > _MAX_MEAN_HEIGHT:
        raise GraphError(
            f"it averages over an image of {planes.size[0]} rows; at most {_MAX_MEAN_HEIGHT} are supported"
        )
    (rows, row_counts), (columns, column_counts) = ((_WHOLE_AXIS, _WHOLE_COUNT), *found)[-2:]
    counts = np.full((len(row_counts), len(column_counts)), divisor) if divisor else np.outer(row_counts, column_counts)
    x, y = context.quantized(node.inputs[0]), context.quantized(node.output)
    factors = np.ascontiguousarray(multiplier(scale_of(x), scale_of(y) * counts))
    work = steps.MeanPool(
        planes.outer, planes.size, planes.inner, rows, columns, zero_of(x), factors, target_of(y)
    )  # fmt: skip
    context.emit(node, work, (planes.name,), order=planes.order)


def resize(context: Context, node: Node, op: ops.Resize) -> None:
    shape, output = context.shapes[node.inputs[0]], context.shapes[node.output]
    rank = len(shape) - 2
    scales = op.scale or (None,) * rank
    sizes = list(zip(shape[2:], output[2:], scales, strict=True))
    if op.mode != "linear":
        tables = [_nearest(source, count, scale, op.mode) for source, count, scale in sizes]
        whole = [np.arange(size, dtype=np.int64) for size in shape[:2]]
        emit_index(context, node, (*whole, *tables))
        return
    planes = _planes(context, node, rank)
    found = [_taps(source, count, scale, op.align_corners) for source, count, scale in sizes]
    rows, columns = found if rank == 2 else (_WHOLE_TAPS, found[0])
    x, y = context.quantized(node.inputs[0]), context.quantized(node.output)
    factor = float(multiplier(scale_of(x), scale_of(y) * rows.one * columns.one))
    work = steps.Resize(planes.outer, planes.size, planes.inner, rows, columns, zero_of(x), factor, target_of(y))
    context.emit(node, work, (planes.name,), order=planes.order)


def _nearest(size: int, count: int, scale: float | None, mode: str) -> Int64:
    """Source positions as PyTorch computes them: coordinates in float32."""
    step = np.float32(1.0 / scale) if scale else np.float32(size) / np.float32(count)
    index = np.arange(count, dtype=np.int64)
    if mode == "nearest" and count == size:
        return index
    if mode == "nearest" and count == 2 * size:
        return index // 2
    shift = 0.0 if mode == "nearest" else 0.5
    position = np.floor((index + shift).astype(np.float32) * step).astype(np.int64)
    return np.asarray(np.minimum(position, size - 1), np.int64)


def _taps(size: int, count: int, scale: float | None, align_corners: bool) -> Taps:
    index = np.arange(count, dtype=np.float64)
    if align_corners:
        position = index * ((size - 1) / (count - 1) if count > 1 else 0.0)
    else:
        step = 1.0 / scale if scale else size / count
        position = np.maximum((index + 0.5) * step - 0.5, 0.0)
    lower = np.minimum(np.floor(position).astype(np.int64), size - 1)
    weight = np.rint(np.clip(position - lower, 0.0, 1.0) * ONE).astype(np.int64)
    return Taps(lower, np.minimum(lower + 1, size - 1), weight, ONE)


def grid_sample(context: Context, node: Node, op: ops.GridSample) -> None:
    source, grid = context.read(node, node.inputs[0], channels_last(4)), context.read(node, node.inputs[1])
    x, y, at = context.quantized(source), context.quantized(node.output), context.quantized(grid)
    batch, channels, *size = context.shapes[source]
    first, weights = _kernel(op.mode)
    factor = float(multiplier(scale_of(x), scale_of(y) * len(weights) ** 2))
    work = places.GridSample(
        batch, (size[0], size[1]), channels, math.prod(context.shapes[grid][1:3]), scale_of(at), zero_of(at),
        op.align_corners, op.padding, first, weights, zero_of(x), factor, target_of(y),
    )  # fmt: skip
    context.emit(node, work, (source, grid), order=channels_last(4))


@cache
def _kernel(mode: str) -> tuple[int, npt.NDArray[np.int32]]:
    """The first pixel that counts, from the one before the place, and the weights by the place between the two."""
    behind = np.arange(ONE, dtype=np.int64)
    if mode == "nearest":
        return 0, np.ones((1, 1), np.int32)
    if mode == "bilinear":
        return 0, np.stack([ONE - behind, behind], axis=1).astype(np.int32)
    # Keys' cubics with a = -3/4, as PyTorch has them: of distances below one and below two, in parts of 4 ONE^3.
    near = [(5 * k - 9 * ONE) * k * k + 4 * ONE**3 for k in (behind, ONE - behind)]
    far = [((-3 * k + 15 * ONE) * k - 24 * ONE**2) * k + 12 * ONE**3 for k in (ONE + behind, 2 * ONE - behind)]
    weights = np.rint(np.stack([far[0], *near, far[1]], axis=1) / (4 * ONE**2)).astype(np.int32)
    # What rounding left out goes to the larger one of the two in the middle, so that even areas stay even.
    weights[behind, 1 + (behind > ONE // 2)] += ONE - weights.sum(axis=1)
    return -1, weights
