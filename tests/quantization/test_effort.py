"""What effort buys: more of the network in 8 bits, or less time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import kvant
from kvant.capture import capture, prepare
from kvant.errors import RecipeError
from kvant.graph import Graph
from kvant.quantization import api, tune
from kvant.quantization.progress import Progress
from kvant.quantization.recipe import Effort
from kvant.quantization.statistics import Sample, Statistics, collect, part

EXTREMES = kvant.ActivationScheme(range="minmax")


class Uneven(torch.nn.Module):
    """Depthwise layers whose channels differ by orders of magnitude, as trained ones do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        layers: list[torch.nn.Module] = [torch.nn.Conv2d(3, 32, 3, stride=2, padding=1), torch.nn.ReLU()]
        for _ in range(4):
            depthwise = torch.nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
            depthwise.weight.data *= torch.logspace(-1.5, 1.5, 32)[torch.randperm(32)][:, None, None, None]
            layers += [depthwise, torch.nn.Conv2d(32, 32, 1), torch.nn.ReLU()]
        self.body = torch.nn.Sequential(*layers, torch.nn.Conv2d(32, 5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def noise(net: torch.nn.Module, quantized: kvant.QuantizedModel, pictures: list[torch.Tensor]) -> float:
    with torch.no_grad():
        wanted, got = torch.cat([net(x) for x in pictures]), torch.cat([quantized(x) for x in pictures])
    return 10 * float(torch.log10(wanted.square().sum() / (wanted - got).square().sum()))


def share(quantized: kvant.QuantizedModel) -> float:
    """Of the multiplications in 8 bits."""
    counts = quantized.macs()
    return sum(each.count for each in counts if "int16" not in each.dtypes) / sum(each.count for each in counts)


def test_best_effort_has_no_fewer_multiplications_in_8_bits_and_holds_the_target() -> None:
    net, pictures = Uneven().eval(), list(torch.randn(40, 3, 32, 32).split(1))
    made = {
        effort: kvant.quantize(net, pictures[0], calibration=pictures[:32], recipe=kvant.Recipe(effort=effort))
        for effort in ("fast", "default", "best")
    }
    for quantized in made.values():
        assert noise(net, quantized, pictures[32:]) > 22
    assert share(made["best"]) >= share(made["default"])


def test_where_nothing_is_widened_weights_are_rounded_for_what_activations_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune, "LEAST_STEPS", 10**9)  # more than there ever are: nothing is tuned
    generator = torch.Generator().manual_seed(5)
    smooth = torch.nn.functional.interpolate(torch.rand(40, 3, 8, 8, generator=generator), scale_factor=4.0)
    net, pictures = Uneven().eval(), list(smooth.split(1))
    few, reached = kvant.ActivationScheme(4), {}
    for compensate in (False, True):
        recipe = kvant.Recipe(
            activations=few, effort="best", target_sqnr=None, fine_weights=False, compensate=compensate
        )
        quantized = kvant.quantize(net, pictures[0], calibration=pictures[:32], recipe=recipe)
        reached[compensate] = noise(net, quantized, pictures[32:])
    assert reached[True] > reached[False] + 0.7
    [anew] = [each for each in quantized.decisions if each.step == "compensated rounding"]
    assert anew.taken and anew.detail.startswith("0 of ")
    centered = [each for each in quantized.decisions if each.step == "equalization" and "centered" in each.detail]
    assert len(centered) == 1


@pytest.mark.parametrize(("effort", "count"), [("fast", 16), ("default", 32)])
def test_efforts_run_on_some_samples_and_no_order_changes_which(effort: Effort, count: int, tmp_path: Path) -> None:
    net, pictures = Uneven().eval(), list(torch.randn(60, 3, 32, 32).split(1))
    recipe = kvant.Recipe(effort=effort, samples=8)
    files = []
    for number, data in enumerate((pictures, pictures[::-1], [torch.cat(pictures[20:]), *pictures[:20]])):
        files.append(tmp_path / f"{number}.kvant")
        kvant.quantize(net, pictures[0], calibration=data, recipe=recipe).save(files[-1])
    assert len({file.read_bytes() for file in files}) == 1
    graph = prepare(capture(net, (pictures[0],), {}))
    seen = collect(graph, ([x] for x in pictures), "minmax", 8, Progress(False), recipe.most_samples)
    assert (seen.count, seen.batches, len(seen.samples)) == (count, 60, 8)
    everything = collect(graph, ([x] for x in pictures), "minmax", 16, Progress(False))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(seen.samples, everything.samples[:8], strict=True))


