"""Which in-place operators of an exported program write to memory that is read later under another name."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

# They return their argument itself, though their schemas do not say so.
_IDENTITIES = ("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.to", "aten.contiguous")


def stale_reads(graph: fx.Graph) -> list[fx.Node]:
    """The in-place operators after which a view of the same memory is still read.

    Without such reads, an in-place operator is its functional twin whose result takes the tensor's place.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    roots: dict[fx.Node, fx.Node] = {}
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        base = _viewed(node)
        root = roots.get(base, base) if base is not None else node
        roots[node] = root
        members.setdefault(root, []).append(node)
    return [node for node in graph.nodes if _mutates(node) and _is_stale(node, order, members[roots[_first(node)]])]


def _is_stale(node: fx.Node, order: dict[fx.Node, int], aliases: list[fx.Node]) -> bool:
    written = _first(node)
    if not str(node.target).partition(".")[2].partition(".")[0].endswith("_") or "copy_" in str(node.target):
        return True
    # The written tensor's later readers get the new value, as do those of the operator's result.
    return any(
        order[user] > order[node]
        for alias in aliases
        if alias is not written and order[alias] < order[node]
        for user in alias.users
    )


def _first(node: fx.Node) -> fx.Node:
    first = node.args[0]
    if not isinstance(first, fx.Node):
        raise TypeError(f"{node.target} writes to something that is not a tensor")
    return first


def _mutates(node: fx.Node) -> bool:
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.is_mutable
        and bool(node.args)
        and isinstance(node.args[0], fx.Node)
    )


def _viewed(node: fx.Node) -> fx.Node | None:
    """The node whose memory ``node`` shares, if it does."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        # getitem of a tuple of views, such as chunk's.
        return node.args[0]
    shares = any(result.alias_info is not None for result in target._schema.returns)
    return node.args[0] if shares or str(target).startswith(_IDENTITIES) else None
