"""Tuning: weights, biases and scales learn together to give the float network's outputs, by gradient descent.

No labels are needed: the float network teaches (distillation; Hinton et al. 2015). Rounding has no slope; the gradient
passes it as if it were not there (straight-through; Bengio et al. 2013), scales of activations learn as Esser et al.
2020 (LSQ) have it, and what lies beyond a range passes nothing. Each step sees parts of a few samples, each on one
thread, so the result is the same on every number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from kvant.capture import Executor
from kvant.graph import Graph, TensorType, example_shapes, ops
from kvant.quantization.progress import Progress
from kvant.quantization.simulate import Plan, run_noting_choices
from kvant.quantization.statistics import Sample
from kvant.quantization.ties import makes_values, ties
from kvant.quantization.weights import QuantizedWeight
from kvant.quantization.workers import in_order
from kvant.quantization.yardstick import Yardstick
from kvant.runtime import count_macs

# Samples in one step.
BATCH = 4
STEPS = 320
# The budget in multiplications, forward and backward: time, but the same on every machine. Fewer than LEAST_STEPS do
# more harm than good.
BUDGET = 6e12
LEAST_STEPS = 40
# Signal to noise in dB that may be lost when this share of the steps is done, else the rest is not done: weights whose
# errors make up for each other lose more by the first ones that flip than steps win back.
LOST_DB = 3.0
TRIED = 0.1
# How far the largest step moves: weights and biases in steps of their grids, scales of activations and of
# weights' channels as a share of themselves.
WEIGHT_RATE = 0.003
BIAS_RATE = 0.006
SCALE_RATE = 0.0015
ROW_RATE = 0.003
# The part of the steps in which the rate rises; then it falls to nothing by a cosine.
_WARM_UP = 0.05
# How far a weight may lie from the integer it rounds to, where that is not the nearest and at the ends of the grid.
_REACH = 0.49


def tune(plan: Plan, samples: Sequence[Sample], yardstick: Yardstick, movable: Collection[str], show: Progress) -> Plan:
    """``plan`` after its weights, biases and scales of 8-bit activations learned on ``samples``.

    Args:
        plan: everything decided. A plan with staircases, through which nothing can learn, stays as it is, and so does
            one that is so large that the budget holds too few steps. One that loses much by the first of them gets
            no more.
        samples: lists of tensors in the order of the graph's inputs; large maps are seen in parts.
        yardstick: says what errors count for; of other samples.
        movable: the tensors whose scales may become any number.
    """
    steps = _steps(plan.graph, yardstick.parts.middle(samples[0]))
    if plan.tables or steps < LEAST_STEPS:
        return plan
    learner = _Learner(plan, yardstick, movable)
    generator = torch.Generator().manual_seed(0)
    order = _shuffled(len(samples), generator)
    least = yardstick.measure(plan) - LOST_DB
    for step in show.track(range(steps), "tuning"):
        if step == int(TRIED * steps) and yardstick.measure(learner.plan()) < least:
            break
        learner.step(
            [yardstick.parts.random(samples[next(order)], generator) for _ in range(BATCH)],
            _rate(step / steps),
        )
    return learner.plan()


def _rate(done: float) -> float:
    """The share of the largest rate, when this share of the steps is done."""
    return min(1.0, (done + 0.001) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))


def _steps(graph: Graph, part: Sample) -> int:
    """As many as the budget allows; backward costs twice what forward does."""
    given = sum(math.prod(shape) for shape in example_shapes(graph).values())
    share = sum(values.numel() for values in part) / max(given, 1)
    cost = 3 * BATCH * share * sum(each.count for each in count_macs(graph))
    return int(min(STEPS, BUDGET / max(cost, 1)))


def _shuffled(count: int, generator: torch.Generator) -> Iterator[int]:
    """Numbers below ``count`` without end, all of them before any comes again."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


