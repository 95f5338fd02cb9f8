"""The method of OpenPose's first PyTorch ports, written down plainly: what `pose.py` measures kvant's against.

Four scales, maps enlarged to the whole picture, a Gaussian filter a part, Python loops over pairs of peaks. Nothing of
`kvant.pose` is used here but the tables of parts and limbs, so that it can serve as an independent truth in tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from kvant.pose.layout import JOINING_LIMBS, LIMBS, PARTS

Array = NDArray[Any]
Peak = tuple[int, int, float, int]  # x, y, score, number
Infer = Callable[[Array], tuple[Array, Array]]
"""Runs a network: 1 x 3 x H x W float32 -> (heat maps 1 x 19 x h x w, fields 1 x 38 x h x w)."""

SCALES = (0.5, 1.0, 1.5, 2.0)
BOX, STRIDE, PADDING = 368, 8, 8
HEAT_THRESHOLD, FIELD_THRESHOLD = 0.1, 0.05
POINTS = 10


def average_maps(infer: Infer, picture: Array, scale: float, offset: float) -> tuple[Array, Array]:
    """Heat maps (H x W x 19) and fields (H x W x 38) as large as the picture, averaged over four scales."""
    import torch

    height, width = picture.shape[:2]
    heat, paf = np.zeros((height, width, 19)), np.zeros((height, width, 38))
    for factor in SCALES:
        multiplier = factor * BOX / height
        resized = cv2.resize(picture, (0, 0), fx=multiplier, fy=multiplier, interpolation=cv2.INTER_CUBIC)
        below, right = -resized.shape[0] % STRIDE, -resized.shape[1] % STRIDE
        padded = cv2.copyMakeBorder(resized, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(PADDING,) * 3)
        array = padded.transpose(2, 0, 1)[np.newaxis].astype(np.float32) * np.float32(scale) + np.float32(offset)
        large = torch.nn.UpsamplingBilinear2d((height, width))
        found_heat, found_paf = (large(torch.from_numpy(maps)).numpy()[0].transpose(1, 2, 0) for maps in infer(array))
        heat += found_heat / len(SCALES)
        paf += found_paf / len(SCALES)
    return heat, paf


def find_peaks(heat: Array) -> list[list[Peak]]:
    """The peaks of each part."""
    peaks, number = [], 0
    for part in range(len(PARTS)):
        original = heat[:, :, part]
        smooth = gaussian_filter(original, sigma=3)
        left, right, up, down = (np.zeros(smooth.shape) for _ in range(4))
        left[1:, :], right[:-1, :] = smooth[:-1, :], smooth[1:, :]
        up[:, 1:], down[:, :-1] = smooth[:, :-1], smooth[:, 1:]
        is_peak = np.logical_and.reduce(
            (smooth >= left, smooth >= right, smooth >= up, smooth >= down, smooth > HEAT_THRESHOLD)
        )
        found = []
        for y, x in zip(*np.nonzero(is_peak), strict=True):
            found.append((int(x), int(y), float(original[y, x]), number))
            number += 1
        peaks.append(found)
    return peaks


def connect(paf: Array, peaks: Sequence[Sequence[Peak]], height: int) -> list[list[tuple[Peak, Peak, float]]]:
    """The limbs of each kind, each peak in one of them at most."""
    found = []
    for limb in LIMBS:
        field = paf[:, :, [limb.paf_x, limb.paf_y]]
        candidates = []
        for start in peaks[limb.start]:
            for end in peaks[limb.end]:
                score = score_limb(field, start, end, height)
                if score is not None:
                    candidates.append((start, end, score))
        candidates.sort(key=lambda candidate: -candidate[2])
        chosen: list[tuple[Peak, Peak, float]] = []
        for start, end, score in candidates:
            if all(start[3] != other[0][3] and end[3] != other[1][3] for other in chosen):
                chosen.append((start, end, score))
        found.append(chosen)
    return found


def score_limb(field: Array, start: Peak, end: Peak, height: int) -> float | None:
    """How well the field supports a limb, or None."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.sqrt(dx * dx + dy * dy)
    if length == 0:
        return None
    values = []
    for x, y in zip(np.linspace(start[0], end[0], POINTS), np.linspace(start[1], end[1], POINTS), strict=True):
        along_x, along_y = field[round(y), round(x)]
        values.append(along_x * dx / length + along_y * dy / length)
    score = sum(values) / POINTS + min(0.5 * height / length - 1, 0)
    enough = sum(value > FIELD_THRESHOLD for value in values) > 0.8 * POINTS
    return score if enough and score > 0 else None


def assemble(limbs: Sequence[Sequence[tuple[Peak, Peak, float]]]) -> list[Array]:
    """People, 18 x 3 (x, y, score; zeros where a part was not found), limb by limb."""
    people: list[dict[str, Any]] = []
    for number, (limb, found) in enumerate(zip(LIMBS, limbs, strict=True)):
        for start, end, score in found:
            owners = [
                person
                for person in people
                if person["parts"].get(limb.start, (0, 0, 0, -1))[3] == start[3]
                or person["parts"].get(limb.end, (0, 0, 0, -1))[3] == end[3]
            ]
            if len(owners) == 1:
                if owners[0]["parts"].get(limb.end, (0, 0, 0, -1))[3] != end[3]:
                    owners[0]["parts"][limb.end] = end
                    owners[0]["score"] += end[2] + score
            elif len(owners) >= 2:
                first, second = owners[:2]
                if not first["parts"].keys() & second["parts"].keys():
                    first["parts"].update(second["parts"])
                    first["score"] += second["score"] + score
                    people = [person for person in people if person is not second]
                else:
                    first["parts"][limb.end] = end
                    first["score"] += end[2] + score
            elif number not in JOINING_LIMBS:
                people.append({"parts": {limb.start: start, limb.end: end}, "score": start[2] + end[2] + score})
    return [_keypoints(person["parts"]) for person in people if _is_person(person)]


def _is_person(person: dict[str, Any]) -> bool:
    return len(person["parts"]) >= 4 and person["score"] / len(person["parts"]) >= 0.4


def _keypoints(parts: dict[int, Peak]) -> Array:
    keypoints = np.zeros((len(PARTS), 3), np.float32)
    for part, peak in parts.items():
        keypoints[part] = peak[:3]
    return keypoints


def decode(heat: Array, paf: Array) -> list[Array]:
    """People, 18 x 3 each, of maps as large as the picture."""
    return assemble(connect(paf, find_peaks(heat), heat.shape[0]))


def detect(infer: Infer, picture: Array, scale: float, offset: float) -> list[Array]:
    """People in a BGR picture."""
    return decode(*average_maps(infer, picture, scale, offset))
