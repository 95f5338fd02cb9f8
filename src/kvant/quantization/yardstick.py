"""How much noise a quantized network adds to the float network's outputs: the measure behind every decision."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from kvant.capture import Executor
from kvant.graph import Graph
from kvant.quantization.simulate import Plan, Simulation
from kvant.quantization.statistics import Sample

# Samples weaker than this share of the median count as if they had it, and channels than this share of the mean:
# silence is not worth bits.
_QUIET_SAMPLE = 0.25
_QUIET_CHANNEL = 0.02
# A channel's power from few values is little known: that many values of mean power are added to them.
_PRIOR_VALUES = 32


class Yardstick:
    """Samples, the float network's outputs for them, and what noise counts for there.

    Every sample counts alike, and so does every channel (axis 1) of every float output, however weak its signal.

    Attributes:
        samples: lists of tensors in the order of the graph's inputs.
        wanted: the float network's outputs for each sample.
    """

    def __init__(self, graph: Graph, samples: Sequence[Sample]) -> None:
        executor = Executor(graph)
        self.samples = list(samples)
        self.wanted = [executor.run(sample) for sample in self.samples]
        self._factors = {
            index: _factors([outputs[index] for outputs in self.wanted])
            for index, first in enumerate(self.wanted[0])
            if first.is_floating_point()
        }

    def measure(self, plan: Plan) -> float:
        """Signal to noise in dB at the outputs of the network as ``plan`` has it."""
        simulation = Simulation(plan)
        return decibels(sum(self.noise(at, simulation.run(sample)) for at, sample in enumerate(self.samples)))

    def noise(self, at: int, outputs: Sequence[torch.Tensor]) -> float:
        """Noise over signal that these outputs for sample ``at`` add; over all samples it sums up to the ratio."""
        parts = [
            float((factors[at].double().square() * _power(outputs[index] - self.wanted[at][index])).sum())
            for index, factors in self._factors.items()
        ]
        return sum(parts) / max(len(parts), 1)

    def random_direction(self, at: int, outputs: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        """<v, outputs> of sample ``at`` for a random v; the mean of its square is ``noise`` for noise in outputs."""
        parts = []
        for index, factors in self._factors.items():
            output = outputs[index]
            shape = (1, -1, *[1] * (output.dim() - 2)) if output.dim() > 1 else (1,)
            parts.append((output * factors[at].reshape(shape) * torch.randn(output.shape, generator=generator)).sum())
        return torch.stack(parts).sum().div(len(parts) ** 0.5)


def _factors(wanted: list[torch.Tensor]) -> list[torch.Tensor]:
    """For one output, by sample, what noise in each channel is multiplied by: float32 (C)."""
    powers = torch.stack([_power(output) for output in wanted])  # (samples, C)
    count = wanted[0].numel() / powers.shape[1]
    levels = powers.mean(1)
    levels = levels.clamp_min(max(_QUIET_SAMPLE * float(levels.median()), 1e-30))
    channels = (powers / levels[:, None]).sum(0)
    known = count * len(wanted) / (count * len(wanted) + _PRIOR_VALUES)
    channels = known * channels + (1 - known) * channels.mean()
    channels = channels.clamp_min(max(_QUIET_CHANNEL * float(channels.mean()), 1e-30))
    return [(level * channels * len(channels)).rsqrt().float() for level in levels]


def _power(values: torch.Tensor) -> torch.Tensor:
    """float64 (C): sum of squares of each channel (axis 1); (1) where there is no such axis."""
    values = values.detach().double()
    if values.dim() < 2:
        return values.square().sum().reshape(1)
    return values.square().sum([axis for axis in range(values.dim()) if axis != 1])


def decibels(ratio: float) -> float:
    """Signal to noise in dB from noise over signal.

    >>> decibels(0.01)
    20.0
    """
    return -10 * math.log10(max(ratio, 1e-30))
