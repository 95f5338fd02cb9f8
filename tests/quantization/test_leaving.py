"""What is joined last, and returned, keeps the scales of its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kvant
from kvant import Recipe
from kvant.errors import CalibrationError
from kvant.format import from_bytes, to_bytes
from kvant.graph import Graph, ops
from kvant.runtime import QuantizedModel
from networks import sqnr_db

pytestmark = pytest.mark.usefixtures("one_thread")


class Detector(nn.Module):
    """Boxes of up to hundreds of pixels and probabilities of classes, joined by ``give`` as detectors do."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.give = give
        self.stem, self.box, self.score = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x).relu()
        return self.give((self.box(x) * 400).flatten(2), self.score(x).sigmoid().flatten(2))


def decoded(box: Tensor, score: Tensor) -> Tensor:
    """Key points as YOLO decodes them: two places and a probability each, overwritten one after the other."""
    y = torch.stack([box[:, 0], box[:, 1], score[:, 0] * 9 - 4, box[:, 2], box[:, 3], score[:, 1] * 9 - 4], 1).clone()
    y[:, 2::3] = y[:, 2::3].sigmoid()
    y[:, 0::3] = y[:, 0::3] * 2 + 5
    y[:, 1::3] = y[:, 1::3] * 2 - 5
    return y


JOINS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "one tensor": lambda box, score: torch.cat([box, score], 1),
    "turned": lambda box, score: torch.cat([box, score], 1).transpose(1, 2),
    "in two steps": lambda box, score: torch.cat([torch.cat([box, score[:, :2]], 1), score[:, 2:]], 1),
    "cut": lambda box, score: torch.cat([box, score], 1)[..., 1:],
    "with a constant": lambda box, score: torch.cat([box, torch.full((1, 1, 1), 3.0).expand_as(box[:, :1]), score], 1),
    "beside another": lambda box, score: {"all": torch.cat([box, score], 1), "score": score, "turned": box.mT},
}


def quantized(model: nn.Module, images: list[Tensor]) -> QuantizedModel:
    return kvant.quantize(model, images[0], calibration=images, recipe=Recipe(effort="fast"))


def images(count: int, batch: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(batch, 3, 17, 17, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", JOINS)
def test_probabilities_beside_boxes_keep_their_levels(name: str) -> None:
    torch.manual_seed(0)
    model = Detector(JOINS[name]).eval()
    found = quantized(model, images(8))
    graph = from_bytes(to_bytes(found.graph)).graph
    native, reference = (QuantizedModel(graph, backend=name) for name in ("native", "reference"))
    for x in images(1, batch=2):
        with torch.no_grad():
            wanted = model(x)
        got, same = native(x), reference(x)
        if isinstance(wanted, dict):
            assert set(got) == set(wanted)
            assert sqnr_db(wanted["score"], got["score"]) > 28
            wanted, got, same = wanted["all"], got["all"], same["all"]
        np.testing.assert_array_equal(got.numpy(), same.numpy(), strict=True)
        assert got.shape == wanted.shape
        one, two = (y if y.shape[1] in (10, 11) else y.transpose(1, 2) for y in (wanted, got))
        assert sqnr_db(one[:, :4], two[:, :4]) > 28
        assert sqnr_db(one[:, -6:], two[:, -6:]) > 28


def joins(graph: Graph) -> list[str]:
    return [graph.types[node.output].dtype for node in graph.nodes if isinstance(node.op, ops.Concat)]


def test_what_is_computed_with_stays_in_integers() -> None:
    torch.manual_seed(0)

    class Inside(Detector):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(super().forward(x)[..., None])

    model = Inside(JOINS["one tensor"])
    model.last = nn.Conv2d(10, 2, 1)
    assert joins(quantized(model.eval(), images(8)).graph) == ["uint8"]


def test_the_parts_of_a_join_are_float32() -> None:
    torch.manual_seed(0)
    assert joins(quantized(Detector(JOINS["one tensor"]).eval(), images(8)).graph) == ["float32"]


def test_without_data() -> None:
    torch.manual_seed(0)
    model = Detector(JOINS["one tensor"]).eval()
    x = images(1)[0]
    found = kvant.quantize(model, x, calibration=None)
    with torch.no_grad():
        assert sqnr_db(model(x)[:, 4:], found(x)[:, 4:]) > 20


def test_key_points_and_their_probabilities() -> None:
    torch.manual_seed(0)
    model = Detector(decoded).eval()
    found = quantized(model, images(8))
    x = images(1, batch=2)[0]
    with torch.no_grad():
        wanted, got = model(x), found(x)
    np.testing.assert_array_equal(got, QuantizedModel(found.graph, backend="reference")(x))
    for kind in range(3):
        assert sqnr_db(wanted[:, kind::3], got[:, kind::3]) > 28


def test_parts_that_reach_alike_stay_one_output() -> None:
    """Heat maps and fields of a pose network: one scale suits both, and the noise of both counts as one."""
    model = Detector(lambda box, score: torch.cat([box / 200, score], 1)).eval()
    graph = quantized(model, images(8)).graph
    assert [type(node.op) for node in graph.nodes].count(ops.Dequantize) == 1


def test_data_that_do_not_fit_are_refused_as_ever() -> None:
    model = Detector(lambda box, score: torch.cat([box, score], 1)).eval()
    for data, match in (([torch.zeros(1, 4, 33, 33)], "shape"), ([], "empty|no calibration|nothing")):
        with pytest.raises(CalibrationError, match=match):
            kvant.quantize(model, images(1)[0], calibration=data)
