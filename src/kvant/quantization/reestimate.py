"""Batch norms estimated again: every channel gets back the mean and the spread that it has in the float network.

A batch norm gives each channel the mean and the deviation that training wanted. Folded into the weights it does that
for the float network's sums. Those of few bits differ: rounded weights are shorter or longer, clipped inputs smaller.
Statistics of the quantized network instead of the float one's (Hubara et al. 2021, "Accurate Post Training Quantization
With Small Calibration Sets", batch normalization tuning) are, folded, a factor for each channel's scale and a bias:

    y' = (y - mean) * wanted deviation / deviation + wanted mean

Layers are looked at from first to last, each behind those that were mended before it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from kvant.capture import Executor, last_uses
from kvant.graph import Node, ops
from kvant.quantization.correct import beside, channel_axis, clamped, drop, without_clamp
from kvant.quantization.progress import Progress
from kvant.quantization.scales import safe
from kvant.quantization.simulate import Plan, fake_quantize
from kvant.quantization.statistics import Sample
from kvant.quantization.ties import makes_values
from kvant.quantization.weights import QuantizedWeight
from kvant.quantization.workers import of_each

# Channels are made so much weaker or stronger at most; beyond that few values tell what their spread is.
MOST = 2.0
Tensors = dict[str, torch.Tensor]


def reestimates(plan: Plan) -> bool:
    """Whether there are few bits anywhere: spreads of 8 bits differ by less than a hundredth."""
    few = any(weight.scheme.bits < 8 for weight in plan.weights.values())
    return few or any(type.quantization is not None and type.quantization.bits for type in plan.types.values())


def reestimated(plan: Plan, samples: list[Sample], show: Progress) -> Plan:
    """``plan`` with scales and biases by which its layers' channels have the means and spreads of the float network.

    Args:
        plan: all decided; its types say where the quantized network rounds.
        samples: lists of tensors in the order of the graph's inputs, all of them run in step.
    """
    return _Reestimation(plan, samples).run(show)


class _Reestimation:
    """The float network and the quantized one, node by node beside each other, on all samples."""

    def __init__(self, plan: Plan, samples: list[Sample]) -> None:
        self.plan = plan
        simulated = plan.simulated_graph()
        self.exact, self.rough = Executor(plan.graph), Executor(simulated)
        self.steps = list(zip(plan.graph.nodes, simulated.nodes, last_uses(plan.graph), strict=True))
        self.rounded = makes_values(plan.graph)
        self.weights, self.biases = dict(plan.weights), dict(plan.biases)
        self.bindings = [self.exact.bind(sample) for sample in samples]
        names = [entry.name for entry in plan.graph.inputs]
        self.true: list[Tensors] = [dict(zip(names, sample, strict=True)) for sample in samples]
        self.got = [{name: self._round(name, values) for name, values in sample.items()} for sample in self.true]

    def run(self, show: Progress) -> Plan:
        count = len(self.got)
        for node, rough, dead in show.track(self.steps, "estimating norms"):
            weighted = isinstance(node.op, ops.WEIGHTED)
            of_each(count, self._step, *map(without_clamp, (node, rough)) if weighted else (node, rough))
            factor, added = self._mended(node) if weighted else (None, None)
            of_each(count, self._close, node, factor, added, dead)
        return replace(self.plan, weights=self.weights, biases=self.biases)

    def _step(self, at: int, node: Node, rough: Node) -> None:
        self.true[at][node.output] = self.exact.step(node, self.true[at], self.bindings[at])
        self.got[at][node.output] = self.rough.step(rough, self.got[at], self.bindings[at])

    def _mended(self, node: Node) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What the channels of a weighted node's output are multiplied by, and what is added then."""
        weight = self.weights[node.output]
        if not _scales_freely(weight):
            return None, None
        axis = channel_axis(node)
        wanted, found = (_moments([each[node.output] for each in side], axis) for side in (self.true, self.got))
        known = (wanted[1] > 0) & (found[1] > 0)
        factor = torch.where(known, wanted[1] / found[1].clamp_min(1e-30), 1.0).clamp(1 / MOST, MOST).float()
        scale = safe(torch.from_numpy(weight.scale) * factor).numpy()
        factor = torch.from_numpy(scale / weight.scale)
        added = wanted[0].float() - factor * found[0].float()
        self.weights[node.output] = replace(weight, scale=scale)
        bias = self.biases.get(node.output, np.zeros(len(scale), np.float32))
        self.biases[node.output] = np.asarray(factor.numpy() * bias + added.numpy(), np.float32)
        return factor, added

    def _close(
        self, at: int, node: Node, factor: torch.Tensor | None, added: torch.Tensor | None, dead: list[str]
    ) -> None:
        true, got = self.true[at], self.got[at]
        values = got[node.output]
        if factor is not None and added is not None:
            values = values * beside(factor, node, values) + beside(added, node, values)
        if isinstance(node.op, ops.WEIGHTED):
            true[node.output], values = clamped(node, true[node.output]), clamped(node, values)
        got[node.output] = self._round(node.output, values)
        drop(true, dead)
        drop(got, dead)

    def _round(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return fake_quantize(values, self.plan.types[name]) if name in self.rounded else values


def _scales_freely(weight: QuantizedWeight) -> bool:
    """Whether each channel has a scale that may be any number."""
    scheme = weight.scheme
    of_channels = scheme.granularity in ("channel", "group") and scheme.form != "power_of_two"
    return of_channels and weight.values.dtype != np.float32


def _moments(values: list[torch.Tensor], axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel over all of ``values``: float64 (C)."""
    rows = torch.cat([each.movedim(axis, 0).flatten(1) for each in values], 1).double()
    return rows.mean(1), rows.std(1, correction=0)
