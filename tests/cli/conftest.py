"""A way to run the command, and what the commands work on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import kvant
import kvant.pose.estimator
from kvant.cli.app import app
from kvant.pose import NetworkSpec
from samples import Kvant, build_small_graph

from .known import FRAMES, HEIGHT, WIDTH, FloatNetwork, save, see

FACTORY = """
import sys

import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return {"maps": torch.relu(self.conv(x)), "mean": self.conv(x).mean((2, 3))}


def broken():
    raise RuntimeError("no such luck")


def build_number():
    return 3


def leave():
    sys.exit(0)
"""


@pytest.fixture
def run() -> Kvant:
    """Runs ``kvant`` with the given arguments."""

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def fail(run: Kvant) -> Callable[..., str]:
    """Runs ``kvant``, which is to exit with 1, and gives what it says: never a traceback."""

    def invoke(*arguments: object) -> str:
        result = run(*arguments)
        assert result.exit_code == 1, result.output
        # A machine without the native library is warned of it first.
        _, found, message = result.stderr.partition("kvant: error: ")
        assert found
        assert "Traceback" not in message
        return str(message)

    return invoke


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """The small graph as a file with one golden vector."""
    model = kvant.QuantizedModel(build_small_graph(), backend="reference", metadata={"author": "tests"})
    model.add_golden(np.random.default_rng(3).normal(size=(1, 2, 4, 4)).astype(np.float32))
    path = tmp_path / "small.kvant"
    model.save(path)
    return path


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with networks in the working folder; its name is new for each test."""
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with four small pictures, one of them in a folder within."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "c.PNG", "more/d.png"):
        picture = numbers.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        (folder / name).write_bytes(cv2.imencode(Path(name).suffix.lower(), picture)[1].tobytes())
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in name only: what would be read from it is `see`."""
    monkeypatch.setattr(kvant.pose.estimator, "load", lambda path, **_: see)
    monkeypatch.setattr(NetworkSpec, "build", lambda spec, weights: FloatNetwork())
    path = tmp_path / "pose.kvant"
    path.write_bytes(b"nothing")
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


@pytest.fixture
def walk(tmp_path: Path) -> Path:
    path = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for number in range(FRAMES):
        writer.write(np.full((HEIGHT, WIDTH, 3), 20 * number, np.uint8))
    writer.release()
    return path
