"""Every decision about a network, from what calibration saw: scales between layers, weights, biases, and types."""

from __future__ import annotations

from dataclasses import replace
from operator import is_

import numpy as np

from kvant.capture import Executor
from kvant.errors import RecipeError
from kvant.graph import Graph, TensorType, ops
from kvant.quantization.channels import Channels
from kvant.quantization.equalize import equalize
from kvant.quantization.given import given_types
from kvant.quantization.grids import FINE
from kvant.quantization.joins import part_from_joins
from kvant.quantization.observers import AnyObserver
from kvant.quantization.parts import Parts
from kvant.quantization.progress import Progress
from kvant.quantization.recipe import Recipe
from kvant.quantization.refine import refine, refine_small, weight_noise, with_fine
from kvant.quantization.schemes import Arithmetic
from kvant.quantization.sensitivity import Probe, group_noise
from kvant.quantization.simulate import Plan
from kvant.quantization.smooth import smooth
from kvant.quantization.split import choose_copies, split
from kvant.quantization.staircase import place, staircases
from kvant.quantization.statistics import Statistics, at_least, observe, part
from kvant.quantization.ties import makes_values, ties
from kvant.quantization.trial import Trial, wide_share
from kvant.quantization.types import activation_schemes, activation_types, read_by_tables
from kvant.quantization.weights import QuantizedWeight, network_scales, quantize_weight, unquantized
from kvant.quantization.widening import Widening
from kvant.quantization.yardstick import SHORTEST_SLACK_DB, Yardstick
from kvant.runtime import Decision

# Weights rounded to nearest are good enough if they alone leave this much more than the wanted signal to noise.
WEIGHT_MARGIN_DB = 8.0
# Int8 weights may fall short of the target by this much before some get more bits, and then exceed it by this much.
TOLERATED_DB = 1.0
REFINED_DB = 2.0
# The other way to equalize is taken if 8-bit activations then have this much less noise.
BETTER_DB = 1.0
# Best effort without 16 bits computes some channels several times where 8 bits leave less signal to noise than this.
ENOUGH_DB = 26.0
# The best effort widens for so much less, for more multiplications in 8 bits, and rounds weights again for that.
SPARED_DB = 3.0
# Half of the noise, and the share of all weights that may become finer so that weights cause no more of it.
HALF_DB = 3.0
SHARE_FOR_SHORTEST = 0.0625


def make_plan(graph: Graph, seen: Statistics, recipe: Recipe, show: Progress) -> Plan:
    """Decide everything: scales between layers, weights, biases, and the type of each activation."""
    recipe.check_rules(graph)
    graph, seen, smoothed = smooth(graph, seen, recipe)
    graph, places = place(graph, seen, recipe)
    if recipe.effort != "best":
        parts = Parts(Executor(graph), seen.samples[0])
        seen = replace(seen, samples=[parts.middle(sample) for sample in seen.samples])
    start = Start(graph, places, seen, recipe, show)
    start.trial.history += smoothed
    if start.equalized:
        start.trial.history.append(Decision("equalization", True, detail="for weights"))
    if recipe.effort != "fast" and start.equalized and not recipe.center:
        start = _best_start(start, graph, places, seen)
    return start.finish()


def _best_start(start: Start, graph: Graph, places: dict[str, str], seen: Statistics) -> Start:
    """``start``, or what equalizing in another way gives, if that has less noise in 8 bits; its history is kept."""
    recipe = start.trial.recipe
    best, before = start, start.in_8_bits()
    if recipe.target_sqnr is not None and before >= recipe.target_sqnr:
        return start
    for detail, wanted, gain in _other_ways(recipe, before):
        other = Start(graph, places, seen, wanted, start.trial.show, by_noise=True)
        after = other.in_8_bits()
        better = after > before + gain
        best.trial.note("equalization", better, before, after, f"{detail} instead, all of them in 8 bits")
        if better:
            other.trial.history = best.trial.history
            best, before = other, after
    return best


