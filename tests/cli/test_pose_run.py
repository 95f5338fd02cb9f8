"""``kvant pose run``: a network that sees known people stands in for the file's."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import kvant.pose.estimator
from kvant.pose import Person
from samples import Kvant

from .known import ESTIMATOR, HEIGHT, KNOWN, NETWORK, WIDTH, save, see


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
