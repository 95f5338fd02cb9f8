from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from kvant.errors import InputError
from kvant.pose import COCO_KEYPOINTS, PARTS, Person

from .scenes import standing


def test_a_person_survives_json() -> None:
    person = Person(standing(10.25, 20.5, 30, 60, parts=(0, 1, 2, 17)), 0.5)
    again = Person.from_dict(json.loads(json.dumps(person.to_dict())))
    np.testing.assert_array_equal(again.keypoints, person.keypoints)
    assert again.score == person.score


def test_coco_order() -> None:
    keypoints = np.arange(18 * 3, dtype=np.float32).reshape(18, 3)
    coco = Person(keypoints, 1.0).to_coco()
    assert coco.shape == (17, 3)
    for row, name in zip(coco, COCO_KEYPOINTS, strict=True):
        np.testing.assert_array_equal(row, keypoints[PARTS.index(name)])


def test_box_holds_the_found_parts_only() -> None:
    keypoints = np.zeros((18, 3), np.float32)
    assert Person(keypoints, 0.0).box == (0, 0, 0, 0)
    keypoints[[3, 5]] = (10, 20, 1), (30, 5, 1)
    assert Person(keypoints, 0.0).box == (10, 5, 30, 20)


def test_wrong_shapes_and_parts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"18 x 3.*\(17, 3\)"):
        Person(np.zeros((17, 3), np.float32), 1.0)
    with pytest.raises(ValueError, match="unknown part 'tail'"):
        Person.from_dict({"score": 1, "keypoints": {"tail": [0, 0, 1]}})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_key_points_that_are_no_place_are_refused(value: float, column: int) -> None:
    """They could be neither drawn nor written as JSON."""
    keypoints = np.ones((18, 3), np.float32)
    keypoints[3, column] = value
    with pytest.raises(InputError, match="NaN or infinity; a part that was not found is all zeros"):
        Person(keypoints, 1.0)


@pytest.mark.parametrize("keypoints", [[[0, 0, 0]] * 18, np.zeros((18, 3), object), np.zeros((18, 3), complex)])
def test_key_points_that_are_no_array_of_numbers_are_refused(keypoints: Any) -> None:
    with pytest.raises(InputError, match="an array of numbers"):
        Person(keypoints, 1.0)
