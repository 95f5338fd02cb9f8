"""Reference: elements move and never change."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import InputError
from kvant.runtime import steps
from kvant.runtime.arithmetic import Int64

Array = npt.NDArray[Any]


def copy(work: steps.Copy, x: Array) -> Array:
    """Slices, transpositions and broadcasts: ``out[i, j, ...] = x[offset + i * strides[0] + j * strides[1] + ...]``."""
    position = np.full(work.shape, work.offset, np.int64)
    for axis, stride in enumerate(work.strides):
        steps_along = np.arange(work.shape[axis]) * stride
        position += steps_along.reshape([-1 if other == axis else 1 for other in range(len(work.shape))])
    return np.take(x.reshape(-1), position)


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
    flat = indices.reshape(-1)
    outside = flat[(flat < -work.size) | (flat >= work.size)]
    if outside.size:
        raise InputError(f"index {outside[0]} is out of range for an axis of {work.size}")
    return np.take(x.reshape(work.outer, work.size, work.inner), flat % work.size, axis=1)
