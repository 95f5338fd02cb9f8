"""``kvant quantize`` and ``kvant pose``, from files to files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import kvant
from kvant.cli.calibration import PictureSpec
from kvant.cli.pose_run import output_names
from kvant.pose import NetworkSpec
from samples import Kvant


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(6, 3, 12, 10)).astype(np.float32))
    return path


def arguments(factory: str, calibration: Path, out: Path) -> list[object]:
    return ["quantize", f"{factory}:Net", "--example", "1,3,12,10", "--calibration", calibration, "-o", out]


def test_from_arrays(run: Kvant, factory: str, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.kvant"
    result = run(*arguments(factory, samples, out), "--golden", 2)
    assert result.exit_code == 0, result.output
    assert result.output == ""
    model = kvant.load(out, backend="reference")
    assert model.verify() == 2
    maps = model(np.zeros((1, 3, 12, 10), np.float32))
    assert set(maps) == {"maps", "mean"}
    assert run("info", out).exit_code == 0
    done = run("run", out, samples, "-o", tmp_path / "out.npz")
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "out.npz") as outputs:
        assert {name: outputs[name].shape for name in outputs.files} == {"maps": (6, 4, 12, 10), "mean": (6, 4)}


def test_by_a_recipe_in_a_file(run: Kvant, factory: str, samples: Path, tmp_path: Path) -> None:
    kvant.Recipe(kvant.WeightScheme(bits=2), target_sqnr=None).save(tmp_path / "recipe.toml")
    out = tmp_path / "net.kvant"
    result = run(*arguments(factory, samples, out), "--recipe", tmp_path / "recipe.toml")
    assert result.exit_code == 0, result.output
    weights = kvant.load(out, backend="reference").graph.constants["conv.weight"]
    assert len(np.unique(weights)) <= 3
    both = run(*arguments(factory, samples, out), "--recipe", tmp_path / "recipe.toml", "--bits", "16")
    assert both.exit_code == 2 and "--recipe says everything" in both.output
    (tmp_path / "recipe.toml").write_text("bits = 5")
    wrong = run(*arguments(factory, samples, out), "--recipe", tmp_path / "recipe.toml")
    assert wrong.exit_code == 1 and "no field 'bits'" in wrong.output


def test_effort_reaches_the_recipe(
    run: Kvant, factory: str, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[kvant.Recipe] = []
    quantize = kvant.quantize

    def watched(*args: Any, recipe: kvant.Recipe, **kwargs: Any) -> kvant.QuantizedModel:
        given.append(recipe)
        return quantize(*args, recipe=recipe, **kwargs)

    monkeypatch.setattr(kvant, "quantize", watched)
    result = run(*arguments(factory, samples, tmp_path / "net.kvant"), "--effort", "fast")
    assert result.exit_code == 0, result.output
    assert [recipe.effort for recipe in given] == ["fast"]
    assert run(*arguments(factory, samples, tmp_path / "net.kvant"), "--effort", "most").exit_code == 2


def test_from_pictures_with_weights(run: Kvant, factory: str, pictures: Path, tmp_path: Path) -> None:
    weights = {"conv.weight": torch.full((4, 3, 3, 3), 0.25), "conv.bias": torch.zeros(4)}
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "w.pth")
    save_file(weights, tmp_path / "w.safetensors")
    save_file({f"module.{name}": value for name, value in weights.items()}, tmp_path / "parallel.safetensors")
    save_file(weights, tmp_path / "safetensors.pth")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    files = []
    for name in ("w.pth", "w.safetensors", "parallel.safetensors", "safetensors.pth", "old.pth"):
        out = tmp_path / f"{name}.kvant"
        result = run(*arguments(factory, pictures, out), "--weights", tmp_path / name, "--color", "bgr")
        assert result.exit_code == 0, result.output
        files.append(out.read_bytes())
    assert all(content == files[0] for content in files)
    model = kvant.load(out, backend="reference")
    assert json.loads(model.metadata["preprocessing"])["color"] == "bgr"


def test_broken_pictures(run: Kvant, factory: str, pictures: Path, tmp_path: Path) -> None:
    """As ``kvant pose quantize`` does: each is named once and left out, and the exit code is 1."""
    whole, out = tmp_path / "whole.kvant", tmp_path / "net.kvant"
    assert run(*arguments(factory, pictures, whole), "--golden", 2).exit_code == 0
    (pictures / "b.broken.png").write_text("no picture")
    result = run(*arguments(factory, pictures, out), "--golden", 2)
    assert result.exit_code == 1
    assert result.stderr.count("b.broken.png is") == 1 and "1 picture skipped" in result.stderr
    assert out.read_bytes() == whole.read_bytes()


class TestMistakes:
    def test_of_the_model(self, fail: Callable[..., str], factory: str, samples: Path, tmp_path: Path) -> None:
        def message(target: str) -> str:
            options = ["--example", "1,3,12,10", "--calibration", samples, "-o", tmp_path / "a.kvant"]
            return fail("quantize", target, *options)

        assert "no_such_module" in message("no_such_module:Net")
        assert "has no 'Missing'" in message(f"{factory}:Missing")
        assert "RuntimeError: no such luck" in message(f"{factory}:broken")
        assert f"{factory}.py:" in message(f"{factory}:broken")
        assert "gave a int" in message(f"{factory}:build_number")
        assert f"{factory}:leave: SystemExit: 0 ({tmp_path / factory}.py:" in message(f"{factory}:leave")
        assert not (tmp_path / "a.kvant").exists()

    def test_of_the_weights(self, fail: Callable[..., str], factory: str, samples: Path, tmp_path: Path) -> None:
        def message(content: object) -> str:
            torch.save(content, tmp_path / "w.pth")
            return fail(*arguments(factory, samples, tmp_path / "a.kvant"), "--weights", tmp_path / "w.pth")

        text = message({"conv.weight": torch.zeros(4, 3, 1, 1), "extra": torch.zeros(1)})
        assert "missing: conv.bias" in text
        assert "surplus: extra" in text
        assert "wrong shape: conv.weight is (4, 3, 1, 1), expected (4, 3, 3, 3)" in text
        assert "no state dict" in message([1, 2])
        assert "but a dict of 'model', 'epoch'" in message({"model": {"w": torch.zeros(1)}, "epoch": 3})
        assert "other Python objects than tensors" in message(torch.nn.Linear(1, 1))

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize(
        ("change", "kind"),
        [
            (lambda weight: weight.to(torch.complex64), "complex64"),
            (lambda weight: weight.to(torch.int8), "int8"),
            (lambda weight: weight.to_sparse(), "float32, sparse_coo"),
            (lambda weight: weight.to("meta"), "float32 without values (on the meta device)"),
            (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "qint8"),
        ],
    )
    def test_of_the_weights_kind(
        self,
        change: Callable[[torch.Tensor], torch.Tensor],
        kind: str,
        fail: Callable[..., str],
        factory: str,
        samples: Path,
        tmp_path: Path,
    ) -> None:
        """torch copies the real part of complex weights and integers that have a scale elsewhere without a word."""
        state = {"conv.weight": change(torch.ones(4, 3, 3, 3)), "conv.bias": torch.zeros(4, dtype=torch.float64)}
        torch.save(state, tmp_path / "w.pth")
        text = fail(*arguments(factory, samples, tmp_path / "a.kvant"), "--weights", tmp_path / "w.pth")
        assert f"does not fit Net:\n  wrong kind: conv.weight is {kind}\n" in text and "bias" not in text

    @pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"nothing", "nothing"), (b"<!DOCTYPE html>", "torch.save or safetensors"), (b"\x99" + bytes(7) + b"{}", "")],
    )
    def test_of_the_weights_file(
        self,
        name: str,
        content: bytes,
        words: str,
        fail: Callable[..., str],
        factory: str,
        samples: Path,
        tmp_path: Path,
    ) -> None:
        (tmp_path / name).write_bytes(content)
        text = fail(*arguments(factory, samples, tmp_path / "a.kvant"), "--weights", tmp_path / name)
        assert f"{name} cannot be read as a" in text
        assert name.endswith("tensors") or words in text

    def test_of_the_data(self, fail: Callable[..., str], factory: str, tmp_path: Path) -> None:
        def message(source: Path) -> str:
            return fail(*arguments(factory, source, tmp_path / "a.kvant"))

        (tmp_path / "empty").mkdir()
        assert "no pictures" in message(tmp_path / "empty")
        (tmp_path / "empty" / "a.jpg").write_bytes(b"no picture")
        assert "a.jpg" in message(tmp_path / "empty")
        assert "none of the pictures can be read" in message(tmp_path / "empty")
        np.savez(tmp_path / "none.npz", x=np.zeros((0, 3, 12, 10), np.float32))
        assert "not empty" in message(tmp_path / "none.npz")
        np.savez(tmp_path / "name.npz", y=np.zeros((1, 3, 12, 10), np.float32))
        assert "holds y; the model takes x" in message(tmp_path / "name.npz")
        np.savez(tmp_path / "nan.npz", x=np.full((1, 3, 12, 10), np.nan, np.float32))
        assert "NaN" in message(tmp_path / "nan.npz")
        (tmp_path / "text.npz").write_text("text")
        assert "text.npz cannot be read" in message(tmp_path / "text.npz")

    def test_of_usage(self, run: Kvant, factory: str, samples: Path, tmp_path: Path) -> None:
        good = arguments(factory, samples, tmp_path / "a.kvant")
        for wrong in (["--golden", "1025"], ["--std", "inf"], ["--std", "1e-300"], ["--mean", "nan"]):
            assert run(*good, *wrong).exit_code == 2
        for wrong in (["--std", "0"], ["--mean", "a"], ["--size", "1,2,3"], ["--bits", "4"], ["--limit", "0"]):
            assert run(*good, *wrong).exit_code == 2
        assert run("quantize", "no-colon", *good[2:]).exit_code == 2
        assert run(*good[:3], "3,x", *good[4:]).exit_code == 2
        for shape in ("1,0,3", "1,00,3", "1,03", "1," + "9" * 5000):
            assert run(*good[:3], shape, *good[4:]).exit_code == 2

    def test_of_memory(self, run: Kvant, fail: Callable[..., str], factory: str, samples: Path, tmp_path: Path) -> None:
        good = arguments(factory, samples, tmp_path / "a.kvant")
        assert run(*good[:3], "1,3,99999999,99999999", *good[4:]).exit_code == 2
        (tmp_path / f"{factory}.py").write_text(
            "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x): return x\n"
            "    def state_dict(self): return torch.empty(2**44)\n"
        )
        torch.save({}, tmp_path / "w.pth")
        assert fail(*good, "--weights", tmp_path / "w.pth").startswith("not enough memory: ")

    def test_what_is_read_is_not_overwritten(
        self, fail: Callable[..., str], factory: str, samples: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "recipe.toml").write_text("")
        (tmp_path / "w.pth").write_bytes(b"")
        given = ["--recipe", tmp_path / "recipe.toml", "--weights", tmp_path / "w.pth"]
        for out in (samples, tmp_path / "recipe.toml", tmp_path / "w.pth"):
            assert "is needed for something else" in fail(*arguments(factory, samples, out), *given)

    @pytest.mark.parametrize("option", ["--calibration", "--weights", "--recipe"])
    def test_a_pipe_is_not_waited_for(
        self, option: str, fail: Callable[..., str], factory: str, samples: Path, tmp_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "pipe")
        message = fail(*arguments(factory, samples, tmp_path / "a.kvant"), option, tmp_path / "pipe")
        assert "is a device, a pipe or a socket" in message

    def test_the_folder_is_looked_at_before_the_work(
        self, fail: Callable[..., str], samples: Path, tmp_path: Path
    ) -> None:
        options = ["--example", "1,3", "--calibration", samples]
        assert "does not exist" in fail("quantize", "nothing:here", *options, "-o", tmp_path / "no" / "a.kvant")
        assert "is a folder" in fail("quantize", "nothing:here", *options, "-o", tmp_path)
        assert "could not save" in fail("quantize", "nothing:here", *options, "-o", "/proc/a.kvant")


class TestPictureSpec:
    def test_values(self) -> None:
        picture = np.zeros((10, 20, 3), np.uint8)
        picture[..., 0] = 255
        values = PictureSpec((4, 4), (0.5,), (0.25,)).apply(picture)
        assert values.shape == (1, 3, 4, 4)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values[0, :, 0, 0], np.array([-2, -2, 2], np.float32))
        reversed_ = PictureSpec((4, 4), (0.5,), (0.25,), "bgr").apply(picture)
        np.testing.assert_array_equal(reversed_, values[:, ::-1])

    @pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 7), (50, 30)])
    def test_any_picture_covers_the_size(self, shape: tuple[int, int]) -> None:
        assert PictureSpec((8, 6)).apply(np.zeros((*shape, 3), np.uint8)).shape == (1, 3, 8, 6)

    @pytest.mark.parametrize("shape", [(1, 10_000_000), (10_000_000, 1)])
    def test_a_picture_as_long_as_can_be(self, shape: tuple[int, int]) -> None:
        """Scaled as a whole it would take a terabyte."""
        picture = np.zeros((*shape, 3), np.uint8)
        picture[(slice(None), slice(4_999_990, 5_000_010))[:: 1 if shape[0] == 1 else -1]] = 255
        assert PictureSpec((224, 224), (0.0,), (1.0,)).apply(picture).min() == 1

    def test_the_middle_is_kept(self) -> None:
        picture = np.zeros((8, 24, 3), np.uint8)
        picture[:, 8:16] = 255
        assert PictureSpec((8, 8), (0.0,), (1.0,)).apply(picture).min() == 1


class TestPose:
    def test_output_names_never_meet(self, tmp_path: Path) -> None:
        images = [tmp_path / "a" / "x.jpg", tmp_path / "b" / "x.png", tmp_path / "x.pose.png"]
        names = output_names([*images, tmp_path / "x.jpg"], tmp_path)
        assert len(set(names)) == 4
        assert not set(names) & set(images)

    def test_mistakes(
        self, run: Kvant, fail: Callable[..., str], model_file: Path, pictures: Path, tmp_path: Path
    ) -> None:
        out = ["-o", tmp_path / "a.kvant"]
        common = ["--calibration", pictures, *out]
        assert run("pose", "quantize", "--network", "alexnet", *common).exit_code == 2
        assert run("pose", "quantize", "--network", "openpose-vgg", *common).exit_code == 2
        network = ["--network", "openpose-mobilenet-thin"]
        assert run("pose", "quantize", *network, *common, "--height", "4").exit_code == 2
        message = fail("pose", "run", model_file, pictures / "a.png", "-o", tmp_path / "drawn")
        assert "does not say which pose network" in message

    def test_broken_pictures(self, run: Kvant, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each is named once, left out, and lets the command fail in the end, when the file is written."""
        shapes = torch.nn.Sequential(torch.nn.Conv2d(3, 57, 1), torch.nn.AvgPool2d(8)).eval()
        monkeypatch.setattr(NetworkSpec, "build", lambda spec, weights: shapes)
        (pictures / "broken.png").write_text("no picture")
        common = ["pose", "quantize", "--network", "openpose-mobilenet-thin", "--height", 64, "--golden", 1]
        result = run(*common, "--calibration", pictures, "-o", tmp_path / "a.kvant")
        assert result.exit_code == 1
        assert result.stderr.count("broken.png is") == 1 and "1 picture skipped" in result.stderr
        assert kvant.load(tmp_path / "a.kvant").verify() == 1
        result = run(*common, "--calibration", pictures / "broken.png", "-o", tmp_path / "b.kvant")
        assert result.exit_code == 1 and "none of the pictures can be read" in result.stderr
        assert not (tmp_path / "b.kvant").exists()

    @pytest.mark.slow
    def test_from_pictures_to_skeletons(self, run: Kvant, tmp_path: Path) -> None:
        folder = tmp_path / "people"
        folder.mkdir()
        numbers = np.random.default_rng(0)
        for index in range(2):
            picture = cv2.resize(numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8), (96, 96))
            cv2.imwrite(str(folder / f"{index}.png"), picture)
        out = tmp_path / "pose.kvant"
        common = ["--network", "openpose-mobilenet-thin", "--height", 64, "--golden", 1]
        result = run("pose", "quantize", *common, "--calibration", folder, "-o", out)
        assert result.exit_code == 0, result.output
        assert run("verify", out).exit_code == 0
        drawn = tmp_path / "drawn"
        images = sorted(folder.iterdir())
        result = run("pose", "run", out, *images, "-o", drawn, "--height", 64, "--json")
        assert result.exit_code == 0, result.output
        assert sorted(path.name for path in drawn.iterdir()) == ["0.pose.png", "1.pose.png", "people.json"]
        assert set(json.loads((drawn / "people.json").read_text())) == {str(path) for path in images}


def test_without_data(run: Kvant, factory: str, samples: Path, tmp_path: Path) -> None:
    """The network of these tests has no batch norm, and the file says what was done instead."""
    out = tmp_path / "net.kvant"
    common = ["quantize", f"{factory}:Net", "--example", "1,3,12,10", "-o", out]
    result = run(*common)
    assert result.exit_code == 0, result.output
    model = kvant.load(out, backend="reference")
    assert model.metadata["calibration"] == "no data; 8 inputs of noise, for a network without batch norm"
    assert "preprocessing" not in model.metadata
    assert "no data" in run("info", out).output
    assert "need --calibration" in run(*common, "--golden", "2").output
