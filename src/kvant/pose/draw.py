"""Skeletons on pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from kvant.pose.layout import JOINING_LIMBS, LIMBS, PART_COLOURS, Float32Array
from kvant.pose.person import Person
from kvant.pose.pictures import Picture
from kvant.pose.yuv import Colours, YuvPicture, colour_of

_SHIFT = 4  # OpenCV draws at fractions of a pixel when coordinates are multiplied by 2 ** shift
_FAR = 2.0**24  # pixels: farther away OpenCV's integers end
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_Box = tuple[int, int, int, int]  # left, top, right, bottom
Shown = TypeVar("Shown", Picture, YuvPicture)


def draw_people(image: Shown, people: Sequence[Person], opacity: float = 0.7, out: Shown | None = None) -> Shown:
    """Return a copy of `image` with the skeletons of `people` on it.

    `image` is BGR, H x W x 3, uint8, or a `YuvPicture`. Lines and dots scale with the picture; `opacity` (0..1) blends
    them with it. `out` is a copy of `image` to draw on, if there is one already.

    >>> draw_people(np.zeros((48, 64, 3), np.uint8), []).shape
    (48, 64, 3)
    """
    drawn = image.copy() if out is None else out
    pens = _pens(image)
    boxes = _touched([person for person in people if person.found.any()], pens[0].width)
    for canvas, plain, pen in zip(_planes(drawn), _planes(image), pens, strict=True):
        for person in people:
            places = np.clip(pen.at(person.keypoints[:, :2]), -_FAR, _FAR) * 2**_SHIFT
            points = [(round(x), round(y)) for x, y in places.tolist()]
            _draw_limbs(canvas, person, points, pen)
            _draw_parts(canvas, person, points, pen)
        # Of a large picture most is not drawn on, and blending a picture with itself takes longer than drawing.
        for box in boxes:
            left, top, right, bottom = (int(pen.scale * side) for side in box)
            own, other = canvas[top:bottom, left:right], plain[top:bottom, left:right]
            if own.size:
                cv2.addWeighted(own, opacity, other, 1 - opacity, 0, dst=own)
    return drawn


def _planes(image: Picture | YuvPicture) -> tuple[NDArray[np.uint8], ...]:
    return image.planes if isinstance(image, YuvPicture) else (image,)


class _Pen(NamedTuple):
    """Width of a line, the colour of each part, and how many pixels here are one of the picture."""

    width: float
    colours: Sequence[Any]
    scale: float = 1.0

    def at(self, points: Float32Array) -> Float32Array:
        """x, y in the picture -> x, y in what is drawn on; coordinates count from the centre of the first pixel."""
        return (points + np.float32(0.5)) * np.float32(self.scale) - np.float32(0.5)


def _pens(image: Picture | YuvPicture) -> tuple[_Pen, ...]:
    """What draws on each of the picture's planes."""
    width = max(2, round(0.008 * min(image.shape[:2])))
    return _yuv_pens(width, image.colours) if isinstance(image, YuvPicture) else (_Pen(width, PART_COLOURS),)


@lru_cache(maxsize=16)
def _yuv_pens(width: int, colours: Colours) -> tuple[_Pen, ...]:
    y, u, v = zip(*(colour_of(colour, colours) for colour in PART_COLOURS), strict=True)
    return _Pen(width, y), _Pen(width / 2, u, 0.5), _Pen(width / 2, v, 0.5)


def _touched(people: Sequence[Person], width: float) -> list[_Box]:
    """Boxes that hold the skeletons, with lines of this width, and do not meet: what lies in two is blended twice.

    Their sides are even, and so lie between pixels of planes of half the size, too.
    """
    margin, boxes = math.ceil(width) + 4, list[_Box]()
    for person in people:
        left, top, right, bottom = person.box
        box = _even(left - margin), _even(top - margin), _even(right + margin) + 2, _even(bottom + margin) + 2
        while (near := next((other for other in boxes if _meet(box, other)), None)) is not None:
            boxes.remove(near)
            box = min(box[0], near[0]), min(box[1], near[1]), max(box[2], near[2]), max(box[3], near[3])
        boxes.append(box)
    return boxes


def _even(value: float) -> int:
    return max(0, 2 * math.floor(value / 2))


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_limbs(canvas: NDArray[np.uint8], person: Person, points: Sequence[tuple[int, int]], pen: _Pen) -> None:
    found, width = person.found, max(1, round(pen.width))
    for number, limb in enumerate(LIMBS):
        if number not in JOINING_LIMBS and found[limb.start] and found[limb.end]:
            colour = pen.colours[limb.end]
            cv2.line(canvas, points[limb.start], points[limb.end], colour, width, cv2.LINE_AA, _SHIFT)


def _draw_parts(canvas: NDArray[np.uint8], person: Person, points: Sequence[tuple[int, int]], pen: _Pen) -> None:
    radius = round(0.75 * pen.width * 2**_SHIFT)
    for part in np.flatnonzero(person.found).tolist():
        cv2.circle(canvas, points[part], radius, pen.colours[part], cv2.FILLED, cv2.LINE_AA, _SHIFT)


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
