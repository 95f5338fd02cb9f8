from __future__ import annotations

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from kvant import ImageError, InputError
from kvant.cli.pictures import CalibrationPictures
from kvant.pose import FOUR_SCALES, calibration_inputs, network_spec, prepare

SPEC = network_spec("openpose-mobilenet-thin")
PICTURES = [np.random.default_rng(seed).integers(0, 256, (96, 128, 3), np.uint8) for seed in range(6)]


def test_pictures_take_turns_at_the_scales() -> None:
    found = list(calibration_inputs(PICTURES, SPEC, 96))
    assert [array.shape for array in found] == [
        (1, 3, height, width) for height, width in [(48, 64), (96, 128), (144, 192), (192, 256), (48, 64), (96, 128)]
    ]
    for picture, array, scale in zip(PICTURES, found, (*FOUR_SCALES, 0.5, 1.0), strict=True):
        np.testing.assert_array_equal(array, prepare(picture, SPEC, round(96 * scale))[0])


def test_pictures_are_read_one_by_one() -> None:
    read = iter(PICTURES)
    next(calibration_inputs(read, SPEC, 96))
    assert len(list(read)) == len(PICTURES) - 1


@pytest.mark.parametrize("scales", [(), (0.01,), (float("nan"),), (-1.0,)])
def test_scales_without_meaning(scales: tuple[float, ...]) -> None:
    with pytest.raises(InputError):
        next(calibration_inputs(PICTURES, SPEC, 96, scales))


def test_an_array_that_is_no_picture() -> None:
    with pytest.raises(ImageError):
        next(calibration_inputs([np.zeros((4, 4, 7), np.uint8)], SPEC, 96))


def test_the_command_reads_files_as_often_as_it_is_asked_to(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, picture in zip(paths, PICTURES, strict=False):
        cv2.imwrite(str(path), picture)
    pictures = CalibrationPictures(paths, partial(calibration_inputs, spec=SPEC, height=96, scales=(1.0, 2.0)))
    assert len(pictures) == 3
    for _ in range(2):
        found = [array for (array,) in pictures]
        for array, expected in zip(found, calibration_inputs(PICTURES[:3], SPEC, 96, (1.0, 2.0)), strict=True):
            np.testing.assert_array_equal(array, expected)
