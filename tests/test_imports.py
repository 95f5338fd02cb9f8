"""Imports go one way, torch is imported by the rooms that need it only, and `import kvant` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvant

PACKAGE = Path(kvant.__file__).parent
# A room may import those before it, and itself.
ROOMS = (
    "errors", "interrupts", "graph", "format", "runtime", "capture", "quantization", "diagnose", "hardware",
    "distributed", "pose", "cli",
)  # fmt: skip
WITHOUT_TORCH = ("errors", "interrupts", "graph", "format", "runtime")
# May be imported from `kvant` itself below the rooms that use the whole public surface.
FROM_ROOT = {"__version__"}
USES_PUBLIC_SURFACE = ("pose", "cli")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, set[str], int]]:
    """Module, names and line of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, set(), node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.module or "", {alias.name for alias in node.names}, node.lineno


def test_every_room_has_its_place() -> None:
    assert {room_of(path) for path in modules()} <= set(ROOMS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    for module, names, line in imports(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.name}:{line}"
        if module == "kvant":
            targets = {name for name in names if name in ROOMS}
            if room not in USES_PUBLIC_SURFACE:
                assert names <= FROM_ROOT | targets, f"{where} imports {names} from kvant itself"
        elif module.startswith("kvant."):
            targets = {module.split(".")[1]}
        else:
            if module.split(".")[0] == "torch":
                assert room not in WITHOUT_TORCH, f"{where} imports torch"
            continue
        for target in targets:
            assert ROOMS.index(target) <= ROOMS.index(room), f"{where}: {room} may not import {target}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_are_entered_by_the_front_door(path: Path) -> None:
    """Another room's modules are private: what it offers is in its ``__init__``, or a module that it exports whole."""
    for module, _, line in imports(ast.parse(path.read_text(encoding="utf-8"))):
        parts = module.split(".")
        if parts[0] != "kvant" or len(parts) < 3 or parts[1] == room_of(path):
            continue
        front = ast.parse((PACKAGE / parts[1] / "__init__.py").read_text(encoding="utf-8"))
        assert len(parts) == 3 and parts[2] in exported(front), f"{path.name}:{line} reaches into {module}"


def exported(tree: ast.Module) -> set[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def run(code: str, *options: str) -> str:
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=True).stdout


# Stands in for a machine without torch: any import of it fails.
NO_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("torch is not here", name="torch")
sys.meta_path.insert(0, Blocker())
"""


def test_everything_that_runs_a_file_works_without_torch() -> None:
    rooms = ", ".join(f"kvant.{room}" for room in ("graph", "format", "runtime", "pose", "cli.app"))
    run(f"{NO_TORCH}import {rooms}; kvant.load; kvant.QuantizedModel")


def test_import_kvant_is_light() -> None:
    loaded = run("import sys, kvant; print(*sys.modules)").split()
    assert not {"torch", "numpy", "msgspec", "cv2", "typer", "rich", "safetensors"} & set(loaded)


def test_without_torch_the_quantizer_says_what_to_install() -> None:
    code = """
import kvant
try:
    kvant.quantize
except kvant.MissingDependencyError as error:
    print(error)
"""
    assert "pip install 'kvant[torch]'" in run(NO_TORCH + code)