def test_best_effort_and_moving_averages_see_all_samples() -> None:
    recipes = (kvant.Recipe(effort="best"), kvant.Recipe(activations=EXTREMES, observer="moving_average"))
    assert [recipe.most_samples for recipe in recipes] == [None, None]


def test_effort_is_checked_and_keeps_more_or_fewer_samples() -> None:
    assert [kvant.Recipe(effort=effort).kept_samples for effort in ("fast", "default", "best")] == [16, 16, 128]
    with pytest.raises(RecipeError, match="effort"):
        kvant.Recipe(effort="most")  # type: ignore[arg-type]
    assert kvant.Recipe.from_toml(kvant.Recipe(effort="best").to_toml()).effort == "best"


@pytest.mark.parametrize(
    ("recipe", "macs", "count"),
    [
        (kvant.Recipe(), 3 * 4 * 9 * 10 * 10, 16), (kvant.Recipe(), 3 * 4 * 9 * 10 * 10 + 1, 32),
        (kvant.Recipe(samples=5), 1e9, 5), (kvant.Recipe(effort="fast"), 1e9, 16),
        (kvant.Recipe(effort="best"), 1e9, 128),
    ],
)  # fmt: skip
def test_more_samples_are_kept_of_quick_networks(
    recipe: kvant.Recipe, macs: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    def noted(graph: Graph, data: Iterable[Sample], observer: str, keep: int, *more: Any) -> Statistics:
        kept.append(keep)
        return collect(graph, data, observer, keep, *more)

    monkeypatch.setattr(api, "collect", noted)
    monkeypatch.setattr(api, "QUICK_MACS", macs)
    net, pictures = torch.nn.Conv2d(3, 4, 3).eval(), list(torch.randn(8, 3, 12, 12).split(1))
    for example in (pictures[0], torch.cat(pictures[:3])):
        kvant.quantize(net, example, calibration=pictures, recipe=recipe)
    assert kept == [count, count]


@pytest.mark.parametrize(
    ("count", "fit_most", "held"),
    [(4, False, 2), (16, False, 4), (17, False, 8), (32, False, 16), (40, False, 16), (128, False, 32), (32, True, 8)],
)
def test_so_many_samples_are_held_out(count: int, fit_most: bool, held: int) -> None:
    samples = [[torch.tensor(float(number))] for number in range(count)]
    fitted, others = part(samples, fit_most=fit_most)
    assert fitted == samples[: count - held]
    assert others == samples[count - held :]


def test_few_samples_serve_for_both() -> None:
    samples = [[torch.tensor(float(number))] for number in range(3)]
    assert part(samples) == (samples, samples)


def test_best_effort_in_8_bits_leaves_room_where_that_is_enough() -> None:
    """Centered channels all fill the range of what was seen, and new data are clipped."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 1), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 8, 1),
    ).eval()  # fmt: skip
    pictures = list(torch.randn(16, 3, 12, 12).split(1))
    new = [1.1 * picture for picture in torch.randn(16, 3, 12, 12).split(1)]
    found = {}
    for effort in ("default", "best"):
        recipe = kvant.Recipe(target_sqnr=None, effort=effort)
        quantized = kvant.quantize(net, pictures[0], calibration=pictures, recipe=recipe)
        found[effort] = noise(net, quantized, new)
        assert not any("centered" in each.detail for each in quantized.decisions)
    assert found["best"] > found["default"] - 1
