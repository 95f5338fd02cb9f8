"""Concatenations that leave the network, which are made of float32.

A detector joins boxes of hundreds of pixels with probabilities, and returns both as one tensor. Integers of one scale
would round every probability to zero; nor would the noise of such a tensor tell, for it is that of the boxes. So what
is joined last is quantized as outputs of their own, each with its scale and its own measure, and joined afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from kvant.capture import Executor
from kvant.errors import InputError, ShapeError
from kvant.graph import Graph, Node, ops
from kvant.quantization.joins import MUCH_LARGER
from kvant.quantization.statistics import Sample

Reaches = Mapping[str, float]


def without_joins(graph: Graph, measure: Callable[[Collection[str]], Reaches]) -> tuple[Graph, list[Node]]:
    """``graph`` that returns what its last concatenations would join, and those nodes, in order, for ``join``.

    Args:
        graph: float graph.
        measure: how far activations reach, by their names; called if there are such nodes. Only where some parts reach
            much further than others are they taken off: others lose little by a scale in common, and are one output to
            their users.
    """
    leaving = _leaving(graph)
    made = {node.output for node in leaving}
    read = [name for node in leaving for name in node.inputs if name not in made]
    if not leaving or not _differ(graph, read, measure(read)):
        return graph, []
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


def reaches(graph: Graph, sample: Sample | None, names: Collection[str]) -> Reaches:
    """The largest magnitude of activations on one sample; nothing of one that the graph does not take."""
    found: dict[str, float] = {}
    if sample is None:
        return found

    def note(name: str, value: Tensor) -> None:
        if name in names and value.is_floating_point() and value.numel():
            found[name] = float(value.abs().max())

    try:
        Executor(graph).run(sample, note)
    except (InputError, ShapeError):  # whoever calibrates on it says so
        return {}
    return found


def _differ(graph: Graph, parts: list[str], reach: Reaches) -> bool:
    held = (float(np.abs(graph.constants[name]).max(initial=0)) for name in parts if name in graph.constants)
    known = [value for value in (*held, *(reach.get(name, 0.0) for name in parts)) if value > 0]
    return bool(known) and MUCH_LARGER * min(known) < max(known)


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
