"""From steps to calls of the C library: which function, and its arguments."""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections.abc import Callable, Sequence
from ctypes import c_int64, c_void_p
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import BackendError
from kvant.runtime import arithmetic, places, steps
from kvant.runtime.native import library
from kvant.runtime.native.packed import Packed

Array = npt.NDArray[Any]
# A number, or what is passed by its address: an array, a structure.
Argument = int | float | Array | ctypes.Structure | ctypes.Array[Any] | c_int64 | Packed
# A function's name and its arguments in order.
Call = tuple[str, list[Argument]]

_FUNCTIONS = {"add": 0, "sub": 1, "mul": 2, "div": 3, "min": 4, "max": 5, "mod": 6}
_PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}


def encode(calls: Sequence[Call]) -> array[int]:
    """The calls as an array of kvant_call: for each the function's number, then a slot of 64 bits for each argument.

    It holds addresses only: whoever runs it keeps what the calls refer to.
    """
    slots = array("Q")
    for name, arguments in calls:
        slots.append(library.NUMBER[name])
        slots.extend([_slot(argument) for argument in arguments])
        slots.extend([0] * (library.MOST_ARGUMENTS - len(arguments)))
    return slots


def slots_of(array: Array, calls: Sequence[Call]) -> list[int]:
    """Where ``encode`` puts the address of an argument."""
    return [
        number * (1 + library.MOST_ARGUMENTS) + 1 + position
        for number, (_, arguments) in enumerate(calls)
        for position, argument in enumerate(arguments)
        if argument is array
    ]


def _slot(argument: Argument) -> int:
    if type(argument) is int:
        return argument & 0xFFFF_FFFF_FFFF_FFFF
    if type(argument) is np.ndarray:
        return int(argument.ctypes.data)
    if type(argument) is float:
        return int.from_bytes(struct.pack("<f", argument), "little")
    if type(argument) is Packed:
        return argument.address
    return ctypes.addressof(argument)  # type: ignore[arg-type]


@lru_cache(maxsize=4096)
def _target(target: arithmetic.Target) -> library.Target:
    return library.Target(library.DTYPES[target.dtype], target.zero_point, target.low, target.high)


def _source(x: Array, zero_point: int = 0) -> library.Source:
    if x.dtype.name not in library.DTYPES:
        raise BackendError(f"the native library reads uint8, int8 and int16, not {x.dtype}")
    return library.Source(x.ctypes.data, library.DTYPES[x.dtype.name], zero_point)


def _integers(values: Sequence[int]) -> ctypes.Array[Any]:
    return (c_int64 * len(values))(*values)


def _quantize(work: steps.Quantize, inputs: Sequence[Array], y: Array) -> Call:
    sizes: list[Argument] = [work.outer, work.channels, work.inner]
    return "quantize", [*sizes, inputs[0], work.scale, int(bool(work.given)), _target(work.target), y]


def _dequantize(work: steps.Dequantize, inputs: Sequence[Array], y: Array) -> Call:
    return "dequantize", [y.size, _source(inputs[0], work.zero_point), work.scale, y]


def _rescale(work: steps.Rescale, inputs: Sequence[Array], y: Array) -> Call:
    source = _source(inputs[0], work.zero_point)
    return "rescale", [y.size, source, work.multiplier, _target(work.target), y]


def _table(work: steps.Table, inputs: Sequence[Array], y: Array) -> Call:
    x, table = inputs
    return "table", [work.outer, work.channels, work.inner, _source(x), table, y.itemsize, y]


def _binary(work: steps.Binary, inputs: Sequence[Array], y: Array) -> Call:
    a, b = inputs
    args: list[Argument] = [
        _FUNCTIONS[work.fn], len(work.shape), _integers(work.shape), _source(a, work.zero_a),
        _integers(work.strides_a), work.multiplier_a, _source(b, work.zero_b), _integers(work.strides_b),
        work.multiplier_b, _target(work.target), y,
    ]  # fmt: skip
    return "binary", args


def _copy(work: steps.Copy, inputs: Sequence[Array], y: Array) -> Call:
    shape, strides = _integers(work.shape), _integers(work.strides)
    return "copy", [len(work.shape), shape, strides, work.offset, y.itemsize, inputs[0], y]


def _concat(work: steps.Concat, inputs: Sequence[Array], y: Array) -> Call:
    """Inputs that lie in the output already have a null pointer."""
    pitch, address, pointers = _pitch(y, sum(work.sizes)), y.ctypes.data, []
    for x, size in zip(inputs, work.sizes, strict=True):
        present = x.ctypes.data == address and _pitch(x, size) == pitch
        pointers.append(0 if present else x.ctypes.data)
        address += size * y.itemsize
    strides = [_pitch(x, size) for x, size in zip(inputs, work.sizes, strict=True)]
    args: list[Argument] = [
        work.outer, len(inputs), _integers(work.sizes), y.itemsize, (c_void_p * len(inputs))(*pointers),
        _integers(strides), y, pitch,
    ]  # fmt: skip
    return "concat", args


