"""The quantized network in float arithmetic: fast, close to the integers, and open to measurement at every tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kvant.capture import Executor
from kvant.graph import Graph, TensorType, ops
from kvant.quantization.statistics import Sample
from kvant.quantization.ties import makes_values
from kvant.quantization.weights import QuantizedWeight


@dataclass
class Plan:
    """Everything that has been decided about a graph so far.

    Attributes:
        graph: float graph, prepared and equalized.
        types: integer type of every float activation.
        weights: integer weight of every weighted node, by the node's output.
        biases: float32 bias of every weighted node that has one, by the node's output.
    """

    graph: Graph
    types: dict[str, TensorType]
    weights: dict[str, QuantizedWeight]
    biases: dict[str, np.ndarray]

    def simulated_graph(self) -> Graph:
        """The float graph whose weights are the reals that the integers stand for."""
        graph = self.graph.copy()
        for index, node in enumerate(graph.nodes):
            if not isinstance(node.op, ops.WEIGHTED):
                continue
            inputs = [
                node.inputs[0],
                graph.add_constant(f"{node.output}.weight", self.weights[node.output].dequantize()),
            ]
            if node.output in self.biases:
                inputs.append(graph.add_constant(f"{node.output}.bias", self.biases[node.output]))
            graph.nodes[index] = replace(node, inputs=tuple(inputs))
        graph.replace_nodes(graph.nodes)
        return graph


def fake_quantize(values: torch.Tensor, type: TensorType) -> torch.Tensor:
    """``values`` rounded to what the integers of ``type`` can stand for; float32, same shape."""
    if type.quantization is None:
        return values
    low, high = type.integer_range()
    zero = type.quantization.zero_point
    scale = type.quantization.scale[0]
    return torch.div(values, scale).round_().clamp_(low - zero, high - zero).mul_(scale)


class Simulation:
    """Runs a plan in float arithmetic, rounding every activation where the integer network rounds it."""

    def __init__(self, plan: Plan) -> None:
        self.types = plan.types
        self.rounded = makes_values(plan.graph)
        self.executor = Executor(plan.simulated_graph())

    def run(self, sample: Sample) -> list[torch.Tensor]:
        """The outputs for one sample."""
        return self.executor.run(sample, self._round)

    def _round(self, name: str, values: torch.Tensor) -> torch.Tensor | None:
        return fake_quantize(values, self.types[name]) if name in self.rounded else None


# Channels of less power than this share of the mean count as if they had it: silence is not worth bits.
_QUIET = 0.02


def noise_ratio(reference: Sequence[list[torch.Tensor]], outputs: Sequence[list[torch.Tensor]]) -> float:
    """Noise power over signal power, channel by channel, so that weak channels count as much as strong ones.

    Pooled over samples; the mean over channels (axis 1) and over the float outputs.
    """
    powers = channel_powers(reference)
    ratios = []
    for index, power in powers.items():
        noise = sum(_power((got[index] - want[index]).detach()) for got, want in zip(outputs, reference, strict=True))
        ratios.append(float((noise / power).mean()))
    return sum(ratios) / max(len(ratios), 1)


def channel_powers(reference: Sequence[list[torch.Tensor]]) -> dict[int, torch.Tensor]:
    """For each float output its power in each channel, float64 (C), summed over samples and never nearly zero."""
    powers = {}
    for index, first in enumerate(reference[0]):
        if first.is_floating_point():
            power = torch.stack([_power(sample[index]) for sample in reference]).sum(0)
            powers[index] = power.clamp_min(max(_QUIET * float(power.mean()), 1e-30))
    return powers


def _power(values: torch.Tensor) -> torch.Tensor:
    """float64 (C): sum of squares of each channel (axis 1); (1) where there is no such axis."""
    if values.dim() < 2:
        return values.double().square().sum().reshape(1)
    others = [axis for axis in range(values.dim()) if axis != 1]
    return values.double().square().sum(others)


def decibels(ratio: float) -> float:
    """Signal to noise in dB from noise over signal.

    >>> decibels(0.01)
    20.0
    """
    return -10 * math.log10(max(ratio, 1e-30))


def float_outputs(graph: Graph, samples: Sequence[Sample]) -> list[list[torch.Tensor]]:
    """What the float graph gives for each sample."""
    executor = Executor(graph)
    return [executor.run(sample) for sample in samples]


def measure(plan: Plan, samples: Sequence[Sample], references: Sequence[list[torch.Tensor]]) -> float:
    """Signal to noise in dB at the outputs of ``plan``, channel by channel, against ``float_outputs``."""
    simulation = Simulation(plan)
    return decibels(noise_ratio(references, [simulation.run(sample) for sample in samples]))
