"""Concatenations that leave the network, which are made of float32.

A detector joins boxes of hundreds of pixels with probabilities, and returns both as one tensor. Integers of one scale
would round every probability to zero; nor would the noise of such a tensor tell, for it is that of the boxes. So what
is joined last is quantized as outputs of their own, each with its scale and its own measure, and joined afterwards.
"""

from __future__ import annotations

from dataclasses import replace

from kvant.graph import Graph, Node, ops


def without_joins(graph: Graph) -> tuple[Graph, list[Node]]:
    """``graph`` that returns what its last concatenations would join, and those nodes, in order, for ``join``."""
    leaving = _leaving(graph)
    if not leaving:
        return graph, []
    made = {node.output for node in leaving}
    read = (name for node in leaving for name in node.inputs)
    parts = [name for name in (*graph.outputs, *read) if name not in made and name not in graph.constants]
    kept = [name for name in graph.outputs if name in graph.constants]
    apart = replace(graph.copy(), outputs=tuple(dict.fromkeys((*parts, *kept))))
    apart.replace_nodes(node for node in graph.nodes if node.output not in made)
    return apart, leaving


def join(quantized: Graph, apart: Graph, whole: Graph, leaving: list[Node]) -> Graph:
    """``quantized``, made of ``apart``, with the nodes that were left out of ``whole``, in float32."""
    if not leaving:
        return quantized
    joined = quantized.copy()
    names = dict(zip(apart.outputs, quantized.outputs, strict=True))
    for node in leaving:
        for name in node.inputs:
            if name not in names:
                names[name] = joined.add_constant(name, whole.constants[name])
        output = joined.fresh(node.output)
        names[node.output] = joined.add_node(
            node.op, [names[name] for name in node.inputs], output, source=node.source
        )  # fmt: skip
    joined.outputs = tuple(names[name] for name in whole.outputs)
    return joined


def _leaving(graph: Graph) -> list[Node]:
    """Concatenations that nothing but the caller and other such nodes read, and what moves their results."""
    consumers = graph.consumers()
    last: set[str] = set()
    for node in reversed(graph.nodes):
        moves = isinstance(node.op, ops.Concat | ops.Transpose | ops.Reshape | ops.Slice) or (
            isinstance(node.op, ops.Gather) and node.inputs[1] in graph.constants
        )
        real = graph.types[node.output].dtype == "float32"
        if moves and real and all(reader.output in last for reader in consumers[node.output]):
            last.add(node.output)
    leaving: dict[str, Node] = {}
    for node in graph.nodes:
        if node.output in last and (isinstance(node.op, ops.Concat) or node.inputs[0] in leaving):
            leaving[node.output] = node
    return list(leaving.values())
