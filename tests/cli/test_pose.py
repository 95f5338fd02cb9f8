"""``kvant pose run, video, evaluate, compare``: a network that sees known people stands in for the file's."""

from __future__ import annotations

import io
import json
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
import torch
from PIL import Image

import kvant.pose.estimator
from kvant.cli import pose_video
from kvant.pose import COCO_KEYPOINTS, NetworkSpec, Person, PoseEstimator, Video
from kvant.pose.layout import COCO_FROM_PARTS, Float32Array
from samples import Kvant

from ..pose.scenes import render, standing

HEIGHT, WIDTH = 96, 128
KNOWN = standing(30, 4, 44, 88)
NETWORK = ("--network", "openpose-mobilenet-thin", "--height", HEIGHT)


def see(array: Float32Array, shift: float = 0.0) -> Float32Array:
    """The known person, in any picture; or, shifted by some pixels, what quantization might make of it."""
    moved = KNOWN + np.float32([shift, 0, 0])
    return np.concatenate(render([moved], *array.shape[2:]), axis=0)[np.newaxis]


class FloatNetwork(torch.nn.Module):
    """Sees the known person two pixels to the right."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(see(image.numpy(), shift=2.0))


ESTIMATOR = PoseEstimator(see, network="openpose-mobilenet-thin", height=HEIGHT)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in name only: what would be read from it is `see`."""
    monkeypatch.setattr(kvant.pose.estimator, "load", lambda path, **_: see)
    monkeypatch.setattr(NetworkSpec, "build", lambda spec, weights: FloatNetwork())
    path = tmp_path / "pose.kvant"
    path.write_bytes(b"nothing")
    return path


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """All kinds of pictures, and some that are none."""
    folder = tmp_path / "album"
    folder.mkdir()
    colour = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    save(folder / "colour.png", colour)
    save(folder / "grey.png", colour[:, :, 0])
    save(folder / "alpha.png", np.dstack([colour, colour[:, :, 0]]))
    cv2.imwrite(str(folder / "deep.png"), colour.astype(np.uint16) * 257)
    save(folder / "turned.jpg", colour.transpose(1, 0, 2)[::-1], exif=exif)
    save(folder / "tiny.bmp", colour[:1, :1])
    save(folder / "wide.webp", colour[:3])
    (folder / "half.jpg").write_bytes((folder / "turned.jpg").read_bytes()[:900])
    (folder / "text.png").write_text("no picture")
    (folder / "notes.txt").write_text("ignored")
    return folder


