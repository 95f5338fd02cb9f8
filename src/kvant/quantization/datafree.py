"""Level 1: what is known of activations without data, and how far what is not known may be trusted.

Where a batch norm was folded, a channel is normal with mean beta and deviation |gamma|, and almost never beyond six
deviations (Nagel et al. 2019, section 4.1). Generated inputs excite everything up to the last batch norm as data would.
Behind it nothing tells how far data reach: logits of noise are small. Those tensors get room, and 16 bits, and so do
inputs that lead to no batch norm.
"""

from __future__ import annotations

import glob
from dataclasses import replace

import numpy as np

from kvant.errors import RecipeError
from kvant.graph import Graph, Node, ops
from kvant.quantization.recipe import Recipe
from kvant.quantization.schemes import ActivationScheme
from kvant.quantization.statistics import Statistics
from kvant.quantization.ties import moves

# Inputs that are generated: more of them say little that is new.
MOST_SAMPLES = 8
# Deviations of a batch norm's output that its range holds.
DEVIATIONS = 6.0
# How much further than generated inputs data may drive what no batch norm describes.
ROOM = 3.0

Bounds = tuple[np.ndarray, np.ndarray]


def unclipped(recipe: Recipe) -> Recipe:
    """``recipe`` without clipping of ranges: extremes are observed, and histograms where levels of tables need them.

    Raises:
        RecipeError: ranges are to be chosen by a method that needs data.
    """
    rules = [rule.activations for rule in recipe.rules if rule.activations is not None]
    for scheme in (recipe.activations, *rules):
        if scheme.range not in ("mse", "minmax"):
            raise RecipeError(
                f"ActivationScheme(range={scheme.range!r}) needs data, and calibration is None: generated inputs do "
                "not tell what is rare; give calibration data, or use range='minmax', which clips nothing"
            )
    if not any(scheme.tabled for scheme in (recipe.activations, *rules)):
        return replace(recipe, observer="minmax")

    def whole(scheme: ActivationScheme) -> ActivationScheme:
        return replace(scheme, range="minmax")

    return replace(
        recipe,
        observer="histogram",
        activations=whole(recipe.activations),
        rules=tuple(
            rule if rule.activations is None else replace(rule, activations=whole(rule.activations))
            for rule in recipe.rules
        ),
    )


def without_data(captured: Graph, graph: Graph, seen: Statistics, recipe: Recipe) -> Recipe:
    """Extend the ranges that generated inputs gave, and adapt the recipe to them.

    Args:
        captured: with its batch norms.
        graph: the same, prepared: batch norms folded.
        seen: statistics of ``graph`` on generated inputs; changed.
        recipe: as the user wants it, ``unclipped``.

    Returns:
        The recipe with 16 bits for what no batch norm describes (unless nothing is to be widened).
    """
    known = _known_ranges(captured, graph)
    for name, (low, high) in known.items():
        _extend(seen, name, low, high)
    loose = _loose(graph, set(known))
    for name in loose & set(seen.observers):
        seen.observers[name].low *= ROOM
        seen.observers[name].high *= ROOM
    named = tuple(glob.escape(name) for name in sorted(loose)) if recipe.target_sqnr is not None else ()
    return replace(recipe, wide=(*recipe.wide, *named))


def _extend(seen: Statistics, name: str, low: np.ndarray, high: np.ndarray) -> None:
    """Let the range of a tensor, and of its channels, hold ``low`` to ``high`` (C)."""
    channels = seen.channels.get(name)
    if channels is not None and len(channels.low) == len(low):
        channels.low, channels.high = np.minimum(channels.low, low), np.maximum(channels.high, high)
    observer = seen.observers.get(name)
    if observer is not None:
        observer.low = min(observer.low, float(low.min()))
        observer.high = max(observer.high, float(high.max()))


def _known_ranges(captured: Graph, graph: Graph) -> dict[str, Bounds]:
    """Lowest and highest value (C) that batch norm leaves in channels, by the tensor's name in ``graph``."""
    made, consumers = graph.producers(), captured.consumers()
    found = {}
    for norm in captured.nodes:
        if not isinstance(norm.op, ops.BatchNorm):
            continue
        node = _stands_for(norm, consumers[norm.output], made)
        if node is None:
            continue
        gamma, beta = (captured.constants[name].astype(np.float64) for name in norm.inputs[1:3])
        bounds = beta - DEVIATIONS * np.abs(gamma), beta + DEVIATIONS * np.abs(gamma)
        clamp: ops.Clamp | None = node.op.clamp  # type: ignore[union-attr]
        low, high = (side if clamp in (None, (None, None)) else np.clip(side, *clamp) for side in bounds)
        found[node.output] = low, high
    return found


def _stands_for(norm: Node, readers: list[Node], made: dict[str, Node]) -> Node | None:
    """The layer that took over a batch norm, and maybe the clamp behind it."""
    node = made.get(norm.output)
    if node is None and len(readers) == 1 and isinstance(readers[0].op, ops.Pointwise):
        node = made.get(readers[0].output)
    return node if node is not None and isinstance(node.op, ops.WEIGHTED) else None


def _loose(graph: Graph, known: set[str]) -> set[str]:
    """Tensors behind the last batch norm of their way, but for functions of the elements of what is known; inputs that
    no batch norm is behind."""
    leads: set[str] = set()
    for node in reversed(graph.nodes):
        if node.output in known or node.output in leads:
            leads.update(node.inputs)
    found = {entry.name for entry in graph.inputs if entry.type.dtype == "float32"} - leads
    for node in graph.nodes:
        if node.output in known or node.output in leads:
            continue
        function = isinstance(node.op, ops.Pointwise) or moves(node)
        if not function or any(name in found for name in node.inputs):
            found.add(node.output)
    return {name for name in found if graph.types[name].dtype == "float32"}
