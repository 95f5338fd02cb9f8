"""How much noise a quantized network adds to the float network's outputs: the measure behind every decision."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import fields

import torch

from kvant.capture import Executor
from kvant.graph import Graph
from kvant.quantization.parts import Parts
from kvant.quantization.simulate import Plan, Simulation, run_noting_choices
from kvant.quantization.statistics import Sample
from kvant.quantization.workers import in_order

# Samples weaker than the median count as if they had it, and channels weaker than this share of the mean power as if
# they had that: silence is not worth bits.
_QUIET_CHANNEL = 0.02
# Powers (float64) below this are those of nothing: outputs may be small, a signal they are all the same.
_SILENCE = 1e-36
# Weak channels may be noisier than the whole by this factor: 2 dB.
_CHANNEL_SLACK = 1.6
# Plans are measured again soon or never; holding many would hold many weights.
_REMEMBERED = 4
# A channel's power from few values is little known: that many values of mean power are added to them.
_PRIOR_VALUES = 32
# What is averaged over the fewest tokens may be noisier by this much.
SHORTEST_SLACK_DB = 6.0


class Yardstick:
    """Samples, the float network's outputs for them, and what noise counts for there.

    Two ratios of noise to signal are taken for every float output: over all its values, and the mean over its
    channels (axis 1), in which weak channels count as much as strong ones. The worst one decides, the second with some
    slack. Samples count by their power, but none by more than it has itself: one loud sample hides nothing. The
    shortest sample of tokens, if there is one, has a yardstick of its own, with more slack.

    Attributes:
        samples: lists of tensors in the order of the graph's inputs.
        wanted: the float network's outputs for each sample.
        parts: takes parts of samples, where gradients are wanted.
    """

    def __init__(self, graph: Graph, samples: Sequence[Sample], shortest: Sample | None = None) -> None:
        executor = Executor(graph)
        self.shortest = None if shortest is None else Yardstick(graph, [shortest])
        self.samples = list(samples)
        found = list(in_order(lambda sample: run_noting_choices(executor, sample), self.samples))
        self.wanted = [outputs for outputs, _ in found]
        self._choices = [choices for _, choices in found]
        self.parts = Parts(executor, self.samples[0])
        self._latest: deque[tuple[Plan, tuple[float, float]]] = deque(maxlen=_REMEMBERED)
        outputs = {
            index: [sample[index] for sample in self.wanted]
            for index, first in enumerate(self.wanted[0])
            if first.is_floating_point()
        }
        self._whole = {index: _factors(values, by_channel=False) for index, values in outputs.items()}
        self._channels = {index: _factors(values, by_channel=True) for index, values in outputs.items()}
        self._typical = [
            (index, _by_position(factors[index], values))
            for index, values in outputs.items()
            for factors in (self._whole, self._channels)
        ]

    def measure(self, plan: Plan) -> float:
        """Signal to noise in dB at the worst output of the network as ``plan`` has it, weak channels included."""
        whole, channels = self._noise(plan)
        found = decibels(max(whole, channels / _CHANNEL_SLACK))
        return found if self.shortest is None else min(found, self.shortest.measure(plan) + SHORTEST_SLACK_DB)

    def measure_whole(self, plan: Plan) -> float:
        """Signal to noise in dB at the worst output, over all its values."""
        return decibels(self._noise(plan)[0])

    def _noise(self, plan: Plan) -> tuple[float, float]:
        """Noise over signal at the worst output: over all values, and the mean over channels."""
        for known, noise in self._latest:
            if _same(known, plan):
                return noise
        noise = self._run(plan)
        self._latest.append((plan, noise))
        return noise

    def _run(self, plan: Plan) -> tuple[float, float]:
        simulation = Simulation(plan)
        whole, channels = dict.fromkeys(self._whole, 0.0), dict.fromkeys(self._channels, 0.0)

        def powers(at: int) -> dict[int, torch.Tensor]:
            outputs = simulation.run(self.samples[at], self._choices[at])
            return {index: _power(outputs[index] - self.wanted[at][index]) for index in whole}

        for at, found in enumerate(in_order(powers, range(len(self.samples)))):
            for index, noise in found.items():
                whole[index] += float((self._whole[index][at].double().square() * noise).sum())
                channels[index] += float((self._channels[index][at].double().square() * noise).sum())
        return max(whole.values(), default=0.0), max(channels.values(), default=0.0)

    def random_direction(self, at: int, outputs: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        """<v, outputs> of sample ``at`` for a random v: with noise for outputs, the mean of its square is that noise
        over the signal, channel by channel."""
        parts = []
        for index, factors in self._channels.items():
            output = outputs[index]
            shape = (1, -1, *[1] * (output.dim() - 2)) if output.dim() > 1 else (1,)
            parts.append((output * factors[at].reshape(shape) * torch.randn(output.shape, generator=generator)).sum())
        return torch.stack(parts).sum().div(len(parts) ** 0.5)

    def loss(self, outputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
        """Noise over signal of another sample, to be differentiated: over all values and over channels, added up.

        Args:
            outputs: what the quantized network gives.
            wanted: what the float network gives.
        """
        return torch.stack([_relative(outputs[at] - wanted[at], factors) for at, factors in self._typical]).sum()


def _same(one: Plan, other: Plan) -> bool:
    """Whether two plans surely run the same: equal types, and all else the same objects."""
    names = {field.name for field in fields(Plan)} - {"types", "decisions"}
    return all(getattr(one, name) is getattr(other, name) for name in names) and one.types == other.types


def _relative(wrong: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """The sum over channels of mean squares times ``factors`` (C); the mean factor where there are other channels."""
    if wrong.dim() < 2:
        return wrong.square().mean() * factors.sum()
    means = wrong.square().mean([axis for axis in range(wrong.dim()) if axis != 1])
    return (means * factors).sum() if len(means) == len(factors) else means.mean() * factors.sum()


def _by_position(factors: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the mean square of a channel is multiplied by, for the sum of squares of all samples by ``factors``."""
    counts = [output.numel() / len(each) for each, output in zip(factors, wanted, strict=True)]
    return torch.stack([each.square() * count for each, count in zip(factors, counts, strict=True)]).sum(0)


def _factors(wanted: list[torch.Tensor], by_channel: bool) -> list[torch.Tensor]:
    """For one output, by sample, what noise in each channel is multiplied by: float32 (C)."""
    powers = torch.stack([_power(output) for output in wanted])  # (samples, C)
    count = wanted[0].numel() / powers.shape[1]
    levels = powers.mean(1)
    levels = levels.clamp_min(max(float(levels.median()), _SILENCE))
    channels = (powers / levels[:, None]).sum(0)
    known = count * len(wanted) / (count * len(wanted) + _PRIOR_VALUES)
    mean = float(channels.mean())
    channels = known * channels + (1 - known) * mean if by_channel else torch.full_like(channels, mean)
    channels = channels.clamp_min(max(_QUIET_CHANNEL * mean, _SILENCE))
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