def _other_ways(recipe: Recipe, reached: float) -> list[tuple[str, Recipe, float]]:
    """Ways to equalize that are tried beside the first one, which ``reached`` so many dB: what each is for, the recipe
    that has it, and how much less noise, in dB, is worth it."""
    ways = [("for 8-bit activations", recipe, BETTER_DB)]
    # 16 bits need no centres, and these cost biases; channels that all fill the range leave new data no room.
    if recipe.stays_in_8_bits and reached < ENOUGH_DB:
        ways.append(("for 8-bit activations, centered", replace(recipe, center=True), 0.0))
    return ways


class Start:
    """What is decided before anything is measured, by one way to equalize: scales, weights to nearest, two types each.

    Attributes:
        equalized: whether scale moved anywhere.
        parted: tensors that got a scale of their own, although they are joined with others.
        plan: with 16 bits for all activations.
        narrow: the types that the recipe asks for.
        widest: those of 16 bits, but for what layers read by tables.
    """

    def __init__(
        self,
        graph: Graph,
        places: dict[str, str],
        seen: Statistics,
        recipe: Recipe,
        show: Progress,
        *,
        by_noise: bool = False,
    ) -> None:
        channels, observers, given = seen.channels, dict(seen.observers), graph
        if recipe.equalize:
            graph, channels = _equalized(graph, seen, observers, recipe, by_noise)
        self.equalized = graph is not given
        graph, self.parted = part_from_joins(graph, seen.samples, observers, recipe)
        tables, levels = staircases(graph, places, observers, recipe)
        self.narrow, wide = (types | levels for types in activation_types(graph, observers, recipe, seen.count))
        few = read_by_tables(graph, recipe)
        self.widest = {name: self.narrow[name] if name in few else type for name, type in wide.items()}
        self.plan = Plan(graph, wide, _weights(graph, channels, recipe), _biases(graph), tables, _reals(graph, recipe))
        self.movable = _movable(graph, self.plan.types, recipe)
        fit_most = recipe.effort == "best" or seen.shortest is not None
        fitted, held = part(seen.samples[: recipe.measured_samples], fit_most=fit_most)
        more = seen.samples[recipe.measured_samples :]
        self.trial = Trial(fitted, more, Yardstick(graph, held, seen.shortest), recipe, show)
        self.widening = Widening(graph, self.trial, self.widest, self.movable)

    def in_8_bits(self) -> float:
        """Signal to noise in dB with the types that the recipe asks for: how far from the goal this way begins.

        Weights that are rounded again for these types count as if they were exact.
        """
        return self._reached(self._in_8_bits(self.plan))

    def _in_8_bits(self, plan: Plan) -> Plan:
        """``plan`` with the types that the recipe asks for, and weights that will be rounded for these still exact."""
        plan = replace(plan, types=self.narrow)
        if not self.trial.recipe.rounds_for_8_bits:
            return plan
        return with_fine(plan, [name for name, weight in plan.weights.items() if weight.rounds_anew])

    def _reached(self, plan: Plan) -> float:
        """Signal to noise in dB with biases to match.

        Biases are corrected on the middles of samples: good enough to tell one way from the other, for less time.
        """
        trial = self.trial
        known = list(trial.history)
        middles = [trial.yardstick.parts.middle(sample) for sample in trial.fitted]
        if not all(map(is_, middles, trial.fitted)):  # else the float network's means are those of what follows
            trial = Trial(middles, [], trial.yardstick, trial.recipe, trial.show)
        found = trial.yardstick.measure(trial.corrected(plan))
        self.trial.history = known  # what was tried here is not what is finished
        return found

    def finish(self) -> Plan:
        """Everything decided."""
        if self.parted:
            apart = f"{len(self.parted)} tensors that are joined with much larger ones"
            self.trial.history.append(Decision("scales of their own", True, detail=apart))
        plan = self._finished()
        reached = self.trial.yardstick.measure(plan)
        return replace(plan, decisions=(*self.trial.history, Decision("all", True, after=round(reached, 2))))

    def _finished(self) -> Plan:
        trial, recipe = self.trial, self.trial.recipe
        plan = trial.corrected(self.plan) if recipe.effort == "fast" else _choose_weights(self.plan, trial)
        plan = trial.reestimated(plan)
        plan = _refined_for_shortest(plan, trial)
        plan = self._widened(self._narrowed(plan), recipe.target_sqnr)
        plan = trial.reestimated(plan)
        if recipe.effort != "best":
            return plan
        if recipe.target_sqnr is None:
            return trial.tuned(plan, self.movable)
        before = trial.yardstick.measure(plan)
        fewer = self._widened(replace(plan, types=self.narrow), min(before, recipe.target_sqnr) - SPARED_DB)
        fewer = trial.tuned(fewer, self.movable)
        after = trial.yardstick.measure(fewer)
        enough = after >= min(before, recipe.target_sqnr) - TOLERATED_DB
        trial.note("fewer activations in 16 bits", enough, before, after, wide_share(fewer))
        return fewer if enough else trial.tuned(plan, self.movable)

    def _narrowed(self, plan: Plan) -> Plan:
        """``plan`` in the types that the recipe asks for; if nothing widens, with copies of channels that need them.

        Best effort does this, where 8 bits leave much noise, and copies less.
        """
        trial, narrow = self.trial, replace(plan, types=self.narrow)
        if not trial.recipe.stays_in_8_bits:
            return narrow
        plan = self._in_8_bits(plan)
        before = self._reached(plan)
        if before >= ENOUGH_DB:
            return narrow
        group_of = ties(plan.graph)
        noise = group_noise(plan, trial.yardstick, group_of, trial.show, Probe())
        copies = choose_copies(narrow, {group: found for group, (found,) in noise.items()})
        if not copies:
            return narrow
        after = self._reached(split(plan, copies))
        better = after > before + BETTER_DB
        trial.note("copies of channels", better, before, after, f"of {len(copies)} tensors")
        return split(narrow, copies) if better else narrow

    def _widened(self, plan: Plan, target: float | None) -> Plan:
        """``plan`` with 16 bits for what ``target`` dB need, if they are given, and biases to match."""
        trial = self.trial
        if target is not None:
            plan = self.widening.reach(plan, target)
        if plan.types == self.plan.types:
            return plan
        plan = trial.corrected(plan)
        return trial.compensated(plan) if trial.recipe.effort == "best" else plan


