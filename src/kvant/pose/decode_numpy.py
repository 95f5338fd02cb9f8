"""People in maps, vectorized over all candidates: what the C library does, to be read, and where it is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvant.pose.interpolation import interpolation
from kvant.pose.layout import JOINING_LIMBS, LIMBS, PARTS, Float32Array
from kvant.pose.maps import DecoderSettings, Maps, interpolated_size, middle_scale
from kvant.pose.person import Person
from kvant.pose.preprocess import Geometry

Indices = NDArray[np.intp]
_PAF_X, _PAF_Y = (np.array([limb[index] for limb in LIMBS]) for index in (2, 3))
_PARTS_OF_LIMB = np.array([limb[:2] for limb in LIMBS])


class _Peaks(NamedTuple):
    part: Indices
    xy: Float32Array
    score: Float32Array


class _Connections(NamedTuple):
    limb: Indices
    start: Indices
    end: Indices
    score: Float32Array


@dataclass
class _Group:
    """Parts of one person so far: part -> peak, and the sum of its limbs' scores."""

    members: dict[int, int] = field(default_factory=dict)
    limbs: float = 0.0


def find_people(maps: Sequence[Maps], settings: DecoderSettings) -> list[Person]:
    """See `decode_people`."""
    unit = middle_scale([each.geometry for each in maps])
    peaks = find_peaks(maps, unit, settings)
    people = [_to_person(group, peaks, unit, settings) for group in _assemble(connect(peaks, maps, unit, settings))]
    return sorted((person for person in people if person), key=lambda person: -person.score)


def find_peaks(maps: Sequence[Maps], unit: Geometry, settings: DecoderSettings) -> _Peaks:
    """Local maxima of the smoothed, interpolated heat maps, ordered by part, then by falling score."""
    size = interpolated_size(unit, settings)
    # Rows x parts x columns, within a border that is lower than any peak.
    smooth = np.empty((size[0] + 2, len(PARTS), size[1] + 2), np.float32)
    smooth[0] = smooth[-1] = smooth[:, :, 0] = smooth[:, :, -1] = -1
    inner = smooth[1:-1, :, 1:-1]
    first, *others = (_resampled(each, size, settings.smoothing * settings.upsampling) for each in maps)
    inner[:] = sum(others, start=first)
    if len(maps) > 1:
        inner /= np.float32(len(maps))
    flat, row = smooth.ravel(), smooth[0].size
    # Few values pass the threshold, so looking up their neighbours beats comparing whole maps.
    at = np.flatnonzero(flat > settings.part_threshold)
    # Of a plateau only the last value, in reading order, is a peak.
    for offset in (1, row - 1, row, row + 1):
        here = flat[at]
        at = at[(here >= flat[at - offset]) & (here > flat[at + offset])]
    dx = _vertex(flat[at - 1], flat[at], flat[at + 1])
    dy = _vertex(flat[at - row], flat[at], flat[at + row])
    y, part, x = np.unravel_index(at, smooth.shape)
    xy = np.empty((len(at), 2), np.float32)
    xy[:, 0] = (x - 0.5 + dx) / size[1] * (unit.resized[1] / unit.stride) - 0.5
    xy[:, 1] = (y - 0.5 + dy) / size[0] * (unit.resized[0] / unit.stride) - 0.5
    return _highest(_Peaks(part, xy, flat[at]), settings.max_peaks)


def _resampled(maps: Maps, size: Sequence[int], sigma: float) -> Float32Array:
    """The parts' heat maps, interpolated and smoothed: rows x parts x columns."""
    cells = [pixels / maps.geometry.stride for pixels in maps.geometry.resized]
    rows, columns = (
        interpolation(maps.heat.shape[1 + axis], cells[axis], size[axis], sigma).astype(np.float32) for axis in (0, 1)
    )
    wide = maps.heat[: len(PARTS)].transpose(1, 0, 2) @ columns.T
    result: Float32Array = np.tensordot(rows, wide, 1)
    return result


def _vertex(before: Float32Array, centre: Float32Array, after: Float32Array) -> Float32Array:
    """Where the parabola through three values, of which the middle one is the highest, has its top: -0.5 .. 0.5."""
    curvature = np.maximum(2 * centre - before - after, np.float32(1e-9))
    top: Float32Array = np.minimum(np.maximum(0.5 * (after - before) / curvature, -0.5), 0.5)
    return top


def _highest(peaks: _Peaks, count: int) -> _Peaks:
    order = np.lexsort((-peaks.score, peaks.part))
    part = peaks.part[order]
    rank = np.arange(len(part)) - np.searchsorted(part, part)
    order = order[rank < count]
    return _Peaks(peaks.part[order], peaks.xy[order], peaks.score[order])


