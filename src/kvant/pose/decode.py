"""From heat maps and part-affinity fields to people.

Bottom-up decoding after Cao et al. (CVPR 2017; TPAMI 2019): peaks of the heat maps are candidates for parts; a limb
between two candidates scores by the line integral of its part-affinity field; the best limbs are joined to people.
Peaks and limbs are found by the C library, and no map is ever enlarged to the picture's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvant.pose.layout import HEAT_CHANNELS, JOINING_LIMBS, LIMBS, PAF_CHANNELS, PARTS, Float32Array
from kvant.pose.person import Person
from kvant.pose.preprocess import Geometry
from kvant.runtime.native import Filter, Interpolated, LineRules, Placed, find_lines, find_peaks

_NO_WEIGHT = 1e-8
_KINDS = np.array(LIMBS, np.int64)


@dataclass(frozen=True)
class DecoderSettings:
    """Choices of the decoder; lengths are in cells of the network's maps.

    The defaults are tuned for `openpose-mobilenet-thin` at height 368 on photos of COCO val2017: a high AP that holds
    when noise like that of quantization (SQNR 10 dB) lies on the maps, and about as many people as are annotated. A
    lower `min_confidence` finds more people at the same AP, some of them false.
    """

    upsampling: int = 2
    """Heat maps are interpolated (cubic) to this many times their size to find peaks."""
    smoothing: float = 0.4
    """Standard deviation of the Gaussian filter on them."""
    part_threshold: float = 0.04
    """Least height of a peak."""
    max_peaks: int = 64
    """Most peaks of one part; the highest are kept. Bounds time and memory on crowds and noise."""
    limb_points: int = 10
    """Points at which a limb's field is sampled."""
    limb_threshold: float = 0.03
    """The field along the limb must exceed this ..."""
    limb_share: float = 0.8
    """... at this share of the points."""
    long_limb: float = 0.5
    """Limbs longer than this share of the picture's height are penalized."""
    part_weight: float = 0.1
    """Weight of the two parts' scores against the limb's own score when limbs compete."""
    min_parts: int = 4
    """People of fewer parts are dropped."""
    min_confidence: float = 0.2
    """People whose mean score of parts and limbs is lower are dropped."""


class Maps(NamedTuple):
    """One picture's heat maps (19 x h x w) and part-affinity fields (38 x h x w), float32, and how it lies in them."""

    heat: Float32Array
    paf: Float32Array
    geometry: Geometry


@dataclass
class _Group:
    """Parts of one person so far: part -> peak, and the sum of its limbs' scores."""

    members: dict[int, int] = field(default_factory=dict)
    limbs: float = 0.0


