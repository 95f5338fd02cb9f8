"""The noise that gradients predict against the noise that errors make."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kvant.capture import capture, prepare
from kvant.graph import ops
from kvant.quantization.sensitivity import Probe, noise_of
from kvant.quantization.ties import ties
from kvant.quantization.widening import group_cost

COUNT = 12


class Plain:
    """Weighs all noise alike, so that noise over signal is its sum of squares."""

    def random_direction(self, at: int, outputs: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        return (outputs[0] * torch.randn(outputs[0].shape, generator=generator)).sum()


def test_one_direction_tells_each_samples_noise() -> None:
    """Of a convolution, whose noise by an error of its input does not depend on the input."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 32, 3, 3, generator=generator)
    for _ in range(COUNT):
        x, wrong = (torch.randn(1, 32, 20, 20, generator=generator) for _ in range(2))
        leaf = x.requires_grad_()
        found = noise_of(
            lambda _, leaf=leaf: ([F.conv2d(leaf, weight)], {"x": leaf}),
            lambda name, values, wrong=wrong: (wrong, 2 * wrong),
            Plain(),  # type: ignore[arg-type]
            [[x]],
            Probe(1, by_channel=True),
        )
        made = float(F.conv2d(wrong, weight).square().sum())
        once, twice = found["x"]
        assert made / 2 < once < made * 2 and twice == pytest.approx(4 * once)


def test_rows_of_a_table_cost_what_the_table_is_of_the_file() -> None:
    """Else they would be widened first, as they feed few multiplications, and files of mostly rows be twice as long."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(500, 8), nn.Linear(8, 4), nn.Linear(4, 2)).eval()
    graph = prepare(capture(net, (torch.randint(500, (2, 6)),), {}))
    group_of = ties(graph)
    cost = group_cost(graph, group_of)
    (rows,) = (node for node in graph.nodes if isinstance(node.op, ops.Gather))
    sizes = {name: value.size for name, value in graph.constants.items()}
    multiplications = 2 * 6 * (8 * 4 + 4 * 2)
    table = multiplications * 500 * 8 / sum(sizes.values())
    assert cost[group_of[rows.output]] == pytest.approx(table + 2 * 6 * 8 * 4)
    assert table > 0.9 * multiplications
