"""What the pose networks' maps mean: body parts, limbs, and the channels that show them.

The tables are those of the COCO model of OpenPose (Cao et al., "Realtime Multi-Person 2D Pose Estimation using Part
Affinity Fields", CVPR 2017; "OpenPose", TPAMI 2019). Nothing here imports torch or OpenCV.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]

PARTS = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist",
    "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle",
    "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
"""The 18 parts, in the order of the heat maps; a 19th heat map is the background."""

COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
"""The 17 key points of COCO's annotations, in COCO's order. COCO has no neck."""

COCO_FROM_PARTS = tuple(PARTS.index(name) for name in COCO_KEYPOINTS)
"""Index into `PARTS` of each of COCO's 17 key points."""

HEAT_CHANNELS = len(PARTS) + 1


class Limb(NamedTuple):
    """A connection of two parts and the two channels of the part-affinity field that points from `start` to `end`."""

    start: int
    end: int
    paf_x: int
    paf_y: int


# The order matters: people are assembled limb by limb, trunk first, face next; the last two (ear to shoulder) only
# ever join what is there.
LIMBS = (
    Limb(1, 2, 12, 13), Limb(1, 5, 20, 21), Limb(2, 3, 14, 15), Limb(3, 4, 16, 17), Limb(5, 6, 22, 23),
    Limb(6, 7, 24, 25), Limb(1, 8, 0, 1), Limb(8, 9, 2, 3), Limb(9, 10, 4, 5), Limb(1, 11, 6, 7),
    Limb(11, 12, 8, 9), Limb(12, 13, 10, 11), Limb(1, 0, 28, 29), Limb(0, 14, 30, 31), Limb(14, 16, 34, 35),
    Limb(0, 15, 32, 33), Limb(15, 17, 36, 37), Limb(2, 16, 18, 19), Limb(5, 17, 26, 27),
)  # fmt: skip
PAF_CHANNELS = 2 * len(LIMBS)
JOINING_LIMBS = frozenset({17, 18})
"""Indices of limbs that may join parts of people but never start a new person, and that are not drawn."""


def _rainbow(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` saturated BGR colours around the colour wheel, from red over green to blue and magenta."""
    colours = []
    for index in range(count):
        sector, rest = divmod(6.0 * index / count, 1.0)
        rising, falling = round(255 * rest), round(255 * (1 - rest))
        red, green, blue = (
            (255, rising, 0), (falling, 255, 0), (0, 255, rising),
            (0, falling, 255), (rising, 0, 255), (255, 0, falling),
        )[int(sector)]  # fmt: skip
        colours.append((blue, green, red))
    return tuple(colours)


PART_COLOURS = _rainbow(len(PARTS))
"""One BGR colour a part."""
