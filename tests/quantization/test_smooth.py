"""Smoothing: the same function in real arithmetic, and less noise where a norm leaves a few large channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kvant
from kvant import ActivationScheme, Recipe, Rule
from kvant.capture import Executor, capture, prepare
from kvant.graph import Graph, ops
from kvant.quantization.progress import Progress
from kvant.quantization.smooth import smooth
from kvant.quantization.statistics import Statistics, collect
from networks import sqnr_db

pytestmark = pytest.mark.usefixtures("one_thread")
LARGE = [3, 17]


class Block(nn.Module):
    """A norm that two layers read, and perhaps a residual sum; two of its 32 channels are twenty times as large.

    As in trained networks, the layers make little of these two.
    """

    def __init__(self, residual: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.gate, self.down = (
            nn.LayerNorm(32),
            nn.Linear(32, 48),
            nn.Linear(32, 48),
            nn.Linear(48, 32),
        )
        self.residual = residual
        self.norm.weight.data[LARGE] = 20.0
        self.norm.bias.data = torch.randn(32) * 0.1
        for layer in (self.up, self.gate):
            layer.weight.data[:, LARGE] /= 20.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        y = self.down(torch.relu(self.up(x)) * torch.sigmoid(self.gate(x)))
        return x + y if self.residual else y


def data(count: int = 8) -> list[Tensor]:
    return list(torch.randn(count, 1, 24, 32, generator=torch.Generator().manual_seed(1)))


def smoothed(model: nn.Module, **chosen: Any) -> tuple[Graph, Statistics, Graph, Statistics]:
    samples = data()
    graph = prepare(capture(model.eval(), (samples[0],), {}))
    seen = collect(graph, [[sample] for sample in samples], "histogram", 16, Progress(False))
    return graph, seen, *smooth(graph, seen, Recipe(**chosen))[:2]


@pytest.mark.parametrize("arithmetic", ["integer", "dynamic"])
@pytest.mark.parametrize("residual", [False, True])
def test_the_function_stays_the_same(residual: bool, arithmetic: str) -> None:
    before, _, after, _ = smoothed(Block(residual), arithmetic=arithmetic)
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(Executor(after).run([x]), Executor(before).run([x]), rtol=1e-4, atol=1e-4)
    norms = [node for node in after.nodes if isinstance(node.op, ops.LayerNorm)]
    assert len(norms) == 1 + residual


def test_what_a_channel_is_divided_by_is_in_its_columns() -> None:
    before, _, after, _ = smoothed(Block(True))
    norm, divided = (node for node in after.nodes if isinstance(node.op, ops.LayerNorm))
    gamma, beta = (after.constants[name] for name in norm.inputs[1:])
    divisor = gamma / after.constants[divided.inputs[1]]
    np.testing.assert_allclose(after.constants[divided.inputs[2]], beta / divisor, rtol=1e-6)
    assert set(np.argsort(divisor)[-2:]) == set(LARGE)
    weights = {node.output: node.inputs[1] for node in before.nodes if isinstance(node.op, ops.Linear)}
    readers = [node for node in after.nodes if divided.output in node.inputs]
    assert len(readers) == 2
    for node in readers:
        wanted = before.constants[weights[node.output]] * divisor
        np.testing.assert_allclose(after.constants[node.inputs[1]], wanted, rtol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_statistics_are_those_of_the_new_tensor(residual: bool) -> None:
    _, seen, after, moved = smoothed(Block(residual))
    again = collect(after, seen.samples, "histogram", 16, Progress(False))
    assert set(again.observers) == set(moved.observers)
    for name, observer in again.observers.items():
        assert moved.observers[name].low == pytest.approx(observer.low, rel=1e-4)
        assert moved.observers[name].high == pytest.approx(observer.high, rel=1e-4)
    for name, channels in again.channels.items():
        np.testing.assert_allclose(moved.channels[name].high, channels.high, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arithmetic", ["integer", "dynamic"])
def test_large_channels_cost_less(arithmetic: str) -> None:
    model, samples = Block(False).eval(), data()
    held = torch.randn(8, 24, 32, generator=torch.Generator().manual_seed(3))

    def measured(equalize: bool) -> float:
        recipe = Recipe(arithmetic=arithmetic, equalize=equalize, target_sqnr=None)
        quantized = kvant.quantize(model, samples[0], calibration=samples, recipe=recipe)
        reference = kvant.QuantizedModel(quantized.graph, backend="reference")
        np.testing.assert_array_equal(quantized(held.numpy()), reference(held.numpy()))
        return sqnr_db(model(held), quantized(held))

    assert measured(True) > measured(False) + 4


@pytest.mark.parametrize(
    "chosen",
    [
        {"equalize": False},
        {"arithmetic": "weight_only"},
        {"activations": ActivationScheme(16)},
        {"wide": ("norm",)},
        {"rules": (Rule("norm", activations=ActivationScheme(16)),)},
        {"rules": (Rule("up", arithmetic="dynamic"),)},
    ],
    ids=str,
)  # fmt: skip
def test_nothing_moves_where_nothing_is_rounded_to_8_bits(chosen: dict[str, Any]) -> None:
    before, seen, after, same = smoothed(Block(True), **chosen)
    assert after is before and same is seen


def test_nothing_moves_where_it_does_not_help() -> None:
    """Channels and columns are alike already."""
    model = Block(False)
    model.norm.weight.data = torch.ones(32)
    model.norm.bias.data = torch.zeros(32)
    for layer in (model.up, model.gate):
        layer.weight.data = torch.where(torch.rand(48, 32) < 0.5, -1.0, 1.0)
    before, seen, after, same = smoothed(model, arithmetic="dynamic")
    assert after is before and same is seen