def _pitch(array: Array, channels: int) -> int:
    """Elements from one pixel to the next."""
    return channels if array.flags.c_contiguous else array.strides[-2] // array.itemsize


def _index(work: steps.Index, inputs: Sequence[Array], y: Array) -> Call:
    tables = (c_void_p * len(work.tables))(*(table.ctypes.data for table in work.tables))
    fill = np.asarray([work.fill]).astype(y.dtype)
    counts = _integers([len(table) for table in work.tables])
    args: list[Argument] = [
        len(work.shape), _integers(work.shape), counts, tables, y.itemsize, inputs[0], fill, y,
    ]  # fmt: skip
    return "index", args


def _windows(windows: steps.Windows) -> library.Windows:
    start, stop = windows.start.ctypes.data, windows.stop.ctypes.data
    return library.Windows(len(windows.start), start, stop, windows.step)


def _planes(work: steps.MaxPool | steps.MeanPool | steps.Resize) -> list[Argument]:
    return [work.outer, *work.size, work.inner]


def _max_pool(work: steps.MaxPool, inputs: Sequence[Array], y: Array) -> Call:
    return "max_pool", [*_planes(work), _windows(work.rows), _windows(work.columns), _source(inputs[0]), y]


def _mean_pool(work: steps.MeanPool, inputs: Sequence[Array], y: Array) -> Call:
    args: list[Argument] = [
        *_planes(work), _windows(work.rows), _windows(work.columns), _source(inputs[0], work.zero_point),
        work.multipliers, _target(work.target), y,
    ]  # fmt: skip
    return "mean_pool", args


def _taps(taps: steps.Taps) -> library.Taps:
    arrays = (taps.lower, taps.upper, taps.weight)
    return library.Taps(len(taps.lower), *(each.ctypes.data for each in arrays), taps.one)


def _resize(work: steps.Resize, inputs: Sequence[Array], y: Array) -> Call:
    args: list[Argument] = [
        *_planes(work), _taps(work.rows), _taps(work.columns), _source(inputs[0], work.zero_point),
        work.multiplier, _target(work.target), y,
    ]  # fmt: skip
    return "resize", args


def _middle(work: steps.Sum | steps.Extreme | steps.Softmax | steps.ArgMax) -> list[Argument]:
    return [work.outer, work.size, work.inner]


def _sum(work: steps.Sum, inputs: Sequence[Array], y: Array) -> Call:
    source = _source(inputs[0], work.zero_point)
    return "sum", [*_middle(work), source, work.multiplier, _target(work.target), y]


def _extreme(work: steps.Extreme, inputs: Sequence[Array], y: Array) -> Call:
    return "extreme", [_FUNCTIONS[work.fn], *_middle(work), _source(inputs[0]), y]


def _softmax(work: steps.Softmax, inputs: Sequence[Array], y: Array) -> Call:
    x, exponentials = inputs
    target = _target(work.target)
    return "softmax", [*_middle(work), _source(x), exponentials, work.inverse_scale, target, y]


def _normalize(work: steps.Normalize, inputs: Sequence[Array], y: Array) -> Call:
    x, gamma, beta = inputs
    norm = library.Norm(work.rows, work.groups, work.size, work.inner, work.scale, work.eps, work.output_scale)
    source = _source(x, work.zero_point)
    return "normalize", [norm, source, gamma, beta, _target(work.target), y]


def _gather(work: steps.Gather, inputs: Sequence[Array], y: Array) -> Call:
    x, indices = inputs
    bad = c_int64(0)
    args: list[Argument] = [
        work.outer, work.size, work.inner, y.itemsize, x, work.count, indices, y, bad,
    ]  # fmt: skip
    return "gather", args


def _arg_max(work: steps.ArgMax, inputs: Sequence[Array], y: Array) -> Call:
    if inputs[0].dtype == np.int64:
        return "int_arg_max", [*_middle(work), inputs[0], y]
    return "arg_max", [*_middle(work), _source(inputs[0]), y]


def conv(work: steps.Conv, inputs: Sequence[Array], y: Array, packed: Packed) -> Call:
    shape = _conv_shape(work, inputs[0], y, work.output_channels)
    return "conv", [shape, packed, inputs[0], _target(work.target), _addend(work, inputs), y]


def conv_pair(work: steps.ConvPair, inputs: Sequence[Array], y: Array, depthwise: Packed, pointwise: Packed) -> Call:
    first, second = work.depthwise, work.pointwise
    shape = _conv_shape(first, inputs[0], y, second.output_channels)
    args: list[Argument] = [
        shape, depthwise, inputs[0], _target(first.target), pointwise, _target(second.target),
        _addend(second, inputs), y,
    ]  # fmt: skip
    return "conv_pair", args


def _conv_shape(work: steps.Conv, x: Array, y: Array, outputs: int) -> library.ConvShape:
    pairs = [(c_int64 * 2)(*pair) for pair in (work.size, work.output_size, work.pads)]
    return library.ConvShape(work.batch, *pairs, _pitch(x, work.channels), _pitch(y, outputs))


