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
    Maps,
    OpenPoseMobileNetThin,
    Person,
    PoseEstimator,
    decode_people,
    keypoint_agreement,
    read_image,
)
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