def _movable(graph: Graph, types: dict[str, TensorType], recipe: Recipe) -> set[str]:
    """The tensors whose scales may become any number: not powers of two, and not one for the whole network."""
    group_of = ties(graph)
    schemes = activation_schemes(graph, group_of, recipe)
    free = {
        group for group, scheme in schemes.items() if scheme.form != "power_of_two" and scheme.granularity != "network"
    } - set(given_types(graph, group_of))
    return {name for name in types if group_of.get(name) in free}


def _choose_weights(plan: Plan, trial: Trial) -> Plan:
    """Correct biases; where int8 weights are what limits accuracy, round them anew, and give some of them more bits."""
    if not plan.weights:
        return plan
    recipe, yardstick, target = trial.recipe, trial.yardstick, trial.recipe.target_sqnr or 0.0
    nearest = trial.corrected(plan)
    before = yardstick.measure(nearest)
    if before >= target + WEIGHT_MARGIN_DB:
        return nearest
    probe = Probe(by_channel=True)
    noise = _refinable(nearest, weight_noise(nearest, yardstick, trial.show, probe)) if recipe.fine_weights else {}
    best = nearest
    if recipe.compensate and recipe.correct_bias:
        start = refine_small(nearest, noise)
        anew = trial.correct(replace(start, biases=plan.biases), compensate=True)
        best = trial.better("compensated rounding", nearest, anew, _fine_share(anew))
    if noise and yardstick.measure_whole(best) < target - TOLERATED_DB:
        fine = refine(nearest, noise, yardstick, target + REFINED_DB, trial.correct)
        trial.note("weights in 14 bits", True, before, yardstick.measure(fine), _fine_share(fine))
        return fine
    return best


def _refined_for_shortest(plan: Plan, trial: Trial) -> Plan:
    """``plan`` with 14 bits for the weights of a few layers, if of the shortest sample's noise they cause over half.

    Not where rows get scales when they run: these are most of the noise then, and nothing here makes them finer.
    """
    short, recipe = trial.yardstick.shortest, trial.recipe
    wanted = recipe.target_sqnr is not None and recipe.effort != "fast" and recipe.fine_weights
    if short is None or not wanted or "dynamic" in plan.reals.values():
        return plan
    goal, before = (recipe.target_sqnr or 0.0) - SHORTEST_SLACK_DB + HALF_DB, short.measure_whole(plan)
    # One sample tells less than the four or more that are held out otherwise.
    noise = _refinable(plan, weight_noise(plan, short, trial.show, Probe(24))) if before < goal else {}
    if not noise:
        return plan
    fine = refine(plan, noise, short, goal, parts=len(noise), share=SHARE_FOR_SHORTEST)
    trial.note("weights in 14 bits for the shortest sample", True, before, short.measure_whole(fine), _fine_share(fine))
    return fine