class _Round(torch.autograd.Function):
    """Rounds to the integers low ... high times scale."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
        over = torch.div(values, scale)
        rounded = torch.round(over).clamp_(low, high).mul_(scale)
        ctx.save_for_backward(over, rounded, scale)
        ctx.middle, ctx.reach = (low + high) / 2, (high - low + 1) / 2
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        over, rounded, scale = ctx.saved_tensors
        inside = gradient.masked_fill((over - ctx.middle).abs_() > ctx.reach, 0)
        if not ctx.needs_input_grad[1]:
            return inside, None, None, None
        flat = gradient.reshape(-1)
        by_scale = torch.dot(flat, rounded.reshape(-1)) / scale - torch.dot(inside.reshape(-1), over.reshape(-1))
        return inside, by_scale.reshape(scale.shape), None, None


@dataclass
class _Parameter:
    """What Adam moves, and by how much what the network computes with changes when it changes."""

    value: torch.Tensor
    slope: torch.Tensor | float

    def follow(self, gradient: torch.Tensor | None) -> None:
        """Take the gradient by what the network computes with."""
        self.value.grad = None if gradient is None else gradient * self.slope


class _Learner:
    """Everything that learns, by the names of the tensors that layers write, and by groups of tied activations."""

    def __init__(self, plan: Plan, yardstick: Yardstick, movable: Collection[str]) -> None:
        self.start = plan
        self.yardstick = yardstick
        graph = plan.simulated_graph()
        self.rough, self.exact = Executor(graph), Executor(plan.graph)
        self.rounded = makes_values(plan.graph)
        self.group_of = ties(plan.graph)
        layers = {node.output: node for node in graph.nodes if isinstance(node.op, ops.WEIGHTED)}
        self.constants = {name: node.inputs[1:] for name, node in layers.items()}
        exact = plan.float_weights()
        self.weights = {
            name: _weight(plan.weights[name], exact[name])
            for name, node in layers.items()
            # torch has the weights of transposed convolutions in another order, made once.
            if _learns(plan.weights[name]) and not isinstance(node.op, ops.ConvTranspose)
        }
        self.biases = {name: _bias(plan.biases[name], plan.types.get(name)) for name in plan.biases}
        self.scales = {
            self.group_of[name]: _Parameter(torch.tensor(type.quantization.scale).log(), 0.0)
            for name, type in plan.types.items()
            if name in movable and name in self.rounded and type.dtype == "uint8" and type.quantization is not None
        }
        # Scale moves between layers this way: equalization that learns.
        self.rows = {
            name: _Parameter(torch.from_numpy(plan.weights[name].scale).log(), 1.0)
            for name in self.weights
            if plan.weights[name].scheme.granularity == "channel" and plan.weights[name].scheme.form != "power_of_two"
        }
        kinds = (
            (self.weights, WEIGHT_RATE), (self.rows, ROW_RATE), (self.biases, BIAS_RATE), (self.scales, SCALE_RATE)
        )  # fmt: skip
        groups = [
            {"params": [each.value for each in kind.values()], "lr": rate, "largest": rate}
            for kind, rate in kinds
            if kind
        ]
        self.adam = torch.optim.Adam(groups, betas=(0.9, 0.99))

    def step(self, parts: Sequence[Sample], rate: float) -> None:
        """Move everything by one step, ``rate`` times the largest one."""
        scales = {name: each.value.exp().requires_grad_() for name, each in self.scales.items()}
        for name, each in self.scales.items():
            each.slope = scales[name].detach()
        leaves = [*self._present(), *scales.values()]

        def gradients(part: Sample) -> tuple[torch.Tensor | None, ...]:
            wanted, choices = run_noting_choices(self.exact, part)

            def seen(name: str, values: torch.Tensor) -> torch.Tensor | None:
                return choices.get(name, self._round(name, values, scales))

            outputs = self.rough.run(part, seen, gradients=True)
            with torch.enable_grad():
                return torch.autograd.grad(self.yardstick.loss(outputs, wanted), leaves, allow_unused=True)

        sums: list[torch.Tensor | None] = [None] * len(leaves)
        for found in in_order(gradients, parts):
            sums = [_sum(before, more) for before, more in zip(sums, found, strict=True)]
        self._follow(leaves, sums)
        for group in self.adam.param_groups:
            group["lr"] = rate * group["largest"]
        self.adam.step()
        for name, each in self.rows.items():
            self.weights[name].slope = each.value.exp().reshape(-1, *[1] * (self.weights[name].value.dim() - 1))
        for name, each in self.weights.items():
            each.value.copy_(
                self.start.weights[name].grid.clamp(each.value.flatten(1), _REACH).reshape(each.value.shape)
            )

    def _follow(self, leaves: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]) -> None:
        """Give everything its gradient, from those by the leaves, which are what the network computes with."""
        parameters = [*self.weights.values(), *self.biases.values(), *self.scales.values()]
        for each, gradient in zip(parameters, gradients, strict=True):
            each.follow(gradient)
        for name, weight, gradient in zip(self.weights, leaves, gradients, strict=False):
            if name in self.rows and gradient is not None:
                self.rows[name].follow((gradient * weight.detach()).flatten(1).sum(1))

    def plan(self) -> Plan:
        """The plan as it is by now."""
        types = {name: self._type(self.group_of.get(name, name), type) for name, type in self.start.types.items()}
        weights = self.start.weights | {name: self._weight(name) for name in self.weights}
        return replace(self.start, types=types, weights=weights, biases=self._biases())

    def _present(self) -> list[torch.Tensor]:
        """Weights and biases as they are by now, in the network that is differentiated."""
        now = {self.constants[name][0]: self._weight(name).dequantize() for name in self.weights}
        now |= {self.constants[name][1]: bias for name, bias in self._biases().items()}
        for name, value in now.items():
            self.rough.set_constant(name, value)
        return list(self.rough.differentiate(now).values())

    def _biases(self) -> dict[str, np.ndarray]:
        return {name: (each.value * each.slope).numpy() for name, each in self.biases.items()}

    def _weight(self, name: str) -> QuantizedWeight:
        before, value = self.start.weights[name], self.weights[name].value
        integers = before.grid.nearest(value.reshape(len(value), -1)).numpy().astype(before.values.dtype)
        scale = self.rows[name].value.exp().numpy() if name in self.rows else before.scale
        return replace(before, values=integers.reshape(before.values.shape), scale=scale)

    def _type(self, group: str, type: TensorType) -> TensorType:
        if group not in self.scales or type.quantization is None:
            return type
        scale = (float(self.scales[group].value.exp()),)
        return replace(type, quantization=replace(type.quantization, scale=scale))

    def _round(self, name: str, values: torch.Tensor, scales: dict[str, torch.Tensor]) -> torch.Tensor | None:
        type = self.start.types[name] if name in self.rounded else None
        if type is None or type.quantization is None:
            return None
        low, high = (end - type.quantization.zero_point for end in type.integer_range())
        scale = scales.get(self.group_of[name], torch.tensor(type.quantization.scale))
        return _Round.apply(values, scale, low, high)  # type: ignore[no-any-return, no-untyped-call]


def _learns(weight: QuantizedWeight) -> bool:
    """Whether the values may become other ones: those of layers in float32 and of wished directions may not."""
    return weight.values.dtype != np.float32 and weight.scheme.rounding in ("half_even", "learned")


def _sum(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    return first if second is None else second if first is None else first + second


def _weight(weight: QuantizedWeight, exact: np.ndarray) -> _Parameter:
    """A float weight in steps of its grid, as near to ``exact`` as is rounded to the integers it has."""
    column = weight.scale.reshape(-1, *[1] * (exact.ndim - 1))
    over, values = torch.from_numpy(exact / column), torch.from_numpy(weight.values.astype(np.float32))
    there = weight.grid.nearest(over.flatten(1)).reshape(over.shape) == values
    near = torch.where(there, over, over.clamp(values - _REACH, values + _REACH))
    return _Parameter(near.float(), torch.from_numpy(column))


def _bias(bias: np.ndarray, type: TensorType | None) -> _Parameter:
    """A bias in the steps that 8 bits would have for what the layer writes."""
    unit = 1.0
    if type is not None and type.quantization is not None:
        low, high = type.integer_range()
        unit = type.quantization.scale[0] * (high - low) / 255
    return _Parameter(torch.from_numpy(bias / np.float32(unit)), unit)