def decode_people(maps: Sequence[Maps], settings: DecoderSettings | None = None) -> list[Person]:
    """Return the people that a network's maps show, best first, in coordinates of the picture.

    `maps` are those of one picture, at one or several scales, over which they are averaged. Raises ValueError if their
    shapes do not fit or there are none.

    >>> geometry = Geometry(picture=(64, 64), resized=(64, 64), padded=(64, 64), stride=8)
    >>> decode_people([Maps(np.zeros((19, 8, 8), np.float32), np.zeros((38, 8, 8), np.float32), geometry)])
    []
    """
    _check_maps(maps)
    settings = settings or DecoderSettings()
    # Lengths are in cells of the scale in the middle.
    unit = sorted(maps, key=lambda each: each.geometry.resized)[(len(maps) - 1) // 2].geometry
    peaks, bounds = _find_peaks(maps, unit, settings)
    groups = _assemble(_connect(peaks, bounds, maps, unit, settings).tolist())
    people = _to_people(groups, peaks, unit, settings)
    return sorted(people, key=lambda person: -person.score)


def _check_maps(maps: Sequence[Maps]) -> None:
    if not maps:
        raise ValueError("no maps were given")
    for heat, paf, geometry in maps:
        if heat.ndim != 3 or heat.shape[0] != HEAT_CHANNELS or paf.shape != (PAF_CHANNELS, *heat.shape[1:]):
            raise ValueError(
                f"expected heat maps {HEAT_CHANNELS} x h x w and fields {PAF_CHANNELS} x h x w, "
                f"got {heat.shape} and {paf.shape}"
            )
        if geometry.picture != maps[0].geometry.picture:
            raise ValueError(f"maps of different pictures: {geometry.picture} and {maps[0].geometry.picture}")


def _find_peaks(
    maps: Sequence[Maps], unit: Geometry, settings: DecoderSettings
) -> tuple[Float32Array, NDArray[np.int64]]:
    """Peaks of the smoothed, interpolated maps: x, y in cells of `unit`, height; and where those of a part begin."""
    cells = [pixels / unit.stride for pixels in unit.resized]
    size = [max(1, round(settings.upsampling * count)) for count in cells]
    sigma = settings.smoothing * settings.upsampling
    interpolated = [
        Interpolated(
            heat[: len(PARTS)],
            *(
                _interpolation(heat.shape[axis + 1], geometry.resized[axis] / geometry.stride, size[axis], sigma)
                for axis in (0, 1)
            ),
        )
        for heat, _, geometry in maps
    ]
    steps = cells[1] / size[1], cells[0] / size[0]
    return find_peaks(interpolated, settings.part_threshold, settings.max_peaks, steps)


@lru_cache(maxsize=64)
def _interpolation(size: int, covered: float, count: int, sigma: float) -> Filter:
    """What interpolates cubically, then smooths by a Gaussian of `sigma` of its results.

    Of the `size` cells, the first `covered` show the picture; the results divide it into `count` equal parts.
    """
    position = (np.arange(count) + 0.5) * (covered / count) - 0.5
    first = np.floor(position).astype(int) - 1
    matrix = np.zeros((count, size))
    for cell in (first, first + 1, first + 2, first + 3):
        weight = _cubic(np.abs(position - cell))
        np.add.at(matrix, (np.arange(count), np.clip(cell, 0, size - 1)), weight)
    smoothed = _smoothed(matrix, sigma) if sigma > 0 else matrix
    return Filter(np.where(np.abs(smoothed) < _NO_WEIGHT, 0, smoothed))


def _smoothed(matrix: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Rows averaged with their neighbours by a Gaussian; what is left out is far below the precision of float32."""
    count = len(matrix)
    reach = min(count - 1, math.ceil(6.5 * sigma))
    total, weights = np.zeros_like(matrix), np.zeros((count, 1))
    for offset in range(-reach, reach + 1):
        weight = math.exp(-0.5 * (offset / sigma) ** 2)
        rows = slice(max(0, -offset), count - max(0, offset))
        total[rows] += weight * matrix[max(0, offset) : count - max(0, -offset)]
        weights[rows] += weight
    return total / weights


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel, a = -0.75."""
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def _connect(
    peaks: Float32Array, bounds: NDArray[np.int64], maps: Sequence[Maps], unit: Geometry, settings: DecoderSettings
) -> NDArray[np.void]:
    """All pairs of peaks that their limb's field supports, best first: see `LINE`."""
    # The least bit of slack: shares such as 0.8 are not exact in binary.
    failures = int((1 - settings.limb_share) * settings.limb_points + 1e-6)
    rules = LineRules(
        points=settings.limb_points,
        threshold=settings.limb_threshold,
        failures=max(0, failures),
        long_line=settings.long_limb * unit.resized[0] / unit.stride,
        peak_weight=settings.part_weight,
    )
    return find_lines([_placed(each, unit) for each in maps], peaks, bounds, _KINDS, rules)


def _placed(maps: Maps, unit: Geometry) -> Placed:
    """The fields, and where points in cells of `unit` lie in them."""
    x, y = (own / of for own, of in zip(maps.geometry.cells_per_pixel, unit.cells_per_pixel, strict=True))
    return Placed(maps.paf, (x, y), (0.5 * x - 0.5, 0.5 * y - 0.5))


def _assemble(limbs: Iterable[tuple[int, int, int, float, float]]) -> list[_Group]:
    """Join limbs to people, the strongest limbs first; every peak serves one limb of a kind, and one person."""
    used: set[tuple[int, int]] = set()
    owners: dict[int, _Group] = {}
    for number, start, end, score, _ in limbs:
        ends = (number, start), (number, end)
        if used.isdisjoint(ends):
            used.update(ends)
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


def _to_people(
    groups: Sequence[_Group], peaks: Float32Array, geometry: Geometry, settings: DecoderSettings
) -> Iterator[Person]:
    """The groups that are neither too small nor too weak, as people."""
    height, width = geometry.picture
    found = peaks.copy()
    # Peaks may lie a little outside, where the network saw padding.
    found[:, :2] = np.clip(geometry.to_picture(peaks[:, :2]), 0, (width - 1, height - 1))
    for group in groups:
        parts, members = list(group.members), list(group.members.values())
        confidence = 0.5 * (float(peaks[members, 2].sum()) + group.limbs) / len(parts)
        if len(parts) < settings.min_parts or confidence < settings.min_confidence:
            continue
        keypoints = np.zeros((len(PARTS), 3), np.float32)
        keypoints[parts] = found[members]
        # Ranking favours complete people, but less than in proportion: AP was best with the square root.
        yield Person(keypoints, confidence * (len(parts) / len(PARTS)) ** 0.5)
