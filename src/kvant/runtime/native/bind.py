"""From steps to calls of the C library: which function, and its arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import byref, c_float, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import BackendError
from kvant.runtime import arithmetic, steps
from kvant.runtime.native import library
from kvant.runtime.native.packed import Packed

Array = npt.NDArray[Any]
# A function's name and its arguments; `keep` holds what they point to.
Call = tuple[str, list[Any], list[Any]]

_DTYPES = {"uint8": 0, "int8": 1, "int16": 2}
_FUNCTIONS = {"add": 0, "sub": 1, "mul": 2, "div": 3, "min": 4, "max": 5}


def _pointer(array: Array) -> c_void_p:
    return c_void_p(array.ctypes.data)


def _target(target: arithmetic.Target) -> Any:
    return byref(library.Target(_DTYPES[target.dtype], target.zero_point, target.low, target.high))


def _source(x: Array, zero_point: int = 0) -> Any:
    if x.dtype.name not in _DTYPES:
        raise BackendError(f"the native library reads uint8, int8 and int16, not {x.dtype}")
    return byref(library.Source(x.ctypes.data, _DTYPES[x.dtype.name], zero_point))


def _integers(values: Sequence[int]) -> Any:
    return (c_int64 * len(values))(*values)


def _quantize(work: steps.Quantize, inputs: Sequence[Array], y: Array) -> Call:
    args = [c_int64(y.size), _pointer(inputs[0]), c_float(work.scale), _target(work.target), _pointer(y)]
    return "quantize", args, []


def _dequantize(work: steps.Dequantize, inputs: Sequence[Array], y: Array) -> Call:
    return "dequantize", [c_int64(y.size), _source(inputs[0], work.zero_point), c_float(work.scale), _pointer(y)], []


def _rescale(work: steps.Rescale, inputs: Sequence[Array], y: Array) -> Call:
    source = _source(inputs[0], work.zero_point)
    return "rescale", [c_int64(y.size), source, c_float(work.multiplier), _target(work.target), _pointer(y)], []


def _table(work: steps.Table, inputs: Sequence[Array], y: Array) -> Call:
    x, table = inputs
    sizes = [c_int64(work.outer), c_int64(work.channels), c_int64(work.inner)]
    return "table", [*sizes, _source(x), _pointer(table), c_int64(y.itemsize), _pointer(y)], []


def _binary(work: steps.Binary, inputs: Sequence[Array], y: Array) -> Call:
    a, b = inputs
    args = [
        c_int32(_FUNCTIONS[work.fn]), c_int64(len(work.shape)), _integers(work.shape),
        _source(a, work.zero_a), _integers(work.strides_a), c_float(work.multiplier_a),
        _source(b, work.zero_b), _integers(work.strides_b), c_float(work.multiplier_b), _target(work.target),
        _pointer(y),
    ]  # fmt: skip
    return "binary", args, []


def _copy(work: steps.Copy, inputs: Sequence[Array], y: Array) -> Call:
    rank, shape, strides = c_int64(len(work.shape)), _integers(work.shape), _integers(work.strides)
    item = c_int64(y.itemsize)
    return "copy", [rank, shape, strides, c_int64(work.offset), item, _pointer(inputs[0]), _pointer(y)], []


def _concat(work: steps.Concat, inputs: Sequence[Array], y: Array) -> Call:
    pointers = (c_void_p * len(inputs))(*(x.ctypes.data for x in inputs))
    sizes = _integers(work.sizes)
    return "concat", [c_int64(work.outer), c_int64(len(inputs)), sizes, c_int64(y.itemsize), pointers, _pointer(y)], []


def _index(work: steps.Index, inputs: Sequence[Array], y: Array) -> Call:
    tables = (c_void_p * len(work.tables))(*(table.ctypes.data for table in work.tables))
    fill = np.asarray([work.fill]).astype(y.dtype)
    counts = _integers([len(table) for table in work.tables])
    args = [
        c_int64(len(work.shape)), _integers(work.shape), counts, tables, c_int64(y.itemsize), _pointer(inputs[0]),
        _pointer(fill), _pointer(y),
    ]  # fmt: skip
    return "index", args, [fill]


def _windows(windows: steps.Windows) -> Any:
    start, stop = windows.start.ctypes.data, windows.stop.ctypes.data
    return byref(library.Windows(len(windows.start), start, stop, windows.step))


def _planes(work: steps.MaxPool | steps.MeanPool | steps.Resize) -> list[Any]:
    return [c_int64(work.outer), c_int64(work.size[0]), c_int64(work.size[1])]


def _max_pool(work: steps.MaxPool, inputs: Sequence[Array], y: Array) -> Call:
    args = [*_planes(work), _windows(work.rows), _windows(work.columns), _source(inputs[0]), _pointer(y)]
    return "max_pool", args, []


def _mean_pool(work: steps.MeanPool, inputs: Sequence[Array], y: Array) -> Call:
    args = [
        *_planes(work), _windows(work.rows), _windows(work.columns), _source(inputs[0], work.zero_point),
        _pointer(work.multipliers), _target(work.target), _pointer(y),
    ]  # fmt: skip
    return "mean_pool", args, []


def _taps(taps: steps.Taps) -> Any:
    arrays = (taps.lower, taps.upper, taps.weight)
    return byref(library.Taps(len(taps.lower), *(array.ctypes.data for array in arrays), taps.one))


def _resize(work: steps.Resize, inputs: Sequence[Array], y: Array) -> Call:
    args = [
        *_planes(work), _taps(work.rows), _taps(work.columns), _source(inputs[0], work.zero_point),
        c_float(work.multiplier), _target(work.target), _pointer(y),
    ]  # fmt: skip
    return "resize", args, []


def _middle(work: steps.Sum | steps.Extreme | steps.Softmax | steps.ArgMax) -> list[Any]:
    return [c_int64(work.outer), c_int64(work.size), c_int64(work.inner)]


def _sum(work: steps.Sum, inputs: Sequence[Array], y: Array) -> Call:
    source = _source(inputs[0], work.zero_point)
    return "sum", [*_middle(work), source, c_float(work.multiplier), _target(work.target), _pointer(y)], []


def _extreme(work: steps.Extreme, inputs: Sequence[Array], y: Array) -> Call:
    return "extreme", [c_int32(_FUNCTIONS[work.fn]), *_middle(work), _source(inputs[0]), _pointer(y)], []


def _softmax(work: steps.Softmax, inputs: Sequence[Array], y: Array) -> Call:
    x, exponentials = inputs
    scale, target = c_float(work.inverse_scale), _target(work.target)
    return "softmax", [*_middle(work), _source(x), _pointer(exponentials), scale, target, _pointer(y)], []


def _normalize(work: steps.Normalize, inputs: Sequence[Array], y: Array) -> Call:
    x, gamma, beta = inputs
    norm = library.Norm(work.rows, work.groups, work.size, work.inner, work.scale, work.eps, work.output_scale)
    source = _source(x, work.zero_point)
    return "normalize", [byref(norm), source, _pointer(gamma), _pointer(beta), _target(work.target), _pointer(y)], []


def _gather(work: steps.Gather, inputs: Sequence[Array], y: Array) -> Call:
    x, indices = inputs
    bad = c_int64(0)
    args = [
        c_int64(work.outer), c_int64(work.size), c_int64(work.inner), c_int64(y.itemsize), _pointer(x),
        c_int64(work.count), _pointer(indices), _pointer(y), byref(bad),
    ]  # fmt: skip
    return "gather", args, [bad]


def _arg_max(work: steps.ArgMax, inputs: Sequence[Array], y: Array) -> Call:
    return "arg_max", [*_middle(work), _source(inputs[0]), _pointer(y)], []


def _conv(work: steps.Conv, inputs: Sequence[Array], y: Array, packed: Packed) -> Call:
    pair = c_int64 * 2
    shape = library.ConvShape(
        work.batch, work.channels, pair(*work.size), pair(*work.output_size), pair(*work.kernel), pair(*work.strides),
        pair(*work.pads), pair(*work.dilations), int(work.transposed),
    )  # fmt: skip
    source = _source(inputs[0], work.zero_point)
    return "conv", [byref(shape), packed.pointer, source, _target(work.target), _pointer(y)], [packed]


def _linear(work: steps.Linear, inputs: Sequence[Array], y: Array, packed: Packed) -> Call:
    source = _source(inputs[0], work.zero_point)
    return "linear", [c_int64(work.rows), packed.pointer, source, _target(work.target), _pointer(y)], [packed]


def _matmul(work: steps.MatMul, inputs: Sequence[Array], y: Array) -> Call:
    a, b = inputs
    sums = library.Sums(work.terms, int(work.bound > arithmetic.INT32_MAX))
    args = [
        c_int64(work.m), c_int64(work.k), c_int64(work.n), c_int64(len(work.index_a)), _pointer(work.index_a),
        _pointer(work.index_b), _source(a, work.zero_a), _source(b, work.zero_b), c_float(work.multiplier),
        byref(sums), _target(work.target), _pointer(y),
    ]  # fmt: skip
    return "matmul", args, []


PACKED: dict[type, Callable[..., Call]] = {steps.Conv: _conv, steps.Linear: _linear}
PLAIN: dict[type, Callable[..., Call]] = {
    steps.Quantize: _quantize, steps.Dequantize: _dequantize, steps.Rescale: _rescale, steps.Table: _table,
    steps.Binary: _binary, steps.MatMul: _matmul, steps.Copy: _copy, steps.Concat: _concat, steps.Index: _index,
    steps.MaxPool: _max_pool, steps.MeanPool: _mean_pool, steps.Sum: _sum, steps.Extreme: _extreme,
    steps.Resize: _resize, steps.Softmax: _softmax, steps.Normalize: _normalize, steps.Gather: _gather,
    steps.ArgMax: _arg_max,
}  # fmt: skip


def bad_position(keep: Sequence[Any]) -> int:
    """Where ``kvant_gather`` found its first bad index."""
    value: ctypes.c_int64 = keep[0]
    return value.value
