"""Activations that say where something is read: grids of sampled images, and what is chosen by its size.

A step of 8 bits is a hundredth of an image, several pixels of a large one, and among scores it makes ties of what is
not equal. So these have 16 bits, and all that they are computed from by arithmetic, back to the layers that make it.
"""

from __future__ import annotations

from kvant.graph import Graph, Node, ops
from kvant.quantization.ties import moved_inputs, moves

# Operators whose inputs are features, of which places are one result among others.
_ENDS = (*ops.WEIGHTED, ops.LayerNorm, ops.GroupNorm, ops.Softmax, ops.GridSample)


def of_places(graph: Graph) -> set[str]:
    """The activations that are places, or scores by which places are chosen."""
    nodes = graph.producers()
    found: set[str] = set()
    waiting = [name for node in graph.nodes for name in _places(node)]
    while waiting:
        name = waiting.pop()
        if name in found or name in graph.constants or graph.types[name].dtype != "float32":
            continue
        found.add(name)
        node = nodes.get(name)
        if node is not None and not isinstance(node.op, _ENDS):
            waiting += moved_inputs(node) if moves(node) else node.inputs
    return found


def _places(node: Node) -> tuple[str, ...]:
    if isinstance(node.op, ops.GridSample):
        return node.inputs[1:]
    return node.inputs if isinstance(node.op, ops.TopK) else ()
