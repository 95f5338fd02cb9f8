"""Bias correction: channels have the float network's means again, and which means those are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kvant import Recipe
from kvant.capture import capture, prepare
from kvant.quantization.correct import correct, float_means
from kvant.quantization.decide import make_plan
from kvant.quantization.progress import Progress
from kvant.quantization.simulate import Plan
from kvant.quantization.statistics import Sample, collect

pytestmark = pytest.mark.usefixtures("one_thread")
SHOW = Progress(False)


def planned(clamp: bool) -> tuple[Plan, list[Sample]]:
    """One layer whose weights are all a third too large, and its samples: means differ, most where values are large."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3, 1, 1)
    net = (nn.Sequential(layer, nn.ReLU()) if clamp else layer).eval()
    data = [[torch.rand(1, 3, 16, 16) * 2] for _ in range(6)]
    graph = prepare(capture(net, tuple(data[0]), {}))
    recipe = Recipe(target_sqnr=None, equalize=False, correct_bias=False, fine_weights=False)
    plan = make_plan(graph, collect(graph, data, "histogram", 6, SHOW), recipe, SHOW)
    ((name, weight),) = plan.weights.items()
    return replace(plan, weights={name: replace(weight, scale=weight.scale * np.float32(4 / 3))}), data


def outputs(plan: Plan, data: list[Sample], open_values: bool) -> tuple[np.ndarray, np.ndarray]:
    """The layer's channels in the float network and with the plan's weights and biases: values x channels."""
    ((name, weight),) = plan.weights.items()
    node = plan.graph.nodes[0]
    exact = plan.graph.constants[node.inputs[1]], plan.graph.constants[node.inputs[2]]
    low = -np.inf if open_values or node.op.clamp is None else node.op.clamp[0]
    found = []
    for values, bias in ((exact[0], exact[1]), (weight.dequantize(), plan.biases[name])):
        pixels = [
            nn.functional.conv2d(
                sample[0], torch.from_numpy(np.array(values)), torch.from_numpy(np.array(bias)), padding=1
            )
            for sample in data
        ]
        rows = torch.cat(pixels).movedim(1, -1).reshape(-1, len(bias)).double().numpy()
        found.append(np.maximum(rows, low))
    return found[0], found[1]


def typical_error(side: np.ndarray, true: np.ndarray, samples: int) -> float:
    """The largest over channels of the median over samples of the mean error."""
    return float(np.abs(np.median((side - true).reshape(samples, -1, side.shape[1]).mean(1), 0)).max())


@pytest.mark.parametrize("of_clamped", [False, True])
def test_means_are_those_of_the_float_network(of_clamped: bool) -> None:
    """Before the clamp exactly; behind it nearly, since the shift itself opens and closes the clamp for some."""
    plan, data = planned(clamp=True)
    fixed = correct(plan, data, float_means(plan.graph, data, of_clamped), SHOW, of_clamped=of_clamped)
    for open_values in (False, True):
        true, got = outputs(fixed, data, open_values)
        _, before = outputs(plan, data, open_values)
        error, lost = (typical_error(side, true, len(data)) for side in (got, before))
        if open_values != of_clamped:
            assert error < (0.3 if of_clamped else 0.02) * lost
        else:
            assert error > 0.02 * lost  # the other mean is not right at the same time


def test_without_a_clamp_both_are_the_same() -> None:
    plan, data = planned(clamp=False)
    plain, other = (
        correct(plan, data, float_means(plan.graph, data, wanted), SHOW, of_clamped=wanted) for wanted in (False, True)
    )
    for name, bias in plain.biases.items():
        np.testing.assert_array_equal(bias, other.biases[name])


def test_a_sample_unlike_the_others_moves_no_bias() -> None:
    """Of what reaches a hundred times as far, 8 bits clip most, and that says nothing about the others."""
    plan, data = planned(clamp=True)
    unlike = [*data, [data[0][0] * 100]]
    plain, moved = (correct(plan, each, float_means(plan.graph, each, False), SHOW) for each in (data, unlike))
    _, error = outputs(plain, data, open_values=True)
    true, other = outputs(moved, data, open_values=True)
    _, before = outputs(plan, data, open_values=True)
    assert typical_error(other, true, len(data)) < 0.2 * typical_error(before, true, len(data))
    assert np.abs(other - error).max() < 0.2 * np.abs(before - error).max()