def connect(peaks: _Peaks, maps: Sequence[Maps], unit: Geometry, settings: DecoderSettings) -> _Connections:
    """All pairs of peaks that their limb's field supports, best first."""
    limb, start, end = _pairs(peaks)
    steps = _steps(settings.limb_points)
    # Nearly all pairs are of two people. A few points in the middle are enough to see that, and take fewer look-ups.
    middle = steps[len(steps) // 3 : len(steps) - len(steps) // 3]
    may_fail = len(steps) - settings.limb_share * len(steps)
    for points in (middle, steps):
        supports = _field_along(maps, unit, limb, peaks.xy[start], peaks.xy[end], points)
        # The least bit of slack: shares such as 0.8 are not exact in binary.
        kept = np.flatnonzero((supports <= settings.limb_threshold).sum(axis=1) <= may_fail + 1e-6)
        limb, start, end, supports = limb[kept], start[kept], end[kept], supports[kept]
    along = peaks.xy[end] - peaks.xy[start]
    length = np.maximum(np.hypot(along[:, 0], along[:, 1]), np.float32(1e-3))
    picture_height = unit.resized[0] / unit.stride
    score = supports.mean(axis=1) + np.minimum(settings.long_limb * picture_height / length - 1, 0)
    strength = score + settings.part_weight * (peaks.score[start] + peaks.score[end])
    kept = np.flatnonzero(score > 0)
    kept = kept[np.argsort(-strength[kept], kind="stable")]
    return _Connections(limb[kept], start[kept], end[kept], score[kept].astype(np.float32))


@lru_cache(maxsize=16)
def _steps(count: int) -> Float32Array:
    """So many numbers from 0 to 1."""
    steps = np.linspace(0, 1, count, dtype=np.float32)
    steps.setflags(write=False)
    return steps


def _field_along(
    maps: Sequence[Maps],
    unit: Geometry,
    limb: Indices,
    start: Float32Array,
    end: Float32Array,
    steps: Float32Array,
) -> Float32Array:
    """How far the fields point from `start` to `end` (n x 2, cells) at `steps` of the way: n x steps, averaged."""
    along = end - start
    unit_vector = along / np.maximum(np.hypot(along[:, :1], along[:, 1:]), np.float32(1e-3))
    points = start[:, np.newaxis] + steps[:, np.newaxis] * along[:, np.newaxis]
    total = np.zeros(points.shape[:2], np.float32)
    for _, paf, geometry in maps:
        here = points if geometry is unit else geometry.to_cells(unit.to_picture(points))
        x, y = _sample(paf, (_PAF_X[limb], _PAF_Y[limb]), here)
        total += x * unit_vector[:, :1] + y * unit_vector[:, 1:]
    dot: Float32Array = total / np.float32(len(maps))
    return dot


def _pairs(peaks: _Peaks) -> tuple[Indices, Indices, Indices]:
    """Every candidate of every limb: (limb, start peak, end peak)."""
    bounds = np.searchsorted(peaks.part, np.arange(len(PARTS) + 1))
    (first_start, first_end), (starts, ends) = bounds[_PARTS_OF_LIMB].T, np.diff(bounds)[_PARTS_OF_LIMB].T
    counts = starts * ends
    limb = np.repeat(np.arange(len(LIMBS)), counts)
    number = np.arange(len(limb)) - np.repeat(np.cumsum(counts) - counts, counts)
    start, end = np.divmod(number, ends[limb])
    return limb, first_start[limb] + start, first_end[limb] + end


def _sample(maps: Float32Array, channels: Sequence[Indices], points: Float32Array) -> list[Float32Array]:
    """Bilinear values of `maps` (C x h x w) at `points` (n x m x 2, x, y in cells), for each n channels of several."""
    _, height, width = maps.shape
    x = np.minimum(np.maximum(points[..., 0], 0), width - 1)
    y = np.minimum(np.maximum(points[..., 1], 0), height - 1)
    left, top = x.astype(np.intp), y.astype(np.intp)
    dx, dy = x - left.astype(np.float32), y - top.astype(np.float32)
    right = np.minimum(left + 1, width - 1) - left
    below = (np.minimum(top + 1, height - 1) - top) * width
    flat, place = maps.ravel(), top * width + left
    values = []
    for channel in channels:
        at = place + (channel * (height * width))[:, np.newaxis]
        upper = flat[at] * (1 - dx) + flat[at + right] * dx
        at += below
        lower = flat[at] * (1 - dx) + flat[at + right] * dx
        values.append(upper * (1 - dy) + lower * dy)
    return values


def _assemble(connections: _Connections) -> list[_Group]:
    """Join limbs to people, the strongest limbs first; every peak serves one limb of a kind, and one person."""
    used: set[tuple[int, bool, int]] = set()
    owners: dict[int, _Group] = {}
    for number, start, end, score in zip(*(column.tolist() for column in connections), strict=True):
        ends = {(number, False, start), (number, True, end)}
        if not used & ends:
            used |= ends
            _join(owners, number, start, end, score)
    return list({id(group): group for group in owners.values()}.values())


def _join(owners: dict[int, _Group], number: int, start: int, end: int, score: float) -> None:
    """Add one limb: found a group, extend one, close a loop in one, or merge two that share no part."""
    limb = LIMBS[number]
    first, second = owners.get(start), owners.get(end)
    if first is None and second is None and number in JOINING_LIMBS:
        return
    first = first or _Group({limb.start: start})
    second = second or _Group({limb.end: end})
    if first is not second:
        if first.members.keys() & second.members.keys():
            return
        first.members |= second.members
        first.limbs += second.limbs
        owners.update(dict.fromkeys(first.members.values(), first))
    first.limbs += score


def _to_person(group: _Group, peaks: _Peaks, geometry: Geometry, settings: DecoderSettings) -> Person | None:
    """Return the group as a person, or None if it is too small or too weak."""
    parts, members = list(group.members), list(group.members.values())
    confidence = 0.5 * (float(peaks.score[members].sum()) + group.limbs) / len(parts)
    if len(parts) < settings.min_parts or confidence < settings.min_confidence:
        return None
    keypoints = np.zeros((len(PARTS), 3), np.float32)
    height, width = geometry.picture
    # Peaks may lie a little outside, where the network saw padding.
    keypoints[parts, :2] = np.clip(geometry.to_picture(peaks.xy[members]), 0, (width - 1, height - 1))
    keypoints[parts, 2] = peaks.score[members]
    # Ranking favours complete people, but less than in proportion: AP was best with the square root.
    return Person(keypoints, confidence * (len(parts) / len(PARTS)) ** 0.5)
