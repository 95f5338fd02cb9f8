from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CONDITIONS = {
    "cpu": "A CPU", "threads": 2, "date": "2026-01-02", "load_before": 0.1, "memory_before": [9.5, 12.0],
    "versions": {"kvant": "1.2.3"},
}  # fmt: skip
SCORES = {"AP": 0.25, "AP50": 0.5, "AP75": 0.2, "AR": 0.3, "ms": 80.0, "bytes": 7_720_000}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    yield import_module("tables")
    for name in set(sys.modules) - before:
        if name in {"tables", "accuracy", "calibration", "digits", "_common", "_engines"}:
            del sys.modules[name]


def _write(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({**CONDITIONS, **content}))


def _accuracy(folder: Path) -> None:
    kvant = {**SCORES, "AP": 0.248, "sqnr_db": {"heat": 12.0, "paf": 13.0}, "quantize_seconds": 60.2}
    kvant |= {"quantize_extra_mb": 300, "int8xint8": 0.8, "int16xint8": 0.2}
    _write(
        folder,
        "benchmarks/accuracy.json",
        {"val_photos": 83, "calibration_photos": 134, "results": {"float": SCORES, "kvant": kvant}},
    )


def test_marked_regions_are_rewritten_and_nothing_else(tables: Any, tmp_path: Path) -> None:
    _accuracy(tmp_path)
    page = (
        "before\n<!-- table: accuracy -->\nold\n<!-- end -->\nafter\n<!-- table: calibration -->\nstays\n<!-- end -->\n"
    )
    text = tables.rewrite(page, tmp_path)
    assert text.startswith("before\n<!-- table: accuracy -->\n| ") and "old" not in text
    assert "after\n<!-- table: calibration -->\nstays\n<!-- end -->\n" in text
    for part in (
        "| 0.2480 | -0.0020 |",
        "A CPU, 2 threads; kvant 1.2.3",
        "80.0% int8 x int8, 20.0% int16 x int8",
        "(2026-01-02, load 0.1 before, one thread copied 9.5 GB/s, all 12.0).",
    ):
        assert part in text
    assert tables.rewrite(text, tmp_path) == text


def test_calibration_table_and_promise(tables: Any, tmp_path: Path) -> None:
    calibration = import_module("calibration")
    plain = calibration.Run(25.0, 650.0, 690.0)
    row = calibration.row("kvant", "extremes", 100, calibration.Run(30.0, 680.0, 700.0), plain)
    assert (row["ratio"], row["extra_mb"]) == (1.2, 50)
    assert calibration.row("kvant", "histograms", 300, calibration.Run(90.0, 700.0, 700.0), plain, 3)["ratio"] == 1.2
    slow = {**row, "ratio": 1.6}
    whole = {**slow, "what": "whole quantization"}
    assert calibration.broken_promises({"rows": [row, whole, {**slow, "tool": "nncf"}]}) == []
    assert len(calibration.broken_promises({"rows": [slow, {**row, "extra_mb": 201}]})) == 2
    _write(tmp_path, "benchmarks/calibration.json", {"rounds": 3, "rows": [row]})
    page = tables.rewrite("<!-- table: calibration -->\n<!-- end -->\n", tmp_path)
    assert "| kvant | extremes | 100 | 30.0 s | 25.0 s | 1.20 x | 50 MB |" in page


def test_pose_table(tables: Any, tmp_path: Path) -> None:
    def times(seconds: float, people: int = 5) -> dict[str, float]:
        return {"seconds": seconds, "people": people, "pre": 0.01, "network": seconds - 0.03, "post": 0.02}

    vgg = {"reference": {**times(20), "pre": 0.0}, "kvant": times(2.5), "kvant-speed": times(2)}
    thin = {"reference": {**times(3), "pre": 0.0}, "kvant": times(0.3), "kvant-one-scale": times(0.05)}
    results = [
        {"network": "openpose-vgg", "size": [674, 712], "methods": vgg},
        {"network": "openpose-mobilenet-thin", "size": [674, 712], "methods": thin},
    ]
    _write(tmp_path, "benchmarks/pose.json", {"rounds": 3, "results": results})
    page = tables.rewrite("<!-- table: pose -->\n<!-- end -->\n", tmp_path)
    assert "| openpose-vgg | reference method, torch float32 | 20.00 s | 8.0 x, 10.0 x |" in page
    assert "| openpose-mobilenet-thin | reference method, torch float32 | 3.00 s | 10.0 x |" in page
    assert "| openpose-mobilenet-thin | kvant, one scale | 50.0 ms |  | 10.0 ms | 40% | 20.0 ms | 5 |" in page
    assert "674 x 712 pixels, medians of 3 rounds" in page


def test_video_table(tables: Any, tmp_path: Path) -> None:
    times = {"network": 40.0, "lines": 44.0, "drawn": 50.0}
    _write(tmp_path, "benchmarks/video.json", {"height": 368, "frames": 230, "rounds": 3, "ms": times})
    page = tables.rewrite("<!-- table: video -->\n<!-- end -->\n", tmp_path)
    assert "| bare network | 25.0 | 40.0 ms |  |" in page
    assert "| read, run, draw, JSON lines, encode | 20.0 | 50.0 ms | 80% |" in page
    assert "230 frames at height 368, medians of 3 rounds" in page


def test_pages_have_their_tables(tables: Any) -> None:
    texts = {page: (REPOSITORY / page).read_text() for page in tables.PAGES}
    for text in texts.values():
        assert text.count("<!-- table: ") == text.count("<!-- end -->") >= 2
    for page in ("docs/benchmarks.md", "README.md"):
        assert all(f"<!-- table: {name} -->" in texts[page] for name in ("demo", "accuracy"))
    for name in tables.TABLES:
        assert any(f"<!-- table: {name} -->" in text for text in texts.values()), name


def test_soak(tables: Any, tmp_path: Path) -> None:
    blocks = [{"mb": 100.0 + number, "ms": 10.0, "people": 1} for number in range(20)]
    spread = {"memory_growth": 0.012, "time_growth": -0.05, "memory_spread": 0.03, "time_spread": 0.1}
    _write(tmp_path, "benchmarks/soak.json", {"detections": 10_000, "blocks": blocks, **spread})
    text = tables.rewrite("<!-- table: soak -->\nold\n<!-- end -->", tmp_path)
    assert "| 2500 | 104.0 MB | 10.00 ms |" in text
    assert "| 10000 | 119.0 MB | 10.00 ms |" in text
    assert "memory +1.2%, time -5.0%; memory within 3.0% of its median" in text
    assert "old" not in text
