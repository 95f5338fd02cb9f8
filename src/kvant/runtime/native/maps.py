"""People in maps of their parts and fields of their limbs, found by the C library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_double, c_float, c_int64, c_void_p
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvant.runtime.native.filters import Filter, FilterRecord
from kvant.runtime.native.library import load_library, refusal

Float32Array = npt.NDArray[np.float32]
Pair = tuple[float, float]


class Maps(ctypes.Structure):
    """kvant_maps."""

    _fields_ = [
        ("data", c_void_p), ("height", c_int64), ("width", c_int64), ("rows", FilterRecord), ("columns", FilterRecord),
    ]  # fmt: skip


class Fields(ctypes.Structure):
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


class PeopleRules(ctypes.Structure):
    """kvant_people_rules: which peaks, lines and people are left out."""

    _fields_ = [
        ("threshold", c_float), ("most", c_int64), ("lines", LineRules), ("parts", c_int64), ("confidence", c_double),
    ]  # fmt: skip


class _SkeletonRecord(ctypes.Structure):
    """kvant_skeleton."""

    _fields_ = [("parts", c_int64), ("limbs", c_int64), ("founding", c_int64), ("limb", c_void_p)]


class _Picture(ctypes.Structure):
    """kvant_picture."""

    _fields_ = [("steps", c_double * 2), ("scale", c_float * 2), ("size", c_float * 2)]


class Skeleton:
    """So many parts, and limbs: the parts where each starts and ends, and the channels of its field's x and y.

    Limbs from number `founding` on join what is there, and begin nothing.
    """

    def __init__(self, parts: int, limbs: Sequence[Sequence[int]], founding: int) -> None:
        self.parts = parts
        self._limbs = np.array(limbs, np.int64)
        self.record = _SkeletonRecord(parts, len(limbs), founding, self._limbs.ctypes.data)


class Scale(NamedTuple):
    """How the maps of one scale lie: their size in cells, what interpolates rows and columns, and the fields' place.

    A peak, times `scale` and plus `shift` (x, y), is a point in cells of the fields.
    """

    size: tuple[int, int]
    rows: Filter
    columns: Filter
    scale: Pair
    shift: Pair


class View(NamedTuple):
    """Where peaks lie, x and y: `steps` from one result of interpolation to the next, `scale` in a pixel of a picture.

    `size` is the picture's in pixels.
    """

    steps: Pair
    scale: Pair
    size: tuple[int, int]


class PeopleFinder:
    """Finds people in maps of some sizes; it may be shared by threads. See `kvant_people`.

    Raises:
        BackendError: the library is missing.
    """

    def __init__(self, skeleton: Skeleton, rules: PeopleRules, scales: Sequence[Scale], view: View) -> None:
        self._library = load_library()
        self._keep = skeleton, scales  # the records point to their memory
        self._parts = skeleton.parts
        self._maps = (Maps * len(scales))(
            *(Maps(None, *own.size, own.rows.record, own.columns.record) for own in scales)
        )
        self._fields = (Fields * len(scales))(*(Fields(None, *own.size, own.scale, own.shift) for own in scales))
        self._skeleton, self._rules, self._picture = skeleton.record, rules, _Picture(*view)

    def __call__(
        self, maps: Sequence[Float32Array], fields: Sequence[Float32Array]
    ) -> tuple[Float32Array, list[float]]:
        """Key points, people x parts x 3 (x, y, height; zeros if not found), and scores, best first.

        `maps` and `fields` are channels x height x width, one of each for each scale.

        Raises:
            BackendError: the library refuses them.
        """
        held = [[np.require(array, np.float32, ["C", "A"]) for array in arrays] for arrays in (maps, fields)]
        records = [type(record).from_buffer_copy(record) for record in (self._maps, self._fields)]
        for arrays, entries in zip(held, records, strict=True):
            for array, entry in zip(arrays, entries, strict=True):
                entry.data = array.ctypes.data
        room = max(0, self._rules.most) * self._parts // 2  # a person has two peaks or more
        keypoints, scores, found = np.empty((room, self._parts, 3), np.float32), np.empty(room), c_int64(0)
        status = self._library.kvant_people(
            c_int64(len(maps)), *records, c_int64(len(held[1][0])), byref(self._skeleton), byref(self._rules),
            byref(self._picture), c_int64(room), c_void_p(keypoints.ctypes.data), c_void_p(scores.ctypes.data),
            byref(found),
        )  # fmt: skip
        if status != 0:
            raise refusal("these maps", status)
        return keypoints[: found.value], scores[: found.value].tolist()
