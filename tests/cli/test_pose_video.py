"""``kvant pose video``, of files and of what a camera sees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from kvant.cli import pose_video
from kvant.pose import Video
from samples import Kvant

from .known import FRAMES, HEIGHT, NETWORK, WIDTH


def _jpeg(picture: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", picture)[1].tobytes()


class TestVideo:
    def test_video_and_lines(self, run: Kvant, file: Path, walk: Path, tmp_path: Path) -> None:
        out, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
        result = run("pose", "video", file, walk, "-o", out, "--json", lines, *NETWORK)
        assert (result.exit_code, result.stderr) == (0, "")
        assert f"{FRAMES} frames, {FRAMES} people, " in result.stdout and "frames/s" in result.stdout
        assert len(lines.read_text().splitlines()) == FRAMES
        assert cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FRAME_COUNT) == FRAMES

    def test_some_frames(self, run: Kvant, file: Path, walk: Path, tmp_path: Path) -> None:
        result = run("pose", "video", file, walk, "--json", tmp_path / "a", "--frames", 3, *NETWORK)
        assert result.exit_code == 0
        assert len((tmp_path / "a").read_text().splitlines()) == 3

    def test_mistakes(self, run: Kvant, fail: Callable[..., str], file: Path, walk: Path, tmp_path: Path) -> None:
        out = ("-o", tmp_path / "out.mp4", *NETWORK)
        assert run("pose", "video", file, walk, *NETWORK).exit_code == 2
        assert "gone.mp4 is not a file" in fail("pose", "video", file, tmp_path / "gone.mp4", *out)
        assert "not a video" in fail("pose", "video", file, file, *out)
        assert "camera 987 cannot be opened" in fail("pose", "video", file, "987", *out)
        assert "9 cannot be opened: there are not so many" in fail("pose", "video", file, "9" * 20, *out)
        assert "is not a file" in fail("pose", "video", file, "9" * 200, *out)
        both = ("--json", tmp_path / "out.mp4")
        assert "cannot be both the drawn video and the lines" in fail("pose", "video", file, walk, *out, *both)
        assert "must end in" in fail("pose", "video", file, walk, "-o", tmp_path / "out.txt", *NETWORK)
        assert "the video that is read" in fail("pose", "video", file, walk, "-o", walk, *NETWORK)
        assert "does not exist" in fail("pose", "video", file, walk, "-o", tmp_path / "no" / "out.mp4", *NETWORK)
        assert {path.name for path in tmp_path.iterdir()} == {"pose.kvant", "walk.avi"}

    def test_a_video_that_ends_too_soon(self, run: Kvant, file: Path, walk: Path, tmp_path: Path) -> None:
        """Its container promises ten frames, and it was cut off within the seventh."""
        content = walk.read_bytes()
        named = [at for at in range(len(content)) if content.startswith(b"00dc", at)]
        walk.write_bytes(content[: named[1 + 6] + 20])  # the header names them once before the first
        result = run("pose", "video", file, walk, "--json", tmp_path / "a", *NETWORK)
        assert result.exit_code == 1
        assert f"ends after 6 of {FRAMES} frames" in result.stderr
        assert len((tmp_path / "a").read_text().splitlines()) == 6

    def test_a_stream_that_promises_nothing_is_not_damaged(
        self, run: Kvant, file: Path, walk: Path, tmp_path: Path
    ) -> None:
        """It ends before the number of frames at which it was to be stopped."""
        stream = tmp_path / "walk.mjpeg"
        stream.write_bytes(b"".join(_jpeg(frame.picture) for frame in Video(walk)))
        result = run("pose", "video", file, stream, "--json", tmp_path / "a", "--frames", 99, *NETWORK)
        assert (result.exit_code, result.stderr) == (0, "")

    @pytest.mark.parametrize("options", [(), ("--frames", 99)])
    def test_ctrl_c_ends_a_recording_and_keeps_it(
        self, options: tuple[object, ...], run: Kvant, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Camera:
            """After five frames somebody presses Ctrl-C."""

            def __init__(self, number: int) -> None:
                self.count = 0

            def isOpened(self) -> bool:
                return True

            def get(self, field: int) -> float:
                return 0.0

            def release(self) -> None:
                pass

            def read(self) -> tuple[bool, np.ndarray]:
                self.count += 1
                if self.count == 6:
                    os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.02)
                return True, np.zeros((HEIGHT, WIDTH, 3), np.uint8)

        monkeypatch.setattr(cv2, "VideoCapture", Camera)
        before = signal.getsignal(signal.SIGINT)
        result = run("pose", "video", file, "0", "--json", tmp_path / "a", *options, *NETWORK)
        assert result.exit_code == 0, result.output
        assert 5 <= len((tmp_path / "a").read_text().splitlines()) <= 8
        assert signal.getsignal(signal.SIGINT) is before

    @pytest.mark.usefixtures("ctrl_c")
    def test_ctrl_c_in_a_file_leaves_nothing(self, walk: Path, tmp_path: Path) -> None:
        """In a process of its own, as it happens to users: the network is slow, the signal comes in the middle."""
        code = f"""
import sys, time
sys.path.insert(0, {os.fspath(Path(__file__).parents[2])!r})
sys.path.insert(0, {os.fspath(Path(__file__).parents[1])!r})
import kvant.pose.estimator
from tests.cli.known import see
from kvant.cli import main

def slow(array):
    print("frame", flush=True)
    time.sleep(0.3)
    return see(array)

kvant.pose.estimator.load = lambda path, **_: slow
sys.argv = ["kvant", "pose", "video", "x.kvant", {os.fspath(walk)!r}, "-o", "out.mp4", "--json", "out.jsonl",
            "--network", "openpose-mobilenet-thin", "--height", "{HEIGHT}"]
main()
"""
        (tmp_path / "out.mp4").write_bytes(b"old")
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == b"frame\n"
        assert any(path.name.startswith(".kvant-") for path in tmp_path.iterdir())
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        assert b"Traceback" not in stderr
        assert {path.name for path in tmp_path.iterdir()} == {"walk.avi", "out.mp4"}
        assert (tmp_path / "out.mp4").read_bytes() == b"old"

    @pytest.mark.usefixtures("ctrl_c")
    def test_the_second_ctrl_c_stops_a_recording(self) -> None:
        class Opened:
            is_camera, stopped = True, False

            def stop(self) -> None:
                self.stopped = True

        opened = Opened()
        with pytest.raises(KeyboardInterrupt), pose_video._stops_with_ctrl_c(opened):  # type: ignore[arg-type]
            signal.raise_signal(signal.SIGINT)
            assert opened.stopped
            signal.raise_signal(signal.SIGINT)
