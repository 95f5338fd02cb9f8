from __future__ import annotations

import platform
from typing import Literal

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.errors import ImageError, InputError
from kvant.pose import InputSpec, NetworkSpec, PoseOutput, as_picture, network_spec, prepare, preprocess
from kvant.pose.preprocess import prepare_pixels
from kvant.runtime.native import resample

THIN, VGG = network_spec("openpose-mobilenet-thin"), network_spec("openpose-vgg")


def gradient(height: int = 6, width: int = 10) -> np.ndarray:
    values = np.arange(height * width * 3) * 255 // (height * width * 3 - 1)
    return values.reshape(height, width, 3).astype(np.uint8)


def test_values_follow_the_network() -> None:
    picture = np.full((16, 16, 3), (10, 20, 30), np.uint8)
    thin, _ = prepare(picture, THIN, height=16)
    assert thin.dtype == np.float32
    assert thin[0, :, 3, 3].tolist() == [10, 20, 30]
    vgg, _ = prepare(picture, VGG, height=16)
    np.testing.assert_array_equal(vgg, thin / np.float32(256) - np.float32(0.5))
    rgb = NetworkSpec("mine", InputSpec(channel_order="RGB", stride=16), PoseOutput(("heat", "paf")))
    assert prepare(picture, rgb, height=16)[0][0, :, 3, 3].tolist() == [30, 20, 10]


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_pixels_are_values_before_scaling(order: Literal["BGR", "RGB"]) -> None:
    spec = NetworkSpec("mine", InputSpec(order, stride=16, padding=7), PoseOutput(("heat", "paf")))
    pixels, geometry = prepare_pixels(gradient(), spec, height=24)
    array, same = prepare(gradient(), spec, height=24)
    assert geometry == same
    assert pixels.dtype == np.uint8
    assert pixels.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(pixels, array)


def test_padding_is_grey_right_and_below() -> None:
    array, geometry = prepare(np.zeros((16, 13, 3), np.uint8), THIN, height=16)
    assert array.shape == (1, 3, 16, 16)
    assert geometry.resized == (16, 13)
    assert (array[..., :13] == 0).all()
    assert (array[..., 13:] == 128).all()


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((480, 640), (368, 496)),
        ((481, 639), (368, 496)),
        ((1, 1), (368, 368)),
        ((3000, 20), (368, 8)),
        ((20, 3000), (24, 2944)),
        ((1, 5000), (8, 2944)),
    ],
)
def test_sizes_are_multiples_of_eight_and_bounded(picture: tuple[int, int], expected: tuple[int, int]) -> None:
    array, geometry = prepare(np.zeros((*picture, 3), np.uint8), THIN)
    assert array.shape == (1, 3, *expected)
    assert geometry.padded == expected
    assert geometry.picture == picture


@given(height=st.integers(1, 700), width=st.integers(1, 700))
def test_corners_map_back_to_corners(height: int, width: int) -> None:
    _, geometry = prepare(np.zeros((height, width, 3), np.uint8), THIN, height=64)
    resized_height, resized_width = geometry.resized
    corners = np.array([(-0.5, -0.5), (resized_width / 8 - 0.5, resized_height / 8 - 0.5)], np.float32)
    expected = [(-0.5, -0.5), (width - 0.5, height - 0.5)]
    np.testing.assert_allclose(geometry.to_picture(corners), expected, atol=1e-3)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.uint8(3),
    ],
)
def test_arrays_that_are_no_picture_are_refused(picture: np.ndarray) -> None:
    with pytest.raises(ImageError, match="expected a picture, height x width x 3, BGR, uint8"):
        prepare(picture, THIN)


def test_masked_pixels_are_no_pixels() -> None:
    np.testing.assert_array_equal(as_picture(np.ma.masked_array(gradient())), gradient())
    with pytest.raises(ImageError, match=r"masked: fill them first, with picture.filled\(255\)"):
        as_picture(np.ma.masked_greater(gradient(), 100))


def test_grey_and_transparent_arrays_are_understood() -> None:
    grey = gradient()[:, :, 0]
    expected = np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    np.testing.assert_array_equal(as_picture(grey), expected)
    np.testing.assert_array_equal(as_picture(grey[:, :, np.newaxis]), expected)
    alpha = np.full((*grey.shape, 1), 255, np.uint8)
    alpha[:, :5] = 0
    shown = as_picture(np.concatenate([gradient(), alpha], axis=2))
    assert (shown[:, :5] == 255).all()
    np.testing.assert_array_equal(shown[:, 5:], gradient()[:, 5:])


