"""Which activations need 16 bits: those that cause the most noise for the fewest multiplications.

Before that, ranges are chosen anew by what they cost at the outputs: where a few huge values matter little there, they
are clipped, and the others get finer steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from kvant.graph import Graph, TensorType, ops
from kvant.quantization.ranges import with_share
from kvant.quantization.sensitivity import Probe, group_noise
from kvant.quantization.simulate import Plan
from kvant.quantization.ties import ties
from kvant.quantization.trial import Trial, wide_share
from kvant.quantization.yardstick import Yardstick
from kvant.runtime import count_macs

# Widening stops when rounding of activations costs less than this beside what int8 weights alone cost.
CEILING_MARGIN_DB = 1.5
# So much less than the wanted signal to noise, or than weights alone leave, is enough where more than a share of all
# multiplications would read 16 bits. The best effort has other means.
SPARED_FOR_WIDE_DB = 4.0
MOST_WIDE = {"fast": 0.5, "default": 0.5, "best": 0.25}
# Shares of ranges that are tried, and how much less noise makes a smaller one worth it.
SHARES = (1.0, 0.5, 0.25, 0.125)
LESS_NOISE = 0.9
# New data may fill what calibration left empty: ranges are only made smaller for this much less noise in all.
CLIPPED_FOR_DB = 1.0


@dataclass(frozen=True)
class Widening:
    """Widens activations until a network is good enough.

    Attributes:
        graph: of the plans that are widened.
        trial: the samples, and what was decided.
        widest: the types with 16 bits for all that may have them.
        movable: the tensors whose scales may become any number.
    """

    graph: Graph
    trial: Trial
    widest: dict[str, TensorType]
    movable: set[str]

    def reach(self, plan: Plan, target: float) -> Plan:
        """``plan`` with ranges that clip where that helps, and 16 bits for as few activations as ``target`` dB need."""
        trial, effort = self.trial, self.trial.recipe.effort
        yardstick, group_of = trial.yardstick, ties(plan.graph)
        reached = yardstick.measure(plan)
        if reached >= target:
            return plan
        ceiling = yardstick.measure(replace(plan, types=self.widest))
        goal = min(target, ceiling - CEILING_MARGIN_DB)
        if reached >= goal:
            return plan
        # The shortest sample, which is held out, must not count for less.
        few, fast = yardstick.shortest is not None, effort == "fast"
        sensor = yardstick if few or fast else self._of_all_samples
        probe = Probe() if few and not fast else Probe(1, by_channel=True)
        # Rounding that is fitted to a layer's inputs makes up for what is clipped of them, at the cost of all others.
        shares = (1.0,) if effort == "best" else SHARES
        found = group_noise(plan, sensor, group_of, trial.show, probe, shares)
        plan, noise = self._in_closer_ranges(plan, found, group_of)
        enough = min(target, ceiling) - SPARED_FOR_WIDE_DB
        types = widen(plan, self.widest, yardstick, goal, noise, group_of, MOST_WIDE[effort], enough)
        wider = replace(plan, types=types)
        before, after = yardstick.measure(plan), yardstick.measure(wider)
        trial.note("activations in 16 bits", True, before, after, wide_share(wider))
        return wider

    @cached_property
    def _of_all_samples(self) -> Yardstick:
        """What rounding activations costs does not depend on what was fitted, and each sample shows something else."""
        return Yardstick(self.graph, [*self.trial.fitted, *self.trial.yardstick.samples])

    def _in_closer_ranges(
        self, plan: Plan, noise: dict[str, list[float]], group_of: dict[str, str]
    ) -> tuple[Plan, dict[str, float]]:
        """``plan`` with shares of ranges where clipping costs the outputs less than coarse steps, if less noise is left
        on the samples held out; and the noise of each group.

        Args:
            noise: of each group, with each of ``SHARES`` or the first of them.
        """
        free = {group_of[name] for name in self.movable if self.widest[name] != plan.types[name]}
        chosen = shares_of_ranges({group: each for group, each in noise.items() if group in free})
        whole = {group: each[0] for group, each in noise.items()}
        if not chosen:
            return plan, whole
        anew = replace(plan, types=with_shares(plan.types, group_of, chosen))
        before, after = (self.trial.yardstick.measure(each) for each in (plan, anew))
        better = after > before + CLIPPED_FOR_DB
        self.trial.note("ranges that clip", better, before, after, f"of {len(chosen)} activations")
        if not better:
            return plan, whole
        return anew, whole | {group: noise[group][at] for group, at in chosen.items()}


def shares_of_ranges(noise: Mapping[str, Sequence[float]]) -> dict[str, int]:
    """Which of ``SHARES`` of its range a group of tensors takes, if it is not the whole one.

    Args:
        noise: over signal at the outputs, by group, with each of ``SHARES``.
    """
    best = {group: min(range(len(each)), key=each.__getitem__) for group, each in noise.items()}
    return {group: at for group, at in best.items() if noise[group][at] < LESS_NOISE * noise[group][0]}


def with_shares(
    types: dict[str, TensorType], group_of: dict[str, str], chosen: dict[str, int]
) -> dict[str, TensorType]:
    """``types`` with ``chosen`` ones of ``SHARES`` of their ranges."""
    return {
        name: with_share(type, SHARES[chosen[group_of[name]]]) if group_of.get(name) in chosen else type
        for name, type in types.items()
    }


def widen(
    plan: Plan,
    wide: dict[str, TensorType],
    yardstick: Yardstick,
    goal: float,
    noise: dict[str, float],
    group_of: dict[str, str],
    most: float = 1.0,
    enough: float = -math.inf,
) -> dict[str, TensorType]:
    """Types of the activations, with 16 bits for as few of them as needed for ``goal`` dB at the outputs.

    The last decibels cost most: of a pose network's multiplications a quarter read 16 bits for 22 dB and two thirds
    for 26.

    Args:
        plan: everything in the types it has so far (8 bits, except what the recipe named).
        wide: the 16-bit type of every activation; the one it has where it is not to be widened.
        yardstick: measures signal to noise.
        noise: that each group of tensors causes in 8 bits.
        group_of: the group of each tensor.
        most: the share of all multiplications that read 16 bits at most, where that gives ``enough`` dB.
    """
    cost = group_cost(plan.graph, group_of)
    wider = {group_of[name] for name, type in plan.types.items() if wide[name] != type}
    order = _order({group: share for group, share in noise.items() if group in wider}, cost)

    def mixed(count: int) -> dict[str, TensorType]:
        chosen = set(order[:count])
        return {name: wide[name] if group_of[name] in chosen else type for name, type in plan.types.items()}

    def reached(count: int) -> float:
        return yardstick.measure(replace(plan, types=mixed(count)))

    count, within = smallest(len(order), reached, goal), _within(order, cost, most)
    if count > within:
        count = within if reached(within) >= enough else smallest(count, reached, enough)
    return mixed(count)


def _within(order: list[str], cost: dict[str, float], share: float) -> int:
    """How many of the first groups read no more than this share of all multiplications."""
    most = share * sum(cost.values())
    return sum(so_far <= most for so_far in accumulate(cost.get(group, 0.0) for group in order))


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
