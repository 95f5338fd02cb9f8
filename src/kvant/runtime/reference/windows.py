"""Reference: pooling, interpolation and sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.runtime import places, steps
from kvant.runtime.arithmetic import Float64, Int64
from kvant.runtime.reference.elementwise import centred, requantize

Array = npt.NDArray[Any]


def _fold(x: Array, axis: int, windows: steps.Windows, fold: np.ufunc, neutral: int) -> Array:
    """Fold every window of one axis: position after position, windows that have ended take ``neutral``."""
    length = int(np.max((windows.stop - windows.start + windows.step - 1) // windows.step, initial=1))
    result = np.full([len(windows.start) if at == axis else size for at, size in enumerate(x.shape)], neutral, x.dtype)
    for position in range(length):
        taken = windows.start + position * windows.step
        inside = (taken < windows.stop).reshape([-1 if at == axis else 1 for at in range(x.ndim)])
        values = np.take(x, np.minimum(taken, x.shape[axis] - 1), axis=axis)
        result = fold(result, np.where(inside, values, x.dtype.type(neutral)))
    return result


def max_pool(work: steps.MaxPool, x: Array) -> Array:
    """The largest integer of each window; windows hold positions inside the input only."""
    lowest = int(np.iinfo(x.dtype).min)
    rows = _fold(x.reshape(work.outer, *work.size, work.inner), 1, work.rows, np.maximum, lowest)
    return _fold(rows, 2, work.columns, np.maximum, lowest)


def mean_pool(work: steps.MeanPool, x: Array) -> Array:
    """Exact sums of ``q - zero_point`` over each window, requantized by a multiplier that divides by the count."""
    rows = _fold(centred(x, work.zero_point).reshape(work.outer, *work.size, work.inner), 1, work.rows, np.add, 0)
    sums = _fold(rows, 2, work.columns, np.add, 0)
    return requantize(sums, work.multipliers[..., None], work.target)


def resize(work: steps.Resize, x: Array) -> Array:
    """Linear interpolation with integer weights, exact, along columns and rows; then requantized."""
    pixels = centred(x, work.zero_point).reshape(work.outer, *work.size, work.inner)
    sums = _interpolate(_interpolate(pixels, 2, work.columns), 1, work.rows)
    return requantize(sums, work.multiplier, work.target)


def _interpolate(x: Int64, axis: int, taps: steps.Taps) -> Int64:
    weight = taps.weight.reshape([-1 if at == axis else 1 for at in range(x.ndim)])
    lower, upper = np.take(x, taps.lower, axis=axis), np.take(x, taps.upper, axis=axis)
    return lower * (taps.one - weight) + upper * weight


# Places are moved this close before they become integers: no image is larger.
_FARTHEST = 2.0**50


def grid_sample(work: places.GridSample, x: Array, grid: Array) -> Array:
    """Sums of pixels around each place, the weights exact integers; requantized. A pixel outside has weight 0."""
    pixels = centred(x, work.zero_point).reshape(work.batch, -1, work.channels)
    # f64(q - z) * f64(scale) is exact.
    at = centred(grid, work.grid_zero).astype(np.float64).reshape(work.batch, work.points, 2) * work.scale
    height, width = work.size
    columns, row_weights = _pixels(work, at[..., 0], width), _pixels(work, at[..., 1], height)
    sums = np.zeros((work.batch, work.points, work.channels), np.int64)
    images = np.arange(work.batch)[:, None]
    for row, down in zip(*row_weights, strict=True):
        for column, across in zip(*columns, strict=True):
            sums += pixels[images, row * width + column] * (down * across)[..., None]
    return requantize(sums, work.multiplier, work.target)


def _pixels(work: places.GridSample, at: Float64, size: int) -> tuple[list[Int64], list[Int64]]:
    """The pixels along an axis that count at each place, and their weights."""
    phases, taps = work.weights.shape
    place = (at + 1.0) * ((size - 1) * 0.5) if work.align_corners else ((at + 1.0) * size - 1.0) * 0.5
    whole = np.rint(np.minimum(np.maximum(place * phases, -_FARTHEST), _FARTHEST)).astype(np.int64)
    weights = work.weights[whole % phases].astype(np.int64)
    found = [_inside(work, whole // phases + work.first + tap, size) for tap in range(taps)]
    return [index for index, _ in found], [weights[..., tap] * inside for tap, (_, inside) in enumerate(found)]


def _inside(work: places.GridSample, index: Int64, size: int) -> tuple[Int64, npt.NDArray[np.bool_]]:
    """The pixel that stands for ``index``, and whether it counts."""
    last = size - 1
    if work.padding == "reflection" and work.align_corners:
        turned = index % max(2 * last, 1)
        index = last - np.abs(last - turned)
    elif work.padding == "reflection":
        turned = index % (2 * size)
        index = np.minimum(turned, 2 * size - 1 - turned)
    counts = (index >= 0) & (index <= last) | (work.padding != "zeros")
    return np.minimum(np.maximum(index, 0), last), counts
