"""How many activations are widened: what the target needs, and fewer where the last decibels would cost too much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from kvant.graph import TensorType
from kvant.quantization import sensitivity
from kvant.quantization.progress import Progress

NAMES = [f"layer{number}" for number in range(10)]
NARROW, WIDE = (dict.fromkeys(NAMES, TensorType(dtype)) for dtype in ("uint8", "int16"))


@dataclass(frozen=True)
class Plan:
    graph: None
    types: dict[str, TensorType]


class Yardstick:
    """Each widened activation gives 3 dB more, from 0 dB."""

    @staticmethod
    def measure(plan: Plan) -> float:
        return 3.0 * sum(type.dtype == "int16" for type in plan.types.values())


@pytest.fixture(autouse=True)
def _ten_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten activations that cost the same; the first ones cause the most noise."""
    monkeypatch.setattr(sensitivity, "ties", lambda graph: {name: name for name in NAMES})
    monkeypatch.setattr(sensitivity, "group_cost", lambda graph, group_of: dict.fromkeys(NAMES, 1.0))
    monkeypatch.setattr(
        sensitivity, "group_noise", lambda *_: {name: 10.0 - number for number, name in enumerate(NAMES)}
    )


def widened(target: float, **more: Any) -> list[str]:
    types = sensitivity.widen(Plan(None, NARROW), WIDE, Yardstick(), target, Progress(False), **more)  # type: ignore[arg-type]
    return [name for name, type in types.items() if type.dtype == "int16"]


@pytest.mark.parametrize(("target", "count"), [(-1.0, 0), (3.0, 1), (14.0, 5), (18.0, 6), (40.0, 10)])
def test_as_few_as_the_target_needs(target: float, count: int) -> None:
    assert widened(target) == NAMES[:count]


@pytest.mark.parametrize(("target", "count"), [(15.0, 5), (18.0, 5), (21.0, 6), (40.0, 10)])
def test_less_is_enough_only_where_more_than_half_would_be_wide(target: float, count: int) -> None:
    """15 dB need five of ten, which is no more than half; the others may have 4 dB less, if that is reached at all."""
    assert widened(target, spared=4.0) == NAMES[:count]
