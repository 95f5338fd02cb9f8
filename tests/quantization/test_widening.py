"""How many activations are widened, and which shares of ranges are taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import nn

import kvant
from kvant.graph import TensorType
from kvant.quantization import widening
from kvant.quantization.ranges import activation_type, real_range
from kvant.quantization.widening import SHARES, shares_of_ranges, widen, with_shares

NAMES = [f"layer{number}" for number in range(10)]
NARROW, WIDE = (dict.fromkeys(NAMES, TensorType(dtype)) for dtype in ("uint8", "int16"))
ITSELF = {name: name for name in NAMES}


@dataclass(frozen=True)
class Plan:
    graph: None
    types: dict[str, TensorType]


class Yardstick:
    """Each widened activation gives 3 dB more, from 0 dB."""

    @staticmethod
    def measure(plan: Plan) -> float:
        return 3.0 * sum(type.dtype == "int16" for type in plan.types.values())


@pytest.fixture
def _ten_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten activations that cost the same."""
    monkeypatch.setattr(widening, "group_cost", lambda graph, group_of: dict.fromkeys(NAMES, 1.0))


def widened(goal: float, **more: Any) -> list[str]:
    """The first activations cause the most noise."""
    noise = {name: 10.0 - number for number, name in enumerate(NAMES)}
    types = widen(Plan(None, NARROW), WIDE, Yardstick(), goal, noise, ITSELF, **more)  # type: ignore[arg-type]
    return [name for name, type in types.items() if type.dtype == "int16"]


@pytest.mark.usefixtures("_ten_alike")
@pytest.mark.parametrize(("goal", "count"), [(3.0, 1), (14.0, 5), (18.0, 6), (40.0, 10)])
def test_as_few_as_the_goal_needs(goal: float, count: int) -> None:
    assert widened(goal) == NAMES[:count]


@pytest.mark.usefixtures("_ten_alike")
@pytest.mark.parametrize(("goal", "enough", "count"), [(15, 0, 5), (18, 0, 5), (18, 15, 5), (24, 17, 6), (40, 36, 10)])
def test_beyond_most_only_for_what_is_enough(goal: float, enough: float, count: int) -> None:
    """15 dB need five of ten, which is half; what half give is taken where that is enough, and else as few as are."""
    assert widened(goal, most=0.5, enough=enough) == NAMES[:count]


def test_a_share_of_a_range_is_taken_where_it_leaves_clearly_less_noise() -> None:
    noise = {
        "clips": [8.0, 2.0, 1.0, 2.0],
        "hardly": [1.0, 0.95, 2.0, 4.0],
        "whole": [1.0, 2.0, 4.0, 8.0],
        "silent": [0.0] * len(SHARES),
    }
    assert shares_of_ranges(noise) == {"clips": 2}
    type = activation_type((-1.0, 2.0), 8)
    types = with_shares({"a": type, "b": type}, {"a": "clips", "b": "whole"}, {"clips": 2})
    assert types["b"] is type and real_range(types["a"]) == pytest.approx([SHARES[2] * end for end in real_range(type)])
    assert types["a"].quantization.zero_point == type.quantization.zero_point


class Massive(nn.Module):
    """A channel of a few huge values, of which the second layer reads next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.first.weight[0] = 0.0
            self.first.weight[0, 0, 1, 1], self.first.bias[0] = 200.0, -500.0
            self.second.weight[:, 0] *= 0.001

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_huge_values_that_matter_little_are_clipped(effort: Literal["fast", "default"]) -> None:
    """With squared error as the only measure they leave the other channels a handful of levels: 4 dB."""
    torch.manual_seed(0)
    model = Massive().eval()
    data = [torch.randn(1, 3, 24, 24) for _ in range(24)]
    recipe = kvant.Recipe(equalize=False, effort=effort)
    quantized = kvant.quantize(model, data[0], calibration=data, recipe=recipe)
    (clipped,) = (each for each in quantized.decisions if each.step == "ranges that clip")
    assert clipped.taken and clipped.before is not None and clipped.after is not None
    assert clipped.after > clipped.before + 10
