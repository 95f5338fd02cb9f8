"""The measure of noise: plain signal to noise, loud samples, weak channels, several outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kvant.capture import capture, prepare
from kvant.graph import Graph, Quantization, TensorType, ops
from kvant.quantization.simulate import Plan
from kvant.quantization.weights import QuantizedWeight
from kvant.quantization.yardstick import Yardstick, decibels


class Scale(nn.Module):
    """Each channel times its own number, as two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1, groups=4, bias=False)
        self.second = nn.Conv2d(4, 4, 1, groups=4, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.first(x), self.second(x)


def plan(errors: list[tuple[float, ...]]) -> tuple[Graph, Plan]:
    """Both convolutions multiply by 1; the plan multiplies by 1 plus an error for each channel."""
    model = Scale().eval()
    for weight in model.parameters():
        nn.init.ones_(weight)
    graph = prepare(capture(model, (torch.rand(1, 4, 8, 8),), {}))
    nodes = [node for node in graph.nodes if isinstance(node.op, ops.WEIGHTED)]
    weights = {
        node.output: QuantizedWeight(np.ones((4, 1, 1, 1), np.int8), np.float32(1) + np.array(error, np.float32))
        for node, error in zip(nodes, errors, strict=True)
    }
    exact = TensorType("int16", Quantization((2.0**-10,)))
    return graph, Plan(graph, dict.fromkeys(graph.activations(), exact), weights, {})


def pictures(*levels: float) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[level * (torch.randint(0, 2, (1, 4, 32, 32), generator=generator) * 2.0 - 1)] for level in levels]


def test_it_is_plain_signal_to_noise_of_the_worst_output() -> None:
    graph, rough = plan([(0.01,) * 4, (0.1,) * 4])
    yardstick = Yardstick(graph, pictures(1.0, 1.0))
    assert yardstick.measure(rough) == pytest.approx(20, abs=0.05)
    assert yardstick.measure_whole(rough) == pytest.approx(20, abs=0.05)


def test_a_plan_is_run_once_and_one_that_differs_anew() -> None:
    graph, rough = plan([(0.01,) * 4, (0.1,) * 4])
    yardstick = Yardstick(graph, pictures(1.0, 1.0))
    run, runs = yardstick._run, []
    yardstick._run = lambda each: runs.append(each) or run(each)  # type: ignore[assignment, method-assign, func-returns-value]
    first = yardstick.measure(rough)
    assert yardstick.measure(replace(rough, types=dict(rough.types))) == first and len(runs) == 1
    yardstick.measure_whole(rough)
    finer = {name: TensorType("int16", Quantization((2.0**-12,))) for name in rough.types}
    others = [replace(rough, types=finer), replace(rough, weights=dict(reversed(rough.weights.items())))]
    for other in others:
        yardstick.measure(other)
    assert [id(each) for each in runs] == [id(each) for each in (rough, *others)]


def test_a_weak_channel_counts_with_two_decibels_of_slack() -> None:
    graph, rough = plan([(0.0, 0.0, 0.0, 0.4), (0.0,) * 4])
    samples = pictures(1.0, 1.0)
    for sample in samples:
        sample[0][:, 3] *= 0.25
    yardstick = Yardstick(graph, samples)
    whole = (0.4 * 0.25) ** 2 / (3 + 0.25**2)
    assert yardstick.measure_whole(rough) == pytest.approx(decibels(whole), abs=0.05)
    # The mean over channels of noise over signal, with a little of the mean power added to each: 0.04 - 2 dB.
    assert yardstick.measure(rough) == pytest.approx(decibels(0.4**2 / 4 / 1.6), abs=0.8)


def test_one_loud_sample_does_not_hide_the_others() -> None:
    """Rounding noise is the same in every sample; a loud one among them must not make it look small."""
    graph, rough = plan([(0.0,) * 4, (0.0,) * 4])
    rough = replace(rough, types={name: TensorType("int16", Quantization((0.3,))) for name in rough.types})
    quiet = Yardstick(graph, pictures(1.0, 1.0, 1.0)).measure(rough)
    with_loud = Yardstick(graph, pictures(1.0, 1.0, 300.0)).measure(rough)
    assert with_loud == pytest.approx(quiet, abs=2.0)


def test_the_random_direction_agrees_with_the_measure() -> None:
    graph, rough = plan([(0.02, 0.05, 0.1, 0.2), (0.02, 0.05, 0.1, 0.2)])
    samples = pictures(1.0, 2.0)
    yardstick = Yardstick(graph, samples)
    generator = torch.Generator().manual_seed(1)
    noise = [[(torch.tensor([0.02, 0.05, 0.1, 0.2]).reshape(1, 4, 1, 1) * sample[0])] * 2 for sample in samples]
    effects = [
        sum(float(yardstick.random_direction(at, noise[at], generator)) ** 2 for at in range(2)) for _ in range(1000)
    ]
    channels = float(np.mean([0.02**2, 0.05**2, 0.1**2, 0.2**2]))
    assert np.mean(effects) == pytest.approx(channels, rel=0.1)
    assert yardstick.measure_whole(rough) == pytest.approx(decibels(channels), abs=0.1)
