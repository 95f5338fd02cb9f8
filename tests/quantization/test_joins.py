"""What is joined with something much larger keeps a scale that fits it for everyone else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import kvant
from kvant import ActivationScheme, Recipe
from kvant.format import from_bytes, to_bytes
from kvant.graph import Graph, ops
from kvant.runtime import QuantizedModel
from networks import sqnr_db

pytestmark = pytest.mark.usefixtures("one_thread")

# 8 bits for all activations, and no step that measures.
PLAIN = {"target_sqnr": None, "equalize": False, "correct_bias": False, "fine_weights": False, "samples": 2}


class Joined(nn.Module):
    """A map, pooled, is joined with one that reaches ``times`` as far; it may be read by a layer of its own, too."""

    def __init__(self, times: float = 100.0, *, alone: bool = True, twice: bool = False) -> None:
        super().__init__()
        self.small, self.large = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(3, 6, 3, 1, 1)
        self.both, self.own = nn.Conv2d(12, 4, 1), nn.Conv2d(6, 4, 1)
        self.more = nn.Conv2d(18, 4, 1) if twice else None
        self.times, self.alone = times, alone

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        small = nn.functional.max_pool2d(torch.sigmoid(self.small(x)), 2)
        large = nn.functional.avg_pool2d(self.large(x), 2) * self.times
        joined = torch.cat([small, large], 1)
        outputs = [self.both(joined)] + ([self.own(small)] if self.alone else [])
        return outputs if self.more is None else [*outputs, self.more(torch.cat([small, joined], 1))]


def images(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, 8, 8, generator=generator) for _ in range(count)]


def quantized(model: nn.Module, **chosen: object) -> QuantizedModel:
    data = images(4)
    return kvant.quantize(model, data[0], calibration=data, recipe=Recipe(**(PLAIN | chosen)))  # type: ignore[arg-type]


def requantized(graph: Graph) -> list[str]:
    return [node.inputs[0] for node in graph.nodes if isinstance(node.op, ops.Requantize)]


def network(**chosen: bool | float) -> nn.Module:
    torch.manual_seed(0)
    return Joined(**chosen).eval()  # type: ignore[arg-type]


def test_the_small_one_keeps_its_scale() -> None:
    """Its step is that of a sigmoid: without a scale of its own 3 of 256 levels are left, and 5 dB."""
    model, x = network(), torch.cat(images(8, seed=9))
    found = quantized(model)
    [name] = requantized(found.graph)
    scale = found.graph.types[name].quantization
    assert scale is not None and scale.scale[0] < 1.5 / 255  # of so few samples half of the range is added
    for wanted, got in zip(model(x), found(x), strict=True):
        assert sqnr_db(wanted, got) > 28
    assert [entry.detail for entry in found.decisions if entry.step == "scales of their own"] == [
        "1 tensors that are joined with much larger ones"
    ]


def test_both_back_ends_agree() -> None:
    graph = from_bytes(to_bytes(quantized(network(twice=True)).graph)).graph
    x = torch.cat(images(2, seed=3)).numpy()
    native, reference = (QuantizedModel(graph, backend=name).run_all({"x": x}) for name in ("native", "reference"))
    for name in native:
        np.testing.assert_array_equal(native[name], reference[name], err_msg=name)


@pytest.mark.parametrize(
    ("model", "chosen"),
    [
        (network(times=2.0), {}),
        (network(alone=False), {}),
        (network(), {"activations": ActivationScheme(granularity="network")}),
    ],
    ids=["alike", "nobody else reads it", "one scale for the network"],
)
def test_others_stay_tied(model: nn.Module, chosen: dict[str, object]) -> None:
    assert requantized(quantized(model, **chosen).graph) == []


def test_a_tensor_in_two_joins_is_parted_from_each() -> None:
    found = quantized(network(twice=True)).graph
    assert len(requantized(found)) == 2 and len(set(requantized(found))) == 1


@pytest.mark.parametrize("chosen", [{"activations": ActivationScheme(4)}, {"activations": ActivationScheme(4, "log2")}])
def test_few_bits(chosen: dict[str, object]) -> None:
    """The layer that reads it alone does as well as where both are equally large."""
    model, alike, x = network(), network(times=1.0), torch.cat(images(8, seed=9))
    parted, tied = (sqnr_db(model(x)[1], quantized(each, **chosen)(x)[1]) for each in (model, alike))
    assert parted > tied - 1


def test_with_everything_on() -> None:
    model, x = network(twice=True), torch.cat(images(8, seed=9))
    data = images(12)
    found = kvant.quantize(model, data[0], calibration=data, recipe=Recipe(target_sqnr=None, effort="best"))
    assert min(sqnr_db(wanted, got) for wanted, got in zip(model(x), found(x), strict=True)) > 28
    without_data = kvant.quantize(model, data[0], calibration=None)
    assert min(sqnr_db(wanted, got) for wanted, got in zip(model(x), without_data(x), strict=True)) > 20
