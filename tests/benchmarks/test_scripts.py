"""Every benchmark runs, on little data, where its data and the tools it compares with are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("KVANT_SHARED", REPOSITORY.parent / "shared"))


def _run(script: str, output: Path, *options: str) -> Any:
    for package in ("onnx", "onnxscript", "openvino", "nncf", "onnxruntime"):
        pytest.importorskip(package)
    if not (SHARED / "data" / "coco").is_dir():
        pytest.skip(f"no COCO photos at {SHARED} (set KVANT_SHARED)")
    command = [sys.executable, str(REPOSITORY / "benchmarks" / script), "--output", str(output), "--height", "184"]
    subprocess.run([*command, *options], check=False)
    return json.loads((output / script).with_suffix(".json").read_text())


@pytest.mark.slow
def test_accuracy(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    found = _run("accuracy.py", tmp_path, "--calibration=4", "--photos=3")
    kvant = ["kvant", "kvant-fast", "kvant-best", "kvant-8-bits"]
    assert list(found["results"]) == ["float", *kvant, "nncf", "onnxruntime", "torchao"]
    assert all(0 <= result["AP"] <= 1 and result["ms"] > 0 for result in found["results"].values())
    assert found["results"]["kvant"]["int8xint8"] > 0


@pytest.mark.slow
def test_calibration(tmp_path: Path) -> None:
    found = _run("calibration.py", tmp_path, "--images=4", "--rounds=1")
    assert [row["tool"] for row in found["rows"]] == ["kvant"] * 5 + ["nncf"] + ["onnxruntime"] * 2
    assert all(row["seconds"] > 0 for row in found["rows"])


@pytest.mark.slow
def test_zoo(tmp_path: Path) -> None:
    found = _run("zoo.py", tmp_path, "--only=squeezenet,dicenet_wd2", "--rounds=1", "--threads=1")
    assert {row["network"] for row in found["results"]} == {"squeezenet_v1_1", "dicenet_wd2"}
    assert all(ms > 0 for row in found["results"] for ms in row["ms"].values())
    assert found["refused"] == {}


def test_missing_photos_are_explained(tmp_path: Path) -> None:
    environment = os.environ | {"KVANT_SHARED": str(tmp_path)}
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "calibration.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "set KVANT_SHARED to the folder that holds data/coco" in result.stderr
