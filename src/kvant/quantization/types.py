"""The integer type of every activation: as its scheme wants it, and in 16 bits."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from kvant.errors import CalibrationError
from kvant.graph import Graph, TensorType, example_shapes, infer_shapes, ops
from kvant.quantization.given import fits, given_types
from kvant.quantization.observers import AnyObserver, Extremes
from kvant.quantization.places import of_places
from kvant.quantization.ranges import MAX_SCALE, MIN_SCALE, Range, activation_type, choose_range, extremes
from kvant.quantization.recipe import Recipe, Rule, about_nothing
from kvant.quantization.schemes import ActivationScheme
from kvant.quantization.ties import ties

# Activations of 16 bits reach this much further than calibration saw: bits they can spare, against saturation.
HEADROOM = 2.0
# The extremes of tensors with few values, such as squeezed maps, say less about what other inputs will bring.
HEADROOM_OF_FEW = 8.0
FEW_VALUES = 4096
# The least that 16 bits with all their headroom can stand for, and the most: squares of more overflow float32.
LEAST_REACH = MIN_SCALE * 32767 / HEADROOM_OF_FEW
MOST_REACH = MAX_SCALE
# Of few samples each one moves the ends of a range: a new one exceeds those of n others with a chance of 2 / (n + 1).
FEW_SAMPLES = 32


def check_reach(graph: Graph, observers: dict[str, AnyObserver]) -> None:
    """Refuse what no scale can stand for: too small or too large inputs and outputs, and too large inputs of layers.

    What is small in between is nothing beside the rest, and what is large there may mask something.

    Raises:
        CalibrationError: there is such a tensor; the message names it and says what it reaches.
    """
    group_of = ties(graph)
    reached: dict[str, float] = {}
    for name, seen in observers.items():
        reached[group_of[name]] = max(reached.get(group_of[name], 0.0), -seen.low, seen.high)
    borders = {entry.name: "input" for entry in graph.inputs} | dict.fromkeys(graph.outputs, "output")
    read = {node.inputs[0]: "activation" for node in graph.nodes if isinstance(node.op, ops.WEIGHTED)}
    for name, what in (read | borders).items():
        reach = reached.get(group_of.get(name, ""), 0.0)
        if reach > MOST_REACH or (what != "activation" and 0 < reach < LEAST_REACH):
            raise CalibrationError(
                f"{what} {name!r} reaches {reach:.3g} on calibration data, and scales are made for {LEAST_REACH:.1e} "
                f"to {MOST_REACH:.1e}; change the units of the inputs, or the weights that make it"
            )


def activation_types(
    graph: Graph, observers: dict[str, AnyObserver], recipe: Recipe, samples: int
) -> tuple[dict[str, TensorType], dict[str, TensorType]]:
    """The types the recipe asks for, and the types with 16 bits everywhere, of all activations that were observed.

    Args:
        samples: how many the observers have seen.
    """
    group_of = ties(graph)
    schemes = activation_schemes(graph, group_of, recipe)
    members: dict[str, list[AnyObserver]] = {}
    for name, observer in observers.items():
        members.setdefault(group_of[name], []).append(observer)
    _observe_constants(graph, group_of, members)
    wanted = _wanted_wide(graph, group_of, recipe) | _around_reals(graph, group_of, recipe)
    wanted |= _unnamed(graph, group_of, recipe, of_places(graph))
    sizes = _group_sizes(graph, group_of)
    ends = _known_ends(graph, group_of)
    averaged = _averaged(graph, group_of)
    given = given_types(graph, group_of)
    narrow, wide = {}, {}
    for group, seen in _shared(members, schemes).items():
        scheme = schemes[group]
        low, high = extremes(seen)
        room = HEADROOM if sizes[group] >= FEW_VALUES else HEADROOM_OF_FEW
        wide[group] = activation_type((low * room, high * room), 16, scheme.form)
        narrow[group] = wide[group]
        if scheme.bits < 16 and group not in wanted:
            chosen = choose_range(seen, scheme)
            values = members.get(averaged.get(group, ""))
            if values is not None and scheme.granularity == "tensor":
                chosen = _both(chosen, choose_range(values, scheme))
            if scheme.bits == 8 and scheme.range == "mse" and scheme.granularity == "tensor":
                chosen = _with_room(chosen, samples, ends.get(group, set()))
            narrow[group] = activation_type(chosen, scheme.bits, scheme.form)
        if group in given and fits(given[group], scheme):
            narrow[group] = wide[group] = given[group]
    return _by_name(narrow, group_of), _by_name(wide, group_of)


def _both(one: Range, other: Range) -> Range:
    return min(one[0], other[0]), max(one[1], other[1])


def _with_room(chosen: Range, samples: int, ends: set[float | None]) -> Range:
    """``chosen`` and some more on the sides where few samples say how far values reach, and nothing else does."""
    room = 1 + 2 / samples if 0 < samples < FEW_SAMPLES else 1.0
    low, high = (end if end in ends or None in ends else end * room for end in chosen)
    return low, high


def _averaged(graph: Graph, group_of: dict[str, str]) -> dict[str, str]:
    """The groups of what attention gives, with those of the values whose averages they are, and may be as large."""
    weights = {node.output for node in graph.nodes if isinstance(node.op, ops.Softmax)}
    sums = [node for node in graph.nodes if isinstance(node.op, ops.MatMul) and node.inputs[0] in weights]
    return {group_of[node.output]: group_of[node.inputs[1]] for node in sums if node.inputs[1] in group_of}


def _known_ends(graph: Graph, group_of: dict[str, str]) -> dict[str, set[float | None]]:
    """Where the values of a group are clamped; None for inputs of the network, which are what they are."""
    ends: dict[str, set[float | None]] = {}
    for entry in graph.inputs:
        if entry.name in group_of:
            ends.setdefault(group_of[entry.name], set()).add(None)
    for node in graph.nodes:
        clamp = getattr(node.op, "clamp", None)
        if clamp is not None and node.output in group_of:
            ends.setdefault(group_of[node.output], set()).update(end for end in clamp if end is not None)
    return ends


def _by_name(types: dict[str, TensorType], group_of: dict[str, str]) -> dict[str, TensorType]:
    return {name: types[group] for name, group in group_of.items() if group in types}


def activation_schemes(graph: Graph, group_of: dict[str, str], recipe: Recipe) -> dict[str, ActivationScheme]:
    """The scheme of each group of tied activations as its integers lie in memory: what is read by tables has 8 bits."""
    return {
        group: replace(scheme, bits=8, form="asymmetric") if scheme.tabled else scheme
        for group, scheme in wished_schemes(graph, group_of, recipe).items()
    }


def read_by_tables(graph: Graph, recipe: Recipe) -> set[str]:
    """Activations whose scheme has weighted layers read few levels of them: more bits would tell these nothing."""
    group_of = ties(graph)
    schemes = wished_schemes(graph, group_of, recipe)
    return {name for name, group in group_of.items() if schemes[group].tabled}


def wished_schemes(graph: Graph, group_of: dict[str, str], recipe: Recipe) -> dict[str, ActivationScheme]:
    """The scheme of each group of tied activations.

    Rules come first, then the recipe's own scheme; but inputs and outputs of the network that no rule names have at
    least 8 bits. Of several schemes that rules give to tensors of one group, the one with the most bits holds.
    """
    nodes = graph.producers()
    outside = {entry.name for entry in graph.inputs} | set(graph.outputs)
    named: dict[str, list[ActivationScheme]] = {}
    borders = {group_of[name] for name in outside if name in group_of}
    for name, group in group_of.items():
        scheme = recipe.activation_rule(name, nodes.get(name))
        if scheme is not None:
            named.setdefault(group, []).append(scheme)
    found = {}
    for group in dict.fromkeys(group_of.values()):
        scheme = max(named.get(group, [recipe.activations]), key=lambda entry: entry.bits)
        if scheme.bits < 8 and group in borders and group not in named:
            scheme = replace(scheme, bits=8, form="asymmetric" if scheme.tabled else scheme.form)
        found[group] = scheme
    return found


def _shared(
    members: dict[str, list[AnyObserver]], schemes: dict[str, ActivationScheme]
) -> dict[str, list[AnyObserver]]:
    """What was seen of each group, or of all groups together that share the scale of the network."""
    network: dict[ActivationScheme, list[AnyObserver]] = {}
    for group, seen in members.items():
        network.setdefault(schemes[group], []).extend(seen)
    return {
        group: network[schemes[group]] if schemes[group].granularity == "network" else seen
        for group, seen in members.items()
    }


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


def _around_reals(graph: Graph, group_of: dict[str, str], recipe: Recipe) -> set[str]:
    """Groups of what layers of float32 read and write, and with dynamic ones all that 8 bits make neither faster nor
    smaller: what no layer of integers reads or writes, and no table holds. Not those that rules name."""
    layers = [node for node in graph.nodes if isinstance(node.op, ops.WEIGHTED)]
    reals = [node for node in layers if recipe.layer_arithmetic(node) != "integer"]
    touched = {name for node in reals for name in (node.inputs[0], node.output)}
    if recipe.arithmetic == "dynamic" and reals:
        integer = {name for node in layers if node not in reals for name in (node.inputs[0], node.output)}
        used = {group_of[name] for name in (*integer, *graph.constants) if name in group_of}
        touched |= {name for name in group_of if group_of[name] not in used}
    return _unnamed(graph, group_of, recipe, touched)


def _unnamed(graph: Graph, group_of: dict[str, str], recipe: Recipe, names: set[str]) -> set[str]:
    """The groups of those tensors that no rule names."""
    nodes = graph.producers()
    return {
        group_of[name] for name in names if name in group_of and recipe.activation_rule(name, nodes.get(name)) is None
    }


def _wanted_wide(graph: Graph, group_of: dict[str, str], recipe: Recipe) -> set[str]:
    nodes = graph.producers()
    wanted = set()
    for pattern in recipe.wide:
        hits = [name for name in group_of if Rule(pattern).applies(name, nodes.get(name))]
        if not hits:
            raise about_nothing("Recipe(wide=...)", pattern, [(name, nodes.get(name)) for name in group_of])
        wanted |= {group_of[name] for name in hits}
    return wanted
