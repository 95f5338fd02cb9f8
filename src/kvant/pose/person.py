"""The record of a detected person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from kvant.errors import InputError
from kvant.pose.layout import COCO_FROM_PARTS, PARTS, Float32Array

PERSON_CATEGORY = 1
"""COCO's number for people."""


@dataclass(frozen=True, eq=False)
class Person:
    """One person in a picture.

    `keypoints` is 18 x 3, float32, in the order of `kvant.pose.PARTS`: x, y in pixels of the picture (0, 0 is the
    centre of its first pixel) and the part's confidence; a part that was not found is all zeros. `score` ranks people:
    near 1 for a complete, certain one, lower for uncertain ones and for those of few parts. Raises InputError for
    another shape, NaN and infinity.
    """

    keypoints: Float32Array
    score: float

    def __post_init__(self) -> None:
        shape, kind = np.shape(self.keypoints), getattr(self.keypoints, "dtype", np.dtype(object)).kind
        if shape != (len(PARTS), 3) or kind not in "fiu":
            raise InputError(
                f"keypoints must be an array of numbers, {len(PARTS)} x 3 (x, y, confidence); got "
                f"{type(self.keypoints).__name__} of shape {shape}"
            )
        if not np.isfinite(self.keypoints).all():
            raise InputError("keypoints hold NaN or infinity; a part that was not found is all zeros")

    @property
    def found(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of the 18 parts were found: 18 booleans."""
        return np.asarray(self.keypoints[:, 2] > 0)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The box around the found key points: left, top, right, bottom; zeros if there are none."""
        points = self.keypoints[self.found, :2]
        if not len(points):
            return 0.0, 0.0, 0.0, 0.0
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return left, top, right, bottom

    @property
    def size(self) -> float:
        """How large the person is, in pixels: the square root of the area of the box.

        >>> points = np.zeros((18, 3), np.float32)
        >>> points[:2] = (10, 10, 1), (40, 50, 1)
        >>> round(Person(points, 1.0).size, 2)
        34.64
        """
        left, top, right, bottom = self.box
        return float(((right - left) * (bottom - top)) ** 0.5)

    def to_coco(self) -> Float32Array:
        """Return the 17 key points of COCO, in COCO's order: 17 x 3, float32, x, y, confidence."""
        return self.keypoints[list(COCO_FROM_PARTS)]

    def coco_result(self, image_id: int) -> dict[str, Any]:
        """Return one entry of COCO's result format for key points; a JSON list of them is what its tools evaluate.

        "keypoints" are 17 x (x, y, 1), 0, 0, 0 where nothing was found, in pixels.

        >>> Person(np.zeros((18, 3), np.float32), 0.5).coco_result(image_id=42)["category_id"]
        1
        """
        keypoints = self.to_coco()
        keypoints[:, 2] = keypoints[:, 2] > 0
        return {
            "image_id": image_id,
            "category_id": PERSON_CATEGORY,
            "keypoints": [round(value, 2) for value in keypoints.ravel().tolist()],
            "score": self.score,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values, for JSON: {"score": s, "keypoints": {part: [x, y, confidence], ...}}, found only.

        >>> points = np.zeros((18, 3), np.float32)
        >>> points[0] = 12, 34, 0.5
        >>> Person(points, 0.25).to_dict()
        {'score': 0.25, 'keypoints': {'nose': [12.0, 34.0, 0.5]}}
        """
        rows = zip(PARTS, self.keypoints.tolist(), strict=True)
        return {"score": self.score, "keypoints": {name: row for name, row in rows if row[2] > 0}}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Return the person that `to_dict` wrote; raises ValueError for an unknown part."""
        keypoints = np.zeros((len(PARTS), 3), np.float32)
        for name, row in record["keypoints"].items():
            if name not in PARTS:
                raise ValueError(f"unknown part {name!r}; known: {', '.join(PARTS)}")
            keypoints[PARTS.index(name)] = row
        return cls(keypoints, float(record["score"]))
