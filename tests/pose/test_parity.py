"""Our decoder beside the reference method's, which benchmarks/_reference_pose.py writes down plainly."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from kvant.pose import (
    FOUR_SCALES,
    LIMBS,
    DecoderSettings,
    Maps,
    OpenPoseMobileNetThin,
    Person,
    PoseEstimator,
    decode_people,
    keypoint_agreement,
    read_image,
)
from kvant.pose.decode_numpy import connect, find_peaks
from kvant.pose.layout import Float32Array

from .conftest import REPOSITORY
from .scenes import identity, render, standing

HEIGHT, WIDTH = 368, 496
SCENES = {
    "one": [standing(100.3, 40.7, 120, 280)],
    "three": [standing(20, 30, 110, 300), standing(170, 60, 90, 240), standing(330, 20, 130, 320)],
    "overlap": [standing(100, 30, 120, 300), standing(165, 50, 110, 290)],
    "parts": [standing(40, 40, 120, 280, range(8)), standing(280, 40, 120, 280, (1, 8, 9, 10, 11, 12, 13))],
    "small": [standing(60 * column, 100, 45, 150) for column in range(8)],
    "nobody": [],
}


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    pytest.importorskip("scipy")
    pytest.importorskip("torch")
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    yield import_module("_reference_pose")
    sys.path.remove(str(REPOSITORY / "benchmarks"))


def enlarged(maps: Float32Array, height: int, width: int) -> np.ndarray:
    """C x h x w -> height x width x C, bilinear."""
    return np.stack([cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR) for each in maps], axis=2)


def as_people(found: Sequence[np.ndarray]) -> list[Person]:
    return [Person(keypoints, 1.0) for keypoints in found]


def assert_same_people(ours: Sequence[Person], theirs: Sequence[Person], share: float) -> None:
    """As many people, each found by both, with at least `share` of the key points of either at the same places."""
    assert len(ours) == len(theirs)
    for one, other in ((ours, theirs), (theirs, ours)):
        agreement = keypoint_agreement(one, other)
        assert agreement.people_found == len(ours)
        assert agreement.share >= share


@pytest.mark.parametrize("name", SCENES)
def test_same_people_in_scenes(name: str, reference: Any) -> None:
    heat, paf = render(SCENES[name], HEIGHT, WIDTH)
    ours = decode_people([Maps(heat, paf, identity(HEIGHT, WIDTH))])
    theirs = as_people(reference.decode(enlarged(heat, HEIGHT, WIDTH), enlarged(paf, HEIGHT, WIDTH)))
    assert len(ours) == len(SCENES[name])
    assert_same_people(ours, theirs, 0.94)  # the reference loses one ear


def test_same_people_on_a_photo(reference: Any, shared_data: Path) -> None:
    picture = read_image(shared_data / "seed" / "test.jpg")
    estimator = PoseEstimator(OpenPoseMobileNetThin.pretrained(), scales=FOUR_SCALES)
    found = estimator.maps(picture)
    ours = decode_people(found)

    height, width = picture.shape[:2]
    heat, paf = (
        sum(enlarged(array[index], height, width) for array in found) / len(found) for index in range(2)
    )  # the padding makes up for 1 % of the width: its effect is within the tolerance
    theirs = as_people(reference.decode(heat, paf))
    assert len(ours) == 5
    assert_same_people(ours, theirs, 0.9)


@pytest.mark.slow
def test_same_people_with_all_of_the_reference_method(reference: Any, shared_data: Path) -> None:
    picture = read_image(shared_data / "seed" / "test.jpg")
    estimator = PoseEstimator(OpenPoseMobileNetThin.pretrained(), scales=FOUR_SCALES)
    theirs = reference.detect(lambda array: estimator.network.output.split(estimator.run(array)), picture, 1.0, 0.0)
    assert_same_people(estimator.detect(picture), as_people(theirs), 0.9)


@pytest.mark.parametrize("seed", range(3))
def test_limbs_are_scored_as_one_by_one(seed: int, reference: Any) -> None:
    """All candidates at once, the middle first, beside a loop over pairs and points."""
    random = np.random.default_rng(seed)
    rows, columns, smooth = 30, 40, np.ones((5, 5)) / 25
    heat = random.random((19, rows, columns), dtype=np.float32)
    noise = random.standard_normal((38, rows, columns)).astype(np.float32)
    paf = np.stack([cv2.filter2D(each, -1, smooth) * 3 for each in noise]).astype(np.float32)
    geometry = identity(8 * rows, 8 * columns)
    settings = DecoderSettings(max_peaks=20)
    peaks = find_peaks([Maps(heat, paf, geometry)], geometry, settings)
    found = connect(peaks, [Maps(heat, paf, geometry)], geometry, settings)
    scores = {
        (int(limb), int(start), int(end)): float(score)
        for limb, start, end, score in zip(found.limb, found.start, found.end, found.score, strict=True)
    }
    expected = {}
    for number, limb in enumerate(LIMBS):
        for start in np.flatnonzero(peaks.part == limb.start):
            for end in np.flatnonzero(peaks.part == limb.end):
                score = _one_limb(paf[[limb.paf_x, limb.paf_y]], peaks.xy[start], peaks.xy[end], rows, settings)
                if score is not None:
                    expected[number, int(start), int(end)] = score
    assert len(expected) > 50
    assert scores.keys() == expected.keys()
    for key, score in expected.items():
        assert scores[key] == pytest.approx(score, abs=1e-4)


def _one_limb(
    field: Float32Array, start: Float32Array, end: Float32Array, rows: int, settings: DecoderSettings
) -> float | None:
    along = (end - start).astype(float)
    length = float(np.hypot(*along))
    values = []
    for step in range(settings.limb_points):
        x, y = start + along * step / (settings.limb_points - 1)
        value = np.array([_bilinear(channel, float(x), float(y)) for channel in field])
        values.append(float(value @ along) / length)
    score = float(np.mean(values)) + min(settings.long_limb * rows / length - 1, 0)
    supported = sum(value > settings.limb_threshold for value in values)
    return score if supported >= round(settings.limb_share * settings.limb_points) and score > 0 else None


def _bilinear(channel: Float32Array, x: float, y: float) -> float:
    rows, columns = channel.shape
    x, y = min(max(x, 0), columns - 1), min(max(y, 0), rows - 1)
    left, top = int(x), int(y)
    right, below = min(left + 1, columns - 1), min(top + 1, rows - 1)
    dx, dy = x - left, y - top
    upper = channel[top, left] * (1 - dx) + channel[top, right] * dx
    lower = channel[below, left] * (1 - dx) + channel[below, right] * dx
    return float(upper * (1 - dy) + lower * dy)
