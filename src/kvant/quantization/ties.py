"""Which tensors must share one scale because only integers move between them."""

from __future__ import annotations

from collections.abc import Collection

from kvant.graph import Graph, Node, ops

# An input and the output of a node that moves integers.
Tie = tuple[str, str]


def moves(node: Node) -> bool:
    """Whether the node's output holds integers of its input, unchanged."""
    if isinstance(node.op, ops.Resize):
        return node.op.mode != "linear"
    if isinstance(node.op, ops.Reduce | ops.AdaptivePool):
        return node.op.fn in ("max", "min")
    return isinstance(node.op, ops.MOVES)


def moved_inputs(node: Node) -> tuple[str, ...]:
    """Those inputs of a moving node whose integers appear in its output."""
    return node.inputs if isinstance(node.op, ops.Concat) else node.inputs[:1]


def ties(graph: Graph, loose: Collection[Tie] = ()) -> dict[str, str]:
    """For every float tensor that is no weight, the name of the tensor that stands for its group.

    Concat, pooling by maximum, reshape and their like tie their output to their inputs, unless that is ``loose``.
    """
    parent: dict[str, str] = {name: name for name in graph.activations() if graph.types[name].dtype == "float32"}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for node in graph.nodes:
        if not moves(node) or graph.types[node.output].dtype != "float32":
            continue
        for name in moved_inputs(node):
            parent.setdefault(name, name)
            if (name, node.output) not in loose:
                parent[find(node.output)] = find(name)
    return {name: find(name) for name in parent}


def makes_values(graph: Graph) -> set[str]:
    """Activations at which rounding happens: all but those whose integers were made earlier and only moved.

    Constants that are moved, as where a class token is put before the others, are rounded where they first appear.
    """
    moved = {node.output for node in graph.nodes if moves(node) and not _brings_values(graph, node)}
    return {name for name in graph.activations() if graph.types[name].dtype == "float32"} - moved


def _brings_values(graph: Graph, node: Node) -> bool:
    """Whether a moving node's output holds reals that no activation had: those of a constant, or of padding."""
    pads = isinstance(node.op, ops.Pad) and node.op.mode == "constant" and node.op.value != 0
    return pads or any(name in graph.constants for name in moved_inputs(node))
