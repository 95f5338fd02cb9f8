"""Random graphs of one operator for hypothesis: every shape, attribute and type that the runtime takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from kvant.graph import FLOAT32, Graph, Quantization, TensorType, ops

from .graphs import one_op, random_integers, typed, weighted_graph

Case = tuple[Graph, list[np.ndarray]]
DTYPES = st.sampled_from(["uint8", "int16"])
SIZES = st.integers(1, 12)


@st.composite
def types(draw: Any) -> TensorType:
    """An activation's type with any zero point and a scale over many orders of magnitude."""
    dtype = draw(DTYPES)
    zero = draw(st.sampled_from([0, 1, 128, 255])) if dtype == "uint8" else 0
    return typed(dtype, draw(st.sampled_from([1e-4, 0.013, 0.05, 1.0, 37.5])), zero)


@st.composite
def clamps(draw: Any) -> ops.Clamp | None:
    return draw(st.sampled_from([None, (0.0, None), (0.0, 6.0), (-1.0, 1.0), (None, 3.0)]))


def values(draw: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Integers over the whole range, or only its ends, from a seed that hypothesis chooses."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return random_integers(rng, shape, dtype, draw(st.booleans()))


def weights(draw: Any, shape: tuple[int, ...]) -> np.ndarray:
    """int8 or int16 weights; a weight is never -32768."""
    found = values(draw, shape, draw(st.sampled_from(["int8", "int8", "int16"])))
    return np.maximum(found, -np.iinfo(found.dtype).max)


@st.composite
def convolutions(draw: Any) -> Case:
    rank = draw(st.sampled_from([1, 2, 2]))
    groups = draw(st.sampled_from([1, 1, 2, 5]))
    per_group, outputs = draw(st.sampled_from([1, 1, 2, 3, 9])), groups * draw(st.sampled_from([1, 2, 5, 11, 17]))

    def pick(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    kernel, strides, dilations, begin, end = pick(1, 4), pick(1, 3), pick(1, 2), pick(0, 3), pick(0, 3)
    least = max((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    x_type, y_type = draw(types()), draw(types())
    x_shape = (draw(st.integers(1, 2)), per_group * groups, *(draw(st.integers(least, least + 9)) for _ in range(rank)))
    weight = weights(draw, (outputs, per_group, *kernel))
    op: ops.AnyOp = ops.Conv(strides, begin, end, dilations, groups, draw(clamps()))
    if draw(st.integers(0, 3)) == 0:
        extra = tuple(min(e, s - 1) for e, s in zip(end, strides, strict=True))
        zeros = (0,) * rank
        op = ops.ConvTranspose(strides, zeros, zeros, extra, dilations, groups, draw(clamps()))
    return _with_weights(draw, op, x_shape, x_type, weight, y_type)


@st.composite
def linears(draw: Any) -> Case:
    x_shape = (*draw(st.sampled_from([(), (1,), (3,), (2, 5), (150,)])), draw(st.sampled_from([1, 2, 31, 600])))
    weight = weights(draw, (draw(st.sampled_from([1, 7, 16, 50, 97])), x_shape[-1]))
    return _with_weights(draw, ops.Linear(draw(clamps())), x_shape, draw(types()), weight, draw(types()))


def _with_weights(
    draw: Any, op: ops.AnyOp, x_shape: tuple[int, ...], x_type: TensorType, weight: np.ndarray, y_type: TensorType
) -> Case:
    """Biases up to the accumulator's bound, scales that make sums land in the output's range or saturate it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    reach = (
        2 ** draw(st.sampled_from([0, 12, 30, 31])) if x_type.dtype == "uint8" else 2 ** draw(st.sampled_from([20, 45]))
    )
    bias = rng.integers(-reach, reach, weight.shape[0]) if draw(st.booleans()) else None
    scale = rng.uniform(0.5, 2.0, weight.shape[0]) * 10.0 ** draw(st.integers(-6, 0))
    return weighted_graph(op, x_shape, x_type, weight, bias, y_type, scale), [values(draw, x_shape, x_type.dtype)]


@st.composite
def matmuls(draw: Any) -> Case:
    batch_a, batch_b = draw(st.sampled_from([((), ()), ((2,), (1,)), ((3, 1), (2,)), ((), (2,))]))
    m, k, n = (
        draw(st.sampled_from([1, 3, 19, 140])),
        draw(st.sampled_from([1, 2, 33, 300])),
        draw(st.sampled_from([1, 5, 50])),
    )
    a_type, b_type = draw(types()), draw(types())
    shapes = ((*batch_a, m, k), (*batch_b, k, n))
    graph = one_op(ops.MatMul(draw(clamps())), {"a": (shapes[0], a_type), "b": (shapes[1], b_type)}, draw(types()))
    return graph, [values(draw, shapes[0], a_type.dtype), values(draw, shapes[1], b_type.dtype)]


@st.composite
def binaries(draw: Any) -> Case:
    shapes = draw(
        st.sampled_from([((7,), (7,)), ((2, 3, 5), (3, 1)), ((4, 1, 6), (5, 1)), ((), (3, 4)), ((1, 8, 9), (2, 8, 1)),
                         ((1, 2, 40, 60), (1, 2, 1, 1)), ((2500,), (1,))])
    )  # fmt: skip
    fn = draw(st.sampled_from(["add", "sub", "mul", "div", "min", "max"]))
    a_type, y_type = draw(types()), draw(types())
    op = ops.Binary(fn, draw(clamps()))
    a = values(draw, shapes[0], a_type.dtype)
    if draw(st.booleans()):
        constant = values(draw, shapes[1], "int8")
        quantization = Quantization((0.5,), 0)
        return one_op(op, {"a": (a.shape, a_type)}, y_type, {"b": (constant, quantization)}), [a]
    b_type = draw(types())
    b = values(draw, shapes[1], b_type.dtype)
    return one_op(op, {"a": (a.shape, a_type), "b": (b.shape, b_type)}, y_type), [a, b]


@st.composite
def conversions(draw: Any) -> Case:
    x_type, y_type = draw(types()), draw(types())
    shape = draw(st.sampled_from([(), (1,), (3, 5), (2, 3, 700)]))
    kind = draw(st.sampled_from(["quantize", "dequantize", "requantize"]))
    if kind == "quantize":
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        x = (rng.normal(size=shape) * 10.0 ** draw(st.integers(-3, 30))).astype(np.float32)
        return one_op(ops.Quantize(), {"x": (shape, FLOAT32)}, y_type), [np.asarray(x)]
    op, output = (ops.Dequantize(), FLOAT32) if kind == "dequantize" else (ops.Requantize(), y_type)
    return one_op(op, {"x": (shape, x_type)}, output), [values(draw, shape, x_type.dtype)]


@st.composite
def pools(draw: Any) -> Case:
    rank = draw(st.sampled_from([1, 2]))

    def pick(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    x_type, y_type = draw(types()), draw(types())
    kernel, strides = pick(1, 5), pick(1, 3)
    pads = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    ceil = draw(st.booleans())
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), *(draw(st.integers(9, 40)) for _ in range(rank)))
    kind = draw(st.sampled_from(["max", "average", "adaptive"]))
    op: ops.AnyOp
    if kind == "max":
        op, y_type = ops.MaxPool(kernel, strides, pads, pads, pick(1, 2), ceil), x_type
    elif kind == "average":
        divisor = draw(st.sampled_from([None, None, 5]))
        op = ops.AveragePool(kernel, strides, pads, pads, ceil, draw(st.booleans()), divisor)
    else:
        op = ops.AdaptivePool(draw(st.sampled_from(["average", "max"])), pick(1, 15))
    return one_op(op, {"x": (shape, x_type)}, y_type), [values(draw, shape, x_type.dtype)]


@st.composite
def resizes(draw: Any) -> Case:
    rank = draw(st.sampled_from([1, 2]))
    mode = draw(st.sampled_from(["nearest", "nearest-exact", "linear", "linear"]))
    x_type = draw(types())
    y_type = draw(types()) if mode == "linear" else x_type
    shape = (1, draw(st.integers(1, 3)), *(draw(st.integers(1, 20)) for _ in range(rank)))
    align = mode == "linear" and draw(st.booleans())
    if draw(st.booleans()):
        size = tuple(draw(st.integers(1, 40)) for _ in range(rank))
        op = ops.Resize(mode, size, align_corners=align)
    else:
        op = ops.Resize(
            mode, scale=tuple(draw(st.sampled_from([1.0, 1.3, 2.0, 3.7])) for _ in range(rank)), align_corners=align
        )
    return one_op(op, {"x": (shape, x_type)}, y_type), [values(draw, shape, x_type.dtype)]


@st.composite
def reductions(draw: Any) -> Case:
    x_type, y_type = draw(types()), draw(types())
    shape = draw(st.sampled_from([(5,), (3, 40), (2, 3, 7), (2, 3, 4, 20), (1, 2, 300, 2)]))
    axes = tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    fn = draw(st.sampled_from(["mean", "sum", "max", "min"]))
    op: ops.AnyOp = ops.Reduce(fn, axes, draw(st.booleans()))
    if draw(st.integers(0, 4)) == 0:
        op, y_type = ops.ArgMax(axes[0], draw(st.booleans())), TensorType("int64")
    return one_op(op, {"x": (shape, x_type)}, y_type), [values(draw, shape, x_type.dtype)]


@st.composite
def softmaxes(draw: Any) -> Case:
    x_type, y_type = draw(types()), draw(types())
    shape = draw(st.sampled_from([(1,), (9,), (3, 40), (2, 5, 7)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low, high = x_type.integer_range()
    table = np.sort(rng.integers(0, 2**20, high - low + 1, dtype=np.int32))[::-1].copy()
    table[0] = 2**20
    op = ops.Softmax(draw(st.integers(0, len(shape) - 1)))
    return one_op(op, {"x": (shape, x_type)}, y_type, {"e": (table, None)}), [values(draw, shape, x_type.dtype)]


@st.composite
def norms(draw: Any) -> Case:
    x_type, y_type = draw(types()), draw(types())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.sampled_from([(2, 6), (1, 6, 5), (2, 6, 3, 4), (1, 12, 40, 1)]))
    eps = draw(st.sampled_from([0.0, 1e-12, 1e-5, 0.1]))
    if draw(st.booleans()):
        rank = draw(st.integers(1, len(shape) - 1))
        op: ops.AnyOp = ops.LayerNorm(rank, eps)
        parameters = rng.normal(size=(2, *shape[-rank:])).astype(np.float32)
    else:
        op = ops.GroupNorm(draw(st.sampled_from([1, 2, 3, 6])), eps)
        parameters = rng.normal(size=(2, shape[1])).astype(np.float32)
    constants: dict[str, Any] = {"gamma": (parameters[0].copy(), None), "beta": (parameters[1].copy(), None)}
    x = values(draw, shape, x_type.dtype)
    if draw(st.booleans()):
        x[0] = x.flat[0]  # no variance at all
    return one_op(op, {"x": (shape, x_type)}, y_type, constants), [x]


@st.composite
def movements(draw: Any) -> Case:
    type = draw(st.sampled_from([FLOAT32, TensorType("int64"), typed("uint8"), typed("int16")]))
    shape = tuple(draw(st.lists(SIZES, min_size=1, max_size=5)))
    axis = draw(st.integers(0, len(shape) - 1))
    x = np.arange(np.prod(shape)).reshape(shape).astype(type.numpy)
    kind = draw(st.sampled_from(["slice", "transpose", "expand", "concat", "pad", "gather", "reshape"]))
    if kind == "gather":
        indices = np.asarray(draw(st.lists(st.integers(-shape[axis], shape[axis] - 1), min_size=1, max_size=6)))
        inputs = {"x": (shape, type), "i": (indices.shape, TensorType("int64"))}
        return one_op(ops.Gather(axis), inputs, type), [x, indices]
    if kind == "concat":
        other = np.repeat(x, 2, axis=axis)
        return one_op(ops.Concat(axis), {"x": (shape, type), "z": (other.shape, type)}, type), [x, other]
    return one_op(_movement(draw, kind, shape, axis), {"x": (shape, type)}, type), [x]


INT64 = TensorType("int64")


@st.composite
def choices(draw: Any) -> Case:
    """What is chosen by index or by size, and integers."""
    shape = tuple(draw(st.lists(SIZES, min_size=1, max_size=4)))
    axis = draw(st.integers(0, len(shape) - 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["elements", "top", "sum", "counts", "integers", "real", "position"]))
    if kind == "elements":
        type = draw(st.sampled_from([FLOAT32, INT64, typed("uint8"), typed("int16")]))
        others = [draw(st.sampled_from([1, size])) for size in shape]
        indices_shape = tuple(draw(st.integers(1, 9)) if at == axis else size for at, size in enumerate(others))
        indices = rng.integers(-shape[axis], shape[axis], indices_shape)
        x = np.arange(np.prod(shape)).reshape(shape).astype(type.numpy)
        graph = one_op(ops.GatherElements(axis), {"x": (shape, type), "i": (indices_shape, INT64)}, type)
        return graph, [x, indices]
    if kind == "integers":
        op = ops.IntBinary(draw(st.sampled_from(["add", "sub", "mul", "div", "mod", "min", "max"])))
        far = draw(st.sampled_from([3, 100, 2**63 - 1]))
        a, b = (rng.integers(-far - 1, far, each) for each in (shape, (*shape[1:-1], 1)))
        return one_op(op, {"a": (a.shape, INT64), "b": (b.shape, INT64)}, INT64), [a, b]
    if kind == "position":
        graph = one_op(ops.ArgMax(axis, draw(st.booleans())), {"x": (shape, INT64)}, INT64)
        return graph, [rng.integers(-3, 3, shape) * 2 ** draw(st.integers(0, 60))]
    if kind in ("counts", "real"):
        x = rng.integers(-(2**62), 2**62, shape) // 2 ** draw(st.integers(0, 61))
        if kind == "real":
            return one_op(ops.Real(), {"x": (shape, INT64)}, FLOAT32), [x]
        return one_op(ops.CumSum(axis), {"x": (shape, INT64)}, INT64), [x]
    x_type, y_type = draw(types()), draw(types())
    x = values(draw, shape, x_type.dtype)
    if kind == "sum":
        return one_op(ops.CumSum(axis), {"x": (shape, x_type)}, y_type), [x]
    op = ops.TopK(axis, draw(st.integers(1, shape[axis])), draw(st.booleans()))
    return one_op(op, {"x": (shape, x_type)}, INT64), [x]


@st.composite
def samples(draw: Any) -> Case:
    """Sampled images; some grids reach far beyond them."""
    x_type, y_type, grid_type = draw(types()), draw(types()), draw(types())
    batch, size, points = draw(st.integers(1, 2)), (draw(SIZES), draw(SIZES)), (draw(SIZES), draw(SIZES))
    shapes = ((batch, draw(st.sampled_from([1, 3, 16, 33])), *size), (batch, *points, 2))
    op = ops.GridSample(
        draw(st.sampled_from(["bilinear", "nearest", "bicubic"])),
        draw(st.sampled_from(["zeros", "border", "reflection"])),
        draw(st.booleans()),
    )
    x, grid = values(draw, shapes[0], x_type.dtype), values(draw, shapes[1], grid_type.dtype)
    return one_op(op, {"x": (shapes[0], x_type), "grid": (shapes[1], grid_type)}, y_type), [x, grid]


def _movement(draw: Any, kind: str, shape: tuple[int, ...], axis: int) -> ops.AnyOp:
    if kind == "slice":
        start = draw(st.integers(0, shape[axis] - 1))
        return ops.Slice(axis, start, draw(st.sampled_from([None, shape[axis]])), draw(st.integers(1, 3)))
    if kind == "transpose":
        return ops.Transpose(tuple(draw(st.permutations(range(len(shape))))))
    if kind == "expand":
        return ops.Expand((3, 2, *(-1,) * len(shape)))
    if kind == "reshape":
        return ops.Reshape((-1, shape[axis]))
    mode = draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
    limit = {"reflect": shape[axis] - 1, "circular": shape[axis]}.get(mode, 4)
    begin, end = [0] * len(shape), [0] * len(shape)
    begin[axis] = draw(st.integers(0, min(4, limit)))
    end[axis] = draw(st.integers(1 - shape[axis] if mode == "constant" else 0, min(4, limit)))
    return ops.Pad(tuple(begin), tuple(end), mode, draw(st.sampled_from([0.0, 1.0, -2.0])))
