"""Batch norms estimated again: channels have float's means and spreads, where scales are free, and only if it helps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import kvant
from kvant import ActivationScheme, Recipe, WeightScheme
from kvant.capture import Executor, capture, prepare
from kvant.graph import Graph, ops
from kvant.quantization.decide import make_plan
from kvant.quantization.progress import Progress
from kvant.quantization.reestimate import MOST, reestimated, reestimates
from kvant.quantization.simulate import Plan, Simulation
from kvant.quantization.statistics import Sample, collect
from kvant.runtime import QuantizedModel
from networks import settle_batch_norm, sqnr_db

pytestmark = pytest.mark.usefixtures("one_thread")
SHOW = Progress(False)


class Stack(nn.Module):
    """Two convolutions with batch norm whose channels differ in size, one without a clamp, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)).relu().mean((2, 3)))


def images(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 3, 12, 12, generator=generator) * 2 for _ in range(count)]


@pytest.fixture(scope="module")
def stack(one_thread: None) -> nn.Module:
    return settle_batch_norm(Stack(), images(8, seed=5))


PLAIN = {"target_sqnr": None, "equalize": False, "correct_bias": False, "fine_weights": False}


def planned(model: nn.Module, **chosen: object) -> tuple[Graph, Plan, list[Sample]]:
    """The captured graph, the plan of rounding to nearest, and the samples."""
    data = [[image] for image in images(8)]
    graph = prepare(capture(model, tuple(data[0]), {}))
    seen = collect(graph, data, "histogram", 8, SHOW)
    return graph, make_plan(graph, seen, Recipe(**(PLAIN | chosen)), SHOW), data  # type: ignore[arg-type]


def spreads(executor: Executor, plan: Plan | None, samples: list[Sample]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and deviation of each channel of unclamped layers' outputs, over all samples; as a plan rounds, if given."""
    found: dict[str, list[np.ndarray]] = {}
    layers = [node for node in executor.graph.nodes if isinstance(node.op, ops.WEIGHTED) and node.op.clamp is None]
    names = {node.output for node in layers}
    rounds = None if plan is None else Simulation(plan)._round

    def watch(name: str, values: torch.Tensor) -> torch.Tensor | None:
        if name in names:
            channels = values if values.dim() == 2 else values.movedim(1, -1).flatten(0, -2)
            found.setdefault(name, []).append(channels.double().numpy())
        return None if rounds is None else rounds(name, values)

    for sample in samples:
        executor.run(sample, watch)
    return {name: (np.concatenate(rows).mean(0), np.concatenate(rows).std(0)) for name, rows in found.items()}


@pytest.mark.parametrize("bits", [2, 4])
def test_channels_have_the_means_and_spreads_of_the_float_network(stack: nn.Module, bits: int) -> None:
    graph, plan, samples = planned(stack, weights=WeightScheme(bits), activations=ActivationScheme(16))
    wanted = spreads(Executor(graph), None, samples)
    before = spreads(Executor(plan.simulated_graph()), plan, samples)
    anew = reestimated(plan, samples, SHOW)
    after = spreads(Executor(anew.simulated_graph()), anew, samples)
    assert wanted.keys() == after.keys() and len(wanted) >= 1
    for name, (mean, spread) in wanted.items():
        np.testing.assert_allclose(after[name][0], mean, atol=0.01 * spread.max())
        np.testing.assert_allclose(after[name][1], spread, rtol=0.02)
        assert np.abs(before[name][1] / spread - 1).max() > 0.03
    assert all(anew.weights[name].values is plan.weights[name].values for name in plan.weights)


@pytest.mark.parametrize("scheme", [WeightScheme(4, "power_of_two"), WeightScheme(4, granularity="tensor")])
def test_scales_that_are_not_free_stay(stack: nn.Module, scheme: WeightScheme) -> None:
    _, plan, samples = planned(stack, weights=scheme)
    anew = reestimated(plan, samples, SHOW)
    for name, weight in plan.weights.items():
        np.testing.assert_array_equal(anew.weights[name].scale, weight.scale)


def test_a_channel_that_is_always_the_same_is_left_alone(stack: nn.Module) -> None:
    dead = Stack()
    dead.load_state_dict(stack.state_dict())
    dead.second[0].weight.data[3] = 0
    _, plan, samples = planned(dead.eval(), weights=WeightScheme(2))
    anew = reestimated(plan, samples, SHOW)
    for name, weight in plan.weights.items():
        ratio = anew.weights[name].scale / weight.scale
        assert np.isfinite(ratio).all() and (ratio <= MOST * 1.001).all() and (ratio >= 0.999 / MOST).all()


def test_it_is_tried_with_few_bits_and_taken_only_where_that_is_less_noise(stack: nn.Module) -> None:
    data, x = images(16), torch.cat(images(8, seed=9))

    def quantize(bits: int, **chosen: object) -> QuantizedModel:
        recipe = Recipe(WeightScheme(bits), **chosen)  # type: ignore[arg-type]
        return kvant.quantize(stack, data[0], calibration=data, recipe=recipe)

    few, fast, eight = quantize(2), quantize(2, effort="fast"), quantize(8)
    steps = [each for each in few.decisions if each.step == "batch-norm re-estimation"]
    assert len(steps) == 2
    assert all(each.taken == (each.after > each.before) for each in steps)
    assert not any(each.step == "batch-norm re-estimation" for each in (*fast.decisions, *eight.decisions))
    assert sqnr_db(stack(x), few(x)) > sqnr_db(stack(x), fast(x)) - 0.5
    reference = QuantizedModel(few.graph, backend="reference")
    np.testing.assert_array_equal(reference(x.numpy()), few(x.numpy()))


def test_few_bits_anywhere(stack: nn.Module) -> None:
    for chosen, expected in (
        ({}, False), ({"weights": WeightScheme(16)}, False), ({"weights": WeightScheme(3, "log2")}, True),
        ({"activations": ActivationScheme(4)}, True),
    ):  # fmt: skip
        assert reestimates(planned(stack, **chosen)[1]) == expected
