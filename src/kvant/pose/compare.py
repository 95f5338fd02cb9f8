"""What differs between the people that two models find in the same picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kvant.pose.evaluate import match_people
from kvant.pose.person import Person
from kvant.pose.pictures import Picture

if TYPE_CHECKING:
    from kvant.pose.estimator import PoseEstimator


COMPARISON_COLUMNS = (
    "person", "parts, float", "parts, int8", "same place", "mean distance, px", "largest, px", "mean / person's size",
    "score, float", "score, int8",
)  # fmt: skip
"""Titles of `Difference.row`, where the reference is the float network and the other one the int8 file."""


@dataclass(frozen=True)
class Difference:
    """One person as two models see it; a model that does not find it has no number, no parts and no score.

    Numbers count the people of each model from 0, best first. `parts_both` were found by both models, `parts_same` of
    these lie at the same place. Distances are between parts that both found, in pixels of the picture; `share` is the
    mean distance over the size (`Person.size`) that the reference gives the person, or over a pixel if that is more.
    """

    reference: int | None
    other: int | None
    parts_reference: int = 0
    parts_other: int = 0
    parts_both: int = 0
    parts_same: int = 0
    mean_px: float | None = None
    max_px: float | None = None
    share: float | None = None
    score_reference: float | None = None
    score_other: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def row(self) -> list[str]:
        """For a table under `COMPARISON_COLUMNS`."""
        if self.reference is None:
            who = f"{(self.other or 0) + 1}, int8 only"
        else:
            who = f"{self.reference + 1}" if self.other is not None else f"{self.reference + 1}, float only"
        return [
            who,
            str(self.parts_reference),
            str(self.parts_other),
            f"{self.parts_same} of {self.parts_both}",
            _show(self.mean_px, ".2f"),
            _show(self.max_px, ".2f"),
            _show(self.share, ".2%"),
            _show(self.score_reference, ".3f"),
            _show(self.score_other, ".3f"),
        ]


def _show(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


@dataclass(frozen=True)
class Comparison:
    """What two models find in one picture, the milliseconds each took, and what differs."""

    reference: list[Person]
    other: list[Person]
    reference_ms: float
    other_ms: float
    differences: list[Difference]


def compare_estimators(reference: PoseEstimator, other: PoseEstimator, picture: Picture) -> Comparison:
    """Find people with both, one after the other."""
    mine, mine_ms = _timed(reference, picture)
    theirs, theirs_ms = _timed(other, picture)
    return Comparison(mine, theirs, mine_ms, theirs_ms, compare_people(mine, theirs))


def _timed(estimator: PoseEstimator, picture: Picture) -> tuple[list[Person], float]:
    start = time.perf_counter()
    people = estimator.detect(picture)
    return people, round(1000 * (time.perf_counter() - start), 2)


def compare_people(
    reference_people: Sequence[Person], other_people: Sequence[Person], tolerance: float = 0.1
) -> list[Difference]:
    """Return a `Difference` for everyone whom one of the models finds: the reference's people, then the other's alone.

    `tolerance` says what the same place is; see `kvant.pose.keypoint_agreement`.

    >>> points = np.zeros((18, 3), np.float32)
    >>> points[:2] = (10, 10, 1), (40, 50, 1)
    >>> moved = points + np.float32([1, 0, 0])
    >>> [found] = compare_people([Person(points, 0.5)], [Person(moved * (points > 0), 0.5)])
    >>> found.parts_same, found.mean_px
    (2, 1.0)
    """
    pairs = {row: (column, same) for row, column, same in match_people(reference_people, other_people, tolerance)}
    found = []
    for row, person in enumerate(reference_people):
        if row in pairs:
            column, same = pairs[row]
            found.append(_difference(row, person, column, other_people[column], same))
        else:
            found.append(Difference(row, None, parts_reference=_parts(person), score_reference=person.score))
    taken = {column for column, _ in pairs.values()}
    return found + [
        Difference(None, column, parts_other=_parts(person), score_other=person.score)
        for column, person in enumerate(other_people)
        if column not in taken
    ]


def _parts(person: Person) -> int:
    return int(person.found.sum())


def _difference(row: int, person: Person, column: int, other: Person, same: int) -> Difference:
    both = person.found & other.found
    distance = np.hypot(*(person.keypoints[both, :2] - other.keypoints[both, :2]).T)
    return Difference(
        reference=row,
        other=column,
        parts_reference=_parts(person),
        parts_other=_parts(other),
        parts_both=int(both.sum()),
        parts_same=same,
        mean_px=round(float(distance.mean()), 3),
        max_px=round(float(distance.max()), 3),
        share=round(float(distance.mean()) / max(1.0, person.size), 5),
        score_reference=person.score,
        score_other=other.score,
    )
