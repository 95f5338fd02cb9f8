from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kvant.pose import DecoderSettings, Geometry, Maps, Person, decode_native, decode_numpy, decode_people
from kvant.pose.interpolation import smoothed
from kvant.pose.layout import Float32Array

from .conftest import REPOSITORY
from .scenes import identity, render, standing

HEIGHT, WIDTH = 368, 496


def decode_scene(people: list[Float32Array], decoder: DecoderSettings | None = None) -> list[Person]:
    heat, paf = render(people, HEIGHT, WIDTH)
    return decode_people([Maps(heat, paf, identity(HEIGHT, WIDTH))], decoder)


def assert_same(found: list[Person], expected: list[Float32Array], pixels: float = 1.5) -> None:
    """Each expected person is found once, with the same parts, all within `pixels`."""
    assert len(found) == len(expected)
    left = list(found)
    for person in expected:
        distances = [np.abs(each.keypoints[:, :2] - person[:, :2]).max() for each in left]
        nearest = left.pop(int(np.argmin(distances)))
        np.testing.assert_array_equal(nearest.found, person[:, 2] > 0)
        assert min(distances) <= pixels


def test_one_person() -> None:
    expected = standing(100.3, 40.7, 120, 280)
    (person,) = decode_scene([expected])
    assert_same([person], [expected])
    assert person.keypoints.dtype == np.float32
    assert person.score > 0.8


def test_several_people_apart() -> None:
    expected = [standing(20, 30, 110, 300), standing(170, 60, 90, 240), standing(330, 20, 130, 320)]
    assert_same(decode_scene(expected), expected)


def test_overlapping_people() -> None:
    expected = [standing(100, 30, 120, 300), standing(145, 50, 110, 290)]
    assert_same(decode_scene(expected), expected, pixels=4)


def test_partly_visible_people() -> None:
    upper, legs = tuple(range(8)), (1, 8, 9, 10, 11, 12, 13)
    expected = [standing(40, 40, 120, 280, upper), standing(280, 40, 120, 280, legs)]
    assert_same(decode_scene(expected), expected)


def test_people_are_ordered_by_score() -> None:
    faint = standing(40, 40, 120, 280)
    faint[:, 2] = 0.5
    found = decode_scene([faint, standing(280, 40, 120, 280)])
    assert [person.keypoints[0, 0] > 200 for person in found] == [True, False]
    assert found[0].score > found[1].score


def test_too_few_parts_are_dropped() -> None:
    scene = [standing(100, 40, 120, 280, parts=(2, 3, 4))]
    assert decode_scene(scene) == []
    assert len(decode_scene(scene, DecoderSettings(min_parts=3))) == 1


def test_weak_people_are_dropped() -> None:
    assert decode_scene([standing(100, 40, 120, 280)], DecoderSettings(min_confidence=1.1)) == []


def test_parts_without_fields_make_no_people() -> None:
    heat, paf = render([standing(100, 40, 120, 280)], HEIGHT, WIDTH)
    assert decode_people([Maps(heat, np.zeros_like(paf), identity(HEIGHT, WIDTH))]) == []
    assert decode_people([Maps(heat, -paf, identity(HEIGHT, WIDTH))]) == []


def test_the_limbs_of_two_people_are_not_exchanged() -> None:
    left, right = standing(100, 30, 100, 300), standing(215, 30, 100, 300)
    for person in decode_scene([left, right]):
        wrists = person.keypoints[[4, 7], 0]
        assert wrists[1] - wrists[0] == pytest.approx(70, abs=3)


def test_empty_maps() -> None:
    heat, paf = np.zeros((19, 46, 62), np.float32), np.zeros((38, 46, 62), np.float32)
    assert decode_people([Maps(heat, paf, identity(HEIGHT, WIDTH))]) == []


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 7), (5, 1), (2, 2)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_tiny_maps(rows: int, columns: int, value: float) -> None:
    heat, paf = np.full((19, rows, columns), value, np.float32), np.ones((38, rows, columns), np.float32)
    for person in decode_people([Maps(heat, paf, identity(8 * rows, 8 * columns))]):
        assert np.isfinite(person.keypoints).all()


def test_maps_that_are_not_finite_give_no_such_keypoints() -> None:
    heat, paf = render([standing(100, 40, 120, 280)], HEIGHT, WIDTH)
    heat[:, 3, 3], paf[:, 20, 20] = np.nan, np.nan
    for person in decode_people([Maps(heat, paf, identity(HEIGHT, WIDTH))]):
        assert np.isfinite(person.keypoints).all()
        assert np.isfinite(person.score)


@hypothesis_settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 20), columns=st.integers(1, 20))
def test_noise_gives_finite_keypoints_inside_the_picture(seed: int, rows: int, columns: int) -> None:
    random = np.random.default_rng(seed)
    heat = random.random((19, rows, columns), dtype=np.float32)
    paf = random.standard_normal((38, rows, columns), dtype=np.float32)
    geometry = Geometry((rows * 5, columns * 5), (8 * rows - 3, 8 * columns - 3), (8 * rows, 8 * columns), 8)
    for person in decode_people([Maps(heat, paf, geometry)]):
        assert np.isfinite(person.keypoints).all()
        assert (person.keypoints >= 0).all()
        assert (person.keypoints[:, 0] <= columns * 5 - 1).all()
        assert (person.keypoints[:, 1] <= rows * 5 - 1).all()
        assert person.found.sum() >= 4


