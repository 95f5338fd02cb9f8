"""Networks of tokens: what is rare in them (short sentences, first tokens, attention to one token) is not missed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kvant
from kvant import Recipe
from kvant.capture import capture, prepare
from kvant.graph import Quantization, TensorType, ops
from kvant.quantization.observers import HISTOGRAM_VALUES, Histogram
from kvant.quantization.progress import Progress
from kvant.quantization.ranges import real_range
from kvant.quantization.simulate import Plan
from kvant.quantization.statistics import Statistics, collect
from kvant.quantization.yardstick import SHORTEST_SLACK_DB, Yardstick
from kvant.runtime import QuantizedModel
from networks import sqnr_db

pytestmark = pytest.mark.usefixtures("one_thread")
LONGEST = 12


class Sentence(nn.Module):
    """The mean over the tokens that are there of two layers of each; the first token is unlike all others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.up, self.down = nn.Embedding(50, 32), nn.Linear(32, 64), nn.Linear(64, 16)
        self.table.weight.data = 1.0 + 0.1 * torch.randn(50, 32)
        self.table.weight.data[1] = 8.0 * torch.randn(32)

    def forward(self, ids: Tensor, present: Tensor) -> Tensor:
        y = self.down(torch.relu(self.up(self.table(ids)))) * present.unsqueeze(-1)
        return y.sum(1) / present.sum(1, keepdim=True)


def sentence(length: int, seed: int) -> list[Tensor]:
    """Ids (1, LONGEST), the first of them 1 and those after ``length`` 0; and 1 for each that is there."""
    ids = torch.randint(2, 50, (1, LONGEST), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 1
    present = (torch.arange(LONGEST) < length).float()[None]
    return [ids * present.long(), present]


SENTENCES = [sentence(length, seed) for seed, length in enumerate((9, 12, 11, 2, 10, 12, 9, 11, 12))]
SHORTEST = SENTENCES[3]


def seen(batches: list[list[Tensor]], keep: int = 4) -> Statistics:
    graph = prepare(capture(Sentence().eval(), tuple(batches[0]), {}))
    return collect(graph, batches, "histogram", keep, Progress(False))


def alike(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def test_the_shortest_is_set_aside_in_any_order_and_batches() -> None:
    joined = [[torch.cat(pair) for pair in zip(*some, strict=True)] for some in pairwise(SENTENCES)][::2]
    kept = []
    for batches in (SENTENCES, SENTENCES[::-1], [*joined, SENTENCES[-1]]):
        found = seen(batches)
        assert found.shortest is not None and alike(found.shortest, SHORTEST)
        assert found.count == len(SENTENCES)
        assert len(found.samples) == 4 and not any(alike(sample, SHORTEST) for sample in found.samples)
        kept.append(found.samples)
    assert all(alike(*pair) for other in kept[1:] for pair in zip(kept[0], other, strict=True))


def test_one_sentence_is_all_there_is() -> None:
    found = seen([SHORTEST])
    assert found.shortest is None and alike(found.samples[0], SHORTEST)


def test_pictures_have_no_shortest() -> None:
    model = nn.Conv2d(3, 4, 1).eval()
    data = [torch.rand(1, 3, 4, 4) for _ in range(3)]
    graph = prepare(capture(model, (data[0],), {}))
    found = collect(graph, [[each] for each in data], "histogram", 4, Progress(False))
    assert found.shortest is None and len(found.samples) == 3


def test_the_shortest_is_measured_with_slack() -> None:
    """Rounding to a step of 0.3 costs a weak sample more; the yardstick tells that from the sample alone."""
    graph = prepare(capture(nn.Sequential(nn.ReLU(), nn.ReLU()).eval(), (torch.rand(1, 4, 8, 8),), {}))
    plan = Plan(graph, {name: TensorType("int16", Quantization((0.3,))) for name in graph.activations()}, {}, {})
    strong, weak = ([torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * size] for size in (50, 1))
    alone = [Yardstick(graph, [each]).measure(plan) for each in (strong, weak)]
    assert alone[0] > alone[1] + 20
    assert Yardstick(graph, [strong], weak).measure(plan) == pytest.approx(alone[1] + SHORTEST_SLACK_DB)
    assert Yardstick(graph, [weak], strong).measure(plan) == pytest.approx(alone[1])
    assert Yardstick(graph, [strong], weak).measure_whole(plan) == Yardstick(graph, [strong]).measure_whole(plan)


def test_weights_become_finer_where_they_are_what_the_shortest_suffers_from() -> None:
    model = Sentence().eval()
    recipe = Recipe(target_sqnr=52.0)
    quantized = kvant.quantize(model, tuple(SENTENCES[0]), calibration=SENTENCES, recipe=recipe)
    step = next(each for each in quantized.decisions if each.step == "weights in 14 bits for the shortest sample")
    assert step.taken and step.after >= 52 - SHORTEST_SLACK_DB + 3 > step.before
    assert {quantized.graph.types[node.inputs[1]].dtype for node in quantized.graph.nodes
            if isinstance(node.op, ops.Linear)} >= {"int16"}  # fmt: skip
    for length in (2, 3):
        short = sentence(length, 77)
        assert sqnr_db(model(*short), quantized(*short)) > 52 - SHORTEST_SLACK_DB - 3
    none = kvant.quantize(model, tuple(SENTENCES[0]), calibration=SENTENCES, recipe=Recipe(target_sqnr=20.0))
    assert not any("shortest" in each.step for each in none.decisions)


@pytest.mark.parametrize("channel", [0, 1, 2, 1004])
def test_histograms_meet_every_channel_of_the_first_token(channel: int) -> None:
    values = torch.zeros(1, 30, 1536)
    assert values.numel() > 3 * HISTOGRAM_VALUES
    values[0, 0, channel] = 20.0
    histogram = Histogram()
    histogram.observe(Histogram.some(values), 0.0, 20.0)
    assert histogram.counts[histogram.centers() > 19].sum() == 1


class Attention(nn.Module):
    """Attention of some queries, as given, to what a layer makes of tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.value = nn.Linear(8, 8)

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        return torch.softmax(scores, -1) @ self.value(x)


def test_averages_have_room_for_what_they_average() -> None:
    """Calibration attends to many tokens, whose averages are small, or to one of zeros; then queries to one each."""
    generator = torch.Generator().manual_seed(1)
    many = torch.where(torch.arange(64) < 32, 0.0, -30.0).repeat(1, 64, 1)
    many[:, 0] = torch.where(torch.arange(64) < 1, 0.0, -30.0)
    data = [(torch.randn(1, 64, 8, generator=generator), many) for _ in range(4)]
    for tokens, _ in data:
        tokens[:, 0] = 0
    model = Attention().eval()
    quantized = kvant.quantize(model, data[0], calibration=data, recipe=Recipe(target_sqnr=None))
    types, nodes = quantized.graph.types, quantized.graph.nodes
    averages, values = (types[next(node.output for node in nodes if isinstance(node.op, kind))]
                        for kind in (ops.MatMul, ops.Linear))  # fmt: skip
    assert averages.dtype == values.dtype == "uint8"
    assert (
        real_range(averages)[0] <= real_range(values)[0] + 0.1
        and real_range(averages)[1] >= real_range(values)[1] - 0.1
    )
    x, looks = data[0][0], 30.0 * torch.eye(64)[None] - 30.0
    assert sqnr_db(model(x, looks), quantized(x, looks)) > 30
    reference = QuantizedModel(quantized.graph, backend="reference")
    np.testing.assert_array_equal(reference(x, looks), quantized(x, looks))
