"""Rows of embedding tables get ranges of their own: the same in float, far less noise in integers."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import kvant
from kvant.capture import Executor, capture, prepare
from kvant.graph import Graph, ops, validate
from kvant.quantization.embeddings import split_tables
from kvant.runtime import QuantizedModel
from networks import sqnr_db

IDS = torch.arange(40).reshape(4, 10)


class Words(nn.Module):
    """A table of 40 rows, some of them much larger, and a normalisation that makes rows alike again."""

    def __init__(self, sizes: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)
        with torch.no_grad():
            self.table.weight.copy_(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)) * sizes[:, None])
        self.norm = nn.LayerNorm(16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.table(ids))


def uneven() -> Words:
    return Words(torch.where(torch.arange(40) % 8 == 0, 20.0, 0.5)).eval()


def gathers(graph: Graph) -> int:
    return sum(isinstance(node.op, ops.Gather) for node in graph.nodes)


def test_float_stays_the_same() -> None:
    net = uneven()
    with torch.no_grad():
        net.table.weight[3] = 0  # a row of nothing, such as padding's, has no size to divide by
    graph = prepare(capture(net, (IDS,), {}))
    split = split_tables(graph)
    validate(split)
    assert (gathers(graph), gathers(split)) == (1, 2)
    torch.testing.assert_close(Executor(split).run([IDS])[0], Executor(graph).run([IDS])[0], rtol=1e-5, atol=1e-6)


def test_even_rows_and_short_rows_are_left_alone() -> None:
    graph = prepare(capture(Words(torch.ones(40)).eval(), (IDS,), {}))
    assert gathers(split_tables(graph)) == 1
    narrow = nn.Embedding(40, 4).eval()
    with torch.no_grad():
        narrow.weight[0] *= 100
    assert gathers(split_tables(prepare(capture(narrow, (IDS,), {})))) == 1


def test_small_rows_survive_eight_bits() -> None:
    """One scale for the table would leave a row of 0.5 among rows of 20 about 8 of 256 levels."""
    net = uneven()
    quantized = kvant.quantize(net, IDS, calibration=[IDS])
    tables = [value for value in quantized.graph.constants.values() if value.shape == (40, 16)]
    assert [table.dtype for table in tables] == [np.dtype(np.uint8)]
    small = torch.arange(40)[torch.arange(40) % 8 != 0].reshape(5, 7)
    assert sqnr_db(net(small), quantized(small)) > 35
    reference = QuantizedModel(quantized.graph, backend="reference")
    assert torch.equal(reference(small), quantized(small))
