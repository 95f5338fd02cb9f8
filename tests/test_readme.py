"""README's Python blocks and commands run, in their order."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()


def test_python_blocks_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True)


def test_the_file_runs_without_torch(tmp_path: Path) -> None:
    first, second = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    subprocess.run([sys.executable, "-c", first], cwd=tmp_path, check=True)
    without = "import sys; sys.modules['torch'] = None\n" + second
    subprocess.run([sys.executable, "-c", without], cwd=tmp_path, check=True)


NETWORK = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 4), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
"""


def test_commands_for_a_network_of_ones_own_run(tmp_path: Path) -> None:
    """In a folder with what they name."""
    commands = re.findall(r"^    kvant ((?:quantize|run) .*)$", README, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["quantize", "run"]
    (tmp_path / "mynet.py").write_text(NETWORK)
    names: dict[str, Any] = {}
    exec(NETWORK, names)
    torch.save(names["build"]().state_dict(), tmp_path / "mynet.pth")
    numbers = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(4):
        cv2.imwrite(str(tmp_path / f"photos/{index}.png"), numbers.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    np.savez(tmp_path / "inputs.npz", numbers.normal(size=(1, 3, 224, 224)).astype(np.float32))
    for command in commands:
        subprocess.run([sys.executable, "-m", "kvant.cli", *command.split()], cwd=tmp_path, check=True)
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert outputs["output"].shape == (1, 2, 56, 56)
