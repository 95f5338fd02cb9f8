"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

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


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also in new processes; where tests run in the background it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