def test_views_of_pictures_are_understood() -> None:
    flipped = gradient()[::-1, ::-1]
    np.testing.assert_array_equal(prepare(flipped, THIN, 16)[0], prepare(flipped.copy(), THIN, 16)[0])


def test_inputs_that_would_fill_the_memory_are_refused() -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    with pytest.raises(InputError, match="21336 x 16000, more than the 50,000,000 that are allowed: choose a smaller"):
        prepare(picture, THIN, height=16000)
    with pytest.raises(InputError, match="choose a smaller"):
        prepare(picture, THIN, height=10**9)


@pytest.mark.parametrize("height", [0, -8, 7])
def test_heights_below_a_cell_are_refused(height: int) -> None:
    with pytest.raises(ValueError, match="at least 8"):
        prepare(gradient(), THIN, height=height)


def test_each_channel_may_have_its_own_scale() -> None:
    mine = NetworkSpec("mine", InputSpec.normalized((0.5, 0.4, 0.3), (0.1, 0.2, 0.4)), PoseOutput(("heat", "paf")))
    picture = np.full((16, 16, 3), (51, 102, 204), np.uint8)
    expected = [(0.8 - 0.5) / 0.1, (0.4 - 0.4) / 0.2, (0.2 - 0.3) / 0.4]
    np.testing.assert_allclose(prepare(picture, mine, 16)[0][0, :, 3, 3], expected, atol=1e-6)


@pytest.mark.parametrize("size", [(994, 1768), (992, 1760), (736, 1000), (737, 1001), (480, 640), (1472, 1000)])
def test_shrinking_averages_areas(size: tuple[int, int]) -> None:
    """Against averages in float64; pictures that are halved first come as close to them as area sampling itself."""
    random = np.random.default_rng(size[0])
    smooth = random.uniform(0, 255, (size[0] // 40 + 2, size[1] // 40 + 2, 3))
    rows, columns = (np.linspace(0, length - 1.001, pixels) for length, pixels in zip(smooth.shape, size, strict=False))
    picture = _bilinear(smooth, rows, columns) + random.uniform(-20, 20, (*size, 3))
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    array, geometry = prepare(picture, THIN, height=184)
    height, width = geometry.resized
    expected = np.einsum("ir,rcz,jc->zij", _areas(size[0], height), picture, _areas(size[1], width), optimize=True)
    found = array[0, :, :height, :width]
    assert np.abs(found - expected).mean() < 2.5
    assert np.abs(found.mean() - expected.mean()) < 0.5


def _areas(pixels: int, count: int) -> np.ndarray:
    """The matrix that averages `pixels` over `count` equal parts."""
    edges = np.arange(count + 1) * (pixels / count)
    begin = np.maximum(edges[:-1, np.newaxis], np.arange(pixels))
    end = np.minimum(edges[1:, np.newaxis], np.arange(pixels) + 1)
    return np.maximum(end - begin, 0) * (count / pixels)


def _bilinear(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    top, left = rows.astype(int), columns.astype(int)
    dy, dx = (rows - top)[:, np.newaxis, np.newaxis], (columns - left)[np.newaxis, :, np.newaxis]
    upper = values[top][:, left] * (1 - dx) + values[top][:, left + 1] * dx
    lower = values[top + 1][:, left] * (1 - dx) + values[top + 1][:, left + 1] * dx
    return upper * (1 - dy) + lower * dy


def test_fine_patterns_become_grey() -> None:
    stripes = np.zeros((736, 736, 3), np.uint8)
    stripes[:, ::2] = 254
    array, _ = prepare(stripes, THIN, height=272)
    np.testing.assert_allclose(array, 127, atol=1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 300), st.sampled_from([(), (3,)]))
def test_uneven_averages_are_opencvs(seed: int, height: int, width: int, channels: tuple[int, ...]) -> None:
    random = np.random.default_rng(seed)
    size = int(random.integers(1, height + 1)), int(random.integers(1, width + 1))
    picture = random.integers(0, 256, (height, width, *channels), np.uint8)
    expected = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)
    if preprocess._shrinks_unevenly(picture, size):
        found = resample(picture, *map(preprocess._areas, (height, width), size))
        # Elsewhere OpenCV joins products and sums, so that what lies halfway may go to the other side.
        most = 0 if platform.machine() in ("x86_64", "AMD64") else 1
        np.testing.assert_allclose(found.astype(int), expected.reshape(found.shape).astype(int), rtol=0, atol=most)
