"""Drawn videos, read back by OpenCV and FFmpeg."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from kvant.errors import SaveError, VideoError
from kvant.pose.recording import CONTAINERS, recording
from kvant.pose.yuv import Colours, YuvPicture

COLOURS = [Colours(1), Colours(6), Colours(1, full_range=True)]


def scene(number: int, height: int, width: int) -> np.ndarray:
    picture = np.full((height, width, 3), (200 - 8 * number, 90, 40), np.uint8)
    picture[: height // 2] = 60, 120, 220
    return picture


def write(path: Path, size: tuple[int, int] = (96, 128), colours: Colours = COLOURS[0], rate: float = 10) -> Path:
    with recording(path, rate) as video:
        for number in range(8):
            with video.frame(YuvPicture.from_bgr(scene(number, *size), colours)) as (plain, copy):
                assert not np.shares_memory(plain.y, copy.y)
                np.testing.assert_array_equal(plain.y, copy.y)
    return path


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("colours", COLOURS)
def test_what_is_written_can_be_read(suffix: str, colours: Colours, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{suffix}", colours=colours)
    capture = cv2.VideoCapture(str(path))
    for number in range(8):
        there, picture = capture.read()
        assert there
        if suffix != ".avi" or colours.matrix == 6:  # AVI has no place to say which matrix was used
            expected = scene(number, 96, 128)
            assert np.abs(np.median(picture[60:], axis=(0, 1)) - expected[80, 0]).max() <= 8
            assert np.abs(picture.astype(int) - expected).mean() < 8
    assert not capture.read()[0]
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == ("mpeg4" if suffix == ".avi" else "h264")
        assert container.streams.video[0].average_rate == 10


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
@pytest.mark.parametrize("size", [(97, 131), (1, 1), (2, 3), (640, 98), (16, 17)])
def test_odd_sizes_keep_every_pixel(suffix: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = write(tmp_path / f"a{suffix}", size)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 8
    assert (frames[0].height, frames[0].width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    luma = np.frombuffer(frames[0].planes[0], np.uint8).reshape(frames[0].height, -1)[: size[0], : size[1]]
    expected = YuvPicture.from_bgr(scene(0, *size), COLOURS[0]).y
    assert np.abs(luma.astype(int) - expected).mean() < 8


@pytest.mark.parametrize("rate", [1, 24000 / 1001, 25, 29.97, 60, 59.94, 239.76, 1000])
def test_rates(rate: float, tmp_path: Path) -> None:
    for suffix in (".mp4", ".avi"):
        with av.open(str(write(tmp_path / f"a{suffix}", rate=rate))) as container:
            assert float(container.streams.video[0].average_rate) == pytest.approx(rate, rel=1e-4)


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="64 x 48"), recording(tmp_path / "a.mp4", 10) as video:
        for size in ((48, 64), (50, 64)):
            with video.frame(YuvPicture.from_bgr(scene(0, *size))):
                pass
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    with (
        pytest.raises(VideoError, match=r"a\.mp4: this PyAV was built without libx264"),
        recording(tmp_path / "a.mp4", 9),
    ):
        pass
    assert not list(tmp_path.iterdir())
    write(tmp_path / "a.avi")


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"must end in one of \.avi"), recording(tmp_path / "a.gif", 10):
        pass
    with pytest.raises(SaveError, match="gone"), recording(tmp_path / "gone" / "a.mp4", 10):
        pass
    with pytest.raises(RuntimeError, match="enough"), recording(tmp_path / "a.mp4", 10):
        raise RuntimeError("enough")
    assert not list(tmp_path.iterdir())
