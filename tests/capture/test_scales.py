"""Depthwise 1x1 convolutions disappear into their readers without a change of the result."""

import pytest
import torch
from torch import nn

from kvant.capture import Executor, capture, prepare
from kvant.capture.passes import fold_channel_scales
from kvant.graph import ops


def outputs(graph, x):
    return Executor(graph).run([x])


def network(*, bias: bool, padding: int, groups: int = 1, activation: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=8, bias=bias)]
    if activation:
        layers.append(nn.ReLU())
    layers += [nn.Conv2d(8, 6, 3, padding=padding, groups=groups), nn.ReLU(), nn.Conv2d(6, 2, 1)]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize(
    ("bias", "padding", "groups", "folds"),
    [(False, 1, 1, True), (True, 0, 1, True), (True, 1, 1, False), (False, 1, 2, True), (True, 0, 2, True)],
)
def test_folding_is_exact_and_happens_only_where_it_is(bias: bool, padding: int, groups: int, folds: bool) -> None:
    torch.manual_seed(0)
    model = network(bias=bias, padding=padding, groups=groups)
    x = torch.randn(2, 3, 16, 16)
    graph = prepare(capture(model, (x,)))
    convolutions = sum(isinstance(node.op, ops.Conv) for node in graph.nodes)
    assert convolutions == (3 if folds else 4)
    torch.testing.assert_close(outputs(graph, x)[0], model(x).detach(), rtol=1e-5, atol=1e-5)


def test_an_activation_in_between_stops_it() -> None:
    x = torch.randn(2, 3, 16, 16)
    graph = prepare(capture(network(bias=False, padding=1, activation=True), (x,)))
    assert sum(isinstance(node.op, ops.Conv) for node in graph.nodes) == 4


def test_a_scale_that_is_also_an_output_stays() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Conv2d(4, 4, 1, groups=4, bias=False)
            self.mix = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            scaled = self.scale(x)
            return scaled, self.mix(scaled)

    x = torch.randn(1, 4, 5, 5)
    model = Two().eval()
    graph = fold_channel_scales(prepare(capture(model, (x,))))
    for got, want in zip(outputs(graph, x), model(x), strict=True):
        torch.testing.assert_close(got, want.detach())
