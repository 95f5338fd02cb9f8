"""Smoothing: scale moves from a norm's output, in which a few channels are large, into the linear layers that read it.

In transformers a handful of channels behind a layer norm is ten times as large as the others, whose values then have
few of a row's or tensor's 8-bit integers left. Xiao et al. 2023, "SmoothQuant": dividing channel c by s_c in gamma and
beta, and multiplying column c of the readers' weights by it, changes nothing in real arithmetic; with

    s_c = (largest |x_c|) ** a / (largest |w_c|) ** (1 - a)

activations and weights share what is hard. Here a is the one with the least measured error of the layers' outputs on
calibration samples, and nothing moves unless that is less on samples held out. Where something else reads the norm too,
such as the residual sum of a post-norm block, the readers get a norm of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch

from kvant.capture import Executor
from kvant.graph import Graph, Node, ops
from kvant.quantization.recipe import Recipe
from kvant.quantization.statistics import Sample, Statistics, at_least, observe, part
from kvant.quantization.workers import in_order
from kvant.quantization.yardstick import decibels
from kvant.runtime import Decision

# Exponents of what activations have: 0 would make all columns of weights alike, 1 all channels.
EXPONENTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Rows of one sample that errors are measured on.
ROWS = 128
# Channels that never differ from 0 are divided by no less than this share of the largest.
_LEAST = 1e-3


def smooth(graph: Graph, seen: Statistics, recipe: Recipe) -> tuple[Graph, Statistics, list[Decision]]:
    """Smooth what linear layers of 8-bit inputs read from layer norms, where that lowers their measured error.

    Args:
        graph: float graph, prepared.
        seen: what calibration saw of it.
        recipe: says which layers there are, and whether to equalize at all.

    Returns:
        The graph and its statistics, new ones where anything moved, and what was decided.
    """
    groups = list(_groups(graph, recipe)) if recipe.equalize else []
    if not groups:
        return graph, seen, []
    fitted, held = (_rows(graph, samples, groups) for samples in part(seen.samples))
    ways = [_way(graph, group, fitted[group.name], held[group.name]) for group in groups]
    moves = {group: way.divisor for group, way in zip(groups, ways, strict=True) if way.taken}
    before, after = (decibels(fmean(each)) for each in zip(*((way.before, way.after) for way in ways), strict=True))
    detail = f"{len(moves)} of {len(groups)} norms"
    decision = Decision("smoothing", bool(moves), round(before, 2), round(after, 2), detail)
    return (*(_moved(graph, seen, recipe, moves) if moves else (graph, seen)), [decision])


@dataclass(frozen=True)
class _Way:
    """What each channel of a norm is to be divided by, float32 (K), and noise over signal at its readers' outputs."""

    divisor: np.ndarray
    before: float
    divided: float

    @property
    def taken(self) -> bool:
        return self.divided < self.before

    @property
    def after(self) -> float:
        """Noise over signal with what was taken."""
        return min(self.before, self.divided)


@dataclass(frozen=True)
class _Group:
    """A layer norm and the linear layers that read it by the same arithmetic.

    Attributes:
        by_row: whether rows have scales of their own; else the tensor has one.
        bits: of activations.
        weight_bits: of the readers' weights.
    """

    norm: Node
    readers: tuple[Node, ...]
    by_row: bool
    bits: int
    weight_bits: int

    @property
    def name(self) -> str:
        """Of the tensor that the norm makes."""
        return self.norm.output


def _groups(graph: Graph, recipe: Recipe) -> Iterator[_Group]:
    consumers = graph.consumers()
    for norm in graph.nodes:
        if not isinstance(norm.op, ops.LayerNorm) or norm.op.rank != 1:
            continue
        linear = [node for node in consumers[norm.output] if _multiplies(graph, node, norm.output)]
        kinds = {recipe.layer_arithmetic(node) for node in linear}
        scheme = recipe.activation_rule(norm.output, norm) or recipe.activations
        if kinds == {"dynamic"} or (
            kinds == {"integer"} and scheme.bits <= 8 and not recipe.is_wide(norm.output, norm)
        ):
            bits = {min(recipe.weight_scheme(node).bits, 8) for node in linear}
            by_row = kinds == {"dynamic"}
            yield _Group(norm, tuple(linear), by_row, 8 if by_row else scheme.bits, min(bits))


def _multiplies(graph: Graph, node: Node, name: str) -> bool:
    """Whether it is a linear layer of constant weights that reads ``name`` as its input alone."""
    return isinstance(node.op, ops.Linear) and node.inputs.index(name) == 0 and node.inputs[1] in graph.constants


