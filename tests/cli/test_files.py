"""``kvant info``, ``run`` and ``verify``."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import kvant
from kvant.cli import arrays
from kvant.cli.output import clean, print_table
from kvant.format import Golden, write_file
from samples import Kvant, build_small_graph


class TestInfo:
    def test_for_a_person(self, run: Kvant, model_file: Path) -> None:
        result = run("info", model_file)
        assert result.exit_code == 0
        for text in ("small.kvant", "conv", "dequantize", "uint8 x int8", "100.0%", "1 x 2 x height x width", "author"):
            assert text in result.stdout
        assert result.stderr == ""

    def test_tensors(self, run: Kvant, model_file: Path) -> None:
        result = run("info", "--tensors", model_file)
        assert "0.001 to 0.004 (4)" in result.stdout
        assert "128" in result.stdout

    def test_plan(self, run: Kvant, model_file: Path) -> None:
        result = run("info", "--plan", model_file)
        assert result.exit_code == 0
        for text in ("Plan of the native back end", "direct", f"{4 * 2 * 9 * 30:,}"):
            assert text in result.stdout
        assert run("info", "--plan", "--memory-budget", "speed", model_file).exit_code == 0
        wrong = run("info", "--plan", "--memory-budget", "much", model_file)
        assert wrong.exit_code == 2
        assert "neither a number of bytes nor the word speed" in wrong.stderr
        for budget in ("-1", "9" * 5000):
            assert run("info", "--plan", "--memory-budget", budget, model_file).exit_code == 2

    def test_json(self, run: Kvant, model_file: Path) -> None:
        facts = json.loads(run("info", "--json", model_file).stdout)
        assert facts["operators"] == {"conv": 1, "dequantize": 1, "quantize": 1}
        assert facts["multiplications"] == {"uint8 x int8": {"count": 4 * 18 * 30, "share": 1.0}}
        assert facts["file_bytes"] == model_file.stat().st_size
        assert facts["weights"] == 4 * 2 * 9 + 4
        assert facts["metadata"] == {"author": "tests"}
        tensors = {entry["name"]: entry for entry in facts["tensors"]}
        assert tensors["x_q"]["zero_point"] == 128
        assert len(tensors["conv.weight"]["scale"]) == 4
        assert tensors["conv.weight"]["shape"] == [4, 2, 3, 3]

    def test_names_cannot_steer_the_terminal(self, run: Kvant, tmp_path: Path) -> None:
        graph = build_small_graph()
        graph.add_constant("evil[2J[bold]\u202e", np.zeros(1, np.float32))
        write_file(tmp_path / "a.kvant", graph, metadata={"a\x1b": "b\nkvant: error: c"})
        out = run("info", "--tensors", tmp_path / "a.kvant").stdout
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert "evil[2J[bold]\\u202e" in out.replace("\n", "")
        assert "\nkvant: error" not in out

    def test_a_narrow_terminal(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """rich leaves out columns that find no room."""
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "5")
        print_table("Title", ["first", "second", "third"], [("a" * 30, "b" * 30, "c" * 30)])
        shown = capsys.readouterr().out
        assert [shown.count(letter) - heading for letter, heading in (("a", 0), ("b", 0), ("c", 1))] == [30, 30, 30]

    def test_words_are_set_to_the_left(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_table("Title", ["", "count"], [("3 of 12 layers", 5), ("all", 1000), ("", 2)])
        assert "all              1,000" in capsys.readouterr().out


class TestRun:
    def test_outputs_are_those_of_the_library(self, run: Kvant, model_file: Path, tmp_path: Path) -> None:
        x = np.random.default_rng(1).normal(size=(1, 2, 5, 7)).astype(np.float32)
        np.savez(tmp_path / "in.npz", x=x)
        result = run("run", model_file, tmp_path / "in.npz", "-o", tmp_path / "out.npz", "--backend", "reference")
        assert result.exit_code == 0, result.output
        assert result.output == ""
        with np.load(tmp_path / "out.npz") as out:
            np.testing.assert_array_equal(out["output"], kvant.load(model_file, backend="reference")(x))

    def test_outputs_of_any_name(self, run: Kvant, tmp_path: Path) -> None:
        """numpy.savez takes some for its parameters; of two that would be called the same one was lost."""
        graph = build_small_graph()
        graph.outputs = ("y", "y", "y", "y")
        graph.structure = {"file": 0, "rest": [1], "rest_0": 2, "../é": 3}
        write_file(tmp_path / "a.kvant", graph)
        np.savez(tmp_path / "in.npz", x=np.zeros((1, 2, 5, 7), np.float32))
        result = run("run", tmp_path / "a.kvant", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
        assert result.exit_code == 0, result.output
        with np.load(tmp_path / "out.npz") as out:
            assert out.files == ["file", "rest_0", "rest_0_", "../é"]
            assert {out[name].shape for name in out.files} == {(1, 4, 5, 7)}

    def test_unnamed_arrays_are_taken_in_order(self, run: Kvant, model_file: Path, tmp_path: Path) -> None:
        x = np.zeros((1, 2, 3, 3), np.float32)
        np.savez(tmp_path / "in.npz", x)
        np.save(tmp_path / "in.npy", x)
        for name in ("in.npz", "in.npy"):
            assert run("run", model_file, tmp_path / name, "-o", tmp_path / "out.npz").exit_code == 0

    def test_inputs_that_do_not_fit(self, fail: Callable[..., str], model_file: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.npz"
        np.savez(tmp_path / "a.npz", y=np.zeros(1))
        assert "holds y; the model takes x" in fail("run", model_file, tmp_path / "a.npz", "-o", out)
        np.savez(tmp_path / "b.npz", x=np.zeros((1, 3, 4, 4), np.float32))
        assert "1 x 3 x 4 x 4" in fail("run", model_file, tmp_path / "b.npz", "-o", out)
        np.savez(tmp_path / "c.npz", x=np.array([{}], dtype=object))
        assert "plain arrays" in fail("run", model_file, tmp_path / "c.npz", "-o", out)
        (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 not really")
        assert "d.npz cannot be read" in fail("run", model_file, tmp_path / "d.npz", "-o", out)
        assert "missing.npz" in fail("run", model_file, tmp_path / "missing.npz", "-o", out)
        assert not out.exists()

    def test_an_output_that_cannot_be_written(self, fail: Callable[..., str], model_file: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "in.npz", x=np.zeros((1, 2, 3, 3), np.float32))
        message = fail("run", model_file, tmp_path / "in.npz", "-o", tmp_path / "no" / "out.npz")
        assert "does not exist" in message
        os.mkfifo(tmp_path / "pipe")
        for out in (tmp_path / "pipe", tmp_path / ("a" * 300), "/proc/out.npz"):
            assert "could not save" in fail("run", model_file, tmp_path / "in.npz", "-o", out)

    def test_an_output_of_the_longest_name(self, run: Kvant, model_file: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "in.npz", x=np.zeros((1, 2, 3, 3), np.float32))
        out = tmp_path / ("a" * 255)
        assert run("run", model_file, tmp_path / "in.npz", "-o", out).exit_code == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "in.npz", "small.kvant"]

    def test_what_is_read_is_not_overwritten(self, fail: Callable[..., str], model_file: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "in.npz", x=np.zeros((1, 2, 3, 3), np.float32))
        (tmp_path / "link.npz").symlink_to("in.npz")
        before = model_file.read_bytes(), (tmp_path / "in.npz").read_bytes()
        for out in (model_file, tmp_path / "in.npz", tmp_path / "link.npz"):
            assert "is needed for something else" in fail("run", model_file, tmp_path / "in.npz", "-o", out)
        assert before == (model_file.read_bytes(), (tmp_path / "in.npz").read_bytes())

    def test_an_array_larger_than_memory(self, fail: Callable[..., str], model_file: Path, tmp_path: Path) -> None:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,)}".ljust(117) + b"\n"
        (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        message = fail("run", model_file, tmp_path / "huge.npy", "-o", tmp_path / "out.npz")
        assert "not enough memory: " in message and "huge.npy cannot be read: Unable to allocate" in message

    def test_a_file_that_holds_more_than_memory(
        self, fail: Callable[..., str], model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        np.savez_compressed(tmp_path / "in.npz", x=np.zeros((1, 2, 1000, 1000), np.float32))
        (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  7000 kB\n")
        monkeypatch.setattr(arrays, "_MEMORY", tmp_path / "meminfo")
        np.save(tmp_path / "in.npy", np.zeros((1, 2, 1000, 1000), np.float32))
        for name in ("in.npz", "in.npy"):
            message = fail("run", model_file, tmp_path / name, "-o", tmp_path / "out.npz")
            assert f"{name} cannot be read: it holds 8,000,128 bytes, and 7,168,000 are free" in message

    def test_a_file_of_other_names_is_not_unpacked(
        self, fail: Callable[..., str], model_file: Path, tmp_path: Path
    ) -> None:
        np.savez(tmp_path / "in.npz", x=np.zeros((1, 2, 3, 3), np.float32), y=np.array([{}], dtype=object))
        message = fail("run", model_file, tmp_path / "in.npz", "-o", tmp_path / "out.npz")
        assert "holds x, y; the model takes x" in message

    def test_a_pipe_is_not_waited_for(self, fail: Callable[..., str], model_file: Path, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        message = fail("run", model_file, tmp_path / "pipe", "-o", tmp_path / "out.npz")
        assert "is a device, a pipe or a socket" in message


class TestVerify:
    def test_a_sound_file(self, run: Kvant, model_file: Path) -> None:
        result = run("verify", model_file, "--backend", "reference")
        assert result.exit_code == 0
        assert "1 golden vector gave the same bits on the reference back end" in result.stdout

    def test_without_golden_vectors_it_says_so(self, run: Kvant, tmp_path: Path) -> None:
        write_file(tmp_path / "a.kvant", build_small_graph())
        result = run("verify", tmp_path / "a.kvant", "--backend", "reference")
        assert result.exit_code == 0
        assert "no golden vectors" in result.stdout

    def test_other_bits(self, fail: Callable[..., str], tmp_path: Path) -> None:
        golden = Golden({"x": np.ones((1, 2, 3, 3), np.float32)}, [np.full((1, 4, 3, 3), 0.3, np.float32)])
        write_file(tmp_path / "a.kvant", build_small_graph(), golden=[golden])
        assert "golden vector 0" in fail("verify", tmp_path / "a.kvant", "--backend", "reference")


@pytest.mark.parametrize("command", [("info",), ("verify",), ("run", "x.npz", "-o", "y.npz")])
def test_files_that_are_none(
    fail: Callable[..., str], tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, rest = command[0], command[1:]
    assert fail(name, "missing.kvant", *rest) == "missing.kvant: No such file or directory\n"
    assert "irectory" in fail(name, tmp_path, *rest)
    (tmp_path / "a.kvant").write_bytes(b"PK\x03\x04")
    assert "zip archive" in fail(name, "a.kvant", *rest)


def test_damage_is_one_line(fail: Callable[..., str], model_file: Path) -> None:
    data = bytearray(model_file.read_bytes())
    data[-1] ^= 1
    model_file.write_bytes(data)
    assert len(fail("info", model_file).strip().splitlines()) == 1


def test_clean_keeps_text_and_drops_control() -> None:
    assert clean("naïve 重み") == "naïve 重み"
    assert clean("a\x1b[31m\u202e\n") == "a\\x1b[31m\\u202e\\n"
