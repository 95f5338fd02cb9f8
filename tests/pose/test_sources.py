"""Video files of many kinds, written by FFmpeg, against OpenCV's reading of them; and damaged ones."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from kvant.errors import VideoError
from kvant.pose import Video
from kvant.pose.sources import FileSource

FRAMES, HEIGHT, WIDTH = 6, 48, 64


def scene(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Two colours and a mark that says which way is up, BGR."""
    picture = np.full((height, width, 3), (60 + 20 * number % 180, 120, 180), np.uint8)
    picture[: height // 2, : width // 2] = 40, 220, 90
    return picture


def write(
    path: Path,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Sequence[int] = range(FRAMES),
    size: tuple[int, int] = (HEIGHT, WIDTH),
    rotation: int = 0,
    group: int = 1,
    **options: Any,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"g": str(group)})
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        for name, value in options.items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, at in enumerate(times):
            frame = av.VideoFrame.from_ndarray(scene(number, *size), format="bgr24").reformat(format=pixels)
            frame.pts, frame.time_base = at, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read(path: Path) -> list[np.ndarray]:
    with Video(path) as video:
        return [frame.picture for frame in video]


def read_by_opencv(path: Path) -> list[np.ndarray]:
    capture, pictures = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        pictures.append(read[1])
    return pictures


@pytest.mark.parametrize(
    ("codec", "pixels", "suffix"),
    [
        ("libx264", "yuv420p", ".mp4"),
        ("libx264", "yuv422p", ".mkv"),
        ("libx264", "yuv444p", ".mov"),
        ("libx264", "yuv420p10le", ".mp4"),
        ("libx264", "gray", ".mkv"),
        ("libx265", "yuv420p", ".mp4"),
        ("libvpx-vp9", "yuv420p", ".webm"),
        ("mjpeg", "yuvj420p", ".avi"),
        ("mjpeg", "yuvj422p", ".avi"),
        ("mpeg4", "yuv420p", ".avi"),
        ("png", "rgb24", ".mov"),
        ("ffv1", "bgr0", ".mkv"),
    ],
)
def test_codecs_and_pixels(codec: str, pixels: str, suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{suffix}", codec, pixels)
    found, expected = read(path), read_by_opencv(path)
    assert len(found) == len(expected) == FRAMES
    for picture, other in zip(found, expected, strict=True):
        assert np.abs(picture.astype(int) - other).mean() < 3
    if pixels != "gray":
        assert np.abs(np.median(found[3][30:], axis=(0, 1)) - (120, 120, 180)).max() <= 8
    with Video(path) as video:
        assert (video.frames, video.rate) == (FRAMES, 10.0)


@pytest.mark.parametrize("size", [(49, 65), (2, 2), (200, 8)])
def test_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", "mjpeg", "yuvj420p", size=size)
    assert {picture.shape for picture in read(path)} == {(*size, 3)}


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_turned_camera(degrees: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", rotation=degrees)
    found, expected = read(path)[0], read_by_opencv(path)[0]
    assert found.shape == expected.shape
    assert found.shape[:2] == ((HEIGHT, WIDTH) if degrees == 180 else (WIDTH, HEIGHT))
    assert np.abs(found.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_the_matrix_that_a_file_names(matrix: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", colorspace=matrix)
    with Video(path) as video:
        assert {frame.yuv.colours.matrix for frame in video} == {matrix}


def test_times_are_those_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", times=(0, 1, 2, 6, 7, 12))
    with Video(path) as video:
        assert [frame.seconds for frame in video] == pytest.approx([0, 0.1, 0.2, 0.6, 0.7, 1.2])


def test_a_file_cut_short_gives_what_is_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", times=range(40))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert 10 < len(read(path)) < 30


def test_damaged_frames_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mov", "png", "rgb24")
    content = bytearray(path.read_bytes())
    starts = [at for at in range(len(content)) if content.startswith(b"\x89PNG", at)]
    content[starts[2] : starts[2] + 40] = bytes(40)
    path.write_bytes(content)
    found = read(path)
    assert len(found) == FRAMES - 1
    assert np.abs(found[2].astype(int) - scene(3)).mean() < 2


def damaged(path: Path, codec: str, seed: int) -> Path:
    """A video of 40 frames of which some in the middle are damaged."""
    write(path, codec, times=range(40), size=(240, 320), group=10)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content, random = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for at, size in places[8:22]:
        content[at + size // 2 + random.integers(size // 2)] ^= 0x5A  # not the container's own bytes
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mp4"), ("mpeg4", ".avi"), ("libvpx-vp9", ".webm")])
@pytest.mark.parametrize("seed", range(3))
def test_frames_after_damage_are_read(codec: str, suffix: str, seed: int, tmp_path: Path) -> None:
    found = read(damaged(tmp_path / f"a{suffix}", codec, seed))
    assert len(found) >= 25
    assert np.abs(found[-1].astype(int) - scene(39, 240, 320)).mean() < 12


def test_no_frame_of_a_damaged_file_is_lost_or_given_twice(tmp_path: Path) -> None:
    """One thread stops at what is damaged; from there on two decode, which give what they would have given alone."""
    path = str(damaged(tmp_path / "a.webm", "libvpx-vp9", 0))
    source, careless = FileSource(path), FileSource(path)
    careless._open(careless=True)
    for (seconds, one), (same, other) in zip(source, careless, strict=True):
        assert seconds == same
        assert all(np.array_equal(*planes) for planes in zip(one.planes, other.planes, strict=True))
    assert source._stream.codec_context.thread_count == 2


@pytest.mark.parametrize(
    ("codec", "size", "threads"),
    [("libx264", (48, 64), 2), ("libvpx-vp9", (48, 64), 1), ("libvpx-vp9", (1090, 1920), 2)],
)
def test_threads_that_decode(codec: str, size: tuple[int, int], threads: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", codec, times=range(1), size=size)
    source = FileSource(str(path))
    assert len(list(source)) == 1
    assert source._stream.codec_context.thread_count == threads


def test_a_file_without_pictures(tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(VideoError, match=r"sound\.mkv is not a video that FFmpeg can read: it has no pictures"):
        Video(path)


def test_files_that_name_others_open_nothing(tmp_path: Path) -> None:
    """FFmpeg's own lists: of a file that is not to be read, and of an address that is not to be called."""
    write(tmp_path / "secret.mp4")
    for name, line in (("a", "file 'http://127.0.0.1:1/b.mp4'"), ("b", f"file '{tmp_path / 'secret.mp4'}'")):
        (tmp_path / f"{name}.mp4").write_text(f"ffconcat version 1.0\n{line}\n")
        with pytest.raises(VideoError):
            read(tmp_path / f"{name}.mp4")
    (tmp_path / "c.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/b.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError):
        read(tmp_path / "c.mp4")


@pytest.mark.parametrize("name", ["concat:a.mp4", "-", "pipe:0", "data:,", "a%03d.mp4", "https:", "a b'ö.mp4"])
def test_names_are_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "plain.mp4").rename(tmp_path / name)
    with Video(name) as video:
        assert len(list(video)) == FRAMES
