"""How good a pose network is: average precision on COCO, and agreement of two models."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from kvant.errors import ImageError, InputError, MissingDependencyError
from kvant.pose.estimator import PoseEstimator
from kvant.pose.layout import COCO_KEYPOINTS
from kvant.pose.person import PERSON_CATEGORY, Person
from kvant.pose.pictures import read_image

_STATISTICS = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large")


def evaluate_coco(
    estimator: PoseEstimator,
    images_dir: str | PathLike[str],
    annotations_json: str | PathLike[str],
    ignore_incomplete: bool = True,
) -> dict[str, float]:
    """Return COCO's key-point statistics of an estimator: {"AP": ..., "AP50": ..., "AR": ..., ...}, each 0..1.

    `annotations_json` is in COCO's key-point format, its images lie in `images_dir`. With `ignore_incomplete`, images
    whose field `ignore_complete` is false, in which unlabelled people would count as false positives, are left out;
    COCO's own files have no such field and are used whole. Raises MissingDependencyError without pycocotools,
    ImageError for an unreadable picture, InputError if no image is left or the annotations cannot be read.

    >>> estimator = PoseEstimator("pose.kvant")  # doctest: +SKIP
    >>> evaluate_coco(estimator, "val2017", "person_keypoints_val2017.json")["AP"]  # doctest: +SKIP
    0.297
    """
    truth = CocoTruth(annotations_json, images_dir, ignore_incomplete)
    return truth.score(truth.detect(estimator))


class CocoTruth:
    """Pictures whose people are known: what `evaluate_coco` scores by, for more than one estimator.

    `images` are COCO's records of the pictures that count, see `evaluate_coco`; `limit` takes the first ones only.
    Raises MissingDependencyError without pycocotools, InputError if the annotations cannot be read or list no picture.

    >>> truth = CocoTruth("person_keypoints_val2017.json", "val2017")  # doctest: +SKIP
    >>> truth.score(truth.detect(PoseEstimator("pose.kvant")))["AP"]  # doctest: +SKIP
    0.297
    """

    def __init__(
        self,
        annotations_json: str | PathLike[str],
        images_dir: str | PathLike[str],
        ignore_incomplete: bool = True,
        limit: int | None = None,
    ) -> None:
        self.folder = Path(images_dir)
        self._coco = _load_coco(annotations_json)
        self.images: list[dict[str, Any]] = [
            image
            for image in self._coco.dataset["images"]
            if not (ignore_incomplete and image.get("ignore_complete", True) is False)
        ][:limit]
        if not self.images:
            raise InputError(f"{annotations_json} lists no image to evaluate on")
        if not any(entry["num_keypoints"] for entry in self._people()):
            raise InputError(f"{annotations_json} has nobody's key points on the images to evaluate on")

    def _people(self) -> list[dict[str, Any]]:
        coco, chosen = self._coco, [image["id"] for image in self.images]
        people: list[dict[str, Any]] = coco.loadAnns(coco.getAnnIds(imgIds=chosen, catIds=[PERSON_CATEGORY]))
        return people

    def detect(
        self,
        estimator: PoseEstimator,
        progress: Callable[[int], None] | None = None,
        broken: Callable[[ImageError], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Return what an estimator finds on the pictures, in COCO's result format.

        `progress` is called with the number of pictures done, after each; `broken` with the reason why one cannot be
        read, which then counts no more, for other estimators neither. Raises ImageError if there is no `broken`.
        """
        results: list[dict[str, Any]] = []
        for done, image in enumerate(list(self.images), start=1):
            try:
                picture = read_image(self.folder / image["file_name"])
            except ImageError as error:
                if broken is None:
                    raise
                broken(error)
                self.images.remove(image)
            else:
                results += [person.coco_result(image["id"]) for person in estimator.detect(picture)]
            if progress is not None:
                progress(done)
        return results

    def score(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Return COCO's key-point statistics of such results, each 0..1; -1 where no annotated person counts.

        Raises InputError if no picture could be read.
        """
        if not self.images:
            raise InputError(f"none of the pictures in {self.folder} can be read")
        return _statistics(self._coco, results, [image["id"] for image in self.images])


class _Image(msgspec.Struct):
    """What evaluation needs of an entry of COCO's "images"."""

    id: int
    file_name: str


class _Annotation(msgspec.Struct):
    """What pycocotools takes for granted in an entry of "annotations"."""

    id: int
    image_id: int
    iscrowd: int
    num_keypoints: int
    area: Annotated[float, msgspec.Meta(ge=0)]
    bbox: Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]
    keypoints: Annotated[
        list[float], msgspec.Meta(min_length=3 * len(COCO_KEYPOINTS), max_length=3 * len(COCO_KEYPOINTS))
    ]


