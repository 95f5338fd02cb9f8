"""People in maps, by the C library: what it is told of the maps and of the skeleton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from kvant.pose.interpolation import interpolation
from kvant.pose.layout import JOINING_LIMBS, LIMBS, PARTS
from kvant.pose.maps import DecoderSettings, Maps, interpolated_size, middle_scale
from kvant.pose.person import Person
from kvant.pose.preprocess import Geometry
from kvant.runtime.native import Filter, LineRules, PeopleFinder, PeopleRules, Scale, Skeleton, View

_MOST_PEAKS = 2**15 - 1  # that the library takes
_SKELETON = Skeleton(len(PARTS), LIMBS, founding=min(JOINING_LIMBS))


def find_people(maps: Sequence[Maps], settings: DecoderSettings) -> list[Person]:
    """See `decode_people`.

    Raises:
        BackendError: the library is missing.
    """
    find = _finder(settings, *((heat.shape[1:], geometry) for heat, _, geometry in maps))
    keypoints, scores = find([heat[: len(PARTS)] for heat, _, _ in maps], [paf for _, paf, _ in maps])
    return [Person(own.copy(), score) for own, score in zip(keypoints, scores, strict=True)]


@lru_cache(maxsize=64)
def _finder(settings: DecoderSettings, *lies: tuple[tuple[int, int], Geometry]) -> PeopleFinder:
    """What finds people in maps of these sizes."""
    unit = middle_scale([geometry for _, geometry in lies])
    cells, results = [pixels / unit.stride for pixels in unit.resized], interpolated_size(unit, settings)
    sigma = settings.smoothing * settings.upsampling
    scales = []
    for size, own in lies:
        rows, columns = (_filter(size[axis], own.resized[axis] / own.stride, results[axis], sigma) for axis in (0, 1))
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
def _filter(size: int, covered: float, count: int, sigma: float) -> Filter:
    return Filter.from_matrix(interpolation(size, covered, count, sigma))
