"""What is decoded, and the choices of the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvant.pose.layout import Float32Array
from kvant.pose.preprocess import Geometry


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


def interpolated_size(geometry: Geometry, settings: DecoderSettings) -> tuple[int, int]:
    """Rows and columns of the maps in which peaks are looked for."""
    height, width = (max(1, round(settings.upsampling * pixels / geometry.stride)) for pixels in geometry.resized)
    return height, width


def middle_scale(geometries: Sequence[Geometry]) -> Geometry:
    """The scale in whose cells lengths are."""
    return sorted(geometries, key=lambda each: each.resized)[(len(geometries) - 1) // 2]
