"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import pytest

from kvant.format import Golden, to_bytes
from kvant.graph import Graph
from samples import build_small_golden, build_small_graph


@pytest.fixture
def small_graph() -> Graph:
    return build_small_graph()


@pytest.fixture
def small_golden(small_graph: Graph) -> Golden:
    return build_small_golden(small_graph)


@pytest.fixture(scope="session")
def small_file() -> bytes:
    graph = build_small_graph()
    return to_bytes(graph, golden=[build_small_golden(graph)], metadata={"author": "tests"})
