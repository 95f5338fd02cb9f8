"""Which activations need 16 bits: the noise that each one's rounding to 8 bits causes at the outputs, measured.

For a random direction v over the outputs, one backward pass gives the gradient of <v, outputs> at every activation at
once; its product with the rounding error that 8 bits would make there, squared and averaged over directions and
samples, is that activation's share of the output noise. With a single direction, products are summed and squared for
each channel. What follows is a choice: widen the activations that cause the most noise for the fewest multiplications,
then measure the real thing and widen more if it was not enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch

from kvant.capture import Executor
from kvant.graph import Graph, TensorType, ops
from kvant.quantization.progress import Progress
from kvant.quantization.simulate import Plan, fake_quantize
from kvant.quantization.statistics import Sample
from kvant.quantization.ties import makes_values, ties
from kvant.quantization.workers import in_order
from kvant.quantization.yardstick import SHORTEST_SLACK_DB, Yardstick
from kvant.runtime import count_macs

Tensors = dict[str, torch.Tensor]

# Random directions for each sample.
DIRECTIONS = 3
# Widening stops when rounding of activations costs less than this beside what int8 weights alone cost.
CEILING_MARGIN_DB = 1.5
# The share of all multiplications that may read 16 bits before less signal to noise is enough.
MOST_WIDE = 0.5


def widen(
    plan: Plan,
    wide: dict[str, TensorType],
    yardstick: Yardstick,
    target: float,
    show: Progress,
    directions: int = DIRECTIONS,
    spared: float = 0.0,
    sensor: Callable[[], Yardstick] | None = None,
) -> dict[str, TensorType]:
    """Types of the activations, with 16 bits for as few of them as needed for ``target`` dB at the outputs.

    The last decibels cost most: of a pose network's multiplications a quarter read 16 bits for 22 dB and two thirds
    for 26.

    Args:
        plan: everything in the types it has so far (8 bits, except what the recipe named).
        wide: the 16-bit type of every activation; the one it has where it is not to be widened.
        yardstick: measures signal to noise.
        target: wanted signal to noise; lower where int8 weights alone do not reach it.
        directions: random ones for each sample.
        spared: so much less is enough if more than half of the multiplications would read 16 bits otherwise.
        sensor: makes what has the samples that gradients are taken at, if any are needed; None is ``yardstick``.
    """
    before = yardstick.measure(plan)
    if before >= target:
        return plan.types
    goal = min(target, yardstick.measure(replace(plan, types=wide)) - CEILING_MARGIN_DB)
    if before >= goal:
        return plan.types
    group_of = ties(plan.graph)
    noise = group_noise(plan, yardstick if sensor is None else sensor(), group_of, show, directions)
    cost = group_cost(plan.graph, group_of)
    wider = {group_of[name] for name, type in plan.types.items() if wide[name] != type}
    order = _order({group: share for group, share in noise.items() if group in wider}, cost)

    def mixed(count: int) -> dict[str, TensorType]:
        chosen = set(order[:count])
        return {name: wide[name] if group_of[name] in chosen else type for name, type in plan.types.items()}

    def reached(count: int) -> float:
        return yardstick.measure(replace(plan, types=mixed(count)))

    count = smallest(len(order), reached, goal)
    wide_cost = sum(cost.get(group, 0.0) for group in order[:count])
    if target - spared < goal and wide_cost > MOST_WIDE * sum(cost.values()):
        count = smallest(count, reached, target - spared)
    return mixed(count)


def may_widen(type: TensorType) -> bool:
    """Whether a tensor has 8 bits; fewer ones were wished for."""
    return type.dtype == "uint8" and type.quantization is not None and type.quantization.bits is None


def group_noise(
    plan: Plan,
    yardstick: Yardstick,
    group_of: dict[str, str],
    show: Progress,
    directions: int,
) -> dict[str, float]:
    """Noise over signal at the outputs that each group of tied activations would cause by rounding."""
    executor = Executor(plan.simulated_graph())
    rounded = makes_values(plan.graph)

    def run(sample: Sample) -> tuple[list[torch.Tensor], Tensors]:
        tape = _Tape(rounded)
        return executor.run(yardstick.parts.middle(sample), tape, gradients=True), tape.seen

    def error(name: str, values: torch.Tensor) -> torch.Tensor | None:
        type = plan.types[name]
        return fake_quantize(values, type) - values if may_widen(type) else None

    samples = show.track(yardstick.samples, "measuring sensitivity")
    noise: dict[str, float] = {}
    for name, share in noise_of(run, error, yardstick, samples, directions).items():
        noise[group_of[name]] = noise.get(group_of[name], 0.0) + share
    if yardstick.shortest is not None:
        for group, share in group_noise(plan, yardstick.shortest, group_of, show, directions).items():
            noise[group] = noise.get(group, 0.0) + share * 10 ** (-SHORTEST_SLACK_DB / 10)
    return noise


def noise_of(
    run: Callable[[Sample], tuple[list[torch.Tensor], Tensors]],
    error: Callable[[str, torch.Tensor], torch.Tensor | None],
    yardstick: Yardstick,
    samples: Iterable[Sample],
    directions: int = DIRECTIONS,
) -> dict[str, float]:
    """Noise over signal at the outputs that a small error in each of some tensors causes, by the tensor's name.

    Args:
        run: gives, for a sample, the outputs, and the tensors by which they can be differentiated.
        error: the error of a tensor, from its name and value; None for one that has none.
        samples: those of ``yardstick``, in order.
        directions: random ones for each sample; the products of a single one are squared channel by channel.
    """

    def effects(numbered: tuple[int, Sample]) -> dict[str, float]:
        at, sample = numbered
        generator = torch.Generator().manual_seed(at)
        found: dict[str, float] = {}

        def add(name: str, values: torch.Tensor, gradient: torch.Tensor) -> None:
            wrong = error(name, values.detach())
            if wrong is not None:
                products = gradient * wrong
                effect = float((_by_channel(products) if directions == 1 else products.sum()).square().sum())
                found[name] = found.get(name, 0.0) + effect / directions

        with torch.enable_grad():
            outputs, tensors = run(sample)
            leaves = {name: values for name, values in tensors.items() if values.is_leaf}
            for name, values in tensors.items():
                if name not in leaves:
                    # A gradient is looked at when it passes: all of them at once would be as large as the activations.
                    values.register_hook(partial(add, name, values.detach()))  # type: ignore[no-untyped-call]
            for direction in range(directions):
                loss = yardstick.random_direction(at, outputs, generator)
                more = direction + 1 < directions
                gradients = torch.autograd.grad(loss, list(leaves.values()), retain_graph=more, allow_unused=True)
                for (name, values), gradient in zip(leaves.items(), gradients, strict=True):
                    if gradient is not None:
                        add(name, values, gradient)
        return found

    noise: dict[str, float] = {}
    for found in in_order(effects, enumerate(samples)):
        for name, effect in found.items():
            noise[name] = noise.get(name, 0.0) + effect
    return noise


def _by_channel(effects: torch.Tensor) -> torch.Tensor:
    """The sum over each slice along axis 1: rounding errs independently in each, so squares of these add up.

    The square of the sum over all has the same mean, and as much spread as a single draw.
    """
    return effects.sum([axis for axis in range(effects.dim()) if axis != 1]) if effects.dim() > 1 else effects


class _Tape:
    """Keeps the activations of one run that can be differentiated."""

    def __init__(self, names: set[str]) -> None:
        self.names = names
        self.seen: Tensors = {}

    def __call__(self, name: str, values: torch.Tensor) -> torch.Tensor | None:
        if name not in self.names:
            return None
        if not values.requires_grad:
            values = values.detach().requires_grad_()
        self.seen[name] = values
        return values


def group_cost(graph: Graph, group_of: dict[str, str]) -> dict[str, float]:
    """Multiplications that each group's tensors feed, at the example size.

    Rows of a table of constants would make the file longer: they cost as much of all multiplications as the table is of
    all constants.
    """
    cost: dict[str, float] = {}
    producers, counts = graph.producers(), list(count_macs(graph))
    for each in counts:
        read = producers[each.node].inputs[:2]
        for group in {group_of[name] for name in read if name not in graph.constants}:
            cost[group] = cost.get(group, 0.0) + each.count
    every, constants = sum(each.count for each in counts), sum(value.size for value in graph.constants.values())
    for node in graph.nodes:
        if isinstance(node.op, ops.Gather) and node.inputs[0] in graph.constants:
            group = group_of[node.output]
            cost[group] = cost.get(group, 0.0) + graph.constants[node.inputs[0]].size / constants * every
    return cost


def _order(noise: dict[str, float], cost: dict[str, float]) -> list[str]:
    """Groups by noise per multiplication; moving a tensor at twice the width costs a little even where none follow."""
    typical = sum(cost.values()) / max(len(cost), 1) or 1.0
    return sorted(noise, key=lambda group: -noise[group] / (cost.get(group, 0.0) + 0.05 * typical))


def smallest(count: int, evaluate: Callable[[int], float], goal: float, parts: int = 24) -> int:
    """About the smallest of 1 ... ``count`` whose value reaches ``goal``: a bisection.

    Args:
        parts: how finely the numbers are told apart.
        evaluate: the measured value for a number; it grows, but for noise.
    """
    low, high = 0, count
    while high - low > max(1, count // parts):
        middle = (low + high) // 2
        if evaluate(middle) >= goal:
            high = middle
        else:
            low = middle
    return high
