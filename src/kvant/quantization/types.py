"""The integer type of every activation, in 8 bits and in 16."""

from __future__ import annotations

import math
from fnmatch import fnmatch

import torch

from kvant.errors import RecipeError
from kvant.graph import Graph, TensorType, example_shapes, infer_shapes, ops
from kvant.quantization.observers import AnyObserver, Extremes
from kvant.quantization.ranges import activation_type, choose_range
from kvant.quantization.recipe import Recipe
from kvant.quantization.ties import ties

# Activations of 16 bits reach this much further than calibration saw: bits they can spare, against saturation.
HEADROOM = 2.0
# The extremes of tensors with few values, such as squeezed maps, say less about what other inputs will bring.
HEADROOM_OF_FEW = 8.0
FEW_VALUES = 4096


def activation_types(
    graph: Graph, observers: dict[str, AnyObserver], recipe: Recipe
) -> tuple[dict[str, TensorType], dict[str, TensorType]]:
    """The types the recipe asks for, and the types with 16 bits everywhere."""
    group_of = ties(graph)
    members: dict[str, list[AnyObserver]] = {}
    for name, observer in observers.items():
        members.setdefault(group_of[name], []).append(observer)
    _observe_constants(graph, group_of, members)
    wanted = _wanted_wide(graph, group_of, recipe)
    exact = Recipe(range_method="minmax")
    sizes = _group_sizes(graph, group_of)
    narrow, wide = {}, {}
    for name, group in group_of.items():
        low, high = choose_range(members[group], exact)
        room = HEADROOM if sizes[group] >= FEW_VALUES else HEADROOM_OF_FEW
        wide[name] = activation_type((low * room, high * room), 16)
        narrow[name] = wide[name]
        if recipe.activation_bits == 8 and group not in wanted:
            narrow[name] = activation_type(choose_range(members[group], recipe), 8)
    return narrow, wide


def _group_sizes(graph: Graph, group_of: dict[str, str]) -> dict[str, int]:
    """Values in the largest tensor of each group, at the example size."""
    shapes = infer_shapes(graph, example_shapes(graph))
    sizes: dict[str, int] = {}
    for name, group in group_of.items():
        shape = shapes[name] if name in shapes else graph.constants[name].shape
        sizes[group] = max(sizes.get(group, 0), math.prod(shape))
    return sizes


def _observe_constants(graph: Graph, group_of: dict[str, str], members: dict[str, list[AnyObserver]]) -> None:
    """Constants that are joined with activations, and padding values, must lie inside the range too."""

    def include(group: str, low: float, high: float) -> None:
        extremes = Extremes()
        extremes.observe(torch.empty(0), low, high)
        members.setdefault(group, []).append(extremes)

    for name, group in group_of.items():
        if name in graph.constants:
            include(group, float(graph.constants[name].min()), float(graph.constants[name].max()))
    for node in graph.nodes:
        if isinstance(node.op, ops.Pad) and node.op.mode == "constant" and node.op.value != 0:
            include(group_of[node.output], node.op.value, node.op.value)


def _wanted_wide(graph: Graph, group_of: dict[str, str], recipe: Recipe) -> set[str]:
    modules = {node.output: node.source.module for node in graph.nodes}
    wanted = set()
    for pattern in recipe.wide:
        hits = [name for name in group_of if fnmatch(name, pattern) or fnmatch(modules.get(name, ""), pattern)]
        if not hits:
            raise RecipeError(f"Recipe(wide=...): {pattern!r} matches no tensor and no module of this model")
        wanted |= {group_of[name] for name in hits}
    return wanted
