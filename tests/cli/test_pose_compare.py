"""``kvant pose compare``: a file and its float network, person by person."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from kvant.pose import NetworkSpec, PoseEstimator
from samples import Kvant

from .known import ESTIMATOR, HEIGHT, NETWORK, WIDTH, see


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
