from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from kvant.errors import InputError, MissingDependencyError
from kvant.pose import CocoTruth, Person, PoseEstimator, evaluate_coco, keypoint_agreement, network_spec
from kvant.pose.evaluate import Agreement
from kvant.pose.layout import COCO_FROM_PARTS, COCO_KEYPOINTS, Float32Array

from .scenes import render, standing

SPEC = network_spec("openpose-mobilenet-thin")
HEIGHT, WIDTH = 368, 496
CERTAIN, FAINT = PEOPLE = [standing(20, 30, 110, 300), standing(270, 60, 120, 240)]
FAINT[:, 2] = 0.7


def perfect(array: Float32Array) -> Float32Array:
    return np.concatenate(render(PEOPLE, *array.shape[2:]), axis=0)[np.newaxis]


PERFECT = PoseEstimator(perfect, network=SPEC)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two pictures of the same two people; in the second, the certain one is not annotated."""
    annotations = []
    for image, people in ((1, PEOPLE), (2, [FAINT])):
        for person in people:
            keypoints = person[list(COCO_FROM_PARTS)].copy()
            keypoints[:, 2] = 2
            left, top = keypoints[:, :2].min(axis=0).tolist()
            width, height = np.ptp(keypoints[:, :2], axis=0).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": 1, "iscrowd": 0, "num_keypoints": 17,
                    "keypoints": keypoints.ravel().tolist(), "bbox": [left, top, width, height],
                    "area": width * height * 0.53,
                }
            )  # fmt: skip
    for image in (1, 2):
        cv2.imwrite(str(tmp_path / f"{image}.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    images = [
        {"id": image, "file_name": f"{image}.png", "height": HEIGHT, "width": WIDTH, "ignore_complete": image == 1}
        for image in (1, 2)
    ]
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO_KEYPOINTS), "skeleton": []}]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path


def test_a_perfect_network_has_ap_1(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate_coco(PERFECT, dataset, dataset / "annotations.json")
    assert result["AP"] == pytest.approx(1)
    assert result["AR"] == pytest.approx(1)
    assert capsys.readouterr().out == ""


def test_incomplete_pictures_count_on_demand(dataset: Path) -> None:
    result = evaluate_coco(PERFECT, dataset, dataset / "annotations.json", ignore_incomplete=False)
    assert result["AR"] == pytest.approx(1)
    assert result["AP"] < 0.99


def test_a_blind_network_has_ap_0(dataset: Path) -> None:
    blind = PoseEstimator(lambda array: 0 * perfect(array), network=SPEC)
    result = evaluate_coco(blind, dataset, dataset / "annotations.json")
    assert result["AP"] == 0


def test_no_picture_left_is_an_error(dataset: Path) -> None:
    content = json.loads((dataset / "annotations.json").read_text())
    content["images"] = content["images"][1:]
    (dataset / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no image to evaluate"):
        evaluate_coco(PERFECT, dataset, dataset / "annotations.json")


Change = Callable[[dict[str, Any], dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content, entry: entry.update(keypoints=[1, 2, 3]), "annotation 1: .*length >= 51"),
        (lambda content, entry: entry.update(keypoints=["a"] * 51), r"annotation 1: .*`float`, got `str`"),
        (lambda content, entry: entry.pop("keypoints"), "annotation 1: .*missing required field `keypoints`"),
        (lambda content, entry: entry.pop("area"), "annotation 1: .*missing required field `area`"),
        (lambda content, entry: entry.update(area=float("nan")), "annotation 1: .*>= 0"),
        (lambda content, entry: entry.update(bbox=[1, 2]), "annotation 1: .*length >= 4"),
        (lambda content, entry: content["images"][0].update(id="one"), "`int`, got `str`"),
        (lambda content, entry: content["images"][0].pop("file_name"), "missing required field `file_name`"),
        (lambda content, entry: content["images"].append(content["images"][0]), "two images have the same id"),
        (lambda content, entry: content.pop("categories"), "has no 'categories'"),
        (lambda content, entry: content.update(categories=[]), "categories lack people"),
        (lambda content, entry: content.update(annotations=None), "cannot be read as annotations"),
        (lambda content, entry: content.update(annotations=[]), "nobody's key points on the images to evaluate on"),
        (lambda content, entry: [each.update(image_id=7) for each in content["annotations"]], "nobody's key points"),
        (lambda content, entry: [each.update(num_keypoints=0) for each in content["annotations"]], "nobody's key poin"),
    ],
)
def test_annotations_that_cannot_be_scored(change: Change, message: str, dataset: Path) -> None:
    content = json.loads((dataset / "annotations.json").read_text())
    change(content, content["annotations"][0])
    (dataset / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        CocoTruth(dataset / "annotations.json", dataset)


def test_annotations_of_other_things_may_lack_key_points(dataset: Path) -> None:
    content = json.loads((dataset / "annotations.json").read_text())
    content["categories"].append({"id": 2, "name": "bicycle"})
    content["annotations"].append({"id": 9, "image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1], "iscrowd": 0})
    (dataset / "annotations.json").write_text(json.dumps(content))
    assert evaluate_coco(PERFECT, dataset, dataset / "annotations.json")["AP"] == pytest.approx(1)


@pytest.mark.parametrize("numbers", ["from zero", "the same"])
def test_numbers_of_annotations_do_not_matter(numbers: str, dataset: Path) -> None:
    content = json.loads((dataset / "annotations.json").read_text())
    for number, entry in enumerate(content["annotations"]):
        entry["id"] = number if numbers == "from zero" else 5
    (dataset / "annotations.json").write_text(json.dumps(content))
    assert evaluate_coco(PERFECT, dataset, dataset / "annotations.json")["AP"] == pytest.approx(1)


def test_annotations_of_great_depth(dataset: Path) -> None:
    (dataset / "annotations.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read as annotations"):
        CocoTruth(dataset / "annotations.json", dataset)


def test_missing_pycocotools_is_said(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("pycocotools"):
            raise ModuleNotFoundError(name)
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'kvant\[pose\]'"):
        evaluate_coco(PERFECT, dataset, dataset / "annotations.json")


def people(*keypoints: Float32Array) -> list[Person]:
    return [Person(each, 1.0) for each in keypoints]


def test_a_model_agrees_with_itself() -> None:
    agreement = keypoint_agreement(people(*PEOPLE), people(*PEOPLE[::-1]))
    assert agreement == Agreement(36, 36, 2, 2)
    assert agreement.share == 1


def test_missed_and_moved_keypoints_are_counted() -> None:
    moved = PEOPLE[0].copy()
    moved[:4, 0] += 50
    moved[4] = 0
    moved[5:, 0] += 2
    agreement = keypoint_agreement(people(*PEOPLE), people(moved))
    assert agreement == Agreement(13, 36, 1, 2)
    assert agreement.share == pytest.approx(13 / 36)


def test_the_tolerance_is_a_tenth_of_the_scale() -> None:
    left, top, right, bottom = people(PEOPLE[0])[0].box
    scale = ((right - left) * (bottom - top)) ** 0.5
    for factor, found in ((0.095, 18), (0.105, 0)):
        moved = PEOPLE[0].copy()
        moved[:, 0] += factor * scale
        assert keypoint_agreement(people(PEOPLE[0]), people(moved)).keypoints_found == found


def test_nothing_to_find_and_nothing_found() -> None:
    assert keypoint_agreement([], people(*PEOPLE)) == Agreement()
    assert keypoint_agreement(people(*PEOPLE), []) == Agreement(0, 36, 0, 2)


def test_agreements_add_up() -> None:
    assert Agreement(1, 2, 3, 4) + Agreement(10, 20, 30, 40) == Agreement(11, 22, 33, 44)
