"""Pictures in Y'CbCr against OpenCV's and FFmpeg's conversions, and against what happens to the same picture in BGR."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pytest

from kvant.pose import NetworkSpec, Person, draw_people, network_spec, prepare
from kvant.pose.layout import PART_COLOURS
from kvant.pose.yuv import Colours, YuvPicture, colour_of

from .scenes import standing

THIN = network_spec("openpose-mobilenet-thin")
BT601, BT709, BT2020 = Colours(6), Colours(1), Colours(9)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A colourful picture without fine patterns, BGR."""
    small = np.random.default_rng(seed).integers(40, 216, (4, 5, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def difference(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(int) - second).max())


def test_from_bgr_is_opencvs_bt601() -> None:
    picture = smooth(60, 80)
    expected = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)
    found = YuvPicture.from_bgr(picture)
    assert difference(found.y, expected[:60]) <= 1
    for plane, rows in ((found.u, expected[60:75]), (found.v, expected[75:])):
        # OpenCV takes the colour of one pixel, this is the average of four.
        assert np.abs(plane.astype(int) - rows.reshape(30, 40)).mean() < 2
        assert difference(plane, rows.reshape(30, 40)) <= 6


@pytest.mark.parametrize(("colours", "name"), [(BT601, "ITU601"), (BT709, "ITU709")])
@pytest.mark.parametrize("size", [(60, 80), (61, 83)])
def test_to_bgr_is_ffmpegs(colours: Colours, name: str, size: tuple[int, int]) -> None:
    frame = av.VideoFrame.from_ndarray(smooth(*size), format="bgr24").reformat(
        format="yuv420p", dst_colorspace=name, dst_color_range="MPEG"
    )
    expected = frame.reformat(format="bgr24", src_colorspace=name, src_color_range="MPEG").to_ndarray()
    planes = [
        np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width].copy() for plane in frame.planes
    ]
    if size[1] % 2 == 0:  # FFmpeg interpolates colours otherwise
        assert difference(YuvPicture(*planes, colours=colours).to_bgr(), expected) <= 4
    assert np.abs(YuvPicture(*planes, colours=colours).to_bgr().astype(int) - expected).mean() < 3


@pytest.mark.parametrize("matrix", [1, 2, 4, 5, 6, 7, 9])
@pytest.mark.parametrize("full_range", [False, True])
def test_there_and_back(matrix: int, full_range: bool) -> None:
    colours = Colours(matrix, full_range)
    picture = smooth(40, 60)
    assert np.abs(YuvPicture.from_bgr(picture, colours).to_bgr().astype(int) - picture).mean() < 3
    flat = np.full((3, 5, 3), (200, 120, 60), np.uint8)
    assert difference(YuvPicture.from_bgr(flat, colours).to_bgr(), flat) <= 2


def test_black_white_and_primary_colours() -> None:
    assert colour_of((0, 0, 0), BT601) == (16, 128, 128)
    assert colour_of((255, 255, 255), BT709) == (235, 128, 128)
    assert colour_of((0, 0, 255), BT601) == (81, 90, 240)  # red, as in BT.601's table of colour bars
    assert colour_of((255, 0, 0), BT601) == (41, 240, 110)
    assert colour_of((0, 0, 255), BT709) == (63, 102, 240)
    assert colour_of((255, 255, 255), Colours(1, full_range=True)) == (255, 128, 128)


def test_a_limited_range_looks_the_same() -> None:
    full = YuvPicture.from_bgr(smooth(40, 60), Colours(1, full_range=True))
    limited = full.limited()
    assert limited.colours == BT709
    assert difference(limited.to_bgr(), full.to_bgr()) <= 3
    assert limited.limited() is limited


@pytest.mark.parametrize("quarters", [-1, 0, 1, 2, 3, 4])
def test_turning(quarters: int) -> None:
    picture = YuvPicture.from_bgr(smooth(40, 60))
    np.testing.assert_array_equal(picture.turned(quarters).to_bgr(), np.rot90(picture.to_bgr(), quarters))


@pytest.mark.parametrize("size", [(994, 1768), (720, 1280), (480, 640), (300, 400), (97, 131), (1, 1)])
@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_the_network_sees_what_it_sees_in_bgr(size: tuple[int, int], order: str) -> None:
    picture = YuvPicture.from_bgr(smooth(*size), BT709)
    spec = NetworkSpec("mine", THIN.input.__class__(channel_order=order), THIN.output)
    found, geometry = prepare(picture, spec, 184)
    expected, same = prepare(picture.to_bgr(), spec, 184)
    assert geometry == same
    assert np.abs(found - expected).mean() < 1.5
    assert np.abs(found - expected).max() < 25


@pytest.mark.parametrize("colours", [BT601, BT2020, Colours(1, full_range=True)])
def test_skeletons_look_as_in_bgr(colours: Colours) -> None:
    picture = YuvPicture.from_bgr(smooth(300, 400), colours)
    before = picture.copy()
    people = [Person(standing(60, 20, 120, 240), 1.0), Person(standing(200, 50, 100, 200), 1.0)]
    found, expected = draw_people(picture, people), draw_people(picture.to_bgr(), people)
    assert np.abs(found.to_bgr().astype(int) - expected).mean() < 1.5
    for plane, same in zip(picture.planes, before.planes, strict=True):
        np.testing.assert_array_equal(plane, same)
    out = picture.copy()
    assert draw_people(picture, people, out=out) is out
    for plane, same in zip(out.planes, found.planes, strict=True):
        np.testing.assert_array_equal(plane, same)


def test_parts_have_their_colour() -> None:
    picture = YuvPicture.from_bgr(np.zeros((200, 160, 3), np.uint8))
    points = standing(20, 20, 100, 160, parts=(4,))
    x, y = np.rint(points[4, :2]).astype(int)
    drawn = draw_people(picture, [Person(points, 1.0)], opacity=1)
    assert difference(drawn.to_bgr()[y, x], np.array(PART_COLOURS[4])) <= 3


def test_a_copy_of_another_kind_is_refused() -> None:
    picture = YuvPicture.from_bgr(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(ValueError, match="zip"):
        draw_people(picture, [], out=picture.to_bgr())
