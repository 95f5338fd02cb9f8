"""Interpolation and averages along an axis, and pictures at another size, by the C library."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int64, c_void_p
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from kvant.runtime.native.library import load_library, refusal

Picture = npt.NDArray[np.uint8]


class FilterRecord(ctypes.Structure):
    """kvant_filter."""

    _fields_ = [("count", c_int64), ("terms", c_int64), ("first", c_void_p), ("weights", c_void_p)]


class Filter:
    """Results along an axis: number i is the sum of `weights[i]` times the cells from `first[i]` on.

    `weights` is results x terms.
    """

    def __init__(self, first: npt.NDArray[np.integer[Any]], weights: npt.NDArray[np.floating[Any]]) -> None:
        self._first = np.ascontiguousarray(first, np.int64)
        self._weights = np.ascontiguousarray(weights, np.float32)
        self.record = FilterRecord(*weights.shape, self._first.ctypes.data, self._weights.ctypes.data)

    @classmethod
    def from_matrix(cls, matrix: npt.NDArray[np.floating[Any]]) -> Self:
        """A filter by the weights of all cells, results x cells, most of them 0."""
        used = matrix != 0
        begin, last = used.argmax(axis=1), matrix.shape[1] - 1 - used[:, ::-1].argmax(axis=1)
        terms = int((last - begin).max()) + 1
        first = np.minimum(begin, matrix.shape[1] - terms)
        return cls(first, np.take_along_axis(matrix, first[:, np.newaxis] + np.arange(terms), axis=1))


def resample(picture: Picture, rows: Filter, columns: Filter) -> Picture:
    """A picture, H x W or H x W x 3, uint8, at another size: see `kvant_resample`.

    Raises:
        BackendError: the library is missing, or refuses the picture.
    """
    inner = picture.strides[1:] == (3, 1)[3 - picture.ndim :] if picture.ndim in (2, 3) else False
    source = picture if inner and picture.strides[0] > 0 else np.ascontiguousarray(picture)
    channels = 1 if source.ndim == 2 else source.shape[2]
    result = np.empty((rows.record.count, columns.record.count, *source.shape[2:]), np.uint8)
    status = load_library().kvant_resample(
        c_int64(source.shape[0]), c_int64(source.shape[1]), c_int64(channels), c_void_p(source.ctypes.data),
        c_int64(source.strides[0]), byref(rows.record), byref(columns.record), c_void_p(result.ctypes.data),
        c_int64(columns.record.count * channels),
    )  # fmt: skip
    if status != 0:
        raise refusal("this picture", status)
    return result
