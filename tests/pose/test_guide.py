"""The guide's Python runs, and it tells of every command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import kvant
from kvant.cli.app import app
from kvant.graph import Graph, Quantization, TensorType, ops
from kvant.pose import network_spec

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "pose.md"
TEXT = GUIDE.read_text()
COMMANDS = re.findall(r"^    (kvant pose .*)$", TEXT, re.MULTILINE)


def build_pose_graph() -> Graph:
    """One convolution of the outputs that a pose network has: 57 channels at an eighth of the size."""
    graph = Graph()
    graph.add_input("image", (1, 3, ("height",), ("width",)))
    graph.example = {"height": 8, "width": 8}
    graph.add_node(ops.Quantize(), ["image"], "x_q", TensorType("uint8", Quantization((1.0,), 0)))
    weights = np.random.default_rng(0).integers(-127, 128, (57, 3, 8, 8)).astype(np.int8)
    scales = tuple(float(np.float32(0.0001)) for _ in range(57))
    weight = graph.add_constant("weight", weights, Quantization(scales, 0, 0))
    bias = graph.add_constant("bias", np.zeros(57, np.int32))
    output = TensorType("uint8", Quantization((float(np.float32(0.01)),), 128))
    graph.add_node(ops.Conv((8, 8), (0, 0), (0, 0), (1, 1)), ["x_q", weight, bias], "y_q", output)
    graph.add_node(ops.Dequantize(), ["y_q"], "y")
    graph.outputs = ("y",)
    return graph


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guide's code expects: a file and a video."""
    folder = tmp_path_factory.mktemp("guide")
    metadata = network_spec("openpose-mobilenet-thin").metadata()
    kvant.QuantizedModel(build_pose_graph(), backend="reference", metadata=metadata).save(folder / "pose.kvant")
    writer = cv2.VideoWriter(str(folder / "walk.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(3):
        writer.write(np.full((48, 64, 3), 80 * number, np.uint8))
    writer.release()
    return folder


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_python_runs(block: str, folder: Path) -> None:
    subprocess.run([sys.executable, "-c", block], cwd=folder, check=True)


def test_a_real_file_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((48, 64, 3), 90, np.uint8))
    line = ["pose", "run", str(folder / "pose.kvant"), str(tmp_path / "a.png"), "-o", str(tmp_path), "--height", "96"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.pose.png").exists()


def test_every_command_is_told_of() -> None:
    listed = CliRunner().invoke(app, ["pose", "--help"]).output
    names = {"quantize", "run", "video", "evaluate", "compare", "serve"}
    assert all(name in listed for name in names)
    assert {command.split()[2] for command in COMMANDS} == names