def _load_coco(path: str | PathLike[str]) -> Any:
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise MissingDependencyError("evaluation on COCO needs pycocotools: pip install 'kvant[pose]'") from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(path))
            _check(truth.dataset)
            # It takes a person of number 0 for one that was not found, and forgets all but one of the same number.
            for number, entry in enumerate(truth.dataset["annotations"], start=1):
                entry["id"] = number
            truth.createIndex()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{path} cannot be read as annotations in COCO's format: {reason}") from error
    return truth


def _check(dataset: dict[str, Any]) -> None:
    """Raise ValueError or KeyError for what pycocotools would stumble over, or take, and score wrongly."""
    images = msgspec.convert(dataset["images"], list[_Image])
    if len({image.id for image in images}) != len(images):
        raise ValueError("two images have the same id")
    if PERSON_CATEGORY not in [category["id"] for category in dataset["categories"]]:
        raise ValueError(f"its categories lack people, {PERSON_CATEGORY}")
    for entry in dataset["annotations"]:
        if entry["category_id"] == PERSON_CATEGORY:
            try:
                msgspec.convert(entry, _Annotation)
            except msgspec.ValidationError as error:
                raise ValueError(f"annotation {entry.get('id')}: {error}") from error


def _statistics(truth: Any, results: list[dict[str, Any]], image_ids: list[int]) -> dict[str, float]:
    from pycocotools.cocoeval import COCOeval

    if not results:  # pycocotools cannot load an empty list
        return dict.fromkeys(_STATISTICS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.params.imgIds, evaluation.params.catIds = image_ids, [PERSON_CATEGORY]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(_STATISTICS, evaluation.stats, strict=True)}


@dataclass(frozen=True)
class Agreement:
    """How much of a reference model's result another model finds too; add the agreements of several pictures."""

    keypoints_found: int = 0
    keypoints: int = 0
    people_found: int = 0
    people: int = 0

    @property
    def share(self) -> float:
        """Share of the reference's key points that were found; 1 if it has none."""
        return self.keypoints_found / self.keypoints if self.keypoints else 1.0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.keypoints_found + other.keypoints_found,
            self.keypoints + other.keypoints,
            self.people_found + other.people_found,
            self.people + other.people,
        )


def keypoint_agreement(
    reference_people: Sequence[Person], other_people: Sequence[Person], tolerance: float = 0.1
) -> Agreement:
    """Count the key points of `reference_people` that `other_people`, of the same picture, have at the same place.

    The same place is within `tolerance` of the size (`Person.size`) of the reference person (and at least one pixel).
    People are matched greedily, those with most key points in common first; a person counts as found if at least half
    of its key points are.

    >>> keypoint_agreement([], []).share
    1.0
    """
    total = Agreement(
        keypoints=sum(int(person.found.sum()) for person in reference_people), people=len(reference_people)
    )
    for row, _, count in match_people(reference_people, other_people, tolerance):
        total += Agreement(keypoints_found=count, people_found=int(2 * count >= reference_people[row].found.sum()))
    return total


def match_people(
    reference_people: Sequence[Person], other_people: Sequence[Person], tolerance: float = 0.1
) -> list[tuple[int, int, int]]:
    """Pair the people of one picture as `keypoint_agreement` does.

    Returns (index in `reference_people`, index in `other_people`, key points at the same place), most of them first.
    """
    common = np.array([[_common(mine, other, tolerance) for other in other_people] for mine in reference_people])
    pairs = []
    while common.size and common.max() > 0:
        row, column = divmod(int(common.argmax()), common.shape[1])
        pairs.append((row, column, int(common[row, column])))
        common[row, :] = common[:, column] = 0
    return pairs


def _common(reference: Person, other: Person, tolerance: float) -> int:
    limit = max(1.0, tolerance * reference.size)
    distance = np.hypot(*(reference.keypoints[:, :2] - other.keypoints[:, :2]).T)
    return int((reference.found & other.found & (distance <= limit)).sum())