def _fine_share(plan: Plan) -> str:
    """How many layers' weights have 14 bits."""
    fine = sum(weight.grid is FINE and weight.values.dtype != np.float32 for weight in plan.weights.values())
    return f"14 bits for the weights of {fine} of {len(plan.weights)} layers" if fine else ""


def _refinable(plan: Plan, noise: dict[str, float]) -> dict[str, float]:
    """The noise of those layers whose weights are the int8 that nobody asked to be anything else."""
    return {name: value for name, value in noise.items() if plan.weights[name].scheme.plain}


def _equalized(
    graph: Graph, seen: Statistics, observers: dict[str, AnyObserver], recipe: Recipe, by_noise: bool
) -> tuple[Graph, dict[str, Channels]]:
    """Equalize, then observe anew, on the kept samples, the tensors that changed."""
    result = equalize(graph, seen.channels, center=recipe.center, by_noise=by_noise)
    if not result.moves:
        return graph, seen.channels
    channels = dict(seen.channels)
    for name, (offset, divisor) in result.moves.items():
        if name in channels:
            channels[name] = channels[name].moved(offset, divisor)
    changed = set(result.moves) & makes_values(graph)
    again = observe(result.graph, seen.samples, changed, recipe.observer)
    for name in changed:
        observers[name] = at_least(again[name], channels.get(name))
    return result.graph, channels


def _reals(graph: Graph, recipe: Recipe) -> dict[str, Arithmetic]:
    """How weighted nodes that take float32 multiply, by the node's output."""
    found = {node.output: recipe.layer_arithmetic(node) for node in graph.nodes if isinstance(node.op, ops.WEIGHTED)}
    return {name: arithmetic for name, arithmetic in found.items() if arithmetic != "integer"}


def _weights(graph: Graph, channels: dict[str, Channels], recipe: Recipe) -> dict[str, QuantizedWeight]:
    """The integer weight of every weighted node, by the node's output."""
    nodes = {node.output: node for node in graph.nodes if isinstance(node.op, ops.WEIGHTED)}
    schemes = {name: recipe.weight_scheme(node) for name, node in nodes.items()}
    if not recipe.correct_bias and any(scheme.rounding == "learned" for scheme in schemes.values()):
        raise RecipeError(
            "WeightScheme(rounding='learned') learns along with the correction of biases; use correct_bias=True, or "
            "rounding='half_even'"
        )
    values = {name: graph.constants[node.inputs[1]] for name, node in nodes.items()}
    shared = network_scales(values, schemes)
    moments = {
        name: _moment(values[name], channels[node.inputs[0]].moment(), getattr(node.op, "groups", 1))
        for name, node in nodes.items()
        if node.inputs[0] in channels and schemes[name].range in ("mse", "cosine")
    }
    return {
        name: unquantized(values[name], node, half=recipe.layer_arithmetic(node) == "float16")
        if recipe.layer_arithmetic(node) in ("float", "float16")
        else quantize_weight(values[name], moments.get(name), schemes[name], name=name, network_scale=shared.get(name))
        for name, node in nodes.items()
    }


def _moment(weight: np.ndarray, moment: np.ndarray, groups: int) -> np.ndarray | None:
    """The second moment of the input that each weight multiplies: (O, C / groups, 1...)."""
    if moment.size != weight.shape[1] * groups:
        return None
    rows = np.repeat(moment.reshape(groups, weight.shape[1]), weight.shape[0] // groups, axis=0)
    return rows.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.ndim - 2))


def _biases(graph: Graph) -> dict[str, np.ndarray]:
    return {
        node.output: graph.constants[node.inputs[2]]
        for node in graph.nodes
        if isinstance(node.op, ops.WEIGHTED) and len(node.inputs) > 2
    }
