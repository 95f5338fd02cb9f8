"""From heat maps and part-affinity fields to people.

Bottom-up decoding after Cao et al. (CVPR 2017; TPAMI 2019): peaks of the heat maps are candidates for parts; a limb
between two candidates scores by the line integral of its part-affinity field; the best limbs are joined to people.
All of that is done by the C library, and no map is ever enlarged to the picture's size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvant.pose.layout import HEAT_CHANNELS, JOINING_LIMBS, LIMBS, PAF_CHANNELS, PARTS, Float32Array
from kvant.pose.person import Person
from kvant.pose.preprocess import Geometry
from kvant.runtime.native import Filter, LineRules, PeopleFinder, PeopleRules, Scale, Skeleton, View

_NO_WEIGHT = 1e-8
_MOST_PEAKS = 2**15 - 1  # that the library takes
_SKELETON = Skeleton(len(PARTS), LIMBS, founding=min(JOINING_LIMBS))


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


_DEFAULT = DecoderSettings()


class Maps(NamedTuple):
    """One picture's heat maps (19 x h x w) and part-affinity fields (38 x h x w), float32, and how it lies in them."""

    heat: Float32Array
    paf: Float32Array
    geometry: Geometry


def decode_people(maps: Sequence[Maps], settings: DecoderSettings | None = None) -> list[Person]:
    """Return the people that a network's maps show, best first, in coordinates of the picture.

    `maps` are those of one picture, at one or several scales, over which they are averaged. Raises ValueError if their
    shapes do not fit or there are none.

    >>> geometry = Geometry(picture=(64, 64), resized=(64, 64), padded=(64, 64), stride=8)
    >>> decode_people([Maps(np.zeros((19, 8, 8), np.float32), np.zeros((38, 8, 8), np.float32), geometry)])
    []
    """
    _check_maps(maps)
    find = _finder(settings or _DEFAULT, *((heat.shape[1:], geometry) for heat, _, geometry in maps))
    keypoints, scores = find([heat[: len(PARTS)] for heat, _, _ in maps], [paf for _, paf, _ in maps])
    return [Person(own.copy(), score) for own, score in zip(keypoints, scores, strict=True)]


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


@lru_cache(maxsize=64)
def _finder(settings: DecoderSettings, *lies: tuple[tuple[int, int], Geometry]) -> PeopleFinder:
    """What finds people in maps of these sizes."""
    # Lengths are in cells of the scale in the middle.
    unit = sorted((geometry for _, geometry in lies), key=lambda each: each.resized)[(len(lies) - 1) // 2]
    cells = [pixels / unit.stride for pixels in unit.resized]
    results = [max(1, round(settings.upsampling * count)) for count in cells]
    sigma = settings.smoothing * settings.upsampling
    scales = []
    for size, own in lies:
        rows, columns = (
            _interpolation(size[axis], own.resized[axis] / own.stride, results[axis], sigma) for axis in (0, 1)
        )
        x, y = (one / other for one, other in zip(own.cells_per_pixel, unit.cells_per_pixel, strict=True))
        scales.append(Scale(size, rows, columns, (x, y), (0.5 * x - 0.5, 0.5 * y - 0.5)))
    view = View((cells[1] / results[1], cells[0] / results[0]), unit.cells_per_pixel, unit.picture[::-1])
    return PeopleFinder(_SKELETON, _rules(settings, cells[0], math.prod(results)), scales, view)


def _rules(settings: DecoderSettings, picture_height: float, results: int) -> PeopleRules:
    # The least bit of slack: shares such as 0.8 are not exact in binary.
    failures = int((1 - settings.limb_share) * settings.limb_points + 1e-6)
    lines = LineRules(
        points=settings.limb_points,
        threshold=settings.limb_threshold,
        failures=max(0, failures),
        long_line=settings.long_limb * picture_height,
        peak_weight=settings.part_weight,
    )
    return PeopleRules(
        threshold=settings.part_threshold,
        most=min(settings.max_peaks, results, _MOST_PEAKS),
        lines=lines,
        parts=settings.min_parts,
        confidence=settings.min_confidence,
    )


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
    return Filter.from_matrix(np.where(np.abs(smoothed) < _NO_WEIGHT, 0, smoothed))


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
