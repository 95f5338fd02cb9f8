from __future__ import annotations

import numpy as np
import pytest

from kvant.pose import COMPARISON_COLUMNS, Person, PoseEstimator, compare_estimators, compare_people, network_spec

from .scenes import render, standing

LEFT, RIGHT = standing(20, 30, 110, 300), standing(270, 60, 120, 240)
SIZE = float(np.sqrt(np.ptp(LEFT[:, 0]) * np.ptp(LEFT[:, 1])))


def moved(keypoints: np.ndarray, x: float, y: float) -> np.ndarray:
    return np.where(keypoints[:, 2:] > 0, keypoints + np.float32([x, y, 0]), 0).astype(np.float32)


def test_distances_are_those_by_hand() -> None:
    other = moved(LEFT, 3, 4)
    other[0, :2] += (0, 2)
    other[5] = 0
    [found] = compare_people([Person(LEFT, 0.9)], [Person(other, 0.8)])
    distances = [5.0] * 16 + [np.hypot(3, 6)]
    assert (found.parts_reference, found.parts_other, found.parts_both, found.parts_same) == (18, 17, 17, 17)
    assert found.mean_px == pytest.approx(np.mean(distances), abs=1e-3)
    assert found.max_px == pytest.approx(np.hypot(3, 6), abs=1e-3)
    assert found.share == pytest.approx(np.mean(distances) / SIZE, abs=1e-4)
    assert (found.score_reference, found.score_other) == (0.9, 0.8)


def test_everyone_is_listed_once() -> None:
    mine = [Person(LEFT, 0.9), Person(standing(150, 50, 60, 60), 0.5)]
    theirs = [Person(RIGHT, 0.95), Person(moved(LEFT, 1, 0), 0.7)]
    found = compare_people(mine, theirs)
    assert [(entry.reference, entry.other) for entry in found] == [(0, 1), (1, None), (None, 0)]
    assert [entry.row()[0] for entry in found] == ["1", "2, float only", "1, int8 only"]
    assert found[1].mean_px is None and found[2].score_reference is None
    assert {len(entry.row()) for entry in found} == {len(COMPARISON_COLUMNS)}
    assert found[2].to_dict()["parts_other"] == 18


def test_nobody() -> None:
    assert compare_people([], []) == []


def test_far_apart_is_not_the_same_person() -> None:
    assert len(compare_people([Person(LEFT, 1.0)], [Person(moved(LEFT, 300, 0), 1.0)])) == 2


def test_two_estimators() -> None:
    def seeing(*people: np.ndarray) -> PoseEstimator:
        return PoseEstimator(
            lambda array: np.concatenate(render(people, *array.shape[2:]), axis=0)[np.newaxis],
            network=network_spec("openpose-mobilenet-thin"),
        )

    picture = np.zeros((368, 496, 3), np.uint8)
    found = compare_estimators(seeing(LEFT, RIGHT), seeing(moved(RIGHT, 8, 0)), picture)
    assert (len(found.reference), len(found.other)) == (2, 1)
    assert found.reference_ms > 0 and found.other_ms > 0
    [both] = [entry for entry in found.differences if entry.other is not None]
    assert both.mean_px == pytest.approx(8, abs=1)