class TestRun:
    def test_all_kinds_of_pictures(self, run: Kvant, file: Path, album: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = run("pose", "run", file, album, "-o", out, "--json", *NETWORK)
        assert result.exit_code == 1
        assert "half.jpg is damaged, incomplete" in result.stderr
        assert "text.png is not a complete JPEG" in result.stderr
        assert "2 pictures skipped" in result.stderr and "Traceback" not in result.output
        good = {"colour.png", "grey.png", "alpha.png", "deep.png", "turned.jpg", "tiny.bmp", "wide.webp"}
        drawn = {f"{Path(name).stem}.pose.png" for name in good}
        assert {path.name for path in out.iterdir()} == drawn | {"people.json"}
        records = json.loads((out / "people.json").read_text())
        assert {Path(name).name for name in records} == good
        assert cv2.imread(str(out / "turned.pose.png")).shape == (HEIGHT, WIDTH, 3)
        assert result.stdout.count(" person, ") + result.stdout.count(" people, ") == len(good)

    def test_what_is_drawn_and_written_is_what_the_library_finds(
        self, run: Kvant, file: Path, album: Path, tmp_path: Path
    ) -> None:
        result = run("pose", "run", file, album / "colour.png", "-o", tmp_path / "out", "--json", *NETWORK)
        assert (result.exit_code, result.stderr) == (0, "")
        picture = cv2.imread(str(album / "colour.png"))
        people = ESTIMATOR.detect(picture)
        np.testing.assert_array_equal(
            cv2.imread(str(tmp_path / "out" / "colour.pose.png")), ESTIMATOR.draw(picture, people)
        )
        [found] = json.loads((tmp_path / "out" / "people.json").read_text()).values()
        assert found == [person.to_dict() for person in people]
        assert np.abs(Person.from_dict(found[0]).keypoints[:, :2] - KNOWN[:, :2]).max() < 4

    def test_patterns_formats_and_scales(self, run: Kvant, file: Path, album: Path, tmp_path: Path) -> None:
        result = run(
            "pose", "run", file, album / "c*.png", album / "grey.png", "-o", tmp_path / "out", "--format", "jpg",
            *NETWORK, "--scales", "1,1.5",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["colour.pose.jpg", "grey.pose.jpg"]
        assert (tmp_path / "out" / "grey.pose.jpg").read_bytes().startswith(b"\xff\xd8\xff")

    def test_the_memory_budget_reaches_the_file(
        self, run: Kvant, file: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        budgets = []
        monkeypatch.setattr(
            kvant.pose.estimator, "load", lambda path, backend, memory_budget: budgets.append(memory_budget) or see
        )
        one = ["pose", "run", file, album / "colour.png", "-o", tmp_path / "out", *NETWORK]
        assert run(*one).exit_code == 0
        assert run(*one, "--memory-budget", "speed").exit_code == 0
        assert run(*one, "--memory-budget", "1000").exit_code == 0
        assert run(*one, "--memory-budget", "much").exit_code == 2
        assert budgets == [None, "speed", 1000]

    def test_mistakes(self, run: Kvant, fail: Callable[..., str], file: Path, album: Path, tmp_path: Path) -> None:
        out = ("-o", tmp_path / "out")
        assert "does not exist" in fail("pose", "run", file, album / "gone.jpg", *out, *NETWORK)
        assert "no picture fits" in fail("pose", "run", file, album / "x*.jpg", *out, *NETWORK)
        (tmp_path / "empty").mkdir()
        assert "no pictures in" in fail("pose", "run", file, tmp_path / "empty", *out, *NETWORK)
        assert "at least 8 pixels" in fail("pose", "run", file, album, *out, *NETWORK, "--scales", "0.01")
        assert run("pose", "run", file, album, *out, *NETWORK, "--scales", "one").exit_code == 2
        assert not (tmp_path / "out").exists()

    def test_an_unreadable_folder(
        self, fail: Callable[..., str], file: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def denied(path: object) -> object:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", denied)
        message = fail("pose", "run", file, album, "-o", tmp_path / "out", *NETWORK)
        assert "album' cannot be read: Permission denied" in message

    def test_names_as_long_as_they_may_be(self, run: Kvant, file: Path, tmp_path: Path) -> None:
        for letter in "ab":
            save(tmp_path / "album" / ("ä" * 125 + letter + ".jpg"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        result = run("pose", "run", file, tmp_path / "album", "-o", tmp_path / "out", *NETWORK)
        assert result.exit_code == 0, result.output
        assert len(list((tmp_path / "out").iterdir())) == 2

    def test_pictures_that_are_too_large_for_what_is_drawn(self, run: Kvant, file: Path, tmp_path: Path) -> None:
        tall = save(tmp_path / "tall.png", np.zeros((65_501, 1), np.uint8))
        small = save(tmp_path / "small.png", np.zeros((HEIGHT, WIDTH), np.uint8))
        out = tmp_path / "out"
        for command in ("run", "compare"):
            result = run("pose", command, file, tall, small, "-o", out, *NETWORK, "--format", "jpg")
            assert result.exit_code == 1 and "Traceback" not in result.output
            assert "tall.pose.jpg cannot be written: " in result.stderr and "1 picture skipped" in result.stderr
            assert (out / "small.pose.jpg").exists() and not (out / "tall.pose.jpg").exists()

    @pytest.mark.parametrize("command", ["run", "compare"])
    def test_a_picture_that_the_network_cannot_take_is_named(
        self, command: str, fail: Callable[..., str], file: Path, album: Path, tmp_path: Path
    ) -> None:
        large = ("--height", 100_000, "--network", "openpose-mobilenet-thin")
        message = fail("pose", command, file, album / "grey.png", "-o", tmp_path / "out", *large)
        assert "grey.png: scaled to height 100000, this picture" in message

    def test_a_picture_that_is_too_large(self, fail: Callable[..., str], file: Path, tmp_path: Path) -> None:
        content = bytearray(_png(np.zeros((2, 2, 3), np.uint8)))
        content[16:24] = (90_000).to_bytes(4, "big") * 2
        (tmp_path / "bomb.png").write_bytes(content)
        message = fail("pose", "run", file, tmp_path / "bomb.png", "-o", tmp_path / "out", *NETWORK)
        assert "bomb.png has 90000 x 90000 pixels" in message


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _jpeg(picture: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", picture)[1].tobytes()


FRAMES = 10


@pytest.fixture
def walk(tmp_path: Path) -> Path:
    path = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for number in range(FRAMES):
        writer.write(np.full((HEIGHT, WIDTH, 3), 20 * number, np.uint8))
    writer.release()
    return path


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
from tests.cli.test_pose import see
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


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Two annotated pictures: on the first the known person, on the second one that no network here sees."""
    folder = tmp_path / "coco"
    annotations = []
    for number, keypoints in ((1, KNOWN), (2, standing(70, 40, 30, 40))):
        save(folder / f"{number}.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        points = keypoints[list(COCO_FROM_PARTS)].copy()
        points[:, 2] = 2
        box = [*points[:, :2].min(axis=0).tolist(), *np.ptp(points[:, :2], axis=0).tolist()]
        annotations.append(
            {
                "id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "num_keypoints": 17, "bbox": box,
                "keypoints": points.ravel().tolist(), "area": box[2] * box[3],
            }
        )  # fmt: skip
    images = [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png", "ignore_complete": False}]
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO_KEYPOINTS), "skeleton": []}]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content))
    return folder


class TestEvaluate:
    def arguments(self, file: Path, truth: Path) -> list[object]:
        return ["pose", "evaluate", file, "--annotations", truth / "truth.json", "--images", truth, *NETWORK]

    def test_float_against_int8(self, run: Kvant, file: Path, truth: Path, tmp_path: Path) -> None:
        report, results = tmp_path / "a.json", tmp_path / "results.json"
        result = run(*self.arguments(file, truth), "--json", report, "--results", results)
        assert (result.exit_code, result.stderr) == (0, "")
        scores = json.loads(report.read_text())["scores"]
        assert scores["int8"]["AP"] == pytest.approx(1)
        assert scores["float"]["AP"] < scores["int8"]["AP"]
        line = next(line for line in result.stdout.splitlines() if line.split()[:1] == ["AP"])
        assert line.split()[1:] == [
            f"{scores['float']['AP']:.4f}", "1.0000", f"{1 - scores['float']['AP']:+.4f}",
        ]  # fmt: skip
        [found] = json.loads(results.read_text())
        assert (found["image_id"], found["category_id"], len(found["keypoints"])) == (1, 1, 51)

    def test_what_is_read_is_not_overwritten(
        self, fail: Callable[..., str], file: Path, truth: Path, walk: Path, tmp_path: Path
    ) -> None:
        evaluate, out = self.arguments(file, truth), tmp_path / "a.json"
        video = ["pose", "video", file, walk, *NETWORK]
        quantize = ["pose", "quantize", "--network", "openpose-vgg", "--calibration", truth, "--weights", file]
        for line in (
            [*evaluate, "--json", truth / "truth.json"],
            [*evaluate, "--results", truth / ".." / file.name],
            [*evaluate, "--json", out, "--results", out],
            [*video, "--json", file],
            [*quantize, "-o", file],
        ):
            assert "give another name for what is written" in fail(*line)
        assert not out.exists()

    def test_incomplete_pictures_and_limits(self, run: Kvant, file: Path, truth: Path, tmp_path: Path) -> None:
        report = tmp_path / "a.json"
        assert run(*self.arguments(file, truth), "--all", "--no-float", "--json", report).exit_code == 0
        content = json.loads(report.read_text())
        assert content["pictures"] == 2 and set(content["scores"]) == {"int8"}
        assert content["scores"]["int8"]["AP"] < 0.6
        assert run(*self.arguments(file, truth), "--all", "--limit", 1, "--json", report).exit_code == 0
        assert json.loads(report.read_text())["pictures"] == 1

    def test_without_float_needs_no_torch(
        self, run: Kvant, fail: Callable[..., str], file: Path, truth: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        assert run(*self.arguments(file, truth), "--no-float").exit_code == 0
        assert "pip install 'kvant[torch]'" in fail(*self.arguments(file, truth))

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"images": [{"id": 1}], "annotations": []}', "\x80"])
    def test_annotations_that_are_none(self, fail: Callable[..., str], file: Path, truth: Path, content: str) -> None:
        (truth / "truth.json").write_text(content, encoding="latin-1")
        message = fail(*self.arguments(file, truth), "--no-float")
        assert "truth.json" in message and len(message.splitlines()) == 1

    def test_no_picture_counts(self, fail: Callable[..., str], file: Path, truth: Path) -> None:
        content = json.loads((truth / "truth.json").read_text())
        content["images"] = content["images"][1:]
        (truth / "truth.json").write_text(json.dumps(content))
        assert "lists no image" in fail(*self.arguments(file, truth), "--no-float")

    def test_when_no_picture_can_be_read(self, fail: Callable[..., str], file: Path, truth: Path) -> None:
        (truth / "1.png").unlink()
        message = fail(*self.arguments(file, truth), "--no-float")
        assert "1.png cannot be read" in message and "none of the pictures" in message

    def test_pictures_that_cannot_be_read_do_not_count(
        self, run: Kvant, file: Path, truth: Path, tmp_path: Path
    ) -> None:
        report = tmp_path / "a.json"
        (truth / "2.png").write_bytes((truth / "2.png").read_bytes()[:60])
        result = run(*self.arguments(file, truth), "--all", "--json", report)
        assert result.exit_code == 1
        assert result.stderr.count("2.png is damaged") == 1 and "1 picture skipped" in result.stderr
        content = json.loads(report.read_text())
        assert content["pictures"] == 1
        assert content["scores"]["int8"]["AP"] == pytest.approx(1)


class TestCompare:
    def test_differences(self, run: Kvant, file: Path, album: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = run("pose", "compare", file, album / "colour.png", album / "half.jpg", "-o", out, *NETWORK)
        assert result.exit_code == 1
        assert "half.jpg is damaged" in result.stderr
        report = json.loads((out / "compare.json").read_text())
        assert (report["network"], report["height"], report["scales"]) == ("openpose-mobilenet-thin", HEIGHT, [1.0])
        [record] = report["pictures"]
        [found] = record["differences"]
        assert found["mean_px"] == pytest.approx(2, abs=0.6)
        assert (found["parts_reference"], found["parts_other"]) == (18, 18)
        assert report["float_ms"] > 0 and report["int8_ms"] > 0
        assert "colour.png" in result.stdout and "1 person in 1 picture, 1 found by both" in result.stdout
        drawn = cv2.imread(str(out / record["drawn"]))
        assert drawn.shape[1] == 2 * WIDTH + 8

    def test_no_picture_could_be_read(self, run: Kvant, file: Path, album: Path, tmp_path: Path) -> None:
        result = run("pose", "compare", file, album / "text.png", "-o", tmp_path / "out", *NETWORK)
        assert result.exit_code == 1
        assert json.loads((tmp_path / "out" / "compare.json").read_text())["pictures"] == []

    def test_networks_that_cannot_be_compared(
        self, fail: Callable[..., str], file: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ["pose", "compare", file, album / "colour.png", "-o", tmp_path / "out"]
        assert "give its checkpoint with --weights" in fail(*arguments, "--network", "openpose-vgg")
        mine = PoseEstimator(see, network=NetworkSpec("mine", ESTIMATOR.network.input, ESTIMATOR.network.output))
        monkeypatch.setattr("kvant.pose.PoseEstimator", lambda *args, **options: mine, raising=False)
        assert "'mine', whose float network is not part of this package" in fail(*arguments)
