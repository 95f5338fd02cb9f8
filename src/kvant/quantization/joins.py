"""Scales of their own for what is joined with something much larger, and read by more than the join.

A concatenation moves integers, so its output ties all its inputs to one scale. Beside one that reaches a hundred times
as far, a tensor has two or three levels left, and so has every layer that reads it by itself. There a requantization
takes its place in the join: what it is for everyone else keeps a scale that fits it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from kvant.graph import FLOAT32, Graph, Node, ops
from kvant.quantization.observers import AnyObserver
from kvant.quantization.recipe import Recipe
from kvant.quantization.statistics import Sample, observe
from kvant.quantization.ties import Tie, moves, ties
from kvant.quantization.types import wished_schemes

# Requantizing is worth its time where a tensor would lose three of its eight bits.
MUCH_LARGER = 8.0


def part_from_joins(
    graph: Graph, samples: Iterable[Sample], observers: dict[str, AnyObserver], recipe: Recipe
) -> tuple[Graph, list[str]]:
    """``graph`` with a requantization of each tensor whose scale must not be that of a concatenation which reads it.

    Args:
        graph: float graph, where a requantization does nothing.
        samples: to observe what is requantized on.
        observers: of what makes values in ``graph``; gains those of the new tensors.
        recipe: says which tensors may have scales of their own.

    Returns:
        The graph, and the names of the new tensors.
    """
    parted = _parted(graph, observers, recipe)
    if not parted:
        return graph, []
    graph, made = _requantized(graph, parted)
    # Beside what is much larger, these samples say enough.
    observers |= observe(graph, samples, set(made), recipe.observer)
    return graph, made


def _parted(graph: Graph, observers: Mapping[str, AnyObserver], recipe: Recipe) -> set[Tie]:
    """The ties between inputs and outputs of concatenations that are to be loosened."""
    joins = set(_joins(graph))
    reach = _reaches(graph, observers, ties(graph, joins))
    loose = {(name, joined) for name, joined in joins if _dwarfed(reach.get(name, 0.0), reach.get(joined, 0.0))}
    if not loose:
        return set()
    group_of = ties(graph, loose)
    together: dict[str, float] = {}
    for name, group in group_of.items():
        together[group] = max(together.get(group, 0.0), reach.get(name, 0.0))
    schemes, read = wished_schemes(graph, group_of, recipe), _read(graph, group_of)
    return {
        (name, joined)
        for name, joined in loose
        if group_of[name] in read
        and schemes[group_of[name]].granularity != "network"
        and _dwarfed(together[group_of[name]], together[group_of[joined]])
    }


def _joins(graph: Graph) -> Iterator[Tie]:
    """Activations that are concatenated, each with the output."""
    for node in graph.nodes:
        if isinstance(node.op, ops.Concat) and graph.types[node.output].dtype == "float32":
            yield from ((name, node.output) for name in node.inputs if name not in graph.constants)


def _dwarfed(small: float, large: float) -> bool:
    return 0 < MUCH_LARGER * small < large


def _reaches(graph: Graph, observers: Mapping[str, AnyObserver], group_of: dict[str, str]) -> dict[str, float]:
    """The largest magnitude of each tensor: what was seen of its group, and of what is joined in it."""
    reach: dict[str, float] = {}

    def extend(name: str, magnitude: float) -> None:
        group = group_of[name]
        reach[group] = max(reach.get(group, 0.0), magnitude)

    for name, seen in observers.items():
        extend(name, max(-seen.low, seen.high))
    for node in graph.nodes:
        if not isinstance(node.op, ops.Concat) or node.output not in group_of:
            continue
        for name in node.inputs:
            constant = graph.constants.get(name)
            found = reach.get(group_of[name], 0.0) if constant is None else float(np.abs(constant).max(initial=0))
            extend(node.output, found)
    return {name: reach.get(group, 0.0) for name, group in group_of.items()}


def _read(graph: Graph, group_of: dict[str, str]) -> set[str]:
    """The groups that someone computes with, or that leave the network, as they are."""
    names = [name for node in graph.nodes if not moves(node) for name in node.inputs]
    return {group_of[name] for name in (*names, *graph.outputs) if name in group_of}


def _requantized(graph: Graph, parted: set[Tie]) -> tuple[Graph, list[str]]:
    """The graph in which each tie of ``parted`` goes through a requantization, and the new tensors."""
    graph, nodes, made = graph.copy(), list[Node](), list[str]()
    for node in graph.nodes:
        inputs = []
        for name in node.inputs:
            if (name, node.output) in parted:
                new = graph.fresh(f"{name}.joined")
                graph.types[new] = FLOAT32
                nodes.append(Node(ops.Requantize(), (name,), new, node.source))
                made.append(new)
                name = new
            inputs.append(name)
        nodes.append(replace(node, inputs=tuple(inputs)))
    graph.replace_nodes(nodes)
    return graph, made
