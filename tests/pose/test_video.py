"""Videos: what is written is what each frame alone would give; whatever goes wrong, nothing half is left."""

from __future__ import annotations

import errno
import json
import resource
import threading
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

import kvant
from kvant.errors import SaveError, VideoError
from kvant.pose import Person, PoseEstimator, Video, network_spec, process_video
from kvant.pose.video import Frame
from kvant.pose.yuv import YuvPicture

from .scenes import render, standing
from .user import LENIENT, noise

FRAMES, HEIGHT, WIDTH = 12, 96, 128


def person_at(brightness: float) -> np.ndarray:
    """A person who walks to the right as frames become brighter."""
    return standing(4 + 60 * brightness, 4, 44, 88)


def network(array: np.ndarray) -> np.ndarray:
    """Sees the person that the brightness of the frame stands for."""
    person = person_at(float(array[:, :, :HEIGHT, :WIDTH].mean()) / 255)
    return np.concatenate(render([person], *array.shape[2:]), axis=0)[np.newaxis]


ESTIMATOR = PoseEstimator(network, network=network_spec("openpose-mobilenet-thin"), height=HEIGHT)


def write_video(path: Path, frames: int = FRAMES, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, size)
    for number in range(frames):
        writer.write(np.full((size[1], size[0], 3), 255 * number // frames, np.uint8))
    writer.release()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_video(tmp_path / "source.avi")


def pictures(path: Path) -> list[np.ndarray]:
    with Video(path) as video:
        return [frame.picture for frame in video]


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestReading:
    def test_frames(self, source: Path) -> None:
        with Video(source) as video:
            assert (video.frames, video.rate, video.is_camera) == (FRAMES, 10.0, False)
            frames = list(video)
        assert [frame.number for frame in frames] == list(range(FRAMES))
        assert [frame.seconds for frame in frames] == pytest.approx([number / 10 for number in range(FRAMES)])
        assert {frame.picture.shape for frame in frames} == {(HEIGHT, WIDTH, 3)}
        assert all(abs(frame.picture.mean() - 255 * frame.number // FRAMES) < 3 for frame in frames)

    def test_stop(self, source: Path) -> None:
        with Video(source) as video:
            seen = 0
            for _ in video:
                seen += 1
                video.stop()
        assert seen == 1

    @pytest.mark.parametrize("name", ["gone.mp4", "http://localhost:1/a.mp4", "frame_%03d.png", "rtsp://a"])
    def test_only_files_are_opened(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(av, "open", None)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(VideoError, match="is not a file"):
            Video(name)

    @pytest.mark.parametrize("content", [b"", b"not a video", bytes(10_000)])
    def test_files_that_are_no_video(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(VideoError, match=r"a\.mp4 is not a video that FFmpeg can read"):
            Video(tmp_path / "a.mp4")

    def test_a_camera_that_is_not_there(self) -> None:
        with pytest.raises(VideoError, match="camera 987 cannot be opened"):
            Video(987)


class TestProcessing:
    def test_lines_are_what_each_frame_gives(self, source: Path, tmp_path: Path) -> None:
        done: list[int] = []
        with Video(source) as video:
            report = process_video(ESTIMATOR, video, lines=tmp_path / "a.jsonl", progress=done.append)
        records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        assert [record["frame"] for record in records] == list(range(FRAMES))
        assert records[3]["seconds"] == 0.3
        with Video(source) as video:
            for record, frame in zip(records, video, strict=True):
                assert record["people"] == [person.to_dict() for person in ESTIMATOR.detect(frame.yuv)]
        assert done == list(range(1, FRAMES + 1))
        assert (report.frames, report.people) == (FRAMES, FRAMES)
        assert report.rate == pytest.approx(FRAMES / report.seconds)
        found = Person.from_dict(records[6]["people"][0]).keypoints
        assert np.abs(found[:, :2] - person_at(0.5)[:, :2]).max() < 4

    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_frames_side_by_side_are_what_each_gives_alone(
        self, threads: int, user_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        estimator = PoseEstimator(user_file, height=96, settings=LENIENT)
        frames = [YuvPicture.from_bgr(noise(number, 100, 120)) for number in range(20)]
        alone = [[person.to_dict() for person in estimator.detect(frame)] for frame in frames]
        assert sum(map(len, alone)) > 20
        monkeypatch.setattr(
            Video, "__iter__", lambda _: iter([Frame(number, 0.0, frame) for number, frame in enumerate(frames)])
        )
        found: set[int] = set()
        plain = estimator.model.__call__

        def watched(array: np.ndarray) -> Any:
            found.add(kvant.num_threads())
            return plain(array)

        before = kvant.num_threads()
        kvant.set_num_threads(threads)
        estimator.run = watched
        with Video(write_video(tmp_path / "any.avi")) as video:
            process_video(estimator, video, lines=tmp_path / "a.jsonl")
        assert found == {1}
        assert kvant.num_threads() == threads
        kvant.set_num_threads(before)
        records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        assert [record["people"] for record in records] == alone

    @pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov"])
    def test_the_drawn_video(self, suffix: str, source: Path, tmp_path: Path) -> None:
        with Video(source) as video:
            process_video(ESTIMATOR, video, drawn=tmp_path / f"drawn{suffix}")
        drawn, plain = pictures(tmp_path / f"drawn{suffix}"), pictures(source)
        assert len(drawn) == FRAMES
        for number in (1, 10):
            expected = ESTIMATOR.draw(plain[number], ESTIMATOR.detect(plain[number]))
            assert np.abs(drawn[number].astype(int) - expected).mean() < 12
            assert np.abs(drawn[number].astype(int) - plain[number]).max() > 100  # something is drawn
        assert left(tmp_path) == {"source.avi", f"drawn{suffix}"}

    def test_a_limit(self, source: Path, tmp_path: Path) -> None:
        with Video(source) as video:
            assert process_video(ESTIMATOR, video, lines=tmp_path / "a", limit=5).frames == 5
        assert len((tmp_path / "a").read_text().splitlines()) == 5

    @pytest.mark.parametrize("size", [(131, 97), (16, 16), (98, 640)])
    def test_sizes_that_codecs_dislike(self, size: tuple[int, int], tmp_path: Path) -> None:
        odd = write_video(tmp_path / "odd.avi", 3, size)
        with Video(odd) as video:
            process_video(ESTIMATOR, video, drawn=tmp_path / "drawn.mp4")
        assert len(pictures(tmp_path / "drawn.mp4")) == 3

    def test_stages_run_at_the_same_time(self, source: Path, tmp_path: Path) -> None:
        """The network waits until a later frame was read, which without overlap never is."""
        later = threading.Event()

        class Watched(Video):
            def __iter__(self) -> Any:
                for frame in super().__iter__():
                    if frame.number == 2:
                        later.set()
                    yield frame

        def patient(array: np.ndarray) -> np.ndarray:
            assert later.wait(10)
            return network(array)

        estimator = PoseEstimator(patient, network=ESTIMATOR.network, height=HEIGHT)
        with Watched(source) as video:
            assert process_video(estimator, video, lines=tmp_path / "a").frames == FRAMES


class TestFailures:
    def check_nothing_is_left(
        self, tmp_path: Path, source: Path, estimator: PoseEstimator, error: type, match: str
    ) -> None:
        (tmp_path / "old.mp4").write_bytes(b"old")
        threads = threading.active_count()
        with Video(source) as video, pytest.raises(error, match=match):
            process_video(estimator, video, drawn=tmp_path / "old.mp4", lines=tmp_path / "a.jsonl")
        assert (tmp_path / "old.mp4").read_bytes() == b"old"
        assert left(tmp_path) == {"source.avi", "old.mp4"}
        assert threading.active_count() == threads

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_of_the_network(self, error: type[BaseException], source: Path, tmp_path: Path) -> None:
        seen = []

        def broken(array: np.ndarray) -> np.ndarray:
            seen.append(0)
            if len(seen) == 5:
                raise error("enough")
            return network(array)

        estimator = PoseEstimator(broken, network=ESTIMATOR.network, height=HEIGHT)
        self.check_nothing_is_left(tmp_path, source, estimator, error, "enough")

    def test_of_reading(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = Video.__iter__

        def broken(video: Video) -> Any:
            for frame in whole(video):
                if frame.number == 4:
                    raise OSError(errno.EIO, "Input/output error")
                yield frame

        monkeypatch.setattr(Video, "__iter__", broken)
        self.check_nothing_is_left(tmp_path, source, ESTIMATOR, OSError, "Input/output")

    def test_of_drawing(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> None:
            raise KeyboardInterrupt("now")

        monkeypatch.setattr(ESTIMATOR, "draw", broken)
        self.check_nothing_is_left(tmp_path, source, ESTIMATOR, KeyboardInterrupt, "now")

    @pytest.mark.parametrize("limit", [1500, 900, 100])
    @pytest.mark.parametrize("kind", ["drawn", "lines"])
    def test_of_a_full_disk(self, limit: int, kind: str, tmp_path: Path) -> None:
        """A limit on the size of files stands in for it: nothing is written beyond, in the middle or at the end."""
        source, target = write_video(tmp_path / "source.avi"), tmp_path / "old.mp4"
        target.write_bytes(b"old")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with Video(source) as video, pytest.raises((VideoError, SaveError), match=r"old\.mp4.*File too large"):
                process_video(ESTIMATOR, video, **{kind: target})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert target.read_bytes() == b"old"
        assert left(tmp_path) == {"source.avi", "old.mp4"}

    def test_a_video_without_frames(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Video, "__iter__", lambda video: iter(()))
        self.check_nothing_is_left(tmp_path, source, ESTIMATOR, VideoError, "no frame that can be read")

    def test_of_names(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "link.avi").symlink_to(source)
        content = source.read_bytes()
        with Video(source) as video:
            with pytest.raises(VideoError, match=r"must end in one of \.avi"):
                process_video(ESTIMATOR, video, drawn=tmp_path / "a.gif")
            with pytest.raises(VideoError, match="is the video that is read"):
                process_video(ESTIMATOR, video, drawn=tmp_path / "link.avi")
            with pytest.raises(SaveError, match="gone"):
                process_video(ESTIMATOR, video, drawn=tmp_path / "gone" / "a.mp4")
        assert source.read_bytes() == content
        assert left(tmp_path) == {"source.avi", "link.avi"}


def test_times_of_a_camera_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Camera:
        """Twenty frames a second, whatever it says."""

        def __init__(self, number: int) -> None:
            self.number = number

        def isOpened(self) -> bool:
            return True

        def get(self, field: int) -> float:
            return float("nan")

        def release(self) -> None:
            pass

        def read(self) -> tuple[bool, np.ndarray]:
            threading.Event().wait(0.05)
            return True, np.zeros((HEIGHT, WIDTH, 3), np.uint8)

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    with Video(0) as video:
        assert (video.frames, video.rate, video.name) == (None, 25.0, "camera 0")
        times = []
        for frame in video:
            times.append(frame.seconds)
            if frame.number == 4:
                video.stop()
    assert len(times) == 5
    assert np.diff(times).min() >= 0.045