def test_every_peak_belongs_to_one_person() -> None:
    random = np.random.default_rng(0)
    heat = random.random((19, 30, 30), dtype=np.float32)
    paf = random.standard_normal((38, 30, 30), dtype=np.float32)
    people = decode_people([Maps(heat, paf, identity(240, 240))])
    for part in range(18):
        points = [tuple(person.keypoints[part]) for person in people if person.found[part]]
        assert len(points) == len(set(points))


def test_coordinates_are_those_of_the_picture() -> None:
    expected = standing(100, 40, 120, 280)
    heat, paf = render([expected], HEIGHT, WIDTH)
    geometry = Geometry((2 * HEIGHT, 3 * WIDTH), (HEIGHT, WIDTH), (HEIGHT, WIDTH), 8)
    (person,) = decode_people([Maps(heat, paf, geometry)])
    np.testing.assert_allclose(person.keypoints[:, 0], 3 * (expected[:, 0] + 0.5) - 0.5, atol=4)
    np.testing.assert_allclose(person.keypoints[:, 1], 2 * (expected[:, 1] + 0.5) - 0.5, atol=3)


def test_many_peaks_are_bounded() -> None:
    random = np.random.default_rng(0)
    heat = random.random((19, 40, 40), dtype=np.float32)
    paf = random.standard_normal((38, 40, 40), dtype=np.float32)
    bounded = DecoderSettings(max_peaks=3, min_confidence=0)
    assert len(decode_people([Maps(heat, paf, identity(320, 320))], bounded)) <= 3


@pytest.mark.parametrize(
    ("heat", "paf"), [((18, 4, 4), (38, 4, 4)), ((19, 4, 4), (38, 4, 5)), ((1, 19, 4, 4), (38, 4, 4))]
)
def test_wrong_shapes_are_refused(heat: tuple[int, ...], paf: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected heat maps 19 x h x w"):
        decode_people([Maps(np.zeros(heat, np.float32), np.zeros(paf, np.float32), identity(32, 32))])


@pytest.mark.parametrize("count", [1, 2, 7, 60])
@pytest.mark.parametrize("sigma", [0.1, 0.8, 5.0])
def test_smoothing_is_a_gaussian(count: int, sigma: float) -> None:
    matrix = np.random.default_rng(count).normal(size=(count, 9))
    distance = np.arange(count)[:, np.newaxis] - np.arange(count)
    gaussian = np.exp(-0.5 * (distance / sigma) ** 2)
    expected = gaussian / gaussian.sum(axis=1, keepdims=True) @ matrix
    np.testing.assert_allclose(smoothed(matrix, sigma), expected, atol=1e-8)


def scaled_maps(seed: int, sizes: Sequence[tuple[int, int]]) -> list[Maps]:
    """Two people and noise, in maps of one picture at several scales."""
    random, found = np.random.default_rng(seed), []
    for height, width in sizes:
        own = [standing(0.1 * width, 0.1 * height, 0.3 * width, 0.8 * height),
               standing(0.5 * width, 0.2 * height, 0.3 * width, 0.7 * height)]  # fmt: skip
        heat, paf = (
            (each + 0.02 * random.standard_normal(each.shape)).astype(np.float32) for each in render(own, height, width)
        )
        found.append(Maps(heat, paf, Geometry((500, 640), (height, width), (height, width), 8)))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", [[(368, 472)], [(184, 232), (368, 472), (552, 704)]])
def test_the_library_finds_the_people_that_numpy_finds(seed: int, sizes: Sequence[tuple[int, int]]) -> None:
    maps = scaled_maps(seed, sizes)
    lenient = DecoderSettings(part_threshold=0.01, limb_threshold=0.0, min_confidence=0.05, max_peaks=20)
    for settings in (DecoderSettings(), lenient):
        ours, theirs = (module.find_people(maps, settings) for module in (decode_native, decode_numpy))
        assert len(ours) == len(theirs) >= 2
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.keypoints, other.keypoints, atol=2e-3)
            assert one.score == pytest.approx(other.score, abs=1e-5)


def test_people_are_found_without_the_library(tmp_path: Path) -> None:
    code = (
        "import numpy as np\n"
        "from kvant.pose import Geometry, Maps, decode_people, network_spec, prepare\n"
        "from tests.pose.scenes import identity, render, standing\n"
        "heat, paf = render([standing(100, 40, 120, 280)], 368, 496)\n"
        "assert len(decode_people([Maps(heat, paf, identity(368, 496))])) == 1\n"
        "array, _ = prepare(np.zeros((674, 712, 3), np.uint8), network_spec('openpose-mobilenet-thin'))\n"
        "assert array.shape == (1, 3, 368, 392)\n"
    )
    environment = {"KVANT_LIBRARY": str(tmp_path / "none.so"), "PYTHONPATH": ":".join([str(REPOSITORY), *sys.path])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
