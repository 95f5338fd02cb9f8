from __future__ import annotations

import numpy as np
import pytest

from kvant.pose import PARTS, Person, draw_people, side_by_side
from kvant.pose.layout import PART_COLOURS

from .scenes import standing


def test_drawing_leaves_the_picture_alone() -> None:
    picture = np.full((200, 160, 3), 90, np.uint8)
    drawn = draw_people(picture, [Person(standing(20, 20, 100, 160), 1.0)])
    assert (picture == 90).all()
    assert drawn.shape == picture.shape
    assert drawn.dtype == np.uint8
    assert (drawn != picture).any()
    np.testing.assert_array_equal(draw_people(picture, []), picture)


def test_parts_get_their_colour_at_their_place() -> None:
    picture = np.zeros((200, 160, 3), np.uint8)
    drawn = draw_people(picture, [Person(standing(20, 20, 100, 160, parts=(4,)), 1.0)], opacity=1)
    x, y = np.rint(standing(20, 20, 100, 160)[4, :2]).astype(int)
    assert tuple(drawn[y, x].tolist()) == PART_COLOURS[PARTS.index("right_wrist")]


def test_lines_scale_with_the_picture() -> None:
    def share(size: int) -> float:
        drawn = draw_people(np.zeros((size, size, 3), np.uint8), [Person(standing(0, 0, size, size), 1.0)])
        return float(drawn.mean())

    assert share(2000) == pytest.approx(share(500), rel=0.2)


def test_people_beyond_the_border_are_clipped() -> None:
    """As if the picture was cut out of a larger one, but for what OpenCV smooths next to the border."""
    person = standing(-10, -10, 40, 60)
    small = draw_people(np.zeros((24, 24, 3), np.uint8), [Person(person, 1.0)])
    large = draw_people(np.zeros((100, 100, 3), np.uint8), [Person(person + np.float32([20, 20, 0]), 1.0)])
    inside = small[2:-2, 2:-2]
    assert inside.any()
    np.testing.assert_array_equal(inside, large[22:42, 22:42])


@pytest.mark.parametrize("far", [1e8, -1e9, 3e38])
def test_people_far_away_are_no_crash(far: float) -> None:
    picture, points = np.zeros((60, 80, 3), np.uint8), standing(20, 20, 40, 30)
    points[4, 0] = far
    assert draw_people(picture, [Person(points, 1.0)]).any()
    points[:, 0] = far
    assert not draw_people(picture, [Person(points, 1.0)]).any()


@pytest.mark.parametrize("lefts", [(), (60,), (60, 150), (60, 75), (60, 150, 90), (20, 250, 220, 50), (60, -70)])
@pytest.mark.parametrize("opacity", [0.3, 0.7])
def test_what_is_not_drawn_on_keeps_its_values(lefts: tuple[int, ...], opacity: float) -> None:
    """As if the whole picture was blended with what is drawn on it, once: also where people meet."""
    picture = np.random.default_rng(0).integers(0, 256, (240, 300, 3)).astype(np.uint8)
    people = [Person(standing(left, 20, 40, 160 + 30 * number), 1.0) for number, left in enumerate(lefts)]
    opaque = draw_people(picture, people, opacity=1)
    blended = np.rint(np.float32(opacity) * opaque + np.float32(1 - opacity) * picture)
    assert np.abs(draw_people(picture, people, opacity) - blended).max() <= 1
    same = (opaque == picture).all(axis=2)
    np.testing.assert_array_equal(draw_people(picture, people, opacity)[same], picture[same])
    assert not lefts or not same.all()


def test_side_by_side_scales_to_the_left_height() -> None:
    left, right = np.zeros((100, 50, 3), np.uint8), np.zeros((200, 60, 3), np.uint8)
    plain = side_by_side(left, right)
    assert plain.shape == (100, 50 + 8 + 30, 3)
    titled = side_by_side(left, right, ("float32", "a title that is far too long for thirty pixels"))
    assert titled.shape[0] > 100
    assert titled.shape[1] == plain.shape[1]
    assert (titled[: titled.shape[0] - 100] < 128).any()
