"""Equalization: the same function in real arithmetic, and channels that fill the range of the integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kvant.capture import Executor, capture, prepare
from kvant.graph import Graph
from kvant.quantization.channels import Channels
from kvant.quantization.equalize import Equalization, equalize
from kvant.quantization.progress import Progress
from kvant.quantization.statistics import Statistics, collect


def seeded(module: nn.Module) -> nn.Module:
    """Weights whose channels differ by orders of magnitude, biases that are not zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        scales = torch.exp(2 * torch.randn(parameter.shape[0], generator=generator))
        parameter.data = values * scales.reshape(-1, *[1] * (values.dim() - 1))
    return module.eval()


def equalized(module: nn.Module, *, center: bool = True) -> tuple[Graph, Statistics, Equalization]:
    x = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    graph = prepare(capture(module, (x,), {}))
    seen = collect(graph, [[x]], "minmax", 2, Progress(False))
    return graph, seen, equalize(graph, seen.channels, center=center)


class Separable(nn.Module):
    """Depthwise, then pointwise with nothing between, as in MobileNet-thin; the input travels through two concats."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(11, 11, 3, padding=1, groups=11, bias=False)
        self.pointwise = nn.Conv2d(11, 6, 1)
        self.other = nn.Conv2d(11, 4, 1, groups=1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.depthwise(torch.cat([torch.relu(self.first(x)), x], 1))
        return self.pointwise(y), self.other(y)


class Grouped(nn.Module):
    def __init__(self, padding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 4, 3, groups=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("module", [Separable(), Grouped(0), Grouped(1)], ids=["separable", "unpadded", "padded"])
def test_the_function_stays_the_same(module: nn.Module) -> None:
    graph, _, result = equalized(seeded(module))
    x = torch.randn(1, 3, 9, 14, generator=torch.Generator().manual_seed(2))
    for before, after in zip(Executor(graph).run([x]), Executor(result.graph).run([x]), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    assert result.moves


def test_statistics_move_as_the_tensors_do() -> None:
    graph, seen, result = equalized(seeded(Separable()))
    again = collect(result.graph, seen.samples, "minmax", 2, Progress(False))
    for name, (offset, divisor) in result.moves.items():
        moved, found = seen.channels[name].moved(offset, divisor), again.channels[name]
        for one, other in ((moved.low, found.low), (moved.high, found.high), (moved.moment(), found.moment())):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    assert graph.constants.keys() <= result.graph.constants.keys()


def test_between_depthwise_and_pointwise_all_channels_have_one_middle() -> None:
    _, seen, result = equalized(seeded(Separable()))
    again = collect(result.graph, seen.samples, "minmax", 2, Progress(False))
    channels = again.channels[next(name for name in result.moves if "depthwise" in name)]
    np.testing.assert_allclose(channels.high, -channels.low, rtol=1e-3, atol=1e-5)
    assert channels.high.max() == pytest.approx(1, rel=1e-3)


def test_what_only_depthwise_layers_read_has_equal_channels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 2, 1))
    _, seen, result = equalized(seeded(net))
    again = collect(result.graph, seen.samples, "minmax", 2, Progress(False))
    high = again.channels[next(iter(result.moves))].high
    np.testing.assert_allclose(high[high > 0], 1, rtol=1e-4)


def test_padding_and_clamps_keep_offsets_where_they_are() -> None:
    for net in (Grouped(1), nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 1))):
        _, _, result = equalized(seeded(net))
        assert all(not offset.any() for offset, _ in result.moves.values())
    _, _, result = equalized(seeded(Grouped(0)), center=False)
    assert all(not offset.any() for offset, _ in result.moves.values())
    _, _, result = equalized(seeded(Grouped(0)))
    assert all(offset.any() for offset, _ in result.moves.values())


def test_dead_channels_are_left_alone() -> None:
    net = seeded(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)))
    net[0].weight.data[2] = 0
    net[0].bias.data[2] = 0
    net[1].weight.data[:, 5] = 0
    graph, _, result = equalized(net)
    x = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    [before], [after] = Executor(graph).run([x]), Executor(result.graph).run([x])
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    assert all(np.isfinite(value).all() for value in result.graph.constants.values())


@pytest.mark.parametrize("center", [False, True])
def test_a_channel_excited_only_where_moments_do_not_look(center: bool) -> None:
    net = seeded(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1)))
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    graph = prepare(capture(net, (x,), {}))
    rare = Channels(np.zeros(4), np.ones(4), np.array([0.0, 9, 9, 9]), np.array([0.0, 9, 9, 9]), 64)
    result = equalize(graph, dict.fromkeys(graph.activations(), rare), center=center)
    assert all(np.isfinite(value).all() for value in result.graph.constants.values())
    assert all((divisor > 0).all() for _, divisor in result.moves.values())
