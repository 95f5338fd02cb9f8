"""Maps as a perfect network would return them, of people whose key points are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvant.pose import LIMBS, PARTS, Geometry
from kvant.pose.layout import Float32Array

STRIDE = 8

# A standing person in a box of 1 x 1, in the order of PARTS.
STANDING = np.array(
    [
        (0.50, 0.08), (0.50, 0.20),
        (0.30, 0.22), (0.20, 0.38), (0.15, 0.52),
        (0.70, 0.22), (0.80, 0.38), (0.85, 0.52),
        (0.38, 0.55), (0.36, 0.76), (0.35, 0.98),
        (0.62, 0.55), (0.64, 0.76), (0.65, 0.98),
        (0.44, 0.05), (0.56, 0.05), (0.38, 0.09), (0.62, 0.09),
    ]
)  # fmt: skip


def standing(left: float, top: float, width: float, height: float, parts: Sequence[int] | None = None) -> Float32Array:
    """18 x 3 key points, in pixels, of a person standing in a box; only `parts` if given."""
    keypoints = np.zeros((len(PARTS), 3), np.float32)
    keypoints[:, :2] = STANDING * (width, height) + (left, top)
    chosen = list(range(len(PARTS)) if parts is None else parts)
    keypoints[chosen, 2] = 1
    return np.where(keypoints[:, 2:] > 0, keypoints, 0).astype(np.float32)


def identity(height: int, width: int) -> Geometry:
    """A picture that is as large as the network's input."""
    return Geometry((height, width), (height, width), (height, width), STRIDE)


def render(people: Sequence[Float32Array], height: int, width: int) -> tuple[Float32Array, Float32Array]:
    """Heat maps and part-affinity fields at stride 8: Gaussians at the parts, unit vectors along the limbs."""
    rows, columns = height // STRIDE, width // STRIDE
    y, x = np.mgrid[:rows, :columns]
    heat, paf = np.zeros((19, rows, columns)), np.zeros((38, rows, columns))
    for person in people:
        cells = (person[:, :2] + 0.5) / STRIDE - 0.5
        for part in np.flatnonzero(person[:, 2]):
            distance = (x - cells[part, 0]) ** 2 + (y - cells[part, 1]) ** 2
            heat[part] = np.maximum(heat[part], person[part, 2] * np.exp(-distance / 1.5))
        for limb in LIMBS:
            if person[limb.start, 2] and person[limb.end, 2]:
                near, direction = _near(cells[limb.start], cells[limb.end], x, y)
                paf[limb.paf_x][near], paf[limb.paf_y][near] = direction
    heat[18] = 1 - heat[:18].max(axis=0)
    return heat.astype(np.float32), paf.astype(np.float32)


def _near(
    start: np.ndarray, end: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Cells within about one cell of the limb, and the limb's direction."""
    length = np.hypot(*(end - start))
    direction = (end - start) / length
    along = (x - start[0]) * direction[0] + (y - start[1]) * direction[1]
    across = (y - start[1]) * direction[0] - (x - start[0]) * direction[1]
    return (along > -1.2) & (along < length + 1.2) & (np.abs(across) < 1.2), direction
