"""Peaks of maps and lines along fields, found by the C library: what pose decoding spends its time on."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_double, c_float, c_int64, c_void_p
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvant.errors import BackendError
from kvant.runtime.native.library import STATUS, load_library

Float32Array = npt.NDArray[np.float32]
LINE = np.dtype(
    [("kind", np.int32), ("start", np.int32), ("end", np.int32), ("score", np.float32), ("strength", np.float32)]
)
"""kvant_line."""


class _Filter(ctypes.Structure):
    """kvant_filter."""

    _fields_ = [("count", c_int64), ("terms", c_int64), ("first", c_void_p), ("weights", c_void_p)]


class _Maps(ctypes.Structure):
    """kvant_maps."""

    _fields_ = [
        ("data", c_void_p), ("height", c_int64), ("width", c_int64), ("rows", _Filter), ("columns", _Filter),
    ]  # fmt: skip


class _Fields(ctypes.Structure):
    """kvant_fields."""

    _fields_ = [
        ("data", c_void_p), ("height", c_int64), ("width", c_int64), ("scale", c_float * 2), ("shift", c_float * 2),
    ]  # fmt: skip


class LineRules(ctypes.Structure):
    """kvant_line_rules: which lines are left out, and what the others count."""

    _fields_ = [
        ("points", c_int64), ("threshold", c_float), ("failures", c_int64), ("long_line", c_float),
        ("peak_weight", c_float),
    ]  # fmt: skip


class Filter:
    """What interpolates along an axis: `matrix` is results x cells, mostly zeros."""

    def __init__(self, matrix: npt.NDArray[np.floating[Any]]) -> None:
        used = matrix != 0
        first, last = used.argmax(axis=1), matrix.shape[1] - 1 - used[:, ::-1].argmax(axis=1)
        terms = int((last - first).max()) + 1
        self._first = np.minimum(first, matrix.shape[1] - terms).astype(np.int64)
        cells = self._first[:, np.newaxis] + np.arange(terms)
        self._weights = np.take_along_axis(matrix, cells, axis=1).astype(np.float32)
        self.record = _Filter(len(matrix), terms, self._first.ctypes.data, self._weights.ctypes.data)


class Interpolated(NamedTuple):
    """Maps of a picture, channels x height x width, float32, and what interpolates them."""

    maps: Float32Array
    rows: Filter
    columns: Filter


class Placed(NamedTuple):
    """Fields of a picture, channels x height x width, float32; points lie at `scale` (x, y) times theirs + `shift`."""

    fields: Float32Array
    scale: tuple[float, float]
    shift: tuple[float, float]


def find_peaks(
    maps: Sequence[Interpolated], threshold: float, most: int, steps: tuple[float, float]
) -> tuple[Float32Array, npt.NDArray[np.int64]]:
    """Local maxima of the mean of interpolated maps: see `kvant_peaks`.

    Returns x, y and height of each, n x 3, channel after channel, and where each channel's begin and end.

    Raises:
        BackendError: the library is missing, or refuses the maps.
    """
    arrays = [np.require(each.maps, np.float32, ["C", "A"]) for each in maps]
    records = (_Maps * len(maps))(
        *(
            _Maps(array.ctypes.data, *array.shape[1:], each.rows.record, each.columns.record)
            for array, each in zip(arrays, maps, strict=True)
        )
    )
    channels = len(arrays[0])
    most = min(most, maps[0].rows.record.count * maps[0].columns.record.count)
    peaks, bounds = np.empty((channels * most, 3), np.float32), np.empty(channels + 1, np.int64)
    status = load_library().kvant_peaks(
        c_int64(len(maps)), records, c_int64(channels), c_float(threshold), c_int64(most), (c_double * 2)(*steps),
        c_void_p(peaks.ctypes.data), c_void_p(bounds.ctypes.data),
    )  # fmt: skip
    _check(status, "peaks")
    return peaks[: bounds[-1]], bounds


def find_lines(
    fields: Sequence[Placed],
    peaks: Float32Array,
    bounds: npt.NDArray[np.int64],
    kinds: npt.NDArray[np.int64],
    rules: LineRules,
) -> npt.NDArray[np.void]:
    """The lines between peaks that fields support, the strongest first: see `kvant_lines`.

    `kinds` has a row for each kind: the channels of its starts and ends, and those of its field's x and y.

    Raises:
        BackendError: the library is missing, or refuses the fields.
    """
    arrays = [np.require(each.fields, np.float32, ["C", "A"]) for each in fields]
    records = (_Fields * len(fields))(
        *(
            _Fields(array.ctypes.data, *array.shape[1:], each.scale, each.shift)
            for array, each in zip(arrays, fields, strict=True)
        )
    )
    counts = np.diff(bounds)
    lines, found = np.empty(int(counts[kinds[:, 0]] @ counts[kinds[:, 1]]), LINE), c_int64(0)
    status = load_library().kvant_lines(
        c_int64(len(fields)), records, c_int64(len(arrays[0])), c_int64(len(counts)), c_void_p(peaks.ctypes.data),
        c_void_p(bounds.ctypes.data), c_int64(len(kinds)), c_void_p(kinds.ctypes.data), byref(rules),
        c_void_p(lines.ctypes.data), byref(found),
    )  # fmt: skip
    _check(status, "lines")
    return lines[: found.value]


def _check(status: int, name: str) -> None:
    if status != 0:
        raise BackendError(f"the native library refused {name}: {STATUS.get(status, status)}")