def _addend(work: steps.Conv, inputs: Sequence[Array]) -> Argument:
    """Null where nothing is added."""
    if work.added is None:
        return 0
    added = work.added
    pointer = inputs[1].ctypes.data
    return library.Addend(pointer, added.zero_point, added.multiplier, added.added_multiplier, _target(added.target))


def _matmul(work: steps.MatMul, inputs: Sequence[Array], y: Array) -> Call:
    a, b = inputs
    sums = library.Sums(work.terms, int(work.bound > arithmetic.INT32_MAX))
    args: list[Argument] = [
        work.m, work.k, work.n, len(work.index_a), work.index_a, work.index_b, _source(a, work.zero_a),
        _source(b, work.zero_b), work.multiplier, sums, _target(work.target), y,
    ]  # fmt: skip
    return "matmul", args


def _float_conv(work: steps.FloatConv, inputs: Sequence[Array], y: Array) -> Call:
    pair = c_int64 * 2
    values, bias = work.weights.values, work.weights.bias
    layer = library.FloatLayer(
        work.output_channels, work.channels, values.shape[0], pair(*work.kernel), pair(*work.strides),
        pair(*work.dilations), values.ctypes.data, bias.ctypes.data, work.low, work.high,
    )  # fmt: skip
    shape = library.ConvShape(
        work.batch, pair(*work.size), pair(*work.output_size), pair(*work.pads), work.channels, work.output_channels
    )
    return "float_conv", [layer, shape, inputs[0], y]


def _dynamic_linear(work: steps.DynamicLinear, inputs: Sequence[Array], y: Array) -> Call:
    weights = work.weights
    layer = library.DynamicLayer(
        *weights.values.shape, weights.terms, weights.values.ctypes.data, weights.scales.ctypes.data,
        weights.bias.ctypes.data, work.low, work.high,
    )  # fmt: skip
    return "dynamic_linear", [layer, work.rows, inputs[0], y]


def _pick(work: places.Pick, inputs: Sequence[Array], y: Array) -> Call:
    x, indices = inputs
    args: list[Argument] = [
        len(work.shape), _integers(work.shape), _integers(work.strides_x), _integers(work.strides_indices), work.size,
        work.step, y.itemsize, x, indices.size, indices, y, c_int64(0),
    ]  # fmt: skip
    return "pick", args


def _top_k(work: places.TopK, inputs: Sequence[Array], y: Array) -> Call:
    sizes: list[Argument] = [work.outer, work.size, work.inner, work.count]
    return "top_k", [*sizes, int(work.largest), _source(inputs[0]), y]


def _cum_sum(work: places.CumSum, inputs: Sequence[Array], y: Array) -> Call:
    sizes: list[Argument] = [work.outer, work.size, work.inner]
    if work.target is None:
        return "int_cum_sum", [*sizes, inputs[0], y]
    return "cum_sum", [*sizes, _source(inputs[0], work.zero_point), work.multiplier, _target(work.target), y]


def _int_binary(work: places.IntBinary, inputs: Sequence[Array], y: Array) -> Call:
    a, b = inputs
    args: list[Argument] = [
        _FUNCTIONS[work.fn], len(work.shape), _integers(work.shape), a, _integers(work.strides_a), b,
        _integers(work.strides_b), y,
    ]  # fmt: skip
    return "int_binary", args


def _real(work: places.Real, inputs: Sequence[Array], y: Array) -> Call:
    return "real", [y.size, inputs[0], y]


def _grid_sample(work: places.GridSample, inputs: Sequence[Array], y: Array) -> Call:
    x, grid = inputs
    phases, taps = work.weights.shape
    sampling = library.Sampling(
        work.batch, (c_int64 * 2)(*work.size), work.channels, work.points, work.scale, int(work.align_corners),
        _PADDINGS[work.padding], work.first, taps, phases, work.weights.ctypes.data,
    )  # fmt: skip
    sources = [_source(x, work.zero_point), _source(grid, work.grid_zero)]
    return "grid_sample", [sampling, *sources, work.multiplier, _target(work.target), y]


CALLS: dict[type, Callable[..., Call]] = {
    steps.Quantize: _quantize, steps.Dequantize: _dequantize, steps.Rescale: _rescale, steps.Table: _table,
    steps.Binary: _binary, steps.MatMul: _matmul, steps.Copy: _copy, steps.Concat: _concat, steps.Index: _index,
    steps.MaxPool: _max_pool, steps.MeanPool: _mean_pool, steps.Sum: _sum, steps.Extreme: _extreme,
    steps.Resize: _resize, steps.Softmax: _softmax, steps.Normalize: _normalize, steps.Gather: _gather,
    steps.ArgMax: _arg_max, steps.FloatConv: _float_conv, steps.DynamicLinear: _dynamic_linear,
    places.Pick: _pick, places.TopK: _top_k, places.CumSum: _cum_sum, places.IntBinary: _int_binary,
    places.Real: _real, places.GridSample: _grid_sample,
}  # fmt: skip
