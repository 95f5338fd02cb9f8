"""Files of every release stay readable, and give the bits that they gave when they were written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import kvant
from kvant.format import read_file, to_bytes
from kvant.format.contents import packed_constants
from kvant.graph import ops

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests" / "golden").rglob("*.kvant"))
# Operators of float graphs, which become others in a file.
FLOAT_ONLY = {ops.BatchNorm, ops.Pointwise}


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_golden", ROOT / "tools" / "make_golden.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_some() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "tests" / "golden")))
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_a_golden_file_gives_its_bits(path: Path, backend: str) -> None:
    try:
        model = kvant.load(path, backend=backend)
    except kvant.BackendError as error:
        pytest.skip(str(error))
    assert model.verify() == 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "tests" / "golden")))
def test_a_golden_file_is_written_again_with_the_same_contents(path: Path) -> None:
    contents = read_file(path)
    data = to_bytes(contents.graph, golden=contents.golden, metadata=contents.metadata)
    if contents.info.producer == f"kvant {kvant.__version__}" and contents.info.version in ((1, 0), (1, 1)):
        assert data == path.read_bytes()


@pytest.mark.parametrize("name", ["operators", "schemes", "places"])
def test_the_tool_makes_the_graph_of_the_latest_file(name: str) -> None:
    graph, stored = tool().GRAPHS[name](), read_file([path for path in FILES if path.stem == name][-1]).graph
    assert graph.nodes == stored.nodes
    assert graph.types == stored.types


def test_packed_weights_are_in_one() -> None:
    contents = read_file([path for path in FILES if path.stem == "schemes"][-1])
    assert contents.info.features == ("groups", "narrow", "packed")
    found = {entry.packing.by for entry in packed_constants(contents.graph).values()}
    assert found == {"level", "row", "factor"}


def test_computed_places_are_a_feature() -> None:
    (path,) = (path for path in FILES if path.stem == "places")
    assert read_file(path).info.features == ("places",)


def test_every_operator_that_a_file_can_hold_is_in_one() -> None:
    found = {type(node.op) for path in FILES for node in read_file(path).graph.nodes}
    assert found | FLOAT_ONLY == set(ops.ARITY)
