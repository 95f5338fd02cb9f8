"""Exit codes, versions, help, and what happens when something is missing or stops."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

import kvant
from kvant.cli import files
from kvant.cli.app import app
from samples import Kvant, lose_ctrl_c_and_go_on

POSE = ["quantize", "run", "video", "evaluate", "compare", "serve"]
COMMANDS = ["quantize", "info", "run", "verify", "pose", *(f"pose {name}" for name in POSE)]


def command(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "kvant.cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_as_a_process(model_file: Path) -> None:
    done = command("verify", model_file, "--backend", "reference")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 golden vector" in done.stdout


def test_an_error_as_a_process(tmp_path: Path) -> None:
    done = command("info", tmp_path / "missing.kvant")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("kvant: error: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_damaged_picture_is_one_line(model_file: Path, tmp_path: Path) -> None:
    """OpenCV says on its own what it thinks of files, unless it is told not to."""
    (tmp_path / "half.bmp").write_bytes(b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 9, 9, 1, 24, *[0] * 6))
    network = ("--network", "openpose-mobilenet-thin", "--backend", "reference")
    done = command("pose", "run", model_file, tmp_path / "half.bmp", "-o", tmp_path / "out", *network)
    assert [line[: len("kvant: error: ")] for line in done.stderr.splitlines()] == ["kvant: error: "] * 2
    assert "half.bmp is damaged" in done.stderr and "1 picture skipped" in done.stderr


def test_version(run: Kvant) -> None:
    assert run("--version").stdout == f"kvant {kvant.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help(run: Kvant, name: str) -> None:
    result = run(*name.split(), "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_paragraphs_of_help_are_not_broken_where_the_code_is(name: str) -> None:
    command = get_command(app)
    for word in name.split():
        command = command.commands[word]
    text = command.help or ""
    assert text.endswith(".") and "\n" not in text.replace("\n\n", "") and "  " not in text


@pytest.mark.parametrize("arguments", [(), ("nothing",), ("info",), ("info", "--what", "x"), ("run", "a.kvant")])
def test_wrong_usage(run: Kvant, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_ctrl_c(run: Kvant, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "read_file", interrupted)
    result = run("info", model_file)
    assert result.exit_code == 130
    assert "Traceback" not in result.output


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_the_command_is_imported() -> None:
    code = """
import signal, sys
class Interrupt:
    def find_spec(self, name, *rest):
        if name == "typer":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from kvant.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_that_python_ignores(run: Kvant, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "read_file", lose_ctrl_c_and_go_on)
    assert run("info", model_file).exit_code == 130


def test_a_reader_that_stops(model_file: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "kvant.cli", "info", "--json", os.fspath(model_file)]
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""


def test_letters_that_the_terminal_lacks(model_file: Path) -> None:
    file = model_file.rename(model_file.with_name("Fuß 50%.kvant"))
    done = command("info", file, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "Fu\\xdf 50%.kvant" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("info", "--help"), ("info", "a.kvant")])
def test_a_disk_that_is_full(arguments: tuple[str, ...], model_file: Path) -> None:
    line = [sys.executable, "-m", "kvant.cli", *(str(model_file) if each == "a.kvant" else each for each in arguments)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "kvant: error: No space left on device\n")


@pytest.mark.parametrize("closed", [(0, 1, 2), (1,), (2,)])
def test_standard_streams_that_are_closed(closed: tuple[int, ...], model_file: Path, tmp_path: Path) -> None:
    """The file that is written would get the number of one otherwise, and take what is said there."""
    np.savez(tmp_path / "in.npz", x=np.zeros((1, 2, 3, 3), np.float32))
    closing = " ".join(f"{number}>&-" for number in closed)
    arguments = f"run {model_file} {tmp_path}/in.npz -o {tmp_path}/out.npz"
    done = subprocess.run(
        f"{sys.executable} -m kvant.cli {arguments} {closing}", shell=True, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with np.load(tmp_path / "out.npz") as out:
        assert out.files == ["output"]
    done = subprocess.run(
        f"{sys.executable} -m kvant.cli info missing {closing}", shell=True, capture_output=True, text=True, check=False
    )
    wanted = "" if 2 in closed else "kvant: error: missing: No such file or directory\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", wanted)


def test_a_bug_is_not_hidden(run: Kvant, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: object) -> object:
        raise AssertionError("a bug")

    monkeypatch.setattr(files, "read_file", broken)
    assert isinstance(run("info", model_file).exception, AssertionError)


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_packages_of_the_command_line(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from kvant.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'kvant[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_torch(
    tmp_path: Path, pictures: Path, fail: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    message = fail(
        "quantize", "nets:Net", "--example", "1,3,8,8", "--calibration", pictures, "-o", tmp_path / "a.kvant"
    )
    assert "pip install 'kvant[torch]'" in message
    message = fail(
        "pose",
        "quantize",
        "--network",
        "openpose-mobilenet-thin",
        "--calibration",
        pictures,
        "-o",
        tmp_path / "a.kvant",
    )
    assert "pip install 'kvant[torch]'" in message
