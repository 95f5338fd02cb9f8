"""What documents point to exists: other documents, their headings, modules, commands and their options."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvant.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
STAND_INS = {"X.cpp", "X_weights.cpp", "X_body.h", "part.h", "mynet.py"}  # for any part of the library, for a user's
EACH = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@cache
def prose(document: Path) -> str:
    return re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)


def headings(document: Path) -> set[str]:
    """As links name them."""
    titles = re.findall(r"^#+ (.*)", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@EACH
def test_links_lead_somewhere(document: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", prose(document)) if "://" not in link]
    for link in links:
        name, _, heading = link.partition("#")
        target = (document.parent / name) if name else document
        assert target.exists(), link
        assert not heading or heading in headings(target), link


@EACH
def test_modules_are_there(document: Path) -> None:
    """Paths, and names of files that belong to the sources."""
    rooms = ("src", "kernels", "benchmarks", "tests")
    files = [f"/{path.relative_to(ROOT)}" for room in rooms for path in (ROOT / room).rglob("*.*")]
    for name in re.findall(r"`((?:[\w.]+/)*\w+\.(?:py|cpp|h))`", prose(document)):
        assert name in STAND_INS or any(file.endswith(f"/{name}") for file in files), name


def test_every_module_of_quantization_is_on_the_map() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    modules = [path.stem for path in (ROOT / "src/kvant/quantization").glob("*.py") if path.stem != "__init__"]
    assert [name for name in modules if f"`{name}`" not in text and f"/{name}.py`" not in text] == []


def test_the_example_of_schemes_runs(tmp_path: Path) -> None:
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/schemes.md").read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", f"import kvant\n{block}"], cwd=tmp_path, check=True)


def commands() -> list[str]:
    lines = [line for path in DOCUMENTS for line in re.findall(r"^    (kvant .*)$", path.read_text(), re.MULTILINE)]
    return sorted(set(lines))


@pytest.mark.parametrize("command", commands())
def test_commands_and_their_options_exist(command: str) -> None:
    words = command.split()[1:]
    name = words[: 2 if words[0] == "pose" else 1]
    shown = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for word in words:
        assert not word.startswith("-") or re.search(rf"(?<![\w-]){word}\b", shown.output), word
