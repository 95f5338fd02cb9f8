"""Peaks, lines and people of the library beside plain loops, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_double, c_float, c_int64, c_void_p
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.errors import BackendError
from kvant.runtime.native import Filter, LineRules, PeopleFinder, PeopleRules, Scale, Skeleton, View, library
from kvant.runtime.native.maps import Fields, Maps

Array = np.ndarray[Any, np.dtype[Any]]
Pair = tuple[float, float]
KINDS = np.array([[0, 1, 0, 1], [1, 2, 2, 3], [2, 2, 3, 0]])
LINE = np.dtype(
    [("kind", np.int32), ("start", np.int32), ("end", np.int32), ("score", np.float32), ("strength", np.float32)]
)
BAD = 2


class Interpolated(NamedTuple):
    maps: Array
    rows: Filter
    columns: Filter


class Placed(NamedTuple):
    fields: Array
    scale: Pair = (1.0, 1.0)
    shift: Pair = (0.0, 0.0)


def find_peaks(maps: Sequence[Interpolated], threshold: float, most: int, status: int = 0) -> tuple[Array, Array]:
    """x, y, height of each peak, and where those of each channel begin."""
    records = [
        Maps(each.maps.ctypes.data, *each.maps.shape[1:], each.rows.record, each.columns.record) for each in maps
    ]
    channels = len(maps[0].maps)
    peaks, bounds = np.empty((channels * most, 3), np.float32), np.zeros(channels + 1, np.int64)
    found = library.load_library().kvant_peaks(
        c_int64(len(maps)), (Maps * len(maps))(*records), c_int64(channels), c_float(threshold), c_int64(most),
        (c_double * 2)(1, 1), c_void_p(peaks.ctypes.data), c_void_p(bounds.ctypes.data),
    )  # fmt: skip
    assert found == status
    return peaks[: bounds[-1]], bounds


def find_lines(
    fields: Sequence[Placed], peaks: Array, bounds: Array, kinds: Array, rules: LineRules, status: int = 0
) -> Array:
    records = [Fields(each.fields.ctypes.data, *each.fields.shape[1:], each.scale, each.shift) for each in fields]
    lines, count = np.empty(len(peaks) ** 2 * len(kinds), LINE), c_int64(0)
    found = library.load_library().kvant_lines(
        c_int64(len(fields)), (Fields * len(fields))(*records), c_int64(len(fields[0].fields)),
        c_int64(len(bounds) - 1), c_void_p(peaks.ctypes.data), c_void_p(bounds.ctypes.data), c_int64(len(kinds)),
        c_void_p(kinds.ctypes.data), byref(rules), c_void_p(lines.ctypes.data), byref(count),
    )  # fmt: skip
    assert found == status
    return lines[: count.value]


def banded(rng: np.random.Generator, results: int, cells: int) -> Array:
    """Weights of results over a few cells each, some of them negative."""
    matrix = np.zeros((results, cells))
    for row in matrix:
        terms = int(rng.integers(1, min(cells, 5) + 1))
        first = int(rng.integers(0, cells - terms + 1))
        row[first : first + terms] = rng.normal(0.3, 0.3, terms)
    return matrix.astype(np.float32)


def plain_peaks(mean: Array, threshold: float) -> dict[tuple[int, int], float]:
    """(row, column) -> height."""
    height, width = mean.shape
    padded = np.pad(mean, 1, constant_values=-1)
    found = {}
    for y in range(height):
        for x in range(width):
            value, near = padded[y + 1, x + 1], padded[y : y + 3, x : x + 3].ravel()
            if value > threshold and (value >= near[:4]).all() and (value > near[5:]).all():
                found[y, x] = float(value)
    return found


def interpolated(maps: Sequence[Interpolated], matrices: Sequence[tuple[Array, Array]]) -> Array:
    each = [rows.astype(float) @ own.maps @ columns.T for own, (rows, columns) in zip(maps, matrices, strict=True)]
    return np.mean(each, axis=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([0.05, 0.6, 1.5]))
def test_peaks_are_those_of_whole_maps(seed: int, count: int, threshold: float) -> None:
    """Most cells are small, so that most rows and columns need not be interpolated."""
    rng = np.random.default_rng(seed)
    results = rng.integers(1, 40, 2)
    maps, matrices = [], []
    for _ in range(count):
        size = rng.integers(1, 20, 2)
        pair = banded(rng, results[0], size[0]), banded(rng, results[1], size[1])
        cells = rng.normal(0, 1, (3, *size)) * (rng.random((3, *size)) < 0.1) + rng.normal(0, 0.01, (3, *size))
        maps.append(Interpolated(cells.astype(np.float32), Filter.from_matrix(pair[0]), Filter.from_matrix(pair[1])))
        matrices.append(pair)
    peaks, bounds = find_peaks(maps, threshold, 400)
    assert bounds[-1] == len(peaks)
    for mean, (begin, end) in zip(interpolated(maps, matrices), pairwise(bounds), strict=True):
        expected = plain_peaks(mean, threshold)
        found = {(round(float(y)), round(float(x))): float(height) for x, y, height in peaks[begin:end]}
        surely = {place for place, height in expected.items() if height > threshold + 1e-5}
        assert surely - near_ties(mean) <= found.keys() <= expected.keys() | near_ties(mean)
        assert (np.diff(peaks[begin:end, 2]) <= 0).all()
        for place in found.keys() & expected.keys():
            assert found[place] == pytest.approx(expected[place], abs=1e-4)


def near_ties(mean: Array) -> set[tuple[int, int]]:
    """Places that have a neighbour as high as they are but for rounding, or a height that is."""
    padded = np.pad(mean, 1, constant_values=-1)
    shifted = [padded[dy : dy + mean.shape[0], dx : dx + mean.shape[1]] for dy in range(3) for dx in range(3)]
    close = np.sum([np.abs(other - mean) < 1e-5 for other in shifted], axis=0) > 1
    return {(int(y), int(x)) for y, x in zip(*np.nonzero(close), strict=True)}


def one_map(values: Array, threshold: float = 0.5, most: int = 9) -> list[tuple[float, float, float]]:
    height, width = values.shape
    own = Interpolated(
        values[np.newaxis].astype(np.float32), Filter.from_matrix(np.eye(height)), Filter.from_matrix(np.eye(width))
    )
    return [tuple(peak) for peak in find_peaks([own], threshold, most)[0].tolist()]


def test_of_a_plateau_the_last_is_a_peak() -> None:
    values = np.zeros((6, 7))
    values[2:4, 1:4] = 1
    ((x, y, height),) = one_map(values)
    assert (x, y, height) == (2.5, 2.5, 1.0)


def test_peaks_lie_between_cells_and_the_highest_are_kept() -> None:
    values = np.zeros((5, 9))
    values[2, 1:4] = 0.5, 1.0, 0.75
    values[1, 6] = 0.9
    assert one_map(values) == [(pytest.approx(2 + 1 / 6), 2.0, 1.0), (6.0, 1.0, pytest.approx(0.9))]
    assert len(one_map(values, most=1)) == 1
    assert one_map(values, threshold=1.0) == []


def test_what_is_not_finite_has_no_peak() -> None:
    values = np.full((4, 4), np.nan)
    assert one_map(values) == []
    values[1, 1] = np.inf
    assert one_map(values) == []


def plain_line(fields: Array, start: Array, end: Array, rules: LineRules) -> float | None:
    along = (end - start).astype(float)
    length = max(float(np.hypot(*along)), 1e-3)
    values = []
    for step in np.linspace(0, 1, rules.points):
        x, y = np.clip(start + step * along, 0, np.array(fields.shape[:0:-1]) - 1)
        left, top = int(x), int(y)
        right, below = min(left + 1, fields.shape[2] - 1), min(top + 1, fields.shape[1] - 1)
        upper = fields[:, top, left] * (1 - x + left) + fields[:, top, right] * (x - left)
        lower = fields[:, below, left] * (1 - x + left) + fields[:, below, right] * (x - left)
        values.append(float((upper * (1 - y + top) + lower * (y - top)) @ along) / length)
    score = float(np.mean(values)) + min(rules.long_line / length - 1, 0)
    return score if sum(value <= rules.threshold for value in values) <= rules.failures and score > 0 else None


@pytest.mark.parametrize("seed", range(4))
def test_lines_are_those_of_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fields = (rng.normal(0.2, 0.6, (4, 12, 9))).astype(np.float32)
    peaks = rng.uniform(-1, 13, (17, 3)).astype(np.float32)
    bounds = np.array([0, 6, 11, 17])
    rules = LineRules(points=7, threshold=0.1, failures=3, long_line=4, peak_weight=0.1)
    found = find_lines([Placed(fields)], peaks, bounds, KINDS, rules)
    assert (np.diff(found["strength"]) <= 0).all()
    scores = {(kind, start, end): score for kind, start, end, score, _ in found.tolist()}
    expected = {}
    for number, (begin, stop, x, y) in enumerate(KINDS):
        for one in range(*bounds[begin : begin + 2]):
            for other in range(*bounds[stop : stop + 2]):
                score = plain_line(fields[[x, y]], peaks[one, :2], peaks[other, :2], rules)
                if score is not None:
                    expected[number, one, other] = score
    assert len(expected) > 3
    assert scores.keys() == expected.keys()
    for key, score in expected.items():
        assert scores[key] == pytest.approx(score, abs=1e-4)
    strengths = found["score"] + np.float32(0.1) * (peaks[found["start"], 2] + peaks[found["end"], 2])
    np.testing.assert_allclose(found["strength"], strengths, rtol=1e-5)


def test_fields_of_several_sizes_are_averaged() -> None:
    rng = np.random.default_rng(0)
    small = rng.normal(0.5, 0.2, (4, 5, 6)).astype(np.float32)
    large = np.repeat(np.repeat(small, 2, axis=1), 2, axis=2)
    peaks = np.array([[1, 1, 1], [4, 3, 1], [2, 4, 1]], np.float32)
    rules = LineRules(points=5, threshold=-10, failures=0, long_line=99, peak_weight=0)
    one = Placed(small), Placed(large, (2.0, 2.0), (0.5, 0.5))
    scores = [
        find_lines(fields, peaks, np.array([0, 1, 2, 3]), KINDS[:1], rules)["score"]
        for fields in (one[:1], one[1:], one)
    ]
    assert scores[2] == pytest.approx((scores[0] + scores[1]) / 2, abs=1e-6)


def test_filters_and_sizes_are_checked() -> None:
    maps = np.zeros((2, 4, 5), np.float32)
    fine = Interpolated(maps, Filter.from_matrix(np.eye(4)), Filter.from_matrix(np.eye(5)))
    find_peaks([fine], 0.1, 5)
    find_peaks([fine._replace(columns=Filter.from_matrix(np.eye(6)))], 0.1, 5, status=BAD)
    find_peaks([fine, fine._replace(rows=Filter.from_matrix(np.ones((3, 4))))], 0.1, 5, status=BAD)


@pytest.mark.parametrize(
    ("bounds", "kinds", "points"),
    [
        ([0, 1, 2, 3], [[-1, 1, 0, 1]], 5),
        ([0, 1, 2, 3], [[0, 1, 0, 4]], 5),
        ([0, 2, 1, 3], [[0, 2, 0, 1]], 5),
        ([1, 1, 2, 3], [[0, 1, 0, 1]], 5),
        ([0, 1, 2, 3], [[0, 1, 0, 1]], 0),
    ],
)
def test_lines_outside_are_refused(bounds: list[int], kinds: list[list[int]], points: int) -> None:
    fields = Placed(np.zeros((4, 5, 6), np.float32))
    rules = LineRules(points=points, threshold=0, failures=0, long_line=1, peak_weight=0)
    find_lines([fields], np.zeros((3, 3), np.float32), np.array(bounds), np.array(kinds), rules, status=BAD)


LIMBS = ((0, 1, 0, 1), (1, 2, 2, 3), (1, 3, 4, 5), (3, 4, 6, 7), (2, 4, 8, 9))
FOUNDING = 4


def plain_people(lines: Array, peaks: Array, least_parts: int, least_confidence: float) -> list[tuple[float, Array]]:
    """Score and part -> peak, best first; -1 for a part that was not found."""
    used: set[tuple[int, int]] = set()
    owners: dict[int, dict[str, Any]] = {}
    for kind, start, end, score, _ in lines.tolist():
        if not used.isdisjoint(ends := {(kind, start), (kind, end)}):
            continue
        used |= ends
        first, second = owners.get(start), owners.get(end)
        if first is None and second is None and kind >= FOUNDING:
            continue
        first = first or {"members": {LIMBS[kind][0]: start}, "limbs": 0.0}
        second = second or {"members": {LIMBS[kind][1]: end}, "limbs": 0.0}
        if first is not second:
            if first["members"].keys() & second["members"].keys():
                continue
            first["members"] |= second["members"]
            first["limbs"] += second["limbs"]
            owners.update(dict.fromkeys(first["members"].values(), first))
        first["limbs"] += score
    people = []
    for group in {id(group): group for group in owners.values()}.values():
        members = list(group["members"].values())
        confidence = 0.5 * (float(peaks[members, 2].sum()) + group["limbs"]) / len(members)
        if len(members) >= least_parts and confidence >= least_confidence:
            parts = np.full(5, -1)
            parts[list(group["members"])] = members
            people.append((confidence * (len(members) / 5) ** 0.5, parts))
    return sorted(people, key=lambda person: -person[0])


@pytest.mark.parametrize("seed", range(6))
def test_people_are_those_of_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.random((5, 11, 14), dtype=np.float32)
    fields = rng.normal(0.15, 0.5, (10, 11, 14)).astype(np.float32)
    lines = LineRules(points=6, threshold=0.0, failures=2, long_line=6, peak_weight=0.3)
    filters = Filter.from_matrix(np.eye(11)), Filter.from_matrix(np.eye(14))
    peaks, bounds = find_peaks([Interpolated(maps, *filters)], 0.3, 9)
    found = find_lines([Placed(fields)], peaks, bounds, np.array(LIMBS), lines)
    expected = plain_people(found, peaks, 2, 0.35)

    view = View((1.0, 1.0), (0.5, 0.25), (27, 40))
    rules = PeopleRules(threshold=0.3, most=9, lines=lines, parts=2, confidence=0.35)
    scale = Scale((11, 14), *filters, (1.0, 1.0), (0.0, 0.0))
    keypoints, scores = PeopleFinder(Skeleton(5, LIMBS, FOUNDING), rules, [scale], view)([maps], [fields])
    assert len(expected) > 3
    assert scores == pytest.approx([score for score, _ in expected])
    for own, (_, parts) in zip(keypoints, expected, strict=True):
        np.testing.assert_array_equal(own[parts < 0], 0)
        there = peaks[parts[parts >= 0]]
        pixels = np.clip((there[:, :2] + 0.5) / (0.5, 0.25) - 0.5, 0, (26, 39))
        np.testing.assert_allclose(own[parts >= 0], np.column_stack([pixels, there[:, 2]]), rtol=1e-5)


@pytest.mark.parametrize(
    ("limb", "most", "message"),
    [((0, 5, 0, 1), 4, "out of range"), ((-1, 1, 0, 1), 4, "out of range"), ((0, 1, 0, 10), 4, "out of range"),
     ((0, 1, 0, 1), -1, "out of range"), ((0, 1, 0, 1), 2**15, "out of range")],
)  # fmt: skip
def test_skeletons_outside_are_refused(limb: tuple[int, int, int, int], most: int, message: str) -> None:
    lines = LineRules(points=6, threshold=0.0, failures=2, long_line=6, peak_weight=0.3)
    rules = PeopleRules(threshold=0.3, most=most, lines=lines, parts=2, confidence=0.35)
    scale = Scale((3, 4), Filter.from_matrix(np.eye(3)), Filter.from_matrix(np.eye(4)), (1.0, 1.0), (0.0, 0.0))
    find = PeopleFinder(Skeleton(5, [limb], 1), rules, [scale], View((1.0, 1.0), (1.0, 1.0), (4, 3)))
    with pytest.raises(BackendError, match=message):
        find([np.zeros((5, 3, 4), np.float32)], [np.zeros((10, 3, 4), np.float32)])


def test_null_pointers_are_refused() -> None:
    lib, steps = library.load_library(), (c_double * 2)(1, 1)
    assert lib.kvant_peaks(c_int64(1), None, c_int64(1), c_float(0), c_int64(1), steps, None, None) == 1
    rules, found = LineRules(points=2), c_int64(0)
    arguments = c_int64(1), None, c_int64(1), c_int64(1), None, None, c_int64(1), None
    assert lib.kvant_lines(*arguments, byref(rules), c_void_p(), byref(found)) == 1
    nothing = c_int64(1), None, None, c_int64(1), None, None, None, c_int64(1), None, None
    assert lib.kvant_people(*nothing, byref(found)) == 1
