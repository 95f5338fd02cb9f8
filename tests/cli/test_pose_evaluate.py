"""``kvant pose evaluate``: average precision of a file and of its float network."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvant.pose import COCO_KEYPOINTS
from kvant.pose.layout import COCO_FROM_PARTS
from samples import Kvant

from ..pose.scenes import standing
from .known import HEIGHT, KNOWN, NETWORK, WIDTH, save


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
