"""What passes share: copies of a graph with nodes replaced and names redirected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from kvant.graph import Graph, Node


def rebuilt(graph: Graph, nodes: Iterable[Node], renamed: Mapping[str, str] | None = None) -> Graph:
    """A copy of ``graph`` with ``nodes``, where every reader of ``old`` reads ``renamed[old]``, outputs included."""
    renamed = renamed or {}
    copy = graph.copy()
    copy.outputs = tuple(resolve(renamed, name) for name in graph.outputs)
    copy.replace_nodes(
        replace(node, inputs=tuple(resolve(renamed, name) for name in node.inputs)) for node in nodes
    )  # fmt: skip
    return copy


def resolve(renamed: Mapping[str, str], name: str) -> str:
    """The name that ``name`` finally stands for."""
    while name in renamed:
        name = renamed[name]
    return name


def sole_readers(graph: Graph) -> dict[str, Node]:
    """For every tensor that one node reads, and that is no output of the graph: that node."""
    return {
        name: readers[0]
        for name, readers in graph.consumers().items()
        if len(readers) == 1 and name not in graph.outputs
    }  # fmt: skip
