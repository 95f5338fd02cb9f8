"""Reference: elements move and never change."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import InputError
from kvant.runtime import places, steps
from kvant.runtime.arithmetic import Int64

Array = npt.NDArray[Any]


def copy(work: steps.Copy, x: Array) -> Array:
    """Slices, transpositions and broadcasts: ``out[i, j, ...] = x[offset + i * strides[0] + j * strides[1] + ...]``."""
    return np.take(x.reshape(-1), work.offset + _offsets(work.shape, work.strides))


def concat(work: steps.Concat, *inputs: Array) -> Array:
    """Rows side by side."""
    return np.concatenate([x.reshape(work.outer, -1) for x in inputs], axis=1)


def index(work: steps.Index, x: Array) -> Array:
    """Padding and nearest resizing: one table of positions for each axis, -1 for the fill value."""
    out = x.reshape(work.shape)
    for axis, table in enumerate(work.tables):
        out = np.take(out, np.maximum(table, 0), axis=axis)
    for axis, table in enumerate(work.tables):
        out[(slice(None),) * axis + (table < 0,)] = work.fill
    return out


def gather(work: steps.Gather, x: Array, indices: Int64) -> Array:
    """Rows of x by index; negative ones count from the end.

    Raises:
        InputError: an index is out of range.
    """
    named = _from_the_front(indices.reshape(-1), work.size)
    return np.take(x.reshape(work.outer, work.size, work.inner), named, axis=1)


def pick(work: places.Pick, x: Array, indices: Int64) -> Array:
    """An element for each index.

    Raises:
        InputError: an index is out of range.
    """
    named = _from_the_front(indices.reshape(-1), work.size)
    at = named[_offsets(work.shape, work.strides_indices)]
    return np.take(x.reshape(-1), _offsets(work.shape, work.strides_x) + work.step * at)


def _from_the_front(indices: Int64, size: int) -> Int64:
    outside = indices[(indices < -size) | (indices >= size)]
    if outside.size:
        raise InputError(f"index {outside[0]} is out of range for an axis of {size}")
    return np.asarray(indices % size, np.int64)


def _offsets(shape: tuple[int, ...], strides: tuple[int, ...]) -> Int64:
    """``i * strides[0] + j * strides[1] + ...`` for each element."""
    position = np.zeros(shape, np.int64)
    for axis, stride in enumerate(strides):
        steps_along = np.arange(shape[axis]) * stride
        position += steps_along.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return position