def _rows(graph: Graph, samples: list[Sample], groups: list[_Group]) -> dict[str, torch.Tensor]:
    """Some rows (N, K) of what each group's norm gives for ``samples``, by the tensor's name."""
    executor, names = Executor(graph), {group.name for group in groups}

    def look(sample: Sample) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}

        def watch(name: str, values: torch.Tensor) -> None:
            if name in names:
                rows = values.reshape(-1, values.shape[-1])
                found[name] = rows[:: -(-len(rows) // ROWS)].clone()

        executor.run(sample, watch)
        return found

    parts = list(in_order(look, samples))
    return {name: torch.cat([each[name] for each in parts]) for name in names}


def _way(graph: Graph, group: _Group, fitted: torch.Tensor, held: torch.Tensor) -> _Way:
    """The way with the least error on the rows ``fitted``, and what it gives on the rows ``held``."""
    weights = [torch.from_numpy(graph.constants[node.inputs[1]]) for node in group.readers]
    activation = _floored(fitted.abs().amax(0))
    weight = _floored(torch.stack([each.abs().amax(0) for each in weights]).amax(0))
    ways = [activation**exponent / weight ** (1 - exponent) for exponent in EXPONENTS]
    ways = [way / way.log().mean().exp() for way in ways]
    best = min(ways, key=lambda way: _error(group, weights, fitted, way))
    before, divided = (_error(group, weights, held, way) / len(weights) for way in (torch.ones_like(best), best))
    return _Way(np.asarray(best.numpy(), np.float32), before, divided)


def _floored(values: torch.Tensor) -> torch.Tensor:
    return values.clamp_min(max(_LEAST * float(values.max()), 1e-30))


def _error(group: _Group, weights: list[torch.Tensor], rows: torch.Tensor, divisor: torch.Tensor) -> float:
    """Noise over signal at the readers' outputs, added up, with ``rows`` divided and both operands rounded."""
    scaled = rows / divisor
    levels = 2**group.bits - 1
    rounded = _rounded(scaled, levels) if group.by_row else _rounded(scaled.reshape(1, -1), levels).reshape(rows.shape)
    total = 0.0
    for weight in weights:
        wanted, got = rows @ weight.T, rounded @ _rounded_weight(weight * divisor, group.weight_bits).T
        total += float((got - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30))
    return total


def _rounded(rows: torch.Tensor, levels: int) -> torch.Tensor:
    """Each row rounded to ``levels`` steps from its smallest to its largest value, 0 one of them."""
    low, high = rows.amin(1, keepdim=True).clamp_max(0), rows.amax(1, keepdim=True).clamp_min(0)
    scale = ((high - low) / levels).clamp_min(1e-30)
    zero_point = (-low / scale).round()
    return torch.clamp((rows / scale).round(), -zero_point, levels - zero_point) * scale


def _rounded_weight(weight: torch.Tensor, bits: int) -> torch.Tensor:
    scale = (weight.abs().amax(1, keepdim=True) / max(2 ** (bits - 1) - 1, 1)).clamp_min(1e-30)
    rounded: torch.Tensor = (weight / scale).round() * scale
    return rounded


def _moved(graph: Graph, seen: Statistics, recipe: Recipe, moves: dict[_Group, np.ndarray]) -> tuple[Graph, Statistics]:
    """The graph in which ``moves`` happened, and what calibration would have seen of it."""
    graph, consumers = graph.copy(), graph.consumers()
    channels, observers = dict(seen.channels), dict(seen.observers)
    nodes: list[Node] = []
    readers: dict[str, Node] = {}
    changed: dict[str, np.ndarray] = {}
    of_norm = {group.name: group for group in moves}
    for node in graph.nodes:
        group = of_norm.get(node.output)
        if group is None:
            nodes.append(readers.get(node.output, node))
            continue
        alone = len(consumers[node.output]) == len(group.readers) and node.output not in graph.outputs
        divided = _divided(graph, node, moves[group], node.output if alone else graph.fresh(f"{node.output}.smooth"))
        nodes += [divided] if alone else [node, divided]
        readers |= {reader.output: _reader(graph, reader, divided.output, moves[group]) for reader in group.readers}
        changed[divided.output] = moves[group]
        if group.name in channels:
            channels[divided.output] = seen.channels[group.name].moved(np.zeros_like(moves[group]), moves[group])
    graph.replace_nodes(nodes)
    for name, observer in observe(graph, seen.samples, set(changed), recipe.observer).items():
        observers[name] = at_least(observer, channels.get(name))
    return graph, replace(seen, channels=channels, observers=observers)


def _divided(graph: Graph, norm: Node, divisor: np.ndarray, output: str) -> Node:
    """A norm whose output ``output`` is that of ``norm`` divided by ``divisor``."""
    gamma, beta = (graph.add_constant(name, graph.constants[name] / divisor) for name in norm.inputs[1:])
    graph.types[output] = graph.types[norm.output]
    return replace(norm, inputs=(norm.inputs[0], gamma, beta), output=output)


def _reader(graph: Graph, node: Node, name: str, divisor: np.ndarray) -> Node:
    """The layer ``node`` reading the divided tensor ``name``, with the divisor in its weight."""
    weight = graph.add_constant(node.inputs[1], graph.constants[node.inputs[1]] * divisor)
    return replace(node, inputs=(name, weight, *node.inputs[2:]))
