"""Reference: pooling and interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.runtime import steps
from kvant.runtime.arithmetic import Int64
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
