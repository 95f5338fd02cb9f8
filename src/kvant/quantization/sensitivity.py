"""Which activations need 16 bits: the noise that each one's rounding to 8 bits causes at the outputs, measured.

For a random direction v over the outputs, one backward pass gives the gradient of <v, outputs> at every activation at
once; its product with the rounding error that 8 bits would make there, squared and averaged over directions, is that
activation's share of the output noise. What follows is a choice: widen the activations that cause the most noise for
the fewest multiplications, then measure the real thing and widen more if it was not enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kvant.capture import Executor
from kvant.graph import Graph, TensorType, example_shapes, infer_shapes, ops
from kvant.quantization.progress import Progress
from kvant.quantization.simulate import Plan, fake_quantize
from kvant.quantization.ties import makes_values, ties
from kvant.quantization.yardstick import Yardstick

# Random directions for each sample.
DIRECTIONS = 3
# Widening stops when rounding of activations costs less than this beside what int8 weights alone cost.
CEILING_MARGIN_DB = 1.5


@dataclass(frozen=True)
class Widening:
    """The result of the search: types, and signal to noise at the outputs in dB before, after, and at 16 bits."""

    types: dict[str, TensorType]
    before: float
    after: float
    ceiling: float
    groups: tuple[str, ...]


def widen(
    plan: Plan,
    wide: dict[str, TensorType],
    yardstick: Yardstick,
    target: float,
    show: Progress,
) -> Widening:
    """Give 16 bits to as few activations as needed for ``target`` dB at the outputs.

    Args:
        plan: everything in the types it has so far (8 bits, except what the recipe named).
        wide: the 16-bit type of every activation.
        yardstick: measures signal to noise.
        target: wanted signal to noise; lower where int8 weights alone do not reach it.
    """
    before = yardstick.measure(plan)
    if before >= target:
        return Widening(plan.types, before, before, before, ())
    ceiling = yardstick.measure(replace(plan, types=wide))
    goal = min(target, ceiling - CEILING_MARGIN_DB)
    if before >= goal:
        return Widening(plan.types, before, before, ceiling, ())
    group_of = ties(plan.graph)
    noise = group_noise(plan, yardstick, group_of, show)
    order = _order(noise, group_cost(plan.graph, group_of))
    count, after = smallest(
        len(order),
        lambda some: yardstick.measure(replace(plan, types=_mixed(plan, wide, group_of, order[:some]))),
        goal,
    )
    return Widening(_mixed(plan, wide, group_of, order[:count]), before, after, ceiling, tuple(order[:count]))


def group_noise(
    plan: Plan,
    yardstick: Yardstick,
    group_of: dict[str, str],
    show: Progress,
) -> dict[str, float]:
    """Noise over signal at the outputs that each group of tied activations would cause by rounding."""
    executor = Executor(plan.simulated_graph())
    rounded = makes_values(plan.graph)
    generator = torch.Generator().manual_seed(0)
    noise: dict[str, float] = {}
    for at, sample in enumerate(show.track(yardstick.samples, "measuring sensitivity")):
        tape = _Tape(rounded)
        with torch.enable_grad():
            outputs = executor.run(sample, tape, gradients=True)
            for direction in range(DIRECTIONS):
                loss = yardstick.random_direction(at, outputs, generator)
                found = torch.autograd.grad(
                    loss, list(tape.seen.values()), retain_graph=direction + 1 < DIRECTIONS, allow_unused=True
                )
                _add(noise, dict(zip(tape.seen, found, strict=True)), tape.seen, plan.types, group_of)
    return noise


class _Tape:
    """Keeps the activations of one run that can be differentiated."""

    def __init__(self, names: set[str]) -> None:
        self.names = names
        self.seen: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, values: torch.Tensor) -> torch.Tensor | None:
        if name not in self.names:
            return None
        if not values.requires_grad:
            values = values.detach().requires_grad_()
        self.seen[name] = values
        return values


def _add(
    noise: dict[str, float],
    gradients: dict[str, torch.Tensor | None],
    values: dict[str, torch.Tensor],
    types: dict[str, TensorType],
    group_of: dict[str, str],
) -> None:
    for name, gradient in gradients.items():
        if gradient is None or types[name].dtype != "uint8":
            continue
        value = values[name].detach()
        effect = float((gradient * (fake_quantize(value, types[name]) - value)).sum(dtype=torch.float64))
        group = group_of[name]
        noise[group] = noise.get(group, 0.0) + effect * effect / DIRECTIONS


def group_cost(graph: Graph, group_of: dict[str, str]) -> dict[str, float]:
    """Multiplications that each group's tensors feed, at the example size."""
    cost: dict[str, float] = {}
    shapes = infer_shapes(graph, example_shapes(graph))
    for node in graph.nodes:
        if isinstance(node.op, ops.WEIGHTED):
            group = group_of[node.inputs[0]]
            cost[group] = cost.get(group, 0.0) + multiplications(graph, node.output, node.inputs[1], shapes)
    return cost


def multiplications(graph: Graph, output: str, weight: str, shapes: dict[str, tuple[int, ...]]) -> float:
    """Multiplications of one weighted layer: output elements times weights per output channel."""
    return float(np.prod(shapes[output])) * float(np.prod(graph.constants[weight].shape[1:]))


def _order(noise: dict[str, float], cost: dict[str, float]) -> list[str]:
    """Groups by noise per multiplication; moving a tensor at twice the width costs a little even where none follow."""
    typical = sum(cost.values()) / max(len(cost), 1) or 1.0
    return sorted(noise, key=lambda group: -noise[group] / (cost.get(group, 0.0) + 0.05 * typical))


def _mixed(
    plan: Plan, wide: dict[str, TensorType], group_of: dict[str, str], groups: Sequence[str]
) -> dict[str, TensorType]:
    chosen = set(groups)
    return {name: wide[name] if group_of[name] in chosen else type for name, type in plan.types.items()}


def smallest(count: int, evaluate: Callable[[int], float], goal: float, parts: int = 24) -> tuple[int, float]:
    """About the smallest of 1 ... ``count`` whose value reaches ``goal``, and its value: a bisection.

    Args:
        parts: how finely the numbers are told apart.
        evaluate: the measured value for a number; it grows, but for noise.
    """
    low, high, best = 0, count, float("nan")
    while high - low > max(1, count // parts):
        middle = (low + high) // 2
        got = evaluate(middle)
        if got >= goal:
            high, best = middle, got
        else:
            low = middle
    return high, evaluate(high) if math.isnan(best) else best
