"""Activations that weighted layers read through a table: signs, powers of two, k-means centres.

The tensor itself stays in 8 bits for whatever else reads it. Before a weighted layer stands a pointwise node, which
does nothing in the float graph, is a staircase in the simulated one, and becomes a table of 256 entries in the integer
graph.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np

from kvant.errors import RecipeError
from kvant.graph import Graph, Node, Quantization, TensorType, ops
from kvant.graph.ops import Step
from kvant.quantization.clipping import kmeans
from kvant.quantization.observers import AnyObserver, Histogram
from kvant.quantization.ranges import Pooled, activation_type, extremes, pool, scale_of
from kvant.quantization.recipe import Recipe
from kvant.quantization.schemes import ActivationScheme
from kvant.quantization.statistics import Statistics
from kvant.quantization.ties import ties
from kvant.quantization.types import wished_schemes

# Just below 0, so that the sign of 0 is that of positive numbers.
_BELOW_ZERO = -1e-30
# Bins of a histogram that k-means looks at.
_BINS = 512
_SHARES = np.linspace(1.0, 0.1, 91)
_UNCHANGED = (Step("x"),)

Levels = tuple[list[float], TensorType]


def place(graph: Graph, seen: Statistics, recipe: Recipe) -> tuple[Graph, dict[str, str]]:
    """``graph`` with a node that does nothing before each weighted layer that is to read through a table.

    What ``seen`` knows of the tensors read holds for the new ones too.

    Returns:
        The graph, and the tensor that each new node reads, by the node's output.
    """
    group_of = ties(graph)
    wished = wished_schemes(graph, group_of, recipe)
    # What only moves constants, such as the state that a recurrent layer begins with, has no levels to choose.
    tabled = {group_of[name] for name in seen.observers if name in group_of and wished[group_of[name]].tabled}
    places: dict[str, str] = {}
    graph, nodes = graph.copy(), []
    names: dict[str, str] = {}
    for node in graph.nodes:
        name = node.inputs[0]
        if _sums_up(graph, node) and group_of.get(name) in tabled:
            if name not in names:
                names[name] = graph.fresh(f"{name}.levels")
                graph.types[names[name]] = graph.types[name]
                nodes.append(Node(ops.Pointwise(_UNCHANGED), (name,), names[name], node.source))
                places[names[name]] = name
            node = replace(node, inputs=(names[name], *node.inputs[1:]))
        nodes.append(node)
    graph.replace_nodes(nodes)
    for new, name in places.items():
        if name in seen.channels:
            seen.channels[new] = seen.channels[name]
    return graph, places


def _sums_up(graph: Graph, node: Node) -> bool:
    """Whether it is a weighted layer that adds several products: a lone batch norm is none."""
    return isinstance(node.op, ops.WEIGHTED) and bool(graph.constants[node.inputs[1]][0].size > 1)


def staircases(
    graph: Graph, places: dict[str, str], seen: dict[str, AnyObserver], recipe: Recipe
) -> tuple[dict[str, ops.Pointwise], dict[str, TensorType]]:
    """The staircase and the type of each placed node, by its output.

    Raises:
        RecipeError: there is no histogram to place levels by.
    """
    group_of = ties(graph)
    wished = wished_schemes(graph, group_of, recipe)
    tables, types = {}, {}
    for name, source in places.items():
        scheme = wished[group_of[source]]
        observers = [entry for other, entry in seen.items() if group_of.get(other) == group_of[source]]
        levels, types[name] = _levels(observers, scheme)
        tables[name] = ops.Pointwise(_staircase(levels))
    return tables, types


def _levels(observers: list[AnyObserver], scheme: ActivationScheme) -> Levels:
    """The reals that the integers may stand for, ascending, and the type that has them."""
    histograms = [entry for entry in observers if isinstance(entry, Histogram)]
    if len(histograms) != len(observers):
        raise RecipeError(
            f"activations of {scheme.bits} bits by form={scheme.form!r} need histograms; use observer='histogram'"
        )
    pooled = pool(histograms)
    if scheme.signs:
        return _signs(pooled, scheme)
    if scheme.form == "log2":
        return _powers(pooled, extremes(observers), scheme.bits)
    return _centres(pooled, scheme.bits)


def _signs(pooled: Pooled, scheme: ActivationScheme) -> Levels:
    """Minus and plus the mean magnitude, the best scale of signs (Rastegari et al. 2016, section 3.2)."""
    mean = float(np.average(np.abs(pooled.centers), weights=pooled.counts)) if len(pooled.counts) else 0.0
    scale = scale_of(activation_type((0.0, mean), 1))
    if scheme.form == "power_of_two":
        scale = 2.0 ** round(math.log2(scale))
    return [-scale, scale], TensorType("uint8", Quantization((scale,), 1, bits=2))


def _powers(pooled: Pooled, bounds: tuple[float, float], bits: int) -> Levels:
    """0 and as many powers of two as ``bits`` tell apart and 8 bits hold, the range by least squared error."""
    signed = bounds[0] < 0
    count, top = (2 ** (bits - 1) - 1, 6) if signed else (2**bits - 1, 7)
    positive = [2**exponent for exponent in range(top, max(top - count, -1), -1)]
    integers = sorted({0, *positive, *((-value for value in positive) if signed else ())})
    largest = max(-bounds[0], bounds[1])
    best: tuple[float, float] = (math.inf, 1.0)
    for share in _SHARES:
        scale = float(np.float32(max(largest * float(share), 1e-15) / 2**top))
        levels = np.array(integers) * scale
        nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, pooled.centers)]
        best = min(best, (float((pooled.counts * (nearest - pooled.centers) ** 2).sum()), scale))
    scale = best[1]
    type_ = TensorType("uint8", Quantization((scale,), 128 if signed else 0))
    return [scale * value for value in integers], type_


def _centres(pooled: Pooled, bits: int) -> Levels:
    """The centres of k-means, the one nearest to 0 moved there: padding is 0."""
    if not len(pooled.counts):
        return [0.0], activation_type((0.0, 0.0), 8)
    edges = np.linspace(pooled.centers[0], pooled.centers[-1], _BINS)
    bins = np.searchsorted(edges, pooled.centers)
    counts = np.bincount(bins, pooled.counts)
    sums = np.bincount(bins, pooled.counts * pooled.centers)
    used = counts > 0
    centres = kmeans(sums[used] / counts[used], counts[used] / counts.sum(), 2**bits)
    centres[np.argmin(np.abs(centres))] = 0.0
    type_ = activation_type((float(centres.min()), float(centres.max())), 8)
    scale = scale_of(type_)
    return sorted({float(np.rint(centre / scale)) * scale for centre in centres}), type_


def _staircase(levels: list[float]) -> tuple[Step, ...]:
    """The nearest of ``levels``, as a sum of steps."""
    program = [Step("const", levels[0])]
    for lower, upper in pairwise(levels):
        middle = (lower + upper) / 2 or _BELOW_ZERO
        program += [Step("x"), Step("above", middle, upper - lower), Step("add")]
    # The x makes the result as large as the input even if there is one level.
    return (*program, Step("x"), Step("const", 0.0), Step("mul"), Step("add"))
