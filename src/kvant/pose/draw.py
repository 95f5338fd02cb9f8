"""Skeletons on pictures."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from kvant.pose.layout import JOINING_LIMBS, LIMBS, PART_COLOURS
from kvant.pose.person import Person
from kvant.pose.pictures import Picture

_SHIFT = 4  # OpenCV draws at fractions of a pixel when coordinates are multiplied by 2 ** shift
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_people(image: Picture, people: Sequence[Person], opacity: float = 0.7) -> Picture:
    """Return a copy of `image` (BGR, H x W x 3, uint8) with the skeletons of `people` on it.

    Lines and dots scale with the picture; `opacity` (0..1) blends them with it.

    >>> draw_people(np.zeros((48, 64, 3), np.uint8), []).shape
    (48, 64, 3)
    """
    drawn = image.copy()
    width = max(2, round(0.008 * min(image.shape[:2])))
    for person in people:
        _draw_limbs(drawn, person, width)
        _draw_parts(drawn, person, radius=0.75 * width)
    # Of a large picture most is not drawn on, and blending a picture with itself takes longer than drawing.
    for place in _touched(people, margin=width + 1):
        drawn[place] = cv2.addWeighted(drawn[place], opacity, image[place], 1 - opacity, 0)
    return drawn


def _touched(people: Sequence[Person], margin: int) -> list[tuple[slice, slice]]:
    """The rows and columns that skeletons lie in, if there are any."""
    boxes = np.array([person.box for person in people if person.found.any()])
    if not len(boxes):
        return []
    left, top = np.maximum(0, np.floor(boxes[:, :2].min(axis=0)).astype(int) - margin)
    right, bottom = np.maximum(0, np.ceil(boxes[:, 2:].max(axis=0)).astype(int) + margin + 1)
    return [(slice(top, bottom), slice(left, right))] if top < bottom and left < right else []


def _fixed_point(xy: Sequence[float]) -> tuple[int, int]:
    return round(xy[0] * 2**_SHIFT), round(xy[1] * 2**_SHIFT)


def _draw_limbs(canvas: Picture, person: Person, width: int) -> None:
    found, points = person.found, person.keypoints[:, :2].tolist()
    for number, limb in enumerate(LIMBS):
        if number not in JOINING_LIMBS and found[limb.start] and found[limb.end]:
            start, end = _fixed_point(points[limb.start]), _fixed_point(points[limb.end])
            cv2.line(canvas, start, end, PART_COLOURS[limb.end], width, cv2.LINE_AA, _SHIFT)


def _draw_parts(canvas: Picture, person: Person, radius: float) -> None:
    size = round(radius * 2**_SHIFT)
    for part in np.flatnonzero(person.found).tolist():
        centre = _fixed_point(person.keypoints[part, :2].tolist())
        cv2.circle(canvas, centre, size, PART_COLOURS[part], cv2.FILLED, cv2.LINE_AA, _SHIFT)


def side_by_side(left: Picture, right: Picture, titles: tuple[str, str] = ("", "")) -> Picture:
    """Return one picture with `left` and `right` beside each other under their titles.

    Both are BGR, H x W x 3, uint8; `right` is scaled to the height of `left`. Titles that are too long for their
    picture are drawn smaller; without titles there is no space for them.
    """
    height = left.shape[0]
    width = max(1, round(right.shape[1] * height / right.shape[0]))
    if right.shape[:2] != (height, width):
        right = cv2.resize(right, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    gap = np.full((height, 8, 3), 255, np.uint8)
    body = np.hstack([left, gap, right])
    if not any(titles):
        return body
    bar = np.full((max(24, height // 14), body.shape[1], 3), 255, np.uint8)
    _write(bar, titles[0], 0, left.shape[1])
    _write(bar, titles[1], left.shape[1] + gap.shape[1], width)
    return np.vstack([bar, body])


def _write(bar: Picture, text: str, x: int, width: int) -> None:
    """Centre `text` in the columns from `x`, as large as bar and width allow."""
    scale = bar.shape[0] / 40
    (needed, _), _ = cv2.getTextSize(text, _FONT, scale, 1)
    scale *= min(1.0, 0.95 * width / max(needed, 1))
    thickness = max(1, round(1.5 * scale))
    (text_width, text_height), _ = cv2.getTextSize(text, _FONT, scale, thickness)
    origin = x + (width - text_width) // 2, (bar.shape[0] + text_height) // 2
    cv2.putText(bar, text, origin, _FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)
